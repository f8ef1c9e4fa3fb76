"""What a teacher must be: its answers, and the trial before the first shard.

A teacher is any callable from points (B, P, 3) to logits (B, K).  It must repeat itself, whatever
else is in the block; it must answer with logits, not with probabilities; and it must be better than
a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.backend import to_host
from minipc.errors import DataError, short
from minipc.models.inputs import Inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any

# Largest difference between two answers to the same clouds, in units of the largest logit of the
# row: what another order of summation may change (threads, atomics of a device), as `minipc verify`
# allows it; dropout changes more.
REPEATS = 1e-4
# A softmax in float16, stored as float16: two roundings to 11 bits.
SUMS_TO_ONE = 2e-3
# A teacher that guesses passes either test of Trial with at most this probability, and one of the
# two in 1 of 100.
LEVEL = 0.005
REMEDY = "return an array of logits (B, K), for PyTorch logits.detach().cpu().float().numpy()"


def asked(logits_of: Callable[..., Any], points: Any, groups: Iterable[Any]) -> Any:
    """Return what a teacher returns for points (B, P, 3) and their groups, on one module.

    Any callable of points is a teacher; one that reads groups too gets Inputs.
    """
    return logits_of(Inputs(points, tuple(groups)) if groups else points)


def answer(returned: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return what a teacher returned for one block as a new array of this shape, float32, on the
    host.

    Arrays of the backend, and whatever NumPy makes an array of floating point numbers of: a PyTorch
    tensor on the CPU too.  Raises DataError for anything else, with what to return instead.
    """
    kind = type(returned).__name__
    if returned is None:
        raise DataError(f"teacher: returned None; is a `return` missing? {REMEDY}")
    if isinstance(returned, (tuple, list, dict)):
        held = (
            f"with {short(', '.join(map(str, returned)))}"
            if isinstance(returned, dict)
            else f"of {len(returned)}"
        )
        raise DataError(
            f"teacher: returned a {kind} {held}; take the logits out of it and {REMEDY}"
        )
    try:
        array = np.asarray(to_host(returned))
    except (
        RuntimeError,
        TypeError,
        ValueError,
    ) as reason:  # PyTorch: gradients, a device, bfloat16
        why = " ".join(str(reason).split()).rstrip(".")
        raise DataError(
            f"teacher: returned a {kind} that is no array of numbers ({why}); {REMEDY}"
        ) from reason
    if array.dtype.kind != "f":
        what = (
            "classes or votes are no logits"
            if array.dtype.kind in "biu"
            else "expected floating point numbers"
        )
        raise DataError(f"teacher: returned a {kind} of dtype {array.dtype}: {what}; {REMEDY}")
    if array.shape != shape:
        raise DataError(
            f"teacher: expected logits of shape {shape}, a row for each cloud and a column for "
            "each class name, got "
            f"{array.shape}; {REMEDY}"
        )
    with np.errstate(over="ignore"):  # infinite then, which is refused where it is seen
        return array.astype(
            np.float32
        )  # always a copy: the teacher may write over what it returned


def check_repeats(
    logits_of: Callable[..., Any],
    block: np.ndarray,
    classes: int,
    xp: ModuleType,
    alone: bool = True,
    groups: Sequence[Any] = (),
) -> None:
    """Raise DataError unless the teacher says the same of the same clouds twice.

    block (B, P, 3) float32 and groups of it, on the host.  alone: of half of them beside other
    clouds too, which finds batch statistics.
    """
    half = len(block) // 2
    beside = np.concatenate([np.arange(half), np.zeros(len(block) - half, int)])

    def logits(rows: np.ndarray) -> np.ndarray:
        # copies: it may write into them
        points, *near = (xp.array(array[rows]) for array in (block, *groups))
        return answer(asked(logits_of, points, near), (len(points), classes))

    rows = np.arange(len(block))
    first = logits(rows)
    off = _difference(first, logits(rows))
    if off:
        raise DataError(
            f"teacher: asked twice about the same clouds it gave logits that differ by {off:.2g}: "
            "something in it is "
            "random; switch dropout off (PyTorch: model.eval()), or draw from a generator that is "
            "seeded in each call"
        )
    off = _difference(first[:half], logits(beside)[:half]) if alone else 0.0
    if off:
        raise DataError(
            f"teacher: the logits of a cloud differ by {off:.2g} with the clouds beside it: batch "
            "statistics? use "
            "running ones (PyTorch: model.eval()), or pass --force"
        )


@np.errstate(invalid="ignore")  # inf - inf: what is not finite has a message of its own
def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference that is more than rounding, or 0."""
    off = np.abs(one - other)
    return float(np.where(off > REPEATS * np.abs(one).max(axis=1, keepdims=True), off, 0).max())


def check_no_probabilities(logits: np.ndarray) -> None:
    """Raise DataError where every row of logits (R, K) is a probability distribution.

    Logarithms of probabilities are logits: their softmax is what they are the logarithms of.
    """
    if (logits >= 0).all() and (
        np.abs(logits.sum(axis=1, dtype=np.float64) - 1) < SUMS_TO_ONE
    ).all():
        raise DataError(
            "teacher: returned probabilities (no number is negative, every row sums to one), and a "
            "softmax of them is "
            "nearly flat; return the logits before its softmax, or the logarithms of the "
            "probabilities"
        )


class Trial(NamedTuple):
    """A teacher on some training clouds, held against guessing by two tests; either will do."""

    correct: int
    clouds: int
    class_accuracy: float  # mean over the classes that occur
    needed: int | None  # right answers that pass the first test; None where not even all of them do
    class_needed: (
        float | None
    )  # mean class accuracy that passes the second; None where not even 1 does

    @property
    def passed(self) -> bool:
        """Whether it is better than a guess, or there are too few clouds for any teacher to show
        that.
        """
        by_count = self.needed is not None and self.correct >= self.needed
        return (
            self.undecidable
            or by_count
            or (self.class_needed is not None and self.class_accuracy >= self.class_needed)
        )

    @property
    def undecidable(self) -> bool:
        return self.needed is None and self.class_needed is None


def trial(labels: np.ndarray, logits: np.ndarray, share: float) -> Trial:
    """Return the Trial of logits (R, K) for clouds of these labels (R,); share: of the largest
    class in all clouds.

    Who answers without looking is right in each cloud with a probability of at most share, so the
    tail of the binomial distribution bounds that of the right answers: exact for whoever always
    names the largest class.  The mean class accuracy A of C classes is the mean of independent
    answers with weights 1 / (C n_k), and not above 1 / C on average; by Hoeffding's inequality P(A
    >= 1 / C + d) <= exp(-2 (C d)^2 / sum_k 1 / n_k).
    """
    from scipy.special import bdtrc  # here, for a light start of whatever tries no teacher

    right, number = logits.argmax(axis=1) == labels, len(labels)
    enough = np.flatnonzero(
        bdtrc(np.arange(number), number, share) <= LEVEL
    )  # P(more than k right)
    _, of, per_class = np.unique(labels, return_inverse=True, return_counts=True)
    class_accuracy = (np.bincount(of, right) / per_class).mean()
    least = (1 + np.sqrt(-np.log(LEVEL) / 2 * (1 / per_class).sum())) / len(per_class)
    return Trial(
        int(right.sum()),
        number,
        float(class_accuracy),
        int(enough[0]) + 1 if len(enough) else None,
        float(least) if least <= 1 else None,
    )


def check_chance(trial: Trial, force: bool, say: Callable[[str], None]) -> None:
    """Raise DataError for a Trial that is not passed, unless force; say where it could not tell."""
    if trial.passed or force:
        if trial.undecidable:
            say(
                f"teacher: {trial.correct} of {trial.clouds} training clouds right; so few cannot "
                "tell it from a guess"
            )
        return
    needed = [f"{trial.needed} right"] * (trial.needed is not None)
    # mypy is right: where class_needed is None this line raises a TypeError
    needed += [f"{100 * trial.class_needed:.1f} % by class"] * (trial.class_needed is not None)  # type: ignore[operator]
    raise DataError(
        f"teacher: {trial.correct} of {trial.clouds} training clouds right, mean class accuracy "
        f"{100 * trial.class_accuracy:.1f} %: no better than chance ({' or '.join(needed)} "
        "needed); check that it was "
        "trained on this data, or pass --force"
    )
