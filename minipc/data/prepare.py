"""One cloud as a network sees it: finite float32, in the unit sphere, of so many points.

Every way in, packing and predicting, comes through here, so that the same file gives the same
points whatever else is read beside it.  Clouds are centred and scaled in float64 and rounded to
float32 once, at the end: far from the origin float32 does not hold the shape of a small object.
"""

import numpy as np

from minipc.errors import DataError
from minipc.storage.files import sha256_arrays
from minipc.streams import stream

NORMALISATIONS = ("unit_sphere", "none")
# Largest step between neighbouring numbers, as a share of a cloud's largest side.  It is the slack
# of the unit sphere too (below), and so what counts as no change of a cloud.
COARSEST = 1e-3


def float_points(values):
    """Return (..., P, 3) as a new array: float32 of float16 and float32, else float64.

    Raises DataError naming a point that is not finite in float32, or the dtype where it is too
    coarse for a cloud so far from the origin.
    """
    if values.dtype.kind not in "iuf":
        raise DataError(f"expected real numbers, found {values.dtype}")
    small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    points = np.array(
        values, np.float32 if small else np.float64, order="C"
    )  # sums differ with the order
    bad = np.argwhere(~representable(points).all(axis=-1))
    if len(bad):
        at = ", ".join(
            f"{name} {i}"
            for name, i in zip(("cloud", "point")[-bad.shape[1] :], bad[0], strict=True)
        )
        found = ", ".join(map(str, values[tuple(bad[0])].tolist()))
        raise DataError(
            f"{at}: expected finite float32 coordinates, found {found}; remove or repair it"
        )
    _check_steps(
        points,
        values.dtype if small else np.float64,
        "so its shape was lost where it was saved; subtract "
        "an offset before saving, or save more digits",
    )
    return points


def representable(values):
    """Return where float32 holds values finitely, a mask of their shape."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(values.astype(np.float32))


def _check_steps(points, dtype, remedy):
    """Raise DataError for the first cloud of points (..., P, 3) too far from the origin for
    dtype.
    """
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
            f"{far[first]:.3g}, more "
            f"than {COARSEST:g} of the cloud's largest side, {side[first]:.2g}, {remedy}"
        )


def unit_sphere(points):
    """Return points with each centroid at the origin and the largest radius 1, and a mask.

    (N, P, 3) float32 or float64 -> float32 of the same shape, (N,) bool: which clouds were changed.
    A cloud within 1e-3 of that already is kept (bit for bit in float32), so the operation is
    idempotent.  A cloud of one repeated point has no radius; it ends at the origin.
    """
    exact = points.astype(np.float64)
    centre = exact.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(exact - centre, axis=2).max(axis=1)  # (N,)
    changed = (np.abs(radius - 1) > 1e-3) | (np.linalg.norm(centre[:, 0], axis=1) > 1e-3)
    scaled = (exact - centre) / np.where(radius > 0, radius, 1)[:, None, None]
    return np.where(changed[:, None, None], scaled, points).astype(np.float32), changed


def normalised(points, normalisation):
    """Return points (N, P, 3) normalised, float32, and a mask (N,) of the clouds that changed.

    points are what float_points returns.  Raises DataError where a cloud is one repeated point,
    which has no radius, and where it stays as it is and is too far from the origin for float32.
    """
    if normalisation == "none":
        _check_steps(
            points,
            np.float32,
            "and clouds are kept in float32; normalise to unit_sphere, or subtract an offset",
        )
        return points.astype(np.float32, copy=False), np.zeros(len(points), bool)
    with np.errstate(over="ignore"):
        single = ((points - points[:, :1]).astype(np.float32) == 0).all(
            axis=(1, 2)
        )  # nearer than 1e-45 is one, too
    if single.any():
        where = f"cloud {single.argmax()}: " if len(points) > 1 else ""
        raise DataError(
            f"{where}expected at least 2 distinct points, found one ({points.shape[1]} times), "
            "which has no radius "
            "for the unit sphere; remove the cloud"
        )
    return unit_sphere(points)


def fit_points(points, count):
    """Return count of the points (P, 3): all, a random subset, or all of them repeated cyclically.

    The subset is without replacement and keeps the stored order.  Its draw depends on the content
    of the cloud alone, never on a name or a neighbour.  Repetition leaves a maximum unchanged.
    """
    return points[_rows(points, count)]


def prepare(points, normalisation, count):
    """Return one cloud (P, 3) of float_points as (count, 3) float32, and whether it changed.

    The whole cloud is normalised; then the points are taken that fit_points takes of the cloud as
    it was stored: a last bit of the normalisation, which machines may round apart, chooses nothing.
    """
    moved, changed = normalised(points[None], normalisation)
    return moved[0][_rows(points, count)], bool(changed[0])


def _rows(points, count):
    """Return the indices (count,) that fit_points takes."""
    if count >= len(points):
        return np.arange(count) % len(points)
    stored = points.astype(
        np.float32, copy=False
    )  # a text and an array of the same cloud give the same draw
    words = np.frombuffer(bytes.fromhex(sha256_arrays(stored)), ">u4")
    return np.sort(stream(0, "subset", *words.tolist()).permutation(len(points))[:count])
