"""The surest errors of each arm, as clouds."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from minipc.report import clouds
from minipc.report.run.classes import NOTHING
from minipc.report.run.parts import p
from minipc.runs import predictions as counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipc.report.run.facts import Arm
    from minipc.runs.predictions import Predictions

MOST_IN_CLOUD = 2048  # points of a cloud that are drawn


def errors(arms: Sequence[Arm], each: int) -> str:
    """Return the surest errors of each arm, so many of them drawn."""
    parts, drawn = [], False
    for arm in arms:
        if len(arms) > 1:
            parts.append(f"<h3>{escape(arm.name)}</h3>")
        found = arm.predictions
        if found is None or not found.known.any():
            parts.append(p(NOTHING))
            continue
        tested = len(next(run.predictions.labels for run in arm.runs if run.predictions))
        rows = counted.surest_errors(found, max(each, 6), tested)
        wrong, known = int(found.wrong.sum()), int(found.known.sum())
        if not len(rows):
            parts.append(p(f"No error on {known} labelled test clouds."))
            continue
        parts.append(p(f"{wrong} of {known} labelled test clouds are wrong. The surest:"))
        texts = [_error(arm, found, int(row)) for row in rows]
        if arm.test is None or not each:
            why = (
                "The clouds are not here"
                if arm.test is None
                else "Not drawn, to keep the page small"
            )
            items = "".join(f"<li>{escape(', '.join(lines))}</li>" for _, lines in texts)
            parts.append(p(f"{why}; the rows are:") + f"<ul>{items}</ul>")
            continue
        figures = []
        for cloud, lines in texts[:each]:
            points = arm.test.points[cloud]
            points = points[:: -(-len(points) // MOST_IN_CLOUD)]
            alternative = f"Point cloud of {len(points)} points: {', '.join(lines)}"
            figures.append(
                clouds.cloud_figure(points, "\n".join(lines), alternative, up_axis=arm.test.up_axis)
            )
        parts.append(f'<div class="clouds">{"".join(figures)}</div>')
        drawn = True
    return (clouds.HINT if drawn else "") + "".join(parts)


def _error(arm: Arm, found: Predictions, row: int) -> tuple[int, list[str]]:
    """Return the test cloud of a row of the predictions of an arm, and what is said of it."""
    names, at = arm.config.clouds["class_names"], row
    for run in arm.runs:
        if run.predictions is not None:
            if at < len(run.predictions.labels):
                break
            at -= len(run.predictions.labels)
    true, said = names[found.labels[row]], names[found.said[row]]
    lines = [
        f"{true}, said: {said}",
        f"{100 * found.probability[row]:.1f} % sure",
        f"test row {at} of {arm.config.data}",
    ]
    lines += [f"file {found.files[row]}"] if found.files and found.files[row] else []
    return at, lines + ([f"run {run.name}"] if len(arm.runs) > 1 else [])
