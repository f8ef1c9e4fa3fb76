"""How trainings went: the curves of all arms in one chart, then those of each."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from minipc.report import charts
from minipc.report.charts import STYLES, Curve
from minipc.report.run.parts import p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipc.report.run.facts import Arm

TERMS = {  # of a row of metrics: what the legend says
    "total": "the loss that was trained",
    "labels": "CE(y, s_1)",
    "distillation": "T² KL(p ‖ s_T)",
    "self_distillation": "T² KL(r ‖ s_T)",
}


def curves(arms: Sequence[Arm]) -> str:
    """Return the curves of all arms in one chart, then those of each."""
    shown = [arm for arm in arms if all(run.rows for run in arm.runs)]
    if not shown:
        return p("No epoch is done.")
    parts = []
    if len(shown) > 1:
        for first in range(0, len(shown), STYLES):
            lines = [
                line
                for style, arm in enumerate(shown[first : first + STYLES])
                for line in _lines(arm, {"test_accuracy": arm.name}, style)
            ]
            if lines:
                parts.append(charts.curves("Test accuracy", lines, percent=True))
    for arm in shown:
        parts.append(f"<h3>{escape(arm.name)}</h3>" if len(shown) > 1 else "")
        parts.append(f'<div class="charts">{"".join(_curves_of(arm))}</div>')
    if any(len(arm.runs) > 1 for arm in shown):
        parts.append(p("Thin lines are runs, thick ones their mean over the seeds.", "faint"))
    parts.append(
        p(
            "Each term is drawn without its weight. With a negative weight, a falling loss is no "
            "evidence of learning. Raised: share of rows in which the guard changes a class. "
            "Unbounded: share of rows whose loss would have no lower bound without the guard.",
            "faint",
        )
    )
    return "".join(parts)


def _curves_of(arm: Arm) -> list[str]:
    """Return the charts of one arm."""
    loss, figures = arm.config.loss, []
    if loss.kd_weight or loss.self_weight:
        used = {
            "total": True,
            "labels": loss.kd_weight < 1,
            "distillation": loss.kd_weight > 0,
            "self_distillation": loss.self_weight > 0,
        }
        terms = {name: text for name, text in TERMS.items() if used[name]}
        figures.append(charts.curves("Terms of the loss", _styled(arm, terms)))
    else:
        figures.append(charts.curves("Loss", _styled(arm, {"total": "CE(y, s_1)"})))
    shares = {
        "test_accuracy": "test accuracy",
        "test_mean_class_accuracy": "mean over classes",
        "val_accuracy": "validation accuracy",
        "teacher_agreement": "agreement with the teacher, in training",
    }
    means = ("test_accuracy", "test_mean_class_accuracy")  # alike where classes are equally large
    rows = [row for run in arm.runs for row in run.rows if means[1] in row]
    if all(abs(row[means[0]] - row[means[1]]) < 1e-9 for row in rows):
        del shares[means[1]]
    if lines := _styled(arm, shares):
        figures.append(charts.curves("Accuracy", lines, percent=True))
    if loss.self_weight > 0:
        lines = _styled(arm, {"raised": "raised", "unbounded": "unbounded"})
        figures.append(
            charts.curves("Raised and unbounded rows", lines, percent=True, low=0, high=1)
        )
    return figures


def _styled(arm: Arm, names: dict[str, str]) -> list[Curve]:
    """Return the lines of several numbers of an arm, each in a style of its own."""
    return [
        line
        for style, (name, text) in enumerate(names.items())
        for line in _lines(arm, {name: text}, style)
    ]


def _lines(arm: Arm, names: dict[str, str], style: int) -> list[Curve]:
    """Return a thick line of the mean over seeds for each number, and a thin one for each run.

    names: {key of a row: text}; a number that no row has gives no line.
    """
    lines = []
    for name, text in names.items():
        each = [[float(row[name]) for row in run.rows if name in row] for run in arm.runs]
        count = min(map(len, each))
        if not count:
            continue
        epochs = range(1, count + 1)
        if len(each) > 1:
            lines += [Curve(text, epochs, values[:count], style, True) for values in each]
        mean = np.mean([values[:count] for values in each], axis=0).tolist()
        lines.append(Curve(text, epochs, mean, style))
    return lines


def raised(arm: Arm) -> float:
    """Return the mean over runs of the raised share in the last epoch; 0 without an epoch."""
    shares = [run.rows[-1]["raised"] for run in arm.runs if run.rows]
    return float(np.mean(shares)) if shares else 0.0
