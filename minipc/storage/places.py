"""Check that a new file or folder can be made at a path.

Callers check before minutes of work, and again before the first byte.
"""

import os
from contextlib import suppress
from os import PathLike

from minipc.errors import DataError, UsageError


def check_parent(path: str | PathLike) -> None:
    """Raise DataError unless the folder of path exists."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise DataError(f"{path}: cannot be written, there is no folder {folder}; make it first")


def check_new_file(path: str | PathLike) -> None:
    """Raise UsageError if path exists, DataError if its folder does not."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already; name another file or remove it")
    check_parent(path)


def check_new_run(path: str | PathLike) -> None:
    """Raise UsageError if path is taken: a run never uses the folder of another run."""
    if not is_free_folder(path):
        raise UsageError(
            f"{path}: exists already; continue it with --resume, or choose another --out"
        )


def is_free_folder(path: str | PathLike) -> bool:
    """Return whether a folder may be made at path.

    An empty folder is free, and so is one in which a kill left only hidden temporaries.
    """
    if not os.path.lexists(path):
        return True
    with suppress(OSError):  # no folder, or we may not read it: taken
        return all(name.endswith(".tmp") for name in os.listdir(path))
    return False
