"""Convert our a, b and T to the conventions of other libraries, and back.

The libraries use the same divergence.  They divide it by different factors, up to K or T^2, and use
the same letter for different terms.  Ours is T^2 KL, summed over classes, mean over the batch.
"""

from collections.abc import Callable
from math import inf, isfinite
from typing import NamedTuple

from minipc.errors import UsageError


class Convention(NamedTuple):
    """labels * CE + soft * factor * (T^2 KL, summed over classes, mean over the batch)."""

    used_by: str
    formula: str
    factor: Callable[[float, int], float]  # (T, K) -> their KD term in units of ours
    weights: Callable[[float], tuple[float, float]]  # their one weight -> (labels, soft)
    # (labels, soft) of any scale -> their one weight, inf if no weight fits
    weight: Callable[[float, float], float]


def _share(labels: float, soft: float) -> float:
    return soft / (labels + soft)


CONVENTIONS = {
    "repdistiller": Convention(
        "RepDistiller, with gamma = 1 - alpha",
        "gamma CE + alpha T^2 KL, summed over classes / batch",
        lambda T, K: 1.0,
        lambda alpha: (1 - alpha, alpha),
        _share,
    ),
    "torchdistill": Convention(
        # With alpha = 0 some versions leave out T^2: no weight surely means distillation alone.
        "torchdistill KDLoss: alpha > 0 is the weight of the labels",
        "alpha CE + (1 - alpha) T^2 KL, batchmean",
        lambda T, K: 1.0,
        lambda alpha: (alpha, 1 - alpha),
        lambda labels, soft: 1 - _share(labels, soft) if labels else inf,
    ),
    "mmrazor": Convention(
        "mmrazor KLDivergence beside a loss of weight 1",
        "CE + loss_weight tau^2 KL, batchmean",
        lambda T, K: 1.0,
        lambda w: (1.0, w),
        lambda labels, soft: soft / labels if labels else inf,
    ),
    "deit": Convention(
        "DeiT, openpoints",
        "(1 - alpha) CE + alpha tau^2 KL / (B K)",
        lambda T, K: 1 / K,
        lambda alpha: (1 - alpha, alpha),
        _share,
    ),
    "plain": Convention(
        "scripts that forget T^2",
        "(1 - alpha) CE + alpha KL, batchmean",
        lambda T, K: 1 / T**2,
        lambda alpha: (1 - alpha, alpha),
        _share,
    ),
}
# No weight makes this a KL, because its gradient has another direction.
KD_LIB = (
    "KD_Lib: (1 - w) CE + w T^2 mean squared difference of probabilities: no KL, and no "
    "weight makes it one"
)


class Translated(NamedTuple):
    weight: float  # in the other convention
    times: float  # our loss / their loss (in from_theirs: their loss / ours)


def to_theirs(name: str, a: float, T: float, classes: int) -> Translated:
    """Return the Translated weight of our first two terms: ours = times * theirs.

    inf if none of their weights fits.  Raises UsageError for an unknown name.
    """
    convention = _named(name)
    factor = convention.factor(T, classes)
    weight = convention.weight(1 - a, a / factor)
    if weight == inf:
        return Translated(inf, inf)
    labels, soft = convention.weights(weight)
    return Translated(weight, 1 / (labels + soft * factor))


def from_theirs(name: str, weight: float, T: float, classes: int) -> Translated:
    """Return Translated: our a for their weight, theirs = times * ours.  Raises UsageError."""
    convention = _named(name)
    if not isfinite(weight):
        raise UsageError(f"{name}: expected a finite weight, got {weight}")
    labels, soft = convention.weights(weight)
    soft *= convention.factor(T, classes)
    if labels < 0 or soft < 0 or labels + soft == 0:
        raise UsageError(
            f"{name}: weight {weight:g} makes the weight of a term negative; between 0 and 1 it "
            "does not"
        )
    return Translated(soft / (labels + soft), labels + soft)


def check_name(name: str) -> None:
    """Raise UsageError for a name that is not in CONVENTIONS."""
    if name not in CONVENTIONS:
        raise UsageError(f"convention: expected {', '.join(CONVENTIONS)}, got {name!r}")


def _named(name: str) -> Convention:
    check_name(name)
    return CONVENTIONS[name]
