"""How good a model is: fixed compute blocks, one confusion matrix, everything derived from it."""

from typing import NamedTuple

import numpy as np

from minipc.backend import BLOCK, ordered_map, padded_block, to_host
from minipc.nn.pointnet import forward_eval


def predict(model, points, xp, threads):
    """Return the logits (N, K) float32, on the host, of points (N, P, 3) on the host.

    model's arrays belong to xp.  Blocks of 32 clouds, the last one padded by its own last cloud:
    predictions do not depend on how many clouds are asked for, nor on threads.
    """

    def logits_of(first):
        block = xp.asarray(padded_block(points, first, BLOCK))
        logits = forward_eval(model.params, model.stats, block, model.config)
        return to_host(logits)[: len(points) - first]

    return np.concatenate(list(ordered_map(logits_of, range(0, len(points), BLOCK), threads)))


class Metrics(NamedTuple):
    accuracy: float  # share of all clouds
    mean_class_accuracy: float  # mean over the classes that occur
    confusion: np.ndarray  # (K, K) int64, rows true, columns predicted


def metrics(labels, predicted, classes):
    """Return Metrics of labels and predicted, both (N,) integer.

    Class accuracies come from the confusion matrix; averaging them over batches, as is often
    done, is wrong by more than a point.
    """
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    occurring = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[occurring] / confusion.sum(axis=1)[occurring]
    return Metrics(float(np.diag(confusion).sum() / len(labels)), float(recall.mean()), confusion)


def evaluate(model, clouds, xp, threads):
    """Return Metrics of model on clouds."""
    predicted = predict(model, clouds.points, xp, threads).argmax(axis=1)
    return metrics(clouds.labels, predicted, model.config.classes)
