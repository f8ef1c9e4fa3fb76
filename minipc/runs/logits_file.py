"""What a model of another program says of the test clouds: its logits, in .npy, .npz or .csv.

Row i is test cloud i and column k is class k of the data file.  Nothing in the numbers says so, so
we check all that can be checked: the form, class names in a .csv, labels in an .npz.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.errors import DataError, short
from minipc.progress import quiet
from minipc.record.contract import SUMS_TO_ONE
from minipc.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minipc.data.clouds import Clouds

SUFFIXES = (".npy", ".npz", ".csv")
LARGEST = 1 << 30  # bytes of a file, and of an array in an archive
FORMS = "save the logits as .npy, as logits in an .npz, or as .csv with a row for each cloud"


class Table(NamedTuple):
    """What a file holds, before it is compared with any clouds."""

    values: np.ndarray  # (N, K), as stored
    labels: np.ndarray | None  # (N,), as stored; None: the file has none
    told: str  # what the file itself says of its order, "" for nothing


def read_logits(
    path: str,
    test: Clouds,
    data: str,
    probabilities: bool | None = False,
    say: Callable[[str], None] = quiet,
) -> np.ndarray:
    """Return the logits (N, K) float64 in a file, of the N clouds and K classes of test.

    test: the test split of the data file, whose path is data.  probabilities: the file holds these,
    and their logarithms are returned, -inf for a zero; None: either, for who needs no more than the
    largest of a row.  say(line) receives in what order rows and columns are taken.
    Raises DataError for a file of another form, another number of clouds or classes, numbers that
    are not finite, probabilities that are none, logits that are probabilities.
    """
    table = _read(path, test.class_names, probabilities)
    wanted = len(test), len(test.class_names)
    if table.values.shape != wanted:
        raise DataError(
            f"{path}: expected {wanted}, a row for each test cloud of {data} in its order and a "
            f"column for each class in theirs, found {table.values.shape}; save them so"
        )
    if table.values.dtype.kind != "f" or table.values.dtype.itemsize > 8:
        raise DataError(
            f"{path}: expected float16, float32 or float64, found {table.values.dtype}; classes or "
            "votes are no logits"
        )
    values = table.values.astype(np.float64)
    beyond = ~(abs(values) <= np.finfo(np.float32).max)  # also NaN: nothing below overflows
    if beyond.any():
        cloud, column = np.argwhere(beyond)[0]
        raise DataError(
            f"{path}: cloud {cloud}: expected finite float32 numbers, found "
            f"{values[cloud, column]}; correct it"
        )
    if table.labels is not None:
        _check_labels(path, table.labels, test, data)
    sums = values.sum(axis=1)
    are_probabilities = (values >= 0).all(axis=1) & (abs(sums - 1) < SUMS_TO_ONE)
    if probabilities is False and are_probabilities.all():
        raise DataError(
            f"{path}: holds probabilities (no number is negative, every row sums to one), which "
            "are no logits; add --probabilities"
        )
    if probabilities and not are_probabilities.all():
        cloud = int(are_probabilities.argmin())
        found = f"a sum of {sums[cloud]:g}" if (values[cloud] >= 0).all() else "a negative number"
        raise DataError(
            f"{path}: cloud {cloud}: expected probabilities that sum to one, found {found}; leave "
            "--probabilities out if these are logits"
        )
    with_labels = ", with their labels" * (table.labels is not None)
    told = table.told or f": {short(', '.join(test.class_names))}"
    say(
        f"{path}: taken in the order of the test clouds of {data}{with_labels}, and of its "
        f"classes{told}"
    )
    if not probabilities:
        return values
    with np.errstate(divide="ignore"):  # the logarithm of a zero is -inf, as the docstring says
        return np.log(values)


def _check_labels(path: str, labels: np.ndarray, test: Clouds, data: str) -> None:
    """Raise DataError unless the labels beside the logits are those of the test clouds."""
    if labels.shape != test.labels.shape or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels: expected {test.labels.shape} whole numbers, found {labels.shape} "
            f"{labels.dtype}; save them so, or leave them out"
        )
    other = np.flatnonzero(labels != test.labels)
    if len(other):
        cloud = int(other[0])
        raise DataError(
            f"{path}: labels: cloud {cloud} is {labels[cloud]}, and {test.labels[cloud]} in "
            f"{data}; save the logits in the order of its test clouds"
        )


def _read(path: str, names: Sequence[str], probabilities: bool | None) -> Table:
    """Return the Table of a file, by its suffix.  Raises DataError."""
    kind = files.kind_of(path)  # raises where path is missing, a folder or a pipe
    if kind:
        raise DataError(f"{path}: is a minipc {kind} file, expected logits; {FORMS}")
    suffix, size = os.path.splitext(path)[1].lower(), os.path.getsize(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown suffix {suffix!r}; {FORMS}")
    if not 0 < size <= LARGEST:
        raise DataError(f"{path}: expected 1 to {LARGEST} bytes, found {size}; {FORMS}")
    try:
        if suffix == ".csv":
            return _csv(path, names)
        if suffix == ".npz":
            return _npz(path, probabilities)
        # never unpickles; raises for a cut file
        return Table(np.lib.format.open_memmap(path, mode="r"), None, "")
    except DataError:
        raise
    except Exception as reason:  # NumPy parses a header as Python source, which can raise anything
        message = " ".join(str(reason).split()) or type(reason).__name__
        raise DataError(
            f"{path}: is damaged or holds no plain numbers ({short(message, 120)}); save it again"
        ) from reason


def _npz(path: str, probabilities: bool | None) -> Table:
    names = {False: ["logits"], True: ["probabilities"], None: ["logits", "probabilities"]}
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        held = [name for name in names[probabilities] if f"{name}.npy" in sizes]
        if not held:
            raise DataError(
                f"{path}: expected an array named {' or '.join(names[probabilities])}, found "
                f"{short(sorted(sizes))}; rename it"
            )

        def array(name: str) -> np.ndarray:
            if sizes[name] > LARGEST:
                raise DataError(f"{path}: {name} has {sizes[name]} bytes, more than {LARGEST}")
            # reading all of a member verifies its checksum
            return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)

        labels = array("labels.npy") if "labels.npy" in sizes else None
        return Table(array(f"{held[0]}.npy"), labels, "")


def _csv(path: str, names: Sequence[str]) -> Table:
    """Read a text of commas: class names above, if any, then a line of K numbers for each cloud."""
    text = files.read_bytes(path, LARGEST).decode("utf-8-sig")
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    first = next(lines)
    order, told = list(range(len(names))), ""
    rows: list[list[float]] = []
    if sorted(first) == sorted(names):
        order = [first.index(name) for name in names]
        told = ", which its first line names" + " in another order" * (first != list(names))
    elif first == [str(number) for number in order]:
        raise DataError(
            f"{path}: line 1 numbers the columns; remove it (pandas: header=False), or name the "
            "classes there"
        )
    elif not any(map(_is_number, first)):
        known = short(", ".join(names))
        raise DataError(
            f"{path}: line 1: expected the class names ({known}) or a number for each, found "
            f"{short(', '.join(first))}; name all classes and nothing else, or none"
        )
    else:
        rows.append(_numbers(path, 1, first, order))
    rows.extend(_numbers(path, lines.line_num, fields, order) for fields in lines)
    return Table(np.array(rows).reshape(len(rows), len(names)), None, told)


def _numbers(path: str, line: int, fields: list[str], order: list[int]) -> list[float]:
    """Return the numbers of a line, in an order of its columns.  Raises DataError."""
    if len(fields) != len(order):
        raise DataError(
            f"{path}: line {line}: expected {len(order)} numbers with commas between them, one for "
            f"each class, found {len(fields)}; save no other column (pandas: index=False)"
        )
    for column, field in enumerate(fields, 1):
        if not _is_number(field):
            raise DataError(
                f"{path}: line {line}: column {column}: expected a number, found "
                f"{short(repr(field))}; correct it"
            )
    return [float(fields[column]) for column in order]


def _is_number(field: str) -> bool:
    try:
        float(field.replace("_", "?"))  # Python takes 1_000 for a number
    except ValueError:
        return False
    return True
