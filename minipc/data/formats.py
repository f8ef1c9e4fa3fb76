"""Readers for data sets as users have them: a ModelNet folder, a tree of files, one HDF5 file.

Nothing is downloaded and no listing order is trusted: the ModelNet40 HDF5 folder is read in the
order of its own list files, a tree in the order of its names.
"""

import os
import stat

import numpy as np

from minipc import files
from minipc.data.clouds import Clouds, Splits, check_count, made_from
from minipc.data.foreign_hdf5 import blocks, foreign, member, read_single_hdf5
from minipc.data.packed import Packed, check_fraction, packed
from minipc.data.point_files import read_prepared
from minipc.data.prepare import normalised
from minipc.errors import DataError, UsageError

LIST = 2**20  # most bytes of a list of names
LAYOUT = "expected ply_data_{train,test}N.h5, train_files.txt, test_files.txt and shape_names.txt"
TREE = "expected class/file, class/train/file and class/test/file, or train/class/file and test/class/file"


def read_source(path, num_points, *, up_axis=None, normalisation="unit_sphere", test_fraction=None,
                progress=lambda *_: None):
    """Return the Packed of whatever path is: a ModelNet HDF5 folder, a tree of files, one HDF5 file.

    up_axis None: y for ModelNet, else unknown.  progress(done, total, text) is told how far it is.
    Raises DataError for what is none of these, UsageError for options that cannot be meant.
    """
    if test_fraction is not None:
        check_fraction(test_fraction)
    if os.path.isdir(path):
        lists = [f"{split}_files.txt" for split in Splits._fields] + ["shape_names.txt"]
        if any(os.path.exists(os.path.join(path, name)) for name in lists):
            if test_fraction is not None:
                raise UsageError(f"{path}: has a split of its own, so a test fraction has no use; leave it out")
            splits, moved = read_modelnet(path, num_points, up_axis or "y", normalisation)
            return Packed(splits, moved, 0, 0, "as the source has it")
    read = read_tree if os.path.isdir(path) else read_single_hdf5
    return read(path, num_points, up_axis=up_axis or "unknown", normalisation=normalisation,
                test_fraction=test_fraction, progress=progress)


def read_tree(folder, num_points, *, up_axis="unknown", normalisation="unit_sphere", test_fraction=None,
              progress=lambda *_: None):
    """Return the Packed of a folder of class folders; class names are folder names, sorted.

    Layouts: class/file, of which packed draws the split; class/train/file with class/test/file;
    train/class/file with test/class/file.  Hidden names are ignored, everything else must be a
    file that read_points knows.  Raises DataError naming the file.
    """
    check_count(num_points)
    names, found = _tree(folder)
    points, moved = np.empty((len(found), num_points, 3), np.float32), np.empty(len(found), bool)
    counts = np.empty(len(found), np.int64)
    for i, (file, _, _) in enumerate(found):
        points[i], moved[i], counts[i] = read_prepared(file, normalisation, num_points)
        progress(i + 1, len(found), f"reading {folder}")
    labels = np.array([label for _, label, _ in found], np.int64)
    test = None if found[0][2] is None else np.array([split == "test" for _, _, split in found])
    return packed(
        folder, points, labels, test, counts, moved, test_fraction, class_names=names, up_axis=up_axis,
        normalisation=normalisation, source=made_from(f"folder {os.path.basename(os.path.abspath(folder))}"),
    )


def _tree(folder):
    """Return the class names and (path, label, split) of every file, by class; split None: none."""
    entries, both = _entries(folder), list(Splits._fields)
    if sorted(entries) == sorted(both):  # train/class/file
        names = sorted({name for split in both for name in _entries(os.path.join(folder, split))})
        groups = [(i, split, os.path.join(folder, split, name)) for i, name in enumerate(names) for split in both]
    else:
        names, groups = entries, []
        for i, name in enumerate(names):
            inside = _entries(os.path.join(folder, name))
            nested = bool(set(inside) & set(both))
            groups += [(i, split, os.path.join(folder, name, split)) for split in both] if nested else [
                (i, None, os.path.join(folder, name))]
            if nested and not set(inside) <= set(both):
                other = next(x for x in inside if x not in both)
                raise DataError(f"{folder}: class {name} holds train or test and also {other}; {TREE}")
    kinds = {split is None for _, split, _ in groups}
    if len(kinds) != 1:
        raise DataError(f"{folder}: {'some classes have train and test folders, some not' if kinds else 'is empty'}; "
                        f"{TREE}")
    found = [(os.path.join(place, name), i, split) for i, split, place in groups if os.path.lexists(place)
             for name in _entries(place)]
    for path, _, _ in found:
        if os.path.isdir(path):
            raise DataError(f"{path}: is a folder where a cloud is expected; {TREE}")
    for name in names:
        if not name.isprintable():
            raise DataError(f"{folder}: class folder {name!r}: expected a printable name; rename it")
    training = {i for _, i, split in found if split != "test"}
    for i, name in enumerate(names):
        if i not in training:
            raise DataError(f"{folder}: class {name} has no training cloud; add one or remove the class")
    return tuple(names), found


def _entries(folder):
    """Return the names in folder, sorted, without hidden ones.  Raises DataError if it is none."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as reason:
        raise DataError(f"{folder}: cannot be listed as a folder ({reason.strerror}); {TREE}") from reason


def read_modelnet(folder, num_points, up_axis="y", normalisation="unit_sphere"):
    """Return Splits and the number of clouds that had to be normalised.

    folder is ModelNet40 in the HDF5 layout of PointNet: data (N, P, 3) float32, label (N, 1)
    uint8.  Each cloud is brought to the unit sphere as it is stored, then its first num_points
    points are kept (the stored order is random, and a draw made here would be an augmentation
    that no record tells).  List files carry a foreign path
    prefix: only base names count.  Raises DataError naming the file, what was expected and found.
    """
    check_count(num_points)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: not a folder; {LAYOUT}")
    names = tuple(_lines(folder, "shape_names.txt"))
    source = made_from(f"ModelNet HDF5 folder {os.path.basename(os.path.abspath(folder))}")
    splits, changed = [], 0
    for split in Splits._fields:
        listed = _lines(folder, f"{split}_files.txt")
        parts = [
            _read_part(os.path.join(folder, os.path.basename(line)), num_points, normalisation) for line in listed
        ]
        points, labels, moved = (np.concatenate(arrays) for arrays in zip(*parts))
        try:
            splits.append(Clouds(points, labels, names, up_axis, normalisation, source))
        except DataError as reason:
            raise DataError(f"{folder}: {split} split: {reason}; copy the data set again") from reason
        changed += int(moved.sum())
    return Splits(*splits), changed


def _lines(folder, name):
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
        raise DataError(f"{path}: missing; {LAYOUT}")
    try:
        lines = [line.strip() for line in files.read_bytes(path, LIST).decode().splitlines() if line.strip()]
    except UnicodeDecodeError as reason:
        raise DataError(f"{path}: cannot be read as text: {reason}; {LAYOUT}") from reason
    if not lines:
        raise DataError(f"{path}: empty; expected one name a line")
    return lines


def _read_part(path, num_points, normalisation):
    """Return points (N, num_points, 3) float32, labels (N,) int64 and which clouds were normalised."""
    if not os.path.exists(path):
        raise DataError(f"{path}: missing, though the list file names it; copy it beside the list file")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: expected a regular HDF5 file")
    with foreign(path) as file:
        data = member(file, "data", path)
        label = member(file, "label", path)
        if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f":
            raise DataError(f"{path}: data: expected (N, P, 3) float, got {data.shape} {data.dtype}")
        if label.shape not in ((len(data),), (len(data), 1)) or label.dtype.kind not in "iu":
            raise DataError(f"{path}: label: expected ({len(data)}, 1) integer, got {label.shape} {label.dtype}")
        if data.shape[1] < num_points:
            raise DataError(
                f"{path}: holds {data.shape[1]} points a cloud, fewer than the {num_points} asked for; "
                f"pass --num-points {data.shape[1]} or less"
            )
        points, moved = np.empty((len(data), num_points, 3), np.float32), np.zeros(len(data), bool)
        for first, some in blocks(data):
            some, rows = some.astype(np.float32), slice(first, first + len(some))
            try:
                some, moved[rows] = normalised(some, normalisation)
            except DataError as reason:
                raise DataError(f"{path}: data, clouds from {first} on: {reason}") from reason
            points[rows] = some[:, :num_points]
        return points, label[()].reshape(-1).astype(np.int64), moved
