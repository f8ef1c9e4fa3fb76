"""Train a model from files into a run folder: what `minipc train` does.

New and resumed runs follow the same path: settings become a RunConfig, and training starts from
it.  distil/train.py does the mathematics and touches no files; this module writes each epoch before
the next one begins.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minipc.backend import blas_on_one_thread, worker_threads
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import UNLABELLED, Splits, check_splittable, kept_labels
from minipc.data.groups_file import indices_of, kept_groups
from minipc.distil import train as training
from minipc.distil.augmentation import largest
from minipc.distil.self_target import Ema, History, SecondRecord, Snapshot
from minipc.distil.state import Epoch, best_epoch
from minipc.distil.train import drawn_views, recorded_views, split_rows
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.file import check_same_sizes, model_id
from minipc.models.model import net, sizes
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import formula
from minipc.nn.ops import log_softmax_forward
from minipc.progress import quiet
from minipc.provenance import provenance, unlike
from minipc.record.reader import RecordReader
from minipc.runs.config import (
    OWN_SEED,
    Beginning,
    RecordName,
    RunConfig,
    identity,
    read_config,
)
from minipc.runs.folder import RunFolder, free_name
from minipc.settings import SelfConfig, settings_of
from minipc.storage import files
from minipc.storage.places import check_new_run
from minipc.verbs.find import find_data, find_file, read_model_for, say_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

    from minipc.data.clouds import Clouds
    from minipc.distil.self_target import SelfTarget
    from minipc.models.file import Model
    from minipc.settings import LossConfig, TrainConfig


class Run(NamedTuple):
    """A training run, finished or stopped."""

    values: dict  # the keys of `train --json`
    last: Epoch


def train(
    model: str,
    loss: LossConfig,
    config: TrainConfig,
    *,
    data: str | None = None,
    record: str | None = None,
    labels_only: bool = False,
    self_config: SelfConfig | None = None,
    self_record: str | None = None,
    views: tuple[int, int] | None = None,
    init: str | None = None,
    out: str | None = None,
    dry_run: bool = False,
    xp: ModuleType = np,
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
    detail: Callable[[str], None] = quiet,
    stop_after: int | None = None,
) -> Run | None:
    """Train model (a name or widths) on files into the new run folder out; return its Run.

    self_config None: the default.  With record, a path, epoch e replays view e mod V of it (without
    its logits if labels_only), and data may be None: the record holds or names its clouds.  Without
    record, training is on labels alone.  views: (first, stop) of the record; self_record: path of
    the second record, for the self target "record".  init: a model file or a run folder with the
    weights and statistics to begin from, in whose name {seed} stands for the seed; the run folder
    keeps a copy.  out None: run, run-2, ...
    Reports go to say(line), progress(done, total, text) and, once an epoch, detail(line).
    stop_after: the epoch to stop after.  With dry_run everything is checked and reported, nothing
    is written, and None is returned.

    Raises UsageError for settings that cannot run and if out exists, DataError for files that do
    not belong together, MinipcError if the loss is no longer finite.  A run that fails before its
    first epoch leaves no folder.
    """
    config.last_epoch(stop_after)
    out = out or free_name("run")
    new = _new_run(
        out,
        model,
        loss,
        config,
        data=data,
        record=record,
        labels_only=labels_only,
        self_config=self_config,
        self_record=self_record,
        views=views,
        init=init,
        xp=xp,
    )
    with blas_on_one_thread(say), new as run:
        if dry_run:
            check_new_run(out)
            _announce(run, xp, say)
            return None
        with RunFolder(out, asdict(run.config)) as folder:
            try:
                if run.init is not None:
                    folder.begin_from(run.init)
                return _run(run, folder, xp, threads, say, progress, detail, stop_after)
            except (MinipcError, MemoryError):
                folder.abandon()
                raise


def forecast(
    model: str,
    loss: LossConfig,
    config: TrainConfig,
    *,
    out: str,
    xp: ModuleType = np,
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
    **choices: Any,
) -> tuple[RunConfig, int, int]:
    """Return the RunConfig that train() would write, its seed of views, its labelled test clouds.

    Makes no run.  choices: the arguments of train() from data to init.  Groups of neighbours are
    made and kept beside the data.  Raises as train() does.
    """
    with _new_run(out, model, loss, config, xp=xp, **choices) as run:
        _say_unfinished_beginning(run, say)
        making: dict[str, Any] = dict(threads=threads, say=say, progress=progress)
        for split in run.splits:
            kept_groups(run.config.model, split, run.data, **making)
        return run.config, _views_seed(run), run.splits.test.labelled


def resume(
    out: str,
    *,
    data: str | None = None,
    record: str | None = None,
    self_record: str | None = None,
    given: dict[str | None, dict[str, Any]] | None = None,
    xp: ModuleType = np,
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
    detail: Callable[[str], None] = quiet,
    stop_after: int | None = None,
) -> Run:
    """Resume the run in folder out and return its Run; all settings come from its run.json.

    data, record and self_record: where its files lie now, None: beside the folder or here.  given:
    {section or None: {setting: value}} that the caller requires.  The others as in train().  Raises
    UsageError if a given setting differs from the run's own, DataError for files that are not the
    ones it began with.
    """
    with blas_on_one_thread(say), RunFolder(out) as folder, ExitStack() as stack:
        config, place = read_config(out), folder.file("run.json")
        _insist(folder.described, given or {}, out)

        def reader_of(
            path: str | None, begun_with: RecordName | None, option: str
        ) -> RecordReader | None:
            if begun_with is None:
                if path is not None:
                    raise UsageError(
                        f"{out}: this run has no use for {option}; leave it out, or start another "
                        "run"
                    )
                return None
            path = find_file(path, begun_with.file, place, f"{option} FILE")
            reader = stack.enter_context(RecordReader(path))
            if reader.plan.recording_id != begun_with.run_id:
                raise DataError(
                    f"{path}: is not the record that {out} began with; pass {option} FILE"
                )
            return reader

        reader = reader_of(record, config.record, "--record")
        earlier = reader_of(self_record, config.self_record, "--self-record")
        data, splits = find_data(data, config.data, place, reader=reader)
        clouds = identity(splits)
        other = sorted(name for name in clouds if clouds[name] != config.clouds.get(name))
        if other:
            names = ", ".join(name.replace("_", " ") for name in other)
            raise DataError(
                f"{data}: is not the data that {out} began with, other {names}; pass the same DATA"
            )
        run = prepare(out, config, data, splits, reader, earlier)
        if config.init is not None and folder.checkpoint() is None:
            run = run._replace(init=folder.beginning(config.init.model_id))
        return _run(run, folder, xp, threads, say, progress, detail, stop_after)


@contextmanager
def _new_run(
    out: str,
    model: str,
    loss: LossConfig,
    config: TrainConfig,
    *,
    data: str | None = None,
    record: str | None = None,
    labels_only: bool = False,
    self_config: SelfConfig | None = None,
    self_record: str | None = None,
    views: tuple[int, int] | None = None,
    init: str | None = None,
    xp: ModuleType,
) -> Iterator[Prepared]:
    """Yield the Prepared of a new run, its files open; arguments as in train() and RunConfig."""
    self_config = self_config or SelfConfig()
    _check_choices(data, record, loss, labels_only, self_config, self_record, views)
    with ExitStack() as stack:
        reader: Any = record and stack.enter_context(RecordReader(record))
        data, splits = find_data(data, reader and reader.meta["data_file"], record, reader=reader)  # type: ignore[arg-type]
        earlier: Any = self_record and stack.enter_context(RecordReader(self_record))
        size = sizes(model, len(splits.train.class_names))
        begun_from = None
        if init is not None:
            path, begun_from = read_model_for(splits.train, data, of_seed(init, config))
            check_same_sizes(begun_from, size, path)
            # as given, so that runs of one arm name the same
            path = os.fspath(init) if OWN_SEED in os.fspath(init) else path
        described = RunConfig(
            provenance=provenance(xp),
            data=os.path.basename(data),
            clouds=identity(splits),
            record=_named(reader),
            self_record=_named(earlier),
            views=(views or (0, reader.views)) if reader else None,
            augment=reader.plan.augment if reader else asdict(AugmentConfig()),
            labels_only=labels_only,
            name=model,
            architecture=size.architecture,
            model=size,
            loss=loss,
            self_target=self_config if loss.self_weight > 0 else None,
            training=config,
            init=begun_from and Beginning(path, model_id(begun_from)),
        )
        run = prepare(out, described, data, splits, reader, earlier)
        yield run._replace(init=begun_from)


def _check_choices(
    data: str | None,
    record: str | None,
    loss: LossConfig,
    labels_only: bool,
    self_config: SelfConfig,
    self_record: str | None,
    views: tuple[int, int] | None,
) -> None:
    """Raise UsageError for arguments of train() that contradict each other."""
    if labels_only and (loss.kd_weight or loss.self_weight):
        raise UsageError(
            "train: labels only, but the loss has a weight for distillation; choose one"
        )
    if record is None and not labels_only:
        raise UsageError(
            "train: distillation needs --record FILE; for labels alone add --labels-only"
        )
    if record is None and data is None:
        raise UsageError("train: name the data: minipc train DATA --labels-only")
    if record is None and views:
        raise UsageError("views: chosen views are those of a record; add --record FILE")
    if (self_record is not None) != (loss.self_weight > 0 and self_config.kind == "record"):
        raise UsageError(
            "self record: --self-record FILE and --self-target record with --self-weight go "
            "together"
        )


class Prepared(NamedTuple):
    """A run that can be trained: its files are open and belong together."""

    out: str  # its folder
    config: RunConfig
    data: str  # path of the clouds
    splits: Splits
    reader: RecordReader | None
    earlier: RecordReader | None  # of the self target "record"
    views: Any  # views(epoch), as distil.train.train takes it
    learnt: int  # clouds to learn from
    labelled: int  # those of them whose label is used
    held: int  # clouds held out
    init: Model | None = None  # what to begin from, instead of weights drawn from the seed


def prepare(
    out: str,
    config: RunConfig,
    data: str,
    splits: Splits,
    reader: RecordReader | None,
    earlier: RecordReader | None,
) -> Prepared:
    """Return the Prepared of a RunConfig and its open files.

    Raises UsageError or DataError if it cannot be trained.
    """
    if reader is None:
        augment = files.from_dict(AugmentConfig, config.augment, f"{out}: run.json")
        views = drawn_views(splits.train, config.training.seed, augment)
    else:
        reader.check_belongs(splits.train)
        views = recorded_views(reader, config.labels_only, *config.views)  # type: ignore[misc]
    if config.training.val_fraction:
        check_splittable(splits.train, "val fraction")
    learnt, held = split_rows(splits.train.labels, config.training)
    needed = config.loss.kd_weight == 0
    labels = kept_labels(splits.train, learnt, config.training, needed)
    labelled = int((labels[learnt] != UNLABELLED).sum())
    for split in splits:
        indices_of(config.model, split.points.shape[1])  # raises for few points
    if earlier:
        if reader is None:
            raise UsageError(
                "self record: it goes with the record that it was made beside; add --record FILE"
            )
        earlier.check_beside(reader)
        stop = config.views[1]  # type: ignore[index]
        if stop > earlier.views:
            raise UsageError(
                f"self record: {earlier.path} has {earlier.views} views, expected {stop}; record "
                f"as many, or pass --views 0:{earlier.views}"
            )
    return Prepared(
        out, config, data, splits, reader, earlier, views, len(learnt), labelled, len(held)
    )


def _labelled(number: int, clouds: int) -> str:
    """Return how many of some clouds are labelled, for people: nothing if all are."""
    return "" if number == clouds else f"{number or 'none'} of them labelled"


def _say_unfinished_beginning(run: Prepared, say: Callable[[str], None]) -> None:
    """Warn about a run that begins from the weights of a training before its end."""
    if run.init and run.config.init:
        beginning = of_seed(run.config.init.file, run.config.training)
        say_unfinished(beginning, run.init.trained, say)


def _announce(run: Prepared, xp: ModuleType, say: Callable[[str], None]) -> None:
    """Report the model, the data and the loss of the training."""
    config = run.config
    size = net(config.model).count(config.model, run.splits.train.points.shape[1])
    epochs = config.training.epochs
    labelled = _labelled(run.labelled, run.learnt)
    if config.loss.kd_weight == 1:
        labelled = "no label is read"
    say(
        f"{run.out}: {config.name}, {size.parameters} parameters, {size.macs / 1e6:.2f} M "
        "multiply-adds a cloud, "
        f"{epochs} epoch{'s' * (epochs > 1)} of {run.learnt} "
        f"clouds{f' ({labelled})' * bool(labelled)}{f', {run.held} held out' * bool(run.held)}, "
        f"backend {xp.__name__}"
    )
    say(formula(config.loss))
    test = run.splits.test
    if test.labelled < len(test):
        say(
            f"accuracy is told on {test.labelled} labelled of {len(test)} test clouds"
            if test.labelled
            else f"no accuracy: none of the {len(test)} test clouds is labelled"
        )
    if config.init:
        say(f"begins from: {of_seed(config.init.file, config.training)}")
    _say_unfinished_beginning(run, say)
    if config.self_target:
        say(f"self target: {config.self_target.kind}")
        if config.loss.temperature <= 2:
            say(
                f"warning: a negative weight at T = {config.loss.temperature:g}: no lower bound in "
                "many rows of a sure teacher, at T = 1 in nearly all; raise --temperature, e.g. 4, "
                "or look first: minipc loss --record FILE"
            )
    if config.training.augment_width > 1:
        wide = largest(config.model, config.training)
        augmented = sum(config.training.augments(epoch) for epoch in range(epochs))
        say(
            f"network augmentation: to {config.training.augment_width:g} times the widths "
            f"({net(wide).count(wide, 1).parameters} parameters), a network each "
            f"{config.training.augment_every}, in the first {augmented} of {epochs} epochs"
        )


def _run(
    run: Prepared,
    folder: RunFolder,
    xp: ModuleType,
    threads: int | None,
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None],
    detail: Callable[[str], None],
    stop_after: int | None,
) -> Run:
    """Train from the folder's checkpoint to the end, or to epoch stop_after; return the Run."""
    _announce(run, xp, say)
    config = run.config
    making: dict[str, Any] = dict(threads=threads, say=say, progress=progress)
    threads = worker_threads(xp, threads)
    about = {
        "data_file": os.path.basename(run.data),
        "made_with": config.provenance,
        "views_seed": _views_seed(run),
    }
    checkpoint = None if folder.new else folder.checkpoint()
    done = len(checkpoint.rows) if checkpoint else 0
    if checkpoint:
        over = done == config.training.epochs
        say(
            f"{run.out}: all {done} epochs are done"
            if over
            else f"{run.out}: continues after epoch {done}"
        )
    last_epoch, begun = config.training.last_epoch(stop_after, done), time.perf_counter()
    if checkpoint and done < last_epoch:
        about |= _continued(run, xp, say)
    groups = tuple(kept_groups(config.model, split, run.data, **making) for split in run.splits)
    work, numbers = Workspace(xp, threads), ""

    def shown(done: int, total: int, text: str) -> None:
        progress(done, total, text + numbers)

    def followed(epochs: Iterable[Epoch]) -> Iterator[Epoch]:
        nonlocal numbers
        for epoch in epochs:
            numbers = _brief(epoch.rows[-1])
            yield epoch

    epochs = training.train(
        run.splits,
        config.model,
        config.loss,
        config.training,
        run.views,
        self_target=_self_target(run, work),
        xp=xp,
        threads=threads,
        work=work,
        progress=shown,
        resume=checkpoint,
        groups=groups,
        init=run.init,
    )
    last = write_epochs(folder, followed(epochs), run.splits.test, last_epoch, done, about, detail)
    return Run(_values(run, folder, last.rows, time.perf_counter() - begun), last)


def of_seed(init: str, config: TrainConfig) -> str:
    """Return what a run begins from: in its name {seed} stands for the seed."""
    return os.fspath(init).replace(OWN_SEED, str(config.seed))


def _views_seed(run: Prepared) -> int:
    """Return the seed from which the views of a run are drawn."""
    return run.reader.plan.seed if run.reader else run.config.training.seed


def write_epochs(
    folder: RunFolder,
    epochs: Iterable[Epoch],
    test: Clouds,
    last_epoch: int,
    done: int = 0,
    about: dict[str, Any] | None = None,
    detail: Callable[[str], None] = quiet,
) -> Epoch:
    """Write each Epoch into a RunFolder before the next one begins, up to last_epoch; return it.

    epochs: from distil.train.train; test: the Clouds of the test split; done: how many epochs the
    folder's checkpoint holds (epochs then starts with the last of these); about: more keys for
    `trained` of each model file.
    """
    for epoch in epochs:
        number, model = len(epoch.rows), epoch.model
        model = model._replace(trained={**model.trained, **(about or {})})
        best = best_epoch(epoch.rows) == number - 1
        if number > done:
            folder.epoch_ended(epoch.checkpoint(folder.run_id), model, best)
            detail(", ".join(f"{name} {_short(value)}" for name, value in epoch.rows[-1].items()))
        else:  # a kill may have come between the checkpoint and the other files
            folder.follow(epoch.rows, model, best)
        if number == last_epoch:
            break
    log_p, _ = log_softmax_forward(epoch.test_logits.astype(np.float64))
    folder.ended(test.class_names, test.labels, np.exp(log_p), test.files)
    return epoch


def _brief(row: dict[str, Any]) -> str:
    """Return the loss and the accuracy in a row of metrics, as they stand beside the progress."""
    split = "val" if "val_accuracy" in row else "test"
    accuracy = row.get(f"{split}_accuracy")
    told = "" if accuracy is None else f", {split} {100 * accuracy:.1f} %"
    return f", loss {row['total']:.3f}{told}"


def _short(value: Any) -> str:
    """Return a value of a row of metrics for people; which weights were measured is a word."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _continued(run: Prepared, xp: ModuleType, say: Callable[[str], None]) -> dict[str, Any]:
    """Report if bits may differ in a resumed run; return what its model files say about it."""
    now = provenance(xp)
    why = unlike(run.config.provenance, now)
    if not why:
        return {}
    say(f"{run.out}: bits may differ from here on from those of an uninterrupted run: {why}")
    return {"continued_with": now}


def _self_target(run: Prepared, work: Workspace) -> SelfTarget | None:
    """Return the self target of a run, or None; it uses the Workspace of the run."""
    chosen, model = run.config.self_target, run.config.model
    if chosen is None:
        return None
    if chosen.kind == "history":
        return History(len(run.splits.train), model.classes)
    if chosen.kind == "record":
        views = recorded_views(run.earlier, False, *run.config.views)  # type: ignore[misc]
        return SecondRecord(lambda epoch: views(epoch)[1])

    def forward(params: dict[str, Any], inputs: Any) -> Any:
        engine = run.config.training.engine
        return net(model).forward_train(params, inputs, model, None, engine, work)[0]

    return (
        Snapshot(forward, chosen.every) if chosen.kind == "snapshot" else Ema(forward, chosen.decay)
    )


def _values(
    run: Prepared, folder: RunFolder, rows: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """Return the keys of `train --json` for the rows of all epochs."""
    config, last, best = run.config, rows[-1], best_epoch(rows)
    size = net(config.model).count(config.model, run.splits.train.points.shape[1])
    values = {
        "model": config.name,
        "parameters": size.parameters,
        "macs_per_cloud": size.macs,
        "epochs": config.training.epochs,
        "epochs_done": len(rows),
        "seed": config.training.seed,
        "record": run.reader and run.reader.path,
        "init": config.init and config.init.file,
        "weights": last.get("weights", "live"),
        "labels_only": config.labels_only,
        "loss": asdict(config.loss),
        "test_accuracy": None,  # and no more without labelled test clouds
        "test_mean_class_accuracy": None,
        **{
            name: value
            for name, value in last.items()
            if name.startswith(("test_", "val_", "teacher_"))
        },
        "train_clouds": run.learnt,
        "train_labelled": run.labelled,
        "test_labelled": run.splits.test.labelled,
        "best_test_accuracy": max(row["test_accuracy"] for row in rows)
        if "test_accuracy" in last
        else None,
        "raised": last["raised"],
        "unbounded": last["unbounded"],
        "seconds": round(seconds, 1),
        "out": run.out,
    }
    if best is not None:
        chosen = rows[best]
        values["chosen"] = {
            "epoch": best + 1,
            "val_accuracy": chosen["val_accuracy"],
            "test_accuracy": chosen.get("test_accuracy"),
            "model": folder.file("best.h5"),
        }
    return values


def _named(reader: RecordReader | None) -> RecordName | None:
    """Return the RecordName of an open record, or None."""
    return reader and RecordName(os.path.basename(reader.path), reader.plan.recording_id)  # type: ignore[return-value]


def _insist(described: dict[str, Any], given: dict[str | None, dict[str, Any]], out: str) -> None:
    """Raise UsageError if a given setting differs from the run's own."""
    names = {"name": "model"} | {key: each.label for key, each in settings_of(SelfConfig).items()}
    for section, settings in given.items():
        own = described if section is None else described[section]
        if own is None:
            if settings:
                raise UsageError(
                    f"{out}: is a run without {str(section).replace('_', ' ')}, and has no use for "
                    f"{names.get(next(iter(settings)))}; leave the option out, or start another run"
                )
            continue
        for name, value in settings.items():
            if own.get(name) != value:
                raise UsageError(
                    f"{out}: {names.get(name, name).replace('_', ' ')} is {own.get(name)} there "
                    f"and {value} here; a "
                    "run goes on with its own settings: leave the option out, or start another run"
                )
