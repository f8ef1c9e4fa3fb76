"""What gradient checks cannot show: values against their definitions, computed here a second time.

A forward and a backward that are wrong together pass every gradient check.  So numbers of each
function are compared in float64 with their definition, which fits in a line or two.  What is
promised bit for bit is compared bit for bit.
"""

from collections.abc import Callable
from math import fsum, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from scipy import special

from minipc.audit import vectors
from minipc.audit.problems import apart, gains, off_zero, targets
from minipc.nn import exact, losses, ops
from minipc.nn.losses import LossConfig

ROUNDING = 1e-12  # of the largest entry: a few thousand additions in another order cause less


class Fact(NamedTuple):
    what: str
    error: float  # largest deviation, relative to the largest entry of the expected array
    allowed: float  # 0: equal bit for bit


FactMaker = Callable[[Generator], list[Fact]]


def near(
    what: str, value: Any, expected: Any, allowed: float = ROUNDING, size: float | None = None
) -> Fact:
    """Return the Fact that value is expected, up to rounding of size (None: the largest entry)."""
    value, expected = np.asarray(value), np.asarray(expected)
    if value.shape != expected.shape:
        return Fact(what, np.inf, allowed)
    error = float(np.abs(value - expected).max() / (size or np.abs(expected).max() or 1.0))
    return Fact(what, error if error == error else np.inf, allowed)


def same(what: str, value: Any, expected: Any) -> Fact:
    """Return the Fact that every number of value equals its number in expected."""
    equal = np.array_equal(value, expected)
    return Fact(what, 0.0 if equal else near(what, value, expected).error or 1.0, 0.0)


def holds(what: str, condition: Any) -> Fact:
    """Return the Fact that condition is true."""
    return Fact(what, 0.0 if condition else np.inf, 0.0)


def linear(rng: Generator) -> list[Fact]:
    x, W = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5))
    sums = [
        [[fsum(x[b, n, i] * W[i, o] for i in range(4)) for o in range(5)] for n in range(3)]
        for b in range(2)
    ]
    return [near("sums of products", ops.linear_forward(x, W)[0], sums)]


def exact_product(rng: Generator) -> list[Fact]:
    """The head in evaluation: sums of products; a row alone gives the same bits as in a batch."""
    x, W = rng.standard_normal((5, 40)), rng.standard_normal((40, 6))
    x[1] *= 1e3
    right = exact.factor(W)
    y = exact.product(x, right)
    sums = [[fsum(x[b, i] * W[i, o] for i in range(40)) for o in range(6)] for b in range(5)]
    alone = np.concatenate([exact.product(row[None], right) for row in x])
    return [near("sums of products", y, sums), same("each row as it is alone", y, alone)]


def bias(rng: Generator) -> list[Fact]:
    x, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
    sums = [[x[n, o] + b[o] for o in range(4)] for n in range(3)]
    return [same("one addition", ops.bias_forward(x, b)[0], sums)]


def _moments(column: np.ndarray) -> tuple[float, float]:
    """Return mean and variance (divisor rows) of a column, with exactly rounded sums."""
    mean = fsum(column) / len(column)
    return mean, fsum((value - mean) ** 2 for value in column) / len(column)


def batch_norm(rng: Generator) -> list[Fact]:
    x, gamma, beta = rng.standard_normal((3, 4, 5)), gains(rng, 5), rng.standard_normal(5)
    x[..., 4] = 0.75  # a constant channel
    columns = x.reshape(12, 5).T
    mean, var = np.array([_moments(column) for column in columns]).T
    y, _, batch = ops.batch_norm_forward(x, gamma, beta, 1e-5)
    before = rng.standard_normal(5), 0.5 + rng.random(5)
    tracked = ops.track(*before, batch, 0.1)
    return [
        near("normalised with divisor rows", y, gamma * (x - mean) / np.sqrt(var + 1e-5) + beta),
        near("mean", batch.mean, mean),
        near("variance of the batch", batch.var, var),
        near("tracked mean", tracked[0], 0.9 * before[0] + 0.1 * mean),
        near(
            "tracked variance, divisor rows - 1", tracked[1], 0.9 * before[1] + 0.1 * var * 12 / 11
        ),
    ]


def batch_norm_eval(rng: Generator) -> list[Fact]:
    x, gamma = rng.standard_normal((3, 5)), gains(rng, 5)
    beta, mean = rng.standard_normal(5), rng.standard_normal(5)
    var = 0.5 + rng.random(5)
    expected = [
        [gamma[o] * (row[o] - mean[o]) / sqrt(var[o] + 1e-5) + beta[o] for o in range(5)]
        for row in x
    ]
    y, _ = ops.batch_norm_eval_forward(x, gamma, beta, mean, var, 1e-5)
    return [near("with tracked statistics", y, expected)]


def relu(rng: Generator) -> list[Fact]:
    x, dy = off_zero(rng, (3, 5)), rng.standard_normal((3, 5))
    x[0, 0] = x[1, 2] = 0
    y, cache = ops.relu_forward(x)
    return [
        same("max(x, 0)", y, [[max(value, 0.0) for value in row] for row in x]),
        same("derivative 0 at 0", ops.relu_backward(dy, cache), np.where(x > 0, dy, 0.0)),
    ]


def point_max(rng: Generator) -> list[Fact]:
    x, dy = apart(rng, (2, 6, 3)), rng.standard_normal((2, 3))
    x[:, 3:] = x[:, :3]  # every maximum is a tie
    y, cache = ops.point_max_forward(x)
    dx, expected = ops.point_max_backward(dy, cache), np.zeros_like(x)
    for b in range(2):
        for o in range(3):
            expected[b, list(x[b, :, o]).index(max(x[b, :, o])), o] = dy[b, o]
    return [
        same("the largest", y, [[max(x[b, :, o]) for o in range(3)] for b in range(2)]),
        same("ties: the lowest index wins", dx, expected),
    ]


def dropout(rng: Generator) -> list[Fact]:
    x, mask = rng.standard_normal((4, 6)), (rng.random((4, 6)) < 0.7) / 0.7
    expected = [[x[n, o] * mask[n, o] for o in range(6)] for n in range(4)]
    return [same("x mask", ops.dropout_forward(x, mask)[0], expected)]


def log_softmax(rng: Generator) -> list[Fact]:
    z = 3 * rng.standard_normal((4, 7))
    z[1] += 1000
    z[2] *= 300
    what, expected = "scipy.special.log_softmax, rows a thousand apart", special.log_softmax(z, 1)
    return [near(what, ops.log_softmax_forward(z)[0], expected)]


def soft_cross_entropy(rng: Generator) -> list[Fact]:
    z, q = 2 * rng.standard_normal((4, 7)), rng.standard_normal((4, 7))
    expected = [
        fsum(
            -weight * (value - special.logsumexp(row))
            for value, weight in zip(row, weights, strict=True)
        )
        for row, weights in zip(z, q, strict=True)
    ]
    value, _ = losses.soft_cross_entropy_forward(z, q)
    return [near("- sum q log softmax, signed q", value, expected)]


def _kl(p: np.ndarray, s: np.ndarray) -> float:
    return fsum(a * (np.log(a) - np.log(b)) for a, b in zip(p, s, strict=True))


def _by_definition(
    config: LossConfig,
    z: np.ndarray,
    y: np.ndarray,
    v: np.ndarray,
    u: np.ndarray,
    has_u: np.ndarray,
) -> losses.LossTerms:
    """Return the LossTerms that (L4) to (L9) define, row by row."""
    a, b, T = config.kd_weight, config.self_weight, config.temperature
    rows = []
    for n in range(len(z)):
        s_1, s_T, p, r = (special.softmax(row) for row in (z[n], z[n] / T, v[n] / T, u[n] / T))
        b_n = b * has_u[n]
        q = a * p - b_n * r
        guarded = np.array(
            [max(value, losses.GUARD_FLOOR * a * floor) for value, floor in zip(q, p, strict=True)]
        )
        ce = -fsum(y[n] * np.log(s_1))
        kd, self_kl = T**2 * _kl(p, s_T), T**2 * _kl(r, s_T)
        raw = (1 - a) * ce + a * kd - b_n * self_kl
        total = raw if config.guard == "none" else raw - T**2 * fsum((guarded - q) * np.log(s_T))
        least = min((1 - a) * y[n] + T * (a * p - b_n * r))
        rows.append(
            (total, ce, kd, self_kl * has_u[n], float((guarded > q).any()), float(least < 0))
        )
    total, ce, kd, self_kl, raised, unbounded = np.array(rows).T
    return losses.LossTerms(
        total.mean(),
        ce.mean(),
        kd.mean(),
        self_kl.sum() / has_u.sum(),
        raised.mean(),
        unbounded.mean(),
    )


def loss(configs: list[LossConfig]) -> FactMaker:
    """Return the maker of Facts of the loss: every number it returns against its definition."""

    def make(rng: Generator) -> list[Fact]:
        facts: list[Fact] = []
        for config in configs:
            z, y, v, u, has_u = targets(rng, config)
            expected = _by_definition(config, z, y, v, u, has_u)
            terms, cache = losses.loss_forward(z, y, v, u, has_u, config)
            facts += [
                near(name, *pair)
                for name, *pair in zip(terms._fields, terms, expected, strict=True)
            ]
            dz = losses.loss_backward(cache)
            facts.append(
                near("rows of the gradient sum to 0", dz.sum(axis=1) + 1, np.ones(len(dz)))
            )
        return facts

    return make


def labels(rng: Generator) -> list[Fact]:
    y = losses.smooth_labels(np.array([2, 0, -1]), 4, 0.2, np.float64)
    want = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05], [0, 0, 0, 0]]
    return [near("(1 - e) onehot + e / K, and 0 without a label", y, want)]


def negative(rng: Generator) -> list[Fact]:
    """With u = z the self term has no gradient; r = p gives distillation of weight a - b."""
    a, b, T = 0.7, 0.3, 2.5
    z, y, v, _, _ = targets(rng, LossConfig())
    p, s_1, s_T = (special.softmax(row, axis=1) for row in (v / T, z, z / T))

    def gradient(b: float, u: np.ndarray) -> np.ndarray:
        return losses.loss_backward(
            losses.loss_forward(z, y, v, u, np.ones(len(z)), LossConfig(a, b, T, 0, "none"))[1]
        )

    return [
        near("u = z has no gradient", gradient(b, z), gradient(0.0, z)),
        near(
            "r = p is the weight a - b",
            gradient(b, v),
            ((1 - a) * (s_1 - y) + (a - b) * T * (s_T - p)) / len(z),
        ),
    ]


def guard(rng: Generator) -> list[Fact]:
    """(L8): every class keeps delta a p; b = 0 gives distillation, bit for bit."""
    config = LossConfig(0.9, 0.3, 2.5, 0.0, "clip")
    z, y, v, u, has_u = targets(rng, config)
    u[2] = 4 * v[2][::-1]  # a confident earlier self that disagrees
    p, r = (special.softmax(row / 2.5, axis=1) for row in (v, u))
    ap, br = 0.9 * p, 0.3 * r
    q, kept = losses.guarded(ap, br), ap - br > 0.05 * ap
    away = [
        losses.loss_forward(z - t * np.eye(5)[4], y, v, u, has_u, config)[0].total
        for t in (0.0, 1e2, 1e4)
    ]
    raw, clipped = (
        losses.loss_backward(
            losses.loss_forward(z, y, v, u, has_u, LossConfig(0.9, 0.0, 2.5, 0.0, kind))[1]
        )
        for kind in ("none", "clip")
    )
    return [
        holds("no class below delta a p", (q >= 0.05 * ap).all() and not kept.all()),
        same("elsewhere q' = a p - b r", q[kept], (ap - br)[kept]),
        holds("bounded where the raw loss is not", away[0] < away[1] < away[2]),
        same("b = 0 is distillation", clipped, raw),
    ]


def conformance(rng: Generator) -> list[Fact]:
    """Every number of the conformance vectors."""
    worst: dict[str, Fact] = {}
    for case, name, deviation in vectors.check():
        worst.setdefault(name, Fact(f"{name} of {case!r}", deviation, vectors.TOLERANCE))
    return list(worst.values())
