"""HDF5 images of our files: written in memory, read with care.

libhdf5 never writes to the target disk, because a full disk crashes it.  It sees no byte of a
file before the digest is verified (files.py).  After that we read only what the caller names, never
a soft or external link, virtual or external storage, or a filter.
"""

import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from minipc.errors import DataError, check_shape
from minipc.storage import files

# what h5py raises on a malformed file
_ERRORS = (OSError, LookupError, ArithmeticError, RuntimeError, TypeError, ValueError, MemoryError)
HDF5_BOUNDS = ("v108", "v110")  # checksummed metadata; any HDF5 from 1.10 on reads it


def write_hdf5(
    path: str | PathLike,
    kind: str,
    version: int,
    fill: Callable[[h5py.File], None],
    swept: bool = False,
) -> None:
    """Commit a file of ours whose HDF5 content fill(h5py.File) creates in memory.

    Equal contents created in equal order give equal bytes.  fill uses write_meta and h5py's
    create_dataset without chunks, filters or times.  swept and errors as in files.commit.
    """
    hdf5_into(image := io.BytesIO(), fill)
    # getvalue does not copy.  A view (getbuffer) that a traceback still holds would make
    # Python 3.13 complain when both are freed.
    whole = image.getvalue()
    body = memoryview(whole)[files.USER_BLOCK :]
    files.commit(path, [files.sealed(kind, version, len(whole), [body]), body], swept)


def hdf5_into(image: Any, fill: Callable[[h5py.File], None]) -> None:
    """Let libhdf5 write what fill(h5py.File) creates into a file object in memory."""
    with h5py.File(image, "w", libver=HDF5_BOUNDS, userblock_size=files.USER_BLOCK) as file:
        fill(file)


def write_meta(group: h5py.Group, values: Mapping[str, Any]) -> None:
    """Create the dataset meta, the canonical JSON of a mapping as bytes, in an h5py group."""
    group.create_dataset("meta", data=np.frombuffer(files.canonical_json(values), np.uint8))


@contextmanager
def open_hdf5(
    path: str | PathLike, kind: str, version: int, cap: int = files.CAP
) -> Iterator[h5py.File]:
    """Yield an h5py.File, mode r, of a whole file of kind, of at most version and cap bytes.

    Raises DataError, one line.
    """
    with files.guarded(path, kind, version, cap) as whole, hdf5_in(whole, path) as file:
        yield file


@contextmanager
def hdf5_in(whole: Any, path: str | PathLike) -> Iterator[h5py.File]:
    """Yield the h5py.File of a file that files.guarded yields.  Raises DataError."""
    with _as_data_error(path):
        file = h5py.File(whole, "r")
    with file, _as_data_error(path, (OSError, KeyError, RuntimeError)):
        yield file


def check_members(group: Any, names: Collection[str], path: str | PathLike) -> None:
    """Raise DataError unless group is an h5py group of exactly the members names, hard links."""
    expected = set(names)
    with _as_data_error(path):
        members = set(group) if isinstance(group, h5py.Group) else set()
        if members != expected:
            raise DataError(
                f"{path}: {group.name} misses {sorted(expected - members)[:5]}, has foreign "
                f"{sorted(members - expected)[:5]}; it was made by another program or version"
            )
        for name in names:
            _check_link(group, name, path)


def checked_dataset(
    group: h5py.Group, name: str, dtype: Any, shape: tuple, path: str | PathLike
) -> h5py.Dataset:
    """Return the h5py dataset name ("a/b" is allowed) of group after every check but its values.

    Hard links, exact dtype, shape (None fits any length), contiguous storage in this file, without
    filters, of exactly the declared size: no row can be unwritten.  Raises DataError.
    """
    expected = np.dtype(dtype).newbyteorder("<")
    with _as_data_error(path):
        node = group
        for part in name.split("/"):
            _check_link(node, part, path)
            node = node[part]
        is_array = isinstance(node, h5py.Dataset)
        if not is_array or not node.id.get_type().equal(h5py.h5t.py_create(expected)):
            found = node.dtype if is_array else "no array"
            raise DataError(f"{path}: {name}: expected {expected}, found {found}; make it again")
        check_shape(f"{path}: {name}", node, shape)
        created = node.id.get_create_plist()
        size, stored = node.size * expected.itemsize, node.id.get_storage_size()
        plain = created.get_layout() == h5py.h5d.CONTIGUOUS and not created.get_external_count()
        if not plain or created.get_nfilters() or not size == stored <= node.file.id.get_filesize():
            other = f"{stored} or another storage (external, virtual, chunked)"
            raise DataError(f"{path}: {name}: expected {size} plain bytes here, found {other}")
        return node


def read_array(
    group: h5py.Group, name: str, dtype: Any, shape: tuple, path: str | PathLike
) -> np.ndarray:
    """Return the dataset name as an array, checked as by checked_dataset; floats are finite."""
    return read_dataset(checked_dataset(group, name, dtype, shape, path), path)


def read_dataset(dataset: h5py.Dataset, path: str | PathLike) -> np.ndarray:
    """Return a checked dataset as an array.  Raises DataError for NaN or infinity."""
    with _as_data_error(path):
        values = dataset[...]
    return _finite(values, dataset.name[1:], path)


def _finite(values: np.ndarray, name: str, path: str | PathLike) -> np.ndarray:
    """Return values.  Raises DataError for NaN or infinity, which a bad read can cause too."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"{path}: {name} holds NaN or infinite values; run the same command once more, and "
            "make the file again only if they are still there"
        )
    return values


class Stored(NamedTuple):
    """An array in an open file of ours: plain bytes from an offset on, read without libhdf5.

    It keeps no state between two reads, so threads may read at once, and so may processes that
    were forked while the file was open.
    """

    file: Any  # that files.guarded yields
    name: str
    dtype: np.dtype
    shape: tuple
    offset: int  # bytes

    @classmethod
    def of(cls, dataset: h5py.Dataset, file: Any) -> Self:
        """Return where a dataset of checked_dataset lies in its file object."""
        return cls(file, dataset.name[1:], dataset.dtype, dataset.shape, dataset.id.get_offset())

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def rows(self, first: int, stop: int) -> Self:
        """Return the part [first:stop] of it, Stored."""
        at = self.offset + first * self.nbytes // self.shape[0]
        return self._replace(shape=(stop - first, *self.shape[1:]), offset=at)

    def row(self, index: int) -> Self:
        """Return the part [index] of it, Stored."""
        return self.rows(index, index + 1)._replace(shape=self.shape[1:])

    def read(self) -> np.ndarray:
        """Return it as a new array.  Raises DataError for NaN or infinity, or as files.read_at."""
        values = np.empty(self.shape, self.dtype)
        self.file.read_at(self.offset, values.reshape(-1).view(np.uint8))
        return _finite(values, self.name, self.file.path)


def read_meta(group: h5py.Group, path: str | PathLike) -> dict[str, Any]:
    """Return the mapping that write_meta stored in group.  Raises DataError."""
    return files.parse_json(read_array(group, "meta", np.uint8, (None,), path), path)


@contextmanager
def _as_data_error(
    path: str | PathLike, kinds: tuple[type[Exception], ...] = _ERRORS
) -> Iterator[None]:
    """Turn what h5py raises on a whole but malformed file into DataError."""
    try:
        yield
    except kinds as reason:
        said = (str(reason) or type(reason).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read as HDF5 ({said}); make it again") from reason


def _check_link(group: Any, name: str, path: str | PathLike) -> None:
    if not isinstance(group, h5py.Group):
        raise DataError(f"{path}: {group.name}: expected a group, found none; make it again")
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise DataError(f"{path}: {name} is a link to elsewhere, never followed; make it again")
