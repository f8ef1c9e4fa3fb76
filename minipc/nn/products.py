"""Matrix products of narrow layers at the speed of wide ones.

OpenBLAS first copies both factors of a product into an order of its own, but multiplies small
matrices where they lie.  A layer of PointNet is a short, wide product, (O, I) times (I, N), whose
copies cost as much as its arithmetic; four rows at a time it has no copies and runs at the speed
of a large product (docs/performance.md).  Where BLAS is another one, and on a device, the whole
product is one call.
"""

SMALL = 10**6  # multiply-adds up to which OpenBLAS multiplies without copying


def product(a, z, out, work):
    """out = a z for each cloud.    a (M, K), z (C, K, N), out (C, M, N): views with contiguous points"""
    (rows, inner), (clouds, _, points) = a.shape, z.shape
    group, parts = _divided(rows, inner, points, work)
    work.xp.matmul(
        a.reshape(-1, group, inner),
        z.reshape(clouds, inner, parts, -1).swapaxes(1, 2)[:, :, None],
        out=out.reshape(clouds, -1, group, parts, points // parts).transpose(0, 3, 1, 2, 4),
    )
    return out


def inner_product(z, d, work):
    """Return the sum over clouds and points of z d^T.    z (C, K, N), d (C, M, N) -> (K, M)"""
    (clouds, inner, points), rows = z.shape, d.shape[1]
    group, parts = _divided(rows, inner, points, work)
    found = work.xp.matmul(
        z.reshape(clouds, inner, parts, -1).swapaxes(1, 2)[:, :, None],
        d.reshape(clouds, -1, group, parts, points // parts).transpose(0, 3, 1, 4, 2),
    )  # (C, parts, M / group, K, group)
    return found.sum(axis=(0, 1)).swapaxes(0, 1).reshape(inner, rows)


def _divided(rows, inner, points, work):
    """Return the rows of each small product and the parts of the points, or all rows and 1."""
    group, parts = work.group, 1
    if group is None or rows % group:
        return rows, 1
    while group * inner * (points // parts) > SMALL:
        parts *= 2
        if points % parts:
            return rows, 1
    return group, parts
