"""The fast engine: the shared layers and the pool of PointNet by the moments of their inputs.

Batch statistics of a linear layer are functions of its input's first two moments, and the layer
before the pool matters only at its maxima.  So a layer is one product and a ReLU, the pooled layer
is never stored, and a backward is one product again.  Exact, not approximate: docs/fast_engine.md
derives every line from (M1) to (M13), and the tests compare both engines.

Letters as in ops.py; M = B N rows.  An activation y is kept shifted, Z = y - s, channels first,
with a row of ones below it, in one array of all layers, the tower:

    tower[b] = [Z_0, 1, Z_1, 1, ..., Z_l, 1]    (rows, N) for cloud b        Z~ = [Z, 1]

so that bias, mean and constant row are rows of the products.  To save memory, a backward writes the
gradient D of a layer over its Z, and all large arrays are buffers of the Workspace: call backward
once for each forward, and use its results before the next forward.  A forward may have several
towers, each with a name of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import DataError, check_shape
from minipc.nn import kernels
from minipc.nn.fast.products import inner_product, mean_of, product, second_moments
from minipc.nn.fast.winners import add_at_winners, sum_at_winners
from minipc.nn.fast.workspace import Workspace
from minipc.nn.ops import BatchStats

SHARE = 16  # fewest channels of one piece of work
# A tower has the work of several layers.  Where there is one, so many times its rows fill a block.
OF_ONE_LAYER = 8


class Activation(NamedTuple):
    """The output of a layer: the input of the next one."""

    tower: Any  # (B, rows, N)
    first: int  # row of the tower at which Z begins
    shift: Any  # (I,), s
    moments: Any  # (I + 1, I + 1) float64, mean over all rows of Z~ Z~^T; on a device their sum
    work: Workspace
    name: str  # of the tower
    generation: int  # of the tower: which forward this is
    floor: Any = None  # (I, 1, part), -s as advancing() returns it, of a layer

    @property
    def rows(self) -> int:
        """M = B N."""
        return self.tower.shape[0] * self.tower.shape[2]

    @property
    def end(self) -> int:
        """The row of the tower after Z~, where the next layer begins."""
        return self.first + len(self.shift) + 1

    def of(self, clouds: slice) -> Any:
        """Return Z (B, I, N) of some clouds, a view."""
        return self.tower[clouds, self.first : self.end - 1]

    def positive(self, clouds: slice) -> Any:
        """Return where y > 0 (C, I, N) in some clouds, in a buffer private to this thread."""
        z = self.of(clouds)
        positive = self.work.scratch("positive", z.shape, bool)
        over = divided(positive, self.floor)
        self.work.xp.greater(divided(z, self.floor), self.floor, out=over)
        return positive

    def with_ones(self, clouds: slice, above: int = 0) -> Any:
        """Return Z~ = [Z, 1] and `above` rows of the layer above, (B, I + 1 + above, N), a view."""
        return self.tower[clouds, self.first : self.end + above]

    def blocks(self) -> list[slice]:
        """Return the slices of clouds computed together; they depend only on the shape."""
        clouds, rows, points = self.tower.shape
        return blocks_of(clouds, rows * points, self.work)


def blocks_of(clouds: int, elements: int, work: Workspace) -> list[slice]:
    """Return slices of 2^k clouds, the most with at most work.block elements each."""
    fit = max(work.block // elements, 1)
    each = 1 << (fit.bit_length() - 1)
    return [slice(first, min(first + each, clouds)) for first in range(0, clouds, each)]


def sum_over_blocks(
    function: Callable[[slice], Any], x: Any, shape: tuple[int, ...], name: str
) -> Any:
    """Return the sum of function(clouds) over x.blocks(), in their order, in float64."""
    blocks, work = x.blocks(), x.work
    if kernels.on_device(work.xp) and len(blocks) == 1:
        return function(blocks[0])
    parts = work.array(f"{name} parts", (len(blocks), *shape), np.float64)

    def keep(item: tuple[int, slice]) -> None:
        number, clouds = item
        parts[number] = function(clouds)

    work.map(keep, list(enumerate(blocks)))
    total = work.array(f"{name} total", shape, np.float64)
    total[...] = 0
    for part in parts:
        total += part
    return total


def to_tower(
    x: Any,
    widths: Sequence[int],
    work: Workspace,
    name: str = "points",
    exact: bool = True,
    kind: type[Activation] = Activation,
) -> Activation:
    """Return the Activation of x (B, N, I), shifted by its mean, in a tower with room for layers.

    widths: of the layers that follow, without the pooled one.  name: of the tower; a new
    forward with the same name makes every earlier tape of it unreadable.  exact: whether
    the moments are products in float64: this costs nothing for coordinates, three channels that no
    batch norm has normalised.  kind: what is returned.
    """
    clouds, count, channels = x.shape
    rows = channels + 1 + sum(width + 1 for width in widths)
    tower = work.array(f"{name} tower", (clouds, rows, count), x.dtype, 1, tuple(widths))
    z = tower[:, :channels]  # the row below it keeps its ones
    z[...] = x.swapaxes(1, 2)
    shift = mean_of(z)  # of the copy: the bits do not depend on the memory order of x
    entry = kind(tower, 0, shift, None, work, name, work.next_generation(name))

    def write(clouds: slice) -> None:
        z = entry.of(clouds)
        z -= shift[:, None]

    return filled(entry, write, name, exact)


def filled(
    y: Activation, write: Callable[[slice], None], name: str, exact: bool = False
) -> Activation:
    """Return the Activation y with its moments; write(clouds) writes y block by block.

    exact: products in float64 too, not only sums over clouds.  name: of the buffers.
    """
    rows = len(y.shift) + 1

    def block(clouds: slice) -> Any:
        write(clouds)
        z = y.with_ones(clouds)
        if exact:
            narrow, z = z, y.work.scratch("exact", z.shape, np.float64)
            z[...] = narrow
        return second_moments(z, y.work)

    moments = sum_over_blocks(block, y, (rows, rows), f"{name} moments")
    if not kernels.on_device(y.work.xp):
        moments /= y.rows
    return y._replace(moments=moments)


class Affine(NamedTuple):
    """Batch norm of W^T z as one affine map of each channel, and what its backward reads."""

    At: Any  # (O, I)
    c: Any  # (O,): y = relu(A^T z + c)
    m: Any  # (I,), mean of z
    CW: Any  # (I, O)
    W: Any  # (I, O)
    gamma: Any  # (O,)
    inv_std: Any  # (O,)
    shifted: tuple = ()  # on a device: [A^T | c - s'] (O, I + 1), s', -s'


def affine_map(
    x: Any, W: Any, gamma: Any, beta: Any, eps: float, name: str
) -> tuple[Affine, BatchStats]:
    """sigma^2 = w^T C w + eps, A = W gamma / sigma, c = beta - A^T m.  (F1)"""
    check_shape("W", W, (len(x.shift), None))
    check_shape("gamma", gamma, W.shape[1:])
    check_shape("beta", beta, W.shape[1:])
    xp, dtype, work = x.work.xp, W.dtype, x.work
    if kernels.on_device(xp):
        (c, m, CW, inv_std), shifted, stats = kernels.affine(x, W, gamma, beta, eps, name)
        affine = Affine(shifted[0][:, :-1], c, m, CW, W, gamma, inv_std, shifted)
        return affine, BatchStats(*stats, x.rows)
    m = x.moments[-1, :-1]
    C = x.moments[:-1, :-1] - m[:, None] * m
    exact = work.array(f"{name} W", W.shape, np.float64)
    exact[...] = W
    CW = xp.matmul(C, exact, out=work.array(f"{name} CW in float64", W.shape, np.float64))
    narrow = work.array(f"{name} CW", W.shape, dtype)
    narrow[...] = CW
    var = xp.maximum(xp.multiply(exact, CW, out=CW).sum(axis=0), 0)  # rounding can make it negative
    inv_std = 1 / xp.sqrt(var + eps)
    scale = gamma * inv_std
    c = beta - scale * (m @ exact)
    mean = (m + x.shift) @ exact
    At = work.array(f"{name} A", W.shape[::-1], dtype)
    xp.multiply(W.T, scale.astype(dtype)[:, None], out=At)
    affine = Affine(At, c.astype(dtype), m.astype(dtype), narrow, W, gamma, inv_std.astype(dtype))
    return affine, BatchStats(mean.astype(dtype), var.astype(dtype), x.rows)


class SharedCache(NamedTuple):
    x: Activation
    y: Activation
    affine: Affine
    name: str


def shared_forward(
    x: Activation, W: Any, gamma: Any, beta: Any, eps: float, name: str
) -> tuple[Activation, SharedCache, BatchStats]:
    """z' = max(A^T z + c - s, -s): y = relu(A^T z + c), shifted by s = relu(beta).  (F1), (F8)

    x an Activation of I channels, W (I, O), gamma and beta (O,); name keeps the buffers of layers
    apart.  Returns the Activation y with its moments, SharedCache and BatchStats.
    """
    xp, work = x.work.xp, x.work
    affine, stats = affine_map(x, W, gamma, beta, eps, name)
    if affine.shifted:
        coefficients, shift, floor = affine.shifted
        floor = floor[:, None, None]
    else:
        shift = xp.maximum(beta, 0)
        coefficients = xp.concatenate([affine.At, (affine.c - shift)[:, None]], axis=1)
        floor = advancing(-shift, x.tower.shape[2], work, f"{name} floor")
    y = x._replace(first=x.end, shift=shift, moments=None, floor=floor)

    def write(clouds: slice) -> None:
        z = product(coefficients, x.with_ones(clouds), y.of(clouds), work)
        z = divided(z, floor)
        xp.maximum(z, floor, out=z)

    return filled(y, write, name), SharedCache(x, y, affine, name), stats


def advancing(column: Any, points: int, work: Workspace, name: str) -> Any:
    """Return column (O,) as (O, 1, part), repeated; part divides points.

    NumPy compares two arrays quickly only where both advance in memory: with a constant along the
    points it takes three to five times as long.
    """
    part = points
    while part > 1024 and part % 2 == 0:
        part //= 2
    repeated = work.array(name, (len(column), 1, part), column.dtype)
    repeated[...] = column[:, None, None]
    return repeated


def divided(z: Any, repeated: Any) -> Any:
    """Return a view of z (C, O, N) to which advancing() fits: (C, O, N / part, part)."""
    return z.reshape(*z.shape[:2], -1, repeated.shape[2])


class Gradient(NamedTuple):
    """dX of a layer, not multiplied out: coefficients [Z, 1, D].  (F4)

    For the pool it is coefficients [Z, 1] + A S^T.  (F7)
    """

    x: Activation
    coefficients: Any  # (I, I + 1 + O), or (I, I + 1) with winners
    At: Any = None  # (O, I), with the next two for the pool alone
    winners: Any = None  # (B, O)
    g: Any = None  # (B, O)

    def of(self, clouds: slice) -> Any:
        """Return dX (B, I, N) of some clouds, in a buffer private to this thread."""
        x, coefficients = self.x, self.coefficients
        inputs, columns = coefficients.shape
        stack = x.with_ones(clouds, above=columns - inputs - 1)
        dx = x.work.scratch("dx", (len(stack), inputs, stack.shape[2]), coefficients.dtype)
        product(coefficients, stack, dx, x.work)
        if self.winners is not None:
            add_at_winners(dx, self.winners[clouds], self.g[clouds], self.At, x.work)
        return dx


def gradients(
    products: Any, x: Activation, affine: Affine, name: str, with_A: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Return dW, dgamma, dbeta and [-Q, k] of (F4) from products, Z~ D^T (I + 1, O).

    with_A: [-Q, k, A].  It overwrites products.
    dbeta = sum D, R = Z D^T - m dbeta^T, dgamma = w . R / sigma  (F2);
    dW = (R - C W dgamma / sigma) gamma / sigma  (F3).
    """
    xp = x.work.xp
    if kernels.on_device(xp):
        *of_layer, K = kernels.gradients(products, x.rows, affine, x.work, name)
        return *of_layer, K if with_A else K[:, : len(products)]  # type: ignore[return-value]
    At, _, m, CW, W, gamma, inv_std, _ = affine
    R, dbeta = products[:-1], products[-1]
    spare = xp.multiply(m[:, None], dbeta, out=x.work.array(f"{name} spare", W.shape, W.dtype))
    R -= spare
    dgamma = xp.multiply(W, R, out=spare).sum(axis=0) * inv_std
    xp.multiply(W, gamma * dgamma * inv_std**2 / x.rows, out=spare)
    Q = spare @ W.T
    k = Q @ m - (dbeta / x.rows) @ At
    CW *= dgamma * inv_std
    R -= CW
    R *= gamma * inv_std
    columns = [-Q, k[:, None], At.T] if with_A else [-Q, k[:, None]]
    return R, dgamma, dbeta, xp.concatenate(columns, axis=1)


def of_parameters(
    block: Callable[[slice], Any], x: Any, affine: Affine, name: str, with_A: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Return what gradients() does.

    block(clouds) returns their part of X~^T D, (I + 1, O).
    """
    inputs, width = affine.W.shape
    total = sum_over_blocks(block, x, (inputs + 1, width), f"{name} products")
    if kernels.on_device(x.work.xp):
        return gradients(total, x, affine, name, with_A)
    products = x.work.array(f"{name} products", total.shape, affine.W.dtype)
    products[...] = total
    return gradients(products, x, affine, name, with_A)


def claim(x: Any) -> Workspace:
    """Return the Workspace of a tower or level x, whose backward begins and overwrites it.

    Raises DataError if another backward or forward did so before.
    """
    if x.work.generation(x.name) != x.generation:
        raise DataError(
            "fast engine: this tape was read already, or a later forward wrote over it; run "
            "forward again"
        )
    x.work.next_generation(x.name)
    return x.work


def shared_backward(dy: Gradient, cache: SharedCache) -> tuple[Gradient, Any, Any, Any]:
    """D = dY where y > 0, then (F2), (F3) and (F4).

    dy a Gradient -> Gradient dx, dW, dgamma, dbeta.  D overwrites Z in the tower.
    """
    x, y, affine, name = cache
    xp = x.work.xp

    def layer(clouds: slice) -> Any:
        z = y.of(clouds)
        if kernels.on_device(xp):
            kernels.masked(z, y.floor[:, 0], dy.of(clouds))
        else:
            xp.multiply(dy.of(clouds), y.positive(clouds), out=z)
        return inner_product(x.with_ones(clouds), z, x.work)

    dW, dgamma, dbeta, coefficients = of_parameters(layer, x, affine, name, True)
    return Gradient(x, coefficients), dW, dgamma, dbeta


class PooledCache(NamedTuple):
    x: Activation
    affine: Affine
    winners: Any  # (B, O) integer, the point that won
    positive: Any  # (B, O) bool
    name: str


def pooled_forward(
    x: Activation, W: Any, gamma: Any, beta: Any, eps: float, name: str
) -> tuple[Any, PooledCache, BatchStats]:
    """h_o = relu(c_o + max_n (A^T z)_on), n* the point that won.  (F5)

    The last shared layer and the pool: batch norm is an affine map of each channel, the sign of
    gamma already in A, and ReLU is increasing, so the maximum may be taken on the product, a slice
    at a time.  Returns h (B, O), PooledCache and BatchStats.
    """
    xp, work = x.work.xp, x.work
    affine, stats = affine_map(x, W, gamma, beta, eps, name)
    (clouds, _, points), width = x.tower.shape, W.shape[1]
    winners = work.array(f"{name} winners", (clouds, width), np.intp)
    largest = work.array(f"{name} largest", (clouds, width), W.dtype)

    if kernels.on_device(xp):
        h, winners, positive = kernels.pool(affine.At, affine.c, x.of(slice(None)), work)
        return h, PooledCache(x, affine, winners, positive, name), stats

    def pool(clouds: slice) -> None:
        z = x.of(clouds)
        for some in slices_of(width, points, work):
            P = work.scratch("P", (len(z), some.stop - some.start, points), W.dtype)
            # the search over contiguous points is as fast as memory
            won = product(affine.At[some], z, P, work).argmax(axis=2)
            winners[clouds, some] = won
            places = won.ravel() + points * xp.arange(won.size)  # of the maxima in P
            largest[clouds, some] = P.reshape(-1)[places].reshape(won.shape)

    work.map(pool, x.blocks())
    h = largest + affine.c
    return xp.maximum(h, 0), PooledCache(x, affine, winners, h > 0, name), stats


def slices_of(width: int, points: int, work: Workspace) -> list[slice]:
    """Return slices of channels that fit work.slice for one cloud, whatever the batch size."""
    step = max(work.slice // points // SHARE, 1) * SHARE
    return [slice(first, min(first + step, width)) for first in range(0, width, step)]


def pooled_backward(dh: Any, cache: PooledCache) -> tuple[Gradient, Any, Any, Any]:
    """(F2) and (F3) with D = S, the sparse matrix of the gradients at the winners.  (F6), (F7)

    dh (B, O) -> Gradient dx, dW (I, O), dgamma (O,), dbeta (O,)
    """
    x, affine, winners, positive, name = cache
    work, g = claim(x), dh * positive
    inputs, width = affine.W.shape
    if kernels.on_device(work.xp):
        products = kernels.at_winners(x.of(slice(None)), winners, g)
    else:
        products = work.array(f"{name} products", (inputs + 1, width), g.dtype)
        products[-1] = g.sum(axis=0)
        sum_at_winners(x.of(slice(None)), winners, g, products[:-1], work)
    dW, dgamma, dbeta, K = gradients(products, x, affine, name)
    return Gradient(x, K, affine.At, winners, g), dW, dgamma, dbeta


def input_gradient(gradient: Gradient) -> Any:
    """Return the gradient (B, N, I) of the input of to_tower(); training does not use it."""
    x = gradient.x
    return x.work.xp.concatenate(
        [gradient.of(clouds).swapaxes(1, 2).copy() for clouds in x.blocks()]
    )


def eval_maps(layers: Iterable[Sequence], eps: float, channels: int = 3) -> list[tuple[Any, Any]]:
    """Return [(A^T (O, I), c (O,)), ...] of shared layers with tracked statistics.  (F9)

    layers: (W, gamma, beta, mean, var) each.  channels: of the input of the first.
    A = W gamma / sigma and c = beta - mean gamma / sigma.
    """
    maps: list[tuple[Any, Any]] = []
    for W, gamma, beta, mean, var in layers:
        xp = module_of(W)
        check_shape("W", W, (len(maps[-1][1]) if maps else channels, None))
        scale = gamma / xp.sqrt(var + eps)
        maps.append((xp.ascontiguousarray((W * scale).T), beta - mean * scale))
    return maps


def shared_eval(points: Any, maps: Sequence[tuple[Any, Any]], work: Workspace) -> Any:
    """Return the pooled features h (B, O) of points (B, N, I) under the maps of eval_maps().

    A block of clouds goes through all layers before the next block starts, and only its maxima are
    kept.  Each product belongs to one cloud, and its shape does not depend on the other clouds, so
    neither do its bits.
    """
    xp, (clouds, count, channels), dtype = work.xp, points.shape, points.dtype
    if kernels.on_device(xp):
        return kernels.shared_eval(points, maps, work)
    *narrow, (At, c) = maps
    h = xp.empty((clouds, len(At)), dtype)
    widest = max([channels, *(len(A) for A, _ in narrow)])

    for block in blocks_of(clouds, 2 * (widest + 1) * count, work):
        z = xp.ascontiguousarray(points[block].swapaxes(1, 2))
        for number, (A, b) in enumerate(narrow):
            z = product(A, z, work.scratch(f"z {number}", (len(z), len(A), count), dtype), work)
            z += b[:, None]
            xp.maximum(z, work.zeros(count, dtype), out=z)
        for some in slices_of(len(At), count, work):
            P = work.scratch("P", (len(z), some.stop - some.start, count), dtype)
            h[block, some] = product(At[some], z, P, work).max(axis=2)
    h += c
    return xp.maximum(h, 0, out=h)
