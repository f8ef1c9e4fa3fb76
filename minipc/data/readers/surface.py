"""Points on the surface of a mesh: faces to triangles, and points drawn from these by area.

A face of four corners or more is cut into a fan of triangles around one of its corners.  That is
the face itself only if the triangles lie in one plane and none lies over another; then, and only
then, their areas add up to the length of the sum of their vector areas.  We try the corners and
refuse a face for which no fan is right, instead of guessing at its inside.  Only a bent
quadrilateral has no right answer and is common: it is cut along its better diagonal.

This and the parsers of meshes are ours and not a library's (trimesh), because they are short, a
library repairs a mesh in silence, and the points of a file must be the same in ten years.
"""

from typing import NamedTuple

import numpy as np

from minipc.errors import DataError
from minipc.storage.files import sha256_arrays
from minipc.streams import stream

SAMPLES = 10_000  # points of a mesh, from which those of a packed cloud are drawn
MOST_CORNERS = 30_000_000  # of all faces together: ten million triangles
STARTS = 8  # corners of a face that are tried as the centre of its fan
# Largest areas of a fan, as a multiple of its vector area.  A quadrilateral may be bent by 90
# degrees; one half turned over onto the other is a crossed one.
FLAT, BENT = 1.01, 2**0.5
# Areas of a face, of its largest side squared, up to which it is a line, and any fan lies on it: of
# what is no wider than this, rounding makes triangles that look any way.
LINE = 1e-4
BLOCK = 1 << 18  # triangles at once


class Mesh(NamedTuple):
    """What a file of vertices and faces holds; without faces, a cloud of its vertices."""

    vertices: np.ndarray  # (V, 3) of a real dtype
    sizes: np.ndarray  # (F,) int64, how many corners each face has
    corners: np.ndarray  # (sum of sizes,) int64, the vertices of each face, one face after another


def check_corners(path: str, corners: int) -> None:
    """Raise DataError where faces have more corners than we read."""
    if corners > MOST_CORNERS:
        raise DataError(
            f"{path}: its faces have more than {MOST_CORNERS} corners; simplify the mesh, or save "
            "points of it"
        )


def triangles_of(mesh: Mesh) -> np.ndarray:
    """Return the triangles (T, 3) int64 that make up the faces of a mesh: indices of vertices.

    By the number of corners of a face, then in the order of the faces.  Raises DataError for a face
    of fewer than three corners, of vertices that are not there, or that is no fan of triangles.
    """
    vertices, sizes, corners = mesh
    if sizes.min() < 3:
        raise _face(int(sizes.argmin()), f"has {sizes.min()} corners, expected 3 or more")
    outside = (corners < 0) | (corners >= len(vertices))
    if outside.any():
        at = int(outside.argmax())
        face = int(np.searchsorted(np.cumsum(sizes), at, side="right"))
        raise _face(face, f"names vertex {corners[at]}, expected 0 to {len(vertices) - 1}")
    first, parts = np.cumsum(sizes) - sizes, []
    for size in np.unique(sizes).tolist():
        faces, step = np.flatnonzero(sizes == size), max(BLOCK // size, 1)
        for some in np.split(faces, range(step, len(faces), step)):
            polygons = corners[first[some, None] + np.arange(size)]
            parts.append(polygons if size == 3 else _fans(vertices, polygons, some))
    return np.concatenate(parts)


def _fans(vertices: np.ndarray, polygons: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return polygons (F, n) as triangles (F (n - 2), 3); faces (F,): their numbers."""
    count, size = polygons.shape
    best = np.full(count, np.inf)  # areas of the best fan, as a multiple of the vector area
    fans = np.empty((count, size - 2, 3), np.int64)
    sides = np.ptp(vertices[polygons].astype(np.float64), axis=1).max(axis=1)  # (F,)
    for start in range(min(size, STARTS)):
        todo = np.flatnonzero(best > 1 + 1e-9)  # the others lie flat, up to rounding
        turned = np.roll(polygons[todo], -start, axis=1)
        fan = np.stack(
            [np.broadcast_to(turned[:, :1], turned[:, 2:].shape), turned[:, 1:-1], turned[:, 2:]],
            axis=-1,
        )
        vectors = _vector_areas(vertices, fan)
        total, net = _length(vectors).sum(axis=1), _length(vectors.sum(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(total > LINE * sides[todo] ** 2, total / net, 1)
        over = (vectors * vectors.sum(axis=1, keepdims=True)).sum(axis=-1).min(axis=1) < 0
        excess[over & (excess > FLAT)] = np.inf
        better = excess < best[todo]
        best[todo[better]], fans[todo[better]] = excess[better], fan[better]
    wrong = ~(best <= (BENT if size == 4 else FLAT))
    if wrong.any():
        raise _face(
            int(faces[wrong.argmax()]),
            f"has {size} corners that are bent, cross or turn inwards, so that it is no fan of "
            "triangles; triangulate the mesh where it was made",
        )
    return fans.reshape(-1, 3)


def _face(number: int, fault: str) -> DataError:
    remedy = "" if ";" in fault else "; save the mesh again"
    return DataError(f"face {number} (counted from 0) {fault}{remedy}")


def _vector_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return the vector areas (..., 3) float64 of triangles (..., 3), twice their size."""
    a, b, c = (vertices[triangles[..., i]].astype(np.float64) for i in range(3))
    b, c = b - a, c - a
    return np.stack(
        [b[..., i] * c[..., j] - b[..., j] * c[..., i] for i, j in ((1, 2), (2, 0), (0, 1))],
        axis=-1,
    )


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors * vectors).sum(axis=-1))


def sampled(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return SAMPLES points (S, 3) float64, drawn uniformly from triangles (T, 3) of vertices.

    The stream is (0, "surface", hash of both): it depends on the mesh alone, not on the name of its
    file or on other files.  A triangle without area is never drawn; raises DataError if all are so.
    """
    area = np.concatenate(
        [
            _length(_vector_areas(vertices, triangles[first : first + BLOCK]))
            for first in range(0, len(triangles), BLOCK)
        ]
    )
    if not area.any():
        raise DataError("its faces have no area; save the mesh again, or only its vertices")
    words = np.frombuffer(
        bytes.fromhex(sha256_arrays(vertices.astype(np.float32), triangles)), ">u4"
    )
    u, v, w = stream(0, "surface", *words.tolist()).random((3, SAMPLES))
    kept = np.flatnonzero(area)
    below = np.cumsum(area[kept] / area.max())
    row = np.searchsorted(below, u * below[-1], side="right")
    chosen = triangles[kept[np.minimum(row, len(kept) - 1)]]  # u may round up to 1
    a, b, c = (vertices[chosen[:, i]].astype(np.float64) for i in range(3))
    # the square root: as dense near the corner a as near the edge opposite
    r, w = np.sqrt(v)[:, None], w[:, None]
    return a + r * ((1 - w) * (b - a) + w * (c - a))
