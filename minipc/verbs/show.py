"""Choose clouds to look at: of a data file, of a record with its views, or files of one cloud.

What is chosen comes back as values for JSON and points; report/gallery.py makes pages and pictures.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minipc.data import augment
from minipc.data.clouds import UNLABELLED, check_count
from minipc.data.prepare import fit_points, turned
from minipc.data.readers.point_files import read_points
from minipc.data.readers.standard_input import reading
from minipc.errors import UsageError, short
from minipc.nn.ops import log_softmax_forward
from minipc.record.reader import RecordReader
from minipc.report.gallery import MAKER, page_of
from minipc.report.page import check_page, write_page
from minipc.storage.files import kind_of
from minipc.verbs.find import find_data, read_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipc.data.clouds import Clouds, Splits

MOST_CLOUDS = 200  # in one page: more is no help to a reader
MOST_POINTS = 4096  # of each cloud, unless asked for more
OF_ONE_CLASS, OF_VIEWS = 12, 11  # shown unless a number is asked for; with the stored cloud 12


class Choice(NamedTuple):
    """Which clouds of a split; None: not asked for."""

    name: str | None = None  # of a class
    cloud: int | None = None
    number: int | None = None  # of each class, or of the named one


Shown = tuple[
    dict[str, Any], list[np.ndarray]
]  # values for JSON, and the points (P, 3) of each cloud in values["shown"]


def show(
    paths: Sequence[str],
    *,
    split: str | None = None,
    name: str | None = None,
    cloud: int | None = None,
    count: int | None = None,
    views: tuple[int, int] | None = None,
    num_points: int | None = None,
    up_axis: str | None = None,
    out: str | None = None,
) -> Shown:
    """Return what was chosen, and write it to the page out.

    paths: a data file, a record, or files of one cloud each.  Of a data file: the first `count` of
    each class of a split ("train" or "test"), of the class `name` alone, or one cloud.  Of a
    record: a training cloud as it is stored and in views (first, stop), with the teacher's answer
    to each.  num_points: at most so many of each cloud (None: 4096), drawn as by fit_points.
    up_axis: of the files, where they do not say.  Raises UsageError for what cannot be chosen,
    DataError for a file that cannot be read.
    """
    if out is not None:
        check_page(out, MAKER)
    most = MOST_POINTS if num_points is None else check_count(num_points)
    kind, choice = _kind(paths), Choice(name, cloud, count)
    if cloud is not None and choice != Choice(cloud=cloud):
        raise UsageError("--cloud names one cloud; leave out --class and --count")
    asked = {"split": split, "class": name, "cloud": cloud, "count": count, "views": views}
    if kind == "files":
        _refuse(asked, "files of one cloud each have no use for")
        values, points = of_files(paths, most, up_axis or "unknown")
    elif kind == "clouds":
        _refuse({"views": views}, "only a record has views; leave out")
        split = split or "train"
        values, points = _of_clouds(
            paths[0], getattr(read_data(paths[0]), split), split, choice, most
        )
    else:
        _refuse({"split": split}, "a record has views of training clouds alone; leave out")
        values, points = _of_record(paths[0], choice, views, most)
    if up_axis not in (None, values["up_axis"]):
        if values["up_axis"] != "unknown":
            raise UsageError(
                f"up axis: {paths[0]} has {values['up_axis']}, not {up_axis}; leave it out"
            )
        values["up_axis"] = up_axis
    if out is not None:
        values["bytes"] = write_page(out, page_of(values, points), MAKER)
        values["out"] = str(out)
    return values, points


def _kind(paths: Sequence[str]) -> str:
    """Return "files", "clouds" or "record": what the paths are."""
    if len(paths) > 1:
        return "files"
    if os.path.isdir(paths[0]):
        read_data(paths[0])  # raises, with what to do instead
    kind = kind_of(paths[0])
    if kind == "record":
        return kind
    suffix = os.path.splitext(paths[0])[1].lower()
    return "clouds" if kind or suffix in (".h5", ".hdf5") else "files"


def _refuse(asked: dict[str, Any], why: str) -> None:
    """Raise UsageError if one of these options was given."""
    for name, value in asked.items():
        if value is not None:
            raise UsageError(f"{why} --{name}")


def of_files(
    paths: Sequence[str],
    most: int,
    up_axis: str,
    standard_input: str | None = None,
    turning: Sequence[str] | None = None,
) -> Shown:
    """Return the clouds of files of one cloud each, as `predict` reads them.

    turning: the up axis of the files and that to which clouds are turned, None: not turned.
    """
    _check_number(len(paths))
    points, shown = [], []
    for path in paths:
        with reading(path, standard_input) as place:
            whole = read_points(place)
        if turning:
            whole = turned(whole, *turning)
        points.append(_few(whole, most))
        shown.append(_one(points[-1], len(whole)) | {"file": str(path)})
    return _values("files", paths, up_axis, shown), points


def of_predictions(values: dict[str, Any], standard_input: str | None = None) -> Shown:
    """Return the clouds of the files that predict() has classified, with the points that it saw.

    standard_input: as predict() was given it.
    """
    predictions = values["predictions"]
    paths = [one["file"] for one in predictions]
    made, points = of_files(paths, values["points"], "unknown", standard_input, values["turned"])
    for one, predicted in zip(made["shown"], predictions, strict=True):
        one["predicted"] = predicted["top"][0]
    return made | {"up_axis": values["up_axis"]}, points


def of_splits(path: str, splits: Splits) -> Shown:
    """Return the first training cloud of each class of a data file."""
    return _of_clouds(path, splits.train, "train", Choice(), MOST_POINTS)


def _of_clouds(path: str, clouds: Clouds, split: str, choice: Choice, most: int) -> Shown:
    rows, absent = _rows(path, clouds, split, choice)
    _check_number(len(rows))
    points = [_few(clouds.points[row], most) for row in rows]
    shown = [_row(clouds, split, row, few) for row, few in zip(rows, points, strict=True)]
    return _of_data(path, "clouds", clouds, split, absent, shown), points


def _of_record(path: str, choice: Choice, views: tuple[int, int] | None, most: int) -> Shown:
    """Return clouds of a record as they are stored, each followed by its replayed views."""
    with RecordReader(path) as reader:
        meta, plan = reader.meta, reader.plan
        _, splits = find_data(
            None, meta["data_file"], path, reader=reader, points_hash=plan.points_hash
        )
        clouds = splits.train
        reader.check_belongs(clouds)
        first, stop = views or (0, min(OF_VIEWS, reader.views))
        if not 0 <= first < stop <= reader.views:
            raise UsageError(f"views: expected 0 <= A < B <= {reader.views}, got {first}:{stop}")
        if choice == Choice():
            choice = Choice(cloud=0)
        rows, absent = _rows(path, clouds, "train", choice)
        _check_number(len(rows) * (1 + stop - first))
        replayed = {view: reader.view(view) for view in range(first, stop)}
    points, shown = [], []
    for row in rows:
        few = _few(clouds.points[row], most)
        points.append(few)
        shown.append(_row(clouds, "train", row, few) | {"stored": True})
        for view, (scale, shift, logits) in replayed.items():
            params = augment.Params(scale[row : row + 1], shift[row : row + 1])
            points.append(augment.apply(few[None], params)[0])
            log_p, _ = log_softmax_forward(logits[row].astype(np.float64))
            best = int(log_p.argmax())
            shown.append(
                _row(clouds, "train", row, points[-1])
                | {"view": view, "scale": scale[row].tolist(), "shift": shift[row].tolist()}
                | {"teacher": _answer(clouds.class_names[best], np.exp(log_p[best]))}
            )
    return _of_data(path, "record", clouds, "train", absent, shown), points


def _rows(path: str, clouds: Clouds, split: str, choice: Choice) -> tuple[list[int], list[str]]:
    """Return the indices of the chosen clouds, and the names of the classes that have none.

    Without a class, the clouds without a label are one more.
    """
    name, cloud, number = choice
    if cloud is not None:
        if not 0 <= cloud < len(clouds):
            raise UsageError(f"cloud: expected 0 to {len(clouds) - 1} in {path}, got {cloud}")
        return [cloud], []
    names = clouds.class_names
    if name is not None and name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"known: {short(', '.join(names), 200)}"
        raise UsageError(f"class: {path} has no class {name}; {hint}")
    labels = [*range(len(names)), UNLABELLED] if name is None else [names.index(name)]
    if number is None:
        number = 1 if name is None else OF_ONE_CLASS
    found = {label: np.flatnonzero(clouds.labels == label)[:number].tolist() for label in labels}
    absent = [names[label] for label in labels if label != UNLABELLED and not found[label]]
    if name in absent:
        other = "test" if split == "train" else "train"
        raise UsageError(f"class: {path} has no {split} cloud of {name}; try --split {other}")
    return [row for of_label in found.values() for row in of_label], absent


def _check_number(clouds: int) -> None:
    if clouds > MOST_CLOUDS:
        raise UsageError(
            f"{clouds} clouds are too many to look at, at most {MOST_CLOUDS}; ask for fewer"
        )


def _few(points: np.ndarray, most: int) -> np.ndarray:
    return fit_points(points, min(most, len(points)))


def _answer(name: str, probability: float) -> dict[str, Any]:
    return {"class": name, "probability": float(probability)}


def _row(clouds: Clouds, split: str, row: int, points: np.ndarray) -> dict[str, Any]:
    """Return the values of one shown cloud of a split, of which points (P, 3) are shown."""
    label = clouds.labels[row]
    name = None if label == UNLABELLED else clouds.class_names[label]
    return _one(points, clouds.points.shape[1]) | {"split": split, "cloud": row, "class": name}


def _one(points: np.ndarray, of_points: int) -> dict[str, Any]:
    """Return the values of one shown cloud; None where one has no meaning for it."""
    names = ("file", "split", "cloud", "class", "view", "scale", "shift", "teacher", "predicted")
    return {
        **dict.fromkeys(names),
        "stored": False,  # of a record, without a view
        "points": len(points),
        "of_points": of_points,
        "extent": (points.max(axis=0) - points.min(axis=0)).tolist(),
    }


def _of_data(
    path: str, kind: str, clouds: Clouds, split: str, absent: list[str], shown: list[dict]
) -> dict[str, Any]:
    """Return the values of what is shown of a split."""
    more = {"split": split, "clouds": len(clouds), "source": clouds.source, "absent": absent}
    return _values(kind, [path], clouds.up_axis, shown) | more


def _values(kind: str, paths: Sequence[str], up_axis: str, shown: list[dict]) -> dict[str, Any]:
    """Return the values of what is shown: of files, and to be completed for a split."""
    return {
        "kind": kind,
        "files": [str(path) for path in paths],
        "split": None,
        "clouds": len(paths),  # of the split
        "source": "",
        "up_axis": up_axis,
        "absent": [],  # classes without a cloud in the split
        "shown": shown,
        "out": None,
        "bytes": None,  # of the page
    }
