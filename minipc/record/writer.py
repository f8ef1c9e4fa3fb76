"""Write an HDF5 file of any size row by row, with only one block of rows in memory.

libhdf5 lays out the datasets in memory (storage/layout.py).  We then write the rows to their
offsets in a file whose disk blocks are already reserved.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from minipc.errors import DataError
from minipc.record.fields import check_arrays, shape_of
from minipc.storage.files import replacing, seal, write_at
from minipc.storage.hdf5 import hdf5_into, write_meta
from minipc.storage.layout import Layout, allocate, reserve

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
    layout, offsets, ends, whole = Layout(), {}, [], whole or {}
    sizes = check_arrays(whole, whole_fields, sizes, path)

    def fill(file: Any) -> None:
        write_meta(file, meta)
        for field in (*fields, *whole_fields):
            shape = shape_of(field, sizes)
            offsets[field.name] = allocate(file, field.name, field.dtype, shape)
            ends.append(offsets[field.name] + math.prod(shape) * np.dtype(field.dtype).itemsize)

    hdf5_into(layout, fill)
    row_bytes = {
        field.name: np.dtype(field.dtype).itemsize * math.prod(shape_of(field, sizes)[2:])
        for field in fields
    }
    rows = sizes["V"] * sizes["N"]
    with replacing(path) as fd:
        reserve(fd, max([layout.end, *ends]))
        layout.write_to(fd)
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
