"""A mesh, or a cloud, from a .ply file: text, or binary in either byte order.

A header names the elements, their properties and types, in any order; we read x, y and z of
`vertex` and the corners of `face`, and step over everything else.  Its counts are a claim: nothing
is allocated before the bytes are seen to be there.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from minipc.data.readers.lines import coordinates, numbered, refused, shown, whole
from minipc.data.readers.surface import Mesh, check_corners
from minipc.errors import DataError, short

Order = Literal["<", ">", "="]
HEADER = 1 << 16  # most bytes of a header
TEXT: Order = "="
ORDERS: dict[bytes, Order] = {
    b"ascii": TEXT,
    b"binary_little_endian": "<",
    b"binary_big_endian": ">",
}
TYPES = {
    **{b"char": "i1", b"uchar": "u1", b"short": "i2", b"ushort": "u2", b"int": "i4", b"uint": "u4"},
    **{b"float": "f4", b"double": "f8", b"int8": "i1", b"uint8": "u1", b"int16": "i2"},
    **{b"uint16": "u2", b"int32": "i4", b"uint32": "u4", b"float32": "f4", b"float64": "f8"},
}
CORNERS = ("vertex_indices", "vertex_index")


class Property(NamedTuple):
    name: str
    kind: np.dtype
    size: np.dtype | None = None  # of a list: type of the number of values


class Element(NamedTuple):
    name: str
    total: int  # as the header says
    properties: list[Property]

    @property
    def has_lists(self) -> bool:
        return any(each.size for each in self.properties)

    def place(self, *names: str) -> int | None:
        """Return where a property of one of these names is, or None."""
        return next((i for i, each in enumerate(self.properties) if each.name in names), None)


def read_ply(path: str, file: BinaryIO) -> Mesh:
    """Return the Mesh of an open .ply file.  Raises DataError."""
    order, elements, number = _header(path, file)
    names = [element.name for element in elements]
    if names.count("vertex") != 1 or names.count("face") > 1 or "tristrips" in names:
        raise DataError(
            f"{path}: expected one element vertex and at most one element face, found "
            f"{short(', '.join(names))}; save it as points, or as polygons"
        )
    body = _Text(path, file, number) if order == TEXT else _Binary(path, file, order)
    vertices, sizes, corners = np.empty((0, 3)), np.empty(0, np.int64), np.empty(0, np.int64)
    for element in elements:
        if element.name == "vertex":
            vertices = body.points(element, _axes(path, element))
        elif element.name == "face":
            sizes, corners = body.lists(element, _corners(path, element))
        else:
            body.skip(element)
    if more := body.rest():
        raise DataError(f"{path}: expected its end after its elements, found {more}; copy it again")
    return Mesh(vertices, sizes, corners)


def _header(path: str, file: BinaryIO) -> tuple[Order, list[Element], int]:
    """Return byte order (TEXT for text), elements, and the number of lines of the header."""
    order: Order | None = None
    elements: list[Element] = []
    first = file.readline(HEADER).strip()
    if first != b"ply":
        raise refused(path, 1, f"expected ply, found {shown(first)}; save it as .ply")
    for number, line in numbered(path, file, 1):
        word, *fields = line.split() or [b""]
        fault = ""
        if line == b"end_header" and order is not None:
            return order, elements, number
        elif word == b"format" and order is None:
            order = ORDERS.get(fields[0]) if fields[1:] == [b"1.0"] else None
            if order is None:
                fault = "expected format ascii, binary_little_endian or binary_big_endian 1.0"
        elif word not in (b"comment", b"obj_info"):
            fault = _add(elements, word, fields)
        if fault:
            raise refused(path, number, f"{fault}, found {shown(line)}; save it again")
        if file.tell() > HEADER:
            break
    raise DataError(f"{path}: its header does not end; copy it again, or save it as .ply")


def _add(elements: list[Element], word: bytes, fields: list[bytes]) -> str:
    """Add what a line of a header says to the elements; return what is wrong with it, or ""."""
    if word == b"element" and len(fields) == 2 and fields[1].isdigit() and len(fields[1]) < 19:
        elements.append(Element(_name(fields[0]), int(fields[1]), []))
        return ""
    if word != b"property" or not elements:
        return "expected a line of a header"
    if fields[:1] == [b"list"]:
        kinds, names = fields[1:3], fields[3:]
    else:
        kinds, names = fields[:1], fields[1:]
    if len(names) != 1 or not set(kinds) <= set(TYPES):
        return "expected a property of a known type"
    if elements[-1].place(_name(names[0])) is not None:
        return "expected another name"
    types = [np.dtype(TYPES[kind]) for kind in kinds[::-1]]
    if len(types) == 2 and types[1].kind == "f":
        return "expected a list whose length is an integer"
    elements[-1].properties.append(Property(_name(names[0]), *types))
    return ""


def _name(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _axes(path: str, element: Element) -> list[int]:
    """Return where x, y and z are among the properties of the vertices.  Raises DataError."""
    found = [place for axis in "xyz" if (place := element.place(axis)) is not None]
    if len(found) < 3 or element.has_lists:
        raise _other(path, element, "numbers, x, y and z among them")
    return found


def _corners(path: str, element: Element) -> int:
    """Return where the corners are among the properties of the faces.  Raises DataError."""
    place = element.place(*CORNERS)
    if place is not None:
        corners = element.properties[place]
        if corners.size and corners.kind.kind != "f":
            return place
    raise _other(path, element, f"a list {CORNERS[0]} of integers")


def _other(path: str, element: Element, expected: str) -> DataError:
    found = short(", ".join(f"list {p.name}" if p.size else p.name for p in element.properties))
    return DataError(f"{path}: {element.name}: expected {expected}, found {found}; save it again")


def _short_of(path: str, element: Element, found: int | str) -> DataError:
    return DataError(
        f"{path}: says {element.total} times {element.name}, found {found}; the file is cut, or "
        "its header is wrong: copy it again"
    )


class _Text:
    """The elements of a text, one a line."""

    def __init__(self, path: str, file: BinaryIO, number: int) -> None:
        self.path = path
        self.lines = ((at, line) for at, line in numbered(path, file, number) if line)

    def rows(self, element: Element) -> Iterator[tuple[int, list[list[bytes]]]]:
        """Yield (number of the line, the fields of each property) for each line of an element."""
        for done in range(element.total if element.properties else 0):
            at, line = next(self.lines, (0, b""))
            if not line:
                raise _short_of(self.path, element, done)
            row, found, i = line.split(), [], 0
            for each in element.properties:
                size = 1
                if each.size:
                    size = whole(self.path, at, row[i], "a length") if i < len(row) else 0
                    i += 1
                found.append(row[i : i + max(size, 0)])
                i += size
            if i != len(row) or size < 0:
                raise refused(
                    self.path,
                    at,
                    f"expected the {len(element.properties)} properties of a {element.name}, found "
                    f"{shown(line)}; repair the line",
                )
            yield at, found

    def points(self, element: Element, axes: list[int]) -> np.ndarray:
        values = array("d")
        for at, row in self.rows(element):
            values.extend(coordinates(self.path, at, [row[axis][0] for axis in axes]))
        return np.array(values).reshape(-1, 3)

    def lists(self, element: Element, place: int) -> tuple[np.ndarray, np.ndarray]:
        sizes, values = array("q"), array("q")
        for at, row in self.rows(element):
            sizes.append(len(row[place]))
            values.extend([whole(self.path, at, field, "a corner") for field in row[place]])
            check_corners(self.path, len(values))
        return np.array(sizes), np.array(values)

    def skip(self, element: Element) -> None:
        for _ in self.rows(element):
            pass

    def rest(self) -> str:
        """Return what follows the last element, "" for nothing."""
        at, line = next(self.lines, (0, b""))
        return f"line {at}" if line else ""


class _Binary:
    """The elements of a binary body, one after the other."""

    def __init__(self, path: str, file: BinaryIO, order: Order) -> None:
        self.path, self.order = path, order
        self.data, self.at = file.read(), 0

    def table(self, element: Element) -> np.ndarray:
        """Return the rows of an element without lists, a structured array."""
        row = np.dtype(
            [(str(i), p.kind.newbyteorder(self.order)) for i, p in enumerate(element.properties)]
        )
        rest = memoryview(self.data)[self.at :]
        fit = len(rest) // row.itemsize
        if element.total > fit:
            raise _short_of(self.path, element, f"bytes for {fit}")
        self.at += element.total * row.itemsize
        return np.ndarray((element.total,), row, rest)

    def points(self, element: Element, axes: list[int]) -> np.ndarray:
        rows = self.table(element)
        return np.stack([rows[str(axis)] for axis in axes], axis=1)

    def skip(self, element: Element) -> None:
        if element.has_lists:
            self.walked(element)
        elif element.properties:
            self.table(element)

    def lists(self, element: Element, place: int) -> tuple[np.ndarray, np.ndarray]:
        sizes, values = self.walked(element, place)
        kind = element.properties[place].kind.newbyteorder(self.order)
        return np.array(sizes), np.frombuffer(values, kind).astype(np.int64)

    def walked(self, element: Element, place: int = -1) -> tuple[array, bytearray]:
        """Return the lengths and the bytes of one property, a list; step over the others."""
        sizes, values = array("q"), bytearray()
        kinds = [
            (p.size and struct.Struct(self.order + p.size.char), p.kind.itemsize)
            for p in element.properties
        ]
        data, at, width = self.data, self.at, kinds[place][1]
        check_corners(self.path, min(element.total, len(data)))  # a row may be one byte
        for done in range(element.total):
            for i, (length, step) in enumerate(kinds):
                size = 1
                if length:
                    if at + length.size > len(data):
                        raise _short_of(self.path, element, done)
                    (size,) = length.unpack_from(data, at)
                    at += length.size
                stop = at + size * step
                if size < 0 or stop > len(data):
                    raise _short_of(self.path, element, done)
                if i == place:
                    sizes.append(size)
                    values += data[at:stop]
                at = stop
            check_corners(self.path, len(values) // width)
        self.at = at
        return sizes, values

    def rest(self) -> str:
        """Return what follows the last element, "" for nothing."""
        more = len(self.data) - self.at
        return f"{more} bytes" if more else ""
