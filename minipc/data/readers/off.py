"""A mesh from an .off file: counts, vertices, faces, one a line; `#` begins a comment.

Read are OFF, COFF, NOFF, STOFF and their combinations, also where the counts follow the word
without a blank (`OFF490 518 0`, as in ModelNet).  Colours, normals and texture coordinates behind
the coordinates and behind the corners are ignored.
"""

import re
from array import array
from itertools import islice
from typing import BinaryIO

import numpy as np

from minipc.data.readers.lines import coordinates, numbered, refused, shown, whole
from minipc.data.readers.surface import Mesh, check_corners
from minipc.errors import DataError

# 4OFF and nOFF have other dimensions
HEADER = re.compile(rb"(?:ST)?C?N?OFF(?=[\s\d]|$)\s*(.*)")


def read_off(path: str, file: BinaryIO) -> Mesh:
    """Return the Mesh of an open .off file.  Raises DataError naming the line."""
    lines = (
        (number, text)
        for number, line in numbered(path, file)
        if (text := line.partition(b"#")[0].strip())
    )
    number, line = next(lines, (1, b""))
    header = HEADER.fullmatch(line)
    if not header:
        raise refused(path, number, f"expected OFF, found {shown(line)}; save it as a text .off")
    if not header[1]:
        number, line = next(lines, (number, b""))
    said = (header[1] or line).split()
    counts = [int(field) for field in said if field.isdigit() and len(field) < 19]
    if not 2 <= len(said) <= 3 or len(counts) != len(said):
        raise refused(
            path,
            number,
            f"expected counts of vertices, faces and edges, found {shown(line)}; save it as a "
            "text .off",
        )
    vertices, sizes, corners = array("d"), array("q"), array("q")
    columns = 0  # of the first vertex, as of every other
    for number, line in islice(lines, counts[0]):
        fields = line.split()
        columns = columns or len(fields)
        if len(fields) != columns:
            raise refused(
                path,
                number,
                f"expected a vertex of {columns} numbers, as the first, found {shown(line)}; "
                "repair the line",
            )
        vertices.extend(coordinates(path, number, fields))
    for number, line in islice(lines, counts[1]):
        fields = line.split()
        size = whole(path, number, fields[0], "a number of corners")
        if not 0 < size < len(fields):
            raise refused(
                path,
                number,
                f"expected a face, its corners after their number, found {shown(line)}"
                "; repair the line",
            )
        sizes.append(size)
        corners.extend([whole(path, number, field, "a corner") for field in fields[1 : size + 1]])
        check_corners(path, len(corners))
    found = [len(vertices) // 3, len(sizes)]
    if found != counts[:2] or next(lines, None):
        more = "more follows" if found == counts[:2] else f"found {found[0]} and {found[1]}"
        raise DataError(
            f"{path}: says {counts[0]} vertices and {counts[1]} faces, {more}; the file is cut or "
            "joined: copy it again"
        )
    return Mesh(np.array(vertices).reshape(-1, 3), np.array(sizes), np.array(corners))
