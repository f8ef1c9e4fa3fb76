"""Readers for data sets as users have them; every one returns Splits.

Nothing is downloaded and no listing order is trusted: the ModelNet40 HDF5 folder is read in the
order of its own list files.
"""

import os
import stat

import h5py
import numpy as np

from minipc.data.clouds import Clouds, Splits, unit_sphere
from minipc.errors import DataError, UsageError

LARGEST = 16 * 2**30  # bytes a member may declare; a tiny file can declare 160 TiB
LAYOUT = "expected ply_data_{train,test}N.h5, train_files.txt, test_files.txt and shape_names.txt"


def read_modelnet(folder, num_points):
    """Return Splits and the number of clouds that had to be normalised.

    folder is ModelNet40 in the HDF5 layout of PointNet: data (N, P, 3) float32, label (N, 1)
    uint8.  Each cloud is brought to the unit sphere as it is stored, then its first num_points
    points are kept (the stored order is random, and a draw made here would be an augmentation
    that no record tells).  List files carry a foreign path
    prefix: only base names count.  Raises DataError naming the file, what was expected and found.
    """
    if num_points < 1:
        raise UsageError(f"num points: expected at least 1, got {num_points}")
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: not a folder; {LAYOUT}")
    names = tuple(_lines(folder, "shape_names.txt"))
    splits, changed = [], 0
    for split in Splits._fields:
        listed = _lines(folder, f"{split}_files.txt")
        parts = [_read_part(os.path.join(folder, os.path.basename(line)), num_points) for line in listed]
        points, labels, moved = (np.concatenate(arrays) for arrays in zip(*parts))
        try:
            splits.append(Clouds(points, labels, names, up_axis="y", normalisation="unit_sphere"))
        except DataError as reason:
            raise DataError(f"{folder}: {split} split: {reason}; copy the data set again") from reason
        changed += int(moved.sum())
    return Splits(*splits), changed


def _lines(folder, name):
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {LAYOUT}") from None
    except (OSError, UnicodeDecodeError) as reason:
        raise DataError(f"{path}: cannot be read as text: {reason}; {LAYOUT}") from reason
    if not lines:
        raise DataError(f"{path}: empty; expected one name a line")
    return lines


def _read_part(path, num_points):
    """Return points (N, num_points, 3) float32, labels (N,) int64 and which clouds were normalised."""
    if not os.path.exists(path):
        raise DataError(f"{path}: missing, though the list file names it; copy it beside the list file")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: expected a regular HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            data = _member(file, "data", path)
            label = _member(file, "label", path)
            if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f":
                raise DataError(f"{path}: data: expected (N, P, 3) float, got {data.shape} {data.dtype}")
            if label.shape not in ((len(data),), (len(data), 1)) or label.dtype.kind not in "iu":
                raise DataError(
                    f"{path}: label: expected ({len(data)}, 1) integer, got {label.shape} {label.dtype}"
                )
            if data.shape[1] < num_points:
                raise DataError(
                    f"{path}: holds {data.shape[1]} points a cloud, fewer than the {num_points} asked for; "
                    f"pass --num-points {data.shape[1]} or less"
                )
            points, moved = unit_sphere(data[()].astype(np.float32))
            return points[:, :num_points], label[()].reshape(-1).astype(np.int64), moved
    except (OSError, KeyError, RuntimeError, ValueError) as reason:
        raise DataError(f"{path}: not a readable HDF5 file ({reason}); copy it again") from reason


def _member(file, name, path):
    """Return a dataset that lies in this file itself; links and storage elsewhere are refused."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise DataError(f"{path}: expected a data set {name!r}; found {sorted(file)[:8]}")
    found = file[name]
    stored = found.id.get_storage_size()
    if found.external or found.is_virtual or found.nbytes > min(LARGEST, 1100 * stored):  # gzip's best: 1032
        raise DataError(
            f"{path}: {name} declares {found.nbytes} bytes and has {stored} in this file; copy it again"
        )
    return found
