"""Point clouds with labels, or with some, in memory and in a file of ours.

The file stores class names in label order, up axis and normalisation, because no error would show
a mistake in them.  Records and models repeat them, and every loader compares.  The content of the
arrays identifies clouds, never a file name.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from minipc import __version__
from minipc.data.prepare import NORMALISATIONS, float_points, normalised, prepare
from minipc.errors import DataError, UsageError, check_shape, short
from minipc.settings import TrainConfig
from minipc.storage import files, hdf5
from minipc.storage.places import check_new_file
from minipc.streams import stream

KIND, VERSION = "clouds", 3
META = {"class_names", "up_axis", "normalisation"}  # of version 1; version 2 adds source
WITH_FILES = 3  # of a data file that names the files of its clouds; without names it is 2
MOST_NAME = 4096  # bytes of a file name with its folders, as systems have it
MOST_POINTS = 10_000_000  # of one cloud
# Words in the source of clouds of which several are of one object, which does not say which.
SEVERAL = "several clouds of one object"
UNLABELLED = -1  # the label of a cloud without one
UP_AXES = ("x", "y", "z", "unknown")


@dataclass(frozen=True, eq=False)
class Clouds:
    """One split of a data set.  Raises DataError for what a network cannot learn from."""

    points: np.ndarray  # (N, P, 3) float32, finite
    labels: np.ndarray  # (N,) int64, index into class_names, or UNLABELLED
    class_names: tuple  # K distinct names
    up_axis: str  # "x", "y", "z" or "unknown"
    normalisation: str  # "unit_sphere" or "none"
    source: str = ""  # origin, for people: never compared, never hashed; SEVERAL has a meaning
    files: tuple = ()  # N names of their files, for people as well, or none

    def __post_init__(self) -> None:
        check_shape("points", self.points, (None, None, 3))
        check_shape("labels", self.labels, (len(self.points),))
        if self.points.dtype != np.float32 or self.labels.dtype != np.int64:
            raise DataError(
                f"clouds: expected float32 points and int64 labels, got {self.points.dtype} and "
                f"{self.labels.dtype}"
            )
        if not self.points.size:
            raise DataError(
                f"clouds: expected at least one cloud of one point, got shape {self.points.shape}"
            )
        finite = np.isfinite(self.points).all(axis=(1, 2))
        if not finite.all():
            raise DataError(
                f"clouds: cloud {int(finite.argmin())} holds NaN or infinite coordinates; remove "
                "or repair it"
            )
        names = self.class_names
        if not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise DataError(
                f"clouds: expected class names that are printable text, got {short(names)}"
            )
        if len(names) < 2:
            raise DataError(
                f"clouds: expected at least 2 class names, got {len(names)}; add another class"
            )
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(
                f"clouds: expected distinct class names, got {short(repeated)} more than once; "
                "rename them"
            )
        composed(names)
        check_labels(self.labels, names)
        if self.up_axis not in UP_AXES:
            raise DataError(f"clouds: expected up axis {', '.join(UP_AXES)}, got {self.up_axis!r}")
        if self.normalisation not in NORMALISATIONS:
            raise DataError(
                f"clouds: expected normalisation unit_sphere or none, got {self.normalisation!r}"
            )
        if not isinstance(self.source, str):
            raise DataError(f"clouds: expected a source that is text, got {self.source!r}")
        _check_files(self.files, len(self.points))
        object.__setattr__(self, "points", _read_only(self.points))
        object.__setattr__(self, "labels", _read_only(self.labels))

    @classmethod
    def from_arrays(
        cls,
        points: Any,
        labels: Any,
        class_names: Sequence[str],
        *,
        up_axis: str = "unknown",
        normalise: bool = True,
        num_points: int | None = None,
        source: str = "",
    ) -> Self:
        """Return Clouds of arrays of any real dtype: points (N, P, 3), or N arrays (P_i, 3).

        labels (N,) or (N, 1) are whole numbers, indices into class_names, or UNLABELLED (-1) where
        a cloud has none.  normalise moves each cloud to the unit sphere.  num_points samples or
        repeats the points of each cloud as fit_points does; without it, all clouds must have the
        same number.  Raises DataError.
        """
        if isinstance(class_names, (str, bytes, Set, Mapping)):
            raise DataError(
                "class names: expected a list in the order of the labels, got "
                f"{type(class_names).__name__}, which has no such order; pass a list"
            )
        normalisation = "unit_sphere" if normalise else "none"
        whole = (
            isinstance(points, np.ndarray)
            and points.ndim == 3
            and points.shape[1]
            and points.shape[2] == 3
        )
        arrays = (
            float_points(points)
            if whole
            else [_one_cloud(i, array) for i, array in enumerate(points)]
        )
        counts = {len(array) for array in arrays}
        if num_points is None and len(counts) > 1:
            raise DataError(
                f"points: clouds have from {min(counts)} to {max(counts)} points; pass num_points: "
                "from larger clouds so many are drawn, those of smaller ones are repeated"
            )
        if not len(arrays):
            raise DataError("points: expected at least one cloud, got none")
        if num_points is None or counts == {num_points}:
            fitted, _ = normalised(np.asarray(arrays), normalisation)
        else:
            fitted = np.empty((len(arrays), check_count(num_points), 3), np.float32)
            for i, array in enumerate(arrays):
                try:
                    fitted[i], _ = prepare(array, normalisation, num_points)
                except DataError as reason:
                    raise DataError(f"cloud {i}: {reason}") from reason
        return cls(
            fitted,
            whole_labels(labels, least=UNLABELLED),
            composed(class_names),
            up_axis,
            normalisation,
            source,
        )

    def __len__(self) -> int:
        return len(self.points)

    def taken(self, rows: np.ndarray) -> Self:
        """Return the clouds in rows, a mask (N,) bool or indices."""
        files = tuple(self.files[i] for i in np.arange(len(self))[rows]) if self.files else ()
        return replace(self, points=self.points[rows], labels=self.labels[rows], files=files)

    @cached_property
    def points_hash(self) -> str:
        """SHA-256 of the points, as hexadecimal digits."""
        return files.sha256_arrays(self.points)

    @cached_property
    def labels_hash(self) -> str:
        """SHA-256 of the labels, as hexadecimal digits."""
        return files.sha256_arrays(self.labels)

    @cached_property
    def labelled(self) -> int:
        """How many clouds have a label."""
        return int((self.labels != UNLABELLED).sum())

    @property
    def described(self) -> dict[str, Any]:
        """What models and records repeat and compare: class names, up axis, normalisation."""
        return {
            "class_names": list(self.class_names),
            "up_axis": self.up_axis,
            "normalisation": self.normalisation,
        }


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to: the hash of an array is computed once."""
    view = array.view()
    view.flags.writeable = False
    return view


def _check_files(names: tuple, clouds: int) -> None:
    """Raise DataError unless names are none, or one name for each of so many clouds."""
    if names and len(names) != clouds:
        raise DataError(f"clouds: expected {clouds} file names or none, got {len(names)}")
    for name in names:
        try:
            size = len(name.encode("utf-8", "surrogateescape"))  # as systems store them
        except (AttributeError, UnicodeEncodeError) as reason:
            raise DataError(
                f"clouds: expected file names that are text, got {short(ascii(name))}"
            ) from reason
        if size > MOST_NAME or "\0" in name:
            raise DataError(
                f"clouds: expected file names of at most {MOST_NAME} bytes, got {size}: "
                f"{short(ascii(name))}"
            )


def _one_cloud(i: int, array: Any) -> np.ndarray:
    """Return cloud i of a caller's arrays by float_points, (P, 3).  Raises DataError naming it."""
    try:
        array = np.asarray(array)
        check_shape("points", array, (None, 3))
        if not len(array):
            raise DataError("expected at least one point, got none")
        return float_points(array)
    except (DataError, ValueError, TypeError) as reason:
        raise DataError(f"cloud {i}: {reason}") from reason


def check_count(num_points: int) -> int:
    """Return num_points.  Raises UsageError unless it is an integer from 1 to MOST_POINTS."""
    if not isinstance(num_points, (int, np.integer)) or not 1 <= num_points <= MOST_POINTS:
        raise UsageError(f"num points: expected 1 to {MOST_POINTS}, got {num_points!r}")
    return num_points


def check_labels(labels: np.ndarray, names: Sequence[str]) -> None:
    """Raise DataError unless labels (N,) integer are indices into names, or UNLABELLED."""
    known = labels[labels != UNLABELLED]
    if not len(known):
        return
    low, high = int(known.min()), int(known.max())
    if (low, high) == (1, len(names)):
        raise DataError(
            f"clouds: the labels count from 1 to {high}, expected from 0 to {high - 1} ({high} "
            "class names); subtract 1 from all labels"
        )
    if low < 0 or high >= len(names):
        raise DataError(
            f"clouds: expected labels from 0 to {len(names) - 1} ({len(names)} class names), got "
            f"{low} to {high}; count from 0, in the order of the names"
        )


def composed(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in Unicode's composed form (NFC).

    File systems store one name in two forms.  Raises DataError if two names differ only in form.
    """
    known: dict[str, str] = {}
    for name in names:
        form = unicodedata.normalize("NFC", name) if isinstance(name, str) else name
        if known.setdefault(form, name) != name:
            raise DataError(
                f"class names: {ascii(known[form])} and {ascii(name)} are one name in two Unicode "
                "forms; rename one, or put the clouds of both together"
            )
    return tuple(
        unicodedata.normalize("NFC", name) if isinstance(name, str) else name for name in names
    )


def whole_labels(labels: Any, name: str = "labels", least: int = 0) -> np.ndarray:
    """Return labels (N,) or (N, 1), whole numbers from least, as (N,) int64.

    least is 0 for files of other programs, where -1 may mean anything.  Raises DataError naming the
    labels.
    """
    try:
        values = np.asarray(labels)
    except ValueError as reason:
        raise DataError(f"{name}: expected (N,) whole numbers ({reason})") from reason
    if values.size and values.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: expected whole numbers, got {values.dtype}; number the classes from 0"
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"{name}: expected (N,) whole numbers, got {values.shape}; of one-hot rows take "
            "argmax(axis=1)"
        )
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
        wrong = ~(values >= least)  # not a number, too
    if wrong.any():
        raise DataError(
            f"{name}: expected whole numbers from {least}, got {values[wrong][0]}; number the "
            "classes from 0"
        )
    if not (whole == values).all():
        raise DataError(
            f"{name}: expected whole numbers, got {values[whole != values][0]}; number the classes "
            "from 0"
        )
    return whole


def made_from(text: str) -> str:
    """Return the source of clouds: what they are made from, text, and our version."""
    return f"{text}, by minipc {__version__}"


class Splits(NamedTuple):
    train: Clouds
    test: Clouds


def names_of(splits: Splits) -> list[str]:
    """Return the names of the files of all clouds, training clouds first; [] where none has one."""
    return [
        name
        for clouds in splits
        for name in (clouds.files or [""] * len(clouds))
        if any(each.files for each in splits)
    ]


def with_names(splits: Splits, names: Any, where: str) -> Splits:
    """Return splits with the names that names_of gave, read from a file.  Raises DataError."""
    if names == []:
        return splits
    train, test = splits
    if not isinstance(names, list) or len(names) != len(train) + len(test):
        raise DataError(
            f"{where}: files: expected {len(train) + len(test)} names, got {short(ascii(names))}; "
            "make it again"
        )
    try:
        return Splits(
            replace(train, files=tuple(names[: len(train)])),
            replace(test, files=tuple(names[len(train) :])),
        )
    except DataError as reason:
        raise DataError(f"{where}: {reason}") from reason


def check_same_kind(
    described: Mapping[str, Any], expected: Mapping[str, Any], name: str, expected_by: str
) -> None:
    """Raise DataError, naming both sides, unless two `described` mappings agree."""
    for key, value in expected.items():
        if described[key] != value:
            raise DataError(
                f"{name}: {key.replace('_', ' ')} is {short(described[key])}, but {expected_by} "
                f"has {short(value)}; use the data that it was made from"
            )


def check_fraction(fraction: float) -> None:
    """Raise UsageError unless fraction lies between 0 and 1."""
    if not 0 < fraction < 1:
        raise UsageError(f"test fraction: expected a number between 0 and 1, got {fraction!r}")


def check_splittable(clouds: Clouds, what: str) -> None:
    """Raise UsageError naming what if a drawn split could part the clouds of one object.

    What is measured on one part would then be on objects that the other part has seen.
    """
    if SEVERAL in clouds.source:
        raise UsageError(
            f"{what}: these clouds are {SEVERAL}, and which is not known, so a drawn split would "
            "have the same objects on both sides; choose on data with one cloud of each, such as "
            "ScanObjectNN's objectdataset"
        )


def stratified(labels: np.ndarray, fraction: float, seed: int, purpose: str) -> np.ndarray:
    """Return a mask (N,) bool that selects round(fraction n) random clouds of the n of each class.

    If fraction > 0, a class of two clouds or more has at least one selected and at least one left.
    labels (N,) integer; the random stream is (seed, purpose, class).  A cloud without a label is
    never selected.
    """
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels[labels != UNLABELLED]) if fraction else ():
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        taken[stream(seed, purpose, int(label)).permutation(rows)[:count]] = True
    return taken


def kept_labels(clouds: Clouds, rows: np.ndarray, config: TrainConfig, needed: bool) -> np.ndarray:
    """Return the labels (N,) that a training on the clouds in rows (R,) sees.

    With config.labels_per_class, these are so many random ones of each class among the rows, by the
    streams (config.seed, "labels", class); all others become UNLABELLED.  needed: whether labels
    alone teach.  Raises UsageError where a class has fewer, and where they are needed and there are
    none.
    """
    kept, number = clouds.labels, config.labels_per_class
    if number:
        kept = np.full(len(clouds), UNLABELLED, np.int64)
    for label, name in enumerate(clouds.class_names if number else ()):
        of_class = rows[clouds.labels[rows] == label]
        if len(of_class) < number:
            raise UsageError(
                f"labels per class: {number} is more than the {len(of_class)} labelled training "
                f"clouds of class {name}; lower it"
            )
        kept[stream(config.seed, "labels", label).permutation(of_class)[:number]] = label
    if needed and (kept[rows] == UNLABELLED).all():
        raise UsageError(
            f"labels only: none of the {len(rows)} training clouds has a label; learn from a "
            "record (--record FILE --kd-weight 1), or pack labelled clouds"
        )
    return kept


def hold_out(splits: Splits, fraction: float, seed: int = 0) -> Splits:
    """Return Splits of the training clouds: a fraction of each class becomes the test split.

    What is chosen by accuracy is chosen on these; the test split has no part in it.  The clouds are
    drawn by stratified() from the streams (seed, "heldout", class); those without a label stay
    in training.  Raises UsageError unless fraction lies between 0 and 1, or if the clouds may not
    be split, DataError if no class has two labelled clouds.
    """
    check_fraction(fraction)
    clouds = splits.train
    check_splittable(clouds, "hold out")
    out = stratified(clouds.labels, fraction, seed, "heldout")
    if not out.any():
        raise DataError(
            "hold out: no class has 2 labelled training clouds, so none can be held out; use data "
            "with more of them"
        )
    source = made_from(f"training clouds ({clouds.source or 'of unknown source'})")
    return Splits(*(replace(clouds.taken(rows), source=source) for rows in (~out, out)))


def repeated(splits: Splits) -> int:
    """Return how many test clouds are also training clouds, bit for bit."""
    seen = {points.tobytes() for points in splits.train.points}
    return sum(points.tobytes() in seen for points in splits.test.points)


def write_clouds(path: str | PathLike, splits: Splits) -> None:
    """Commit both splits to path, atomically.

    Raises UsageError if path exists (records and models may refer to it), DataError if the splits
    differ in kind or path cannot be written.
    """
    check_new_file(path)
    check_same_kind(
        splits.test.described, splits.train.described, "the test split", "the training split"
    )

    named = names_of(splits)

    def fill(file: h5py.File) -> None:
        meta = {**splits.train.described, "source": splits.train.source}
        hdf5.write_meta(file, meta | ({"files": named} if named else {}))
        for name, clouds in zip(Splits._fields, splits, strict=True):
            file.create_dataset(f"{name}/points", data=clouds.points, dtype="<f4")
            file.create_dataset(f"{name}/labels", data=clouds.labels, dtype="<i8")

    hdf5.write_hdf5(path, KIND, WITH_FILES if named else 2, fill)


def read_clouds(path: str | PathLike) -> Splits:
    """Return the Splits of a data file that minipc wrote.

    Raises DataError for a missing, damaged or foreign file.
    """
    with hdf5.open_hdf5(path, KIND, VERSION) as file:
        hdf5.check_members(file, {"meta", *Splits._fields}, path)
        meta = hdf5.read_meta(file, path)
        if set(meta) == META:
            meta["source"] = ""
        named = meta.pop("files", [])
        splits = []
        for name in Splits._fields:
            hdf5.check_members(file[name], {"points", "labels"}, path)
            points = hdf5.read_array(file, f"{name}/points", np.float32, (None, None, 3), path)
            labels = hdf5.read_array(file, f"{name}/labels", np.int64, (None,), path)
            values = {"points": points, "labels": labels, "files": (), **meta}
            splits.append(files.from_dict(Clouds, values, f"{path}: {name}"))
    return with_names(Splits(*splits), named, str(path))
