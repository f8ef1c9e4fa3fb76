"""The operations of neighbourhoods, textbook form: offsets, gather, mean beside maximum.

The rules and letters are those of ops.py; M centres, k members of each group.  With them a level of
PointNet++ (Qi et al. 2017b, set abstraction) is a PointNet of every group: rows (M18), then linear,
batch norm and ReLU, then the maximum (M12) over the k members.  Positions are inputs: only features
have a gradient.
"""

from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of, to_host
from minipc.errors import check_shape
from minipc.nn.ops import point_max_backward, point_max_forward


def offsets(positions: Any, centres: Any, members: Any) -> Any:
    """Return o_mj = p_g(m,j) - p_c(m): where member j of group m lies, s = 1.  (M18)

    positions (B, N, 3), centres (B, M) and members (B, M, k) indices of points -> (B, M, k, 3)
    """
    module_of(positions, centres, members)
    check_shape("positions", positions, (None, None, 3))
    clouds = _clouds(positions)
    return positions[clouds, members] - positions[clouds[..., 0], centres][:, :, None]


class GatherCache(NamedTuple):
    members: Any  # (B, M, k)
    points: int  # N


def gather_forward(f: Any, members: Any) -> tuple[Any, GatherCache]:
    """y_mj = f_g(m,j).  (M19)    f (B, N, C), members (B, M, k) -> (B, M, k, C)"""
    module_of(f, members)
    check_shape("f", f, (len(members), None, None))
    return f[_clouds(f), members], GatherCache(members, f.shape[1])


def gather_backward(dy: Any, cache: GatherCache) -> Any:
    """df_n = sum of dy_mj over all places (m, j) with g(m,j) = n.  (M20)    -> (B, N, C)

    A point is read by many groups, so its gradient is a sum.  The terms are added in the order of
    the places: the same bits on every run, also on a device.
    """
    xp = module_of(dy, cache.members)
    places = readers(cache.members, cache.points)  # (B, N, D)
    rows = dy.reshape(len(dy), -1, dy.shape[-1])  # (B, M k, C)
    rows = xp.concatenate([rows, xp.zeros_like(rows[:, :1])], axis=1)
    df = xp.zeros((*places.shape[:2], dy.shape[-1]), dy.dtype)
    clouds = xp.arange(len(dy))[:, None]
    for d in range(places.shape[2]):
        df += rows[clouds, places[:, :, d]]
    return df


def readers(members: Any, points: int) -> Any:
    """Return the places that read each point, ascending: the inverse of members (B, M, k).

    -> (B, N, D) integers m k + j; D is the most readers of a point, the rest is filled with M k.
    The lists are made on the host, also for members on a device.
    """
    xp, flat = module_of(members), to_host(members)
    flat = flat.reshape(len(flat), -1).astype(np.int64)  # (B, M k)
    clouds, places = flat.shape
    order = flat.argsort(axis=1, kind="stable")
    read = np.take_along_axis(flat, order, axis=1)  # the points, ascending
    cloud = np.arange(clouds)[:, None]
    counts = np.bincount((flat + points * cloud).ravel(), minlength=clouds * points)
    counts = counts.reshape(clouds, points)
    first = np.take_along_axis(counts.cumsum(axis=1) - counts, read, axis=1)
    result = np.full((clouds, points, int(counts.max())), places)
    result[cloud, read, np.arange(places) - first] = order
    return xp.asarray(result)


def max_and_mean_forward(x: Any) -> tuple[Any, Any]:
    """y = [max_n x_n ; sum_n x_n / N].  (M21)    x (B, N, O) -> y (B, 2 O)"""
    xp = module_of(x)
    largest, cache = point_max_forward(x)
    return xp.concatenate([largest, x.mean(axis=1)], axis=1), cache


def max_and_mean_backward(dy: Any, cache: Any) -> Any:
    """(M13) of the first half, plus dx_n = dy / N of the second.  (M22)    -> dx (B, N, O)"""
    width = dy.shape[1] // 2
    return point_max_backward(dy[:, :width], cache) + dy[:, None, width:] / cache.points


def _clouds(x: Any) -> Any:
    """Return the index (B, 1, 1) of each cloud."""
    return module_of(x).arange(len(x))[:, None, None]
