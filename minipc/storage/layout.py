"""Large HDF5 files laid out in memory without their data, which we write to its place on the disk.

libhdf5 never touches the disk, because a full disk crashes it.  Nothing is copied: an array goes
from where it is to the file.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

import h5py
import numpy as np

from minipc.storage.files import CHUNK, replacing, seal, write_at
from minipc.storage.hdf5 import hdf5_into, write_meta

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from typing import Any


def write_arrays(
    path: str | PathLike,
    kind: str,
    version: int,
    meta: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Commit a file of ours with meta and arrays, {name of a dataset: array}, atomically.

    Unlike hdf5.write_hdf5 it holds no image of the file in memory.  Disk space is reserved first,
    so a full disk fails before the first array.  Raises the errors of files.commit.
    """
    layout, offsets = Layout(), {}

    def fill(file: h5py.File) -> None:
        write_meta(file, meta)
        for name, array in arrays.items():
            offsets[name] = allocate(file, name, array.dtype, array.shape)

    hdf5_into(layout, fill)
    with replacing(path) as fd:
        ends = (offsets[name] + array.nbytes for name, array in arrays.items())
        reserve(fd, max([layout.end, *ends]))
        layout.write_to(fd)
        for name, array in arrays.items():
            exact = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            write_at(fd, offsets[name], exact)
        seal(fd, kind, version)


def reserve(fd: int, size: int) -> None:
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


def allocate(file: Any, name: str, dtype: Any, shape: tuple[int, ...]) -> int:
    """Create the dataset name ("a/b" is allowed), allocated but unwritten; return its offset."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    group, _, name = name.rpartition("/")
    parent = file.require_group(group) if group else file
    stored = h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"))
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(parent.id, name.encode(), stored, space, how).get_offset()


class Layout(io.RawIOBase):
    """A file object that keeps only the bytes written; unwritten rows take no memory."""

    pieces: list[tuple[int, bytes]]

    def __init__(self) -> None:
        self.pieces, self.position = [], 0  # (offset, bytes); later pieces overwrite earlier ones

    @property
    def end(self) -> int:
        """Where the last byte that was written ends."""
        return max((at + len(piece) for at, piece in self.pieces), default=0)

    def write_to(self, fd: int) -> None:
        """Write what was written here to the same bytes of fd."""
        for at, piece in self.pieces:
            write_at(fd, at, piece)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.end}
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
