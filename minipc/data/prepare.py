"""One cloud as a network sees it: finite float32, in the unit sphere, of so many points.

Every way in, packing and predicting, comes through here, so that the same file gives the same
points whatever else is read beside it.
"""

import numpy as np

from minipc.errors import DataError
from minipc.files import sha256_arrays
from minipc.streams import stream

NORMALISATIONS = ("unit_sphere", "none")


def float_points(values):
    """Return (..., 3) of a real dtype as a new float32 array.  Raises DataError naming the point."""
    if values.dtype.kind not in "iuf":
        raise DataError(f"expected real numbers, found {values.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.array(values, np.float32, order="C")  # sums differ in their last bit with the order
    bad = np.argwhere(~np.isfinite(points).all(axis=-1))
    if len(bad):
        at = ", ".join(f"{name} {i}" for name, i in zip(("cloud", "point")[-bad.shape[1]:], bad[0]))
        found = ", ".join(map(str, values[tuple(bad[0])].tolist()))
        raise DataError(f"{at}: expected finite float32 coordinates, found {found}; remove or repair it")
    return points


def unit_sphere(points):
    """Return points with each centroid at the origin and the farthest point at radius 1, and a mask.

    (N, P, 3) float32 -> the same shape, (N,) bool: which clouds were changed.  A cloud within
    1e-3 of that already is kept bit for bit, so the operation is idempotent.  A cloud of one
    repeated point has no radius; it ends at the origin.
    """
    exact = points.astype(np.float64)
    centre = exact.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(exact - centre, axis=2).max(axis=1)  # (N,)
    changed = (np.abs(radius - 1) > 1e-3) | (np.linalg.norm(centre[:, 0], axis=1) > 1e-3)
    scaled = (exact - centre) / np.where(radius > 0, radius, 1)[:, None, None]
    return np.where(changed[:, None, None], scaled.astype(np.float32), points), changed


def normalised(points, normalisation):
    """Return points (N, P, 3) float32 normalised, and which of the clouds were changed (N,) bool.

    Raises DataError where a cloud is one repeated point, which has no radius.
    """
    if normalisation == "none":
        return points, np.zeros(len(points), bool)
    single = (points == points[:, :1]).all(axis=(1, 2))
    if single.any():
        where = f"cloud {single.argmax()}: " if len(points) > 1 else ""
        raise DataError(
            f"{where}expected at least 2 distinct points, found one ({points.shape[1]} times), which has no radius "
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
    """Return one cloud (P, 3) float32 as (count, 3), and whether normalisation changed it.

    The whole cloud is normalised; then the points are taken that fit_points takes of the cloud as
    it was stored: a last bit of the normalisation, which machines may round apart, chooses nothing.
    """
    moved, changed = normalised(points[None], normalisation)
    return moved[0][_rows(points, count)], bool(changed[0])


def _rows(points, count):
    """Return the indices (count,) that fit_points takes."""
    if count >= len(points):
        return np.arange(count) % len(points)
    words = np.frombuffer(bytes.fromhex(sha256_arrays(points)), ">u4")
    return np.sort(stream(0, "subset", *words.tolist()).permutation(len(points))[:count])
