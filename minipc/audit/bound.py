"""Where the raw loss is bounded below: theorem 2.1 of docs/math.md, over b and T, and in one row.

The rows come from a record, or they are an example: the teacher is sure of the label, the earlier
self is less sure, and they disagree on the other classes.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from minipc.audit.teacher import largest_safe_b
from minipc.nn.losses import LossConfig, guarded, margins, smooth_labels
from minipc.streams import stream

B = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
T = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


class Rows(NamedTuple):
    """Rows of a loss: labels (N,), -1 for none; logits v of teacher, u of self (N, K); a name."""

    labels: np.ndarray
    v: np.ndarray
    u: np.ndarray
    what: str


def example_rows(classes: int, rows: int = 2000) -> Rows:
    """Return Rows of docs/math.md: at the label, teacher 12 and self 8; else N(0, 1.5)."""
    rng = stream(0, "audit", 3)
    labels = rng.integers(0, classes, rows)
    v, u = 1.5 * rng.standard_normal((2, rows, classes))
    v[np.arange(rows), labels], u[np.arange(rows), labels] = 12, 8
    what = (
        f"{rows} made-up rows of {classes} classes, teacher 12 and earlier self 8 at the label, "
        "N(0, 1.5) elsewhere"
    )
    return Rows(labels, v, u, what)


def unbounded_shares(
    rows: Rows, a: float, smoothing: float, b: Iterable[float] = B, T: Iterable[float] = T
) -> dict[tuple[float, float], float]:
    """Return {(b, T): share of rows whose raw loss has no lower bound} for the grid b x T."""
    shares: dict[tuple[float, float], float] = {}
    for temperature in T:
        safe = _safe(rows, LossConfig(a, 0.0, temperature, smoothing))
        shares |= {(each, temperature): float((safe < each).mean()) for each in b}
    return shares


def _safe(rows: Rows, config: LossConfig) -> np.ndarray:
    y = smooth_labels(rows.labels, rows.v.shape[1], config.label_smoothing, np.float64)
    p, r = (softmax(z / config.temperature, axis=1) for z in (rows.v, rows.u))
    return largest_safe_b(y, p, r, config)


class WorstRow(NamedTuple):
    """The row with the smallest safe b, and its margins and targets."""

    row: int
    label: int  # -1 for none
    safe_b: float
    unbounded: float  # share of all rows at the config's b
    y: np.ndarray  # (K,)
    p: np.ndarray
    r: np.ndarray
    margins: np.ndarray  # (K,), M_i of the raw loss: if M_i < 0 the loss falls as z_i -> -infinity
    soft_target: np.ndarray | None  # (K,), q / sum q: soft terms pull s_T to it; None if sum q = 0
    target: np.ndarray | None  # (K,), at T = 1 the whole loss pulls s to it; None at another T


def worst_row(rows: Rows, config: LossConfig) -> WorstRow:
    """Return the WorstRow of Rows under a LossConfig; its targets are those of the loss in use.

    At T = 1 the loss is one signed cross-entropy with weights (1-a) y + q; by (L2) its gradient
    vanishes where s is these weights over their sum.
    """
    safe = _safe(rows, config)
    row = int(np.argmin(safe))
    one = slice(row, row + 1)
    y = smooth_labels(rows.labels[one], rows.v.shape[1], config.label_smoothing, np.float64)
    p, r = (softmax(z[one] / config.temperature, axis=1) for z in (rows.v, rows.u))
    a, b = config.kd_weight, config.self_weight
    M = margins(y, p, r, b, config)[0]
    q = (guarded(a * p, b * r) if config.guard == "clip" else a * p - b * r)[0]
    whole = (1 - a) * y[0] + q
    return WorstRow(
        row,
        int(rows.labels[row]),
        float(safe[row]),
        float((safe < b).mean()),
        y[0],
        p[0],
        r[0],
        M,
        q / q.sum() if abs(q.sum()) > 1e-12 else None,
        whole / whole.sum() if config.temperature == 1 and abs(whole.sum()) > 1e-12 else None,
    )
