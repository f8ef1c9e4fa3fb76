"""The steps of an epoch, one after the other; on a device, replayed as a CUDA graph.

All that changes from step to step lies in arrays that stay: parameters, moments, statistics and
averages, what kernels.held() sends, and the tables of an epoch's rows and rates.  The steps before
the capture run as on any backend; they make the buffers, and they tell which arrays stay.
"""

from __future__ import annotations

import weakref
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.backend import to_host
from minipc.distil.averaging import EmaWeights
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
        task, first = self.task(), state.optimiser.step + 1
        work, config = task.work, task.config
        dtype, rates = next(iter(state.params.values())).dtype, np.array(lrs)
        if config.optimiser == "adamw":
            of_steps = (
                kernels.adamw_rates(first + step, lr, config.weight_decay)
                for step, lr in enumerate(lrs)
            )
            rates = np.array(list(of_steps))
        order = order[: len(lrs) * config.batch_size].reshape(len(lrs), -1)
        tables = {"rows": order.astype(np.int64), "rates": rates.astype(dtype)}
        if isinstance(task.average, EmaWeights):
            shares = [task.average.share(first + step) for step in range(len(lrs))]
            tables["share"] = np.array(shares)
        self.tables = {
            name: kernels.held(work, f"{name} of an epoch", table) for name, table in tables.items()
        }
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
        mask = kernels.held(task.work, "mask", mask)
        arrays = [
            *(*self.tables.values(), self.counter, self.totals, *augmentation, logits, mask),
            *(*_of(task.self_target), *_of(task.average), *_of(state), *_of(state.optimiser)),
        ]

        def step() -> State:
            return self._step(state, rows, augmentation, logits, mask, lr, at)

        if len(arrays) != len(self.arrays) or not all(map(is_, arrays, self.arrays)):
            self.arrays, self.graph, self.steps = arrays, None, 0
        if self.steps == EAGER:
            self.graph = graph.captured(step, task.work)
        self.steps += 1
        if self.graph is None:
            return step()
        after = self.graph.replay()
        return after._replace(optimiser=after.optimiser._replace(step=number))

    def _step(
        self,
        state: State,
        rows: np.ndarray,
        augmentation: Params,
        logits: Any,
        mask: Any,
        lr: Any,
        at: tuple[int, int],
    ) -> State:
        """Return the State after Task.step() by the tables' next row, in the arrays of state."""
        task = self.task()
        work, average, target = task.work, task.average, task.self_target
        sgd = task.config.optimiser == "sgd"
        earlier = isinstance(target, Ema) and target.params
        work.holds = True
        try:
            kernels.next_of(self.tables, self.counter, work)
            if sgd:
                lr = kernels.held(work, "rates", np.array(lr, self.tables["rates"].dtype))
            if isinstance(average, EmaWeights):
                average.held = kernels.held(work, "share", np.array(0.0))
            after, numbers = task.step(state, rows, augmentation, logits, mask, lr, at)
            self.names = list(numbers)
            kernels.add_to(self.totals, list(numbers.values()))
        finally:
            work.holds = False
            if isinstance(average, EmaWeights):
                average.held = None
            if earlier:  # even if it fails: nobody fills the arrays of a capture that did
                made, target.params = target.params, earlier
        if earlier:
            _keep(earlier, made)
        if sgd:
            _keep(state.params, after.params)
            _keep(state.optimiser.velocity, after.optimiser.velocity)
            kept = after.optimiser._replace(velocity=state.optimiser.velocity)
            after = after._replace(params=state.params, optimiser=kept)
        return after

    @property
    def sums(self) -> dict[str, Any]:
        """The sums of the numbers of the steps since the epoch started."""
        return dict(zip(self.names, to_host(self.totals)[: len(self.names)], strict=True))


EAGER, NUMBERS = 2, 8  # steps before a capture, and at least the numbers of a step


def steps_of(task: Any, state: State, order: np.ndarray, lrs: list[float]) -> Steps | Replayed:
    """Return the steps of an epoch: Replayed on a device that captures graphs, else Steps.

    Network augmentation and the textbook engine give kernels numbers or arrays that change from
    step to step, and run one operation at a time; so do self targets that are not ours, of which we
    do not know.
    order, lrs: the rows and the learning rates of the epoch.
    """
    config, work = task.config, task.work
    known = type(task.self_target) in (type(None), Snapshot, Ema, History, SecondRecord)
    if config.engine != "fused" or not known or task.widening or graph.why_not(task.xp):
        return Steps(task)
    if work.replayed is None or work.replayed.task() is not task:
        work.replayed = Replayed(task)
    work.replayed.epoch_starts(state, order, lrs)
    return work.replayed


def _keep(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Write new arrays into the old ones, where the next step finds them."""
    for name, value in new.items():
        old[name][...] = value


def _of(holder: Any) -> list[Any]:
    """Return the arrays that lie in a tuple, or in the attributes of an object, also in dicts."""
    if holder is None:
        return []
    found = holder if isinstance(holder, tuple) else vars(holder).values()
    dicts = [value.values() if isinstance(value, dict) else [value] for value in found]
    return [value for values in dicts for value in values if hasattr(value, "dtype")]
