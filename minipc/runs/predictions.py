"""What predictions.csv of a run says: the confusion matrix, calibration, and the surest errors.

Pure functions of Predictions; a class is an index into the class names of the run, and -1 is the
label of a cloud without one, which counts nowhere.  distil/evaluate.py measures logits; the file
keeps only the class said and its probability, to six digits.
"""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.data.clouds import UNLABELLED
from minipc.distil.evaluate import ECE_BINS
from minipc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

FIELDS = ("cloud", "label", "predicted", "right", "probability")
NAMED = (*FIELDS, "file")  # where the data name the files of their clouds


class Predictions(NamedTuple):
    """What a model says of n test clouds, in the order of the test split."""

    labels: np.ndarray  # (n,) int64, UNLABELLED for none
    said: np.ndarray  # (n,) int64, the class with the largest probability
    probability: np.ndarray  # (n,) float64, of that class
    files: tuple[str, ...] = ()  # n names of their files, as they can be printed, or none

    @property
    def known(self) -> np.ndarray:
        """Which clouds have a label, (n,) bool."""
        return self.labels != UNLABELLED

    @property
    def wrong(self) -> np.ndarray:
        """Which clouds have a label that was not said, (n,) bool."""
        return self.known & (self.labels != self.said)


def parsed(data: bytes, class_names: Sequence[str], place: str) -> Predictions:
    """Return the Predictions in the bytes of a predictions.csv; place: its path, for messages.

    Raises DataError for a file that a run of these classes did not write.
    """
    run = os.path.dirname(place) or "RUN"
    remedy = f"restore it, or write it again: minipc train --resume --out {run}"
    index = {name: number for number, name in enumerate(class_names)}
    labels, said, probability, names = [], [], [], []
    try:
        lines = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        if (fields := tuple(next(lines, ()))) not in (FIELDS, NAMED):
            raise ValueError(f"its first line is not {','.join(FIELDS)}")
        for number, (cloud, label, predicted, right, share, *name) in enumerate(lines):
            names += name
            labels.append(index[label] if label else UNLABELLED)
            said.append(index[predicted])
            probability.append(float(share))
            is_right = str(int(label == predicted)) if label else ""
            if (cloud, right) != (str(number), is_right) or not 0 <= probability[-1] <= 1:
                raise ValueError(f"cloud {number}: its line contradicts itself")
            if len(name) != len(fields) - len(FIELDS):
                raise ValueError(f"cloud {number}: its line has another number of fields")
    except (KeyError, ValueError, csv.Error) as reason:
        raise DataError(f"{place}: cannot be read ({reason!r}); {remedy}") from reason
    if not said:
        raise DataError(f"{place}: names no cloud; {remedy}")
    whole = np.array([labels, said], np.int64)
    return Predictions(whole[0], whole[1], np.array(probability, np.float64), tuple(names))


def joined(each: Sequence[Predictions]) -> Predictions:
    """Return the Predictions of several models, one after the other."""
    labels, said, probability = (np.concatenate([one[i] for one in each]) for i in range(3))
    names = tuple(name for one in each for name in one.files)
    return Predictions(labels, said, probability, names if all(one.files for one in each) else ())


def confusion(found: Predictions, classes: int) -> np.ndarray:
    """Return how many labelled clouds of each class were said to be each: (K, K) int64.

    Rows are the true classes, columns those said.
    """
    pairs = found.labels[found.known] * classes + found.said[found.known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Return the share right of each true class of a confusion matrix (K, K): (K,) float64.

    NaN for a class without a cloud.
    """
    counts = matrix.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.diag(matrix) / counts


def confusions(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return at most `most` (true class, class said, clouds) off the diagonal, largest first.

    Those of the same count come in the order of the rows.
    """
    off = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = (divmod(int(at), len(matrix)) for at in order)
    return [(true, said, int(off[true, said])) for true, said in pairs if off[true, said]]


class Reliability(NamedTuple):
    """Labelled clouds by the probability of what was said, in bins of equal width."""

    clouds: np.ndarray  # (bins,) int64
    confidence: np.ndarray  # (bins,) float64, their mean probability; NaN for none
    accuracy: np.ndarray  # (bins,) float64, the share of them right; NaN for none

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over clouds of |accuracy - confidence| of a bin."""
        filled = self.clouds > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.clouds[filled]).sum() / self.clouds.sum())


def reliability(found: Predictions, bins: int = ECE_BINS) -> Reliability:
    """Return the Reliability of Predictions; bins are open on the left, as in Guo et al. 2017.

    Raises DataError where no cloud has a label.
    """
    known = found.known
    if not known.any():
        raise DataError("predictions: no cloud has a label, so nothing can be calibrated")
    p, right = found.probability[known], (found.labels == found.said)[known]
    bin_of = np.maximum(np.ceil(p * bins).astype(int) - 1, 0)
    clouds = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bin_of, p, bins) / clouds
        accuracy = np.bincount(bin_of, right, bins) / clouds
    return Reliability(clouds, confidence, accuracy)


def surest_errors(found: Predictions, most: int, clouds: int) -> np.ndarray:
    """Return at most `most` rows of wrong clouds, the surest first: (m,) int64.

    clouds: of the test split; where several models were joined, a cloud is named once, by the model
    that is surest.  Of the same probability, the first row comes first.
    """
    wrong = np.flatnonzero(found.wrong)
    surest = wrong[np.argsort(-found.probability[wrong], kind="stable")]
    _, first = np.unique(surest % clouds, return_index=True)
    return surest[np.sort(first)[:most]]
