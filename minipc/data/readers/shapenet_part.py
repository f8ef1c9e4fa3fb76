"""Read ShapeNet part, texts with normals and parts, for classification by category.

A folder with synsetoffset2category.txt, OFFSET/ID.txt and the official lists
train_test_split/shuffled_{train,val,test}_file_list.json.  The parts are not read.
"""

import json
import os
from collections.abc import Iterator, Sequence

from minipc.data.clouds import made_from
from minipc.data.readers.modelnet import LIST, lines_of
from minipc.data.readers.packed import Cloud, Listing, Request
from minipc.data.readers.point_files import read_points
from minipc.errors import DataError, short
from minipc.storage import files

CATEGORIES = "synsetoffset2category.txt"
SPLITS = ("train", "val", "test")
THIRD = ("val",)


def has_categories(path: str) -> bool:
    """Return whether path is a folder with the list of categories."""
    return os.path.isfile(os.path.join(path, CATEGORIES))


def scan(folder: str, request: Request) -> Listing:
    """Return the Listing of a folder; its third split is val.

    The clouds differ in their number of points: they are fitted like those of a tree of files.
    Raises DataError for a list that names a cloud twice, of no category or not there; UsageError.
    """
    request.refuse(folder, "test_fraction")
    joins = request.joins_training(folder, THIRD)
    names, labels = _categories(folder)
    entries: list[tuple[str, int, str]] = []
    seen: set[str] = set()
    for split in SPLITS:
        place = os.path.join(folder, "train_test_split", f"shuffled_{split}_file_list.json")
        for cloud in _list(place):
            offset, _, name = cloud.removeprefix("shape_data/").partition("/")
            path = os.path.join(folder, offset, f"{name}.txt")
            if offset not in labels or not name or "/" in name:
                raise DataError(
                    f"{place}: expected shape_data/CATEGORY/ID with a category of {CATEGORIES}, "
                    f"found {short(repr(cloud))}; copy the list again"
                )
            if path in seen:
                raise DataError(
                    f"{place}: names {short(cloud)} again, so its cloud would be there twice; "
                    "leave one line"
                )
            seen.add(path)
            if not os.path.exists(path):
                raise DataError(
                    f"{path}: missing, though {os.path.basename(place)} names it; copy it there"
                )
            if joins or split not in THIRD:
                entries.append((path, labels[offset], split))
    beside = sum(
        entry.endswith(".txt") and os.path.join(folder, offset, entry) not in seen
        for offset in labels
        if os.path.isdir(os.path.join(folder, offset))
        for entry in os.listdir(os.path.join(folder, offset))
    )
    return Listing(
        len(entries),
        _clouds(folder, entries),
        names,
        True,
        made_from(f"ShapeNet part, texts in {os.path.basename(os.path.abspath(folder))}"),
        THIRD,
        up_axis="y",
        note=f"{beside} files in none of its lists left out" if beside else "",
    )


def _categories(folder: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the category names in their order, and {offset: label}.  Raises DataError."""
    rows = [line.split() for line in lines_of(folder, CATEGORIES)]
    labels = {row[1]: i for i, row in enumerate(rows) if len(row) == 2}
    if len(labels) < len(rows) or not all(offset.isdecimal() for offset in labels):
        raise DataError(
            f"{os.path.join(folder, CATEGORIES)}: expected a name and a number of its own in each "
            "line; copy it again"
        )
    return tuple(row[0] for row in rows), labels


def _list(path: str) -> list[str]:
    """Return the names in a JSON list.  Raises DataError."""
    try:
        names = json.loads(files.read_bytes(path, LIST))
    except (ValueError, RecursionError) as reason:
        raise DataError(f"{path}: cannot be read as JSON ({reason}); copy it again") from reason
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of names; copy it again")
    return names


def _clouds(folder: str, entries: Sequence[tuple[str, int, str]]) -> Iterator[Cloud]:
    for path, label, split in entries:
        yield Cloud(read_points(path), label, split, path, os.path.relpath(path, folder))
