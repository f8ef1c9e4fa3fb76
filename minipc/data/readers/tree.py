"""Read a folder of class folders, one cloud in each file, in the order of the names.

Layouts: class/file; class/train/file with class/test/file; train/class/file with test/class/file.
A folder val beside train and test is a third split.  A folder unlabelled, beside the classes,
beside train and test, or in train, holds training clouds without a label.  Class names are folder
names, sorted.  We ignore hidden names and materials of meshes; everything else must be a file that
read_points accepts.
"""

import os
from collections.abc import Sequence

from minipc.data.clouds import UNLABELLED, Splits, composed, made_from
from minipc.data.readers.packed import VALIDATION, Cloud, Listing, Request
from minipc.data.readers.point_files import read_points
from minipc.errors import DataError

SPLITS = (*Splits._fields, *VALIDATION)
MATERIALS = ".mtl"  # beside .obj files; they hold no points
NO_CLASS = "unlabelled"  # the folder of clouds without a label
TREE = (
    "expected class/file, class/train/file and class/test/file, or train/class/file and "
    "test/class/file"
)


def scan(folder: str, request: Request) -> Listing:
    """Return the Listing of a folder of class folders.  Raises DataError and UsageError."""
    names, groups = _groups(folder)
    kinds = {split is None for i, split, _ in groups if i != UNLABELLED}
    if len(kinds) != 1:
        what = "some classes have train and test folders, some not" if kinds else "is empty"
        raise DataError(f"{folder}: {what}; {TREE}")
    entries = [
        (os.path.join(place, name), i, split)
        for i, split, place in groups
        if os.path.lexists(place)
        for name in _entries(place)
        if not name.lower().endswith(MATERIALS)
    ]
    for path, _, _ in entries:
        if os.path.isdir(path):
            raise DataError(f"{path}: is a folder where a cloud is expected; {TREE}")
    _check_names(folder, names)
    training = {i for _, i, split in entries if split in (None, "train")}
    for i, name in enumerate(names):
        if not training & {i, UNLABELLED}:
            raise DataError(
                f"{folder}: class {name} has no training cloud; add one or remove the class"
            )
    third = sorted({split for _, _, split in entries if split in VALIDATION})
    joins = request.joins_training(folder, third)
    kept = [(path, i, split) for path, i, split in entries if joins or split not in third]
    return Listing(
        len(kept),
        (
            Cloud(read_points(path), label, split, path, os.path.relpath(path, folder))
            for path, label, split in kept
        ),
        tuple(names),
        kinds == {False},
        made_from(f"folder {os.path.basename(os.path.abspath(folder))}"),
        third,
    )


def _groups(folder: str) -> tuple[list[str], list[tuple[int, str | None, str]]]:
    """Return the class names and a list of (label, split or None, folder of its files)."""
    entries, both = _folders(folder), set(Splits._fields)
    groups: list[tuple[int, str | None, str]] = []
    apart: list[tuple[int, str | None, str]] = []  # without a label
    if NO_CLASS in entries:
        entries.remove(NO_CLASS)
        apart.append((UNLABELLED, "train", os.path.join(folder, NO_CLASS)))
    # a folder train alone may be a class: a railway train
    if set(entries) & both and set(entries) <= set(SPLITS):
        if not both <= set(entries):
            raise DataError(
                f"{folder}: holds {', '.join(entries)}, expected train and test; name both so; "
                f"{TREE}"
            )
        inside = {split: _folders(os.path.join(folder, split)) for split in entries}
        names = sorted({name for names in inside.values() for name in names} - {NO_CLASS})
        for split in entries:
            place = os.path.join(folder, split, NO_CLASS)
            if NO_CLASS in inside[split] and split != "train":
                raise DataError(
                    f"{place}: clouds without a label measure nothing; move them to "
                    f"{os.path.join(folder, NO_CLASS)} to train on them, or remove them"
                )
            if NO_CLASS in inside[split]:
                apart.append((UNLABELLED, split, place))
        groups = [
            (i, split, os.path.join(folder, split, name))
            for i, name in enumerate(names)
            for split in SPLITS
        ]
        return names, groups + apart
    for i, name in enumerate(entries):
        place = os.path.join(folder, name)
        within = _entries(place)
        if not both & set(within):
            groups.append((i, None, place))
            continue
        if not set(within) <= set(SPLITS):
            other = next(entry for entry in within if entry not in SPLITS)
            raise DataError(f"{folder}: class {name} holds train or test and also {other}; {TREE}")
        groups += [(i, split, os.path.join(place, split)) for split in SPLITS]
    return entries, groups + apart


def _check_names(folder: str, names: Sequence[str]) -> None:
    """Raise DataError for names that cannot be printed, mean no class, or are one in two forms."""
    for name in names:
        if not name.isprintable():
            raise DataError(
                f"{folder}: class folder {name!r}: expected a printable name; rename it"
            )
        if name.casefold().replace("ll", "l") == "unlabeled":
            raise DataError(
                f"{folder}: class folder {name}: rename it to {NO_CLASS} if its clouds have no "
                "label, else to something else"
            )
    try:
        composed(names)
    except DataError as reason:
        raise DataError(f"{folder}: {reason}") from reason


def _entries(folder: str) -> list[str]:
    """Return the sorted names in folder that are not hidden.  Raises DataError."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as reason:
        raise DataError(
            f"{folder}: cannot be listed as a folder ({reason.strerror}); {TREE}"
        ) from reason


def _folders(folder: str) -> list[str]:
    """Return the names of the folders in folder.  Raises DataError if it holds anything else."""
    names = _entries(folder)
    others = [name for name in names if not os.path.isdir(os.path.join(folder, name))]
    if others and len(others) == len(names):
        raise DataError(f"{folder}: holds {others[0]} and no folder of a class; {TREE}")
    if others:
        raise DataError(
            f"{os.path.join(folder, others[0])}: lies beside the folders of classes and is none; "
            f"move it away, or into the folder of its class; {TREE}"
        )
    return names
