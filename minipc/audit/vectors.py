"""Conformance vectors of the loss, every number to 30 digits, and the check of a loss.

A script in reference_tests/ computes the numbers with 50 digits, without any code of minipc.
docs/conformance.md says how to claim conformance.
"""

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from minipc.errors import UsageError
from minipc.nn import losses
from minipc.nn.losses import LossConfig

TOLERANCE = 1e-12  # in float64, of max(1, largest entry)


class Case(NamedTuple):
    """One row of the loss, as float64: first the inputs, then the outputs."""

    name: str
    z: np.ndarray  # (K,), student logits
    v: np.ndarray  # (K,), teacher logits
    u: np.ndarray  # (K,), logits of the earlier self
    label: int
    y: np.ndarray  # (K,), smoothed label
    a: float
    b: float
    T: float
    smoothing: float
    labels: float  # CE(y, s_1)
    distillation: float  # T^2 KL(p || s_T)
    self_distillation: float  # T^2 KL(r || s_T)
    loss: float  # (L5), without a guard
    gradient: np.ndarray  # (K,), of loss in z
    margins: np.ndarray  # (K,), M of (L6)
    guarded_weights: np.ndarray  # (K,), q' of (L8)
    guarded_loss: float  # (L8)
    guarded_gradient: np.ndarray  # (K,)


def cases() -> list[Case]:
    """Return the list of Cases of minipc/vectors/loss.json."""
    stored = json.loads(files("minipc").joinpath("vectors", "loss.json").read_text())
    return [
        Case(**{name: _number(name, value) for name, value in case.items()})
        for case in stored["cases"]
    ]


def _number(name: str, value: Any) -> Any:
    if name in ("name", "label"):
        return value
    return np.array(value, np.float64) if isinstance(value, list) else float(value)


def deviation(value: Any, expected: Any) -> float:
    """Return the largest difference, relative to max(1, largest entry of expected).

    infinity for another shape or a value that is not finite.
    """
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    if value.shape != expected.shape or not np.isfinite(value).all():
        return float("inf")
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def ours(case: Case) -> dict[str, Any]:
    """Return {name: number} of what minipc computes for one Case."""
    z, y, v, u, one = (row[None] for row in (case.z, case.y, case.v, case.u, np.ones(())))
    raw = LossConfig(case.a, case.b, case.T, case.smoothing, "none")
    terms, cache = losses.loss_forward(z, y, v, u, one, raw)
    p, r = (np.exp(losses.log_softmax_forward(row / case.T)[0]) for row in (v, u))
    numbers = {
        "y": losses.smooth_labels(np.array([case.label]), len(case.z), case.smoothing, np.float64)[
            0
        ],
        "labels": terms.labels,
        "distillation": terms.distillation,
        "self_distillation": terms.self_distillation,
        "loss": terms.total,
        "gradient": losses.loss_backward(cache)[0],
        "margins": losses.margins(y, p, r, np.array([[case.b]]), raw)[0],
        "guarded_weights": losses.guarded(case.a * p, case.b * r)[0],
    }
    if case.b == 0 or case.b < case.a / 2:  # the guard accepts these weights
        terms, cache = losses.loss_forward(
            z, y, v, u, one, LossConfig(case.a, case.b, case.T, case.smoothing, "clip")
        )
        # The vectors hold (L8), which differs from our loss by these constants.
        constants = case.T**2 * (case.a * special.entr(p) - case.b * special.entr(r)).sum()
        numbers |= {
            "guarded_loss": terms.total + constants,
            "guarded_gradient": losses.loss_backward(cache)[0],
        }
    return numbers


def check(
    function: Callable[[Case], dict[str, Any]] = ours,
) -> list[tuple[str, str, float]]:
    """Return [(case name, number, deviation)] of all that function(case) returns, worst first.

    Raises UsageError for a number that no case has.
    """
    rows = []
    for case in cases():
        for name, value in function(case).items():
            if name not in Case._fields:
                raise UsageError(
                    f"vectors: expected some of {', '.join(Case._fields)}, got {name!r}"
                )
            rows.append((case.name, name, deviation(value, getattr(case, name))))
    return sorted(rows, key=lambda row: -row[2])
