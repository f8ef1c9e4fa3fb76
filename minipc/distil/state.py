"""The state of a training in arrays: what a checkpoint holds of it, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from minipc.backend import to_host, tree_to
from minipc.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from minipc.models.checkpoint import Checkpoint
    from minipc.models.file import Model


class State(NamedTuple):
    """What every step changes."""

    params: dict
    stats: dict
    optimiser: Any  # optim.AdamWState or SgdState


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


def restored_average(
    model: Model, state: State, average: Any, stored: dict[str, Any], xp: Any
) -> Model:
    """Return the model that a resumed run had measured; average, or None, loads what is stored.

    Raises DataError unless stored, Checkpoint.average, belongs to this run.
    """
    if bool(stored) != bool(average):
        raise DataError("checkpoint: averaged weights are missing or in excess; train again")
    if not average:
        return model._replace(params=state.params, stats=state.stats)
    weights, stats = (
        {
            name.removeprefix(prefix): value
            for name, value in stored.items()
            if name.startswith(prefix)
        }
        for prefix in ("weights.", "stats.")
    )
    if shapes_of(stats) != shapes_of(state.stats):
        raise DataError("checkpoint: the average's statistics have other sizes; train again")
    average.load(weights, state.params, xp)
    stats = {name: stats[name] for name in state.stats}  # in the order of the model
    return model._replace(params=average.params(), stats=tree_to(xp, stats))


def stored_average(average: Any, stats: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return Epoch.average of an average and the statistics of its weights; empty for None."""
    if not average:
        return {}
    weights = {f"weights.{name}": value for name, value in average.state().items()}
    return weights | {f"stats.{name}": value for name, value in stats.items()}
