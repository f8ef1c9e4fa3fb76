"""Find and read the files of a verb, by the path given or by the name that another file stores.

A file of ours stores the base names of the files that it was made from.  We look for them beside
it, one folder up (a model lies in a run folder) and in the current folder.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from minipc.data.clouds import check_same_kind, read_clouds
from minipc.errors import DataError
from minipc.models.file import read_model
from minipc.record.reader import RecordReader
from minipc.runs.folder import model_path
from minipc.storage.files import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minipc.data.clouds import Clouds, Splits
    from minipc.models.file import Model


def find_file(given: str | None, name: str | None, near: str, option: str) -> str:
    """Return the path given, or that of the file called name: beside near, one folder up, or here.

    option: what the user can pass instead.  Raises DataError if there is no such file.
    """
    if given is not None:
        return given
    beside = os.path.dirname(near)
    places = (
        [os.path.join(beside, name), os.path.join(beside, os.pardir, name), name] if name else []
    )
    for place in places:
        if os.path.exists(place):
            return os.path.normpath(place)
    raise DataError(
        f"{near}: its file {name or '(not named in it)'} is not beside it and not here; pass "
        f"{option}"
    )


def find_data(
    data: str | None,
    name: str | None,
    near: str,
    *,
    reader: RecordReader | None = None,
    points_hash: str | None = None,
    test_hash: str | None = None,
) -> tuple[str, Splits]:
    """Return a path and its Splits: data, else the clouds in the record, else a file we look for.

    reader: the open RecordReader, if there is one; name and near as in find_file.  If data is not
    given, the file must have the training points of points_hash (None: the caller compares) and the
    test points of test_hash (None: any).  Raises DataError.
    """
    carried = reader.clouds() if data is None and reader else None
    if carried is not None:
        return reader.path, carried  # type: ignore[union-attr]
    path = find_file(data, name, near, "DATA")
    splits = read_data(path)
    if data is None and points_hash is not None and splits.train.points_hash != points_hash:
        raise DataError(f"{path}: holds other training points than {near} was made from; pass DATA")
    if data is None and test_hash is not None and splits.test.points_hash != test_hash:
        raise DataError(f"{path}: holds other test points than {near} was measured on; pass DATA")
    return path, splits


def read_data(path: str) -> Splits:
    """Return the Splits of a clouds file or of a record with clouds.  Raises DataError."""
    if os.path.isdir(path):
        is_run = os.path.exists(os.path.join(path, "run.json"))
        raise DataError(
            f"{path}: is a run, not data; go on with it by: minipc train --resume --out {path}"
            if is_run
            else f"{path}: is a folder; pack it first: minipc data pack {path} -o FILE.h5"
        )
    if kind_of(path) != "record":
        return read_clouds(path)
    with RecordReader(path) as reader:
        splits = reader.clouds()
    if splits is None:
        raise DataError(
            f"{path}: is a record without clouds; name its data file, or add them to it: "
            f"minipc record DATA --teacher MODEL --out {path} --with-clouds"
        )
    return splits


def read_model_for(clouds: Clouds, data: str, model: str) -> tuple[str, Model]:
    """Return the path and the Model of a file or run folder; it must fit Clouds read from data.

    Raises DataError unless class names, up axis and normalisation are the same.
    """
    path = model_path(model)
    read = read_model(path)
    check_same_kind(clouds.described, read.described, data, path)
    return path, read


def say_unfinished(path: str, trained: dict[str, Any], say: Callable[[str], None]) -> None:
    """Say that a model is not of its training's last epoch; trained: Model.trained of it."""
    if trained.get("epochs", 0) < trained.get("of_epochs", 0):
        say(f"{path}: only {trained['epochs']} of its {trained['of_epochs']} epochs are done")
