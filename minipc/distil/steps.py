"""The steps of an epoch, one after the other; on a device, replayed as a CUDA graph.

All that changes from step to step lies in arrays that stay: parameters, moments and statistics,
written in place, what kernels.held() sends, and the tables of an epoch's rows and rates.  The
steps before the capture run as on any backend; they make the buffers, and they tell which arrays
stay.
"""

from __future__ import annotations

import weakref
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.backend import to_host
from minipc.distil.self_target import Ema, History, SecondRecord, Snapshot
from minipc.nn import graph, kernels

if TYPE_CHECKING:
    from minipc.data.augment import Params
    from minipc.distil.state import State


class Steps:
    """The steps of an epoch, one after the other, and the sums of their numbers."""

    def __init__(self, task: Any) -> None:
        """task: a Task of train.py."""
        self.task = task
        self.sums: dict[str, Any] = {}

    def __call__(self, state: State, rows: np.ndarray, *rest: Any) -> State:
        """Return the State after Task.step(state, rows, *rest)."""
        state, numbers = self.task.step(state, rows, *rest)
        self.sums = {name: self.sums.get(name, 0) + value for name, value in numbers.items()}
        return state


class Replayed:
    """Steps as a graph, captured once three in a row have the very same arrays.

    Two of them run before: the first makes the buffers that the second finds.  The rows and rates
    of an epoch are sent as tables, of which each step takes its own.
    """

    def __init__(self, task: Any) -> None:
        self.task: Any = weakref.ref(task)  # which keeps the Workspace that keeps this
        self.names: list[str] = []  # of the numbers of a step
        self.arrays: list[Any] = []  # of the last step; kept, so that none takes another's place
        self.steps = 0  # that ran on these arrays
        self.graph: graph.Graph | None = None

    def epoch_starts(self, state: State, order: np.ndarray, lrs: list[float]) -> None:
        """Receive the State before an epoch, its rows one batch after the other, and its rates."""
        task, number = self.task(), state.optimiser.step + 1
        work, config = task.work, task.config
        rates = [
            kernels.adamw_rates(number + step, lr, config.weight_decay)
            for step, lr in enumerate(lrs)
        ]
        dtype = next(iter(state.params.values())).dtype
        order = order[: len(lrs) * config.batch_size].reshape(len(lrs), -1)
        self.tables = (
            kernels.held(work, "order", order.astype(np.int64)),
            kernels.held(work, "rates of an epoch", np.array(rates, dtype)),
        )
        self.counter = work.array("counter", (1,), np.int64)
        self.totals = work.array("totals", (NUMBERS,), dtype)
        self.counter[...] = self.totals[...] = 0

    def __call__(
        self,
        state: State,
        rows: np.ndarray,
        augmentation: Params,
        logits: Any,
        mask: Any,
        lr: float,
        at: tuple[int, int],
    ) -> State:
        """Return the State after the next step of the epoch."""
        task, number = self.task(), state.optimiser.step + 1
        work = task.work
        mask = kernels.held(work, "mask", mask)
        arrays = [
            *(*self.tables, self.counter, self.totals, *augmentation, logits, mask),
            *(*_of(task.self_target), *_of(state), *_of(state.optimiser)),
        ]

        def step() -> State:
            work.holds = True
            try:
                kernels.next_of(*self.tables, self.counter, work)
                after, numbers = task.step(state, rows, augmentation, logits, mask, lr, at)
                self.names = list(numbers)
                kernels.add_to(self.totals, list(numbers.values()))
            finally:
                work.holds = False
            return after

        if len(arrays) != len(self.arrays) or not all(map(is_, arrays, self.arrays)):
            self.arrays, self.graph, self.steps = arrays, None, 0
        if self.steps == EAGER:
            self.graph = graph.captured(step, work)
        self.steps += 1
        if self.graph is None:
            return step()
        after = self.graph.replay()
        return after._replace(optimiser=after.optimiser._replace(step=number))

    @property
    def sums(self) -> dict[str, Any]:
        """The sums of the numbers of the steps since the epoch started."""
        return dict(zip(self.names, to_host(self.totals)[: len(self.names)], strict=True))


EAGER, NUMBERS = 2, 8  # steps before a capture, and at least the numbers of a step


def steps_of(task: Any, state: State, order: np.ndarray, lrs: list[float]) -> Steps | Replayed:
    """Return the steps of an epoch: Replayed on a device that captures graphs, else Steps.

    SGD, an average of weights over steps, network augmentation and the textbook engine give
    kernels numbers or arrays that change from step to step, and run one operation at a time; so do
    self targets that are not ours, of which we do not know.
    order, lrs: the rows and the learning rates of the epoch.
    """
    config, work = task.config, task.work
    stays = (config.engine, config.optimiser) == ("fused", "adamw") and config.average != "ema"
    known = type(task.self_target) in (type(None), Snapshot, Ema, History, SecondRecord)
    if not (stays and known) or task.widening or graph.why_not(task.xp):
        return Steps(task)
    if work.replayed is None or work.replayed.task() is not task:
        work.replayed = Replayed(task)
    work.replayed.epoch_starts(state, order, lrs)
    return work.replayed


def _of(holder: Any) -> list[Any]:
    """Return the arrays that lie in a tuple, or in the attributes of an object, also in dicts."""
    if holder is None:
        return []
    found = holder if isinstance(holder, tuple) else vars(holder).values()
    dicts = [value.values() if isinstance(value, dict) else [value] for value in found]
    return [value for values in dicts for value in values if hasattr(value, "dtype")]
