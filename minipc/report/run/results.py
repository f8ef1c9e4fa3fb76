"""The numbers of each run, and what comparisons of studies say."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from minipc.report import compare as comparison
from minipc.report.run.curves import raised
from minipc.report.run.parts import p, share_of, table

if TYPE_CHECKING:
    from minipc.report.run.facts import Arm, RunFacts, Study, Subject

MOSTLY_GUARD = 0.9  # raised share from which it is said that the guard does most


def result(subject: Subject) -> str:
    """Return the numbers of each run, and the comparisons."""
    head = ["run", "accuracy", "mean class", "NLL", "ECE", "best on test", "parameters", "MACs"]
    head += ["epochs", "trained on"]
    rows: list[tuple[str, list[str]]] = []
    for arm in subject.arms:
        rows += [("", _of_run(run)) for run in arm.runs]
        if len(arm.runs) > 1:
            rows.append(("mean", _mean_of(arm, len(head))))
    text = table(head, rows, numbers=range(1, len(head) - 1), kind="wide")
    last = [run.rows[-1] for arm in subject.arms for run in arm.runs if run.rows]
    if not any("test_accuracy" in row for row in last):
        text += p("No accuracy: no test cloud is labelled, or no epoch is done.")
    text += p(
        "After the last epoch, on the test split; ±: the standard deviation over seeds. Mean "
        "class: the mean over classes of the share right. NLL: negative log-likelihood, in nats. "
        "ECE: expected calibration error. The best epoch on the test split was chosen on the test "
        "split, so it flatters; it decides nothing.",
        "faint",
    )
    guarded = [arm.name for arm in subject.arms if raised(arm) >= MOSTLY_GUARD]
    if guarded:
        text += p(
            f"{', '.join(guarded)}: the guard raised a class in {100 * MOSTLY_GUARD:.0f} % of the "
            "rows or more, so what was trained is mostly the guard. Raise T, or lower b.",
            "note",
        )
    return text + "".join(map(_compared, subject.studies))


def _of_run(run: RunFacts) -> list[str]:
    """Return the cells of a run in the table of results."""
    last, epochs = (run.rows[-1] if run.rows else {}), run.config.training.epochs
    done = f"{len(run.rows)}" if len(run.rows) == epochs else f"{len(run.rows)} of {epochs}"
    best = [row["test_accuracy"] for row in run.rows if "test_accuracy" in row]
    record = run.config.record.file if run.config.record else "views"
    return [
        run.name,
        share_of(last.get("test_accuracy")),
        share_of(last.get("test_mean_class_accuracy")),
        f"{last['test_nll']:.4f}" if "test_nll" in last else "-",
        share_of(last.get("test_ece")),
        share_of(max(best) if best else None),
        f"{run.parameters:,}",
        f"{run.macs / 1e6:.2f} M" if run.macs else "-",
        done,
        "labels" if run.config.labels_only else record,
    ]


def _mean_of(arm: Arm, cells: int) -> list[str]:
    """Return the cells of the mean over the seeds of an arm."""
    row = [f"{arm.name}, mean of {len(arm.runs)}"]
    for name in ("test_accuracy", "test_mean_class_accuracy"):
        values = [run.rows[-1][name] for run in arm.runs if run.rows and name in run.rows[-1]]
        whole = len(values) == len(arm.runs)
        sd = 100 * float(np.std(values, ddof=1)) if whole else 0.0
        row.append(f"{100 * np.mean(values):.2f} ± {sd:.2f} %" if whole else "-")
    return row + [""] * (cells - len(row))


def _compared(study: Study) -> str:
    """Return the comparison of a study: a sentence for each arm, the drawing, the rule."""
    head = f"<h3>Compared: {escape(study.name)}</h3>"
    if study.values is None:
        return head + p(f"Not compared. {study.why_not}")
    differences = [arm["difference"] for arm in study.values["arms"] if arm["difference"]]
    said = [f"{each['sentence']}; McNemar p {each['mcnemar']:.3g}" for each in differences]
    items = "".join(f"<li>{escape(each)}</li>" for each in said)
    return (
        f'{head}<ul>{items}</ul><div class="compared scroll" tabindex="0" role="img" '
        f'aria-label="{escape("; ".join(said))}">{comparison.svg(study.values)}</div>'
        + p(f"{study.values['rule']} {comparison.NOTE}", "faint")
    )
