"""Read ScanObjectNN: HDF5 files training_VARIANT.h5 and test_VARIANT.h5, its official split.

Each holds data (N, P, 3) float, label (N,), and in most mask (N, P), -1 where a point is of the
background.  Variants with `augmented` in their name hold each object several times, moved, turned
or scaled, and do not say which: no split may be drawn from them.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minipc.data.clouds import SEVERAL, made_from, whole_labels
from minipc.data.readers.foreign_hdf5 import blocks, foreign, member
from minipc.data.readers.packed import Cloud, Listing, Request
from minipc.errors import DataError, UsageError

CLASSES = tuple(
    "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet".split()
)
FOLDERS = ("main_split", "main_split_nobg")
FILE = re.compile(r"(training|test)_(objectdataset\w*)\.h5")
SPLITS = {"training": "train", "test": "test"}
BACKGROUND = -1  # in a mask


class Part(NamedTuple):
    path: str
    split: str
    labels: np.ndarray  # (N,) int64


def folder_of(path: str) -> str | None:
    """Return path, or the folders of splits in it, if these hold such files; else None."""
    if any(map(FILE.fullmatch, _names(path))):
        return path
    inside = [os.path.join(path, name) for name in FOLDERS]
    return next((each for each in inside if any(map(FILE.fullmatch, _names(each)))), None)


def scan(path: str, request: Request) -> Listing:
    """Return the Listing of a folder, or of its folder main_split or main_split_nobg.

    request.background: drop leaves the points of the background out, before the cloud is brought to
    the unit sphere; keep, the default, does not.  Raises DataError naming the file, what was
    expected and found, and UsageError where the user must choose.
    """
    request.refuse(path, "test_fraction")
    request.joins_training(path, ())
    folder = _folder(path)
    variant = request.chosen(folder, _variants(folder))
    drop = request.background == "drop"
    parts = [
        _part(os.path.join(folder, f"{name}_{variant}.h5"), split, drop)
        for name, split in SPLITS.items()
    ]
    several = f", {SEVERAL}" if "augmented" in variant else ""
    dropped = ", without background" if drop else ""
    return Listing(
        sum(len(part.labels) for part in parts),
        _clouds(parts, drop),
        CLASSES,
        True,
        made_from(f"ScanObjectNN {os.path.basename(folder)} {variant}{dropped}{several}"),
        up_axis="y",
    )


def _names(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _folder(path: str) -> str:
    """Return the one folder of path that holds the files.  Raises UsageError for two."""
    if any(map(FILE.fullmatch, _names(path))):
        return os.path.abspath(path)
    found = [name for name in FOLDERS if any(map(FILE.fullmatch, _names(os.path.join(path, name))))]
    if len(found) > 1:
        raise UsageError(
            f"{path}: holds {' and '.join(found)} (with and without background); name one: "
            f"{os.path.join(path, found[0])}"
        )
    return os.path.join(os.path.abspath(path), found[0])


def _variants(folder: str) -> list[str]:
    return sorted({match[2] for name in _names(folder) if (match := FILE.fullmatch(name))})


def _part(path: str, split: str, drop: bool) -> Part:
    """Return the Part of one file, after checking the form of all that is read of it."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: missing, expected beside the other split; copy it there")
    with foreign(path) as file:
        data, label = member(file, "data", path), member(file, "label", path)
        if data.ndim != 3 or data.shape[2] != 3 or not data.size or data.dtype.kind != "f":
            raise DataError(
                f"{path}: data: expected (N, P, 3) float, got {data.shape} {data.dtype}"
            )
        if label.shape not in ((len(data),), (len(data), 1)):
            raise DataError(f"{path}: label: expected ({len(data)},), got {label.shape}")
        if drop and "mask" not in file:
            raise DataError(
                f"{path}: has no mask, so no background can be dropped; leave --background out, or "
                "use main_split_nobg"
            )
        if drop:
            mask = member(file, "mask", path)
            if mask.shape != data.shape[:2] or mask.dtype.kind not in "if":
                raise DataError(
                    f"{path}: mask: expected {data.shape[:2]} numbers, -1 for background, got "
                    f"{mask.shape} {mask.dtype}"
                )
        labels = whole_labels(label[()], f"{path}: label")
    if labels.max() >= len(CLASSES):
        raise DataError(
            f"{path}: label: expected 0 to {len(CLASSES) - 1}, found {labels.max()}; is it "
            "ScanObjectNN?"
        )
    return Part(path, split, labels)


def _clouds(parts: Sequence[Part], drop: bool) -> Iterator[Cloud]:
    for path, split, labels in parts:
        with foreign(path) as file:
            mask = member(file, "mask", path) if drop else None
            for first, block in blocks(member(file, "data", path)):
                kept = None if mask is None else mask[first : first + len(block)] != BACKGROUND
                for i, points in enumerate(block):
                    where = f"{path}: data: cloud {first + i}"
                    if kept is not None:
                        points = points[kept[i]]
                        if not len(points):
                            raise DataError(
                                f"{where}: is all background; pack with --background keep"
                            )
                    yield Cloud(points, labels[first + i], split, where)
