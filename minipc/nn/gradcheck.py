"""Analytic gradients against central differences: small, strict, and itself tested.

One random unit direction for each array, never one joint direction (which overlooks a small
gradient among large ones), always in float64 (float32 cannot resolve an error of 0.1 %), always
on new arrays (a perturbation in place would reach cached references).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from minipc.errors import CheckFailed, DataError, check_shape

STEP = 1e-5  # along a unit direction; near the optimum eps^(1/3) of central differences
ROUNDINGS = 1000  # units in the last place of f that a sum of many terms may be off
ZERO = 1e-9  # of the largest gradient: below this a true gradient counts as zero


class GradientReport(NamedTuple):
    """One array's directional derivative, twice."""

    name: str
    analytic: float
    numeric: float
    largest: float  # the largest gradient norm among the arrays checked together

    @property
    def error(self) -> float:
        """|analytic - numeric|, relative to the larger, or to `largest` where both vanish."""
        size = max(abs(self.analytic), abs(self.numeric))
        # Noise of the difference quotient hides a gradient that is truly zero, e.g. of a beta
        # that the batch norm of a later layer cancels.
        scale = self.largest if abs(self.analytic) <= ZERO * self.largest else size
        return abs(self.analytic - self.numeric) / scale if scale else 0.0


def check_gradients(
    f: Callable[[dict[str, np.ndarray]], float],
    inputs: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    rng: np.random.Generator,
    step: float = STEP,
) -> list[GradientReport]:
    """Return a GradientReport for each array of inputs.

    f(inputs) -> float, inputs and grads dicts of float64 numpy arrays with the same names and
    shapes.  Raises DataError for another dtype, names that differ, or a wrong shape.
    """
    if inputs.keys() != grads.keys():
        raise DataError(f"gradients: only one side has {sorted(inputs.keys() ^ grads.keys())}")
    for name, value in inputs.items():
        if value.dtype != np.float64:
            raise DataError(f"{name}: a gradient check needs float64, got {value.dtype}")
        check_shape(f"gradient of {name}", grads[name], value.shape)
    largest = max(float(np.linalg.norm(g)) for g in grads.values())
    reports = []
    for name, value in inputs.items():
        direction = rng.standard_normal(value.shape)
        direction /= np.linalg.norm(direction)
        analytic = float((grads[name] * direction).sum())
        numeric = central_difference(f, inputs, name, direction, step)
        reports.append(GradientReport(name, analytic, numeric, largest))
    return reports


def central_difference(
    f: Callable[[dict[str, np.ndarray]], float],
    inputs: dict[str, np.ndarray],
    name: str,
    direction: np.ndarray,
    step: float = STEP,
) -> float:
    """Return (f(x + h u) - f(x - h u)) / 2h, x the array of this name and the others fixed."""
    value = inputs[name]
    plus = f(inputs | {name: value + step * direction})
    minus = f(inputs | {name: value - step * direction})
    return float(plus - minus) / (2 * step)


def require(reports: Iterable[GradientReport], tolerance: float = 1e-6) -> None:
    """Raise CheckFailed naming the worst array unless every relative error is below tolerance."""
    # NaN is the worst: `not error <= tolerance` is True for it, and True sorts last.
    worst = max(reports, key=lambda report: (not report.error <= tolerance, report.error))
    if not worst.error <= tolerance:
        raise CheckFailed(
            f"gradient of {worst.name}: analytic {worst.analytic:.9g}, "
            f"numeric {worst.numeric:.9g}, relative error {worst.error:.2g} exceeds {tolerance:g}"
        )


def taylor_rates(
    f: Callable[[np.ndarray], float],
    x: np.ndarray,
    grad: np.ndarray,
    direction: np.ndarray,
    steps: int = 4,
    first: float = 1e-2,
) -> list[float]:
    """Return the observed orders of |f(x + h u) - f(x) - h <grad, u>| as h halves; 2 is correct.

    x, grad and direction are float64 arrays of one shape.  A gradient that is wrong shows order 1
    as soon as its error dominates; no step has to be chosen.  NaN where the smaller rest is no more
    than the rounding of f, as it is for a linear f.
    """
    start, slope = f(x), float((grad * direction).sum())
    rests = []
    for i in range(steps + 1):
        h = first / 2**i
        rests.append(abs(f(x + h * direction) - start - h * slope))
    rounding = ROUNDINGS * np.finfo(np.float64).eps * max(abs(start), 1.0)
    return [
        float(np.log2(rests[i] / rests[i + 1])) if rests[i + 1] > rounding else float("nan")
        for i in range(steps)
    ]
