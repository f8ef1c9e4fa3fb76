"""The fast engine on neighbourhoods: levels of PointNet++ without their rows wherever possible.

A level reads rows x_mj = [p_g(m,j) - p_c(m) ; f_g(m,j)], one for each member of each group; p are
positions times the scale's factor (M18).  Its first linear map can be applied before the gather, to
N points instead of M k rows, and so can all that its batch norm and its backward need:
docs/fast_engine.md, section 9, derives every line from (F1) to (F8).

Letters as in fused.py; M centres, k members.  Of each point n the rows enter only by c_n, how often
it is read, and q_n, the sum of the centres' positions over its readers:

    z~ = [P ; Z ; 1]  (I + 1, N)            the points, shifted
    v~ = [c P - q ; c Z ; c]  (I + 1, N)    the sum of the rows x~_mj that read point n
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.nn import kernels
from minipc.nn.fast.fused import (
    OF_ONE_LAYER,
    Activation,
    Affine,
    advancing,
    affine_map,
    blocks_of,
    claim,
    divided,
    filled,
    of_parameters,
    slices_of,
    sum_over_blocks,
    to_tower,
)
from minipc.nn.fast.products import matrix_product, mean_of, product
from minipc.nn.fast.workspace import Workspace
from minipc.nn.ops import BatchStats


class Level(NamedTuple):
    """The input of a level with features: points, and which of them its groups read."""

    z: Any  # (B, I + 1, N), z~
    v: Any  # (B, I + 1, N), v~
    at: Any  # (B, M, 3), positions of the centres, shifted as in z
    members: Any  # (B, M, k)
    flat: Any  # (k, B, M) intp, members as rows of all clouds' points
    shift: Any  # (I,), 0 for the offsets
    moments: Any  # (I + 1, I + 1) float64, mean over all rows x~ x~^T; on a device their sum
    work: Workspace
    name: str
    generation: int
    lists: Any = None  # on a device: of the readers of each point, see readers() in kernels.py

    @property
    def rows(self) -> int:
        """B M k."""
        return self.members.size

    def blocks(self) -> list[slice]:
        """Return the slices of clouds computed together; they depend only on the shape."""
        clouds, channels, points = self.z.shape
        return blocks_of(clouds, OF_ONE_LAYER * channels * points, self.work)

    def sum_over_readers(self, clouds: slice, value: str, x: Any, y: Any, out: Any) -> None:
        """As in kernels.py, on a device, for some clouds."""
        first, places = self.lists
        lists, size = (first[clouds], places[clouds]), self.members.shape[2]
        kernels.sum_over_readers(lists, size, value, x, y, out)


def to_level(
    positions: Any, f: Any, centres: Any, members: Any, work: Workspace, name: str
) -> Level:
    """Return the Level of positions (B, N, 3) and features f (B, N, C), with moments.  (F11), (F12)

    centres (B, M), members (B, M, k): indices of points.
    """
    xp, (clouds, number, channels) = work.xp, f.shape
    inputs, count = 3 + channels, members.shape[1]
    z, v = (
        work.array(f"{name} {part}", (clouds, inputs + 1, number), f.dtype, fill=1)
        for part in ("z", "v")
    )
    at = work.array(f"{name} at", (clouds, count, 3), f.dtype)
    flat = work.array(f"{name} flat", (members.shape[2], clouds, count), np.intp)
    generation = work.next_generation(name)
    lists = kernels.readers(members, number) if kernels.on_device(xp) else None
    level = Level(z, v, at, members, flat, None, None, work, name, generation, lists)

    def fill(clouds: slice) -> None:
        z[clouds, :3] = positions[clouds].swapaxes(1, 2)
        z[clouds, 3:-1] = f[clouds].swapaxes(1, 2)
        first = number * xp.arange(clouds.start, clouds.stop)[:, None]
        xp.add(members[clouds].transpose(2, 0, 1), first, out=flat[:, clouds])

    work.map(fill, level.blocks())
    shift = mean_of(z[:, :-1])

    def moments(clouds: slice) -> Any:
        z[clouds, :-1] -= shift[:, None]
        axes = z[clouds, :3].swapaxes(1, 2)
        at[clouds] = axes[xp.arange(len(axes))[:, None], centres[clouds]]
        return _moments(level, clouds)

    total = sum_over_blocks(moments, level, (inputs + 1, inputs + 1), f"{name} moments")
    if not kernels.on_device(xp):
        total /= level.rows
    differences = shift.copy()
    differences[:3] = 0  # an offset is a difference of positions
    return level._replace(shift=differences, moments=total)


def _moments(x: Level, clouds: slice) -> Any:
    """Write v~ of some clouds and return their sum of x~ x~^T.  (F12)

    Products of positions are float64, because those of an offset are small differences of them.
    """
    xp, z, v = x.work.xp, x.z[clouds], x.v[clouds]
    c, q = _reads(x, clouds)
    p, at = z[:, :3].astype(np.float64), x.at[clouds].astype(np.float64)
    v[:, :3] = sums = c[:, None] * p - q
    xp.multiply(z[:, 3:], c[:, None].astype(z.dtype), out=v[:, 3:])
    total = xp.empty((z.shape[1], z.shape[1]))
    total[:, 3:] = matrix_product(v, z[:, 3:].swapaxes(1, 2)).sum(axis=0, dtype=np.float64)
    total[3:, :3] = total[:3, 3:].T
    total[:3, :3] = (
        matrix_product(sums, p.swapaxes(1, 2)) - matrix_product(p, q.swapaxes(1, 2))
    ).sum(axis=0)
    total[:3, :3] += x.members.shape[2] * matrix_product(at.swapaxes(1, 2), at).sum(axis=0)
    return total


def _reads(x: Level, clouds: slice) -> tuple[Any, Any]:
    """Return c (C, N) and q (C, 3, N), float64, of some clouds.  (F11)"""
    xp, members, points = x.work.xp, x.members.shape[2], x.z.shape[2]
    if kernels.on_device(xp):
        at, q = x.at[clouds], xp.empty((len(x.z[clouds]), 4, points))
        x.sum_over_readers(clouds, "o == 3 ? 1 : x[centre]", at, at, q)
        return q[:, 3], q[:, :3]
    if xp is not np:
        at = x.at[clouds].astype(np.float64)
        at = xp.concatenate([at, xp.ones_like(at[..., :1])], axis=2)
        q = _sum_at_points(x.members[clouds], points, lambda j: at).swapaxes(1, 2)
        return q[:, 3], q[:, :3]
    c = np.empty((len(x.z[clouds]), points))
    q = np.empty((len(c), 3, points))
    for i, (groups, at) in enumerate(zip(x.members[clouds], x.at[clouds], strict=True)):
        groups = groups.ravel()
        c[i] = np.bincount(groups, minlength=points)
        for axis in range(3):
            q[i, axis] = np.bincount(groups, np.repeat(at[:, axis], members), points)
    return c, q


def _sum_at_points(members: Any, points: int, rows: Callable[[int], Any]) -> Any:
    """Return the sum of rows(j) (C, M, O) over the places (m, j) that read each point, (C, N, O).

    For a device without kernels of ours: products with zeros and ones, one for each member.  Many
    threads that add to one point would need atomic additions, whose order changes from run to run.
    """
    xp, total = module_of(members), 0.0
    for j in range(members.shape[2]):
        terms = rows(j)
        reads = xp.arange(points)[:, None] == members[:, None, :, j]  # (C, N, M)
        total = total + reads.astype(terms.dtype) @ terms
    return total


class LevelCache(NamedTuple):
    x: Level
    affine: Affine
    positive: Any  # (B, M, O)
    rank: Any  # (B, M, O), the member that won
    name: str


def level_forward(
    x: Level, W: Any, gamma: Any, beta: Any, eps: float, name: str
) -> tuple[Any, LevelCache, BatchStats]:
    """h_mo = relu(c_o - (A_p^T p_c(m))_o + max_j (A^T z)_(o, g(m,j))).  (F13)

    A level of a single layer: its rows are never made.  x a Level; W (I, O) -> h (B, M, O),
    LevelCache and BatchStats.
    """
    xp, work, (clouds, _, points) = x.work.xp, x.work, x.z.shape
    affine, stats = affine_map(x, W, gamma, beta, eps, name)
    members, _, count = x.flat.shape
    shape = (clouds, count, W.shape[1])
    u = work.array(f"{name} u", (clouds, points, shape[2]), W.dtype)
    h = work.array(f"{name} h", shape, W.dtype)
    rank = work.array(f"{name} rank", shape, np.min_scalar_type(members))
    positive = work.array(f"{name} positive", shape, bool)

    flat = x.flat.reshape(members, -1)  # (k, B M)

    def pool(clouds: slice) -> None:
        matrix_product(x.z[clouds, :-1].swapaxes(1, 2), affine.At.T, u[clouds])
        points = u.reshape(-1, shape[2])
        for some in portions(clouds, count, members * shape[2], work):
            best, won = rows_of(h)[some], rows_of(rank)[some]
            if kernels.on_device(xp):
                kernels.first_of_gathered(points, flat[:, some], best, won)
                continue
            rows = gathered(points, flat[:, some], work)
            first_maximum(rows, 0, best, won, work)
        best = h[clouds]
        centre = work.scratch("centre", best.shape, best.dtype)
        matrix_product(x.at[clouds], affine.At[:, :3].T, centre)
        best -= centre
        best += affine.c
        xp.greater(best, 0, out=positive[clouds])
        xp.maximum(best, work.zeros(shape[2], best.dtype), out=best)

    work.map(pool, x.blocks())
    return h, LevelCache(x, affine, positive, rank, name), stats


def rows_of(x: Any) -> Any:
    """Return x (B, M, O) as (B M, O), a view."""
    return x.reshape(-1, x.shape[2])


def portions(clouds: slice, count: int, elements: int, work: Workspace) -> list[slice]:
    """Return slices of the groups of some clouds, each with about 16 work.slice elements.

    So many because between short calls two threads wait for the interpreter's lock.
    """
    first, stop = clouds.start * count, clouds.stop * count
    step = max(16 * work.slice // elements, 1)
    return [slice(start, min(start + step, stop)) for start in range(first, stop, step)]


def gathered(points: Any, index: Any, work: Workspace) -> Any:
    """Return the rows of points (R, O) at index (k, G), (k, G, O), in a buffer of this thread."""
    rows = work.scratch("rows", (*index.shape, points.shape[1]), points.dtype)
    if work.xp is np:
        points.take(index, axis=0, out=rows, mode="clip")  # "raise" would copy
    elif kernels.on_device(work.xp):
        points.take(index, axis=0, out=rows)
    else:
        rows[...] = points[index]
    return rows


def first_maximum(rows: Any, axis: int, best: Any, rank: Any, work: Workspace) -> None:
    """best = the maximum of rows along axis; rank = the first place that attains it."""
    xp, places = work.xp, rows.shape[axis]
    if kernels.on_device(xp):
        kernels.first_maximum(rows, axis, best, rank)
        return
    rows.max(axis=axis, out=best)
    won = work.scratch("won", rows.shape, bool)
    xp.equal(rows, xp.expand_dims(best, axis), out=won)
    # The first place has the largest weight.  Passes over bytes: a masked copy costs several times
    # as much, and argmax along any axis but the last copies.
    weights = xp.arange(places, 0, -1).astype(rank.dtype)
    weights = weights.reshape(-1, *[1] * (rows.ndim - axis - 1))
    single = rank.itemsize == 1
    weighed = won.view(np.uint8) if single else work.scratch("weighed", rows.shape, rank.dtype)
    xp.multiply(won.view(np.uint8), weights, out=weighed)
    weighed.max(axis=axis, out=rank)
    xp.subtract(places, rank, out=rank)
    xp.minimum(rank, places - 1, out=rank)  # not a number has no place


def level_backward(dh: Any, cache: LevelCache) -> tuple[Any, Any, Any, Any]:
    """(F2) and (F3) with the gradients at the winners, then (F16).

    dh (B, M, O) -> df (B, N, C), dW (I, O), dgamma (O,), dbeta (O,)
    """
    x, affine, positive, rank, name = cache
    work = claim(x)
    g = work.array(f"{name} g", positive.shape, affine.At.dtype)
    S = work.array(f"{name} S", (len(g), x.z.shape[2], g.shape[2]), g.dtype)

    def winners(clouds: slice) -> None:
        work.xp.multiply(dh[clouds], positive[clouds], out=g[clouds])
        _scatter_winners(S[clouds], x, clouds, rank[clouds], g[clouds])

    return _through_points(x, affine, winners, S, g, name)


def _scatter_winners(S: Any, x: Level, clouds: slice, rank: Any, g: Any) -> None:
    """S_no = sum of g_mo over the groups m whose winner of channel o is point n.  (F14)

    S (C, N, O), rank and g (C, M, O), of some clouds of x.  The order of the terms is fixed.
    """
    work, members = x.work, x.members[clouds]
    xp, (points, width), (count, most) = work.xp, S.shape[1:], members.shape[1:]
    if kernels.on_device(xp):
        value = "y[centre] == j ? x[centre] : 0"
        x.sum_over_readers(clouds, value, g, rank, S.swapaxes(1, 2))
        return
    if xp is not np:
        S[...] = _sum_at_points(members, points, lambda j: g * (rank == j))
        return
    start, channel = (most * np.arange(count))[:, None], np.arange(width)
    at = work.scratch("at", rank.shape[1:], np.intp)
    for i in range(len(S)):
        np.add(start, rank[i], out=at)
        np.multiply(members[i].ravel().take(at), width, out=at, dtype=np.intp)  # of a point
        at += channel
        S[i] = np.bincount(at.ravel(), g[i].ravel(), points * width).reshape(points, width)


def _through_points(
    x: Level, affine: Affine, sums: Callable[[slice], None], S: Any, g: Any, name: str
) -> tuple[Any, Any, Any, Any]:
    """Return df and the gradients of the parameters from sums at the points.  (F15), (F16)

    sums(clouds) fills S (B, N, O), the gradients summed over the readers of each point, and g
    (B, M, O), summed over the members of each group.
    """
    work = x.work

    def block(clouds: slice) -> Any:
        sums(clouds)
        products = matrix_product(x.z[clouds], S[clouds]).sum(axis=0, dtype=np.float64)
        products[:3] -= matrix_product(x.at[clouds].swapaxes(1, 2), g[clouds]).sum(
            axis=0, dtype=np.float64
        )
        return products

    dW, dgamma, dbeta, K = of_parameters(block, x, affine, name)
    df = work.array(f"{name} df", (*S.shape[:2], len(K) - 3), S.dtype)

    def features(clouds: slice) -> None:
        here = df[clouds]
        matrix_product(x.v[clouds].swapaxes(1, 2), K[3:].T, here)
        through = work.scratch("through", here.shape, here.dtype)
        here += matrix_product(S[clouds], affine.At[:, 3:], through)

    work.map(features, x.blocks())
    return df, dW, dgamma, dbeta


class ExpandCache(NamedTuple):
    x: Level
    y: Activation
    affine: Affine
    name: str


def expand_forward(
    x: Level, W: Any, gamma: Any, beta: Any, eps: float, widths: Sequence[int], name: str
) -> tuple[Activation, ExpandCache, BatchStats]:
    """y_mj = relu(c - A_p^T p_c(m) + (A^T z)_g(m,j)): the first of several layers.  (F11)

    x a Level; widths of this layer and the next ones without the pooled one.  -> the Activation y,
    whose points are the rows, member by member (k M), ExpandCache and BatchStats.
    """
    xp, work = x.work.xp, x.work
    affine, stats = affine_map(x, W, gamma, beta, eps, name)
    members, clouds, count = x.flat.shape
    size = (clouds, sum(width + 1 for width in widths), members * count)
    tower = work.array(f"{name} tower", size, W.dtype, 1, tuple(widths))
    of_rows = f"{name} rows"
    if affine.shifted:
        _, shift, floor = affine.shifted
        floor = floor[:, None, None]
    else:
        shift = xp.maximum(beta, 0)
        floor = advancing(-shift, size[2], work, f"{name} floor")
    generation = work.next_generation(of_rows)
    y = Activation(tower, 0, shift, None, work, of_rows, generation, floor)
    local = x.members.transpose(0, 2, 1).reshape(clouds, -1)  # (B, k M)

    def write(clouds: slice) -> None:
        z = x.z[clouds, :-1]
        u = work.scratch("u", (len(z), len(affine.At), z.shape[2]), W.dtype)
        product(affine.At, z, u, work)
        centre = matrix_product(affine.At[:, :3], x.at[clouds].swapaxes(1, 2))  # (C, O, M)
        centre -= (affine.c - shift)[:, None]
        if affine.shifted:
            kernels.expand(u, local[clouds], centre, floor[:, 0, 0], y.of(clouds))
            return
        rows = columns_at(u, local[clouds], y.of(clouds))
        each = rows.reshape(len(z), -1, members, count)
        each -= centre[:, :, None]
        rows = divided(rows, floor)
        xp.maximum(rows, floor, out=rows)

    return filled(y, write, name), ExpandCache(x, y, affine, name), stats


def expand_backward(dy: Any, cache: ExpandCache) -> tuple[Any, Any, Any, Any]:
    """D = dY where y > 0, summed over the readers of each point and the members of each group.

    On a device D overwrites Z in the tower.  dy a gradient of the rows -> df (B, N, C), dW (I, O),
    dgamma (O,), dbeta (O,).  (F15), (F16)
    """
    x, y, affine, name = cache
    work, (members, clouds, count) = claim(x), x.flat.shape
    S = work.array(f"{name} S", (clouds, len(affine.c), x.z.shape[2]), affine.At.dtype)
    g = work.array(f"{name} g", (clouds, len(affine.c), count), S.dtype)

    def rows(clouds: slice) -> None:
        D = dy.of(clouds)
        if affine.shifted:
            D = kernels.masked(y.of(clouds), y.floor[:, 0], D)
        else:
            D *= y.positive(clouds)
        each = D.reshape(len(D), -1, members, count)
        each.sum(axis=2, out=g[clouds])
        _scatter_rows(S[clouds], x, clouds, D)

    work.map(rows, y.blocks())
    return _through_points(x, affine, lambda clouds: None, S.swapaxes(1, 2), g.swapaxes(1, 2), name)


def _scatter_rows(S: Any, x: Level, clouds: slice, D: Any) -> None:
    """S_on = sum of D_o,mj over all places that read point n.    S (C, O, N), D (C, O, k M)"""
    xp, points, members = x.work.xp, S.shape[2], x.members[clouds]
    by_rank = members.transpose(0, 2, 1)  # (C, k, M): the order of the rows
    if kernels.on_device(xp):
        x.sum_over_readers(clouds, "x[row]", D, D, S)
        return
    if xp is not np:
        by_member = D.reshape(*D.shape[:2], members.shape[2], -1)  # (C, O, k, M)
        S[...] = _sum_at_points(
            members, points, lambda j: by_member[:, :, j].swapaxes(1, 2)
        ).swapaxes(1, 2)
        return
    together = min(S.shape[1], 8)  # channels: a call for each would mostly wait for the lock
    for i, index in enumerate(by_rank.reshape(len(S), -1)):
        places = (points * np.arange(together)[:, None] + index).ravel()
        for first in range(0, S.shape[1], together):
            sums, rows = S[i, first : first + together], D[i, first : first + together]
            sums[...] = np.bincount(places[: rows.size], rows.ravel(), sums.size).reshape(
                sums.shape
            )


class GroupPoolCache(NamedTuple):
    x: Activation
    affine: Affine
    positive: Any  # (B, O, M)
    rank: Any  # (B, O, M)
    name: str


def group_pool_forward(
    x: Activation, W: Any, gamma: Any, beta: Any, eps: float, members: int, name: str
) -> tuple[Any, GroupPoolCache, BatchStats]:
    """(F5) with groups in place of clouds: the last layer of a level and the maximum of each group.

    x an Activation whose points are rows, member by member.  -> h (B, M, O), GroupPoolCache, stats
    """
    xp, work, (clouds, _, points) = x.work.xp, x.work, x.tower.shape
    affine, stats = affine_map(x, W, gamma, beta, eps, name)
    shape = (clouds, W.shape[1], points // members)
    h = work.array(f"{name} h", shape, W.dtype)
    rank = work.array(f"{name} rank", shape, np.min_scalar_type(members))
    positive = work.array(f"{name} positive", shape, bool)

    def pool(clouds: slice) -> None:
        z = x.of(clouds)
        for some in slices_of(shape[1], points, work):
            P = work.scratch("P", (len(z), some.stop - some.start, points), W.dtype)
            each = product(affine.At[some], z, P, work).reshape(*P.shape[:2], members, -1)
            best = h[clouds, some]
            first_maximum(each, 2, best, rank[clouds, some], work)
            best += affine.c[some, None]
            xp.greater(best, 0, out=positive[clouds, some])
            xp.maximum(best, work.zeros(best.shape[2], best.dtype), out=best)

    work.map(pool, x.blocks())
    return h.swapaxes(1, 2), GroupPoolCache(x, affine, positive, rank, name), stats


class GroupGradient(NamedTuple):
    """dX of a pooled level: K [Z, 1] + A D, with D made from the winners of each group."""

    x: Activation
    K: Any  # (I, I + 1)
    At: Any  # (O, I)
    g: Any  # (B, O, M)
    rank: Any  # (B, O, M)

    def of(self, clouds: slice) -> Any:
        """Return dX (C, I, k M) of some clouds, in a buffer private to this thread."""
        work = self.x.work
        stack = self.x.with_ones(clouds)
        dx = work.scratch("dx", (len(stack), len(self.K), stack.shape[2]), self.K.dtype)
        through = work.scratch("through", dx.shape, dx.dtype)
        product(self.K, stack, dx, work)
        dx += product(self.At.T, self.winners(clouds), through, work)
        return dx

    def rows(self, clouds: slice) -> Any:
        """Return the row that won each group and channel, (C, O, M) integers of k M."""
        groups = self.g.shape[2]
        return self.rank[clouds].astype(np.intp) * groups + self.x.work.xp.arange(groups)

    def winners(self, clouds: slice) -> Any:
        """Return D (C, O, k M): the gradient of each group at its winner, 0 elsewhere."""
        work, g = self.x.work, self.g[clouds]
        D = work.scratch("D", (*g.shape[:2], self.x.tower.shape[2]), g.dtype)
        D[...] = 0
        begin = D.shape[2] * work.xp.arange(g[..., 0].size).reshape(*g.shape[:2], 1)
        D.reshape(-1)[begin + self.rows(clouds)] = g
        return D


def group_pool_backward(dh: Any, cache: GroupPoolCache) -> tuple[GroupGradient, Any, Any, Any]:
    """(F2) and (F3) with D the gradients at the winners.

    dh (B, M, O) -> GroupGradient dx, dW (I, O), dgamma (O,), dbeta (O,)
    """
    x, affine, positive, rank, name = cache
    work = claim(x)
    g = work.array(f"{name} g", positive.shape, affine.At.dtype)
    work.xp.multiply(dh.swapaxes(1, 2), positive, out=g)
    winners = GroupGradient(x, None, affine.At, g, rank)

    def block(clouds: slice) -> Any:
        z, rows, here = x.with_ones(clouds), winners.rows(clouds), g[clouds]
        if kernels.on_device(work.xp):
            return kernels.at_group_winners(z, rows, here)
        products = work.xp.empty((z.shape[1], here.shape[1]), z.dtype)
        step = max(2 * work.slice // (z.shape[1] * here[:, 0].size), 1)
        for first in range(0, here.shape[1], step):
            some = slice(first, first + step)
            index = rows[:, some].reshape(len(z), -1)
            at_winners = work.scratch("at winners", (*z.shape[:2], index.shape[1]), z.dtype)
            columns_at(z, index, at_winners)
            at_winners = at_winners.reshape(*z.shape[:2], *rows[:, some].shape[1:])
            products[:, some] = work.xp.einsum("cirm,crm->ir", at_winners, here[:, some])
        return products

    dW, dgamma, dbeta, K = of_parameters(block, x, affine, name)
    return winners._replace(K=K), dW, dgamma, dbeta


def to_offsets(
    positions: Any, centres: Any, members: Any, widths: Sequence[int], work: Workspace, name: str
) -> Activation:
    """Return the Activation of the offsets (M18) of a level without features, member by member."""
    clouds, count, size = members.shape
    o = work.array(f"{name} offsets", (clouds, 3, size * count), positions.dtype)

    def write(clouds: slice) -> None:
        axes = work.xp.ascontiguousarray(positions[clouds].swapaxes(1, 2))
        offsets_by_member(axes, centres[clouds], members[clouds], o[clouds])

    work.map(write, blocks_of(clouds, OF_ONE_LAYER * o[0].size, work))
    return to_tower(o.swapaxes(1, 2), widths, work, name)


def offsets_by_member(axes: Any, centres: Any, members: Any, out: Any) -> None:
    """out (C, 3, k M) = (M18), member by member.    axes (C, 3, N), centres (C, M)"""
    columns_at(axes, members.transpose(0, 2, 1).reshape(len(members), -1), out)
    at = module_of(axes).take_along_axis(axes, centres[:, None].astype(np.intp), axis=2)
    out.reshape(*axes.shape[:2], members.shape[2], -1)[...] -= at[:, :, None]


def columns_at(u: Any, index: Any, out: Any) -> Any:
    """out (C, O, R) = u (C, O, N) at columns index (C, R).  Returns out."""
    xp = module_of(u)
    if xp is np:
        for one, columns, result in zip(u, index, out, strict=True):
            one.take(columns.astype(np.intp), axis=1, out=result, mode="clip")
    elif kernels.on_device(xp):
        kernels.columns(u, index, out)
    else:
        out[...] = xp.take_along_axis(u, index[:, None].astype(np.int64), axis=2)
    return out
