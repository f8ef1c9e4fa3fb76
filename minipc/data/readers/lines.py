"""The lines of a file of some format: numbered, stripped, of bounded length.

We read bytes, not text: the numbers are ASCII, and what a name or a comment is encoded in does not
matter.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import BinaryIO

from minipc.errors import DataError, short

LINE = 1 << 16  # most bytes of a line


def numbered(path: str, file: BinaryIO, number: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) for each line from the position of an open file on, stripped.

    number: how many lines lie before that position.  Raises DataError for a line that is too long.
    """
    while line := file.readline(LINE + 1):
        number += 1
        if len(line) > LINE:
            raise refused(path, number, f"has more than {LINE} bytes; save the file again")
        yield number, line.strip()


def refused(path: str, number: int, fault: str) -> DataError:
    """Return the error that names a line."""
    return DataError(f"{path}: line {number}: {fault}")


def shown(line: bytes) -> str:
    """Return a line of a user's file, or a part of one, as it can stand in a message."""
    return short(ascii(line.decode("utf-8", "replace")))


def whole(path: str, number: int, field: bytes, what: str) -> int:
    """Return a field as an integer.  Raises DataError naming the line and what was expected."""
    digits = field[1:] if field[:1] in (b"+", b"-") else field
    if not digits.isdigit() or len(digits) > 18:  # bytes: ASCII digits alone
        raise refused(path, number, f"expected {what}, found {shown(field)}; save the file again")
    return int(field)


def coordinates(path: str, number: int, fields: Sequence[bytes]) -> list[float]:
    """Return the first three fields of a line as finite numbers.  Raises DataError."""
    try:
        point = [float(field) for field in fields[:3]]
        if len(point) == 3 and all(map(isfinite, point)) and b"_" not in b"".join(fields[:3]):
            return point
    except ValueError:
        pass
    found = shown(b" ".join(fields))
    raise refused(path, number, f"expected 3 finite numbers, found {found}; repair the line")
