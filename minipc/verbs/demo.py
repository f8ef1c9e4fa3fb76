"""`minipc record` and `minipc train` without files: built-in shapes, a teacher, a student."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from minipc.data.clouds import write_clouds
from minipc.data.shapes import built_in_shapes
from minipc.distil.train import TrainConfig
from minipc.errors import DataError, UsageError
from minipc.models.file import read_model
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.progress import quiet
from minipc.record.reader import RecordReader
from minipc.record.recording import Forecast, check_request
from minipc.runs.config import read_config
from minipc.runs.folder import RunFolder, free_name, model_path
from minipc.storage.places import check_new_run, is_free_folder
from minipc.verbs import record as record_verb
from minipc.verbs import train as train_verb

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.record.recorder import Recorded, Share
    from minipc.settings import SelfConfig
    from minipc.verbs.train import Run

DATA, TEACHER, RECORD = "shapes.h5", "teacher", "record.h5"
BASELINE = "-labels"  # suffix of the label-only run beside a distilled one
# Chosen on other seeds of the shapes, so that the teacher knows more (docs/results.md).
TEACHER_TRAINING = TrainConfig(epochs=20, batch_size=16, lr=1e-3, warmup_steps=50)
STUDENT_EPOCHS = 40


def record(
    *,
    xp: ModuleType,
    engine: str,
    threads: int,
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None],
    **settings: Any,
) -> Recorded | Share:
    """Make shapes.h5 and teacher/ if they are missing, then record; return Recorded."""
    _check_record(settings["out"], settings["views"], settings["seed"])  # before minutes of work
    if not os.path.exists(DATA):
        splits = built_in_shapes(0)
        write_clouds(DATA, splits)
        say(
            f"{DATA}: made {len(splits.train)} training and {len(splits.test)} test clouds of "
            "built-in shapes"
        )
    running: dict[str, Any] = dict(xp=xp, threads=threads, say=say, progress=progress)
    if _unfinished(TEACHER):
        train_verb.resume(TEACHER, data=DATA, **running)
    if not os.path.exists(model_path(TEACHER)):
        say(f"{TEACHER}: no teacher yet, training one on {DATA}")
        run: Any = train_verb.train(
            "teacher",
            LossConfig(**LABELS_ALONE),
            replace(TEACHER_TRAINING, engine=engine),
            data=DATA,
            labels_only=True,
            out=TEACHER,
            **running,
        )
        say(f"{TEACHER}: test accuracy {100 * run.values['test_accuracy']:.2f} %")
    return record_verb.record(DATA, TEACHER, engine=engine, **running, **settings)


def forecast(out: str, views: int, seed: int, **settings: Any) -> Forecast:
    """Return the Forecast of record() with these arguments; changes no file."""
    _check_record(out, views, seed)
    absent = [] if os.path.exists(DATA) else [DATA]
    if _unfinished(TEACHER) or not os.path.exists(model_path(TEACHER)):
        absent.append(TEACHER)
    if absent:
        return Forecast(out, views, [*absent, out])
    return record_verb.forecast(DATA, TEACHER, out, views=views, seed=seed, **settings)


def _check_record(out: str, views: int, seed: int) -> None:
    """Raise UsageError or DataError for a recording that no teacher could make."""
    check_request(out, views, seed)
    if os.path.lexists(out):
        RecordReader(out).close()


def _unfinished(folder: str) -> bool:
    """Return whether a run folder exists but lacks the model of its last epoch.

    Raises DataError for a folder that is not a run.
    """
    with suppress(DataError):  # no model yet
        trained = read_model(model_path(folder)).trained
        if trained.get("epochs") == trained.get("of_epochs"):
            return False
    if os.path.exists(os.path.join(folder, "run.json")):
        return True
    if not is_free_folder(folder):
        raise DataError(
            f"{folder}: is in the way and no run of ours; move it, or pass DATA and --teacher MODEL"
        )
    return False


def train(
    model: str,
    loss: LossConfig,
    config: TrainConfig,
    *,
    out: str | None = None,
    self_config: SelfConfig | None = None,
    self_record: str | None = None,
    views: tuple[int, int] | None = None,
    dry_run: bool = False,
    xp: ModuleType = np,
    say: Callable[[str], None] = quiet,
    stop_after: int | None = None,
    **running: Any,
) -> list[Run] | None:
    """Train model on labels alone and from record.h5; return both Runs, the one on labels first.

    out: folder of the second run (None: run, run-2, ...); the first is out-labels.  run.json in out
    names both before training starts, so resume(out) continues both after any interruption.  Both
    replay the same views.  The other arguments as in verbs.train; dry_run returns None.
    """
    if not os.path.exists(RECORD):
        raise DataError(
            f"{RECORD}: not here; make it with: minipc record, or train on data: minipc train DATA "
            "--labels-only"
        )
    config.last_epoch(stop_after)
    out = out or free_name("run", BASELINE)
    for folder in (out, out + BASELINE):
        check_new_run(folder)
    what: dict[str, Any] = dict(record=RECORD, views=views, out=out, xp=xp, say=say)
    what |= dict(self_config=self_config, self_record=self_record)
    if dry_run:
        train_verb.train(model, loss, config, dry_run=True, **what)
        return None
    baseline = os.path.basename(out) + BASELINE
    train_verb.begin(model, loss, config, baseline=baseline, **what)
    return resume(out, self_record=self_record, xp=xp, say=say, stop_after=stop_after, **running)


def resume(
    out: str,
    *,
    given: dict[str | None, dict[str, Any]] | None = None,
    self_record: str | None = None,
    **files_and_running: Any,
) -> list[Run]:
    """Resume the run in folder out and its label-only run; return both Runs, the latter first.

    Begins the label-only run if it does not exist yet.  Arguments as in verbs.train.resume; those
    that concern distillation do not go to the label-only run.
    """
    config = read_config(out)
    if config.baseline is None:
        raise UsageError(f"{out}: names no run on labels alone; go on with it as with any other")
    baseline = os.path.join(os.path.dirname(out), config.baseline)
    if not os.path.lexists(os.path.join(baseline, "run.json")):
        with RunFolder(baseline, asdict(config.on_labels_alone())):
            pass  # it is resumed below
    given_for_both = {
        section: settings
        for section, settings in (given or {}).items()
        if section not in ("loss", "self_target")
    }
    return [
        train_verb.resume(baseline, given=given_for_both, **files_and_running),
        train_verb.resume(out, given=given, self_record=self_record, **files_and_running),
    ]
