"""One cloud as a network reads it: finite float32, in the unit sphere, a fixed number of points.

Packing and predicting both use this module, so a file always gives the same points.  Clouds are
centred and scaled in float64 and rounded to float32 once, at the end: far from the origin, float32
cannot represent the shape of a small object.
"""

from typing import Any

import numpy as np

from minipc.errors import DataError
from minipc.storage.files import sha256_arrays
from minipc.streams import stream

NORMALISATIONS = ("unit_sphere", "none")
# Largest allowed step between neighbouring floats, as a share of a cloud's largest side.  It equals
# the tolerance of unit_sphere, which ignores smaller changes.
COARSEST = 1e-3


def float_points(values: np.ndarray) -> np.ndarray:
    """Return (..., P, 3) as a new array: float32 for float16 and float32, else float64.

    Raises DataError for a point that is not finite in float32, and for a dtype whose steps are too
    coarse for a cloud this far from the origin.
    """
    if values.dtype.kind not in "iuf":
        raise DataError(f"expected real numbers, found {values.dtype}")
    small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    # order C: sums of floats depend on the order in memory
    points = np.array(values, np.float32 if small else np.float64, order="C")
    bad = np.argwhere(~representable(points).all(axis=-1))
    if len(bad):
        at = ", ".join(
            f"{name} {i}"
            for name, i in zip(("cloud", "point")[-bad.shape[1] :], bad[0], strict=True)
        )
        coordinates = ", ".join(map(str, values[tuple(bad[0])].tolist()))
        raise DataError(
            f"{at}: expected finite float32 coordinates, found {coordinates}; remove or repair it"
        )
    _check_steps(
        points,
        values.dtype if small else np.float64,
        "so its shape was lost where it was saved; subtract an offset before saving, or save more "
        "digits",
    )
    return points


def representable(values: Any) -> Any:
    """Return a mask of the shape of values, True where they are finite in float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(values.astype(np.float32))


def _check_steps(points: np.ndarray, dtype: Any, remedy: str) -> None:
    """Raise DataError for the first cloud of (..., P, 3) too far from the origin for dtype."""
    if not points.size:
        return
    low, high = points.min(axis=-2), points.max(axis=-2)
    side = (high.astype(np.float64) - low).max(axis=-1)
    far = np.maximum(abs(low), abs(high)).max(axis=-1)
    step = np.spacing(far.astype(np.dtype(dtype).newbyteorder("="))).astype(np.float64)
    coarse = (step > COARSEST * side) & (side > 0)  # one repeated point has no shape to lose
    if coarse.any():
        first = np.unravel_index(coarse.argmax(), coarse.shape)
        where = f"cloud {first[0]}: " if coarse.size > 1 else ""
        raise DataError(
            f"{where}steps of {np.dtype(dtype).name} are {step[first]:.2g} at coordinates of "
            f"{far[first]:.3g}, more than {COARSEST:g} of the cloud's largest side, "
            f"{side[first]:.2g}, {remedy}"
        )


def unit_sphere(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points with each centroid at the origin and the largest radius 1, and a mask.

    (N, P, 3) float32 or float64 -> float32 of the same shape, (N,) bool: which clouds changed.
    A cloud within 1e-3 of both stays as it is (bit for bit in float32), so the operation is
    idempotent.  A cloud of one repeated point has no radius; it moves to the origin.
    """
    exact = points.astype(np.float64)
    centre = exact.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(exact - centre, axis=2).max(axis=1)  # (N,)
    changed = (np.abs(radius - 1) > 1e-3) | (np.linalg.norm(centre[:, 0], axis=1) > 1e-3)
    scaled = (exact - centre) / np.where(radius > 0, radius, 1)[:, None, None]
    return np.where(changed[:, None, None], scaled, points).astype(np.float32), changed


def normalised(points: np.ndarray, normalisation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, P, 3) normalised, float32, and a mask (N,) of the clouds that changed.

    points: from float_points.  With "unit_sphere", raises DataError for a cloud of one repeated
    point, which has no radius; with "none", for a cloud too far from the origin for float32.
    """
    if normalisation == "none":
        _check_steps(
            points,
            np.float32,
            "and clouds are kept in float32; normalise to unit_sphere, or subtract an offset",
        )
        return points.astype(np.float32, copy=False), np.zeros(len(points), bool)
    with np.errstate(over="ignore"):
        # points nearer than 1e-45 to each other count as one: float32 cannot hold the difference
        single = ((points - points[:, :1]).astype(np.float32) == 0).all(axis=(1, 2))
    if single.any():
        where = f"cloud {single.argmax()}: " if len(points) > 1 else ""
        raise DataError(
            f"{where}expected at least 2 distinct points, found one ({points.shape[1]} times), "
            "which has no radius for the unit sphere; remove the cloud"
        )
    return unit_sphere(points)


def fit_points(points: np.ndarray, count: int) -> np.ndarray:
    """Return count of the points (P, 3): all, a random subset, or all of them repeated cyclically.

    The subset is drawn without replacement and keeps the stored order.  It depends on the content
    of the cloud alone, not on its name or on other clouds.  Repetition does not change a maximum.
    """
    return points[_rows(points, count)]


def turned(points: np.ndarray, up: str, wanted: str) -> np.ndarray:
    """Return points (..., 3), whose axis `up` points up, turned so that axis `wanted` does.

    A quarter turn about the third axis, which keeps its coordinate.  With unit vectors e:
    e_up becomes e_wanted, and e_wanted becomes -e_up.  So for up y, wanted z, (x, y, z) becomes
    (x, -z, y).  Exact: coordinates change places and one its sign.  up and wanted: "x", "y" or "z".
    Nothing in a cloud says where its front is: this turn leaves it where the usual conversion does.
    """
    if up == wanted:
        return points
    old, new = "xyz".index(up), "xyz".index(wanted)
    result = points.copy()
    result[..., new] = points[..., old]
    result[..., old] = 0 - points[..., new]  # not -0.0 for 0.0, as a file of turned points has it
    return result


def prepare(points: np.ndarray, normalisation: str, count: int) -> tuple[np.ndarray, bool]:
    """Return one cloud (P, 3) of float_points as (count, 3) float32, and whether it changed.

    The whole cloud is normalised first.  The points are chosen as fit_points chooses them from the
    stored cloud, because two machines may round the normalised one differently in the last bit.
    """
    moved, changed = normalised(points[None], normalisation)
    return moved[0][_rows(points, count)], bool(changed[0])


def _rows(points: np.ndarray, count: int) -> np.ndarray:
    """Return the indices (count,) of the points that fit_points takes."""
    if count >= len(points):
        return np.arange(count) % len(points)
    # float32: a text (float64) and a float32 array of one cloud give the same draw
    stored = points.astype(np.float32, copy=False)
    words = np.frombuffer(bytes.fromhex(sha256_arrays(stored)), ">u4")
    return np.sort(stream(0, "subset", *words.tolist()).permutation(len(points))[:count])
