"""A cloud from a .las or .laz file (lidar), by laspy, the extra `las`.

Points are whole numbers in the file, with a scale and an offset; we scale them in float64, which
keeps every digit of coordinates on a map.  All points are read, whatever their class or return.
"""

import logging
from typing import Any

import numpy as np

from minipc.errors import DataError, MinipcError, short

CHUNK = 1 << 18  # points at once
MOST = 40_000_000  # points of one cloud: a gigabyte of coordinates
REMEDY = "reading .las and .laz needs laspy; pip install -e '.[las]'"


def read_las(path: str) -> np.ndarray:
    """Return the points (P, 3) float64 of a .las or .laz file, in the units of the file.

    Raises DataError for a file that is damaged, MinipcError where laspy is not installed.
    """
    try:
        import laspy  # late: an extra
    except ImportError as reason:
        raise MinipcError(f"{path}: {REMEDY}") from reason
    try:
        return _points(path, laspy)
    except DataError:
        raise
    except BaseException as reason:  # the decoder, in Rust, panics on damaged bytes
        if isinstance(reason, (KeyboardInterrupt, SystemExit)):
            raise
        said = " ".join(str(reason).split()) or type(reason).__name__
        raise DataError(
            f"{path}: is damaged or no LAS file ({short(said, 120)}); copy it again"
        ) from reason


def _points(path: str, laspy: Any) -> np.ndarray:
    parts: list[np.ndarray] = []
    logging.getLogger("laspy").addHandler(logging.NullHandler())  # it logs what it also raises
    # one thread, and nothing that stands behind the points
    with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs, read_evlrs=False) as reader:
        header = reader.header
        if header.point_count > MOST:
            raise DataError(
                f"{path}: says {header.point_count} points, expected at most {MOST} for one cloud; "
                "cut one object out of it"
            )
        for chunk in reader.chunk_iterator(CHUNK):
            stored = np.stack([chunk.array[axis] for axis in "XYZ"], axis=1)  # whole numbers
            with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale
                parts.append(stored * np.asarray(header.scales) + np.asarray(header.offsets))
        found = sum(map(len, parts))
        if found != header.point_count:
            raise DataError(
                f"{path}: says {header.point_count} points, found {found}; the file is cut: copy "
                "it again"
            )
    return np.concatenate(parts) if parts else np.empty((0, 3))
