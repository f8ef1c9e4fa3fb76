"""Statistics of a record's teacher, and the negative weights that are safe with it.

How sure the teacher is, how often it is right, and how often it agrees with itself across views.
For each row, the largest b for which the raw loss is bounded below (docs/math.md, theorem 2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import softmax

from minipc.data.clouds import UNLABELLED
from minipc.nn.losses import LossConfig, guarded, margins, smooth_labels

if TYPE_CHECKING:
    from minipc.record.reader import RecordReader

SAFE_B = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, np.inf)  # edges of the histogram


class TeacherAudit(NamedTuple):
    """Statistics of the teacher of one record; shares between 0 and 1, entropies in nats."""

    clouds: int
    views: int
    classes: int
    labelled: int  # clouds with a label
    accuracy: list | None  # of each view, on these; None if there are none
    agreement: float  # mean share of a cloud's views that predict its most frequent class
    unanimous: float  # share of clouds whose views all predict one class
    confidence: float  # mean largest probability, at T = 1
    entropy: float  # mean, at T = 1; log K is the most
    entropy_at_T: float
    self_target: str  # whose logits u the next four use; they are None without u
    unbounded: float | None  # share of rows whose raw loss has no lower bound
    raised: float | None  # share of rows in which the guard raises a class
    safe_b: list | None  # rows by their largest safe b, between the edges SAFE_B
    worst: tuple | None  # (view, cloud, largest safe b) of the row with the smallest safe b
    safe_for_all: list  # the same histogram for the worst possible earlier self


def largest_safe_b(y: np.ndarray, p: np.ndarray, r: np.ndarray, config: LossConfig) -> np.ndarray:
    """Return for each row the largest b for which every M_i of (L6) is >= 0.  (B, K) -> (B,)"""
    a, T = config.kd_weight, config.temperature
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = ((1 - a) * y + a * T * p) / (T * r)
    return np.where(r > 0, bound, np.inf).min(axis=1)  # r = 0 subtracts nothing, so any b is safe


def audit_teacher(
    reader: RecordReader,
    labels: np.ndarray,
    config: LossConfig,
    earlier: RecordReader | None = None,
) -> TeacherAudit:
    """Return the TeacherAudit of an open record whose clouds have labels (N,), -1 for none.

    earlier: an open record of an earlier student on the same views.  Without it, u are the
    teacher's logits of the cloud's next view: as if the earlier self were as good as the teacher.
    """
    clouds, classes = len(labels), reader.plan.classes
    known = labels != UNLABELLED
    T, b = config.temperature, config.self_weight
    y = smooth_labels(labels, classes, config.label_smoothing, np.float64)
    predicted = np.zeros((clouds, classes), np.int32)  # how many views predict a class
    accuracy, confidence, entropy, entropy_at_T = [], [], [], []
    unbounded, raised, safe, for_all = [], [], [], []
    for view in range(reader.views):
        v = reader.view(view)[2].astype(np.float64)
        u = earlier_self(reader, earlier, view)
        p = softmax(v / T, axis=1)
        chosen = v.argmax(axis=1)
        predicted[np.arange(clouds), chosen] += 1
        accuracy.append(float((chosen == labels)[known].mean()) if known.any() else None)
        confidence.append(softmax(v, axis=1).max(axis=1).mean())
        entropy.append(_entropy(softmax(v, axis=1)))
        entropy_at_T.append(_entropy(p))
        for_all.append(largest_safe_b(y, p, np.ones_like(p), config))
        if u is not None:
            r = softmax(u / T, axis=1)
            ap, br = config.kd_weight * p, b * r
            unbounded.append((margins(y, p, r, b, config) < 0).any(axis=1).mean())
            raised.append((guarded(ap, br) > ap - br).any(axis=1).mean())
            safe.append(largest_safe_b(y, p, r, config))
    worst = None
    if safe:
        at_view, cloud = np.unravel_index(np.argmin(safe), (reader.views, clouds))
        worst = int(at_view), int(cloud), float(safe[at_view][cloud])
    return TeacherAudit(
        clouds,
        reader.views,
        classes,
        int(known.sum()),
        accuracy if known.any() else None,
        float(predicted.max(axis=1).mean() / reader.views),
        float((predicted.max(axis=1) == reader.views).mean()),
        float(np.mean(confidence)),
        float(np.mean(entropy)),
        float(np.mean(entropy_at_T)),
        named_self(reader, earlier),
        float(np.mean(unbounded)) if safe else None,
        float(np.mean(raised)) if safe else None,
        _histogram(safe) if safe else None,
        worst,
        _histogram(for_all),
    )


def earlier_self(
    reader: RecordReader, earlier: RecordReader | None, view: int
) -> np.ndarray | None:
    """Return logits u (N, K) of one view as audit_teacher takes them, or None."""
    if earlier is not None:
        return earlier.view(view)[2].astype(np.float64)
    return (
        reader.view((view + 1) % reader.views)[2].astype(np.float64) if reader.views > 1 else None
    )


def named_self(reader: RecordReader, earlier: RecordReader | None) -> str:
    """Return a text that names the source of earlier_self()'s logits."""
    if earlier is not None:
        return earlier.path
    return "the teacher under the next view" if reader.views > 1 else "none: one view"


def _entropy(p: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(-np.where(p > 0, p * np.log(p), 0).sum(axis=1).mean())


def _histogram(rows: list[np.ndarray]) -> list[int]:
    """Return how many entries lie between neighbouring edges of SAFE_B."""
    return np.histogram(np.minimum(np.concatenate(rows), 1e300), SAFE_B)[0].tolist()
