"""How good a model is: predict in blocks of fixed size, then measure the logits of all clouds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minipc.backend import BLOCK, ordered_map, padded_block, to_host
from minipc.data.augment import apply, draw
from minipc.data.clouds import UNLABELLED
from minipc.errors import DataError, MinipcError
from minipc.models.inputs import Inputs, check_groups
from minipc.models.model import net
from minipc.nn.ops import log_softmax_forward

if TYPE_CHECKING:
    from minipc.data.augment import AugmentConfig
    from minipc.models.file import Model

ECE_BINS = 15
TOGETHER = 128 * BLOCK  # clouds whose logits a device sends back at once
NOT_IN_A_ROW = ("labelled", "confusion")  # of Metrics
VOTE_SEED = 0  # every model votes over the same views, so that voted numbers are comparable


def predict(
    model: Model,
    points: np.ndarray,
    xp: Any,
    threads: int,
    engine: str = "fused",
    groups: tuple | None = None,
) -> np.ndarray:
    """Return the logits (N, K) float32, on the host, of points (N, P, 3) on the host.

    The model's arrays belong to module xp.  groups: what the model's prepare() returns for these
    clouds, on the host; None: computed from points.  The logits of a cloud do not depend on the
    other clouds or on threads: the model's evaluator() guarantees it, and on a device every block
    is padded to 32 clouds, because its library may choose its algorithm by their number.
    Raises MinipcError for logits that are not finite: a metric would hide them.
    """
    compute = net(model.config).evaluator(model.params, model.stats, model.config, engine)
    if groups is None:
        groups = net(model.config).prepare(model.config, points)
    check_groups(groups, len(points))

    def block(array: np.ndarray, first: int) -> np.ndarray:
        return array[first : first + BLOCK] if xp is np else padded_block(array, first, BLOCK)

    def inputs(first: int) -> Inputs:
        points_here, *groups_here = (xp.asarray(block(each, first)) for each in (points, *groups))
        return Inputs(points_here, tuple(groups_here))

    @np.errstate(over="ignore", invalid="ignore")  # the check below raises instead
    def of_block(first: int) -> np.ndarray:
        return compute(inputs(first))

    @np.errstate(over="ignore", invalid="ignore")
    def of_blocks(first: int) -> np.ndarray:
        last = min(first + TOGETHER, len(points))
        features = [compute.features(inputs(here)) for here in range(first, last, BLOCK)]
        return to_host(compute.head(xp.concatenate(features)))[: last - first]

    if xp is np:
        found = list(ordered_map(of_block, range(0, len(points), BLOCK), threads))
    else:
        found = [of_blocks(first) for first in range(0, len(points), TOGETHER)]
    logits = np.concatenate(found)
    if not np.isfinite(logits).all():
        raise MinipcError(
            "model: its logits are no longer finite; it has diverged (start a new run with a lower "
            "--lr), or these "
            "clouds are far larger than those it was trained on"
        )
    return logits


def vote(
    model: Model,
    points: np.ndarray,
    votes: int,
    augment: AugmentConfig,
    xp: Any,
    threads: int,
    engine: str = "fused",
    groups: tuple | None = None,
) -> np.ndarray:
    """Return the log of the mean softmax (N, K) over views 0 .. votes - 1 of points (N, P, 3).

    groups as in predict().
    The views are drawn as in a recording, from a fixed seed.  Voting makes a model look better:
    report the voted number beside the plain one, never instead of it.
    """
    from scipy.special import logsumexp  # imported late: slower than predicting one cloud

    if groups is None:  # of the clouds before augmentation
        groups = net(model.config).prepare(model.config, points)
    views = [
        predict(
            model,
            apply(points, draw(VOTE_SEED, view, 0, len(points), augment)),
            xp,
            threads,
            engine,
            groups,
        )
        for view in range(votes)
    ]
    views = [log_softmax_forward(logits)[0] for logits in views]
    return logsumexp(np.array(views, np.float64), axis=0) - np.log(votes)


class Metrics(NamedTuple):
    labelled: int  # clouds with a label: all numbers are of these alone
    accuracy: float  # share of them
    mean_class_accuracy: float  # mean over the classes that occur
    nll: float  # mean of -log softmax at the label, nats
    ece: float  # expected calibration error, 15 bins of equal width
    confusion: np.ndarray  # (K, K) int64, rows true, columns predicted


def metrics(labels: np.ndarray, logits: np.ndarray) -> Metrics:
    """Return the Metrics of labels (N,) integer, -1 for none, and finite logits (N, K).

    Raises DataError where no cloud has a label: there is nothing to measure.
    Class accuracies come from the confusion matrix; their average over batches, a common mistake,
    is wrong by more than a point.  ECE: Guo et al. 2017, equation 3, bins open on the left.
    """
    known = labels != UNLABELLED
    if not known.any():
        raise DataError(f"labels: none of {len(labels)} clouds has one; label some to measure")
    labels, logits = labels[known], logits[known]
    count, classes = logits.shape
    predicted = logits.argmax(axis=1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(
        classes, classes
    )
    occurring = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[occurring] / confusion.sum(axis=1)[occurring]

    log_p, _ = log_softmax_forward(logits.astype(np.float64))
    confidence = np.exp(log_p.max(axis=1))
    bins = np.maximum(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0)
    # for each bin: its number of clouds x (accuracy - confidence)
    gap = np.bincount(bins, (predicted == labels) - confidence)
    return Metrics(
        labelled=count,
        accuracy=float(np.diag(confusion).sum() / count),
        mean_class_accuracy=float(recall.mean()),
        nll=float(-log_p[np.arange(count), labels].mean()),
        ece=float(np.abs(gap).sum() / count),
        confusion=confusion,
    )


def measured(split: str, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the numbers of one split for a row of metrics: none for a split without labels."""
    if (labels == UNLABELLED).all():
        return {}
    values = metrics(labels, logits)._asdict().items()
    return {f"{split}_{name}": value for name, value in values if name not in NOT_IN_A_ROW}
