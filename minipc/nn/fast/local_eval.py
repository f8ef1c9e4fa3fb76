"""Levels in evaluation, with tracked statistics: (F9) with (F13), or with rows of some centres.

Letters as in local.py.  The products belong to one cloud and have shapes in which the batch does
not occur, so neither have other clouds a part in its bits.
"""

from typing import Any

import numpy as np

from minipc.backend import module_of
from minipc.nn.fast.fused import blocks_of
from minipc.nn.fast.local import columns_at, gathered, offsets_by_member, portions, rows_of
from minipc.nn.fast.products import matrix_product, product
from minipc.nn.fast.workspace import Workspace

Maps = list[tuple[Any, Any]]  # of eval_maps(): (A^T (O, I), c (O,)) of each layer


def level_eval(
    positions: Any, f: Any, centres: Any, members: Any, maps: Maps, work: Workspace
) -> Any:
    """Return what the groups of a level see, h (B, M, O), with tracked statistics.  (F9), (F13)

    positions (B, N, 3); f (B, N, C), or None; maps of eval_maps() for the layers of the rows.
    """
    xp, (clouds, count, members_of) = work.xp, members.shape
    h = xp.empty((clouds, count, len(maps[-1][0])), positions.dtype)
    widest = max(len(A) for A, _ in maps)
    single = f is not None and len(maps) == 1
    pool = _pool_points if single else _pool_rows
    elements = count * widest if single else count * members_of * widest
    for block in blocks_of(clouds, max(elements * work.block // work.slice, 1), work):
        near = positions[block] - positions[block, :1]  # far from the origin, products lose digits
        axes = [near] if f is None else [near, f[block]]
        z = xp.ascontiguousarray(xp.concatenate(axes, axis=2).swapaxes(1, 2))  # (C, I, N)
        pool(z, centres[block], members[block], maps, h[block], work)
    return h


def _pool_points(z: Any, centres: Any, members: Any, maps: Maps, h: Any, work: Workspace) -> None:
    """h (C, M, O) by (F13) for a level of a single layer."""
    xp, ((At, c),) = work.xp, maps
    clouds, _, points = z.shape
    u = work.scratch("u", (clouds, points, len(At)), z.dtype)
    matrix_product(z.swapaxes(1, 2), At.T, u)
    flat = members.transpose(2, 0, 1) + (points * xp.arange(clouds))[:, None]  # (k, C, M)
    flat = flat.reshape(len(flat), -1)
    for some in portions(slice(0, clouds), members.shape[1], len(flat) * len(At), work):
        gathered(rows_of(u), flat[:, some], work).max(axis=0, out=rows_of(h)[some])
    h -= matrix_product(_positions(z, centres).swapaxes(1, 2), At[:, :3].T)
    h += c
    xp.maximum(h, work.zeros(len(c), h.dtype), out=h)


def _positions(z: Any, centres: Any) -> Any:
    """Return the positions (C, 3, M) of centres (C, M) in z (C, I, N), contiguous.

    The memory order of an indexed array can depend on the number of clouds, and the bits of a
    product depend on the memory order of its factors.
    """
    xp = module_of(z, centres)
    at = xp.take_along_axis(z[:, :3], centres[:, None].astype(np.intp), axis=2)
    return xp.ascontiguousarray(at)


def _pool_rows(z: Any, centres: Any, members: Any, maps: Maps, h: Any, work: Workspace) -> None:
    """h (C, M, O) of a level of several layers, some centres at a time."""
    xp, (clouds, inputs, _), (count, size) = work.xp, z.shape, members.shape[1:]
    widest = max(inputs, *(len(A) for A, _ in maps))
    step = min(max(2 * work.slice // (size * widest), 1), count)
    first, rest = (None, maps) if inputs == 3 else (maps[0], maps[1:])
    u = z
    if first:
        At, c = first
        u = product(At, z, work.scratch("u", (clouds, len(At), z.shape[2]), z.dtype), work)
    for start in range(0, count, step):
        some = slice(start, min(start + step, count))
        here, near = members[:, some], centres[:, some]
        rows = work.scratch("rows", (clouds, u.shape[1], size * here.shape[1]), z.dtype)
        if first:
            columns_at(u, here.transpose(0, 2, 1).reshape(clouds, -1), rows)
            at = _positions(z, near)
            each = rows.reshape(clouds, len(At), size, -1)
            each -= (matrix_product(At[:, :3], at) - c[:, None])[:, :, None]
            xp.maximum(rows, work.zeros(rows.shape[2], rows.dtype), out=rows)
        else:
            offsets_by_member(z, near, here, rows)
        for number, (A, b) in enumerate(rest):
            out = work.scratch(f"layer {number}", (clouds, len(A), rows.shape[2]), z.dtype)
            rows = product(A, rows, out, work)
            if number < len(rest) - 1:
                rows += b[:, None]
                xp.maximum(rows, work.zeros(rows.shape[2], rows.dtype), out=rows)
        best = _maximum(rows.reshape(clouds, len(A), size, -1), xp) + b[:, None]
        h[:, some] = xp.maximum(best, 0, out=best).swapaxes(1, 2)


def _maximum(rows: Any, xp: Any) -> Any:
    """Return the maximum of rows (C, O, k, G) over k, written over rows.

    By halves, since a reduction runs over G numbers at a time, and there are few.
    """
    size = rows.shape[2]
    while size % 2 == 0:
        size //= 2
        xp.maximum(rows[:, :, :size], rows[:, :, size : 2 * size], out=rows[:, :, :size])
    return rows[:, :, :size].max(axis=2)
