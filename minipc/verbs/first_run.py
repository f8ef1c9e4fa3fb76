"""What the bare commands do for someone who has nothing: built-in shapes, a teacher, a student."""

import os
from contextlib import suppress
from dataclasses import replace

from minipc.data.clouds import Clouds, Splits, made_from, write_clouds
from minipc.data.shapes import UP_AXIS, make_shapes
from minipc.distil.train import TrainConfig
from minipc.errors import DataError, UsageError
from minipc.models.file import read_model
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.reader import RecordReader
from minipc.record.recorder import Forecast, check_request
from minipc.runs.folder import free_name, model_path, refuse_existing
from minipc.verbs.jobs import forecast_files, record_files
from minipc.verbs.train import resume_both, resume_files, train_files

DATA, TEACHER, RECORD = "shapes.h5", "teacher", "record.h5"
BASELINE = "-labels"  # ends the name of the label-only run beside a distilled one
# Both chosen on other seeds of the shapes: a teacher that has something to teach (docs/results.md).
TEACHER_TRAINING = TrainConfig(epochs=20, batch_size=16, lr=1e-3, warmup_steps=50)
STUDENT_EPOCHS = 40


def built_in_shapes(seed):
    """Return the built-in procedural shapes as Splits."""
    made = make_shapes(seed)
    common = dict(
        class_names=made.class_names,
        up_axis=UP_AXIS,
        normalisation="unit_sphere",
        source=made_from(f"built-in shapes, seed {seed}"),
    )
    return Splits(
        Clouds(made.train_points, made.train_labels, **common),
        Clouds(made.test_points, made.test_labels, **common),
    )


def record_shapes(*, xp, engine, threads, say, progress, **settings):
    """Make shapes.h5 and teacher/ where they are absent, then record: Recorded."""
    _check_request(
        settings["out"], settings["views"], settings["seed"]
    )  # before minutes of training
    if not os.path.exists(DATA):
        splits = built_in_shapes(0)
        write_clouds(DATA, splits)
        say(
            f"{DATA}: made {len(splits.train)} training and {len(splits.test)} test clouds of "
            "built-in shapes"
        )
    running = dict(xp=xp, threads=threads, say=say, progress=progress)
    if _unfinished(TEACHER):
        resume_files(TEACHER, data=DATA, **running)
    if not os.path.exists(model_path(TEACHER)):
        say(f"{TEACHER}: no teacher yet, training one on {DATA}")
        run = train_files(
            DATA,
            None,
            "teacher",
            LossConfig(**LABELS_ALONE),
            replace(TEACHER_TRAINING, engine=engine),
            labels_only=True,
            out=TEACHER,
            **running,
        )
        say(f"{TEACHER}: test accuracy {100 * run.values['test_accuracy']:.2f} %")
    return record_files(DATA, TEACHER, engine=engine, **running, **settings)


def forecast_shapes(out, views, seed, **settings):
    """Return the Forecast of record_shapes with these arguments; no file is changed."""
    _check_request(out, views, seed)
    absent = [] if os.path.exists(DATA) else [DATA]
    if _unfinished(TEACHER) or not os.path.exists(model_path(TEACHER)):
        absent.append(TEACHER)
    if absent:
        return Forecast(out, views, [*absent, out])
    return forecast_files(DATA, TEACHER, out, views=views, seed=seed, **settings)


def _check_request(out, views, seed):
    """Raise UsageError or DataError for a recording that could not be, whatever its teacher."""
    check_request(out, views, seed)
    if os.path.lexists(out):
        RecordReader(out).close()


def _unfinished(folder):
    """Return whether a run folder is there without the model of its last epoch.

    Raises DataError for somebody else's folder.
    """
    with suppress(DataError):  # no model yet
        trained = read_model(model_path(folder)).trained
        if trained.get("epochs") == trained.get("of_epochs"):
            return False
    if os.path.exists(os.path.join(folder, "run.json")):
        return True
    try:
        refuse_existing(folder)
    except UsageError as reason:
        raise DataError(
            f"{folder}: is in the way and no run of ours; move it, or pass DATA and --teacher MODEL"
        ) from reason
    return False


def train_both(model, loss, config, *, out, self_config, dry_run, running):
    """Train model from record.h5 and, as its baseline, on labels alone: the two Runs, baseline
    first.

    out is the folder of the first, or None; the baseline goes into out-labels.  Interrupted at any
    moment, resume_both() goes on with both.  With dry_run: [].
    """
    if not os.path.exists(RECORD):
        raise DataError(
            f"{RECORD}: not here; make it with: minipc record, or train on data: minipc train DATA "
            "--labels-only"
        )
    out = out or free_name("run", BASELINE)
    for name in (out, out + BASELINE):
        refuse_existing(name)
    begin = dict(
        running, dry_run=dry_run, begin_only=True, baseline=os.path.basename(out) + BASELINE
    )
    train_files(None, RECORD, model, loss, config, out=out, self_config=self_config, **begin)
    return [] if dry_run else resume_both(out, wanted={}, **running)
