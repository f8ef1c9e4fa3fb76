"""Readers for data sets as users have them: a ModelNet folder, a tree of files, one HDF5 file.

Nothing is downloaded and no listing order is trusted: the ModelNet40 HDF5 folder is read in the
order of its own list files, a tree in the order of its names.
"""

import ntpath
import os
import stat

import numpy as np

from minipc.data.clouds import Splits, check_count, composed, made_from, whole_labels
from minipc.data.prepare import float_points, normalised
from minipc.data.readers.foreign_hdf5 import bad_cloud, blocks, foreign, member, read_single_hdf5
from minipc.data.readers.packed import VALIDATION, check_fraction, joins_training, packed
from minipc.data.readers.point_files import read_prepared
from minipc.errors import DataError, UsageError
from minipc.storage import files

LIST = 2**20  # most bytes of a list of names
LAYOUT = "expected ply_data_{train,test}N.h5, train_files.txt, test_files.txt and shape_names.txt"
TREE = (
    "expected class/file, class/train/file and class/test/file, or train/class/file and "
    "test/class/file"
)


def read_source(
    path,
    num_points,
    *,
    up_axis=None,
    normalisation="unit_sphere",
    test_fraction=None,
    val_split=None,
    progress=lambda *_: None,
):
    """Return the Packed of whatever path is: a ModelNet HDF5 folder, a tree of files, one HDF5
    file.

    up_axis None: y for ModelNet, else unknown.  val_split as in joins_training.  progress(done,
    total, text) is told how far it is.  Raises DataError for what is none of these, UsageError for
    options that cannot be meant.
    """
    if test_fraction is not None:
        check_fraction(test_fraction)
    read, usual = read_single_hdf5, "unknown"
    if os.path.isdir(path):
        lists = [f"{split}_files.txt" for split in Splits._fields] + ["shape_names.txt"]
        modelnet = any(os.path.exists(os.path.join(path, name)) for name in lists)
        read, usual = (read_modelnet, "y") if modelnet else (read_tree, "unknown")
    return read(
        path,
        num_points,
        up_axis=up_axis or usual,
        normalisation=normalisation,
        test_fraction=test_fraction,
        val_split=val_split,
        progress=progress,
    )


def read_tree(
    folder,
    num_points,
    *,
    up_axis="unknown",
    normalisation="unit_sphere",
    test_fraction=None,
    val_split=None,
    progress=lambda *_: None,
):
    """Return the Packed of a folder of class folders; class names are folder names, sorted.

    Layouts: class/file, of which packed draws the split; class/train/file with class/test/file;
    train/class/file with test/class/file.  A third folder, val, is a third split: val_split as in
    joins_training.  Hidden names are ignored, everything else must be a file that read_points
    knows.  Raises DataError naming the file, UsageError.
    """
    check_count(num_points)
    names, found = _tree(folder)
    third = sorted({split for _, _, split in found} & set(VALIDATION))
    joins, told = joins_training(folder, third, val_split)
    found = [(file, label, split) for file, label, split in found if joins or split not in third]
    points, moved = np.empty((len(found), num_points, 3), np.float32), np.empty(len(found), bool)
    counts = np.empty(len(found), np.int64)
    for i, (file, _, _) in enumerate(found):
        points[i], moved[i], counts[i] = read_prepared(file, normalisation, num_points)
        progress(i + 1, len(found), f"reading {folder}")
    labels = np.array([label for _, label, _ in found], np.int64)
    test = None if found[0][2] is None else np.array([split == "test" for _, _, split in found])
    return packed(
        folder,
        points,
        labels,
        test,
        counts,
        moved,
        test_fraction,
        told,
        class_names=names,
        up_axis=up_axis,
        normalisation=normalisation,
        source=made_from(f"folder {os.path.basename(os.path.abspath(folder))}"),
    )


def _tree(folder):
    """Return the class names and (path, label, split) of every file, by class; split None: none."""
    entries, both = _folders(folder), set(Splits._fields)
    splits = [*Splits._fields, *VALIDATION]
    if set(entries) & both and set(entries) <= set(
        splits
    ):  # train/class/file; train alone can be a class, of engines
        if not both <= set(entries):
            raise DataError(
                f"{folder}: holds {', '.join(entries)}, expected train and test; name both so; "
                f"{TREE}"
            )
        names = sorted(
            {name for split in entries for name in _folders(os.path.join(folder, split))}
        )
        groups = [
            (i, split, os.path.join(folder, split, name))
            for i, name in enumerate(names)
            for split in splits
        ]
    else:
        names, groups = entries, []
        for i, name in enumerate(names):
            inside = _entries(os.path.join(folder, name))
            nested = bool(set(inside) & both)
            groups += (
                [(i, split, os.path.join(folder, name, split)) for split in splits]
                if nested
                else [(i, None, os.path.join(folder, name))]
            )
            if nested and not set(inside) <= set(splits):
                other = next(x for x in inside if x not in splits)
                raise DataError(
                    f"{folder}: class {name} holds train or test and also {other}; {TREE}"
                )
    kinds = {split is None for _, split, _ in groups}
    if len(kinds) != 1:
        raise DataError(
            f"{folder}: {'some classes have train and test folders, some not' if kinds else 'is empty'}; "
            f"{TREE}"
        )
    found = [
        (os.path.join(place, name), i, split)
        for i, split, place in groups
        if os.path.lexists(place)
        for name in _entries(place)
    ]
    for path, _, _ in found:
        if os.path.isdir(path):
            raise DataError(f"{path}: is a folder where a cloud is expected; {TREE}")
    for name in names:
        if not name.isprintable():
            raise DataError(
                f"{folder}: class folder {name!r}: expected a printable name; rename it"
            )
    try:
        composed(names)
    except DataError as reason:
        raise DataError(f"{folder}: {reason}") from reason
    training = {i for _, i, split in found if split in (None, "train")}
    for i, name in enumerate(names):
        if i not in training:
            raise DataError(
                f"{folder}: class {name} has no training cloud; add one or remove the class"
            )
    return tuple(names), found


def _entries(folder):
    """Return the names in folder, sorted, without hidden ones.  Raises DataError if it is none."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as reason:
        raise DataError(
            f"{folder}: cannot be listed as a folder ({reason.strerror}); {TREE}"
        ) from reason


def _folders(folder):
    """Return the names in folder, which are folders.  Raises DataError naming one that is none."""
    names = _entries(folder)
    others = [name for name in names if not os.path.isdir(os.path.join(folder, name))]
    if others and len(others) == len(names):
        raise DataError(f"{folder}: holds {others[0]} and no folder of a class; {TREE}")
    if others:
        raise DataError(
            f"{os.path.join(folder, others[0])}: lies beside the folders of classes and is none; "
            "move it away, or into "
            f"the folder of its class; {TREE}"
        )
    return names


def read_modelnet(
    folder,
    num_points,
    *,
    up_axis="y",
    normalisation="unit_sphere",
    test_fraction=None,
    val_split=None,
    progress=lambda *_: None,
):
    """Return the Packed of ModelNet40 in the HDF5 layout of PointNet: data (N, P, 3) float, label
    (N, 1) uint8.

    Each cloud is brought to the unit sphere as it is stored, then its first num_points points are
    kept (the stored order is random, and a draw made here would be an augmentation that no record
    tells).  List files carry a foreign path prefix: only base names count.  A list val_files.txt is
    a third split: val_split as in joins_training; test_fraction has no use.  Raises DataError
    naming the file, what was expected and found, UsageError.
    """
    check_count(num_points)
    if test_fraction is not None:
        raise UsageError(
            f"{folder}: has a split of its own, so a test fraction has no use; leave it out"
        )
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: not a folder; {LAYOUT}")
    names = tuple(_lines(folder, "shape_names.txt"))
    third = [
        word for word in VALIDATION if os.path.lexists(os.path.join(folder, f"{word}_files.txt"))
    ]
    joins, told = joins_training(folder, third, val_split)
    training = _listed(folder, ["train", *(third if joins else [])])
    listed, parts = training + _listed(folder, ["test"]), []
    for part in listed:
        parts.append(_read_part(os.path.join(folder, part), num_points, normalisation))
        progress(len(parts), len(listed), f"reading {folder}")
    points, labels, moved = (np.concatenate(arrays) for arrays in zip(*parts))
    test = np.arange(len(points)) >= sum(len(labels) for _, labels, _ in parts[: len(training)])
    del parts  # as large as points
    return packed(
        folder,
        points,
        labels,
        test,
        np.full(len(points), num_points),
        moved,
        None,
        told,
        class_names=names,
        up_axis=up_axis,
        normalisation=normalisation,
        source=made_from(f"ModelNet HDF5 folder {os.path.basename(os.path.abspath(folder))}"),
    )


def _listed(folder, splits):
    """Return the base names in the list files of splits, written on whatever system.

    Raises DataError for one that occurs twice: its clouds would be there twice.
    """
    parts = []
    for name in (f"{split}_files.txt" for split in splits):
        for line in _lines(folder, name):
            part = ntpath.basename(line)
            if part in parts:
                raise DataError(
                    f"{os.path.join(folder, name)}: names {part} again (folders before a name do "
                    "not count), so its "
                    "clouds would be there twice; leave one line"
                )
            parts.append(part)
    return parts


def _lines(folder, name):
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


def _read_part(path, num_points, normalisation):
    """Return points (N, num_points, 3) float32, labels (N,) int64 and which clouds were
    normalised.
    """
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
                "for; "
                f"pass --num-points {data.shape[1]} or less"
            )
        points, moved = np.empty((len(data), num_points, 3), np.float32), np.zeros(len(data), bool)
        for first, some in blocks(data):
            rows = slice(first, first + len(some))
            try:
                whole, moved[rows] = normalised(float_points(some), normalisation)
            except DataError as reason:
                raise bad_cloud(some, first, normalisation, num_points, f"{path}: data") from reason
            points[rows] = whole[:, :num_points]
        return points, whole_labels(label[()], f"{path}: label"), moved
