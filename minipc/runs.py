"""Training on files: a new run, or one that goes on; everything a run is stands in its run.json.

What `minipc train` does, without click.  A new run and a resumed one take the same way: settings
become run.json, and training starts from what run.json says.
"""

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import NamedTuple

from minipc import files
from minipc.augment import AugmentConfig
from minipc.backend import provenance
from minipc.data.clouds import Splits, stratified
from minipc.errors import DataError, UsageError
from minipc.jobs import find_data, find_file
from minipc.nn.losses import LossConfig, formula
from minipc.nn.pointnet import ModelConfig, count, forward_train, sizes
from minipc.record.reader import RecordReader
from minipc.record.recorder import quiet
from minipc.run_folder import RunFolder, free_name, refuse_existing
from minipc.self_target import Ema, History, Recorded, SelfConfig, Snapshot
from minipc.train import TrainConfig, best_epoch, drawn_views, recorded_views, train

RUN_KEYS = (
    "provenance", "data", "points_hash", "labels_hash", "record", "self_record", "views", "augment",
    "labels_only", "name", "model", "loss", "self_target", "training",
)


class Run(NamedTuple):
    """A training run, finished or stopped."""

    values: dict  # the keys of `train --json`
    trained: object  # train.Trained


def train_files(data, record_path, model, loss, config, *, labels_only=False, self_config=SelfConfig(),
                self_record=None, chosen_views=None, out=None, dry_run=False, begin_only=False, **running):
    """Train model (a name or widths) from files and write a run folder; return Run.

    With record_path, epoch e replays view e mod V of it (without its logits if labels_only) and
    data may be None: the record holds or names its clouds.  Without, labels alone.  loss, config
    and self_config are a LossConfig, a TrainConfig and a SelfConfig; self_record the path of the
    second record of the self target "record"; chosen_views (first, stop) of the record.  running:
    xp, threads, say, progress, detail and stop_after, as in _Work.run.  With dry_run everything is
    checked and said and nothing written, with begin_only the folder is made for resume_files(); both
    return None.
    """
    if labels_only and (loss.kd_weight or loss.self_weight):
        raise UsageError("train: labels only, but the loss has a weight for distillation; choose one")
    if record_path is None and not labels_only:
        raise UsageError("train: distillation needs --record FILE; for labels alone add --labels-only")
    if record_path is None and data is None:
        raise UsageError("train: name the data: minipc train DATA --labels-only")
    if record_path is None and chosen_views:
        raise UsageError("views: chosen views are those of a record; add --record FILE")
    if (self_record is not None) != (loss.self_weight > 0 and self_config.kind == "record"):
        raise UsageError("self record: --self-record FILE and --self-target record with --self-weight go together")
    config.last_epoch(running.get("stop_after"))
    with ExitStack() as stack:
        reader = record_path and stack.enter_context(RecordReader(record_path))
        data, splits = _clouds_of(data, reader)
        earlier = self_record and stack.enter_context(RecordReader(self_record))
        described = {
            "provenance": provenance(running["xp"]),
            "data": os.path.basename(data),
            "points_hash": splits.train.points_hash, "labels_hash": splits.train.labels_hash,
            "record": _named(reader), "self_record": _named(earlier),
            "views": list(chosen_views or (0, reader.views)) if reader else None,
            "augment": reader.plan.augment if reader else asdict(AugmentConfig()),
            "labels_only": labels_only, "name": model,
            "model": asdict(sizes(model, len(splits.train.class_names))), "loss": asdict(loss),
            "self_target": asdict(self_config) if loss.self_weight > 0 else None,
            "training": asdict(config),
        }
        out = out or free_name("run")
        work = _Work(described, splits, reader, earlier, out)
        if dry_run:
            refuse_existing(out)
            work.announce(running["xp"], running.get("say", quiet))
            return None
        work.arguments  # refuses what cannot run before a folder is made
        with RunFolder(out, described) as folder:
            return None if begin_only else work.run(folder, data, **running)


def resume_files(out, *, data=None, record_path=None, self_record=None, wanted=None, **running):
    """Go on with the run in folder out and return Run; all its settings come from its run.json.

    data, record_path and self_record say where its files lie now, None: beside the folder or here.
    wanted: {section or None: {setting: value}} that the caller insists on.  Raises UsageError where
    one of these is not the run's own, DataError for files that are not the ones it began with.
    """
    with RunFolder(out) as folder, ExitStack() as stack:
        described, place = folder.described, folder.file("run.json")
        files.check_keys(described, RUN_KEYS, place)
        _insist(described, wanted or {}, out)

        def reader_of(given, begun_with, option):
            if begun_with is None:
                if given is not None:
                    raise UsageError(f"{out}: this run has no use for {option}; leave it out, or start another run")
                return None
            path = find_file(given, begun_with["file"], place, f"{option} FILE")
            reader = stack.enter_context(RecordReader(path))
            if reader.plan.run_id != begun_with["run_id"]:
                raise DataError(f"{path}: is not the record that {out} began with; pass {option} FILE")
            return reader

        reader = reader_of(record_path, described["record"], "--record")
        earlier = reader_of(self_record, described["self_record"], "--self-record")
        if reader and data is None and described["data"] == os.path.basename(reader.path):
            data = reader.path
        data, splits = find_data(data, described["data"], place)
        found = splits.train.points_hash, splits.train.labels_hash
        if found != (described["points_hash"], described["labels_hash"]):
            raise DataError(f"{data}: holds other training clouds than {out} began with; pass the same DATA")
        if provenance(running["xp"]) != described["provenance"]:
            running.get("say", quiet)(f"{out}: began on other versions or another backend: not bit for bit the same")
        return _Work(described, splits, reader, earlier, out).run(folder, data, **running)


@dataclass(frozen=True)
class _Work:
    """A run as described by its run.json, with its files open."""

    described: dict
    splits: Splits
    reader: object  # RecordReader or None
    earlier: object  # RecordReader of the self target "record", or None
    out: str

    @cached_property
    def arguments(self):
        """The arguments of train() that say what is trained, and the self target.  Raises as they do."""
        described, splits, where = self.described, self.splits, f"{self.out}: run.json"
        kinds = (("model", ModelConfig), ("loss", LossConfig), ("training", TrainConfig))
        model, loss, config = (files.from_dict(kind, described[name], where) for name, kind in kinds)
        if self.reader is None:
            augment = files.from_dict(AugmentConfig, described["augment"], self.out)
            views = drawn_views(splits.train, config.seed, augment)
        else:
            self.reader.check_belongs(splits.train)
            views = recorded_views(self.reader, described["labels_only"], *described["views"])
        held_out = stratified(splits.train.labels, config.val_fraction, config.seed, "validation").sum()
        config.steps_per_epoch(len(splits.train) - int(held_out))
        return (splits, model, loss, config, views), self._self_target(model)

    def _self_target(self, model):
        """Return the self target of the run, or None."""
        if self.described["self_target"] is None:
            return None
        chosen = files.from_dict(SelfConfig, self.described["self_target"], self.out)
        if chosen.kind == "history":
            return History(len(self.splits.train), model.classes)
        if chosen.kind == "record":
            _check_same_views(self.reader, self.earlier)
            views = recorded_views(self.earlier, False, *self.described["views"])
            return Recorded(lambda epoch: views(epoch)[1])

        def forward(params, points):
            return forward_train(params, points, model)[0]

        return Snapshot(forward, chosen.every) if chosen.kind == "snapshot" else Ema(forward, chosen.decay)

    def announce(self, xp, say):
        """Say what will be trained, and by which loss."""
        (splits, model, loss, config, _), _ = self.arguments
        size = count(model, splits.train.points.shape[1])
        say(f"{self.out}: {self.described['name']}, {size.parameters} parameters, {size.macs / 1e6:.2f} M "
            f"multiply-adds a cloud, {config.epochs} epochs of {len(splits.train)} clouds, backend {xp.__name__}")
        say(formula(loss))
        if self.described["self_target"]:
            say(f"self target: {self.described['self_target']['kind']}")

    def run(self, folder, data, *, xp, threads=None, say=quiet, progress=quiet, detail=None, stop_after=None):
        """Train to the end, or to the epoch stop_after, from where the folder's checkpoint is: Run."""
        self.announce(xp, say)
        arguments, target = self.arguments
        resume = None if folder.new else folder.checkpoint()
        if resume:
            say(f"{self.out}: continues after epoch {len(resume.rows)}")
        trained = train(
            *arguments, self_target=target, xp=xp, threads=threads, folder=folder, progress=progress, detail=detail,
            data_file=os.path.basename(data), resume=resume, stop_after=stop_after,
        )
        _, model, _, config, _ = arguments
        size = count(model, self.splits.train.points.shape[1])
        last, best = trained.epochs[-1], best_epoch(trained.epochs)
        values = {
            "model": self.described["name"], "parameters": size.parameters, "macs_per_cloud": size.macs,
            "epochs": config.epochs, "epochs_done": len(trained.epochs), "seed": config.seed,
            "record": self.reader and self.reader.path, "labels_only": self.described["labels_only"],
            **{name: value for name, value in last.items() if name.startswith(("test_", "val_", "teacher_"))},
            "best_test_accuracy": max(row["test_accuracy"] for row in trained.epochs),
            "raised": last["raised"], "unbounded": last["unbounded"],
            "seconds": round(trained.seconds, 1), "out": self.out,
        }
        if best is not None:
            chosen = trained.epochs[best]
            values["chosen"] = {
                "epoch": best + 1, "val_accuracy": chosen["val_accuracy"], "test_accuracy": chosen["test_accuracy"],
                "model": folder.file("best.h5"),
            }
        return Run(values, trained)


def _clouds_of(data, reader):
    """Return the path and Splits of data, or of what the record holds or names."""
    if data is None and reader.clouds() is not None:
        return reader.path, reader.clouds()
    return find_data(data, reader and reader.meta["data_file"], reader and reader.path)


def _named(reader):
    """Return what run.json says of a record."""
    return reader and {"file": os.path.basename(reader.path), "run_id": reader.plan.run_id}


def _check_same_views(reader, earlier):
    """Raise UsageError or DataError unless earlier differs from reader in its teacher alone."""
    if reader is None:
        raise UsageError("self record: it goes with the record that it was made beside; add --record FILE")
    same = replace(earlier.plan, teacher_id=reader.plan.teacher_id)
    if not same.same_identity(reader.plan):
        raise DataError(
            f"{earlier.path}: differs from {reader.path} not in its teacher alone: {reader.plan.differences(same)}; "
            "record the earlier student with the same data, seed and --logits"
        )


def _insist(described, wanted, out):
    """Raise UsageError where a setting that the caller gave is not the run's own."""
    for section, settings in wanted.items():
        there = described if section is None else described[section] or {}
        for name, value in settings.items():
            if there.get(name) != value:
                raise UsageError(
                    f"{out}: {name.replace('_', ' ')} is {there.get(name)} there and {value} here; a run goes on "
                    "with its own settings: leave the option out, or start another run"
                )
