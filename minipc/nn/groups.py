"""Neighbourhoods of a cloud: centres by farthest points, members by distance.

Everything here is a function of the points alone, to the bit, on any processor: squared distances
are float32, each difference squared and added in the order x, y, z without a fused multiply-add,
and equal distances are decided by the lower index.  Groups belong to the *stored* cloud: scaling
each axis changes neighbours, and a replay must gather the same indices.

Letters: B clouds, N points, M centres, k members of a group.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minipc.errors import DataError, check_shape

CHUNK = 1 << 16  # distances computed together, few enough to stay in a cache


class Scale(NamedTuple):
    """One neighbourhood of each centre of a level."""

    members: int  # k
    radius: float = 0.0  # of a ball; 0: the k nearest, however far


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """Return the indices (B, count) of points (B, N, 3) float32 that are far from each other.  (G1)

    The first is index 0; each next one is the point whose nearest chosen point is the farthest
    (Eldar et al. 1997, Qi et al. 2017b; others start at a random one).  No point is chosen twice,
    though a repeated one may be, so the first M' of M centres are the centres of M'.  Raises
    DataError for more centres than points.
    """
    check_shape("points", points, (None, None, 3))
    clouds, number, _ = points.shape
    check_centres(count, number)
    chosen = np.empty((clouds, count), np.intp)
    step = max(CHUNK // number, 1)
    for first in range(0, clouds, step):
        some = slice(first, first + step)
        _choose(np.ascontiguousarray(points[some].transpose(2, 0, 1)), chosen[some])
    return chosen


def check_centres(count: int, number: int) -> None:
    """Raise DataError for count centres in a cloud of fewer points."""
    if count > number:
        raise DataError(
            f"groups: the model needs {count} centres and a cloud has {number} points; take "
            "clouds of more points, or a model with fewer centres"
        )


def _choose(axes: np.ndarray, chosen: np.ndarray) -> None:
    """Fill chosen (C, count) for coordinates axes (3, C, N)."""
    clouds = np.arange(len(chosen))
    nearest = np.full(axes.shape[1:], np.inf, np.float32)  # squared distance to the chosen points
    squared, square = np.empty_like(nearest), np.empty_like(nearest)
    at = np.zeros(len(chosen), np.intp)
    for number in range(chosen.shape[1]):
        chosen[:, number] = at
        _squared_distances(axes, axes[:, clouds, at][..., None], squared, square)
        np.minimum(nearest, squared, out=nearest)
        nearest[clouds, at] = -1  # never again
        at = nearest.argmax(axis=1)  # the lowest index of equal ones


def _squared_distances(
    axes: np.ndarray, centre: np.ndarray, out: np.ndarray, square: np.ndarray
) -> None:
    """out = (x^2 + y^2) + z^2 of the differences, each step rounded to float32."""
    for number in range(3):
        target = square if number else out
        np.subtract(axes[number], centre[number], out=target)
        np.multiply(target, target, out=target)
        if number:
            out += square


def dtype_of(number: int) -> np.dtype:
    """Return the dtype of members among this many points."""
    return np.dtype(np.uint16 if number <= 1 << 16 else np.uint32)


def neighbours(
    points: np.ndarray, centres: np.ndarray, scales: Iterable[Scale]
) -> list[np.ndarray]:
    """Return the members (B, M, k) of the groups of each scale, as indices of points.  (G2)

    points (B, N, 3) float32, centres (B, M) indices of points.  Nearest first.  A ball holds the
    points closer than its radius, at most k.  Where there are fewer, the nearest is repeated: the
    centre itself, or the lowest index of the points that lie where it lies.
    """
    scales = list(scales)
    (clouds, number, _), count = points.shape, centres.shape[1]
    dtype = dtype_of(number)
    members = [np.empty((clouds, count, scale.members), dtype) for scale in scales]
    most = min(max(scale.members for scale in scales), number)
    rows = min(max(CHUNK // number, 1), count)  # centres at once
    squared, square = (np.empty((rows, number), np.float32) for _ in range(2))
    keys = np.empty((rows, number), "<u8")
    low, high = np.moveaxis(keys.view("<u4").reshape(rows, number, 2), 2, 0)
    low[...] = np.arange(number)
    for cloud in range(clouds):
        axes = np.ascontiguousarray(points[cloud].T)  # (3, N)
        for first in range(0, count, rows):
            at = axes[:, centres[cloud, first : first + rows]]
            used = slice(at.shape[1])
            _squared_distances(axes[:, None], at[..., None], squared[used], square[used])
            # The bits of a float32 that is not negative order as it does.  With the index below
            # them all keys differ, so their order does not depend on how they are sorted.
            high[used] = squared[used].view(np.uint32)
            near = np.partition(keys[used], most - 1, axis=1)[:, :most]
            near.sort(axis=1)
            for scale, result in zip(scales, members, strict=True):
                result[cloud, first : first + rows] = _padded(near, scale)
    return members


def _padded(keys: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the members (rows, k) of one scale from the sorted keys of the nearest points."""
    rank = np.arange(scale.members)
    absent = rank >= keys.shape[1]
    keys = keys[:, np.minimum(rank, keys.shape[1] - 1)]
    if scale.radius:
        squared, radius = (keys >> 32).astype(np.uint32).view(np.float32), np.float32(scale.radius)
        absent = absent | (squared >= radius * radius)  # ** calls powf, which may round otherwise
    return np.where(absent, keys[:, :1], keys) & 0xFFFFFFFF
