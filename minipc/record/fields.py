"""The one table of what a record holds; creation and validation of shards and records follow it.

Axes: V views, N clouds, D = 3 coordinates, K classes; where the clouds are carried along, P points
of each, and M test clouds of Q points.  A shard holds some rows of one view, so it has the same
fields without V, and N counts its rows.  Beside the fields lies only `meta`, JSON.
This module knows neither the protocol of resuming (store.py) nor what a row means to a student.
"""

import errno
import io
import math
import os
from typing import NamedTuple

import h5py
import numpy as np

from minipc.errors import DataError
from minipc.storage.files import CHUNK, replacing, seal, write_at
from minipc.storage.hdf5 import check_members, checked_dataset, hdf5_into, write_meta


class Field(NamedTuple):
    name: str  # of the dataset
    dtype: str  # stored little-endian
    axes: str  # letters bound to sizes


def record_fields(logits):
    """Return the fields that have a row for each view and cloud; logits: name of their dtype."""
    return (
        Field("augment/scale", "float32", "VND"),  # as applied: points * scale, ...
        Field("augment/shift", "float32", "VND"),  # ... then + shift
        Field("logits", logits, "VNK"),  # of the teacher, as stored
    )


def cloud_fields(points):
    """Return the fields of clouds in a record; points: name of the dtype of stored points."""
    return (
        Field("clouds/train/points", points, "NPD"),
        Field("clouds/train/labels", "int64", "N"),
        Field("clouds/test/points", points, "MQD"),
        Field("clouds/test/labels", "int64", "M"),
    )


def shard_fields(logits):
    """Return the fields of one shard: those of a record without the axis of views."""
    return tuple(field._replace(axes=field.axes[1:]) for field in record_fields(logits))


def shape_of(field, sizes):
    """Return the shape of a field under sizes, {letter: length}."""
    return tuple(sizes[axis] for axis in field.axes)


def check_axes(shapes, fields, sizes, where):
    """Raise DataError unless shapes, {name: shape}, fit the fields and sizes.

    Returns sizes with the letters that had none, each as it was first met.
    """
    sizes = dict(sizes)
    for field in fields:
        shape = shapes[field.name]
        if len(shape) != len(field.axes):
            raise DataError(
                f"{where}: {field.name} has {len(shape)} axes, expected {len(field.axes)}, "
                f"({', '.join(field.axes)})"
            )
        for axis, length in zip(field.axes, shape):
            if length != sizes.setdefault(axis, length):
                raise DataError(
                    f"{where}: axis {axis} of {field.name} is {length}, but it is {sizes[axis]} "
                    "elsewhere"
                )
    return sizes


def check_arrays(arrays, fields, sizes, where):
    """Raise DataError unless arrays, {name: array}, are what the fields say, and finite.

    Returns sizes as check_axes does.
    """
    for field in fields:
        found = arrays[field.name].dtype
        if found != np.dtype(field.dtype):
            raise DataError(f"{where}: {field.name} is {found}, expected {field.dtype}")
    sizes = check_axes({name: array.shape for name, array in arrays.items()}, fields, sizes, where)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{where}: {name} holds NaN or infinite values")
    return sizes


def open_fields(file, fields, sizes, path):
    """Return {name: h5py dataset} of a file that holds exactly the fields and meta.

    Every check but finite values.  Raises DataError.
    """
    members = {"/": {"meta"}}  # a group comes after the group that it lies in
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


def write_rows(path, kind, version, meta, fields, sizes, blocks, whole_fields=(), whole={}):
    """Commit a file of ours of any size, row by row: the fields and meta, in the memory of a block.

    blocks yields (view, first, {name: array (R, ...)}) for all rows, in any order; whole holds the
    arrays of whole_fields, which have no rows.  libhdf5 lays the datasets out in memory; the disk
    is reserved at once, so a full one fails before the first row, and rows go to their offsets.
    Raises DataError where rows are missing or arrays are no such fields, and as commit does.
    """
    layout, offsets, ends = _Layout(), {}, []
    sizes = check_arrays(whole, whole_fields, sizes, path)

    def fill(file):
        write_meta(file, meta)
        for field in (*fields, *whole_fields):
            shape = shape_of(field, sizes)
            offsets[field.name] = _allocate(file, field, shape)
            ends.append(offsets[field.name] + math.prod(shape) * np.dtype(field.dtype).itemsize)

    hdf5_into(layout, fill)
    row_bytes = {
        field.name: np.dtype(field.dtype).itemsize * math.prod(shape_of(field, sizes)[2:])
        for field in fields
    }
    rows = sizes["V"] * sizes["N"]
    with replacing(path) as fd:
        _reserve(fd, max(ends + [at + len(piece) for at, piece in layout.pieces]))
        for at, piece in layout.pieces:
            write_at(fd, at, piece)
        for field in whole_fields:
            write_at(fd, offsets[field.name], _stored(whole[field.name], field))
        for view, first, arrays in blocks:
            row = view * sizes["N"] + first
            for field in fields:
                at = offsets[field.name] + row * row_bytes[field.name]
                write_at(fd, at, _stored(arrays[field.name], field))
            rows -= len(arrays["logits"])
        if rows:
            raise DataError(f"{path}: {rows} rows are missing; run the same command again")
        seal(fd, kind, version)


def _stored(array, field):
    return np.asarray(array, np.dtype(field.dtype).newbyteorder("<"), order="C")


def _reserve(fd, size):
    """Give fd its size and its disk blocks now, so that a full disk fails here and not later."""
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as reason:  # missing in the system or in the file system
        if getattr(reason, "errno", errno.ENOSYS) not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EOPNOTSUPP,
            errno.ENOSYS,
        ):
            raise
        for at in range(0, size, CHUNK):
            write_at(fd, at, bytes(min(CHUNK, size - at)))


def _allocate(file, field, shape):
    """Create the dataset of a field, allocated but unwritten, and return its offset in the file."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    group, _, name = field.name.rpartition("/")
    parent = file.require_group(group) if group else file
    dtype = h5py.h5t.py_create(np.dtype(field.dtype).newbyteorder("<"))
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(parent.id, name.encode(), dtype, space, how).get_offset()


class _Layout(io.RawIOBase):
    """A file object that keeps only what is written: a file of any size while it has no rows."""

    def __init__(self):
        self.pieces, self.position = [], 0  # (offset, bytes), later ones over earlier ones

    def seek(self, position, whence=io.SEEK_SET):
        ends = [at + len(piece) for at, piece in self.pieces]
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: max(ends, default=0)}
        self.position = start[whence] + position
        return self.position

    def tell(self):
        return self.position

    def truncate(self, size=None):
        return size

    def write(self, data):
        self.pieces.append((self.position, bytes(data)))
        self.position += len(data)
        return len(data)

    def readinto(self, buffer):
        """Fill buffer with what was written there, zeros elsewhere."""
        read = bytearray(len(buffer))
        for at, piece in self.pieces:
            low, high = max(at, self.position), min(at + len(piece), self.position + len(read))
            if low < high:
                read[low - self.position : high - self.position] = piece[low - at : high - at]
        buffer[:] = read
        self.position += len(read)
        return len(read)
