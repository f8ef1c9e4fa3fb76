"""The report of runs and studies as one HTML page: what was trained, how it went, where it errs.

An arm is shown once: its runs differ in the seed alone, so their curves lie over each other and
their test clouds are counted together.  Nothing is read here, and nothing is computed but means
over seeds: verbs/report.py gathers, runs/predictions.py counts, report/charts.py draws.
"""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minipc import __version__
from minipc.errors import UsageError
from minipc.nn.losses import formula
from minipc.report import charts, clouds, commands
from minipc.report import compare as comparison
from minipc.report.charts import STYLES, Curve
from minipc.report.lines.text import size as bytes_of
from minipc.report.page import page
from minipc.runs import predictions as counted
from minipc.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from minipc.data.clouds import Clouds
    from minipc.record.plan import Plan
    from minipc.runs.config import RunConfig
    from minipc.runs.predictions import Predictions

MAKER = "minipc report"  # of a page that may be written anew
MOST_BYTES = 1_000_000  # of a page
CLOUDS_EACH = (10, 5, 3, 1, 0)  # surest errors of an arm: the first number with which a page fits
MOST_IN_CLOUD = 2048  # points of a cloud that are drawn
MOST_CLASSES = 60  # of a drawn confusion matrix
BESIDE = 20  # classes up to which a matrix has something beside it
MOSTLY_GUARD = 0.9  # raised share from which it is said that the guard does most


class RunFacts(NamedTuple):
    """What one run folder says."""

    name: str  # shown for it
    folder: str
    config: RunConfig
    rows: list  # one dict of numbers for each epoch, as in metrics.jsonl
    predictions: Predictions | None  # of the last epoch
    trained: dict  # of model.h5; empty without one
    parameters: int
    macs: int | None  # None: the number of points is not known


class RecordFacts(NamedTuple):
    """What the record of a run says."""

    file: str
    plan: Plan
    bytes: int
    max_kl: float  # by rounding logits
    data_file: str | None
    carries: dict | None  # {split: clouds} in it
    teacher_accuracy: float | None  # on the labelled clouds of the first view
    provenance: list  # [{"rows", "made_with"}]


class BoundMap(NamedTuple):
    """Where the raw loss of an arm is bounded below: the map over b and T, and the arm's point."""

    rows: str  # which rows
    shares: dict  # {(b, T): share of rows without a lower bound}, the arm's point among them
    safe_b: float  # largest b at the arm's T for which every row is bounded


class Arm(NamedTuple):
    """Runs that differ in the seed alone, and what lies beside them."""

    name: str
    runs: list[RunFacts]
    test: Clouds | None  # the test split, if the data file was found
    source: str  # where its clouds come from, "" if not known
    record: RecordFacts | None
    bound: BoundMap | None

    @property
    def config(self) -> RunConfig:
        """The settings of the first run."""
        return self.runs[0].config

    @property
    def predictions(self) -> Predictions | None:
        """Those of all runs, or None."""
        each = [run.predictions for run in self.runs if run.predictions]
        return counted.joined(each) if each else None


class Study(NamedTuple):
    """Runs that were compared."""

    name: str
    values: dict | None  # what runs.compare.compare returns, or None
    why_not: str  # the reason, if there are none


class Subject(NamedTuple):
    """All that one report shows."""

    title: str
    arms: list[Arm]
    studies: list[Study]
    missing: list[str]  # sentences


def run_page(subject: Subject) -> str:
    """Return the page of a Subject, below MOST_BYTES.

    Fewer clouds are shown where there would be too many bytes.  Raises UsageError if it is too
    large without any.
    """
    for each in CLOUDS_EACH:
        text = page(
            subject.title,
            _body(subject, each),
            styles=charts.STYLE + clouds.STYLE + STYLE,
            scripts=clouds.SCRIPT,
            maker=MAKER,
        )
        if len(text.encode()) < MOST_BYTES:
            return text
    raise UsageError(
        f"report: {len(subject.arms)} arms do not fit into one page of {bytes_of(MOST_BYTES)}; "
        "name fewer runs"
    )


STYLE = """
nav ol { columns: 2; margin: 0.5rem 0; }
.settings { columns: 3 17rem; column-gap: 2rem; max-width: none; font-size: 0.9rem; }
.settings div { display: flex; justify-content: space-between; gap: 1rem; break-inside: avoid;
  border-bottom: 1px solid var(--line); padding: 0.15rem 0; }
.settings dd { margin: 0; text-align: right; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 3rem; }
.pair > * { min-width: 0; max-width: 100%; }
.pair > figure { flex: 1 1 22rem; max-width: 30rem; }
tr.mean td, tr.mean th { border-top: 1px solid var(--faint); font-weight: 600; }
tbody th { font-weight: 400; }
.wide { font-size: 0.9rem; }
.wide td, .wide th { white-space: nowrap; padding-right: 0.7rem; }
.map { font-size: 0.9rem; }
.map td, .map th { padding: 0.3rem 0.5rem; white-space: nowrap; }
.map td span { display: block; font-size: 0.8em; line-height: 1; }
.map td { background: rgba(95, 150, 220, var(--share)); }
.map td.chosen { outline: 2px solid var(--ink); outline-offset: -2px; font-weight: 700; }
.share { display: inline-block; width: 5rem; height: 0.6rem; border: 1px solid var(--faint);
  margin-right: 0.5rem; }
.share i { display: block; height: 100%; background: var(--accent); }
.note { border-left: 4px solid var(--accent); padding-left: 0.75rem; }
.compared svg { min-width: 40rem; max-width: 48rem; height: auto; }
.compared svg text { fill: var(--ink); }
.compared svg .paper { fill: none; }
.compared svg .mean { stroke: var(--ink); }
.compared svg .interval { stroke: var(--accent); }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { .map td, .share i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; } .pair { display: block; } .wide { font-size: 0.8em; } }
@media (max-width: 30rem) { nav ol { columns: 1; } .share { display: none; }
  .map td, .map th { padding: 0.3rem; } .classes td, .classes th { padding-right: 0.6rem; } }
"""


def _body(subject: Subject, clouds_each: int) -> str:
    """Return the HTML below the heading; clouds_each: surest errors of an arm."""
    parts: list[tuple[str, str, Callable[[], str]]] = [
        ("result", "Result", lambda: _result(subject)),
        ("loss", "Loss and settings", lambda: _settings(subject.arms)),
        ("curves", "Training", lambda: _curves(subject.arms)),
        ("classes", "Which classes are confused", lambda: _classes(subject.arms)),
        ("calibration", "Is it as sure as it is right?", lambda: _calibration(subject.arms)),
        ("bound", "Where the raw loss is bounded below", lambda: _bound(subject.arms)),
        ("errors", "The surest errors", lambda: _errors(subject.arms, clouds_each)),
        ("record", "The record", lambda: _record(subject.arms)),
        ("made", "How it was made", lambda: _made(subject.arms)),
    ]
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in parts)
    missing = ""
    if subject.missing:
        items = "".join(f"<li>{escape(each)}</li>" for each in subject.missing)
        missing = f'<div class="note"><p>Not all of it is here:</p><ul>{items}</ul></div>'
    sections = "".join(
        f'<section id="{key}"><h2>{escape(title)}</h2>\n{made()}</section>\n'
        for key, title, made in parts
    )
    return f"{_lead(subject)}{missing}<nav><ol>{links}</ol></nav>\n{sections}"


def _lead(subject: Subject) -> str:
    runs = [run for arm in subject.arms for run in arm.runs]
    test = next((len(run.predictions.labels) for run in runs if run.predictions), None)
    classes = len(subject.arms[0].config.clouds.get("class_names", ()))
    what = [_plural(len(runs), "run"), f"{classes} classes"]
    what += [f"{test} test clouds"] if test else []
    return _p(f"{', '.join(what)}. Written by minipc {__version__} from the files of the runs.")


# Result


def _result(subject: Subject) -> str:
    """Return the numbers of each run, and the comparisons."""
    head = ["run", "accuracy", "mean class", "NLL", "ECE", "best on test", "parameters", "MACs"]
    head += ["epochs", "trained on"]
    rows: list[tuple[str, list[str]]] = []
    for arm in subject.arms:
        rows += [("", _of_run(run)) for run in arm.runs]
        if len(arm.runs) > 1:
            rows.append(("mean", _mean_of(arm, len(head))))
    text = _table(head, rows, numbers=range(1, len(head) - 1), kind="wide")
    last = [run.rows[-1] for arm in subject.arms for run in arm.runs if run.rows]
    if not any("test_accuracy" in row for row in last):
        text += _p("No accuracy: no test cloud is labelled, or no epoch is done.")
    text += _p(
        "After the last epoch, on the test split; ±: the standard deviation over seeds. Mean "
        "class: the mean over classes of the share right. NLL: negative log-likelihood, in nats. "
        "ECE: expected calibration error. The best epoch on the test split was chosen on the test "
        "split, so it flatters; it decides nothing.",
        "faint",
    )
    guarded = [arm.name for arm in subject.arms if _raised(arm) >= MOSTLY_GUARD]
    if guarded:
        text += _p(
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
        _share(last.get("test_accuracy")),
        _share(last.get("test_mean_class_accuracy")),
        f"{last['test_nll']:.4f}" if "test_nll" in last else "-",
        _share(last.get("test_ece")),
        _share(max(best) if best else None),
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
        return head + _p(f"Not compared. {study.why_not}")
    differences = [arm["difference"] for arm in study.values["arms"] if arm["difference"]]
    said = [f"{each['sentence']}; McNemar p {each['mcnemar']:.3g}" for each in differences]
    items = "".join(f"<li>{escape(each)}</li>" for each in said)
    return (
        f'{head}<ul>{items}</ul><div class="compared scroll" tabindex="0" role="img" '
        f'aria-label="{escape("; ".join(said))}">{comparison.svg(study.values)}</div>'
        + _p(f"{study.values['rule']} {comparison.NOTE}", "faint")
    )


# Settings


def _settings(arms: Sequence[Arm]) -> str:
    """Return the loss of each arm with its numbers, and all settings side by side."""
    lines = "\n".join(
        f"{f'{arm.name}: ' if len(arms) > 1 else ''}{formula(arm.config.loss)}" for arm in arms
    )
    text = f'<pre class="wrap">{escape(lines)}</pre>'
    if not all(arm.config.labels_only for arm in arms):
        text += _p(
            "s_1 = softmax(z), s_T = softmax(z / T) of the student, p = softmax(v / T) of the "
            "teacher, r = softmax(u / T) of the student's earlier self, y the label.",
            "faint",
        )
    columns = [_values_of(arm) for arm in arms]
    names = list(dict.fromkeys(name for column in columns for name in column))
    cells = {name: [column.get(name, "-") for column in columns] for name in names}
    differ = [name for name in names if len(set(cells[name])) > 1]
    if differ:
        rows = [("", [name, *cells[name]]) for name in differ]
        text += _table(["setting", *(arm.name for arm in arms)], rows, caption="What differs.")
        text += "<h3>The same in all</h3>"
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(cells[name][0])}</dd></div>\n"
        for name in names
        if name not in differ
    )
    return f'{text}<dl class="settings">{pairs}</dl>\n'


def _values_of(arm: Arm) -> dict[str, str]:
    """Return {setting: value} of an arm, for people."""
    config, values = arm.config, {}
    for part in (config.loss, config.self_target, config.training):
        if part is not None:
            for name, each in settings_of(type(part)).items():
                values[each.label] = _plain(getattr(part, name))
    if config.labels_only:
        for name in ("kd weight", "self weight", "temperature", "guard"):
            values.pop(name)
    values["seed"] = ", ".join(str(run.config.training.seed) for run in arm.runs)
    sizes = {name: value for name, value in asdict(config.model).items() if name != "classes"}
    return {
        "model": f"{config.name} ({config.architecture})",
        **{f"model: {name.replace('_', ' ')}": _plain(value) for name, value in sizes.items()},
        "data": config.data,
        "record": config.record.file if config.record else "none",
        "views": "drawn anew each epoch" if config.views is None else "%d:%d" % config.views,
        "begins from": config.init.file if config.init else "weights drawn from the seed",
        **values,
        **{f"views: {name.replace('_', ' ')}": _plain(v) for name, v in config.augment.items()},
    }


def _plain(value: Any) -> str:
    """Return a value of a setting as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


# Curves

TERMS = {  # of a row of metrics: what the legend says
    "total": "the loss that was trained",
    "labels": "CE(y, s_1)",
    "distillation": "T² KL(p ‖ s_T)",
    "self_distillation": "T² KL(r ‖ s_T)",
}


def _curves(arms: Sequence[Arm]) -> str:
    """Return the curves of all arms in one chart, then those of each."""
    shown = [arm for arm in arms if all(run.rows for run in arm.runs)]
    if not shown:
        return _p("No epoch is done.")
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
        parts.append(_p("Thin lines are runs, thick ones their mean over the seeds.", "faint"))
    parts.append(
        _p(
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


def _raised(arm: Arm) -> float:
    """Return the mean over runs of the raised share in the last epoch; 0 without an epoch."""
    shares = [run.rows[-1]["raised"] for run in arm.runs if run.rows]
    return float(np.mean(shares)) if shares else 0.0


# Classes


def _counts(arm: Arm) -> tuple[np.ndarray, list[str]] | None:
    """Return the confusion matrix (K, K) and the names of the classes, or None."""
    found, names = arm.predictions, arm.config.clouds["class_names"]
    if found is None or not found.known.any():
        return None
    return counted.confusion(found, len(names)), names


NOTHING = "No predictions of labelled test clouds, so nothing can be counted."


def _classes(arms: Sequence[Arm]) -> str:
    """Return the confusion matrix of each arm, and the accuracy of each class."""
    shown = [(arm, *made) for arm in arms if (made := _counts(arm))]
    if not shown:
        return _p(NOTHING)
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
        return _p(f"{title}: {len(names)} classes are too many to draw. {often}")
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
        tables.append(_table(head, rows, numbers=(1,), kind="classes", raw=True))
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


# Calibration


def _calibration(arms: Sequence[Arm]) -> str:
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
        return _p(NOTHING)
    return f'<div class="charts">{"".join(figures)}</div>' + _p(
        "Bars: the share of clouds that are right. Short lines: how sure the model was. A bar "
        "below the dashed line: the model says more than it knows; above: it is more often right "
        "than it says.",
        "faint",
    )


# The map of b and T


def _bound(arms: Sequence[Arm]) -> str:
    shown = [arm for arm in arms if arm.bound]
    if not shown:
        return _p("On labels alone there is nothing to subtract: the loss is bounded below.")
    parts = [
        _p(
            "For each class there is a margin, M_i = (1-a) y_i + T (a p_i - b r_i). If one is "
            "negative, the raw loss of that row falls without bound. The cells say in how many "
            "rows out of a hundred; the framed one is what was trained. The guard bounds every "
            "row, by changing the loss in those where it raises a class."
        )
    ]
    parts += [_map(arm, len(shown) > 1) for arm in shown]
    return "".join(parts)


def _map(arm: Arm, named: bool) -> str:
    """Return the map of one arm; the cell of its own b and T is framed and says so."""
    bound, loss = arm.bound, arm.config.loss
    assert bound is not None
    bs, Ts = (sorted(set(axis)) for axis in zip(*bound.shares, strict=True))
    here = (loss.self_weight, loss.temperature)
    rows = []
    for b in bs:
        cells = [f'<th scope="row">b = {b:g}</th>']
        for T in Ts:
            share, chosen = bound.shares[b, T], (b, T) == here
            cells.append(
                f'<td class="number{" chosen" * chosen}" style="--share:{0.6 * share:.2f}">'
                f"{_in_hundred(share)}{'<span>trained</span>' * chosen}</td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    head = "".join(f'<th scope="col" class="number">T = {T:g}</th>' for T in Ts)
    what = (
        f"At a = {loss.kd_weight:g} and label smoothing {loss.label_smoothing:g}; {bound.rows}. "
        f"Trained: b = {here[0]:g}, T = {here[1]:g}, where {_in_hundred(bound.shares[here])} of a "
        "hundred rows have no lower bound without the guard. Every row has one at this T up to "
        f"b = {bound.safe_b:.3g}."
    )
    title = f"<h3>{escape(arm.name)}</h3>" if named else ""
    return (
        f'{title}{_p(what)}<div class="scroll" tabindex="0"><table class="map">'
        "<caption>Rows without a lower bound, %</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )


def _in_hundred(share: float) -> str:
    """Return a share in percent with a digit behind the point; 0 and 100 are exact."""
    if share in (0, 1):
        return f"{100 * share:.0f}"
    return "< 0.1" if share < 0.0005 else "> 99.9" if share > 0.9995 else f"{100 * share:.1f}"


# Errors as clouds


def _errors(arms: Sequence[Arm], each: int) -> str:
    parts, drawn = [], False
    for arm in arms:
        if len(arms) > 1:
            parts.append(f"<h3>{escape(arm.name)}</h3>")
        found = arm.predictions
        if found is None or not found.known.any():
            parts.append(_p(NOTHING))
            continue
        tested = len(next(run.predictions.labels for run in arm.runs if run.predictions))
        rows = counted.surest_errors(found, max(each, 6), tested)
        wrong, known = int(found.wrong.sum()), int(found.known.sum())
        if not len(rows):
            parts.append(_p(f"No error on {known} labelled test clouds."))
            continue
        parts.append(_p(f"{wrong} of {known} labelled test clouds are wrong. The surest:"))
        texts = [_error(arm, found, int(row)) for row in rows]
        if arm.test is None or not each:
            why = (
                "The clouds are not here"
                if arm.test is None
                else "Not drawn, to keep the page small"
            )
            items = "".join(f"<li>{escape(', '.join(lines))}</li>" for _, lines in texts)
            parts.append(_p(f"{why}; the rows are:") + f"<ul>{items}</ul>")
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


# Record, environment, commands


def _record(arms: Sequence[Arm]) -> str:
    shown = {arm.record.plan.recording_id: arm.record for arm in arms if arm.record}
    named = {arm.config.record.file: arm.config.record for arm in arms if arm.config.record}
    if not named:
        return _p("No record: every epoch drew views of its own.")
    if not shown:
        files = ", ".join(f"{name} (run {each.run_id[:16]})" for name, each in named.items())
        return _p(f"{files}: not found beside the runs, so nothing more can be said of it.")
    columns = [_facts(each) for each in shown.values()]
    rows = [("", [name, *(column[name] for column in columns)]) for name in columns[0]]
    return _table(["", *(each.file for each in shown.values())], rows)


def _facts(record: RecordFacts) -> dict[str, str]:
    """Return {name: value} of a record, for people."""
    plan = record.plan
    carried = ", ".join(f"{n} {name}" for name, n in (record.carries or {}).items())
    made = [f"{each['rows']} rows by {_made_with(each['made_with'])}" for each in record.provenance]
    return {
        "clouds": f"{plan.clouds}",
        "views of each": f"{plan.views}",
        "size": f"{bytes_of(record.bytes)}, {plan.bytes_per_view} bytes a view of a cloud",
        "logits": f"{plan.logits}; largest KL by rounding {record.max_kl:.1e}",
        "teacher": plan.teacher_id[:16],
        "accuracy of the teacher, view 0": _share(record.teacher_accuracy),
        "seed of the views": str(plan.seed),
        "run": plan.recording_id[:16],
        "training points": plan.points_hash[:16],
        "data file": record.data_file or "not named",
        "clouds in it": carried or "none",
        "recorded": "; ".join(made),
    }


def _made(arms: Sequence[Arm]) -> str:
    lines: list[str] = []
    for arm in arms:
        record, config = arm.record, arm.config
        if arm.source:
            lines.append(f"# {config.data}: {arm.source}")
        if record:
            lines.append(f"# the teacher of {record.file}: model {record.plan.teacher_id[:16]}")
            lines.append(commands.of_record(record.plan, record.data_file, record.file))
        lines += [commands.of_run(run.config, run.name) for run in arm.runs]
    text = "\n".join(dict.fromkeys(lines))
    environments = {run.name: _environment(run) for arm in arms for run in arm.runs}
    names = list(dict.fromkeys(name for each in environments.values() for name in each))
    distinct: dict[tuple[str, ...], list[str]] = {}
    for run, each in environments.items():
        distinct.setdefault(tuple(each.get(name, "-") for name in names), []).append(run)
    heads = ["", *(", ".join(runs) for runs in distinct.values())]
    if len(distinct) == 1:
        heads[1] = "all runs"
    took = [f"{run.name} {_seconds(run):.0f} s" for arm in arms for run in arm.runs]
    rows = [("", [name, *(cells[i] for cells in distinct)]) for i, name in enumerate(names)]
    return (
        f'<pre class="wrap">{escape(text)}</pre>'
        + _p("Made from run.json; the files are named as it names them.", "faint")
        + "<h3>Environment</h3>"
        + _table(heads, rows)
        + _p(f"Training took: {'; '.join(took)}.")
    )


def _seconds(run: RunFacts) -> float:
    """Return how long the epochs of a run took to train, in seconds."""
    return float(sum(row.get("train_seconds", 0) for row in run.rows))


def _environment(run: RunFacts) -> dict[str, str]:
    """Return {name: value} of what a run was computed with."""
    there = {name.replace("_", " "): _plain(v) for name, v in run.config.provenance.items()}
    again = run.trained.get("continued_with")
    continued = {"continued with": _made_with(again)} if again else {}
    return there | continued


def _made_with(provenance: Any) -> str:
    items = provenance.items() if isinstance(provenance, dict) else []
    return ", ".join(f"{name} {value}" for name, value in items) or "unknown tools"


# Parts of HTML


def _p(text: str, kind: str = "") -> str:
    return f"<p{_kind(kind)}>{escape(text)}</p>\n"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _table(
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    *,
    numbers: Iterable[int] = (),
    caption: str = "",
    kind: str = "",
    raw: bool = False,
) -> str:
    """Return a table whose first column names its rows; rows: (class of the row, cells).

    numbers: the columns that are set right; kind: class of the table; raw: cells are HTML already.
    """
    right = ["number" if i in set(numbers) else "" for i in range(len(head))]
    top = "".join(
        f'<th scope="col"{_kind(of)}>{escape(text)}</th>'
        for text, of in zip(head, right, strict=True)
    )
    body = []
    for of_row, cells in rows:
        first, *others = cells if raw else map(escape, cells)
        inner = "".join(
            f"<td{_kind(of)}>{text}</td>" for text, of in zip(others, right[1:], strict=True)
        )
        body.append(f'<tr{_kind(of_row)}><th scope="row">{first}</th>{inner}</tr>\n')
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table{_kind(kind)}>{told}<thead><tr>{top}</tr></thead>'
        f"<tbody>\n{''.join(body)}</tbody></table></div>\n"
    )


def _kind(name: str) -> str:
    """Return the attribute class, or nothing."""
    return f' class="{name}"' if name else ""
