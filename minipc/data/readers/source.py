"""Read any source: the folder of a known data set, a tree of files, or one HDF5 file."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from minipc.data.readers import (
    foreign_hdf5,
    limited,
    modelnet,
    modelnet_texts,
    scanobjectnn,
    shapenet_part,
    tree,
)
from minipc.data.readers.packed import Packed, Request, collect
from minipc.progress import quiet

OF_HDF5 = (foreign_hdf5, modelnet, scanobjectnn)


def read_source(
    path: str,
    num_points: int,
    *,
    progress: Callable[..., Any] = quiet,
    say: Callable[[str], Any] = quiet,
    limits: bool = True,
    **options: Any,
) -> Packed:
    """Return the Packed of any source; options: the other fields of packed.Request.

    progress(done, total, text) reports how many clouds are read; say(line) tells if HDF5 is read
    without limits, because this system has none.  limits: whether to use them.  Raises DataError if
    path is not one of these sources, UsageError for invalid or contradictory options.
    """
    request = Request(num_points, **options)
    request.check()
    reader = _reader_of(path)
    if reader not in (scanobjectnn, modelnet_texts):
        request.refuse(path, "variant")
    if reader is not scanobjectnn:
        request.refuse(path, "background")
    if limits and reader in OF_HDF5:
        listing = limited.scan(reader.__name__.rpartition(".")[2], path, request, say)
    else:
        listing = reader.scan(path, request)
    return collect(path, listing, request, progress)


def _reader_of(path: str) -> ModuleType:
    """Return the module whose scan() reads path."""
    if modelnet.has_lists(path):
        return modelnet
    if modelnet_texts.variants(path):
        return modelnet_texts
    if shapenet_part.has_categories(path):
        return shapenet_part
    if scanobjectnn.folder_of(path):
        return scanobjectnn
    if os.path.isdir(path):
        return tree
    return foreign_hdf5
