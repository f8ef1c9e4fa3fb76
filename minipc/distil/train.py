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

from minipc.backend import default_threads, module_of, to_host, tree_to
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
    """Return views(epoch) -> (Params, logits) of an open RecordReader: views first .. stop - 1.

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


class Epoch(NamedTuple):
    """A training after an epoch; its arrays are on the host, and later epochs change none of them.

    It may outlive the training, so weights and moments are copies: the fast engine and its
    optimiser write the next step into the same arrays.
    """

    rows: list  # the numbers of every epoch so far, a dict each, as in metrics.jsonl
    model: Model
    steps: int  # of the optimiser, so far
    moments: dict  # of the optimiser, {"m.name": array}
    self_target: dict  # what SelfTarget.state() returned
    test_logits: np.ndarray  # (M, K) float32, of the M test clouds

    def checkpoint(self, run_id):
        """Return the Checkpoint from which the run of this identity goes on."""
        return Checkpoint(
            run_id,
            self.rows,
            self.steps,
            self.model.params,
            self.model.stats,
            self.moments,
            self.self_target,
        )


def best_epoch(rows):
    """Return the index of the first epoch of the best validation accuracy, None without one."""
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
        """Return the State before the first step; steps may write into its arrays."""
        params = {name: value.copy() for name, value in tree_to(self.xp, model.params).items()}
        start = optim.adamw_start if self.config.optimiser == "adamw" else optim.sgd_start
        return State(params, tree_to(self.xp, model.stats), start(params))

    @np.errstate(over="ignore", invalid="ignore")  # what they would warn of, train() refuses
    def epoch(self, state, epoch, order, augmentation, logits, progress):
        """Return the State after one epoch, the mean of each number, and the last learning rate.

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
    work=None,
    progress=None,
    resume=None,
):
    """Train a model: yield an Epoch after each of the config.epochs epochs.

    splits: data.clouds.Splits; views: as drawn_views or recorded_views return; self_target: see
    self_target.py, needed if loss_config.self_weight > 0; work: a Workspace to share with the self
    target; progress: called as progress(steps done, steps in all, text).  resume: the Checkpoint
    to go on from; its own Epoch is the first that is yielded.  The caller may stop at any epoch.
    The test split is measured after every epoch and chooses nothing.  When the first Epoch is asked
    for, raises UsageError for settings that cannot run and DataError for a checkpoint of other
    sizes; then MinipcError where the loss stops being finite.
    """
    clouds = splits.train
    learnt, held = split_rows(clouds.labels, config)
    if (loss_config.self_weight > 0) != (self_target is not None):
        raise UsageError("self weight: a self target and a weight above 0 go together")
    threads = threads or default_threads(xp)
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
    model = model._replace(trained=_how(clouds, config, loss_config, xp))
    state, rows = task.start(model), []
    if resume is not None:
        state, rows = _restored(resume, state, xp), resume.rows
        if self_target:
            self_target.load(resume.self_target, xp)
        live = model._replace(params=state.params, stats=state.stats)
        test_logits = predict(live, splits.test.points, xp, threads, config.engine, test_groups)
        yield _after(rows, model, state, self_target, test_logits)
    for epoch in range(len(rows), config.epochs):
        begun = time.perf_counter()
        order = learnt[stream(config.seed, "shuffle", epoch).permutation(len(learnt))]
        state, means, lr = task.epoch(state, epoch, order, *views(epoch), progress)
        _check_finite(state, means, epoch)
        seconds = round(time.perf_counter() - begun, 3)

        live = model._replace(params=state.params, stats=state.stats)
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
        rows = [*rows, {**row, "train_seconds": seconds}]
        yield _after(rows, model, state, self_target, test_logits)


def _how(clouds, config, loss_config, xp):
    """Return what a model says of its training, but for the epochs that are done."""
    return {
        "of_epochs": config.epochs,
        "training": asdict(config),
        "loss": asdict(loss_config),
        "made_with": provenance(xp),
        "points_hash": clouds.points_hash,
        "labels_hash": clouds.labels_hash,
        "points": clouds.points.shape[1],
    }


def _after(rows, model, state, self_target, test_logits):
    """Return the Epoch that ended in state; model tells what does not change."""
    model = model._replace(
        params=_copied(state.params),
        stats=_copied(state.stats),
        trained={"epochs": len(rows), **model.trained},
    )
    target = self_target.state() if self_target else {}
    moments = _copied(_moments(state.optimiser))
    return Epoch(rows, model, state.optimiser.step, moments, target, test_logits)


def _check_finite(state, means, epoch):
    """Raise MinipcError unless an epoch's losses and the arrays that it ended in are finite."""
    arrays = (*state.params.values(), *state.stats.values())  # the losses precede the last step
    finite = all(isfinite(value) for value in means.values()) and all(
        bool(module_of(value).isfinite(value).all()) for value in arrays
    )
    if not finite:
        raise MinipcError(
            f"training: the loss is no longer finite in epoch {epoch + 1} ({means['total']}); "
            "start a new run with a lower --lr, or with the guard if it was off"
        )


def _measured(split, labels, logits):
    """Return the numbers of one split for a row of metrics."""
    found = metrics(labels, logits)._asdict()
    return {f"{split}_{name}": value for name, value in found.items() if name != "confusion"}


def _copied(arrays):
    """Return copies of arrays, on the host."""
    return {name: to_host(value).copy() for name, value in arrays.items()}


def _moments(optimiser):
    """Return the arrays of an optimiser's state as {"moment.name": array}."""
    return {
        f"{moment}.{name}": value
        for moment, arrays in optimiser._asdict().items()
        if moment != "step"
        for name, value in arrays.items()
    }


def _restored(checkpoint, fresh, xp):
    """Return the State of a Checkpoint on xp; a fresh State gives the expected names and shapes."""
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
