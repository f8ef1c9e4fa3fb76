"""Read one cloud from a text file: one point a line, with blanks, tabs, commas or semicolons.

Between semicolons or tabs, decimals may have commas.  Many programs write such tables, and a
shifted column still looks like a cloud.  So every line must have as many fields as the first, and
we refuse what is ambiguous instead of guessing.  We read a file in parts, so it needs no more
memory than its points.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO

import numpy as np

from minipc.data.prepare import representable
from minipc.errors import DataError, short

PART = 1 << 20  # characters read at once, and most characters above the points
LINE = 1 << 16  # most characters of a line
COLUMNS = 16  # most columns without names: more mean a transposed cloud (3, P)
# the first of these that occurs in a line separates its fields
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}
COMMENT = re.compile(r"(?:^|(?<=[\s,;]))#.*")  # not inside a number: -1.#IND
COUNT = re.compile(r"\d{1,12}")
# 1.#QNAN, -1.#IND00, NaN(ind)
NOT_FINITE = re.compile(r"[-+]?(nan.*|inf.*|\d\.#(ind|inf|qnan|snan).*)", re.IGNORECASE)
WHOLE = r"[-+\d\s,;]*"  # a line of whole numbers
PADDED = r"\b0\d"  # no program writes a whole number so, but the decimals of 2,05
DECIMAL_COMMAS = ("\t", ";")  # separators between which a comma is the mark of decimals
DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")


class Header(NamedTuple):
    """A line above the points that names the columns."""

    line: int  # its number
    named: int  # how many columns it names
    columns: list[int]  # indices of x, y and z


class Form(NamedTuple):
    """How a file writes its points, according to the first point and the lines above it."""

    line: int  # number of the first line that is a point
    separator: str | None  # None: blanks
    fields: int  # of every line
    trailing: bool  # whether every line ends with a separator
    columns: list[int]  # indices of x, y and z
    declared: int | None  # the number of points, if a line above them gives it
    declared_line: int  # number of that line
    named: bool  # whether a header names the columns
    ordinals: bool  # whether the first point is 0, 1, 2, ..., as programs number columns
    marks: str = ""  # of decimals so far, in the order seen: "." or ",", or both, which is refused


def read_text(path: str) -> np.ndarray:
    """Return the points (P, 3) float64 of a text file, finite in float32.

    Raises DataError naming the file, the line, what was expected and what was found.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return _points(path, file)
    except (OSError, UnicodeDecodeError) as reason:
        raise DataError(f"{path}: cannot be read as text ({reason}); save it as UTF-8") from reason


def _points(path: str, file: TextIO) -> np.ndarray:
    form, first = _form(path, file)
    parts: list[np.ndarray] = []
    for number, part in _parts(path, file, first, form.line):
        form = _marked(form, part)
        values = _values(form, part)
        if values is None:
            raise _refusal(path, form, number, part)
        if not parts and form.ordinals and (form.fields > 3 or _decimals(form, part)):
            raise DataError(
                f"{path}: line {form.line}: expected a point, found {short(first.strip())!r}, "
                "which numbers the columns; remove the line (pandas: header=False), or name the "
                "columns x, y and z"
            )
        if not parts and (at := _may_be_decimals(form, part)) is not None:
            raise DataError(
                f"{path}: line {form.line + at}: has {form.fields} whole numbers between commas, "
                f"which may be decimal ones, in {short(repr(_lines(form, part)[at]))}; write "
                "decimals with a point, or name the columns in a line above: x,y,z,..."
            )
        parts.append(values)
    points = np.concatenate(parts)
    if form.declared not in (None, len(points)):
        raise DataError(
            f"{path}: line {form.declared_line}: says {form.declared} points, found "
            f"{len(points)}; the file is cut, or holds several clouds: save each in a file of its "
            "own"
        )
    may_number = not form.named and form.fields > 3 and len(points) > 2 and points[0, 0] in (0, 1)
    if may_number and (np.diff(points[:, 0]) == 1).all():
        raise DataError(
            f"{path}: column 1 counts the lines, expected x; save the table without it "
            "(pandas: index=False), or put a header above that names x, y and z"
        )
    return points


def _form(path: str, file: TextIO) -> tuple[Form, str]:
    """Return the Form of a file and the line of its first point; read the file up to that line."""
    declared: int | None = None
    names: Header | None = None
    comment: Header | None = None
    declared_line = number = above = 0
    while line := file.readline(LINE + 1):
        number, above = number + 1, above + len(line)
        if len(line) > LINE:
            raise _long(path, number)
        if above > PART:
            raise DataError(
                f"{path}: holds no point in its first {number} lines; remove what is above the "
                "points"
            )
        line = line.rstrip("\n")
        if line.lstrip().startswith(("#", "//")):
            if axes := _axes(line.strip().lstrip("#/").rpartition(":")[2]):
                comment = Header(number, *axes)
        elif text := _without_comment(line).strip():
            if COUNT.fullmatch(text) and declared is None:
                declared, declared_line = int(text), number
            elif names is None and (axes := _axes(_without_comment(line))):
                names = Header(number, *axes)
            else:
                break
    else:
        after = " after its header" if names or comment or declared is not None else ""
        raise DataError(f"{path}: holds no points{after}; put some into it, or remove the file")
    form = _columns(path, number, _without_comment(line), names, comment)
    return form._replace(declared=declared, declared_line=declared_line), line


def _columns(
    path: str, number: int, line: str, names: Header | None, comment: Header | None
) -> Form:
    """Return the Form that follows from the line of the first point and the names above it."""
    separator = _separator(line)
    fields = _fields(line, separator)
    trailing = separator is not None and not fields[-1]
    size = len(fields) - trailing
    header, named, columns = names or comment or Header(0, 0, [0, 1, 2])
    if trailing and named == len(fields):  # the last column has a name, so it exists and is empty
        trailing, size = False, named
    # A comment whose words begin with x, y and z describes the first three columns, even if it has
    # more words than there are columns.
    if named not in (0, size) and (names or columns != [0, 1, 2]):
        raise DataError(
            f"{path}: line {header}: names {named} columns, x, y and z among them, but line "
            f"{number} has {size}; give every column one name without blanks in it, or remove the "
            "line"
        )
    if size < 3:
        raise DataError(
            f"{path}: line {number}: expected 3 numbers with {_between(separator)} between them, "
            f"found {short(line.strip())!r}; save x, y and z of one point a line"
        )
    mixed = re.search(r"(\d\s+[-+]?\d)|,\d.*, |, .*,\d", line)
    if separator == "," and "." not in line and mixed:
        where = "beside blanks" if mixed[1] else "with and without a blank behind them"
        raise DataError(
            f"{path}: line {number}: has commas {where}, which may be decimal ones, in "
            f"{short(repr(line.strip()))}; write decimals with a point, and all separators alike"
        )
    if size > COLUMNS and named != size:
        raise DataError(
            f"{path}: line {number}: expected x, y and z and at most {COLUMNS} columns, found "
            f"{size}; save one point a line, or put a header above that names x, y and z"
        )
    ordinals = not named and fields[:size] == [str(i) for i in range(size)]
    return Form(number, separator, size, trailing, columns, None, 0, named == size, ordinals)


def _axes(line: str) -> tuple[int, list[int]] | None:
    """Return how many columns a line names and the indices of x, y and z; None if one is absent."""
    names = [name.strip("\"'").lower() for name in _fields(line, _separator(line))]
    if names and not names[-1]:
        names.pop()
    if any(names.count(axis) != 1 for axis in "xyz"):
        return None
    return len(names), [names.index(axis) for axis in "xyz"]


def _separator(line: str) -> str | None:
    return next((mark for mark in SEPARATORS if mark in line.strip()), None)


def _between(separator: str | None) -> str:
    return SEPARATORS[separator] if separator else "blanks"


def _fields(line: str, separator: str | None) -> list[str]:
    return line.split() if separator is None else [field.strip() for field in line.split(separator)]


def _without_comment(line: str) -> str:
    return COMMENT.sub("", line) if "#" in line else line


def _long(path: str, number: int) -> DataError:
    return DataError(
        f"{path}: line {number}: has more than {LINE} characters; save one point a line"
    )


def _parts(path: str, file: TextIO, first: str, number: int) -> Iterator[tuple[int, str]]:
    """Yield (number of the first line, text) for parts of whole lines, from the line first on."""
    rest = first + "\n"
    while read := file.read(PART):
        part, newline, rest = (rest + read).rpartition("\n")
        if len(rest) > LINE:
            raise _long(path, number + part.count("\n") + bool(newline))
        if newline:
            yield number, part
            number += part.count("\n") + 1
    yield number, rest


def _lines(form: Form, part: str) -> list[str]:
    """Return the lines of a part, stripped and without comments."""
    lines: Iterable[str] = part.split("\n")
    if "#" in part:
        lines = map(_without_comment, lines)
    # where tabs separate, a line of tabs holds empty fields: strip spaces only
    blank = None if form.separator is None else " "
    return [line.strip(blank) for line in lines]


def _values(form: Form, part: str) -> np.ndarray | None:
    """Return the points (P, 3) float64 of some lines, or None if one of them is not a point."""
    lines = [line for line in _lines(form, part) if line]
    if not lines:
        return np.empty((0, 3))
    if form.separator is None:
        sizes = {len(line.split()) for line in lines}
        mixed = "\t" in part and any("\t" in line for line in lines)
    else:
        if form.marks == ",":
            lines = [line.replace(",", ".") for line in lines]
        sizes = {line.count(form.separator) + 1 - form.trailing for line in lines}
        mixed = form.trailing and not all(line.endswith(form.separator) for line in lines)
    if mixed or sizes != {form.fields} or len(form.marks) > 1:
        return None
    try:
        values = np.loadtxt(
            lines, delimiter=form.separator, comments=None, usecols=form.columns, ndmin=2
        )
    except ValueError:
        return None
    return values if representable(values).all() else None


def _decimals(form: Form, part: str) -> bool:
    """Return whether the lines after the first hold anything but whole numbers."""
    return not all(re.fullmatch(WHOLE, line) for line in _lines(form, part)[1:])


def _may_be_decimals(form: Form, part: str) -> int | None:
    """Return which line of a part of whole numbers may have decimal commas, from 0, or None.

    Either every two fields may be one number, or one of them is written as in 2,05.
    """
    if form.separator != "," or form.named or form.fields < 4:
        return None
    lines = _lines(form, part)
    pairs = form.fields >= 6 and not form.fields % 2
    padded = (i for i, line in enumerate(lines) if re.search(PADDED, line))
    at = next(padded, 0 if pairs else None)
    return at if all(re.fullmatch(WHOLE, line) for line in lines) else None


def _marked(form: Form, part: str) -> Form:
    """Return form with the marks of decimals in the coordinates of a part added.

    Between semicolons and tabs a comma can be such a mark, in all numbers of a file or in none.
    """
    other = {".": ",", ",": "."}.get(form.marks, "")
    if form.separator not in DECIMAL_COMMAS or other and other not in part:
        return form
    marks = form.marks
    for line in _lines(form, part):
        fields = line.split(form.separator)
        for column in form.columns:
            for letter in fields[column] if column < len(fields) else "":
                if letter in ".," and letter not in marks:
                    marks += letter
    return form._replace(marks=marks)


def _refusal(path: str, form: Form, first: int, part: str) -> DataError:
    """Return the error that names the first line of a part that is not a point; slow."""
    for number, line in enumerate(_lines(form, part), first):
        if line and (fault := _fault(form, line, number == form.line)):
            return DataError(f"{path}: line {number}: {fault}")
    return DataError(
        f"{path}: line {number}: expected lines of 3 numbers above it; save the file again"
    )


def _fault(form: Form, line: str, first: bool) -> str | None:
    """Return what is wrong with a line, or None; first: whether it may be a header."""
    fields, shown = _fields(line, form.separator), short(repr(line))
    if form.separator is None and "\t" in line:
        return (
            f"expected blanks between numbers, as in line {form.line}, found tabs; use one "
            "separator in all lines"
        )
    if len(fields) != form.fields + form.trailing or form.trailing and fields[-1]:
        return (
            f"expected {form.fields} fields with {_between(form.separator)} between them"
            f"{' and at the end' if form.trailing else ''}, as in line {form.line}, found "
            f"{len(fields) - (not fields[-1])} in {shown}; complete the line, or remove it"
        )
    for column in form.columns:
        field, at = fields[column], f"column {column + 1}: expected"
        if not field:
            return f"{at} a number, found an empty field in {shown}; fill it, or remove the line"
        if form.marks[1:] and (form.marks[1] in field or "," in field):
            return (
                f"{at} one mark of decimals in all lines, found points and commas, here "
                f"{short(repr(field))} in {shown}; write all decimals with a point, and thousands "
                "without a mark"
            )
        number = field.replace(",", ".") if form.marks == "," else field
        try:
            value = float(number.replace("_", "?").encode("ascii"))  # digits of no other script
        except ValueError:
            if not NOT_FINITE.fullmatch(field):
                remedy = "repair it, or name the columns x, y and z in it" if first else "repair it"
                if DECIMAL_COMMA.fullmatch(field):
                    remedy = "write decimals with a point"
                return f"{at} a number, found {short(repr(field))} in {shown}; {remedy}"
            value = np.nan
        if not representable(np.float64(value)):
            return (
                f"{at} a finite float32 number, found {short(repr(field))} in {shown}; repair or "
                "remove the line"
            )
    return None
