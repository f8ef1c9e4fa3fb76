"""A mesh from an .obj file (Wavefront): the vertices `v` and the faces `f` in it.

Texture, normals, colours, groups and materials are ignored, lines and single points too.  Curves
and free-form surfaces are refused: their control points are no points of theirs.
"""

from array import array
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from minipc.data.readers.lines import LINE, coordinates, numbered, refused, shown, whole
from minipc.data.readers.surface import Mesh, check_corners

IGNORED = {
    *(b"vt", b"vn", b"vp", b"p", b"l", b"g", b"o", b"s", b"mg", b"usemtl", b"mtllib", b"usemap"),
    *(b"maplib", b"bevel", b"c_interp", b"d_interp", b"lod", b"shadow_obj", b"trace_obj"),
}


def read_obj(path: str, file: BinaryIO) -> Mesh:
    """Return the Mesh of an open .obj file.  Raises DataError naming the line."""
    vertices, sizes, corners = array("d"), array("q"), array("q")
    for number, fields in _statements(path, file):
        if fields[0] == b"v":
            vertices.extend(coordinates(path, number, fields[1:]))
        elif fields[0] == b"f":
            count = len(vertices) // 3
            sizes.append(len(fields) - 1)
            for field in fields[1:]:
                index = whole(path, number, field.partition(b"/")[0], "a vertex of a face")
                # from 1 on, or from the last vertex back: -1
                at = index - 1 if index > 0 else count + index
                if index == 0 or at < 0:
                    raise refused(
                        path,
                        number,
                        f"names vertex {index}, after {count} vertices; save the mesh again",
                    )
                corners.append(at)
            check_corners(path, len(corners))
        elif fields[0] not in IGNORED:
            raise refused(
                path,
                number,
                f"expected v, f or another word of a mesh, found {shown(fields[0])}; save the "
                "surface as a mesh of polygons",
            )
    return Mesh(np.array(vertices).reshape(-1, 3), np.array(sizes), np.array(corners))


def _statements(path: str, file: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the last line, fields); a backslash at its end continues a line."""
    before: list[bytes] = []
    for number, line in numbered(path, file):
        line = line.partition(b"#")[0].strip()
        before += line.removesuffix(b"\\").split()
        if len(before) > LINE:
            raise refused(path, number, f"has more than {LINE} words; save the file again")
        if not line.endswith(b"\\"):
            if before:
                yield number, before
            before = []
    if before:
        raise refused(path, number, "continues beyond the end of the file; copy it again")
