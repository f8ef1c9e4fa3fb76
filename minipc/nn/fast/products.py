"""The products of the fast engine: two forms, chosen by the name of the BLAS kernel.

OpenBLAS copies both factors of a product into an order of its own before it multiplies.  A layer of
PointNet is a short, wide product, (O, I) times (I, N).  Most kernels are fastest on it whole.
Those of SMALL_MATRIX_KERNELS can multiply small matrices where they lie: four rows at a time,
such a layer needs no copies and runs at the speed of a large product (docs/performance.md).  The
name decides, not a timing: the two forms round differently, and the choice must be the same in
every run.
"""

from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.nn import kernels
from minipc.nn.fast.workspace import Workspace

SMALL = 10**6  # multiply-adds up to which these kernels multiply without copying


def product(a: Any, z: Any, out: Any, work: Workspace) -> Any:
    """out = a z for each cloud.

    a (rows, inner), z (clouds, inner, points), out (clouds, rows, points): views whose points are
    contiguous.
    """
    (rows, inner), (clouds, _, points) = a.shape, z.shape
    group, parts = _divided(rows, inner, points, work)
    if kernels.on_device(work.xp):
        return kernels.multiply(a, z, out)
    if group == rows and parts == 1:
        return work.xp.matmul(a, z, out=out)
    work.xp.matmul(
        a.reshape(-1, group, inner),
        z.reshape(clouds, inner, parts, -1).swapaxes(1, 2)[:, :, None],
        out=out.reshape(clouds, -1, group, parts, points // parts).transpose(0, 3, 1, 2, 4),
    )
    return out


def matrix_product(a: Any, b: Any, out: Any = None) -> Any:
    """Return a b (R, N), in out if there is one.    a (R, I), b (I, N); also for each cloud"""
    xp = module_of(a, b)
    if kernels.on_device(xp):
        shape = (*(a.shape[:-2] or b.shape[:-2]), a.shape[-2], b.shape[-1])
        return kernels.multiply(a, b, xp.empty(shape, a.dtype) if out is None else out)
    return xp.matmul(a, b, out=out)


class HeadCache(NamedTuple):
    x: Any  # (B, I)
    W: Any  # (I, O)
    dW: Any  # (I, O), where the gradient goes


def linear_forward(x: Any, W: Any, work: Workspace, name: str) -> tuple[Any, HeadCache]:
    """(M1) for a layer of the head, whose gradient has a buffer.

    x (B, I), W (I, O) -> y (B, O)
    """
    dW = kernels.gradient_of(work, f"{name}.W", W.shape, W.dtype)
    return matrix_product(x, W), HeadCache(x, W, dW)


def linear_backward(dy: Any, cache: HeadCache) -> tuple[Any, Any]:
    """(M2)    -> dx (B, I), dW (I, O)"""
    return matrix_product(dy, cache.W.T), matrix_product(cache.x.T, dy, cache.dW)


def inner_product(z: Any, d: Any, work: Workspace) -> Any:
    """Return the sum over clouds and points of z d^T, over clouds in float64.

    z (clouds, inner, points), d (clouds, rows, points) -> (inner, rows)
    """
    (clouds, inner, points), rows = z.shape, d.shape[1]
    if kernels.on_device(work.xp):
        return kernels.outer(z, d, work)
    group, parts = _divided(rows, inner, points, work)
    if group == rows and parts == 1:
        return _outer(z, d, work.xp).sum(axis=0, dtype=np.float64)
    pieces = work.xp.matmul(
        z.reshape(clouds, inner, parts, -1).swapaxes(1, 2)[:, :, None],
        d.reshape(clouds, -1, group, parts, points // parts).transpose(0, 3, 1, 4, 2),
    )  # (clouds, parts, rows / group, inner, group)
    return pieces.sum(axis=(0, 1), dtype=np.float64).swapaxes(0, 1).reshape(inner, rows)


def second_moments(z: Any, work: Workspace) -> Any:
    """Return the sum over clouds and points of z z^T, in float64.

    z (clouds, inner, points) -> (inner, inner).  NumPy sees that both factors are one array
    and asks BLAS for half the products (syrk).
    """
    if kernels.on_device(work.xp):
        return kernels.outer(z, z, work)
    return _outer(z, z, work.xp).sum(axis=0, dtype=np.float64)


def mean_of(z: Any) -> Any:
    """Return the mean of z (clouds, channels, points) over clouds and points, (channels,)."""
    if kernels.on_device(module_of(z)):
        return kernels.mean(z)
    return z.mean(axis=(0, 2))


def _outer(z: Any, d: Any, xp: Any) -> Any:
    """Return z d^T of each cloud.

    The matmul of NumPy 2.4 keeps the interpreter's lock where its result has at most 500 numbers,
    however long the sums; dot, the same call to BLAS, never does.
    """
    if xp is np and len(z) * z.shape[1] * d.shape[1] <= 500:
        return np.stack([np.dot(one, other.T) for one, other in zip(z, d, strict=True)])
    return xp.matmul(z, d.swapaxes(1, 2))


def _divided(rows: int, inner: int, points: int, work: Workspace) -> tuple[int, int]:
    """Return the rows of each small product and the parts of the points, or all rows and 1."""
    group, parts = work.group, 1
    if group is None or rows % group:
        return rows, 1
    while group * inner * (points // parts) > SMALL:
        parts *= 2
        if points % parts:
            return rows, 1
    return group, parts
