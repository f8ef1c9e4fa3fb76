"""Train a PointNet on labels, or on a record by exact replay; the teacher is never loaded.

Epoch e sees view e: drawn by the rule of a recording where there is no record, else view e mod V
of the chosen views, its stored parameters applied to the same clouds in two rounded operations, so
that the student's input is bit for bit what the teacher saw.  All randomness is drawn by name and
epoch, so a run that goes on from a checkpoint equals one that was never stopped, bit for bit.
"""

import time
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import default_threads, to_host, tree_to
from minipc.data.augment import Params, apply, draw
from minipc.data.clouds import stratified
from minipc.distil.evaluate import metrics, predict
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.checkpoint import Checkpoint
from minipc.models.file import Model, new_model
from minipc.models.inputs import Inputs
from minipc.models.model import net
from minipc.models.pointnet import track
from minipc.nn import optim
from minipc.nn.engine import backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from minipc.nn.ops import log_softmax_forward
from minipc.provenance import provenance
from minipc.settings import TrainConfig
from minipc.streams import stream


def split_rows(labels, config):
    """Return the rows to learn from and those held out, of labels (N,) on the host.

    Raises UsageError where one of the two would be empty, or not a batch is left.
    """
    held_out = stratified(labels, config.val_fraction, config.seed, "validation")
    learnt, held = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if config.val_fraction and not len(held):
        raise UsageError(
            "val fraction: holds out nothing, no class has 2 training clouds; leave it out"
        )
    config.steps_per_epoch(len(learnt))
    return learnt, held


def drawn_views(clouds, seed, augment):
    """Return views(epoch) -> (Params, None): view e of every cloud, by the rule of a recording."""
    return lambda epoch: (draw(seed, epoch, 0, len(clouds), augment), None)


def recorded_views(reader, labels_only=False, first=0, stop=None):
    """Return views(epoch) -> (Params, logits) of an open RecordReader: views first .. stop - 1 in
    turn.

    With labels_only the same views come without logits, for a fair label-only student.  Raises
    UsageError for views that were not recorded.
    """
    stop = reader.views if stop is None else stop
    if not 0 <= first < stop <= reader.views:
        raise UsageError(
            f"views {first}:{stop}: expected A:B with 0 <= A < B <= {reader.views}, the views of "
            f"{reader.path}"
        )

    def views(epoch):
        scale, shift, logits = reader.view(first + epoch % (stop - first))
        return Params(scale, shift), None if labels_only else logits

    return views


class Trained(NamedTuple):
    model: Model  # after the last epoch, on the host
    epochs: list  # a dict of numbers for each epoch, as in metrics.jsonl
    seconds: float  # of this call


def best_epoch(rows):
    """Return the index of the first epoch of the largest validation accuracy, or None without
    one.
    """
    if not rows or "val_accuracy" not in rows[0]:
        return None
    return max(range(len(rows)), key=lambda epoch: rows[epoch]["val_accuracy"])


class State(NamedTuple):
    """What a step changes."""

    params: dict
    stats: dict
    optimiser: NamedTuple  # optim.AdamWState or SgdState


@dataclass(frozen=True)
class Task:
    """What stays the same during a run; arrays belong to module xp."""

    # (N, 3, P): axes in the order in which both augmentation and the fast engine walk memory
    points: Any
    labels: Any  # (N,)
    groups: tuple  # of all N clouds, as prepare() of the model returns them
    model: Any  # the config of a model, see models/model.py
    loss: LossConfig
    config: TrainConfig
    self_target: Any  # see self_target.py, or None
    work: Workspace
    xp: Any

    def start(self, model):
        """Return the State before the first step of an untrained Model; steps may write into its
        arrays.
        """
        params = {name: value.copy() for name, value in tree_to(self.xp, model.params).items()}
        start = optim.adamw_start if self.config.optimiser == "adamw" else optim.sgd_start
        return State(params, tree_to(self.xp, model.stats), start(params))

    def epoch(self, state, epoch, order, augmentation, logits, progress):
        """Return the State after one epoch, the mean of each number told, and the last learning
        rate.

        order: the rows to learn from, shuffled; augmentation, logits: of all N clouds, on the host
        (logits None for labels alone).
        """
        xp, config, sums = self.xp, self.config, None
        augmentation = Params(*(xp.asarray(value) for value in augmentation))
        logits = None if logits is None else xp.asarray(logits)
        steps = config.steps_per_epoch(len(order))
        if self.self_target:
            self.self_target.epoch_starts(epoch, xp)
        for step in range(steps):
            done = epoch * steps + step
            lr = config.lr * optim.warmup_cosine(done, config.epochs * steps, config.warmup_steps)
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            mask = _dropout_mask(self.model, config, epoch, step, xp)
            state, told = self.step(state, rows, augmentation, logits, mask, lr)
            sums = (
                told if sums is None else {name: sums[name] + value for name, value in told.items()}
            )
            if progress:
                progress(done + 1, config.epochs * steps, f"epoch {epoch + 1}/{config.epochs}")
        if self.self_target:
            self.self_target.epoch_ended(epoch, state.params)
        return state, {name: float(total) / steps for name, total in sums.items()}, lr

    def step(self, state, rows, augmentation, logits, mask, lr):
        """Return the State after a step on the clouds rows, and what it tells as 0-d arrays."""
        params, stats, optimiser = state
        config, target = self.config, self.self_target
        on_device = self.xp.asarray(rows)

        points = self.points[on_device].swapaxes(1, 2)
        x = apply(points, Params(*(value[on_device] for value in augmentation)))
        inputs = Inputs(x, tuple(group[on_device] for group in self.groups))
        y = smooth_labels(
            self.labels[on_device], self.model.classes, self.loss.label_smoothing, x.dtype
        )
        v = None if logits is None else logits[on_device].astype(x.dtype)
        u, has_u = (target and target.target(rows, inputs)) or (None, None)

        z, batch, tape = net(self.model).forward_train(
            params, inputs, self.model, mask, config.engine, self.work
        )
        terms, cache = loss_forward(z, y, v, u, has_u, self.loss)
        grads, _ = backward(loss_backward(cache), tape)

        if config.clip_norm:
            grads, _ = optim.clip_by_norm(grads, config.clip_norm)
        if config.optimiser == "sgd":
            params, optimiser = optim.sgd_step(params, grads, optimiser, lr, config.weight_decay)
        elif config.engine == "textbook":
            params, optimiser = optim.adamw_step(params, grads, optimiser, lr, config.weight_decay)
        else:
            optimiser = optim.adamw_in_place(
                params, grads, optimiser, lr, config.weight_decay, self.work
            )
        stats = track(stats, batch, self.model)
        if target:
            target.stepped(rows, z, params)

        told = terms._asdict()
        if v is not None:
            told["teacher_agreement"] = (z.argmax(axis=1) == v.argmax(axis=1)).mean(dtype=z.dtype)
        return State(params, stats, optimiser), told


@np.errstate(over="ignore", invalid="ignore")  # what they would warn of ends in MinipcError below
def train(
    splits,
    model_config,
    loss_config,
    config,
    views,
    *,
    self_target=None,
    xp=np,
    threads=None,
    folder=None,
    progress=None,
    detail=None,
    about={},
    resume=None,
    stop_after=None,
    work=None,
):
    """Train a model and return Trained.

    splits: data.clouds.Splits; views: as drawn_views or recorded_views return; self_target: see
    self_target.py, needed if loss_config.self_weight > 0; folder: a RunFolder or None; progress:
    called as progress(steps done, steps in all, text), detail as detail(line) after each epoch;
    about: written into the model for people, e.g. {"data_file": a base name}; resume: the
    Checkpoint to go on from; stop_after: the epoch to stop after, of config.epochs; work: a
    Workspace to share with the self target.  The test split is measured after every epoch and
    chooses nothing.  Raises UsageError for settings that cannot run, DataError for a checkpoint of
    other sizes, MinipcError where the loss stops being finite.
    """
    clouds = splits.train
    learnt, held = split_rows(clouds.labels, config)
    if (loss_config.self_weight > 0) != (self_target is not None):
        raise UsageError("self weight: a self target and a weight above 0 go together")
    last_epoch = config.last_epoch(stop_after)
    if resume is not None and last_epoch < len(resume.rows):
        raise UsageError(
            f"stop after: {len(resume.rows)} epochs are done already, got {last_epoch}; leave it "
            "out"
        )
    threads = threads or default_threads(xp)
    begun = time.perf_counter()

    groups, test_groups = (
        net(model_config).prepare(model_config, split.points) for split in splits
    )
    task = Task(
        xp.asarray(np.ascontiguousarray(clouds.points.swapaxes(1, 2))),
        xp.asarray(clouds.labels),
        tuple(xp.asarray(group) for group in groups),
        model_config,
        loss_config,
        config,
        self_target,
        work or Workspace(xp, threads),
        xp,
    )
    model = new_model(model_config, clouds.described, config.seed)
    state, rows = task.start(model), []
    if resume is not None:
        state, rows = _restored(resume, state, xp), list(resume.rows)
        if self_target:
            self_target.load(resume.self_target, xp)

    def after(epochs):
        """Return the Model after so many epochs, on xp and on the host."""
        live = model._replace(
            params=state.params,
            stats=state.stats,
            trained={
                "epochs": epochs,
                "of_epochs": config.epochs,
                "training": asdict(config),
                "loss": asdict(loss_config),
                "made_with": provenance(xp),
                "points_hash": clouds.points_hash,
                "labels_hash": clouds.labels_hash,
                "points": clouds.points.shape[1],
                **about,
            },
        )
        return live, live._replace(params=_to_host(state.params), stats=_to_host(state.stats))

    live, on_host = after(len(rows))
    if folder and rows:  # a kill may have come between the checkpoint and what follows from it
        folder.follow(rows, on_host, best_epoch(rows) == len(rows) - 1)

    test_logits = None
    for epoch in range(len(rows), last_epoch):
        epoch_begun = time.perf_counter()
        order = learnt[stream(config.seed, "shuffle", epoch).permutation(len(learnt))]
        state, means, lr = task.epoch(state, epoch, order, *views(epoch), progress)
        # 0 x inf and 0 x NaN are NaN: the losses were taken before the last step
        rest = sum(
            float((value * 0).sum()) for value in (*state.params.values(), *state.stats.values())
        )
        if not all(isfinite(value) for value in (*means.values(), rest)):
            raise MinipcError(
                f"training: the loss is no longer finite in epoch {epoch + 1} ({means['total']}); "
                "start a new run with a lower --lr, or with the guard if it was off"
            )
        seconds = round(time.perf_counter() - epoch_begun, 3)

        live, on_host = after(epoch + 1)
        test_logits = predict(live, splits.test.points, xp, threads, config.engine, test_groups)
        row = {"epoch": epoch + 1, "lr": lr, **means}
        if len(held):
            row |= _measured(
                "val",
                clouds.labels[held],
                predict(
                    live,
                    clouds.points[held],
                    xp,
                    threads,
                    config.engine,
                    tuple(group[held] for group in groups),
                ),
            )
        row |= _measured("test", splits.test.labels, test_logits)
        rows.append({**row, "train_seconds": seconds})
        if folder:
            folder.epoch_ended(
                Checkpoint(
                    folder.run_id,
                    rows,
                    state.optimiser.step,
                    on_host.params,
                    on_host.stats,
                    _moments(state.optimiser),
                    self_target.state() if self_target else {},
                ),
                on_host,
                best_epoch(rows) == epoch,
            )
        if detail:
            detail(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    if folder:
        if test_logits is None:
            test_logits = predict(live, splits.test.points, xp, threads, config.engine, test_groups)
        log_p, _ = log_softmax_forward(test_logits.astype(np.float64))
        folder.ended(clouds.class_names, splits.test.labels, np.exp(log_p))
    return Trained(on_host, rows, time.perf_counter() - begun)


def _measured(split, labels, logits):
    """Return the numbers of one split for a row of metrics."""
    found = metrics(labels, logits)._asdict()
    return {f"{split}_{name}": value for name, value in found.items() if name != "confusion"}


def _to_host(arrays):
    return {name: to_host(value) for name, value in arrays.items()}


def _moments(optimiser):
    """Return the arrays of an optimiser's state as {"moment.name": array on the host}."""
    return {
        f"{moment}.{name}": to_host(value)
        for moment, arrays in optimiser._asdict().items()
        if moment != "step"
        for name, value in arrays.items()
    }


def _restored(checkpoint, fresh, xp):
    """Return the State of a Checkpoint on xp, in new arrays; a fresh State says which names and
    shapes are expected.
    """
    for mine, found in (
        (fresh.params, checkpoint.params),
        (fresh.stats, checkpoint.stats),
        (_moments(fresh.optimiser), checkpoint.optimiser),
    ):
        if {name: value.shape for name, value in mine.items()} != {
            n: value.shape for n, value in found.items()
        }:
            raise DataError(
                "checkpoint: holds other layers or moments than this run has; train again"
            )
    moments = {
        moment: {
            name: xp.asarray(checkpoint.optimiser[f"{moment}.{name}"]).copy()
            for name in fresh.params
        }
        for moment in fresh.optimiser._fields
        if moment != "step"
    }
    params, stats = (  # in the order of the model, in which they are written
        {name: xp.asarray(found[name]).copy() for name in mine}
        for mine, found in ((fresh.params, checkpoint.params), (fresh.stats, checkpoint.stats))
    )
    return State(params, stats, type(fresh.optimiser)(step=checkpoint.steps, **moments))


def _dropout_mask(model_config, config, epoch, step, xp):
    """Return the mask of (M14) for one step, float32 on xp, or None without dropout."""
    rate = model_config.dropout
    if rate == 0:
        return None
    width = net(model_config).dropout_width(model_config)
    uniform = stream(config.seed, "dropout", epoch, step).random((config.batch_size, width))
    return xp.asarray((uniform >= rate).astype(np.float32) / np.float32(1 - rate))
