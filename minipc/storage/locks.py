"""Locks on open files and folders, by fcntl; the kernel drops them when their process ends.

Windows has no fcntl.  There a lock without which work would be lost is refused in one line, and
what only reads never asks for one.
"""

from typing import Any

from minipc.errors import MinipcError

fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None


def available() -> bool:
    """Return whether this system has locks; a file system may still have none."""
    return fcntl is not None


def check_locks(path: object) -> None:
    """Raise MinipcError, naming path, on a system without locks."""
    if not available():
        raise MinipcError(
            f"{path}: needs locks on files, so that two processes do not write into it, and this "
            "system has none (no fcntl); train and record on Linux, macOS, or WSL in Windows"
        )


def lock(file: Any, wait: bool = True) -> None:
    """Lock a file object or descriptor for this process alone.

    Raises BlockingIOError if it is locked and we shall not wait, another OSError where the system
    or the file system has no locks.
    """
    if not available():
        raise OSError("no locks on this system")
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def unlock(file: Any) -> None:
    """Drop the lock, also that of processes forked meanwhile.  Raises OSError as lock does."""
    if not available():
        raise OSError("no locks on this system")
    fcntl.flock(file, fcntl.LOCK_UN)
