"""Read ModelNet40 in the HDF5 layout of PointNet: data (N, P, 3) float, label (N, 1) uint8.

We download nothing.  We read parts in the order of the folder's list files, because the order of a
directory listing is undefined.  List files hold paths of another machine: only base names count.
"""

import ntpath
import os
import stat
from collections.abc import Iterator, Sequence

import numpy as np

from minipc.data.clouds import made_from, whole_labels
from minipc.data.readers.foreign_hdf5 import blocks, foreign, member
from minipc.data.readers.packed import VALIDATION, Cloud, Listing, Request
from minipc.errors import DataError
from minipc.storage import files

LIST = 2**20  # most bytes of a list of names
LISTS = ("train_files.txt", "test_files.txt", "shape_names.txt")
LAYOUT = "expected ply_data_{train,test}N.h5, train_files.txt, test_files.txt and shape_names.txt"


def has_lists(path: str) -> bool:
    """Return whether path is a folder with at least one of the list files."""
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, name)) for name in LISTS)


def scan(folder: str, request: Request) -> Listing:
    """Return the Listing of a folder.

    We keep the first num_points points of each cloud: the stored order is random, and a random
    draw here would be an augmentation that no record stores.  A list val_files.txt is a third
    split.  Raises DataError naming the file, what was expected and found, and UsageError.
    """
    request.refuse(folder, "test_fraction")
    names = tuple(lines_of(folder, "shape_names.txt"))
    third = [
        word for word in VALIDATION if os.path.lexists(os.path.join(folder, f"{word}_files.txt"))
    ]
    joins = request.joins_training(folder, third)
    parts = [
        (os.path.join(folder, part), split)
        for part, split in _listed(folder, ["train", *(third if joins else []), "test"])
    ]
    labels = [_labels(path, request.num_points) for path, _ in parts]
    listed = {name for name, _ in _listed(folder, ["train", *third, "test"])}
    beside = [
        name
        for name in os.listdir(folder)
        if name.startswith("ply_data") and name.endswith(".h5") and name not in listed
    ]
    return Listing(
        sum(map(len, labels)),
        _clouds(parts, labels),
        names,
        True,
        made_from(f"ModelNet HDF5 folder {os.path.basename(os.path.abspath(folder))}"),
        third,
        up_axis="y",
        keeps_first=True,
        note=f"{len(beside)} files in none of its lists left out" if beside else "",
    )


def _clouds(parts: list[tuple[str, str]], labels: list[np.ndarray]) -> Iterator[Cloud]:
    for (path, split), of_part in zip(parts, labels, strict=True):
        with foreign(path) as file:
            for first, block in blocks(member(file, "data", path)):
                for i, points in enumerate(block, first):
                    yield Cloud(points, of_part[i], split, f"{path}: data: cloud {i}")


def _listed(folder: str, splits: Sequence[str]) -> list[tuple[str, str]]:
    """Return (base name, split) of each name in the list files of splits.

    Raises DataError for a name that occurs twice within training or test: it would double clouds.
    """
    parts: list[tuple[str, str]] = []
    for split in splits:
        name = f"{split}_files.txt"
        for line in lines_of(folder, name):
            part = ntpath.basename(line)
            if any(part == other and (split == "test") == (of == "test") for other, of in parts):
                raise DataError(
                    f"{os.path.join(folder, name)}: names {part} again (folders before a name do "
                    "not count), so its clouds would be there twice; leave one line"
                )
            parts.append((part, split))
    return parts


def lines_of(folder: str, name: str) -> list[str]:
    """Return the lines of a list of names, without empty ones.  Raises DataError."""
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
        raise DataError(f"{path}: missing; {LAYOUT}")
    try:
        lines = [
            line.strip()
            for line in files.read_bytes(path, LIST).decode("utf-8-sig").splitlines()
            if line.strip()
        ]
    except UnicodeDecodeError as reason:
        raise DataError(f"{path}: cannot be read as text: {reason}; save it as UTF-8") from reason
    if not lines:
        raise DataError(f"{path}: empty; expected one name a line")
    return lines


def _labels(path: str, num_points: int) -> np.ndarray:
    """Return the labels (N,) int64 of a part, after checking the form of its points."""
    if not os.path.exists(path):
        raise DataError(
            f"{path}: missing, though the list file names it; copy it beside the list file"
        )
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: expected a regular HDF5 file")
    with foreign(path) as file:
        data = member(file, "data", path)
        label = member(file, "label", path)
        if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f":
            raise DataError(
                f"{path}: data: expected (N, P, 3) float, got {data.shape} {data.dtype}"
            )
        if label.shape not in ((len(data),), (len(data), 1)) or label.dtype.kind not in "iu":
            raise DataError(
                f"{path}: label: expected ({len(data)}, 1) integer, got {label.shape} {label.dtype}"
            )
        if data.shape[1] < num_points:
            raise DataError(
                f"{path}: holds {data.shape[1]} points a cloud, fewer than the {num_points} asked "
                f"for; pass --num-points {data.shape[1]} or less"
            )
        return whole_labels(label[()], f"{path}: label")
