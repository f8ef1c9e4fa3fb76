"""The one table of the fields of a record; shards and records are created and validated by it.

Axes: V views, N clouds, D = 3 coordinates, K classes.  In a record with clouds: P points in each
training cloud, and M test clouds of Q points.  A shard holds some rows of one view: the same fields
without V, and N counts its rows.  The only other member of the file is `meta`, JSON.
writer.py writes records, store.py resumes them; this module does neither.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.errors import DataError
from minipc.storage.hdf5 import check_members, checked_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Field(NamedTuple):
    name: str  # of the dataset
    dtype: str  # stored little-endian
    axes: str  # letters bound to sizes


def record_fields(logits: str) -> tuple[Field, ...]:
    """Return the fields with one row for each view and cloud; logits: name of their dtype."""
    return (
        Field("augment/scale", "float32", "VND"),  # as applied: points * scale, ...
        Field("augment/shift", "float32", "VND"),  # ... then + shift
        Field("logits", logits, "VNK"),  # of the teacher, as stored
    )


def cloud_fields(points: str) -> tuple[Field, ...]:
    """Return the fields of clouds in a record; points: name of their stored dtype."""
    return (
        Field("clouds/train/points", points, "NPD"),
        Field("clouds/train/labels", "int64", "N"),
        Field("clouds/test/points", points, "MQD"),
        Field("clouds/test/labels", "int64", "M"),
    )


def shard_fields(logits: str) -> tuple[Field, ...]:
    """Return the fields of one shard: those of a record without the axis of views."""
    return tuple(field._replace(axes=field.axes[1:]) for field in record_fields(logits))


def shape_of(field: Field, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the shape of a field under sizes, {letter: length}."""
    return tuple(sizes[axis] for axis in field.axes)


def check_axes(
    shapes: dict[str, tuple[int, ...]], fields: Iterable[Field], sizes: dict[str, int], where: str
) -> dict[str, int]:
    """Raise DataError unless shapes, {name: shape}, fit the fields and sizes.

    Returns sizes, with each new letter bound to its first length.
    """
    sizes = dict(sizes)
    for field in fields:
        shape = shapes[field.name]
        if len(shape) != len(field.axes):
            raise DataError(
                f"{where}: {field.name} has {len(shape)} axes, expected {len(field.axes)}, "
                f"({', '.join(field.axes)})"
            )
        for axis, length in zip(field.axes, shape, strict=True):
            if length != sizes.setdefault(axis, length):
                raise DataError(
                    f"{where}: axis {axis} of {field.name} is {length}, but it is {sizes[axis]} "
                    "elsewhere"
                )
    return sizes


def check_arrays(
    arrays: dict[str, np.ndarray], fields: Iterable[Field], sizes: dict[str, int], where: str
) -> dict[str, int]:
    """Raise DataError unless arrays, {name: array}, are finite and match the fields.

    Returns sizes as check_axes does.
    """
    for field in fields:
        dtype = arrays[field.name].dtype
        if dtype != np.dtype(field.dtype):
            raise DataError(f"{where}: {field.name} is {dtype}, expected {field.dtype}")
    sizes = check_axes({name: array.shape for name, array in arrays.items()}, fields, sizes, where)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{where}: {name} holds NaN or infinite values")
    return sizes


def check_kl(value: Any, where: str) -> float:
    """Return value if it is a finite number >= 0, as a KL divergence is.  Raises DataError."""
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where}: max_kl: expected a finite number >= 0, got {value!r}")
    return value


def open_fields(
    file: Any, fields: Iterable[Field], sizes: dict[str, int], path: str
) -> dict[str, Any]:
    """Return {name: h5py dataset} of a file that holds exactly the fields and meta.

    Checks everything except that values are finite.  Raises DataError.
    """
    members = {"/": {"meta"}}  # parent groups come before the groups in them
    for field in fields:
        group = "/"
        for name in field.name.split("/"):
            members.setdefault(group, set()).add(name)
            group = f"{group}{name}/"
    for group, names in members.items():
        check_members(file[group], names, path)
    datasets = {
        field.name: checked_dataset(file, field.name, field.dtype, (None,) * len(field.axes), path)
        for field in fields
    }
    check_axes({name: dataset.shape for name, dataset in datasets.items()}, fields, sizes, path)
    return datasets
