"""Groups of a model for many clouds: made once on all processors, and kept beside their data.

A file groups-HASH.h5 is a cache: the hash is that of the points and of what the groups depend on,
so models of other widths share it, and so do files that hold the same clouds.  Whoever removes it
loses only the time to make it again.  A model without groups has no file.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.backend import ordered_map, worker_threads
from minipc.errors import DataError, MinipcError
from minipc.models.model import groups_of, net
from minipc.nn.groups import check_centres, dtype_of
from minipc.progress import quiet
from minipc.storage import files, hdf5
from minipc.storage.layout import write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Any

    from minipc.data.clouds import Clouds

KIND, VERSION = "groups", 1
META = {"points_hash", "clouds", "arrays"}
DTYPES = ("uint16", "uint32")
TOGETHER = (
    64  # clouds a thread groups at once: of 1,024 points, as many as nn/groups computes at once
)


class Indices(NamedTuple):
    """One array of groups, as prepare() of a model makes it of B clouds: (B, *shape)."""

    name: str  # "level0.centres"
    shape: tuple  # (M,) or (M, k)
    dtype: str  # unsigned
    below: int  # they are indices of so many points
    rule: str  # how they are chosen; with the other fields and the points it fixes every index


class Groups(NamedTuple):
    """Groups of clouds, and what they are groups of."""

    points_hash: str  # of the clouds
    clouds: int  # B
    indices: list  # Indices of each array
    arrays: tuple  # (B, *shape) each, as prepare() of the model returns them


def indices_of(config: Any, number: int) -> list[Indices]:
    """Return the Indices of each array of a model's groups, for clouds of so many points.

    None for a model whose groups are not kept.  Raises DataError for fewer points than centres.
    """
    found, rule = [], "farthest points"
    for i, (centres, scales) in enumerate(net(config).grouping(config)):
        check_centres(centres, number)
        found.append(Indices(f"level{i}.centres", (centres,), "uint32", number, rule))
        for s, (members, radius) in enumerate(scales):
            near = f"nearest in radius {radius!r}" if radius else "nearest"
            shape, dtype = (centres, members), dtype_of(number).name
            found.append(Indices(f"level{i}.scale{s}", shape, dtype, number, near))
        number, rule = centres, "the first"  # of the order of the level below
    return found


def groups_path(near: str | PathLike, points_hash: str, indices: list[Indices]) -> str:
    """Return the path of the file of groups beside the file near."""
    key = files.canonical_json([points_hash, indices])
    name = f"groups-{hashlib.sha256(key).hexdigest()[:16]}.h5"
    return os.path.join(os.path.dirname(near), name)


def make_groups(
    config: Any,
    points: np.ndarray,
    threads: int | None = None,
    progress: Callable[[int, int, str], None] = quiet,
) -> tuple:
    """Return what prepare() of a model returns for stored clouds (B, N, 3), by several threads.

    threads None: all processors.  Raises DataError for fewer points than centres.
    """
    indices, count = indices_of(config, points.shape[1]), len(points)
    if not indices:
        return groups_of(config, points)
    arrays = tuple(np.empty((count, *each.shape), each.dtype) for each in indices)

    def fill(first: int) -> int:
        rows = slice(first, first + TOGETHER)
        for array, part in zip(arrays, net(config).prepare(config, points[rows]), strict=True):
            array[rows] = part
        return min(first + TOGETHER, count)

    firsts = range(0, count, TOGETHER)
    for done in ordered_map(fill, firsts, threads or worker_threads(np)):
        progress(done, count, "groups")
    return arrays


def kept_groups(
    config: Any,
    clouds: Clouds,
    near: str | PathLike,
    *,
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> tuple:
    """Return the groups of a model for Clouds: from the file beside near, or made and kept there.

    Several processes may do so at once: each file is committed whole, and all write the same bytes.
    Where it cannot be kept, say() tells why.  Raises DataError for fewer points than centres, and
    for a file in that place that is damaged or holds something else.
    """
    indices = indices_of(config, clouds.points.shape[1])
    if not indices:
        return groups_of(config, clouds.points)
    path = groups_path(near, clouds.points_hash, indices)
    if os.path.lexists(path):
        return _read_for(config, clouds, indices, path)
    arrays = make_groups(config, clouds.points, threads, progress)
    try:
        write_groups(path, Groups(clouds.points_hash, len(clouds), indices, arrays))
    except MinipcError as reason:
        why = str(reason).partition("; ")[0]
        say(f"{why}; goes on without it, and the next command makes the groups again")
    else:
        say(f"{path}: keeps the groups of {len(clouds)} clouds; remove it whenever you like")
    return arrays


def write_groups(path: str | PathLike, groups: Groups) -> None:
    """Commit Groups to path, atomically and without another copy in memory.

    Raises the errors of files.commit.
    """
    names = [each.name for each in groups.indices]
    meta = {
        "points_hash": groups.points_hash,
        "clouds": groups.clouds,
        "arrays": [each._asdict() for each in groups.indices],
    }
    write_arrays(path, KIND, VERSION, meta, dict(zip(names, groups.arrays, strict=True)))


def read_groups(path: str | PathLike) -> Groups:
    """Return the Groups in path.

    Raises DataError for a file that is missing, damaged, foreign or contradicts itself, and for an
    index of no point.
    """
    with files.guarded(path, KIND, VERSION) as whole, hdf5.hdf5_in(whole, path) as file:
        meta = hdf5.read_meta(file, path)
        files.check_keys(meta, META, path)
        try:
            indices = [_indices(each) for each in meta["arrays"]]
            clouds, names = meta["clouds"], {each.name for each in indices}
            if len(names) != len(indices) or type(clouds) is not int or clouds < 1:
                raise ValueError(meta)
        except (TypeError, ValueError) as reason:
            raise DataError(f"{path}: its metadata contradicts itself; make it again") from reason
        hdf5.check_members(file, {"meta", *names}, path)
        arrays = []
        for each in indices:
            shape = (clouds, *each.shape)
            dataset = hdf5.checked_dataset(file, each.name, each.dtype, shape, path)
            arrays.append(hdf5.Stored.of(dataset, whole).read())
            if arrays[-1].max() >= each.below:
                raise DataError(
                    f"{path}: {each.name}: expected indices below {each.below}, found "
                    f"{arrays[-1].max()}; make it again"
                )
    return Groups(meta["points_hash"], clouds, indices, tuple(arrays))


def _indices(values: Any) -> Indices:
    """Return the Indices of values that were read from a file.  Raises TypeError or ValueError."""
    one = Indices(**values)
    sizes = [*one.shape, one.below]
    if one.dtype not in DTYPES or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(values)
    if not isinstance(one.name, str) or not isinstance(one.rule, str):
        raise TypeError(values)
    return one._replace(shape=tuple(one.shape))


def _read_for(config: Any, clouds: Clouds, indices: list[Indices], path: str) -> tuple:
    """Return the arrays of the file path.  Raises DataError unless they are the model's groups."""
    try:
        *found, arrays = read_groups(path)
        if found != [clouds.points_hash, len(clouds), indices]:
            raise DataError(f"{path}: holds groups of other clouds or of another model")
        try:
            return groups_of(config, clouds.points, arrays)
        except DataError as reason:
            raise DataError(f"{path}: {reason}") from reason
    except DataError as reason:
        what = str(reason).removeprefix(f"{path}: ").partition("; ")[0]
        raise DataError(f"{path}: {what}; remove it, it is made again") from reason
