"""A cloud from a .pcd file of the Point Cloud Library: text, binary, or compressed (LZF).

x, y and z are found by the names of the fields; all others are ignored.  The counts of the header
are a claim: nothing is allocated before the bytes are seen to be there.
"""

from array import array
from typing import BinaryIO, NamedTuple

import numpy as np

from minipc.data.readers.lines import coordinates, numbered, refused, shown, whole
from minipc.errors import DataError

HEADER = 1 << 16  # most bytes of a header
LARGEST = 1 << 30  # bytes that compressed points may unpack to
WORDS = (b"FIELDS", b"SIZE", b"TYPE", b"WIDTH", b"HEIGHT", b"POINTS", b"DATA")
OTHERS = (b"VERSION", b"VIEWPOINT", b"COUNT")  # may be absent
TYPES = {kind + size for kind in (b"I", b"U", b"F") for size in (b"1", b"2", b"4", b"8")}
TYPES -= {b"F1", b"F2"}


class Layout(NamedTuple):
    """How a file stores its points, by its header."""

    number: int  # of the last line of the header
    points: int
    kinds: list[np.dtype]  # one for each field
    axes: list[int]  # which fields are x, y and z
    form: bytes  # of the data


def read_pcd(path: str, file: BinaryIO) -> np.ndarray:
    """Return the points (P, 3) of an open .pcd file, of the type that it declares.

    Raises DataError.
    """
    layout = _layout(path, *_header(path, file))
    if layout.form == b"ascii":
        return _text(path, file, layout)
    sizes = [kind.itemsize for kind in layout.kinds]
    data, size = file.read(), sum(sizes) * layout.points
    if layout.form == b"binary":
        if len(data) != size:
            raise _short_of(path, layout, f"{len(data)} bytes instead of {size}")
        row = np.dtype([(str(i), kind) for i, kind in enumerate(layout.kinds)])
        rows = np.ndarray((layout.points,), row, data)
        return np.stack([rows[str(axis)] for axis in layout.axes], axis=1)
    packed, unpacked = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    if packed != len(data) - 8 or unpacked != size or unpacked > LARGEST:
        found = f"{len(data) - 8} compressed bytes, said to be {packed}, of {unpacked}"
        raise _short_of(path, layout, f"{found} instead of {size}")
    values = unpack_lzf(data[8:], size)
    if values is None:
        raise DataError(f"{path}: its compressed bytes are damaged; copy it again")
    # here all values of a field lie together
    return np.stack(
        [
            np.ndarray((layout.points,), layout.kinds[i], values, sum(sizes[:i]) * layout.points)
            for i in layout.axes
        ],
        axis=1,
    )


def _header(path: str, file: BinaryIO) -> tuple[dict[bytes, list[bytes]], int]:
    """Return {word: fields} of the header, and how many lines it has."""
    header: dict[bytes, list[bytes]] = {}
    for number, line in numbered(path, file):
        word, *fields = line.split() or [b"#"]
        if word in (*WORDS, *OTHERS) and word not in header and fields:
            header[word] = fields
        elif not word.startswith(b"#"):
            raise refused(
                path, number, f"expected a line of a PCD header, found {shown(line)}; save it again"
            )
        if word == b"DATA":
            return header, number
        if file.tell() > HEADER:
            break
    raise DataError(f"{path}: its header does not end with DATA; copy it again, or save it as .pcd")


def _layout(path: str, header: dict[bytes, list[bytes]], number: int) -> Layout:
    """Return the Layout of a header of so many lines.  Raises DataError."""
    if missing := [word.decode() for word in WORDS if word not in header]:
        raise DataError(f"{path}: its header has no {missing[0]}; save it again")
    names, sizes, types = (header[word] for word in WORDS[:3])
    counts = [
        whole(path, number, field, "a COUNT") for field in header.get(b"COUNT", [b"1"] * len(names))
    ]
    axes = [names.index(axis) for axis in (b"x", b"y", b"z") if names.count(axis) == 1]
    if (
        not len(names) == len(sizes) == len(types) == len(counts)
        or not {kind + size for kind, size in zip(types, sizes, strict=True)} <= TYPES
        or not all(0 < count < HEADER for count in counts)
        or len(axes) < 3
        or any(counts[axis] > 1 for axis in axes)
    ):
        raise DataError(
            f"{path}: expected fields x, y and z, each with its SIZE, TYPE and COUNT, found "
            f"{shown(b' '.join(names))}; save it again"
        )
    width, height, points = (
        whole(path, number, header[word][0], word.decode()) for word in WORDS[3:6]
    )
    if min(width, height) < 0 or width * height != points:
        raise DataError(f"{path}: says {points} points in {height} rows of {width}; save it again")
    form = b" ".join(header[b"DATA"])
    if form not in (b"ascii", b"binary", b"binary_compressed"):
        raise refused(
            path,
            number,
            f"expected DATA ascii, binary or binary_compressed, found {shown(form)}; save it again",
        )
    kinds = [
        np.dtype((f"<{kind.decode().lower()}{size.decode()}", (count,) * (count > 1)))
        for kind, size, count in zip(types, sizes, counts, strict=True)
    ]
    return Layout(number, points, kinds, axes, form)


def _short_of(path: str, layout: Layout, found: str) -> DataError:
    return DataError(
        f"{path}: says {layout.points} points, found {found}; the file is cut, or its header is "
        "wrong: copy it again"
    )


def _text(path: str, file: BinaryIO, layout: Layout) -> np.ndarray:
    """Return the points (P, 3) float64 of a text, one a line."""
    widths = [kind.shape[0] if kind.shape else 1 for kind in layout.kinds]
    columns, width = [sum(widths[:axis]) for axis in layout.axes], sum(widths)
    values = array("d")
    for number, line in numbered(path, file, layout.number):
        fields = line.split()
        if fields and len(fields) != width:
            raise refused(
                path, number, f"expected {width} numbers, found {shown(line)}; complete the line"
            )
        if fields:
            values.extend(coordinates(path, number, [fields[i] for i in columns]))
    if len(values) != 3 * layout.points:
        raise _short_of(path, layout, f"{len(values) // 3}")
    return np.array(values).reshape(-1, 3)


def unpack_lzf(data: bytes, size: int) -> bytearray | None:
    """Return the `size` bytes that LZF made of data, or None if they are none.

    A byte below 32 is followed by so many bytes and one more, as they are.  Any other copies bytes
    from behind: its upper 3 bits (7: and the next byte) are their number minus 2, its lower 5 bits
    and one more byte the distance minus 1.  A copy may overlap itself.
    """
    found, at = bytearray(), 0
    try:
        while at < len(data):
            head, at = data[at], at + 1
            if head < 32:
                found += data[at : at + head + 1]
                if at + head + 1 > len(data):
                    return None
                at += head + 1
                continue
            length = head >> 5
            if length == 7:
                length, at = length + data[at], at + 1
            distance, at, length = ((head & 31) << 8 | data[at]) + 1, at + 1, length + 2
            start = len(found) - distance
            if start < 0 or len(found) + length > size:
                return None
            piece = found[start : start + length]
            found += (piece * (length // len(piece) + 1))[:length]
    except IndexError:
        return None
    return found if len(found) == size else None
