"""One cloud of points from a file of a user: .npy, .npz, .xyz, .txt or .csv.

The first three columns are the coordinates, or those that a header line names x, y and z; further
ones (normals, colours) are ignored.  Nothing is skipped in silence and nothing is unpickled.
"""

import os
import zipfile

import numpy as np

from minipc import files
from minipc.data.prepare import float_points, prepare
from minipc.errors import DataError, short

TEXT = (".xyz", ".txt", ".csv")
SUFFIXES = (".npy", ".npz", *TEXT)
LARGEST = 1 << 30  # bytes of one cloud; a small archive can unpack to any number
COLUMNS = 16  # most of an array; (3, P) is a transposed cloud and no cloud of three points
WANTED = f"expected one cloud, (P, 3) real numbers or up to {COLUMNS} columns"


def read_points(path):
    """Return the points (P, 3) float32, finite, of the one cloud in the file path.

    Raises DataError naming the file, and the line or the point, for whatever is not that.
    """
    kind = files.kind_of(path)  # refuses what is missing, no file or a pipe
    if kind:
        raise DataError(f"{path}: is a minipc {kind} file, expected one cloud as {_told()}")
    suffix, size = os.path.splitext(path)[1].lower(), os.path.getsize(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown suffix {suffix!r}, expected {_told()}; convert it")
    if not 0 < size <= LARGEST:
        told = f"has {size} bytes, expected at most {LARGEST} for one cloud" if size else "is empty"
        raise DataError(f"{path}: {told}; put one cloud into it, or remove the file")
    if suffix in TEXT:
        return _text(path)
    values = _array(path, _npz if suffix == ".npz" else _npy)
    if values.ndim != 2 or not 3 <= values.shape[1] <= COLUMNS or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: {WANTED}, found {values.shape} {short(values.dtype)}; save one cloud a file")
    if not len(values):
        raise DataError(f"{path}: holds no points; put some into it, or remove the file")
    try:
        return float_points(values[:, :3])
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason


def read_prepared(path, normalisation, count):
    """Return the cloud in path as prepare does, (count, 3) float32, changed; and its stored P."""
    points = read_points(path)
    try:
        return *prepare(points, normalisation, count), len(points)
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason


def _told():
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _array(path, read):
    try:
        return read(path)
    except DataError:
        raise
    except Exception as reason:  # an array header is parsed as Python source, which can raise anything
        told = " ".join(str(reason).split()) or type(reason).__name__
        raise DataError(f"{path}: is damaged or no plain array ({short(told, 120)}); save it again") from reason


def _npy(path):
    return np.lib.format.open_memmap(path, mode="r")  # never unpickles; a truncated file has no map


def _npz(path):
    with zipfile.ZipFile(path) as archive:
        arrays = {info.filename: info for info in archive.infolist()}
        name = "points.npy" if "points.npy" in arrays else next(iter(arrays), "")
        if not name.endswith(".npy") or len(arrays) > 1 and name != "points.npy":
            raise DataError(f"{path}: expected an array named points, or one array, found {short(sorted(arrays))}")
        if arrays[name].file_size > LARGEST:
            raise DataError(
                f"{path}: {name} unpacks to {arrays[name].file_size} bytes, expected at most {LARGEST} for one cloud"
            )
        with archive.open(name) as member:  # yields at most the declared size
            values = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end also checks the sum of the member
                raise ValueError(f"{name} is longer than its array")
            return values


def _text(path):
    """Return the points of a text file: lines of numbers, blanks or commas between them."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(file, 1)]
    except (OSError, UnicodeDecodeError) as reason:
        raise DataError(f"{path}: cannot be read as text ({reason}); save it as UTF-8") from reason
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise DataError(f"{path}: holds no points; put some into it, or remove the file")
    comma = "," if "," in lines[0][1] else None
    names = lines[0][1].split(comma)
    columns = _header(names)
    if columns:
        first, lines = lines[0][0], lines[1:]
        if not lines:
            raise DataError(f"{path}: holds no points after its header; put some into it, or remove the file")
        found = len(lines[0][1].split(comma))
        if found != len(names):  # a word before the names would shift every column
            raise DataError(
                f"{path}: line {first}: names {len(names)} columns, but line {lines[0][0]} has {found}; "
                "put # before the header, or correct it"
            )
    columns = columns or (0, 1, 2)
    try:
        values = np.loadtxt((line for _, line in lines), delimiter=comma, comments=None, usecols=columns, ndmin=2)
    except ValueError as reason:
        raise _bad_line(path, lines, comma, columns, reason) from reason
    with np.errstate(over="ignore"):
        points = values.astype(np.float32)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        number, line = lines[finite.argmin()]
        raise DataError(f"{path}: line {number}: expected 3 finite float32 numbers, found {short(line)!r}; repair it")
    return points


def _header(fields):
    """Return the columns that a header line names x, y and z, or None where it is no such line."""
    names = [field.strip().strip('"').lower() for field in fields]
    return [names.index(axis) for axis in "xyz"] if all(names.count(axis) == 1 for axis in "xyz") else None


def _bad_line(path, lines, comma, columns, reason):
    """Return the error that names the first line without three numbers; slow, for a message."""
    between = "commas" if comma else "blanks"
    for number, line in lines:
        fields = line.split(comma)
        try:
            [float(fields[column].replace("_", "?")) for column in columns]
        except (ValueError, IndexError):
            return DataError(
                f"{path}: line {number}: expected 3 numbers with {between} between them, found {short(line)!r}; "
                "repair it"
            )
    return DataError(f"{path}: expected lines of 3 numbers ({short(reason, 120)})")
