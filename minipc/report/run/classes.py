"""Which classes are confused, and whether a model is as sure as it is right."""

from __future__ import annotations

from html import escape
from math import isnan
from typing import TYPE_CHECKING

from minipc.report import charts
from minipc.report.run.parts import p, table
from minipc.runs import predictions as counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from minipc.report.run.facts import Arm

MOST_CLASSES = 60  # of a drawn confusion matrix
BESIDE = 20  # classes up to which a matrix has something beside it
NOTHING = "No predictions of labelled test clouds, so nothing can be counted."


def _counts(arm: Arm) -> tuple[np.ndarray, list[str]] | None:
    """Return the confusion matrix (K, K) and the names of the classes, or None."""
    found, names = arm.predictions, arm.config.clouds["class_names"]
    if found is None or not found.known.any():
        return None
    return counted.confusion(found, len(names)), names


def classes(arms: Sequence[Arm]) -> str:
    """Return the confusion matrix of each arm, and the accuracy of each class."""
    shown = [(arm, *made) for arm in arms if (made := _counts(arm))]
    if not shown:
        return p(NOTHING)
    drawn = [_matrix(*each, len(shown) > 1) for each in shown]
    tables = _class_tables(shown)
    if len(shown) == 1 and len(shown[0][2]) <= BESIDE:
        return f'<div class="pair">{drawn[0]}{tables[0]}</div>'
    beside = all(len(names) <= BESIDE for _, _, names in shown)
    return (f'<div class="charts">{"".join(drawn)}</div>' if beside else "".join(drawn)) + "".join(
        tables
    )


def _matrix(arm: Arm, matrix: np.ndarray, names: list[str], several: bool) -> str:
    """Return the confusion matrix (K, K) of one arm as a figure, or in words."""
    most = counted.confusions(matrix, 5)
    errors = "; ".join(f"{names[i]} taken for {names[j]} {count} times" for i, j, count in most)
    often = f"Most often: {errors}." if most else "No error."
    often += f" Counted over {len(arm.runs)} runs." if len(arm.runs) > 1 else ""
    title = arm.name if several else "Confusion matrix"
    if len(names) > MOST_CLASSES:
        return p(f"{title}: {len(names)} classes are too many to draw. {often}")
    caption = f"Rows are true classes, columns what was said. {often}"
    return charts.matrix(title, matrix, names, caption, f"{title}. {caption}")


def _class_tables(shown: Sequence[tuple[Arm, np.ndarray, list[str]]]) -> list[str]:
    """Return a table of the accuracies of classes for each set of classes."""
    sets: dict[tuple[str, ...], list[tuple[Arm, np.ndarray]]] = {}
    for arm, matrix, names in shown:
        sets.setdefault(tuple(names), []).append((arm, matrix))
    tables = []
    for classes, of_set in sets.items():
        (arm, matrix), alone = of_set[0], len(of_set) == 1
        runs = sum(run.predictions is not None for run in arm.runs)
        accuracies = [counted.class_accuracy(each) for _, each in of_set]
        rows = []
        for i, name in enumerate(classes):
            cells = [escape(name), str(int(matrix[i].sum()) // runs)]
            cells += [_bar(float(each[i])) for each in accuracies]
            if alone:
                cells.append(escape(_taken_for(matrix[i], i, classes)))
            rows.append(("", cells))
        head = ["class", "clouds", *("right" if alone else arm.name for arm, _ in of_set)]
        head += ["taken for"] if alone else []
        tables.append(table(head, rows, numbers=(1,), kind="classes", raw=True))
    return tables


def _taken_for(row: np.ndarray, true: int, classes: Sequence[str]) -> str:
    """Return what the clouds of a class were most often taken for, with how many: three classes."""
    wrong = [(-int(count), j) for j, count in enumerate(row) if count and j != true]
    return ", ".join(f"{classes[j]} {-count}" for count, j in sorted(wrong)[:3])


def _bar(share: float) -> str:
    """Return a share as text and as a bar."""
    if isnan(share):
        return "-"
    width = f"{100 * share:.1f}"
    return f'<span class="share"><i style="width:{width}%"></i></span> {width} %'


def calibration(arms: Sequence[Arm]) -> str:
    """Return the reliability diagram of each arm."""
    figures = []
    for arm in arms:
        found = arm.predictions
        if found is None or not found.known.any():
            continue
        bins = counted.reliability(found)
        title = f"{arm.name}" if len(arms) > 1 else "Reliability"
        figures.append(
            charts.reliability(title, bins.clouds, bins.confidence, bins.accuracy, bins.ece)
        )
    if not figures:
        return p(NOTHING)
    return f'<div class="charts">{"".join(figures)}</div>' + p(
        "Bars: the share of clouds that are right. Short lines: how sure the model was. A bar "
        "below the dashed line: the model says more than it knows; above: it is more often right "
        "than it says.",
        "faint",
    )
