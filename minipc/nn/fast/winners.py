"""The two sparse products with S, in the pool's backward.

S[b, n, o] = g[b, o] where point n of cloud b won channel o.  All other entries are 0, so
the host never builds the dense S, nor does a device with kernels of ours (kernels.py).  Many
threads that add to few rows need atomic additions, and their order changes from run to run.
"""

from math import prod
from typing import Any

import numpy as np

from minipc.nn import kernels
from minipc.nn.fast.workspace import Workspace

ROWS = 32  # rows of R that one thread gathers at once


def sum_at_winners(z: Any, winners: Any, g: Any, out: Any, work: Workspace) -> None:
    """out = Z S, summed over clouds.  (F6)    z (B, I, N), winners and g (B, O) -> out (I, O)"""
    xp = work.xp
    if xp is not np:
        out[...] = (xp.take_along_axis(z, winners[:, None, :], axis=2) * g[:, None, :]).sum(axis=0)
        return

    def gather(first: int) -> None:
        some = slice(first, first + ROWS)
        R = out[some]
        R[...] = 0
        for b in range(len(g)):  # clouds in a fixed order, in every thread
            at_winners = z[b, some].take(winners[b], axis=1)
            at_winners *= g[b]
            R += at_winners

    work.map(gather, range(0, len(out), ROWS))


def add_at_winners(dx: Any, winners: Any, g: Any, At: Any, work: Workspace) -> None:
    """dx += A S^T.  (F7)    dx (B, I, N), winners and g (B, O), At (O, I)"""
    (clouds, inputs, points), channels, xp = dx.shape, len(At), work.xp
    if kernels.on_device(xp):
        kernels.add_at_winners(dx, winners, g, At, work)
        return
    if xp is not np:
        spread = xp.arange(points)[None, :, None] == winners[:, None, :]
        dx += ((spread * g[:, None, :]) @ At).swapaxes(1, 2)
        return
    step = max(2**17 // (inputs * channels), 1)  # clouds at once: buffers of a megabyte
    for first in range(0, clouds, step):
        some = slice(first, first + step)
        _add_sparse(dx[some], winners[some], g[some], At, work)


def _add_sparse(
    dx: np.ndarray, winners: np.ndarray, g: np.ndarray, At: np.ndarray, work: Workspace
) -> None:
    """(F7) on the host: sort channels by their winning point; one sparse row for each point."""
    # a slow import, which prediction does not need
    from scipy import sparse

    (clouds, inputs, points), channels = dx.shape, len(At)
    # The smallest integer type: NumPy sorts integers of two bytes by radix.
    order = winners.astype(np.min_scalar_type(points)).argsort(axis=1, kind="stable")
    order = (order + channels * np.arange(clouds)[:, None]).ravel()
    at = (winners + points * np.arange(clouds)[:, None]).ravel()[order]
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    S = sparse.csr_array(
        (g.ravel()[order], order % channels, np.append(starts, len(at))),
        shape=(len(starts), channels),
    )
    cloud, point = np.divmod(at[starts], points)
    # The buffers have room for the most winning points possible, and this call uses a part of them.
    shape, most = (inputs, len(starts)), inputs * len(at)
    flat = work.scratch("flat", (most,), np.intp)[: prod(shape)].reshape(shape)
    sums = work.scratch("sums", (most,), dx.dtype)[: prod(shape)].reshape(shape)
    # places in dx, in the order of memory
    np.add(cloud * inputs * points + point, points * np.arange(inputs)[:, None], out=flat)
    entries = dx.reshape(-1)
    entries.take(flat, out=sums, mode="clip")  # all are valid; "raise" would copy
    sums += (S @ At).T
    entries[flat] = sums
