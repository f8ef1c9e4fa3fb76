"""What a reader of foreign data returns: both splits, and what was done to make them.

We keep two splits.  What becomes of a third one changes what is learnt from, so the person says it.
"""

from typing import NamedTuple

from minipc.data.clouds import Clouds, Splits, check_labels, composed, stratified
from minipc.errors import DataError, UsageError, short

TEST_FRACTION = 0.2
VALIDATION = ("val", "valid", "validation", "dev")  # customary names of a third split
VAL_SPLITS = ("train", "leave-out")  # what can become of it


class Packed(NamedTuple):
    splits: Splits
    moved: int  # clouds that were brought to the unit sphere
    sampled: int  # clouds of which a subset of the points was drawn
    padded: int  # clouds whose points were repeated
    split: str  # how the split was made, for people


def joins_training(where, found, val_split):
    """Return whether the clouds of a third split become training clouds, and how to say it.

    found: what a source calls such splits, a list.  val_split: one of VAL_SPLITS, or None: unsaid.
    Raises UsageError where it is unsaid and there is one, or said and there is none.
    """
    if val_split not in (None, *VAL_SPLITS):
        raise UsageError(f"val split: expected {' or '.join(VAL_SPLITS)}, got {val_split!r}")
    told = ", ".join(found)
    if found and val_split is None:
        raise UsageError(
            f"{where}: has a third split, {short(told)}, beside train and test; pass --val-split "
            "train to join it to "
            "the training clouds, or --val-split leave-out to pack without it"
        )
    if not found and val_split is not None:
        raise UsageError(f"{where}: has no third split, so --val-split has no use; leave it out")
    joins = val_split == "train"
    return (
        joins,
        f", {short(told)} {'joined to the training clouds' if joins else 'left out'}"
        if found
        else "",
    )


def packed(where, points, labels, test, counts, moved, test_fraction, third="", **described):
    """Return Packed of prepared points (N, P, 3), labels (N,), their stored counts (N,) and moved
    (N,).

    test (N,) bool is the source's own split, or None: then a share test_fraction (None: 0.2) of
    each class is drawn from the streams (0, "split", class), and one training cloud always stays.
    third: what became of a third split, for people.  described: the other fields of Clouds.  Raises
    DataError, UsageError.
    """
    if test is not None and test_fraction is not None:
        raise UsageError(
            f"{where}: has a split of its own, so a test fraction has no use; leave it out"
        )
    try:
        described["class_names"] = composed(described["class_names"])
        check_labels(labels, described["class_names"])
    except DataError as reason:
        raise DataError(f"{where}: {reason}") from reason
    if labels.min() == 1:
        first = described["class_names"][0]
        raise DataError(
            f"{where}: labels begin at 1, expected 0; subtract 1 if they count from 1, or add "
            f"clouds of class {first}"
        )
    how = "as the source has it"
    if test is None:
        fraction = TEST_FRACTION if test_fraction is None else test_fraction
        check_fraction(fraction)
        test = stratified(labels, fraction, 0, "split")
        how = f"{100 * fraction:g} % of each class drawn for the test, by seed 0"
        if not test.any():
            raise DataError(
                f"{where}: a test split needs a class of at least 2 clouds; add clouds, or a split"
            )
    for label, name in enumerate(described["class_names"]):
        if not (~test & (labels == label)).any():
            raise DataError(
                f"{where}: class {name} has no training cloud; add one, or remove the class and "
                "number the labels anew"
            )
    if not test.any():
        raise DataError(f"{where}: its test split is empty; add clouds, or leave the split out")
    splits = []
    for name, rows in zip(Splits._fields, (~test, test)):
        try:
            splits.append(Clouds(points[rows], labels[rows], **described))
        except DataError as reason:
            raise DataError(f"{where}: {name} split: {reason}") from reason
    size = points.shape[1]
    sampled, padded = int((counts > size).sum()), int((counts < size).sum())
    return Packed(Splits(*splits), int(moved.sum()), sampled, padded, how + third)


def check_fraction(fraction):
    """Raise UsageError unless fraction lies between 0 and 1."""
    if not 0 < fraction < 1:
        raise UsageError(f"test fraction: expected a number between 0 and 1, got {fraction!r}")
