"""Write an HDF5 file of any size row by row, with only one block of rows in memory.

libhdf5 lays out the datasets in memory and never touches the disk (a full disk crashes it).  We
then write the rows to their offsets in a file whose disk blocks are already reserved.
"""

from __future__ import annotations

import errno
import io
import math
import os
from typing import TYPE_CHECKING

import h5py
import numpy as np

from minipc.errors import DataError
from minipc.record.fields import check_arrays, shape_of
from minipc.storage.files import CHUNK, replacing, seal, write_at
from minipc.storage.hdf5 import hdf5_into, write_meta

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from minipc.record.fields import Field


def write_rows(
    path: str,
    kind: str,
    version: int,
    meta: dict[str, Any],
    fields: Iterable[Field],
    sizes: dict[str, int],
    blocks: Iterable[tuple[int, int, dict[str, np.ndarray]]],
    whole_fields: Iterable[Field] = (),
    whole: dict[str, np.ndarray] | None = None,
) -> None:
    """Commit a file with the fields and meta, row by row.

    blocks yields (view, first, {name: array (R, ...)}) for all rows, in any order; whole holds the
    arrays of whole_fields, {name: array}, which have no rows.  Disk space is reserved first, so a
    full disk fails before the first row.  Raises DataError if rows are missing or arrays do not
    match the fields, and as files.commit does.
    """
    layout, offsets, ends, whole = _Layout(), {}, [], whole or {}
    sizes = check_arrays(whole, whole_fields, sizes, path)

    def fill(file: Any) -> None:
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


def _stored(array: np.ndarray, field: Field) -> np.ndarray:
    return np.asarray(array, np.dtype(field.dtype).newbyteorder("<"), order="C")


def _reserve(fd: int, size: int) -> None:
    """Reserve the disk blocks of fd now, so that a full disk fails here and not later."""
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


def _allocate(file: Any, field: Field, shape: tuple[int, ...]) -> int:
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
    """A file object that keeps only the bytes written; unwritten rows take no memory."""

    pieces: list[tuple[int, bytes]]

    def __init__(self) -> None:
        self.pieces, self.position = [], 0  # (offset, bytes); later pieces overwrite earlier ones

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        ends = [at + len(piece) for at, piece in self.pieces]
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: max(ends, default=0)}
        self.position = start[whence] + position
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: Any = None) -> Any:
        return size

    def write(self, data: Any) -> int:
        self.pieces.append((self.position, bytes(data)))
        self.position += len(data)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Fill buffer with the bytes written there, and zeros where nothing was written."""
        read = bytearray(len(buffer))
        for at, piece in self.pieces:
            low, high = max(at, self.position), min(at + len(piece), self.position + len(read))
            if low < high:
                read[low - self.position : high - self.position] = piece[low - at : high - at]
        buffer[:] = read
        self.position += len(read)
        return len(read)
