"""Training on files: a new run, or one that goes on; everything a run is stands in its run.json.

What `minipc train` does, without click.  A new run and a resumed one take the same way: settings
become a RunConfig, and training starts from what that says.
"""

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import NamedTuple, get_type_hints

from minipc.backend import blas_on_one_thread, default_threads
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import Splits
from minipc.distil.self_target import Ema, History, SecondRecord, Snapshot
from minipc.distil.train import best_epoch, drawn_views, recorded_views, split_rows, train
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.model import net
from minipc.models.pointnet import ModelConfig, count, sizes
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LABELS_ALONE, formula
from minipc.provenance import provenance, unlike
from minipc.record.reader import RecordReader
from minipc.record.recorder import quiet
from minipc.runs.folder import RunFolder, free_name, read_run, refuse_existing
from minipc.settings import LossConfig, SelfConfig, TrainConfig, settings_of
from minipc.storage import files
from minipc.verbs.jobs import clouds_of, find_file


@dataclass(frozen=True)
class RecordName:
    """Which record a run replays."""

    file: str  # base name, a hint
    run_id: str

    def __post_init__(self):
        if not (isinstance(self.file, str) and isinstance(self.run_id, str)):
            raise DataError(
                f"record: expected a file name and a run_id, found {self.file!r}, {self.run_id!r}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is: the content of its run.json.  Raises DataError for what is none."""

    provenance: dict  # versions and device that it began with
    data: str  # base name of its data file, a hint
    clouds: dict  # hashes and description of both splits: identity()
    record: RecordName | None
    self_record: RecordName | None  # of the self target "record"
    views: tuple | None  # first, stop: of the record
    augment: dict  # ranges and order; plain JSON
    labels_only: bool
    name: str  # of the model's size, as it was given
    model: ModelConfig
    loss: LossConfig
    self_target: SelfConfig | None
    training: TrainConfig
    baseline: str | None  # base name of a folder beside it: the same run on labels alone

    def __post_init__(self):
        kinds = get_type_hints(RunConfig)
        for name, kind in {
            "record": RecordName,
            "self_record": RecordName,
            "model": ModelConfig,
            "loss": LossConfig,
            "self_target": SelfConfig,
            "training": TrainConfig,
        }.items():
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, files.from_dict(kind, getattr(self, name), name))
        if isinstance(self.views, list) and [type(view) for view in self.views] == [int, int]:
            object.__setattr__(self, "views", tuple(self.views))
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise DataError(
                    f"{name}: expected {getattr(kind, '__name__', kind)}, found "
                    f"{getattr(self, name)!r}"
                )

    def on_labels_alone(self):
        """Return the RunConfig of the same model on the same views, without the teacher's
        logits.
        """
        loss = LossConfig(label_smoothing=self.loss.label_smoothing, **LABELS_ALONE)
        return replace(
            self, loss=loss, labels_only=True, self_target=None, self_record=None, baseline=None
        )


def read_config(out):
    """Return the RunConfig of a run folder.  Raises DataError."""
    return files.from_dict(RunConfig, read_run(out), f"{out}: run.json")


def identity(splits):
    """Return what a run must find again: hashes of all arrays, and Clouds.described."""
    hashes = {
        f"{name}_{part}": getattr(clouds, f"{part}_hash")
        for name, clouds in splits._asdict().items()
        for part in ("points", "labels")
    }
    return hashes | splits.train.described


class Run(NamedTuple):
    """A training run, finished or stopped."""

    values: dict  # the keys of `train --json`
    trained: object  # train.Trained


def train_files(
    data,
    record_path,
    model,
    loss,
    config,
    *,
    labels_only=False,
    self_config=SelfConfig(),
    self_record=None,
    chosen_views=None,
    out=None,
    baseline=None,
    dry_run=False,
    begin_only=False,
    **running,
):
    """Train model (a name or widths) from files and write a run folder; return Run.

    With record_path, epoch e replays view e mod V of it (without its logits if labels_only) and
    data may be None: the record holds or names its clouds.  Without, labels alone.  loss, config
    and self_config are a LossConfig, a TrainConfig and a SelfConfig; self_record the path of the
    second record of the self target "record"; chosen_views (first, stop) of the record; baseline
    as in RunConfig.  running: xp, threads, say, progress, detail and stop_after, as in _Work.run.
    With dry_run everything is checked and said and nothing written, with begin_only the folder is
    made for resume_files(); both return None.
    """
    if labels_only and (loss.kd_weight or loss.self_weight):
        raise UsageError(
            "train: labels only, but the loss has a weight for distillation; choose one"
        )
    if record_path is None and not labels_only:
        raise UsageError(
            "train: distillation needs --record FILE; for labels alone add --labels-only"
        )
    if record_path is None and data is None:
        raise UsageError("train: name the data: minipc train DATA --labels-only")
    if record_path is None and chosen_views:
        raise UsageError("views: chosen views are those of a record; add --record FILE")
    if (self_record is not None) != (loss.self_weight > 0 and self_config.kind == "record"):
        raise UsageError(
            "self record: --self-record FILE and --self-target record with --self-weight go "
            "together"
        )
    config.last_epoch(running.get("stop_after"))
    out = out or free_name("run")
    with blas_on_one_thread(running.get("say")), ExitStack() as stack:
        reader = record_path and stack.enter_context(RecordReader(record_path))
        data, splits = clouds_of(data, reader, reader and reader.meta["data_file"], record_path)
        earlier = self_record and stack.enter_context(RecordReader(self_record))
        work = _Work(
            RunConfig(
                provenance=provenance(running["xp"]),
                data=os.path.basename(data),
                clouds=identity(splits),
                record=_named(reader),
                self_record=_named(earlier),
                views=(chosen_views or (0, reader.views)) if reader else None,
                augment=reader.plan.augment if reader else asdict(AugmentConfig()),
                labels_only=labels_only,
                name=model,
                model=sizes(model, len(splits.train.class_names)),
                loss=loss,
                self_target=self_config if loss.self_weight > 0 else None,
                training=config,
                baseline=baseline,
            ),
            splits,
            reader,
            earlier,
            out,
        )
        if dry_run:
            refuse_existing(out)
            work.announce(running["xp"], running.get("say", quiet))
            return None
        work.arguments  # refuses what cannot run before a folder is made
        with RunFolder(out, asdict(work.config)) as folder:
            try:
                return None if begin_only else work.run(folder, data, **running)
            except (MinipcError, MemoryError):
                folder.abandon()
                raise


def resume_files(out, *, data=None, record_path=None, self_record=None, wanted=None, **running):
    """Go on with the run in folder out and return Run; all its settings come from its run.json.

    data, record_path and self_record say where its files lie now, None: beside the folder or here.
    wanted: {section or None: {setting: value}} that the caller insists on.  Raises UsageError where
    one of these is not the run's own, DataError for files that are not the ones it began with.
    """
    with blas_on_one_thread(running.get("say")), RunFolder(out) as folder, ExitStack() as stack:
        config, place = read_config(out), folder.file("run.json")
        _insist(folder.described, wanted or {}, out)

        def reader_of(given, begun_with, option):
            if begun_with is None:
                if given is not None:
                    raise UsageError(
                        f"{out}: this run has no use for {option}; leave it out, or start another "
                        "run"
                    )
                return None
            path = find_file(given, begun_with.file, place, f"{option} FILE")
            reader = stack.enter_context(RecordReader(path))
            if reader.plan.run_id != begun_with.run_id:
                raise DataError(
                    f"{path}: is not the record that {out} began with; pass {option} FILE"
                )
            return reader

        reader = reader_of(record_path, config.record, "--record")
        earlier = reader_of(self_record, config.self_record, "--self-record")
        data, splits = clouds_of(data, reader, config.data, place)
        found = identity(splits)
        other = sorted(name for name in found if found[name] != config.clouds.get(name))
        if other:
            told = ", ".join(name.replace("_", " ") for name in other)
            raise DataError(
                f"{data}: is not the data that {out} began with, other {told}; pass the same DATA"
            )
        return _Work(config, splits, reader, earlier, out).run(folder, data, **running)


def resume_both(out, *, wanted, **files_and_running):
    """Go on with the run in folder out and with its baseline, which is begun if it is not there:
    two Runs.

    The baseline comes first.  Arguments as of resume_files; what the baseline has no use for is not
    asked of it.
    """
    config = read_config(out)
    baseline = os.path.join(os.path.dirname(out), config.baseline)
    if not os.path.lexists(os.path.join(baseline, "run.json")):
        RunFolder(baseline, asdict(config.on_labels_alone())).__exit__()
    of_both = {
        section: values
        for section, values in wanted.items()
        if section not in ("loss", "self_target")
    }
    alone = {name: value for name, value in files_and_running.items() if name != "self_record"}
    return [
        resume_files(baseline, wanted=of_both, **alone),
        resume_files(out, wanted=wanted, **files_and_running),
    ]


@dataclass(frozen=True)
class _Work:
    """A run with its files open."""

    config: RunConfig
    splits: Splits
    reader: object  # RecordReader or None
    earlier: object  # RecordReader of the self target "record", or None
    out: str

    @cached_property
    def arguments(self):
        """The arguments of train() that say what is trained.  Raises as it does."""
        config, splits = self.config, self.splits
        if self.reader is None:
            augment = files.from_dict(AugmentConfig, config.augment, f"{self.out}: run.json")
            views = drawn_views(splits.train, config.training.seed, augment)
        else:
            self.reader.check_belongs(splits.train)
            views = recorded_views(self.reader, config.labels_only, *config.views)
        split_rows(splits.train.labels, config.training)
        if self.earlier:
            if self.reader is None:
                raise UsageError(
                    "self record: it goes with the record that it was made beside; add --record "
                    "FILE"
                )
            self.earlier.check_beside(self.reader)
        return splits, config.model, config.loss, config.training, views

    def _self_target(self, work):
        """Return the self target of the run, or None; it computes in the Workspace of the run."""
        chosen, model = self.config.self_target, self.config.model
        if chosen is None:
            return None
        if chosen.kind == "history":
            return History(len(self.splits.train), model.classes)
        if chosen.kind == "record":
            views = recorded_views(self.earlier, False, *self.config.views)
            return SecondRecord(lambda epoch: views(epoch)[1])

        def forward(params, inputs):
            return net(model).forward_train(
                params, inputs, model, None, self.config.training.engine, work
            )[0]

        return (
            Snapshot(forward, chosen.every)
            if chosen.kind == "snapshot"
            else Ema(forward, chosen.decay)
        )

    def announce(self, xp, say):
        """Say what will be trained, and by which loss."""
        config, clouds = self.config, self.splits.train
        size = count(config.model, clouds.points.shape[1])
        self.arguments  # raises what cannot run
        learnt, held = split_rows(clouds.labels, config.training)
        epochs = config.training.epochs
        say(
            f"{self.out}: {config.name}, {size.parameters} parameters, {size.macs / 1e6:.2f} M "
            "multiply-adds a cloud, "
            f"{epochs} epoch{'s' * (epochs > 1)} of {len(learnt)} "
            f"clouds{f', {len(held)} held out' * bool(len(held))}, "
            f"backend {xp.__name__}"
        )
        say(formula(config.loss))
        if config.self_target:
            say(f"self target: {config.self_target.kind}")

    def run(
        self,
        folder,
        data,
        *,
        xp,
        threads=None,
        say=quiet,
        progress=quiet,
        detail=None,
        stop_after=None,
    ):
        """Train to the end, or to the epoch stop_after, from where the folder's checkpoint is:
        Run.
        """
        self.announce(xp, say)
        config, threads = self.config, threads or default_threads(xp)
        work = Workspace(xp, threads)
        resume = None if folder.new else folder.checkpoint()
        about = {
            "data_file": os.path.basename(data),
            "made_with": config.provenance,
            "views_seed": self.reader.plan.seed if self.reader else config.training.seed,
        }
        if resume:
            done = len(resume.rows)
            over = done == config.training.epochs
            say(
                f"{self.out}: all {done} epochs are done"
                if over
                else f"{self.out}: continues after epoch {done}"
            )
            now = provenance(xp)
            why = unlike(config.provenance, now)
            if why and len(resume.rows) < config.training.last_epoch(stop_after):
                say(
                    f"{self.out}: bits may differ from here on from those of an uninterrupted run: "
                    f"{why}"
                )
                about["continued_with"] = now
        trained = train(
            *self.arguments,
            self_target=self._self_target(work),
            xp=xp,
            threads=threads,
            folder=folder,
            progress=progress,
            detail=detail,
            about=about,
            resume=resume,
            stop_after=stop_after,
            work=work,
        )
        size = count(config.model, self.splits.train.points.shape[1])
        last, best = trained.epochs[-1], best_epoch(trained.epochs)
        values = {
            "model": config.name,
            "parameters": size.parameters,
            "macs_per_cloud": size.macs,
            "epochs": config.training.epochs,
            "epochs_done": len(trained.epochs),
            "seed": config.training.seed,
            "record": self.reader and self.reader.path,
            "labels_only": config.labels_only,
            **{
                name: value
                for name, value in last.items()
                if name.startswith(("test_", "val_", "teacher_"))
            },
            "best_test_accuracy": max(row["test_accuracy"] for row in trained.epochs),
            "raised": last["raised"],
            "unbounded": last["unbounded"],
            "seconds": round(trained.seconds, 1),
            "out": self.out,
        }
        if best is not None:
            chosen = trained.epochs[best]
            values["chosen"] = {
                "epoch": best + 1,
                "val_accuracy": chosen["val_accuracy"],
                "test_accuracy": chosen["test_accuracy"],
                "model": folder.file("best.h5"),
            }
        return Run(values, trained)


def _named(reader):
    """Return the RecordName of an open record, or None."""
    return reader and RecordName(os.path.basename(reader.path), reader.plan.run_id)


def _insist(described, wanted, out):
    """Raise UsageError where a setting that the caller gave is not the run's own."""
    for section, settings in wanted.items():
        there = described if section is None else described[section]
        for name, value in settings.items():
            if (
                there is not None and there.get(name) != value
            ):  # None: an option that the run has no use for
                told = {"name": "model"} | {
                    field: each.label for field, each in settings_of(SelfConfig).items()
                }
                raise UsageError(
                    f"{out}: {told.get(name, name).replace('_', ' ')} is {there.get(name)} there "
                    f"and {value} here; a "
                    "run goes on with its own settings: leave the option out, or start another run"
                )
