"""Batch-norm statistics of given weights, estimated in one pass over training clouds.

Averaged weights were never run in a training step, and in network augmentation each step also moves
them for another network, so the running statistics are of other weights.  Here the weights are run
as in training, with batch statistics, and the moments of all batches are pooled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.errors import DataError
from minipc.models.model import net
from minipc.nn.ops import BatchStats

if TYPE_CHECKING:
    from collections.abc import Iterable


def pooled(batches: Iterable[BatchStats]) -> BatchStats:
    """Return the moments of the rows of all batches, in float64.  (M23)

    mean and var (O,) of each batch may have any dtype; var has divisor rows, here too.  The result
    depends on the order of the batches in the last place alone.  Raises DataError for no batch.
    """
    batches = list(batches)
    if not batches:
        raise DataError("statistics: there is no batch to estimate from; give one at least")
    rows = sum(batch.rows for batch in batches)
    mean = sum(batch.mean.astype(np.float64) * (batch.rows / rows) for batch in batches)
    # around the mean of all: squares of means would cancel
    var = sum(
        (batch.var.astype(np.float64) + (batch.mean.astype(np.float64) - mean) ** 2)
        * (batch.rows / rows)
        for batch in batches
    )
    return BatchStats(mean, var, rows)


def estimate(
    params: dict[str, Any],
    config: Any,
    batches: Iterable[Any],
    engine: str = "fused",
    work: Any = None,
) -> dict[str, Any]:
    """Return {name.mean, name.var: float32 (O,)}: the statistics of params over all batches.

    params: {name: array} of the model with this config; batches: Inputs of the augmented clouds,
    on the module of params, each normalised by its own moments as in a training step, without
    dropout.  var has divisor rows - 1 over the rows of all batches, as track() has it.  work: the
    Workspace of a run; every tape in it becomes unreadable.  Nothing that is given is changed.
    Raises DataError for no batch.
    """
    of_layer: dict[str, list[BatchStats]] = {}
    for inputs in batches:
        _, batch, _ = net(config).forward_train(params, inputs, config, None, engine, work)
        for name, (mean, var, rows) in batch.items():
            # copies: the next forward may write into the same buffers
            kept = BatchStats(mean.astype(np.float64), var.astype(np.float64), rows)
            of_layer.setdefault(name, []).append(kept)
    if not of_layer:
        raise DataError("statistics: there is no batch to estimate from; give one at least")
    stats: dict[str, Any] = {}
    for name, parts in of_layer.items():
        mean, var, rows = pooled(parts)
        stats[f"{name}.mean"] = mean.astype(np.float32)
        stats[f"{name}.var"] = (var * (rows / max(rows - 1, 1))).astype(np.float32)
    # in the order of the model, because files are written in this order
    return {name: stats[name] for name in net(config).initial_stats(config)}
