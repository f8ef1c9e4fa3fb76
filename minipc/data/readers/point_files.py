"""Read one cloud of points from a user's file: an array, a text, a cloud or mesh of some format.

The coordinates are the first three columns, or those that a header names x, y and z; other columns
(normals, colours) are ignored.  Of a mesh, points are drawn on its faces (surface.py).  We skip
nothing silently and unpickle nothing.
"""

import os
import zipfile
from collections.abc import Callable

import numpy as np

from minipc.data.prepare import float_points, prepare, turned
from minipc.data.readers.las import read_las
from minipc.data.readers.obj import read_obj
from minipc.data.readers.off import read_off
from minipc.data.readers.pcd import read_pcd
from minipc.data.readers.ply import read_ply
from minipc.data.readers.stl import read_stl
from minipc.data.readers.surface import Mesh, sampled, triangles_of
from minipc.data.readers.text_points import COLUMNS, read_text
from minipc.errors import DataError, short
from minipc.storage import files

TEXT = (".xyz", ".txt", ".csv", ".pts", ".asc", ".xyzn")
MESH = {".ply": read_ply, ".off": read_off, ".obj": read_obj, ".stl": read_stl}
LIDAR = (".las", ".laz")
SUFFIXES = (".npy", ".npz", *TEXT, *MESH, ".pcd", *LIDAR)
LARGEST = 1 << 30  # bytes of one cloud; a small archive can unpack to any number
FARTHEST = 1e18  # a coordinate: above, squares of distances overflow in float32
EXPECTED = f"expected one cloud, (P, 3) real numbers or up to {COLUMNS} columns"


def read_points(path: str) -> np.ndarray:
    """Return the points (P, 3) of the one cloud in a file, finite, float32 or float64.

    Raises DataError naming the file, and the line or the point, for anything else.
    """
    kind = files.kind_of(path)  # raises where path is missing, a folder or a pipe
    if kind:
        raise DataError(f"{path}: is a minipc {kind} file, expected one cloud as {_suffixes()}")
    suffix, size = os.path.splitext(path)[1].lower(), os.path.getsize(path)
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown suffix {suffix!r}, expected {_suffixes()}; convert it")
    if not 0 < size <= LARGEST:
        fault = (
            f"has {size} bytes, expected at most {LARGEST} for one cloud" if size else "is empty"
        )
        raise DataError(f"{path}: {fault}; put one cloud into it, or remove the file")
    values, faces = _values(path, suffix), None
    if isinstance(values, Mesh):
        faces = values if len(values.sizes) else None
        values = values.vertices
    if values.ndim != 2 or not 3 <= values.shape[1] <= COLUMNS or values.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {EXPECTED}, found {values.shape} {short(values.dtype)}; save one cloud a file"
        )
    if not len(values):
        raise DataError(f"{path}: holds no points; put some into it, or remove the file")
    try:
        points = float_points(values[:, :3])
        _check_far(points)
        return points if faces is None else sampled(points, triangles_of(faces))
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason


def _values(path: str, suffix: str) -> np.ndarray | Mesh:
    """Return what a file holds.  Raises DataError."""
    if suffix in TEXT:
        return read_text(path)
    if suffix in LIDAR:
        return read_las(path)
    if suffix in (".npy", ".npz"):
        return _array(path, _npz if suffix == ".npz" else _npy)
    with open(path, "rb") as file:
        return read_pcd(path, file) if suffix == ".pcd" else MESH[suffix](path, file)


def _check_far(points: np.ndarray) -> None:
    """Raise DataError for coordinates that no unit of length explains."""
    far = abs(points).max(axis=1)
    if far.max() > FARTHEST:
        raise DataError(
            f"point {far.argmax()}: expected coordinates up to {FARTHEST:g}, found "
            f"{far.max():.3g}; check the byte order and the type of the numbers"
        )


def read_prepared(
    path: str, normalisation: str, count: int, turn: tuple[str, str] | None = None
) -> tuple[np.ndarray, bool, int]:
    """Return the cloud in path by prepare, whether that changed it, and its points in the file.

    turn: (up axis of the file, wanted one): as if the file held the turned points.
    """
    points = read_points(path)
    if turn:
        points = turned(points, *turn)
    try:
        return *prepare(points, normalisation, count), len(points)
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason


def point_files(folder: str) -> tuple[list[str], list[str]]:
    """Return the cloud files in a folder and in the folders in it, and its other files, sorted.

    A cloud file has one of SUFFIXES.  Hidden names and links to folders are left alone.  Raises
    DataError for a folder that cannot be read, and if there is no cloud file.
    """

    def failed(reason: OSError) -> None:
        raise DataError(
            f"{reason.filename}: cannot be read ({reason.strerror}); check its rights"
        ) from reason

    found: dict[bool, list[str]] = {True: [], False: []}
    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                of_cloud = os.path.splitext(name)[1].lower() in SUFFIXES
                found[of_cloud].append(os.path.join(place, name))
    if not found[True]:
        raise DataError(f"{folder}: holds no cloud, {_suffixes()}; name a folder with clouds")
    return found[True], found[False]


def _suffixes() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _array(path: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
    try:
        return read(path)
    except DataError:
        raise
    except Exception as reason:  # NumPy parses a header as Python source, which can raise anything
        message = " ".join(str(reason).split()) or type(reason).__name__
        raise DataError(
            f"{path}: is damaged or no plain array ({short(message, 120)}); save it again"
        ) from reason


def _npy(path: str) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="r")  # never unpickles; raises for a cut file


def _npz(path: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        arrays = {info.filename: info for info in archive.infolist()}
        name = "points.npy" if "points.npy" in arrays else next(iter(arrays), "")
        if not name.endswith(".npy") or len(arrays) > 1 and name != "points.npy":
            raise DataError(
                f"{path}: expected an array named points, or one array, found "
                f"{short(sorted(arrays))}"
            )
        if arrays[name].file_size > LARGEST:
            raise DataError(
                f"{path}: {name} unpacks to {arrays[name].file_size} bytes, expected at most "
                f"{LARGEST} for one cloud"
            )
        with archive.open(name) as member:  # yields at most the declared size
            values = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end also verifies the member's checksum
                raise ValueError(f"{name} is longer than its array")
            return values
