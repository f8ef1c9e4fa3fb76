"""Labelled point clouds in memory and in a file of ours.

What is stored with the points (class names in label order, up axis, normalisation) is what users
otherwise get wrong silently; records and models repeat it and every loader compares.  Clouds are
identified by the content of their arrays, never by a file name.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from minipc import files, hdf5
from minipc.errors import DataError, UsageError, check_shape, short
from minipc.streams import stream

KIND, VERSION = "clouds", 1
UP_AXES = ("x", "y", "z", "unknown")


@dataclass(frozen=True, eq=False)
class Clouds:
    """One split of a data set.  Raises DataError for anything a network could not learn from."""

    points: np.ndarray  # (N, P, 3) float32, finite
    labels: np.ndarray  # (N,) int64, index into class_names
    class_names: tuple  # K distinct names
    up_axis: str  # "x", "y", "z" or "unknown"
    normalisation: str  # "unit_sphere" or "none"

    def __post_init__(self):
        check_shape("points", self.points, (None, None, 3))
        check_shape("labels", self.labels, (len(self.points),))
        if self.points.dtype != np.float32 or self.labels.dtype != np.int64:
            raise DataError(
                f"clouds: expected float32 points and int64 labels, got {self.points.dtype} and {self.labels.dtype}"
            )
        if not self.points.size:
            raise DataError(f"clouds: expected at least one cloud of one point, got shape {self.points.shape}")
        finite = np.isfinite(self.points).all(axis=(1, 2))
        if not finite.all():
            raise DataError(
                f"clouds: cloud {int(finite.argmin())} holds NaN or infinite coordinates; remove or repair it"
            )
        names = self.class_names
        if not all(isinstance(name, str) and name for name in names):
            raise DataError(f"clouds: expected class names that are text, got {names}")
        if len(names) < 2 or len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"clouds: expected at least 2 distinct class names, got {len(names)}, repeated: {repeated}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(names):
            raise DataError(
                f"clouds: expected labels from 0 to {len(names) - 1} ({len(names)} class names), got {low} to {high}"
            )
        if self.up_axis not in UP_AXES:
            raise DataError(f"clouds: expected up axis {', '.join(UP_AXES)}, got {self.up_axis!r}")
        if self.normalisation not in ("unit_sphere", "none"):
            raise DataError(f"clouds: expected normalisation unit_sphere or none, got {self.normalisation!r}")

    def __len__(self):
        return len(self.points)

    @cached_property
    def points_hash(self):
        """SHA-256 of the points, as hexadecimal digits."""
        return files.sha256_arrays(self.points)

    @cached_property
    def labels_hash(self):
        """SHA-256 of the labels, as hexadecimal digits."""
        return files.sha256_arrays(self.labels)

    @property
    def described(self):
        """What a model or a record repeats and compares: class names, up axis, normalisation."""
        return {
            "class_names": list(self.class_names),
            "up_axis": self.up_axis,
            "normalisation": self.normalisation,
        }


class Splits(NamedTuple):
    train: Clouds
    test: Clouds


def check_same_kind(found, wanted, found_in, wanted_by):
    """Raise DataError unless two `described` mappings agree; both sides are named in the message."""
    for key, value in wanted.items():
        if found[key] != value:
            raise DataError(
                f"{found_in}: {key.replace('_', ' ')} is {short(found[key])}, but {wanted_by} has {short(value)}; "
                "use the data that it was made from"
            )


def unit_sphere(points):
    """Return points with each centroid at the origin and the farthest point at radius 1, and a mask.

    (N, P, 3) float32 -> the same shape, (N,) bool: which clouds were changed.  A cloud within
    1e-3 of that already is kept bit for bit, so the operation is idempotent.  A cloud of one
    repeated point has no radius; it ends at the origin.
    """
    exact = points.astype(np.float64)
    centre = exact.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(exact - centre, axis=2).max(axis=1)  # (N,)
    changed = (np.abs(radius - 1) > 1e-3) | (np.linalg.norm(centre[:, 0], axis=1) > 1e-3)
    scaled = (exact - centre) / np.where(radius > 0, radius, 1)[:, None, None]
    return np.where(changed[:, None, None], scaled.astype(np.float32), points), changed


def stratified(labels, fraction, seed, purpose):
    """Return a mask (N,) bool that takes round(fraction n) of the n clouds of each class, at random.

    Of a class with two clouds or more at least one is taken (if fraction > 0) and at least one
    left.  labels (N,) integer; the draw is the stream (seed, purpose, class).
    """
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels) if fraction else ():
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        taken[stream(seed, purpose, int(label)).permutation(rows)[:count]] = True
    return taken


def write_clouds(path, splits):
    """Commit both splits to path, atomically.

    Raises UsageError where path exists (records and models may rest on it), DataError where the
    splits do not belong together or path cannot be written.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already; name another file or remove it")
    check_same_kind(splits.test.described, splits.train.described, "the test split", "the training split")

    def fill(file):
        hdf5.write_meta(file, splits.train.described)
        for name, clouds in zip(Splits._fields, splits):
            file.create_dataset(f"{name}/points", data=clouds.points, dtype="<f4")
            file.create_dataset(f"{name}/labels", data=clouds.labels, dtype="<i8")

    hdf5.write_hdf5(path, KIND, VERSION, fill)


def read_clouds(path):
    """Return the Splits of a file of ours.

    Raises DataError for a missing, damaged or foreign file, naming what to do.
    """
    with hdf5.open_hdf5(path, KIND, VERSION) as file:
        hdf5.check_members(file, {"meta", *Splits._fields}, path)
        meta = hdf5.read_meta(file, path)
        splits = []
        for name in Splits._fields:
            hdf5.check_members(file[name], {"points", "labels"}, path)
            points = hdf5.read_array(file, f"{name}/points", np.float32, (None, None, 3), path)
            labels = hdf5.read_array(file, f"{name}/labels", np.int64, (None,), path)
            splits.append(files.from_dict(
                Clouds, {"points": points, "labels": labels, **meta}, f"{path}: {name}"
            ))
    return Splits(*splits)
