"""What a teacher must be: its answers, and the trial before the first shard.

A teacher is any callable from points (B, P, 3) to logits (B, K).  The same cloud must always give
the same logits, whatever else is in the block.  The teacher must return logits, not probabilities,
and must be better than chance.

It may have two attributes, which `minipc verify` compares: teacher_id, the id under which it is
recorded, and made_with, a dict of JSON values: what its own library computes with, for the
provenance of the shards.
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

# Largest difference between two answers to the same clouds, relative to the largest logit of the
# row.  Another order of summation (threads, atomics of a device) stays below it; dropout does not.
# `minipc verify` allows the same.
REPEATS = 1e-4
# A softmax in float16, stored as float16: two roundings to 11 bits.
SUMS_TO_ONE = 2e-3
# A guessing teacher passes each test of Trial with at most this probability, so it passes one of
# the two with at most 1 %.
LEVEL = 0.005
REMEDY = "return an array of logits (B, K), for PyTorch logits.detach().cpu().float().numpy()"


def asked(logits_of: Callable[..., Any], points: Any, groups: Iterable[Any]) -> Any:
    """Return the teacher's output for points (B, P, 3) and their groups, all on one module.

    The teacher receives Inputs if there are groups, and the points alone otherwise.
    """
    return logits_of(Inputs(points, tuple(groups)) if groups else points)


def answer(returned: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the teacher's output for one block as a new float32 array of this shape, on the host.

    Accepts arrays of the backend and everything that NumPy converts to floating point, such as a
    PyTorch tensor on the CPU.  Raises DataError for anything else and says what to return.
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
    # PyTorch raises these for gradients, a device, bfloat16
    except (RuntimeError, TypeError, ValueError) as reason:
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
            f"each class name, got {array.shape}; {REMEDY}"
        )
    with np.errstate(over="ignore"):  # overflow gives inf, which a later check refuses
        return array.astype(np.float32)  # always a copy: the teacher may reuse its output buffer


def check_repeats(
    logits_of: Callable[..., Any],
    block: np.ndarray,
    classes: int,
    xp: ModuleType,
    alone: bool = True,
    groups: Sequence[Any] = (),
) -> None:
    """Raise DataError unless two calls on the same clouds give the same logits.

    block (B, P, 3) float32 and its groups, on the host.  alone: also put other clouds beside half
    of the block; this finds teachers that use batch statistics.
    """
    half = len(block) // 2
    beside = np.concatenate([np.arange(half), np.zeros(len(block) - half, int)])

    def logits(rows: np.ndarray) -> np.ndarray:
        # copies: the teacher may write into its inputs
        points, *near = (xp.array(array[rows]) for array in (block, *groups))
        return answer(asked(logits_of, points, near), (len(points), classes))

    rows = np.arange(len(block))
    first = logits(rows)
    gap = _difference(first, logits(rows))
    if gap:
        raise DataError(
            f"teacher: asked twice about the same clouds it gave logits that differ by {gap:.2g}: "
            "something in it is random; switch dropout off (PyTorch: model.eval()), or draw from a "
            "generator that is seeded in each call"
        )
    gap = _difference(first[:half], logits(beside)[:half]) if alone else 0.0
    if gap:
        raise DataError(
            f"teacher: the logits of a cloud differ by {gap:.2g} with the clouds beside it: batch "
            "statistics? use running ones (PyTorch: model.eval()), or pass --force"
        )


@np.errstate(invalid="ignore")  # inf - inf: another check reports non-finite logits
def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference beyond rounding, or 0."""
    gap = np.abs(one - other)
    return float(np.where(gap > REPEATS * np.abs(one).max(axis=1, keepdims=True), gap, 0).max())


def check_no_probabilities(logits: np.ndarray) -> None:
    """Raise DataError if every row of logits (R, K) is a probability distribution.

    Log-probabilities are accepted: their softmax returns the probabilities.
    """
    if (logits >= 0).all() and (
        np.abs(logits.sum(axis=1, dtype=np.float64) - 1) < SUMS_TO_ONE
    ).all():
        raise DataError(
            "teacher: returned probabilities (no number is negative, every row sums to one), and a "
            "softmax of them is nearly flat; return the logits before its softmax, or the "
            "logarithms of the probabilities"
        )


class Trial(NamedTuple):
    """Two tests of a teacher against chance, on some training clouds; passing one is enough."""

    correct: int
    clouds: int
    class_accuracy: float  # mean over the classes that occur
    needed: int | None  # right answers that pass the first test; None if even all right would fail
    # mean class accuracy that passes the second test; None if even 1 would fail
    class_needed: float | None

    @property
    def passed(self) -> bool:
        """Whether the teacher is better than chance, or there are too few clouds to decide."""
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
    """Return the Trial of logits (R, K) for labelled clouds, R >= 1, with labels (R,).

    share: the fraction of all labelled clouds in the largest class.  A teacher that ignores its
    input is right on each cloud with probability at most share, so a binomial tail bounds the
    number of right answers; the bound is exact for a teacher that always names the largest class.
    The mean class accuracy A over C classes with n_k clouds each is a mean of independent answers
    with weights 1 / (C n_k), and its expectation is at most 1 / C.  Hoeffding's inequality gives
    P(A >= 1 / C + d) <= exp(-2 (C d)^2 / sum_k 1 / n_k).
    """
    from scipy.special import bdtrc  # imported here: slow, and only a trial needs it

    right, number = logits.argmax(axis=1) == labels, len(labels)
    p_more = bdtrc(np.arange(number), number, share)  # P(more than k right), k = 0, 1, ...
    enough = np.flatnonzero(p_more <= LEVEL)
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
    """Raise DataError for a failed Trial, unless force; report an undecidable one by say."""
    if trial.passed or force:
        if trial.undecidable:
            say(
                f"teacher: {trial.correct} of {trial.clouds} training clouds right; so few cannot "
                "tell it from a guess"
            )
        return
    needed = [] if trial.needed is None else [f"{trial.needed} right"]
    if trial.class_needed is not None:
        needed.append(f"{100 * trial.class_needed:.1f} % by class")
    raise DataError(
        f"teacher: {trial.correct} of {trial.clouds} training clouds right, mean class accuracy "
        f"{100 * trial.class_accuracy:.1f} %: no better than chance ({' or '.join(needed)} "
        "needed); check that it was trained on this data, or pass --force"
    )
