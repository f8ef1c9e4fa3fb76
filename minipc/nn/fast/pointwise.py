"""Point-wise layers between levels, as arrays: (F1) to (F4) for one layer, residual or not.

Letters as in fused.py.
"""

from typing import Any, NamedTuple

from minipc.nn.fast.fused import (
    OF_ONE_LAYER,
    Activation,
    Affine,
    affine_map,
    blocks_of,
    claim,
    of_parameters,
    to_tower,
)
from minipc.nn.fast.products import inner_product, product
from minipc.nn.fast.workspace import Workspace
from minipc.nn.ops import BatchStats


class Points(Activation):
    """The input of one point-wise layer."""

    def blocks(self) -> list[slice]:
        """As Activation.blocks, for one layer."""
        clouds, rows, points = self.tower.shape
        return blocks_of(clouds, OF_ONE_LAYER * rows * points, self.work)


class PointwiseCache(NamedTuple):
    x: Activation
    affine: Affine
    positive: Any  # (B, O, N)
    residual: bool
    inner: bool
    name: str


def pointwise_forward(
    x: Any,
    W: Any,
    gamma: Any,
    beta: Any,
    eps: float,
    work: Workspace,
    name: str,
    residual: bool = False,
    inner: bool = True,
) -> tuple[Any, PointwiseCache, BatchStats]:
    """(F1) of every point, as an array: y = relu(A^T z + c), plus x where residual.

    x (B, N, I) -> y (B, N, O), PointwiseCache and BatchStats.  inner: backward needs dx.
    """
    xp = work.xp
    entry = to_tower(x, (), work, name, exact=not inner, kind=Points)
    affine, stats = affine_map(entry, W, gamma, beta, eps, name)
    clouds, points, _ = x.shape
    shape = (clouds, W.shape[1], points)
    y = work.array(f"{name} y", shape, W.dtype)
    positive = work.array(f"{name} positive", shape, bool)
    coefficients = xp.concatenate([affine.At, affine.c[:, None]], axis=1)

    def write(clouds: slice) -> None:
        here = product(coefficients, entry.with_ones(clouds), y[clouds], work)
        xp.greater(here, 0, out=positive[clouds])
        xp.maximum(here, work.zeros(points, here.dtype), out=here)
        if residual:
            here += x[clouds].swapaxes(1, 2)

    work.map(write, entry.blocks())
    cache = PointwiseCache(entry, affine, positive, residual, inner, name)
    return y.swapaxes(1, 2), cache, stats


def pointwise_backward(dy: Any, cache: PointwiseCache) -> tuple[Any, Any, Any, Any]:
    """D = dY where relu is positive, then (F2), (F3) and (F4), plus dY where residual.

    dy (B, N, O) -> dx (B, N, I), dW (I, O), dgamma (O,), dbeta (O,)
    """
    x, affine, positive, residual, inner, name = cache
    work, inputs, xp = claim(x), len(affine.W), x.work.xp
    D = work.array(f"{name} D", positive.shape, affine.At.dtype)

    def block(clouds: slice) -> Any:
        xp.multiply(dy[clouds].swapaxes(1, 2), positive[clouds], out=D[clouds])
        return inner_product(x.with_ones(clouds), D[clouds], work)

    dW, dgamma, dbeta, K = of_parameters(block, x, affine, name)
    if not inner:
        return None, dW, dgamma, dbeta
    dx = work.array(f"{name} dx", (len(D), inputs, D.shape[2]), D.dtype)

    def write(clouds: slice) -> None:
        here = product(K, x.with_ones(clouds), dx[clouds], work)
        through = work.scratch("through", here.shape, here.dtype)
        here += product(affine.At.T, D[clouds], through, work)
        if residual:
            here += dy[clouds].swapaxes(1, 2)

    work.map(write, x.blocks())
    return dx.swapaxes(1, 2), dW, dgamma, dbeta


def pointwise_eval(x: Any, maps: list[tuple[Any, Any]], residual: bool, work: Workspace) -> Any:
    """Return y (B, N, O) of x (B, N, I) under the one map of eval_maps(), plus x where residual."""
    xp, ((At, c),) = work.xp, maps
    z = xp.ascontiguousarray(x.swapaxes(1, 2))
    y = product(At, z, xp.empty((len(z), len(At), z.shape[2]), z.dtype), work)
    y += c[:, None]
    xp.maximum(y, work.zeros(y.shape[2], y.dtype), out=y)
    return (y + z if residual else y).swapaxes(1, 2)
