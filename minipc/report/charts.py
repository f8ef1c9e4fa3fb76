"""Charts of a report as SVG inside a page: curves, a confusion matrix, reliability.

Each is a figure whose colours are those of the page, so dark mode and print are right too.  Nothing
is told by colour alone: curves differ in their dashes, cells hold their numbers, and every chart
says in words (aria-label) what it shows.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

DASHES = ("none", "7 3", "2 2.5", "9 3 2 3", "1 4", "14 4", "5 3 1 3 1 3", "4 6")
STYLES = len(DASHES)  # of curves in one chart: more would not be told apart
MOST_POINTS = 300  # of a curve: more than a screen has columns for it

WIDTH, HEIGHT = 340, 210  # of curves and reliability, in units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 34  # of these, around the axes

LIGHT = "#1f5fa8 #b3540a #1b7a4b #7a3ea1 #a3174f #665f00 #00707a #45474d".split()
DARK = "#7ab3f0 #f0a15a #6fcf9f #c79bea #f28ab2 #d3c95a #5fd0dc #c9cbd1".split()

STYLE = (
    """
.charts { display: grid; gap: 1.5rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.charts > * { margin: 0; min-width: 0; }
figure.chart { margin: 0.5rem 0; }
figure.chart svg { display: block; width: 100%; max-width: 34rem; height: auto; }
figure.chart .scroll { margin: 0; }
figure.chart figcaption { margin-bottom: 0.4rem; line-height: 1.35; max-width: 42rem; }
figure.chart figcaption b { color: var(--ink); }
.chart text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.chart .axis { stroke: var(--faint); fill: none; }
.chart .rule { stroke: var(--line); fill: none; }
.chart .curve { stroke: var(--curve); fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .curve.thin { stroke-width: 0.8; opacity: 0.6; }
.chart .dot { fill: var(--curve); }
.chart .bar { fill: var(--accent); fill-opacity: 0.35; stroke: var(--accent); }
.chart .cell { fill: var(--accent); }
.chart .right { fill: none; stroke: var(--faint); }
.chart .legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; padding: 0;
  margin: 0.3rem 0 0; font-size: 0.9rem; line-height: 1.35; }
.chart .legend li { display: flex; align-items: baseline; gap: 0.4rem; }
figure.chart .legend svg { flex: none; width: 2.1rem; height: 0.6rem; }
"""
    + "".join(f".c{i} {{ --curve: {colour}; }}\n" for i, colour in enumerate(LIGHT))
    + "@media screen and (prefers-color-scheme: dark) {\n"
    + "".join(f".c{i} {{ --curve: {colour}; }}\n" for i, colour in enumerate(DARK))
    + "}\n@media print { .chart .cell, .chart .bar { print-color-adjust: exact;"
    " -webkit-print-color-adjust: exact; } }\n"
)


class Curve(NamedTuple):
    """A line of a chart over epochs."""

    name: str
    epochs: Sequence[int]
    values: Sequence[float]
    style: int = 0  # of its colour and dashes, below STYLES
    thin: bool = False  # one of several seeds: without a place in the legend


def figure(drawing: str, title: str, caption: str, alternative: str, legend: str = "") -> str:
    """Return a <figure> around the inside of an SVG of WIDTH x HEIGHT; the texts are plain."""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alternative)}">'
        f"{drawing}</svg>{legend}</figure>\n"
    )


def curves(
    title: str,
    lines: Sequence[Curve],
    caption: str = "",
    *,
    percent: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Return a figure of curves over epochs, each with at least one value, all finite.

    percent: values are shares from 0 to 1.  low, high: ends of the axis; None: those of the values.
    """
    every = [value for line in lines for value in line.values]
    low, high = (min(every) if low is None else low), (max(every) if high is None else high)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    ticks = ticks_of(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    last = max(epoch for line in lines for epoch in line.epochs)
    first = min(epoch for line in lines for epoch in line.epochs)
    x = _Scale(first, max(last, first + 1), LEFT, WIDTH - RIGHT)
    y = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    marks = [epoch for epoch in ticks_of(first, last) if epoch == int(epoch)]
    marks = [int(epoch) for epoch in marks if first <= epoch <= last] or [first]
    parts = [_rules(ticks, y, percent), _marks(marks, x), _label("epoch")]
    for line in lines:
        shape = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in _thinned(line))
        dashes = DASHES[line.style]
        dash = "" if dashes == "none" else f' stroke-dasharray="{dashes}"'
        kind = f"curve{' thin' * line.thin} c{line.style}"
        if len(line.values) == 1:
            at = shape.split(",")
            parts.append(f'<circle class="dot c{line.style}" cx="{at[0]}" cy="{at[1]}" r="3"/>')
        else:
            parts.append(f'<polyline class="{kind}"{dash} points="{shape}"/>')
    told = [line for line in lines if not line.thin]
    said = "; ".join(_said(line, percent) for line in told)
    return figure(
        "".join(parts), title, caption, f"{title}, over epochs: {said}", _legend(told, percent)
    )


def _thinned(line: Curve) -> list[tuple[int, float]]:
    """Return every n-th point of a curve and its last, so that few enough remain."""
    points = list(zip(line.epochs, line.values, strict=True))
    step = ceil(len(points) / MOST_POINTS)
    return points[:-1:step] + points[-1:]


def _legend(lines: Sequence[Curve], percent: bool) -> str:
    """Return the names of the curves, each with a sample and its last value."""
    items = []
    for line in lines:
        dash = "" if DASHES[line.style] == "none" else f' stroke-dasharray="{DASHES[line.style]}"'
        items.append(
            '<li><svg viewBox="0 0 34 8" aria-hidden="true"><line class="curve '
            f'c{line.style}"{dash} x1="0" y1="4" x2="34" y2="4"/></svg><span>{escape(line.name)} '
            f"{number(line.values[-1], percent)}</span></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _said(line: Curve, percent: bool) -> str:
    ends = (number(line.values[at], percent) for at in (0, -1))
    if len(line.values) == 1:
        return f"{line.name} {next(ends)} in epoch {line.epochs[0]}"
    first, last = ends
    return (
        f"{line.name} from {first} in epoch {line.epochs[0]} to {last} in epoch "
        f"{line.epochs[-1]}, between {number(min(line.values), percent)} and "
        f"{number(max(line.values), percent)}"
    )


def number(value: float, percent: bool = False) -> str:
    """Return a value as text: three digits, or percent with one decimal."""
    return f"{100 * value:.1f} %" if percent else f"{value:.3g}"


def ticks_of(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` round numbers that begin at or below low and end at or above high.

    Their steps are 1, 2 or 5 times a power of ten.  low, high: finite, low <= high.
    """
    span = high - low or 1.0
    for power in range(floor(log10(span / most)), floor(log10(span)) + 2):
        for digit in (1, 2, 5):
            first, last = (floor(low / 10**power / digit), ceil(high / 10**power / digit))
            if last - first < most:
                # a quotient, because 3 * 10**-1 is not 0.3
                return [
                    float(n * digit * 10**power) if power >= 0 else n * digit / 10**-power
                    for n in range(first, last + 1)
                ]
    raise AssertionError("a step of ten times the span leaves two ticks")


class _Scale(NamedTuple):
    """From a value to its place along an axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def _rules(ticks: Sequence[float], y: _Scale, percent: bool) -> str:
    """Return a line across the chart and a label for each tick of the vertical axis."""
    parts = []
    for tick in ticks:
        label = f"{100 * tick:.10g} %" if percent else f"{tick:.10g}"
        parts.append(
            f'<path class="rule" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    return "".join(parts)


def _marks(marks: Sequence[float], x: _Scale) -> str:
    """Return the horizontal axis with a label at each mark."""
    labels = (
        f'<text x="{x(mark):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{mark:g}</text>'
        for mark in marks
    )
    axis = f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    return axis + "".join(labels)


def _label(text: str) -> str:
    """Return the name of the horizontal axis."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'<text x="{middle:g}" y="{HEIGHT - 5}" text-anchor="middle">{text}</text>'


# Reliability


def reliability(
    title: str,
    clouds: np.ndarray,
    confidence: np.ndarray,
    accuracy: np.ndarray,
    ece: float,
) -> str:
    """Return a reliability diagram: a bar for each bin, as high as the share right; all (bins,).

    A perfectly calibrated model has its bars at the dashed line.
    """
    x, y = _Scale(0, 1, LEFT, WIDTH - RIGHT), _Scale(0, 1, HEIGHT - BOTTOM, TOP)
    marks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    parts = [_rules(marks, y, True)]
    bins, said = len(clouds), []
    for number_of, count in enumerate(clouds):
        if not count:
            continue
        left, right = number_of / bins, (number_of + 1) / bins
        height = y(0) - y(accuracy[number_of])
        parts.append(
            f'<rect class="bar" x="{x(left) + 0.5:.1f}" y="{y(accuracy[number_of]):.1f}" '
            f'width="{x(right) - x(left) - 1:.1f}" height="{height:.1f}"/>'
            f'<path class="axis" stroke-width="2" d="M{x(left) + 0.5:.1f} '
            f'{y(confidence[number_of]):.1f}H{x(right) - 0.5:.1f}"/>'
        )
        said.append(
            f"{count} clouds at {100 * confidence[number_of]:.0f} %, "
            f"{100 * accuracy[number_of]:.0f} % of them right"
        )
    parts += [
        f'<path class="axis" stroke-dasharray="4 3" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>',
        _marks(marks, x),
        _label("probability of what was said"),
    ]
    caption = f"Calibration error (ECE, {bins} bins) {number(ece, True)}."
    alternative = f"{title}. Calibration error {number(ece, True)}. {'; '.join(said)}."
    return figure("".join(parts), title, caption, alternative)


# The confusion matrix

CELL, NAMES = 20, 86  # a cell, and the room for the names of the classes


def matrix(title: str, counts: np.ndarray, names: Sequence[str], caption: str, said: str) -> str:
    """Return a confusion matrix as a figure: counts (K, K), rows true, columns said; K names.

    said: what it shows, in words.  A cell is darker the larger its share of its row is.
    """
    K = len(names)
    size = NAMES + K * CELL + 4
    parts = []
    for i in range(K):
        at = NAMES + (i + 0.5) * CELL + 4
        name = escape(names[i] if len(names[i]) <= 13 else f"{names[i][:12]}…")
        parts.append(
            f'<text x="{NAMES - 5}" y="{at:g}" text-anchor="end">{name}</text>'
            f'<text x="{at - 4:g}" y="{NAMES - 5}" transform="rotate(-60 {at - 4:g} {NAMES - 5})">'
            f"{name}</text>"
        )
    for i, row in enumerate(counts):
        total = int(row.sum())
        for j, count in enumerate(row):
            x, y = NAMES + j * CELL, NAMES + i * CELL
            if count:
                share = count / total
                parts.append(
                    f'<rect class="cell" x="{x}" y="{y}" width="{CELL}" height="{CELL}" '
                    f'fill-opacity="{0.08 + 0.42 * share:.2f}"/>'
                    f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2 + 4:g}" text-anchor="middle">'
                    f"{count}</text>"
                )
        parts.append(
            f'<rect class="right" x="{NAMES + i * CELL}" y="{NAMES + i * CELL}" width="{CELL}" '
            f'height="{CELL}"/>'
        )
    side = K * CELL
    parts.append(f'<rect class="rule" x="{NAMES}" y="{NAMES}" width="{side}" height="{side}"/>')
    top = 24  # the highest letter of a turned name
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0"><svg viewBox="0 {top} {size + 30} {size - top}" '
        f'style="min-width:{min(size, 640) * 0.9:.0f}px;max-width:{size * 1.25:.0f}px" role="img" '
        f'aria-label="{escape(said)}">{"".join(parts)}</svg></div></figure>\n'
    )
