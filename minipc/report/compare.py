"""A comparison for people: lines, Markdown, CSV and a drawing, from the values of `--json`."""

from __future__ import annotations

import csv
import io
import os
from html import escape
from typing import Any

Values = dict[str, Any]  # what runs.compare.compare returns

HEAD = (
    "arm",
    "accuracy",
    "mean class",
    "best epoch (flatters)",
    "difference",
    "interval",
    "McNemar p",
)


def of_compare(values: Values) -> list[str]:
    """Return a table of arms, a sentence for each, the rule, and what was written."""
    rows = [HEAD, *_cells(values)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    table = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    written = [f"written: {', '.join(values['files'])}"] if values.get("files") else []
    return [_of_what(values), *table, *_sentences(values), values["rule"], *written]


def markdown(values: Values) -> str:
    """Return the comparison as a page of Markdown."""
    rows = [HEAD, ("---",) * len(HEAD), *_cells(values)]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    sentences = [f"- {line}" for line in _sentences(values)]
    parts = [[_of_what(values)], table, sentences, [values["rule"]], [NOTE]]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


NOTE = (
    "Differences are in points, paired by seed. Intervals are Student's t over the seeds, each one "
    "alone. McNemar's exact test is on the test clouds, pooled over the seeds: it says whether "
    "these trained models differ, not whether other seeds would, and as a cloud counts once for "
    "each seed, p is too small where the errors of the seeds agree."
)


def table_csv(values: Values) -> str:
    """Return a line for each run: shares from 0 to 1, and the difference to the reference."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["arm", "seed", "run", "accuracy", "mean_class_accuracy", "best_epoch_flatters"]
        + ["difference"]
    )
    for arm in values["arms"]:
        own = ("accuracy", "mean_class_accuracy", "best_epoch_on_test_flatters")
        columns = [values["seeds"], arm["runs"], *(arm[name]["per_seed"] for name in own)]
        of_seeds = arm["difference"]["per_seed"] if arm["difference"] else [""] * len(columns[0])
        for row in zip(*columns, of_seeds, strict=True):
            writer.writerow([arm["arm"], *row])
    return text.getvalue()


def _of_what(values: Values) -> str:
    seeds = ", ".join(map(str, values["seeds"]))
    return (
        f"{len(values['arms'])} arms, seed{'s' * (len(values['seeds']) > 1)} {seeds}, after epoch "
        f"{values['epochs']}, {values['test_clouds']} test clouds, against {values['reference']}"
    )


def _sentences(values: Values) -> list[str]:
    return [arm["difference"]["sentence"] for arm in values["arms"] if arm["difference"]]


def _cells(values: Values) -> list[tuple[str, ...]]:
    """Return the cells of each arm below HEAD: percent, points, and p."""
    rows = []
    for arm in values["arms"]:
        found = arm["difference"]
        own = ("accuracy", "mean_class_accuracy", "best_epoch_on_test_flatters")
        cells = [arm["arm"], *(_spread(arm[name]) for name in own)]
        if found:
            ends = found["interval"]
            between = f"[{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]" if ends else "none"
            cells += [f"{100 * found['mean']:+.2f}", between, f"{found['mcnemar']:.3g}"]
        else:
            cells += ["", "", ""]
        rows.append(tuple(cells))
    return rows


def _spread(of: Values) -> str:
    sd = "" if of["sd"] is None else f" sd {100 * of['sd']:.2f}"
    return f"{100 * of['mean']:.2f} %{sd}"


# The drawing: a row for each arm, its seeds as dots, their mean, and the interval of the mean

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 180, 580, 36, 44  # pixels


def svg(values: Values) -> str:
    """Return the differences to the reference, in points, as the text of an SVG file.

    Its classes are for a page that shows it in other colours.
    """
    arms = [arm for arm in values["arms"] if arm["difference"]]
    ends = [0.0]
    for arm in arms:
        ends += arm["difference"]["per_seed"] + list(arm["difference"]["interval"] or ())
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def x(share: float) -> float:
        return LEFT + (share - low) / (high - low) * (RIGHT - LEFT)

    height = TOP + ROW * len(arms) + 40
    bottom = TOP + ROW * len(arms)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect class="paper" width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 22, f"points of accuracy above {values['reference']}, after the last epoch"),
        f'<line x1="{x(0):.1f}" y1="{TOP - 10}" x2="{x(0):.1f}" y2="{bottom}" stroke="#888"/>',
        _text(x(0), bottom + 16, "0", "middle"),
    ]
    for number, arm in enumerate(arms):
        y, found = TOP + ROW * number + ROW / 2, arm["difference"]
        parts.append(_text(LEFT - 12, y + 4, arm["arm"], "end"))
        if found["interval"]:
            first, last = (x(end) for end in found["interval"])
            parts.append(
                f'<line class="interval" x1="{first:.1f}" y1="{y}" x2="{last:.1f}" y2="{y}" '
                'stroke="#1f5fa8" stroke-width="3"/>'
            )
        parts += [
            f'<circle cx="{x(share):.1f}" cy="{y}" r="4" fill="#e08214" fill-opacity="0.7"/>'
            for share in found["per_seed"]
        ]
        mean = x(found["mean"])
        parts.append(
            f'<line class="mean" x1="{mean:.1f}" y1="{y - 9}" x2="{mean:.1f}" y2="{y + 9}" '
            'stroke="black" stroke-width="2"/>'
        )
        parts.append(_text(RIGHT + 12, y + 4, f"{100 * found['mean']:+.2f}"))
    parts.append(_text(LEFT, bottom + 34, "dots: seeds; tick: their mean; bar: its 95 % interval"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def pages(values: Values, folder: str) -> dict[str, str]:
    """Return {path: text} of Markdown, CSV and drawing below folder."""
    made = {"md": markdown(values), "csv": table_csv(values), "svg": svg(values)}
    return {os.path.join(folder, f"compare.{ending}"): text for ending, text in made.items()}
