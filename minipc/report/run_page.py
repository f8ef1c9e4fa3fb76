"""The report of runs and studies as one HTML page: what was trained, how it went, where it errs.

An arm is shown once: its runs differ in the seed alone, so their curves lie over each other and
their test clouds are counted together.  Nothing is read here, and nothing is computed but means
over seeds: verbs/report.py gathers, runs/predictions.py counts, report/charts.py draws, and the
sections are the modules of report/run.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from minipc import __version__
from minipc.errors import UsageError
from minipc.report import charts, clouds
from minipc.report.lines.text import size as bytes_of
from minipc.report.page import page
from minipc.report.run.bound import bound
from minipc.report.run.classes import calibration, classes
from minipc.report.run.curves import curves
from minipc.report.run.errors import errors
from minipc.report.run.made import made, record
from minipc.report.run.parts import p, plural
from minipc.report.run.results import result
from minipc.report.run.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from minipc.report.run.facts import Subject

MAKER = "minipc report"  # of a page that may be written anew
MOST_BYTES = 1_000_000  # of a page
CLOUDS_EACH = (10, 5, 3, 1, 0)  # surest errors of an arm: the first number with which a page fits


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
        ("result", "Result", lambda: result(subject)),
        ("loss", "Loss and settings", lambda: settings(subject.arms)),
        ("curves", "Training", lambda: curves(subject.arms)),
        ("classes", "Which classes are confused", lambda: classes(subject.arms)),
        ("calibration", "Is it as sure as it is right?", lambda: calibration(subject.arms)),
        ("bound", "Where the raw loss is bounded below", lambda: bound(subject.arms)),
        ("errors", "The surest errors", lambda: errors(subject.arms, clouds_each)),
        ("record", "The record", lambda: record(subject.arms)),
        ("made", "How it was made", lambda: made(subject.arms)),
    ]
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in parts)
    missing = ""
    if subject.missing:
        items = "".join(f"<li>{escape(each)}</li>" for each in subject.missing)
        missing = f'<div class="note"><p>Not all of it is here:</p><ul>{items}</ul></div>'
    sections = "".join(
        f'<section id="{key}"><h2>{escape(title)}</h2>\n{section()}</section>\n'
        for key, title, section in parts
    )
    return f"{_lead(subject)}{missing}<nav><ol>{links}</ol></nav>\n{sections}"


def _lead(subject: Subject) -> str:
    runs = [run for arm in subject.arms for run in arm.runs]
    test = next((len(run.predictions.labels) for run in runs if run.predictions), None)
    classes = len(subject.arms[0].config.clouds.get("class_names", ()))
    what = [plural(len(runs), "run"), f"{classes} classes"]
    what += [f"{test} test clouds"] if test else []
    return p(f"{', '.join(what)}. Written by minipc {__version__} from the files of the runs.")
