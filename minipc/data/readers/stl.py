"""A mesh from an .stl file: triangles, each with its corners; binary or text.

Programs begin binary files with the word `solid`, too.  So a file is binary if the number of
triangles at byte 80 gives exactly its length, and otherwise a text.  Normals and attributes are
ignored.
"""

from array import array
from typing import BinaryIO

import numpy as np

from minipc.data.readers.lines import coordinates, numbered, refused, shown
from minipc.data.readers.surface import Mesh, check_corners
from minipc.errors import DataError

HEAD = 84  # bytes before the triangles: a comment, then their number
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
FACET = (b"facet", b"outer", b"vertex", b"vertex", b"vertex", b"endloop", b"endfacet")


def read_stl(path: str, file: BinaryIO) -> Mesh:
    """Return the Mesh of an open .stl file.  Raises DataError."""
    head, size = file.read(HEAD), file.seek(0, 2)
    count = int.from_bytes(head[HEAD - 4 :], "little")
    text = head.lstrip()[:5].lower() == b"solid"
    if len(head) == HEAD and size == HEAD + count * TRIANGLE.itemsize:
        check_corners(path, 3 * count)
        file.seek(HEAD)
        vertices = np.frombuffer(file.read(), TRIANGLE)["corners"].reshape(-1, 3)
    elif text:
        file.seek(0)
        vertices = _text(path, file)
    else:
        raise DataError(
            f"{path}: says {count} triangles at byte 80, which are {HEAD} + {TRIANGLE.itemsize} "
            f"bytes each, and has {size} bytes; copy it again"
        )
    if not len(vertices):
        raise DataError(f"{path}: holds no triangles; put some into it, or remove the file")
    faces = len(vertices) // 3
    return Mesh(vertices, np.full(faces, 3), np.arange(3 * faces))


def _text(path: str, file: BinaryIO) -> np.ndarray:
    """Return the corners (3 T, 3) float64 of a text: solids, one after the other."""
    vertices, at = array("d"), -1  # at: place in FACET, -1 outside of a solid
    number = 0
    for number, line in numbered(path, file):
        if not (fields := line.split()):
            continue
        word = fields[0].lower()
        if at < 0 and word == b"solid":
            at = 0
        elif at == 0 and word == b"endsolid":
            at = -1
        elif at >= 0 and word == FACET[at]:
            if word == b"vertex":
                vertices.extend(coordinates(path, number, fields[1:]))
                check_corners(path, len(vertices) // 3)
            at = (at + 1) % len(FACET)
        else:
            wanted = FACET[at].decode() if at >= 0 else "solid"
            raise refused(
                path, number, f"expected {wanted}, found {shown(line)}; save the mesh again"
            )
    if at >= 0:
        raise refused(path, number, "the file ends within a solid; copy it again")
    return np.array(vertices).reshape(-1, 3)
