"""Averages of the weights along a training; training itself goes on from the live weights.

ema: a moving average over steps (Polyak & Juditsky 1992 gave every step the same weight); last: the
mean of the weights at the ends of the last n epochs (Izmailov et al. 2018).  The average is kept in
float64, where a step of (1 - m) times a small difference is not lost.  Its state is part of the
checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.backend import to_host
from minipc.errors import DataError

if TYPE_CHECKING:
    from minipc.settings import TrainConfig


class EmaWeights:
    """The moving average with the bias of its start divided out.  (O5)

    After step t it is the mean of the weights after steps 1 .. t with weights m^(t - i), which
    add up to one: the first weights, before any step, have no part in it.
    """

    def __init__(self, decay: float) -> None:
        """decay: m, of each step."""
        self.decay = decay
        self.mean: dict[str, Any] = {}  # {name: float64 array}
        # share() of the step, where a device has it: a CUDA graph keeps numbers given by value
        self.held: Any = None

    def share(self, step: int) -> float:
        """Return the share that the weights after a step, counted from 1, have in the mean."""
        return (1 - self.decay) / (1 - self.decay**step)

    def stepped(self, params: dict[str, Any], step: int) -> None:
        """Receive the weights after a step, counted from 1; the next may overwrite them."""
        if not self.mean:
            self.mean = {name: value.astype(np.float64) for name, value in params.items()}
            return
        share = self.share(step) if self.held is None else self.held
        for name, value in params.items():
            self.mean[name] += share * (value - self.mean[name])

    def epoch_ended(self, params: dict[str, Any]) -> None:
        """Receive the weights after an epoch, which are those after its last step."""

    def params(self) -> dict[str, Any]:
        """Return the averaged weights {name: float32 array}."""
        return {name: value.astype(np.float32) for name, value in self.mean.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Return {name: array on the host}: everything that a resumed run needs."""
        return {name: to_host(value).copy() for name, value in self.mean.items()}

    def load(self, state: dict[str, np.ndarray], like: dict[str, Any], xp: Any) -> None:
        """Restore what state() returned, onto xp; like: weights {name: array} of this model.

        Raises DataError for a state of other weights.
        """
        _check_state(state, {name: (value.shape, "f8") for name, value in like.items()})
        self.mean = {name: xp.asarray(state[name]).copy() for name in like}  # in this order


class LastWeights:
    """The mean of the weights at the ends of the last n epochs; of all of them before the n-th."""

    def __init__(self, epochs: int) -> None:
        """epochs: n."""
        self.epochs = epochs
        self.kept: list[dict[str, Any]] = []  # weights, the oldest epoch first

    def stepped(self, params: dict[str, Any], step: int) -> None:
        """Receive the weights after a step: they have no part in it."""

    def epoch_ended(self, params: dict[str, Any]) -> None:
        """Receive the weights after an epoch; the next step may overwrite them."""
        copied = {name: value.copy() for name, value in params.items()}
        self.kept = [*self.kept, copied][-self.epochs :]

    def params(self) -> dict[str, Any]:
        """Return the averaged weights {name: float32 array}."""
        return {
            name: (
                sum(params[name].astype(np.float64) for params in self.kept) / len(self.kept)
            ).astype(np.float32)
            for name in self.kept[0]
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return {name: array on the host}: everything that a resumed run needs."""
        return {
            f"{age}.{name}": to_host(value).copy()
            for age, params in enumerate(reversed(self.kept))
            for name, value in params.items()
        }

    def load(self, state: dict[str, np.ndarray], like: dict[str, Any], xp: Any) -> None:
        """Restore what state() returned, onto xp; like: weights {name: array} of this model.

        Raises DataError for a state of other weights.
        """
        ages = range(min(len(state) // len(like), self.epochs))[::-1]
        expected = {f"{age}.{name}": (v.shape, "f4") for age in ages for name, v in like.items()}
        _check_state(state, expected)
        self.kept = [
            {name: xp.asarray(state[f"{age}.{name}"]).copy() for name in like} for age in ages
        ]


def _check_state(state: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Raise DataError unless state has the expected {name: (shape, dtype)}, and something."""
    found = {name: (value.shape, value.dtype.str[1:]) for name, value in state.items()}
    if not found or found != expected:
        raise DataError(
            "checkpoint: its averaged weights are not those of this run, or are gone; train again"
        )


def averaging(config: TrainConfig) -> EmaWeights | LastWeights | None:
    """Return the average that a run keeps, None for the live weights alone."""
    if config.average == "none":
        return None
    if config.average == "ema":
        return EmaWeights(config.average_decay)
    return LastWeights(config.average_epochs)
