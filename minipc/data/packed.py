"""What a reader of foreign data returns: both splits, and what was done to make them."""

from typing import NamedTuple

from minipc.data.clouds import Clouds, Splits, check_labels, stratified
from minipc.errors import DataError, UsageError

TEST_FRACTION = 0.2


class Packed(NamedTuple):
    splits: Splits
    moved: int  # clouds that were brought to the unit sphere
    sampled: int  # clouds of which a subset of the points was drawn
    padded: int  # clouds whose points were repeated
    split: str  # how the split was made, for people


def packed(where, points, labels, test, counts, moved, test_fraction, **described):
    """Return Packed of prepared points (N, P, 3), labels (N,), their stored counts (N,) and moved (N,).

    test (N,) bool is the source's own split, or None: then a share test_fraction (None: 0.2) of
    each class is drawn from the streams (0, "split", class), and one training cloud always stays.
    described: the other fields of Clouds.  Raises DataError, UsageError.
    """
    if test is not None and test_fraction is not None:
        raise UsageError(f"{where}: has a split of its own, so a test fraction has no use; leave it out")
    try:
        check_labels(labels, described["class_names"])
    except DataError as reason:
        raise DataError(f"{where}: {reason}") from reason
    how = "as the source has it"
    if test is None:
        fraction = TEST_FRACTION if test_fraction is None else test_fraction
        check_fraction(fraction)
        test = stratified(labels, fraction, 0, "split")
        how = f"{100 * fraction:g} % of each class drawn for the test, by seed 0"
        if not test.any():
            raise DataError(f"{where}: a test split needs a class of at least 2 clouds; add clouds, or a split")
    for label, name in enumerate(described["class_names"]):
        if not (~test & (labels == label)).any():
            raise DataError(f"{where}: class {name} has no training cloud; add one or remove the class")
    if not test.any():
        raise DataError(f"{where}: its test split is empty; add clouds, or leave the split out")
    splits = []
    for name, rows in zip(Splits._fields, (~test, test)):
        try:
            splits.append(Clouds(points[rows], labels[rows], **described))
        except DataError as reason:
            raise DataError(f"{where}: {name} split: {reason}") from reason
    size = points.shape[1]
    return Packed(Splits(*splits), int(moved.sum()), int((counts > size).sum()), int((counts < size).sum()), how)


def check_fraction(fraction):
    """Raise UsageError unless fraction lies between 0 and 1."""
    if not 0 < fraction < 1:
        raise UsageError(f"test fraction: expected a number between 0 and 1, got {fraction!r}")
