"""Whether a path is free for what is to be made there: asked before minutes of work, and again
before the first byte.
"""

import os
from contextlib import suppress

from minipc.errors import DataError, UsageError


def check_parent(path):
    """Raise DataError unless the folder of path exists."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise DataError(f"{path}: cannot be written, there is no folder {folder}; make it first")


def check_new_file(path):
    """Raise UsageError where path exists, DataError where its folder does not."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already; name another file or remove it")
    check_parent(path)


def check_new_run(path):
    """Raise UsageError where path is taken: a run never goes into another one's folder."""
    if not is_free_folder(path):
        raise UsageError(
            f"{path}: exists already; continue it with --resume, or choose another --out"
        )


def is_free_folder(path):
    """Return whether a folder may be made at path.

    An empty folder is not taken, nor is one in which a kill left nothing but hidden temporaries.
    """
    if not os.path.lexists(path):
        return True
    with suppress(OSError):  # no folder, or not ours to look into: taken
        return all(name.endswith(".tmp") for name in os.listdir(path))
    return False
