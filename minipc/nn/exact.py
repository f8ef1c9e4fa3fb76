"""A matrix product whose rows have the same bits in any batch, on any kernel and any device.

BLAS adds the products of a row in an order that depends on the row's place among the others, so the
logits of a cloud would depend on what is predicted with it.  Here both factors are written in whole
numbers so small that every sum of their products is below 2^53: float64 holds such sums exactly,
and exact sums have no order.  (An error-free transformation of a product: Ozaki, Ogita, Oishi &
Rump 2012, Numerical Algorithms 59, section 3.)  It costs about ten ordinary products, so only the
head uses it, in evaluation.
"""

from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import check_shape
from minipc.nn import kernels


class Factor(NamedTuple):
    """The right factor W (I, O) of exact products, written in whole numbers once."""

    stacks: list  # of float64: [m_1], [m_2; m_1], ... of shape (I, O), (2 I, O), ...
    unit: Any  # (1, O) float64, v
    bits: int  # t


def factor(W: Any) -> Factor:
    """Return the Factor of W (I, O): two parts for float32, three for float64."""
    xp = module_of(W)
    check_shape("W", W, (None, None))
    parts = 2 if W.dtype == np.float32 else 3
    bits = (53 - (parts * len(W) - 1).bit_length()) // 2  # so that parts I 2^(2 bits) <= 2^53
    m, unit = _whole_numbers(W, 0, parts, bits)
    return Factor([xp.concatenate(m[last::-1], axis=0) for last in range(parts)], unit, bits)


def product(x: Any, right: Factor) -> Any:
    """y = x W, rounded to float64 and then to the dtype of x.  (F10)

    x (B, I), right a Factor of W -> y (B, O)

    With x = u (n_1 + n_2 / 2^t + ...) row by row, u a power of two and every n whole and at most
    2^t, and W = v (m_1 + m_2 / 2^t + ...) column by column,

        y = u v (n_1 m_1 + (n_1 m_2 + n_2 m_1) / 2^t + ...)

    Each bracket is a sum of at most parts I products of at most 2^(2 t): whole, and at most 2^53.
    """
    xp = module_of(x, right.unit)
    check_shape("x", x, (None, len(right.stacks[0])))
    if kernels.on_device(xp):
        return kernels.exact_product(x, *right)
    n, unit = _whole_numbers(x, 1, len(right.stacks), right.bits)
    y: Any = 0.0
    for last in reversed(range(len(n))):  # Horner's rule: the smallest bracket first
        y = y * 2.0**-right.bits + xp.concatenate(n[: last + 1], axis=1) @ right.stacks[last]
    return (y * (unit * right.unit)).astype(x.dtype)


def _whole_numbers(x: Any, axis: int, parts: int, bits: int) -> tuple[list, Any]:
    """Return [n_1, n_2, ...] and u, float64, of x = u (n_1 + n_2 / 2^bits + ...).

    u is a power of two, constant along axis.
    """
    xp = module_of(x)
    _, exponent = xp.frexp(abs(x).max(axis=axis, keepdims=True))
    unit = xp.ldexp(xp.ones(exponent.shape), exponent - bits)
    numbers: list = []
    rest = x / unit  # exact, and no entry is above 2^bits
    for _ in range(parts):
        numbers.append(xp.rint(rest))
        rest = (rest - numbers[-1]) * 2.0**bits
    return numbers, unit
