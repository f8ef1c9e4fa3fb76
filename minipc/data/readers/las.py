"""A cloud from a .las or .laz file (lidar), by laspy, the extra `las`.

Points are whole numbers in the file, with a scale and an offset; we scale them in float64, which
keeps every digit of coordinates on a map.  All points are read, whatever their class or return.

On damaged bytes the decoder of .laz ends the process that it runs in.  So it runs in one of its
own, with limits where the system has them; the coordinates come back through a pipe.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from minipc.data.readers.limits import available, command, limit
from minipc.errors import DataError, MinipcError, short

CHUNK = 1 << 18  # points at once
MOST = 40_000_000  # points of one cloud: a gigabyte of coordinates
SECONDS = 5  # of computing for any .laz, and one more for each so many bytes of it:
BYTES_A_SECOND = 1 << 20  # decoding takes a fraction of it
RECORD = 54  # bytes of the header of a variable length record (LAS 1.4 R15, table 6)


def read_las(path: str) -> np.ndarray:
    """Return the points (P, 3) float64 of a .las or .laz file, in the units of the file.

    Raises DataError for a file that is damaged, MinipcError where laspy is not installed.
    """
    packed = path.lower().endswith(".laz")
    if not find_spec("laspy") or packed and not find_spec("lazrs"):
        raise MinipcError(
            f"{path}: reading .las and .laz needs laspy and lazrs; pip install -e '.[las]'"
        )
    try:
        points = _unpacked(path) if packed else np.concatenate([np.empty((0, 3)), *_points(path)])
    except (MinipcError, OSError, MemoryError):
        raise
    except Exception as reason:  # laspy trusts a header, so its lies may raise anything
        raise DataError(f"{path}: {_damaged(reason)}") from reason
    return points


def _points(path: str) -> Iterator[np.ndarray]:
    """Yield the points (P, 3) float64 of parts of a file.  Raises DataError, and whatever."""
    import laspy  # late: an extra

    logging.getLogger("laspy").addHandler(logging.NullHandler())  # it logs what it also raises
    _check_records(path)
    # one thread, and nothing that stands behind the points
    with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs, read_evlrs=False) as reader:
        header, found = reader.header, 0
        if header.point_count > MOST:
            raise DataError(
                f"{path}: says {header.point_count} points, expected at most {MOST} for one cloud; "
                "cut one object out of it"
            )
        for chunk in reader.chunk_iterator(CHUNK):
            stored = np.stack([chunk.array[axis] for axis in "XYZ"], axis=1)  # whole numbers
            with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale
                yield stored * np.asarray(header.scales) + np.asarray(header.offsets)
            found += len(stored)
    if found != header.point_count:
        raise DataError(
            f"{path}: says {header.point_count} points, found {found}; the file is cut: copy it "
            "again"
        )


def _check_records(path: str) -> None:
    """Raise DataError for more variable length records than the file has room for.

    laspy makes as many as the header says, and goes on to do so at the end of the file.
    """
    with open(path, "rb") as file:
        start = file.read(104)  # how many records: bytes 100 to 103 (table 3)
    records, bytes_of_file = int.from_bytes(start[100:], "little"), os.path.getsize(path)
    if start[:4] == b"LASF" and records * RECORD > bytes_of_file:
        raise DataError(
            f"{path}: says {records} records before its points, more than fit into {bytes_of_file} "
            "bytes; it is damaged: copy it again"
        )


def _damaged(reason: Any) -> str:
    said = " ".join(str(reason).split()) or type(reason).__name__
    return f"is damaged or no LAS file ({short(said, 120)}); copy it again"


# .laz


def _unpacked(path: str) -> np.ndarray:
    """Return the points (P, 3) float64 of a .laz file, decoded by another process."""
    seconds = SECONDS + os.path.getsize(path) // BYTES_A_SECOND
    done = subprocess.run(
        command(__name__, path, str(seconds)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if done.returncode == DataError.exit_code:
        raise DataError(os.fsdecode(done.stderr))
    if done.returncode or len(done.stdout) % 24:
        raise DataError(f"{path}: {_damaged(f'its decoder ended with {done.returncode}')}")
    return np.frombuffer(done.stdout).reshape(-1, 3)


def child() -> None:
    """Write the points of the .laz file that the command line names to stdout, and end."""
    import laspy  # noqa: F401 (before the limits)
    import lazrs  # noqa: F401

    path, seconds = sys.argv[1:]
    if available():
        limit(int(seconds))
    errors = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a panic writes there
    try:
        for points in _points(path):
            sys.stdout.buffer.write(points.tobytes())
        sys.stdout.buffer.flush()
    except DataError as reason:
        text = str(reason)
    except BaseException as reason:  # also a panic of the decoder
        text = f"{path}: {_damaged(reason)}"
    else:
        return
    os.write(errors, os.fsencode(text))
    os._exit(DataError.exit_code)
