"""Point clouds in a terminal: letters of braille, each of which is a grid of 2 x 4 dots.

A letter of a terminal is about twice as high as wide, so these dots lie in a square grid.  A dot is
there or not: depth is not shown.  The view is that of the pages before anybody turns a cloud.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np

from minipc.report.clouds import PITCH, UP_LAST, YAW

EMPTY = 0x2800  # the letter of braille without a dot; each dot adds its bit
BITS = np.array([[0, 3], [1, 4], [2, 5], [6, 7]])  # of the dots (row, column) of a letter
GAP = 2  # blanks between two pictures


def projected(points: np.ndarray, up_axis: str = "z") -> np.ndarray:
    """Return (P, 2) float64: to the right and upwards, of points (P, 3), seen from afar."""
    x, y, z = np.asarray(points, np.float64)[:, UP_LAST[up_axis]].T
    away = np.sin(YAW) * x + np.cos(YAW) * y
    right = np.cos(YAW) * x - np.sin(YAW) * y
    return np.stack([right, np.cos(PITCH) * z + np.sin(PITCH) * away], axis=1)


def picture(
    points: np.ndarray,
    columns: int,
    rows: int,
    up_axis: str = "z",
    frame: np.ndarray | None = None,
) -> list[str]:
    """Return the cloud points (P, 3) as `rows` lines of `columns` letters.

    The cloud fills the lines as far as its proportions allow; with a frame, points (Q, 3), these
    would fill them, and points outside are left out.
    """
    width, height = 2 * columns, 4 * rows
    seen, whole = (
        projected(each, up_axis) for each in (points, points if frame is None else frame)
    )
    low, high = whole.min(axis=0), whole.max(axis=0)
    size = np.array([width - 1, height - 1])
    extent = high - low
    wide = extent > 0  # one point has no extent, and lies in the middle
    step = min(size[wide] / extent[wide], default=0.0)  # dots in a unit
    at = np.rint((seen - (low + high) / 2) * step + size / 2).astype(np.int64)
    at = at[((at >= 0) & (at <= size)).all(axis=1)]
    column, row = at[:, 0], height - 1 - at[:, 1]
    letters = np.full((rows, columns), EMPTY)
    np.bitwise_or.at(letters, (row // 4, column // 2), 1 << BITS[row % 4, column % 2])
    return ["".join(map(chr, line)).replace(chr(EMPTY), " ") for line in letters]


def side_by_side(pictures: Sequence[tuple[Sequence[str], Sequence[str]]], width: int) -> list[str]:
    """Return lines of at most `width` cells (or of one picture) that hold all pictures in rows.

    pictures: (lines of one picture, its captions); all are of the same size.  Captions that are too
    long are cut.
    """
    cells = len(pictures[0][0][0])
    across = max(1, (width + GAP) // (cells + GAP))
    lines = []
    for first in range(0, len(pictures), across):
        row = pictures[first : first + across]
        columns = [[*lines, *(fitted(text, cells) for text in texts)] for lines, texts in row]
        most = max(map(len, columns))
        for number in range(most):
            parts = [each[number] if number < len(each) else " " * cells for each in columns]
            lines.append((" " * GAP).join(parts).rstrip())
        lines.append("")
    return lines[:-1]


def fitted(text: str, cells: int, at_end: bool = False) -> str:
    """Return text filled with blanks to so many cells, or cut: its end with at_end, else its start.

    Dots stand for what was cut off.
    """
    if sum(map(cells_of, text)) > cells:
        while sum(map(cells_of, text)) > cells - 1:
            text = text[1:] if at_end else text[:-1]
        text = f"\N{HORIZONTAL ELLIPSIS}{text}" if at_end else f"{text}\N{HORIZONTAL ELLIPSIS}"
    return text + " " * (cells - sum(map(cells_of, text)))


def cells_of(letter: str) -> int:
    """Return how many cells a letter takes: two in Chinese, none where it sits on another."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
