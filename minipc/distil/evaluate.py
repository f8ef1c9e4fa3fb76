"""How good a model is: fixed compute blocks, then every number from the logits of all clouds."""

from typing import NamedTuple

import numpy as np

from minipc.backend import BLOCK, ordered_map, padded_block, to_host
from minipc.data.augment import apply, draw
from minipc.errors import MinipcError
from minipc.models.inputs import Inputs
from minipc.models.model import net
from minipc.nn.ops import log_softmax_forward

ECE_BINS = 15
VOTE_SEED = 0  # of the views that vote: the same for every model, so that voting is comparable


def predict(model, points, xp, threads, engine="fused", groups=None):
    """Return the logits (N, K) float32, on the host, of points (N, P, 3) on the host.

    model's arrays belong to xp.  groups: of these clouds, on the host, as prepare() of the model
    returns them; None: made here, from points as they are.  Predictions do not depend on how many
    clouds are asked for, on their places, nor on threads (evaluator() of the model; on a device,
    whose library may choose by the number of clouds, also because blocks of 32 are padded).
    Raises MinipcError for logits that are not finite: nothing below could tell them from numbers.
    """
    compute = net(model.config).evaluator(model.params, model.stats, model.config, engine)
    if groups is None:
        groups = net(model.config).prepare(model.config, points)

    @np.errstate(over="ignore", invalid="ignore")  # what they would warn of is the error below
    def logits_of(first):
        points_here, *groups_here = (
            xp.asarray(padded_block(array, first, BLOCK)) for array in (points, *groups)
        )
        return to_host(compute(Inputs(points_here, tuple(groups_here))))[: len(points) - first]

    logits = np.concatenate(list(ordered_map(logits_of, range(0, len(points), BLOCK), threads)))
    if not np.isfinite(logits).all():
        raise MinipcError(
            "model: its logits are no longer finite; it has diverged (start a new run with a lower "
            "--lr), or these "
            "clouds are far larger than those it was trained on"
        )
    return logits


def vote(model, points, votes, augment, xp, threads, engine="fused"):
    """Return log of the mean softmax (N, K) over views 0 .. votes - 1 of points (N, P, 3).

    The views are drawn by the rule of a recording from a seed of their own, so they are fixed.
    Voting flatters: report it beside the plain number, never instead of it.
    """
    from scipy.special import logsumexp  # here: it takes longer to import than a cloud to predict

    groups = net(model.config).prepare(model.config, points)  # of the stored clouds
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
    accuracy: float  # share of all clouds
    mean_class_accuracy: float  # mean over the classes that occur
    nll: float  # mean of -log softmax at the label, nats
    ece: float  # expected calibration error, 15 bins of equal width
    confusion: np.ndarray  # (K, K) int64, rows true, columns predicted


def metrics(labels, logits):
    """Return Metrics of labels (N,) integer and logits (N, K), finite.

    Class accuracies come from the confusion matrix; averaging them over batches, as is often
    done, is wrong by more than a point.  ECE: Guo et al. 2017, equation 3, bins open on the left.
    """
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
    gap = np.bincount(
        bins, (predicted == labels) - confidence
    )  # clouds in the bin x (accuracy - confidence)
    return Metrics(
        accuracy=float(np.diag(confusion).sum() / count),
        mean_class_accuracy=float(recall.mean()),
        nll=float(-log_p[np.arange(count), labels].mean()),
        ece=float(np.abs(gap).sum() / count),
        confusion=confusion,
    )
