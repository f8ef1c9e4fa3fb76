"""Gather what finished and unfinished runs say, and write it as one page: `minipc report`.

What must be there is run.json.  Everything else that is missing is left out and named in the page;
what is there and damaged is an error, because a report without it would look whole.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.audit import bound
from minipc.audit.bound import Rows
from minipc.audit.teacher import earlier_self
from minipc.data.clouds import UNLABELLED
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.file import read_model
from minipc.models.model import net
from minipc.record.reader import RecordReader
from minipc.report.page import check_page, write_page
from minipc.report.run.facts import Arm, BoundMap, RecordFacts, RunFacts, Study, Subject
from minipc.report.run_page import MAKER, run_page
from minipc.runs import compare as statistics
from minipc.runs.config import identity, read_config
from minipc.runs.folder import MOST_TEXT, model_path, run_id_of, runs_below
from minipc.runs.predictions import parsed
from minipc.storage import files
from minipc.verbs.find import find_file, read_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from minipc.data.clouds import Clouds, Splits
    from minipc.runs.config import RecordName, RunConfig
    from minipc.runs.predictions import Predictions

REPORT = "report.html"
MOST_ROWS = 10_000  # of the map of b and T: evenly spaced rows of the first view


def report(
    paths: Sequence[str],
    *,
    data: str | None = None,
    record: str | None = None,
    out: str | None = None,
    runs: Sequence[str] | None = None,
) -> tuple[str, int]:
    """Write the report of run folders and folders of studies; return its path and its bytes.

    data, record: where their files lie; None: beside a run, one folder up, or here, and the data
    beside the record too.  out None: report.html in the folder if there is one, else here.  An
    older report is replaced.  runs: of a study, those to show; None: all.  Raises DataError for a
    folder without runs and for files that are damaged or not theirs, UsageError for another file in
    the way and for more runs than fit.
    """
    place = out or (os.path.join(paths[0], REPORT) if len(paths) == 1 else REPORT)
    subject = gather(paths, data, record, runs)
    check_page(place, MAKER)
    return place, write_page(place, run_page(subject), MAKER)


def report_at_end(
    paths: Sequence[str], folder: str, say: Callable[[str], None], **named: Any
) -> str | None:
    """Write folder/report.html after a training, and return its path.

    named: data, record and runs, as in report().  What was trained is not lost by its report: where
    none can be written, say why, and return None.
    """
    try:
        return report(paths, out=os.path.join(folder, REPORT), **named)[0]
    except MinipcError as reason:
        why = str(reason)
    except OSError as reason:  # such as a full disk
        why = reason.strerror or str(reason)
    say(f"{folder}: no report ({why}); later: minipc report {folder}")
    return None


def gather(
    paths: Sequence[str],
    data: str | None = None,
    record: str | None = None,
    runs: Sequence[str] | None = None,
) -> Subject:
    """Return the Subject of run folders and folders of studies.  Raises as report() does."""
    paths = [os.path.normpath(path) for path in paths]
    found = [(path, runs_in(path)) for path in paths]
    if runs is not None:
        found = [(path, [run for run in inside if run in runs]) for path, inside in found]
    folders = [run for _, runs in found for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UsageError(f"{folder}: is named twice; name each run once")
    names = short_names(folders)
    missing: list[str] = []
    facts = {folder: _run(folder, names[folder], missing) for folder in folders}
    beside = _Beside(data, record, missing)
    arms = [beside.arm(name, each) for name, each in _arms(list(facts.values())).items()]
    beside.check_used()
    studies = [
        _study(os.path.basename(os.path.abspath(path)), inside)
        for path, inside in found
        if inside != [path]
    ]
    alone = [path for path, inside in found if inside == [path]]
    if len(alone) > 1:
        studies.append(_study(", ".join(names[path] for path in alone), alone))
    titles = [os.path.basename(os.path.abspath(path)) for path in paths]
    many = f"{len(titles)} runs and studies" if len(titles) > 4 else ", ".join(titles)
    return Subject(many, arms, studies, list(dict.fromkeys(missing)))


def runs_in(path: str) -> list[str]:
    """Return [path] for a run folder, or the run folders in the folder of a study, sorted.

    Raises DataError if there are none.
    """
    if os.path.exists(os.path.join(path, "run.json")):
        return [path]
    runs = runs_below(path)
    if not runs:
        raise DataError(
            f"{path}: holds no run.json, and no folder in it does; name the folder of a run or of "
            "a study"
        )
    return runs


def short_names(folders: Sequence[str]) -> dict[str, str]:
    """Return {folder: the end of its path that tells it from the others}; folders differ."""
    parts = {folder: os.path.abspath(folder).split(os.sep) for folder in folders}
    names = {}
    for folder, own in parts.items():
        for count in range(1, len(own) + 1):
            name = "/".join(own[-count:])
            if sum(name == "/".join(other[-count:]) for other in parts.values()) == 1:
                break
        names[folder] = name
    return names


def _run(folder: str, name: str, missing: list[str]) -> RunFacts:
    """Return the RunFacts of a folder; what is not there is added to missing."""
    config = read_config(folder)
    rows, place = [], os.path.join(folder, "metrics.jsonl")
    if os.path.lexists(place):
        lines = files.read_bytes(place, MOST_TEXT).splitlines()
        rows = [_row(files.parse_json(line, place), place) for line in lines]
    epochs = config.training.epochs
    if len(rows) < epochs:
        done = f"{len(rows)} of its {epochs} epochs are done" if rows else "no epoch is done"
        missing.append(f"{name}: {done}.")
    predictions = _predictions(folder, name, config, rows, missing)
    trained, points = {}, None
    if os.path.lexists(model_path(folder)):
        trained = read_model(model_path(folder)).trained
        points = trained.get("points")
    size = net(config.model).count(config.model, points or 1)
    macs = size.macs if points else None
    return RunFacts(name, folder, config, rows, predictions, trained, size.parameters, macs)


NUMBERS = ("total", "labels", "distillation", "self_distillation", "raised", "unbounded")
WORDS = ("weights",)  # of a row of metrics


def _row(row: dict, place: str) -> dict:
    """Return a row of metrics.jsonl.  Raises DataError unless it is one of a training."""
    numbers = {name: value for name, value in row.items() if name not in WORDS}
    wrong = [name for name in NUMBERS if name not in row]
    wrong += [name for name, value in numbers.items() if type(value) not in (int, float)]
    wrong += [name for name, value in numbers.items() if name not in wrong and not isfinite(value)]
    if wrong:
        raise DataError(
            f"{place}: expected a finite number {wrong[0]} in each line; write it again: "
            "minipc train --resume --out RUN"
        )
    return row


def _predictions(
    folder: str, name: str, config: RunConfig, rows: list[dict], missing: list[str]
) -> Predictions | None:
    """Return the Predictions of the last epoch of a run, or None."""
    place = os.path.join(folder, "predictions.csv")
    if not rows:
        return None
    remedy = f"minipc train --resume --out {name} writes it again."
    if not os.path.lexists(place):
        missing.append(f"{name}: predictions.csv is not there, so no class is counted; {remedy}")
        return None
    data = files.read_bytes(place, MOST_TEXT)
    found = parsed(data, config.clouds["class_names"], place)
    known = found.known
    if "test_accuracy" in rows[-1]:
        right = float((found.labels == found.said)[known].mean()) if known.any() else -1.0
        # one cloud is more than one in ten million, and rounding is far below it
        if abs(right - rows[-1]["test_accuracy"]) > 1e-9:
            missing.append(
                f"{name}: predictions.csv is of another epoch than the last line of metrics.jsonl, "
                f"so no class is counted; {remedy}"
            )
            return None
    return found


def _arms(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Return {name: runs whose settings differ in the seed alone}; those on labels come first."""
    groups: dict[str, list[RunFacts]] = {}
    for run in runs:
        clouds = run.config.clouds  # the same settings on other clouds are another arm, too
        key = run_id_of({**statistics.settings_of_run(run.config), "clouds": clouds})
        groups.setdefault(key, []).append(run)
    arms = sorted(groups.values(), key=lambda group: not group[0].config.labels_only)
    names = [group[0].name for group in arms]
    without = [
        name.removesuffix(f"-{group[0].config.training.seed}") if len(group) > 1 else name
        for name, group in zip(names, arms, strict=True)
    ]
    return dict(zip(statistics.distinct(without, names), arms, strict=True))


def _study(name: str, folders: Sequence[str]) -> Study:
    """Return the comparison of runs, or why there is none."""
    try:
        outcomes = [statistics.read_outcome(folder) for folder in folders]
        return Study(name, statistics.compare(statistics.arms_of(outcomes)), "")
    except (UsageError, DataError) as reason:
        return Study(name, None, f"{reason}.")


class _Beside:
    """The data and the records beside runs, each read once."""

    def __init__(self, data: str | None, record: str | None, missing: list[str]) -> None:
        self.data, self.record, self.missing = data, record, missing
        self.used: set[str] = set()
        self.read: dict[tuple[Any, ...], _Found] = {}

    def arm(self, name: str, runs: list[RunFacts]) -> Arm:
        """Return the Arm of some runs with all that was found beside the first."""
        config, folder = runs[0].config, runs[0].folder
        key: tuple[Any, ...] = (
            config.data,
            config.clouds["test_points"],
            config.record,
            config.self_record,
        )
        key += (os.path.dirname(os.path.abspath(folder)),)
        if key not in self.read:
            self.read[key] = self._find(config, os.path.join(folder, "run.json"), runs[0].name)
        found = self.read[key]
        return Arm(name, runs, found.test, found.source, found.record, _bound_map(config, found))

    def check_used(self) -> None:
        """Raise DataError for a file that was named and belongs to no run."""
        for path in (self.data, self.record):
            if path is not None and path not in self.used:
                raise DataError(
                    f"{path}: belongs to none of these runs, by its hashes; leave it out, or name "
                    "the file that they began with"
                )

    def _find(self, config: RunConfig, place: str, name: str) -> _Found:
        """Return what is found beside one run; what is not is added to missing."""
        with ExitStack() as stack:
            reader = self._reader(config.record, self.record, place, name, stack)
            earlier = self._reader(config.self_record, None, place, name, stack)
            carried = reader.clouds() if reader else None
            splits = self._splits(config, place, name, reader, carried)
            labels = splits.train.labels if splits else None
            facts = _record_facts(reader, labels, carried) if reader else None
            rows = _rows(reader, earlier, labels) if reader and labels is not None else None
        test, source = (splits.test, splits.train.source) if splits else (None, "")
        return _Found(test, source, facts, rows)

    def _reader(
        self, begun: RecordName | None, given: str | None, place: str, name: str, stack: ExitStack
    ) -> RecordReader | None:
        """Return the open record that a run began with, or None."""
        if begun is None:
            return None
        try:
            reader = RecordReader(find_file(given, begun.file, place, "--record FILE"))
        except DataError as reason:
            if given is not None:
                raise
            self.missing.append(f"{name}: its record is left out: {_without_place(reason, place)}.")
            return None
        stack.enter_context(reader)
        if reader.plan.recording_id != begun.run_id:
            self.missing.append(
                f"{name}: its record is left out: {os.path.basename(reader.path)} is another one; "
                "pass --record FILE."
            )
            return None
        if given is not None:
            self.used.add(given)
        return reader

    def _splits(
        self,
        config: RunConfig,
        place: str,
        name: str,
        reader: RecordReader | None,
        carried: Splits | None,
    ) -> Splits | None:
        """Return the clouds that a run began with, or None; carried: those in its record."""
        try:
            if carried is not None and self.data is None:
                path, splits = reader.path, carried  # type: ignore[union-attr]
            else:
                path = self._data_file(config.data, place, reader)
                splits = read_data(path)
        except DataError as reason:
            if self.data is not None:
                raise
            self.missing.append(
                f"{name}: its clouds are not shown: {_without_place(reason, place)}."
            )
            return None
        if identity(splits) != config.clouds:
            self.missing.append(
                f"{name}: its clouds are not shown: {os.path.basename(path)} holds others; pass "
                "--data FILE."
            )
            return None
        if self.data is not None:
            self.used.add(self.data)
        return splits

    def _data_file(self, hint: str, place: str, reader: RecordReader | None) -> str:
        """Return the path of a data file: named, beside a run, here, or beside its record."""
        option = "--data FILE"
        if reader is not None:
            with suppress(DataError):
                return find_file(self.data, hint, place, option)
            with suppress(DataError):
                return find_file(self.data, hint, reader.path, option)
        return find_file(self.data, hint, place, option)


class _Found(NamedTuple):
    test: Clouds | None
    source: str
    record: RecordFacts | None
    rows: Rows | None  # of the map of b and T; None: made-up ones


def _without_place(reason: DataError, place: str) -> str:
    """Return a message without the path of run.json before it: a report lies anywhere."""
    return str(reason).removeprefix(f"{place}: ")


def _record_facts(
    reader: RecordReader, labels: np.ndarray | None, carried: Splits | None
) -> RecordFacts:
    """Return the RecordFacts of an open record; labels (N,) of its clouds, carried: in it."""
    accuracy = None
    if labels is not None and (known := labels != UNLABELLED).any():
        said = reader.view(0)[2].argmax(axis=1)
        accuracy = float((said == labels)[known].mean())
    return RecordFacts(
        os.path.basename(reader.path),
        reader.plan,
        os.path.getsize(reader.path),
        float(reader.meta["max_kl_of_rounding"]),
        reader.meta["data_file"],
        carried and {name: len(clouds) for name, clouds in carried._asdict().items()},
        accuracy,
        reader.meta["provenance"],
    )


def _rows(reader: RecordReader, earlier: RecordReader | None, labels: np.ndarray) -> Rows | None:
    """Return Rows of the first view of a record, or None where it gives no earlier self."""
    u = earlier_self(reader, earlier, 0)
    if u is None:
        return None
    step = -(-len(labels) // MOST_ROWS)
    some = slice(None, None, step)
    v = reader.view(0)[2].astype(np.float64)[some]
    whose = os.path.basename(earlier.path) if earlier else "the teacher under the next view"
    each = "" if step == 1 else f", every {step}th"
    what = f"{len(v)} rows of {os.path.basename(reader.path)}, view 0{each}; earlier self: {whose}"
    return Rows(labels[some], v, u[some], what)


def _bound_map(config: RunConfig, found: _Found) -> BoundMap | None:
    """Return the map around the loss of an arm; None on labels alone."""
    loss = config.loss
    if config.labels_only or (loss.kd_weight == 0 and loss.self_weight == 0):
        return None
    rows = found.rows or bound.example_rows(config.model.classes)
    shares = bound.unbounded_shares(
        rows,
        loss.kd_weight,
        loss.label_smoothing,
        {*bound.B, loss.self_weight},
        {*bound.T, loss.temperature},
    )
    return BoundMap(rows.what, shares, bound.worst_row(rows, loss).safe_b)
