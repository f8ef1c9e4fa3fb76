"""What no derivative shows: values against their definitions, computed here a second time.

A forward and a backward that are wrong together pass every gradient check.  So each function is
asked for numbers whose definition fits in a line or two, in float64, and what is promised bit for
bit is compared bit for bit.
"""

from math import fsum, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from minipc.audit import vectors
from minipc.audit.problems import apart, gains, off_zero, targets
from minipc.nn import exact, losses, ops
from minipc.nn.losses import LossConfig

ROUNDING = 1e-12  # of the largest entry: what the order of a few thousand additions explains


class Fact(NamedTuple):
    what: str
    error: float  # largest deviation, relative to the largest entry of what the definition says
    allowed: float  # 0: equal bit for bit


def near(what, found, wanted, allowed=ROUNDING, size=None):
    """Return the Fact that found is wanted, up to rounding of size (None: the largest entry)."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape:
        return Fact(what, np.inf, allowed)
    error = float(np.abs(found - wanted).max() / (size or np.abs(wanted).max() or 1.0))
    return Fact(what, error if error == error else np.inf, allowed)


def same(what, found, wanted):
    """Return the Fact that every number of found equals its number in wanted."""
    return Fact(
        what, 0.0 if np.array_equal(found, wanted) else near(what, found, wanted).error or 1.0, 0.0
    )


def holds(what, condition):
    """Return the Fact that something is true."""
    return Fact(what, 0.0 if condition else np.inf, 0.0)


def linear(rng):
    x, W = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5))
    sums = [
        [[fsum(x[b, n, i] * W[i, o] for i in range(4)) for o in range(5)] for n in range(3)]
        for b in range(2)
    ]
    return [near("sums of products", ops.linear_forward(x, W)[0], sums)]


def exact_product(rng):
    """The head in evaluation: sums of products, and each row the same bits alone."""
    x, W = rng.standard_normal((5, 40)), rng.standard_normal((40, 6))
    x[1] *= 1e3
    right = exact.factor(W)
    found = exact.product(x, right)
    sums = [[fsum(x[b, i] * W[i, o] for i in range(40)) for o in range(6)] for b in range(5)]
    alone = np.concatenate([exact.product(row[None], right) for row in x])
    return [near("sums of products", found, sums), same("each row as it is alone", found, alone)]


def bias(rng):
    x, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
    return [
        same(
            "one addition",
            ops.bias_forward(x, b)[0],
            [[x[n, o] + b[o] for o in range(4)] for n in range(3)],
        )
    ]


def _moments(column):
    """Return mean and variance (divisor rows) of some numbers, with exactly rounded sums."""
    mean = fsum(column) / len(column)
    return mean, fsum((value - mean) ** 2 for value in column) / len(column)


def batch_norm(rng):
    x, gamma, beta, momentum = (
        rng.standard_normal((3, 4, 5)),
        gains(rng, 5),
        rng.standard_normal(5),
        0.1,
    )
    x[..., 4] = 0.75  # a constant channel
    columns = x.reshape(12, 5).T
    mean, var = np.array([_moments(column) for column in columns]).T
    y, _, batch = ops.batch_norm_forward(x, gamma, beta, 1e-5)
    before = rng.standard_normal(5), 0.5 + rng.random(5)
    tracked = ops.track(*before, batch, momentum)
    return [
        near("normalised with divisor rows", y, gamma * (x - mean) / np.sqrt(var + 1e-5) + beta),
        near("mean", batch.mean, mean),
        near("variance of the batch", batch.var, var),
        near("tracked mean", tracked[0], 0.9 * before[0] + 0.1 * mean),
        near(
            "tracked variance, divisor rows - 1", tracked[1], 0.9 * before[1] + 0.1 * var * 12 / 11
        ),
    ]


def batch_norm_eval(rng):
    x, gamma, beta, mean = (
        rng.standard_normal((3, 5)),
        gains(rng, 5),
        rng.standard_normal(5),
        rng.standard_normal(5),
    )
    var = 0.5 + rng.random(5)
    wanted = [
        [gamma[o] * (row[o] - mean[o]) / sqrt(var[o] + 1e-5) + beta[o] for o in range(5)]
        for row in x
    ]
    return [
        near(
            "with tracked statistics",
            ops.batch_norm_eval_forward(x, gamma, beta, mean, var, 1e-5)[0],
            wanted,
        )
    ]


def relu(rng):
    x, dy = off_zero(rng, (3, 5)), rng.standard_normal((3, 5))
    x[0, 0] = x[1, 2] = 0
    y, cache = ops.relu_forward(x)
    return [
        same("max(x, 0)", y, [[max(value, 0.0) for value in row] for row in x]),
        same("derivative 0 at 0", ops.relu_backward(dy, cache), np.where(x > 0, dy, 0.0)),
    ]


def point_max(rng):
    x, dy = apart(rng, (2, 6, 3)), rng.standard_normal((2, 3))
    x[:, 3:] = x[:, :3]  # every maximum is a tie
    y, cache = ops.point_max_forward(x)
    dx, wanted = ops.point_max_backward(dy, cache), np.zeros_like(x)
    for b in range(2):
        for o in range(3):
            wanted[b, list(x[b, :, o]).index(max(x[b, :, o])), o] = dy[b, o]
    return [
        same("the largest", y, [[max(x[b, :, o]) for o in range(3)] for b in range(2)]),
        same("ties: the lowest index wins", dx, wanted),
    ]


def dropout(rng):
    x, mask = rng.standard_normal((4, 6)), (rng.random((4, 6)) < 0.7) / 0.7
    return [
        same(
            "x mask",
            ops.dropout_forward(x, mask)[0],
            [[a * m for a, m in zip(*rows, strict=True)] for rows in zip(x, mask, strict=True)],
        )
    ]


def log_softmax(rng):
    z = 3 * rng.standard_normal((4, 7))
    z[1] += 1000
    z[2] *= 300
    return [
        near(
            "scipy.special.log_softmax, rows a thousand apart",
            ops.log_softmax_forward(z)[0],
            special.log_softmax(z, axis=1),
        )
    ]


def soft_cross_entropy(rng):
    z, q = 2 * rng.standard_normal((4, 7)), rng.standard_normal((4, 7))
    wanted = [
        fsum(
            -weight * (value - special.logsumexp(row))
            for value, weight in zip(row, weights, strict=True)
        )
        for row, weights in zip(z, q, strict=True)
    ]
    return [
        near("- sum q log softmax, signed q", losses.soft_cross_entropy_forward(z, q)[0], wanted)
    ]


def _kl(p, s):
    return fsum(a * (np.log(a) - np.log(b)) for a, b in zip(p, s, strict=True))


def _by_definition(config, z, y, v, u, has_u):
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


def loss(configs):
    """Return the maker of Facts of the loss: every number that it returns, by its definition."""

    def make(rng):
        facts = []
        for config in configs:
            z, y, v, u, has_u = targets(rng, config)
            wanted = _by_definition(config, z, y, v, u, has_u)
            found, cache = losses.loss_forward(z, y, v, u, has_u, config)
            facts += [
                near(name, *pair) for name, *pair in zip(found._fields, found, wanted, strict=True)
            ]
            dz = losses.loss_backward(cache)
            facts.append(
                near("rows of the gradient sum to 0", dz.sum(axis=1) + 1, np.ones(len(dz)))
            )
        return facts

    return make


def labels(rng):
    y = losses.smooth_labels(np.array([2, 0]), 4, 0.2, np.float64)
    return [near("(1 - e) onehot + e / K", y, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])]


def negative(rng):
    """For u = z the self term has no gradient; r = p is distillation with the weight a - b."""
    a, b, T = 0.7, 0.3, 2.5
    z, y, v, _, _ = targets(rng, LossConfig())
    p, s_1, s_T = (special.softmax(row, axis=1) for row in (v / T, z, z / T))

    def gradient(b, u):
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


def guard(rng):
    """(L8): every class keeps delta a p; at b = 0 it is distillation, bit for bit."""
    config = LossConfig(0.9, 0.3, 2.5, 0.0, "clip")
    z, y, v, u, has_u = targets(rng, config)
    u[2] = 4 * v[2][::-1]  # a confident earlier self of another opinion
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


def conformance(rng):
    """Every number of the conformance vectors."""
    worst = {}
    for case, name, deviation in vectors.check():
        worst.setdefault(name, Fact(f"{name} of {case!r}", deviation, vectors.TOLERANCE))
    return list(worst.values())
