"""Read any source: the folder of a known data set, a tree of files, or one HDF5 file."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from minipc.data.readers import (
    foreign_hdf5,
    modelnet,
    modelnet_texts,
    scanobjectnn,
    shapenet_part,
    tree,
)
from minipc.data.readers.packed import Packed, Request, collect


def read_source(
    path: str, num_points: int, *, progress: Callable[..., Any] = lambda *_: None, **options: Any
) -> Packed:
    """Return the Packed of any source; options: the other fields of packed.Request.

    progress(done, total, text) reports how many clouds are read.  Raises DataError if path is not
    one of these sources, UsageError for invalid or contradictory options.
    """
    request = Request(num_points, **options)
    request.check()
    reader = _reader_of(path)
    if reader not in (scanobjectnn, modelnet_texts):
        request.refuse(path, "variant")
    if reader is not scanobjectnn:
        request.refuse(path, "background")
    return collect(path, reader.scan(path, request), request, progress)


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
