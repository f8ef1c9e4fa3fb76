"""The state of a training in arrays: what a checkpoint holds of it, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from minipc.backend import to_host, tree_to
from minipc.errors import DataError
from minipc.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import numpy as np

    from minipc.distil.averaging import EmaWeights, LastWeights
    from minipc.distil.self_target import SelfTarget
    from minipc.models.file import Model


class State(NamedTuple):
    """What every step changes."""

    params: dict  # that learn: the model's, or of the largest network with network augmentation
    stats: dict  # of the model
    optimiser: Any  # optim.AdamWState or SgdState


class Epoch(NamedTuple):
    """The state of a training after an epoch, in arrays on the host that no later epoch changes.

    Weights and moments are copies, because the fast engine and its optimiser write the next step
    into the same arrays.
    """

    rows: list  # one dict of numbers for each epoch so far, as in metrics.jsonl
    model: Model  # what was measured: its weights are the average, if the run keeps one
    params: dict  # those of State: live, and with network augmentation of the largest network
    stats: dict
    steps: int  # of the optimiser, so far
    moments: dict  # of the optimiser, {"m.name": array}
    self_target: dict  # what SelfTarget.state() returned
    average: dict  # {"weights.*": state of the average, "stats.*": its statistics}, or empty
    test_logits: np.ndarray  # (M, K) float32, for the M test clouds

    def checkpoint(self, run_id: str) -> Checkpoint:
        """Return the Checkpoint from which the run with this identity can be resumed."""
        return Checkpoint(
            run_id,
            self.rows,
            self.steps,
            self.params,
            self.stats,
            self.moments,
            self.self_target,
            self.average,
        )


def best_epoch(rows: list[dict]) -> int | None:
    """Return the index of the first epoch of the best validation accuracy, None without one."""
    if not rows or "val_accuracy" not in rows[0]:
        return None
    return max(range(len(rows)), key=lambda epoch: rows[epoch]["val_accuracy"])


def copied(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return copies of arrays, on the host."""
    return {name: to_host(value).copy() for name, value in arrays.items()}


def shapes_of(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array."""
    return {name: value.shape for name, value in arrays.items()}


def moments_of(optimiser: Any) -> dict[str, Any]:
    """Return the arrays of an optimiser's state as {"moment.name": array}."""
    return {
        f"{moment}.{name}": value
        for moment, arrays in optimiser._asdict().items()
        if moment != "step"
        for name, value in arrays.items()
    }


def restored(checkpoint: Checkpoint, fresh: State, xp: Any) -> State:
    """Return the State of a Checkpoint on xp; a fresh State gives the expected names and shapes."""
    for expected, stored in (
        (fresh.params, checkpoint.params),
        (fresh.stats, checkpoint.stats),
        (moments_of(fresh.optimiser), checkpoint.optimiser),
    ):
        if shapes_of(stored) != shapes_of(expected):
            raise DataError(
                "checkpoint: holds other layers or moments than this run has; train again"
            )
    moments = {
        moment: {
            name: xp.asarray(checkpoint.optimiser[f"{moment}.{name}"]).copy()
            for name in fresh.params
        }
        for moment in fresh.optimiser._fields
        if moment != "step"
    }
    # in the order of the model, because files are written in this order
    params, stats = (
        {name: xp.asarray(stored[name]).copy() for name in expected}
        for expected, stored in ((fresh.params, checkpoint.params), (fresh.stats, checkpoint.stats))
    )
    return State(params, stats, type(fresh.optimiser)(step=checkpoint.steps, **moments))


def restored_average(live: Model, average: Any, stored: dict[str, Any], xp: Any) -> Model:
    """Return the model that a resumed run had measured: live, or with the average of its weights.

    average, or None, loads what is stored.  Raises DataError unless stored, Checkpoint.average,
    belongs to this run.
    """
    if bool(stored) != bool(average):
        raise DataError("checkpoint: averaged weights are missing or in excess; train again")
    if not average:
        return live
    weights, stats = (
        {
            name.removeprefix(prefix): value
            for name, value in stored.items()
            if name.startswith(prefix)
        }
        for prefix in ("weights.", "stats.")
    )
    if shapes_of(stats) != shapes_of(live.stats):
        raise DataError("checkpoint: the average's statistics have other sizes; train again")
    average.load(weights, live.params, xp)
    stats = {name: stats[name] for name in live.stats}  # in the order of the model
    return live._replace(params=average.params(), stats=tree_to(xp, stats))


def stored_average(
    average: EmaWeights | LastWeights | None, stats: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return Epoch.average of an average and the statistics of its weights; empty for None."""
    if not average:
        return {}
    weights = {f"weights.{name}": value for name, value in average.state().items()}
    return weights | {f"stats.{name}": value for name, value in stats.items()}


def epoch_of(
    rows: list[dict],
    measured: Model,
    state: State,
    self_target: SelfTarget | None,
    average: EmaWeights | LastWeights | None,
    test_logits: np.ndarray,
) -> Epoch:
    """Return the Epoch that ended in state; measured: the Model of test_logits."""
    model = measured._replace(
        params=copied(measured.params),
        stats=copied(measured.stats),
        trained={"epochs": len(rows), **measured.trained},
    )
    return Epoch(
        rows,
        model,
        copied(state.params),
        copied(state.stats),
        state.optimiser.step,
        copied(moments_of(state.optimiser)),
        self_target.state() if self_target else {},
        stored_average(average, model.stats),
        test_logits,
    )
