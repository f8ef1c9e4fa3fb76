"""The verbs on files: read, check that the files belong together, compute, write.

What `minipc record`, `train` and `eval` do, without click, for a script or a notebook.  The
mathematics is elsewhere: recorder.record(), train.train() and evaluate.evaluate() know no paths.
"""

import os
from contextlib import ExitStack
from dataclasses import asdict
from typing import NamedTuple

from minipc import __version__
from minipc.augment import AugmentConfig
from minipc.backend import default_threads, provenance
from minipc.data.clouds import check_same_kind, read_clouds
from minipc.errors import DataError, UsageError
from minipc.evaluate import evaluate
from minipc.files import kind_of
from minipc.model_file import model_id, on_module, read_model
from minipc.nn.losses import formula
from minipc.nn.pointnet import count, sizes
from minipc.record.reader import RecordReader
from minipc.record.recorder import forecast, pointnet_teacher, quiet, record
from minipc.run_folder import RunFolder, free_name, model_path
from minipc.self_target import History, Snapshot
from minipc.train import drawn_views, recorded_views, train


def find_data(data, hint, near, points_hash=None):
    """Return the data file to use and its Splits.

    data is a path, or None: then the file named hint is looked for beside `near`, one folder up (a
    model lies in a run folder) and here, and must have the training points of points_hash (None:
    the caller compares).  Raises DataError.
    """
    if data is not None:
        return data, read_clouds(data)
    beside = os.path.dirname(near)
    places = [os.path.join(beside, hint), os.path.join(beside, os.pardir, hint), hint] if hint else []
    data = next((os.path.normpath(place) for place in places if os.path.exists(place)), None)
    if data is None:
        raise DataError(
            f"{near}: its data file {hint or '(not named in it)'} is not beside it and not here; pass DATA"
        )
    splits = read_clouds(data)
    if points_hash is not None and splits.train.points_hash != points_hash:
        raise DataError(f"{data}: holds other training points than {near} was made from; pass DATA")
    return data, splits


def read_data(path):
    """Return the Splits of a clouds file, or of a record that carries its clouds.  Raises DataError."""
    if kind_of(path) != "record":
        return read_clouds(path)
    with RecordReader(path) as reader:
        splits = reader.clouds()
    if splits is None:
        raise DataError(
            f"{path}: is a record without clouds; name its data file, or add them to it: "
            f"minipc record DATA --teacher MODEL --out {path} --with-clouds"
        )
    return splits


def record_files(data, teacher, out, *, views, seed=0, logits="float16", with_clouds=False, force=False, xp,
                 threads=None, say=quiet, progress=quiet):
    """Record the model in file or run folder teacher on the training clouds of file data: Recorded."""
    splits, model = _matching(data, teacher)
    on_device = on_module(model, xp)
    return record(
        splits.train, pointnet_teacher(on_device), model_id(model), out, views,
        seed=seed, logits=logits, with_clouds=splits if with_clouds else None, force=force, xp=xp,
        threads=threads or default_threads(xp), data_file=os.path.basename(data), say=say, progress=progress,
    )


def forecast_files(data, teacher, out, *, views, seed=0, logits="float16", with_clouds=False):
    """Return the Forecast of record_files with these arguments; no file is changed."""
    splits, model = _matching(data, teacher)
    return forecast(
        splits.train, model_id(model), out, views, seed=seed, logits=logits, data_file=os.path.basename(data),
        with_clouds=splits if with_clouds else None,
    )


def _matching(data, teacher):
    """Return the Splits in data and the Model in teacher.  Raises DataError unless they are of one kind."""
    splits, path = read_data(data), model_path(teacher)
    model = read_model(path)
    check_same_kind(splits.train.described, model.described, data, path)
    return splits, model


class Run(NamedTuple):
    """A finished training run."""

    values: dict  # the keys of `train --json`
    trained: object  # train.Trained


def train_files(data, record_path, model, loss, config, *, labels_only=False, self_target="snapshot",
                self_every=1, out=None, xp, threads=None, say=quiet, progress=quiet):
    """Train model (a name or widths) and write a run folder; return Run.

    With record_path, epoch e replays view e mod V of it (without its logits if labels_only) and
    data may be None: the record names its file.  Without, labels alone.  loss and config are a
    LossConfig and a TrainConfig.
    """
    if labels_only and (loss.kd_weight or loss.self_weight):
        raise UsageError("train: labels only, but the loss has a weight for distillation; choose one")
    if record_path is None and not labels_only:
        raise UsageError("train: distillation needs --record FILE; for labels alone add --labels-only")
    with ExitStack() as stack:
        if record_path is None:
            if data is None:
                raise UsageError("train: name the data: minipc train DATA --labels-only")
            reader, splits, augment = None, read_clouds(data), AugmentConfig()
            views = drawn_views(splits.train, config.seed, augment)
        else:
            reader = stack.enter_context(RecordReader(record_path))
            data, splits = find_data(data, reader.meta["data_file"], record_path)
            reader.check_belongs(splits.train)
            views = recorded_views(reader, labels_only)
        model_config = sizes(model, len(splits.train.class_names))
        target = None
        if loss.self_weight > 0:
            target = (
                Snapshot(model_config, self_every) if self_target == "snapshot"
                else History(len(splits.train), model_config.classes)
            )
        config.steps_per_epoch(len(splits.train))  # refuses before a folder is made
        size = count(model_config, splits.train.points.shape[1])
        out = out or free_name("run")
        folder = RunFolder(out, {
            "minipc": __version__, "provenance": provenance(xp), "data": os.path.basename(data),
            "points_hash": splits.train.points_hash, "labels_hash": splits.train.labels_hash,
            "record": reader and {"file": os.path.basename(record_path), "run_id": reader.plan.run_id},
            "augment": reader.plan.augment if reader else asdict(augment),
            "labels_only": labels_only, "model": asdict(model_config), "loss": asdict(loss),
            "self_target": {"kind": self_target, "every": self_every} if target else None,
            "training": asdict(config),
        })
        say(f"{out}: {model}, {size.parameters} parameters, {size.macs / 1e6:.2f} M multiply-adds a cloud, "
            f"{config.epochs} epochs of {len(splits.train)} clouds, backend {xp.__name__}")
        say(formula(loss))
        trained = train(
            splits, model_config, loss, config, views, self_target=target, xp=xp, threads=threads,
            folder=folder, progress=progress, data_file=os.path.basename(data),
        )
    last = trained.epochs[-1]
    return Run({
        "model": model, "parameters": size.parameters, "macs_per_cloud": size.macs,
        "epochs": config.epochs, "seed": config.seed, "record": record_path, "labels_only": labels_only,
        "test_accuracy": last["test_accuracy"],
        "test_mean_class_accuracy": last["test_mean_class_accuracy"],
        "best_test_accuracy": max(row["test_accuracy"] for row in trained.epochs),
        "raised": last["raised"], "unbounded": last["unbounded"],
        "seconds": round(trained.seconds, 1), "out": out,
    }, trained)


def eval_files(model, data, *, xp, threads=None):
    """Evaluate the model in a file or run folder on the test split of data: values for JSON."""
    path = model_path(model)
    read = read_model(path)
    data, splits = find_data(data, read.trained.get("data_file"), path, read.trained.get("points_hash"))
    check_same_kind(splits.test.described, read.described, data, path)
    found = evaluate(on_module(read, xp), splits.test, xp, threads or default_threads(xp))
    size = count(read.config, splits.test.points.shape[1])
    return {
        "model": path, "data": data, "clouds": len(splits.test),
        "accuracy": found.accuracy, "mean_class_accuracy": found.mean_class_accuracy,
        "parameters": size.parameters, "macs_per_cloud": size.macs,
        "class_accuracy": {
            name: float(found.confusion[i, i] / found.confusion[i].sum())
            for i, name in enumerate(splits.test.class_names) if found.confusion[i].sum()
        },
        "confusion": found.confusion.tolist(),
    }
