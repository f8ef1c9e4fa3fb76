"""The student's earlier self: where the logits u of the negative-weight term come from.

We do not know which self arXiv 2409.02020 means; these are our readings, and docs/math.md derives
their effects.  The student's own output in the same step is excluded: its gradient is identically
zero.  A row that has no target yet gets weight zero.  The checkpoint of a run holds the whole state
of its target, so that a resumed run computes the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minipc.backend import module_of, to_host, tree_to
from minipc.models.inputs import points_of
from minipc.nn.kernels import rows_of


class SelfTarget:
    """The methods that training calls, in this order; each kind overrides those it needs."""

    def epoch_starts(self, epoch: int, xp: Any) -> None:
        """Prepare for an epoch, counted from 0, on module xp."""

    def target(self, rows: Any, inputs: Any) -> tuple[Any, Any] | None:
        """Return u (B, K) and has (B,) of 0 and 1 for rows (B,); None: no row has u."""
        raise NotImplementedError

    def stepped(self, rows: Any, logits: Any, params: dict) -> None:
        """Receive the logits (B, K) of a step on the clouds in rows, and the new params."""

    def epoch_ended(self, epoch: int, params: dict) -> None:
        """Receive the params after an epoch; copy them, the next step may overwrite them."""

    def state(self) -> dict[str, np.ndarray]:
        """Return {name: array on the host}: everything that a resumed run needs."""
        return {}

    def load(self, state: dict[str, np.ndarray], xp: Any) -> None:
        """Restore what state() returned, onto module xp."""


class Snapshot(SelfTarget):
    """The student after the latest epoch divisible by `every`, run on the same replayed clouds.

    forward(params, inputs) -> logits uses batch norm as in training (batch statistics, not tracked)
    and no dropout, in one Workspace from step to step.  So a snapshot equal to the student gives
    exactly zero self-gradient.
    """

    params: dict | None  # the student's, None before the first snapshot

    def __init__(self, forward: Callable[[dict, Any], Any], every: int = 1) -> None:
        self.forward, self.every, self.params = forward, every, None

    def target(self, rows: Any, inputs: Any) -> tuple[Any, Any] | None:
        if self.params is None:
            return None
        u = self.forward(self.params, inputs)
        return u, module_of(u).ones(len(u), u.dtype)

    def epoch_ended(self, epoch: int, params: dict) -> None:
        if (epoch + 1) % self.every == 0:
            self.params = {name: value.copy() for name, value in params.items()}

    def state(self) -> dict[str, np.ndarray]:
        return {name: to_host(value) for name, value in (self.params or {}).items()}

    def load(self, state: dict[str, np.ndarray], xp: Any) -> None:
        self.params = tree_to(xp, state) or None


class Ema(Snapshot):
    """A moving average of the student's weights: e <- m e + (1 - m) w after every step.

    e are the averaged weights, w the student's, m is decay.  Run like a snapshot, with batch
    statistics: a student at rest then equals its average exactly, so the stationary points stay
    and averaged statistics are not needed.  The average is that of Tarvainen & Valpola 2017.
    """

    def __init__(self, forward: Callable[[dict, Any], Any], decay: float = 0.99) -> None:
        super().__init__(forward)
        self.decay = decay

    def stepped(self, rows: Any, logits: Any, params: dict) -> None:
        old, m = self.params or params, self.decay
        # e + (1 - m)(w - e), not m e + (1 - m) w: at rest this adds exactly zero
        self.params = {
            name: old[name] + (1 - m) * (value - old[name]) for name, value in params.items()
        }

    def epoch_ended(self, epoch: int, params: dict) -> None:
        pass


class History(SelfTarget):
    """The student's own logits at its last visit to the same cloud, usually under another view.

    It costs no forward pass, but it pushes the views of one cloud apart (docs/math.md).  It keeps
    K float16 numbers for each cloud, in memory and in the checkpoint.
    """

    logits: Any  # (N, K) float16 of the last visits
    visited: Any  # (N,) bool

    def __init__(self, clouds: int, classes: int) -> None:
        self.logits = np.zeros((clouds, classes), np.float16)
        self.visited = np.zeros(clouds, bool)

    def epoch_starts(self, epoch: int, xp: Any) -> None:
        self.logits, self.visited = xp.asarray(self.logits), xp.asarray(self.visited)

    def target(self, rows: Any, inputs: Any) -> tuple[Any, Any]:
        dtype = points_of(inputs).dtype
        return rows_of(self.logits, rows, dtype), self.visited[rows].astype(dtype)

    def stepped(self, rows: Any, logits: Any, params: dict) -> None:
        largest = float(np.finfo(np.float16).max)
        self.logits[rows] = module_of(logits).clip(logits, -largest, largest)
        self.visited[rows] = True

    def state(self) -> dict[str, np.ndarray]:
        visited = to_host(self.visited).astype(np.uint8)
        return {"logits": to_host(self.logits).copy(), "visited": visited}

    def load(self, state: dict[str, np.ndarray], xp: Any) -> None:
        self.logits = xp.asarray(state["logits"]).copy()
        self.visited = xp.asarray(state["visited"]).astype(bool)


class SecondRecord(SelfTarget):
    """Logits of an earlier student from a second record of the same views: a frozen target.

    view_logits(epoch) -> (N, K) on the host, of the view that this epoch replays.  The target is
    the same for the whole run, so it shifts the optimum (docs/math.md).
    """

    logits: Any  # (N, K) of the view of this epoch

    def __init__(self, view_logits: Callable[[int], np.ndarray]) -> None:
        self.view_logits, self.logits = view_logits, None

    def epoch_starts(self, epoch: int, xp: Any) -> None:
        self.logits = xp.asarray(self.view_logits(epoch))

    def target(self, rows: Any, inputs: Any) -> tuple[Any, Any]:
        u = rows_of(self.logits, rows, points_of(inputs).dtype)
        return u, module_of(u).ones(len(u), u.dtype)
