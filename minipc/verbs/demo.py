"""`minipc record` and `minipc train` without files: built-in shapes, a teacher, a small study."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from minipc.data.clouds import write_clouds
from minipc.data.shapes import built_in_shapes
from minipc.distil.train import TrainConfig
from minipc.errors import DataError
from minipc.models.file import read_model
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.progress import quiet
from minipc.record.reader import RecordReader
from minipc.record.recording import Forecast, check_request
from minipc.runs.folder import STUDY, model_path
from minipc.storage.places import is_free_folder
from minipc.verbs import compare
from minipc.verbs import record as record_verb
from minipc.verbs import train as train_verb

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.record.recorder import Recorded, Share
    from minipc.settings import SelfConfig

DATA, TEACHER, RECORD = "shapes.h5", "teacher", "record.h5"
# Chosen on other seeds of the shapes, so that the teacher knows more (docs/results.md).
TEACHER_TRAINING = TrainConfig(epochs=20, batch_size=16, lr=1e-3, warmup_steps=50)
STUDENT = {"epochs": 40, "labels_per_class": 5}  # settings unless given
SEEDS = 3


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
    self_config: SelfConfig | None = None,
    self_record: str | None = None,
    views: tuple[int, int] | None = None,
    out: str = STUDY,
    dry_run: bool = False,
    xp: ModuleType = np,
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> dict[str, Any] | None:
    """Train model from a few labels, and from these and record.h5; compare them over three seeds.

    Both arms replay the same views and see the same labels, config.labels_per_class of each class;
    the first one has the label term alone.  The seeds are config.seed and the next two.  out: the
    folder of the study, which goes on where it stopped.  threads: runs at the same time, None: the
    CPUs.  Returns what verbs.compare.study returns, None for a dry run; raises as it does.
    """
    if not os.path.exists(RECORD):
        raise DataError(
            f"{RECORD}: not here; make it with: minipc record, or train on data: minipc train DATA "
            "--labels-only"
        )
    both: dict[str, Any] = dict(model=model, config=config, record=RECORD, views=views)
    alone = LossConfig(label_smoothing=loss.label_smoothing, **LABELS_ALONE)
    arms: dict[str, dict[str, Any]] = {
        "labels": dict(both, loss=alone, labels_only=True),
        "record": dict(both, loss=loss, self_config=self_config, self_record=self_record),
    }
    if dry_run:
        for arm, asked in arms.items():
            place = os.path.join(out, f"{arm}-{config.seed}")
            train_verb.train(**asked, out=place, dry_run=True, xp=xp, say=say)
        return None
    seeds = range(config.seed, config.seed + SEEDS)
    running: dict[str, Any] = dict(at_a_time=threads, xp=xp, say=say, progress=progress)
    return compare.study(arms, seeds, out, **running)
