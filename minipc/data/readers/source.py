"""What a path is: a ModelNet HDF5 folder, a tree of files, or one HDF5 file."""

import os

from minipc.data.readers import foreign_hdf5, modelnet, tree
from minipc.data.readers.packed import Request, collect


def read_source(path, num_points, *, progress=lambda *_: None, **request):
    """Return the Packed of any source; request: the other fields of packed.Request.

    progress(done, total, text) reports how many clouds are read.  Raises DataError if path is none
    of the sources, UsageError for invalid or contradictory options.
    """
    request = Request(num_points, **request)
    request.check()
    return collect(path, _reader_of(path).scan(path, request), request, progress)


def _reader_of(path):
    """Return the module whose scan() reads path."""
    if modelnet.has_lists(path):
        return modelnet
    if os.path.isdir(path):
        return tree
    return foreign_hdf5
