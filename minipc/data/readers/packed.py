"""Make both splits of the clouds that a reader yields: prepared, checked and counted.

A reader is one function, scan(path, request) -> Listing.  It looks at names, labels and headers,
and refuses what it cannot read; `collect` then reads the points cloud by cloud from
Listing.clouds.  We keep two splits.  The user decides about a third one, because the decision
changes the training data.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minipc.data.clouds import (
    SEVERAL,
    UNLABELLED,
    Clouds,
    Splits,
    check_count,
    check_fraction,
    check_labels,
    composed,
    stratified,
)
from minipc.data.prepare import float_points, normalised, prepare
from minipc.errors import DataError, UsageError, short

TEST_FRACTION = 0.2
VALIDATION = ("val", "valid", "validation", "dev")  # customary names of a third split
VAL_SPLITS = ("train", "leave-out")  # what the user may decide about it
BACKGROUNDS = ("keep", "drop")  # what the user may decide about points that are not of the object


REFUSED = {  # fields of a Request that not every source has a use for
    "test_fraction": "has a split of its own, so a test fraction has no use",
    "variant": "holds one data set, so --variant has no use",
    "background": "marks no background, so --background has no use",
}


class Request(NamedTuple):
    """What the user asks for.  None: not specified."""

    num_points: int  # of each packed cloud
    up_axis: str | None = None
    normalisation: str = "unit_sphere"
    test_fraction: float | None = None
    val_split: str | None = None  # one of VAL_SPLITS
    variant: str | None = None  # where one folder holds several data sets
    background: str | None = None  # one of BACKGROUNDS, where a data set marks it

    def check(self) -> None:
        """Raise UsageError for values that are wrong for every source."""
        check_count(self.num_points)
        if self.test_fraction is not None:
            check_fraction(self.test_fraction)
        if self.val_split not in (None, *VAL_SPLITS):
            raise UsageError(
                f"val split: expected {' or '.join(VAL_SPLITS)}, got {self.val_split!r}"
            )

    def refuse(self, path: str, *names: str) -> None:
        """Raise UsageError if one of the named fields is specified: path has no use for it."""
        for name in names:
            if getattr(self, name) is not None:
                raise UsageError(f"{path}: {REFUSED[name]}; leave it out")

    def chosen(self, path: str, variants: Sequence[str]) -> str:
        """Return which of the variants that path holds is meant.  Raises UsageError."""
        if self.variant is None and len(variants) > 1:
            raise UsageError(
                f"{path}: holds several data sets; pass --variant with one of {', '.join(variants)}"
            )
        if self.variant not in (None, *variants):
            raise UsageError(
                f"{path}: has no variant {self.variant!r}; pass --variant with one of "
                f"{', '.join(variants)}"
            )
        return self.variant or variants[0]

    def joins_training(self, path: str, third: Sequence[str]) -> bool:
        """Return whether the clouds of a third split become training clouds.

        third: the names of such splits in the source.  Raises UsageError for a third split without
        val_split, and for val_split without a third split.
        """
        if third and self.val_split is None:
            raise UsageError(
                f"{path}: has a third split, {short(', '.join(third))}, beside train and test; "
                "pass --val-split train to join it to the training clouds, or --val-split "
                "leave-out to pack without it"
            )
        if not third and self.val_split is not None:
            raise UsageError(f"{path}: has no third split, so --val-split has no use; leave it out")
        return self.val_split == "train"


class Cloud(NamedTuple):
    points: np.ndarray  # (n, 3) of a real dtype, as stored
    label: int  # index into the class names, or UNLABELLED
    split: str | None  # train, test or a third one; None if the source has no split
    where: str  # for messages: the file, and which cloud in it
    file: str = ""  # its name within the source, where a file holds one cloud


class Listing(NamedTuple):
    """What a reader knows about a source before it reads points."""

    size: int  # how many clouds, exact
    clouds: Iterator[Cloud]
    class_names: tuple[str, ...]
    has_split: bool
    made_from: str  # for people
    third: Sequence[str] = ()  # names of a third split
    up_axis: str = "unknown"  # if the request names none
    keeps_first: bool = False  # keep the first points, instead of a random subset
    note: str = ""  # on the split, for people


class Packed(NamedTuple):
    """Both splits, and how they were made."""

    splits: Splits
    moved: int  # clouds that were moved to the unit sphere
    sampled: int  # clouds of which a subset of the points was drawn
    padded: int  # clouds whose points were repeated
    split: str  # how the split was made, for people


def collect(
    path: str, listing: Listing, request: Request, progress: Callable[..., Any] = lambda *_: None
) -> Packed:
    """Return the Packed of the clouds of a Listing.

    Each cloud is normalised whole, then fitted to num_points.  If the source has no split, a share
    test_fraction (None: 0.2) of each class is drawn from the streams (0, "split", class); at least
    one training cloud of each stays.  Raises DataError naming the cloud, and UsageError.
    """
    if listing.has_split:
        request.refuse(path, "test_fraction")
    elif SEVERAL in listing.made_from:
        raise UsageError(
            f"{path}: holds {SEVERAL}, by its name, and no split, and one that is drawn would have "
            "the same objects on both sides; pack the folder that has both parts, or add a split"
        )
    joins = request.joins_training(path, listing.third)
    points, labels, test, stored, moved, names = _read(path, listing, request, joins, progress)
    described: dict[str, Any] = {
        "class_names": _checked_names(path, labels, listing.class_names),
        "up_axis": request.up_axis or listing.up_axis,
        "normalisation": request.normalisation,
        "source": listing.made_from,
    }
    how = "as the source has it"
    if not listing.has_split:
        fraction = TEST_FRACTION if request.test_fraction is None else request.test_fraction
        test = stratified(labels, fraction, 0, "split")
        how = f"{100 * fraction:g} % of each class drawn for the test, by seed 0"
    if listing.third:
        became = "joined to the training clouds" if joins else "left out"
        how += f", {short(', '.join(listing.third))} {became}"
    if listing.note:
        how += f", {listing.note}"
    _check_split(path, labels, test, described["class_names"], listing.has_split)
    splits = []
    for name, rows in zip(Splits._fields, (~test, test), strict=True):
        try:
            named = tuple(names[rows].tolist()) if names.any() else ()
            splits.append(Clouds(points[rows], labels[rows], files=named, **described))
        except DataError as reason:
            raise DataError(f"{path}: {name} split: {reason}") from reason
    size = request.num_points
    sampled, padded = int((stored > size).sum()), int((stored < size).sum())
    return Packed(Splits(*splits), int(moved.sum()), sampled, padded, how)


def _read(
    path: str, listing: Listing, request: Request, joins: bool, progress: Callable[..., Any]
) -> tuple[np.ndarray, ...]:
    """Return arrays over the N clouds that are kept: points, labels, test, stored, moved, names.

    points (N, num_points, 3) float32; test: whether a cloud is a test cloud; stored: how many
    points it had; moved: whether it was normalised; names: str of their files.
    """
    count, done = listing.size, 0  # clouds
    points = np.empty((count, request.num_points, 3), np.float32)
    labels, stored = np.empty((2, count), np.int64)
    test, kept, moved = np.zeros((3, count), bool)
    names = np.full(count, "", object)
    for cloud in listing.clouds:
        if done == count:
            raise _other_count(path, count, "more")
        try:
            points[done], moved[done], stored[done] = _prepared(
                cloud.points, request, listing.keeps_first
            )
        except DataError as reason:
            raise DataError(f"{cloud.where}: {reason}") from reason
        labels[done], test[done] = cloud.label, cloud.split == "test"
        names[done] = cloud.file
        kept[done] = joins or cloud.split not in listing.third
        done += 1
        if done % max(count // 100, 1) == 0 or done == count:
            progress(done, count, f"reading {path}")
    if done < count:
        raise _other_count(path, count, done)
    arrays = points, labels, test, stored, moved, names
    return arrays if kept.all() else tuple(array[kept] for array in arrays)


def _prepared(
    points: np.ndarray, request: Request, keeps_first: bool
) -> tuple[np.ndarray, bool, int]:
    """Return a cloud (num_points, 3) float32, whether it changed, and how many points it had."""
    points, size = float_points(points), request.num_points
    if keeps_first:
        whole, changed = normalised(points[None], request.normalisation)
        return whole[0, :size], bool(changed[0]), size
    return *prepare(points, request.normalisation, size), len(points)


def _other_count(path: str, count: int, read: int | str) -> DataError:
    return DataError(
        f"{path}: expected {count} clouds, found {read}: it changed while it was read; pack it "
        "again"
    )


def _checked_names(path: str, labels: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names in composed form.  Raises DataError unless labels are indices."""
    if not len(labels):
        raise DataError(f"{path}: holds no training and no test clouds; add some")
    try:
        checked = composed(names)
        check_labels(labels, checked)
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason
    if min(set(labels.tolist()) - {UNLABELLED}, default=0) == 1:
        raise DataError(
            f"{path}: labels begin at 1, expected 0; subtract 1 if they count from 1, or add "
            f"clouds of class {checked[0]}"
        )
    return checked


def _check_split(
    path: str, labels: np.ndarray, test: np.ndarray, names: Sequence[str], has_split: bool
) -> None:
    """Raise DataError unless there are test clouds and each class has training clouds.

    A class may have none where some training clouds are unlabelled: they may be of that class.
    """
    if not has_split and not test.any():
        raise DataError(
            f"{path}: a test split needs a class of at least 2 clouds; add clouds, or a split"
        )
    for label, name in enumerate(names):
        if not (~test & ((labels == label) | (labels == UNLABELLED))).any():
            raise DataError(
                f"{path}: class {name} has no training cloud; add one, or remove the class and "
                "number the labels anew"
            )
    if not test.any():
        raise DataError(f"{path}: its test split is empty; add clouds, or leave the split out")
