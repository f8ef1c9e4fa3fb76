"""Read ModelNet40 as resampled texts with normals, class/NAME_0001.txt, by its lists of names.

NAME_train.txt, NAME_test.txt and NAME_shape_names.txt are a data set; modelnet10 lies in the same
folder as modelnet40.  Refined sets (ModelNet-R) are such folders with other lists.
"""

import os
from collections.abc import Iterator, Sequence

from minipc.data.clouds import made_from
from minipc.data.readers.modelnet import lines_of
from minipc.data.readers.packed import Cloud, Listing, Request
from minipc.data.readers.point_files import read_points
from minipc.errors import DataError, short

NAMES, LISTS = "_shape_names.txt", ("train", "test")
SUFFIX = ".txt"


def variants(path: str) -> list[str]:
    """Return the names of the data sets whose lists are in the folder path, sorted."""
    if not os.path.isdir(path):
        return []
    return sorted(name.removesuffix(NAMES) for name in os.listdir(path) if name.endswith(NAMES))


def scan(folder: str, request: Request) -> Listing:
    """Return the Listing of a folder.

    We keep the first num_points points of each cloud, as the programs that it was made for do, so
    that results can be compared.  Raises DataError for a cloud in a list that is not in the
    folder, for one that is in the lists twice, and for one of no class; UsageError.
    """
    request.refuse(folder, "test_fraction")
    request.joins_training(folder, ())
    variant = request.chosen(folder, variants(folder))
    names = tuple(lines_of(folder, f"{variant}{NAMES}"))
    entries: list[tuple[str, int, str]] = []
    seen: dict[str, str] = {}  # {cloud: name of the list}
    for split in LISTS:
        name = f"{variant}_{split}.txt"
        for cloud in lines_of(folder, name):
            if cloud in seen:
                raise DataError(
                    f"{os.path.join(folder, name)}: {short(cloud)} is also in {seen[cloud]}, so "
                    "its cloud would be there twice; leave one line"
                )
            seen[cloud] = name
            label = _label(os.path.join(folder, name), cloud, names)
            path = os.path.join(folder, names[label], f"{cloud}{SUFFIX}")
            if not os.path.exists(path):
                raise DataError(
                    f"{path}: missing, though {name} names it; copy it there, or use the lists "
                    "that belong to this folder"
                )
            entries.append((path, label, split))
    beside = _others(folder, names, seen)
    return Listing(
        len(entries),
        _clouds(folder, entries, request.num_points),
        names,
        True,
        made_from(f"{variant}, texts in {os.path.basename(os.path.abspath(folder))}"),
        up_axis="y",
        keeps_first=True,
        note=f"{beside} files in none of its lists left out" if beside else "",
    )


def _label(where: str, cloud: str, names: Sequence[str]) -> int:
    """Return the label of a cloud like night_stand_0001.  Raises DataError naming the list."""
    of_class, _, number = cloud.rpartition("_")
    if of_class not in names or not number.isdecimal():
        raise DataError(
            f"{where}: expected a class and a number, such as {short(names[0])}_0001, found "
            f"{short(cloud)!r}; correct the line"
        )
    return names.index(of_class)


def _others(folder: str, names: Sequence[str], listed: dict[str, str]) -> int:
    """Return how many clouds in the class folders are in no list."""
    found = (
        entry.removesuffix(SUFFIX)
        for name in names
        if os.path.isdir(os.path.join(folder, name))
        for entry in os.listdir(os.path.join(folder, name))
        if entry.endswith(SUFFIX)
    )
    return sum(cloud not in listed for cloud in found)


def _clouds(
    folder: str, entries: Sequence[tuple[str, int, str]], num_points: int
) -> Iterator[Cloud]:
    for path, label, split in entries:
        points = read_points(path)
        if len(points) < num_points:
            raise DataError(
                f"{path}: holds {len(points)} points, fewer than the {num_points} asked for; pass "
                f"--num-points {len(points)} or less"
            )
        yield Cloud(points, label, split, path, os.path.relpath(path, folder))
