"""Train a PointNet on labels, or on a record by exact replay; the teacher is never loaded.

Without a record, epoch e draws view e as a recording would.  With one, it replays view e mod V of
the V chosen views: it applies the stored parameters to the same clouds in two rounded operations,
so the student's input is bit for bit what the teacher saw.  Every random stream is named and
belongs to an epoch, so a resumed run equals one that was never stopped, bit for bit.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.backend import module_of, tree_to, worker_threads
from minipc.data.augment import Params, apply, draw
from minipc.data.clouds import check_same_kind, check_splittable, kept_labels, stratified
from minipc.distil.augmentation import NetworkAugmentation
from minipc.distil.averaging import averaging
from minipc.distil.evaluate import measured, predict
from minipc.distil.state import Epoch, State, epoch_of, restored, restored_average
from minipc.distil.statistics import estimate
from minipc.distil.steps import steps_of
from minipc.errors import MinipcError, UsageError
from minipc.models.checkpoint import Checkpoint
from minipc.models.file import Model, check_same_sizes, new_model
from minipc.models.inputs import Inputs
from minipc.models.model import groups_of, net, track
from minipc.nn import kernels, optim
from minipc.nn.engine import backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from minipc.nn.widening import take
from minipc.provenance import provenance
from minipc.settings import TrainConfig
from minipc.streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from minipc.data.augment import AugmentConfig
    from minipc.data.clouds import Clouds, Splits
    from minipc.distil.averaging import EmaWeights, LastWeights
    from minipc.distil.self_target import SelfTarget


def split_rows(labels: np.ndarray, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to learn from and the rows held out, of labels (N,) on the host.

    Raises UsageError if a validation fraction holds out nothing, or less than a batch is left.
    """
    held_out = stratified(labels, config.val_fraction, config.seed, "validation")
    learnt, held = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if config.val_fraction and not len(held):
        raise UsageError(
            "val fraction: holds out nothing, no class has 2 training clouds; leave it out"
        )
    config.steps_per_epoch(len(learnt))
    return learnt, held


def drawn_views(
    clouds: Clouds, seed: int, augment: AugmentConfig
) -> Callable[[int], tuple[Params, Any]]:
    """Return views(epoch) -> (Params, None): view e of all clouds, drawn as in a recording."""
    return lambda epoch: (draw(seed, epoch, 0, len(clouds), augment), None)


def recorded_views(
    reader: Any, labels_only: bool = False, first: int = 0, stop: int | None = None
) -> Callable[[int], tuple[Params, Any]]:
    """Return views(epoch) -> (Params, logits) of an open RecordReader: views first .. stop - 1.

    With labels_only, logits is None: the student sees the same views, for a fair comparison.
    Raises UsageError for views that were not recorded.
    """
    stop = reader.views if stop is None else stop
    if not 0 <= first < stop <= reader.views:
        raise UsageError(
            f"views {first}:{stop}: expected A:B with 0 <= A < B <= {reader.views}, the views of "
            f"{reader.path}"
        )

    def views(epoch: int) -> tuple[Params, Any]:
        scale, shift, logits = reader.view(first + epoch % (stop - first))
        return Params(scale, shift), None if labels_only else logits

    return views


@dataclass(frozen=True)
class Task:
    """What stays the same during a run; arrays belong to module xp."""

    # (N, 3, P): the order of axes in which augmentation and the fast engine read memory
    points: Any
    labels: Any  # (N,), -1 for none
    groups: tuple  # of all N clouds, as prepare() of the model returns them
    model: Any  # the config of a model, see models/model.py
    loss: LossConfig
    config: TrainConfig
    self_target: SelfTarget | None
    work: Workspace
    xp: Any
    average: EmaWeights | LastWeights | None = None
    widening: NetworkAugmentation | None = None

    def own(self, params: dict) -> dict:
        """Return the model's parameters, from those of a State."""
        return take(params, self.widening.own) if self.widening else params

    def start(self, model: Model) -> State:
        """Return the State before the first step; steps may write into its arrays."""
        params = {name: value.copy() for name, value in tree_to(self.xp, model.params).items()}
        if self.widening:
            params = self.widening.start(params)
        start = optim.adamw_start if self.config.optimiser == "adamw" else optim.sgd_start
        return State(params, tree_to(self.xp, model.stats), start(params))

    @np.errstate(over="ignore", invalid="ignore")  # train() refuses what is not finite
    def epoch(
        self,
        state: State,
        epoch: int,
        order: np.ndarray,
        augmentation: Params,
        logits: np.ndarray | None,
        progress: Callable[[int, int, str], None] | None,
    ) -> tuple[State, dict[str, float], float]:
        """Return the State after one epoch, the mean of each number, and the last learning rate.

        order: the rows to learn from, shuffled; augmentation, logits: for all N clouds, on the host
        (logits None: labels alone).
        """
        config, size, held = self.config, self.config.batch_size, kernels.held
        views = Params(*(held(self.work, f"view {i}", v) for i, v in enumerate(augmentation)))
        logits = held(self.work, "logits", logits)
        steps = config.steps_per_epoch(len(order))
        first, all_steps = epoch * steps, config.epochs * steps
        lrs = [
            config.lr * optim.warmup_cosine(first + step, all_steps, config.warmup_steps)
            for step in range(steps)
        ]
        if self.self_target:
            self.self_target.epoch_starts(epoch, self.xp)
        run = steps_of(self, state, order, lrs)
        for step, lr in enumerate(lrs):
            rows = order[step * size : (step + 1) * size]
            mask = _dropout_mask(self.model, config, epoch, step)
            state = run(state, rows, views, logits, mask, lr, (epoch, step))
            if progress:
                progress(first + step + 1, all_steps, f"epoch {epoch + 1}/{config.epochs}")
        if self.self_target:
            self.self_target.epoch_ended(epoch, self.own(state.params))
        if self.average:
            self.average.epoch_ended(self.own(state.params))
        return state, {name: float(total) / steps for name, total in run.sums.items()}, lr

    def step(
        self,
        state: State,
        rows: np.ndarray,
        augmentation: Params,
        logits: Any,
        mask: Any,
        lr: float,
        at: tuple[int, int] = (0, 0),
    ) -> tuple[State, dict[str, Any]]:
        """Return the State after a step on the clouds in rows, and its numbers, 0-d arrays.

        at: (epoch, step), by which network augmentation draws widths.
        """
        params, stats, optimiser = state
        config, target = self.config, self.self_target
        rows = kernels.held(self.work, "rows", rows)
        mask = kernels.held(self.work, "mask", mask)
        inputs = self.inputs(rows, augmentation)
        x = inputs.points
        y = smooth_labels(self.labels[rows], self.model.classes, self.loss.label_smoothing, x.dtype)
        v = None if logits is None else kernels.rows_of(logits, rows, x.dtype)
        u, has_u = (target and target.target(rows, inputs)) or (None, None)

        z, batch, tape = net(self.model).forward_train(
            self.own(params), inputs, self.model, mask, config.engine, self.work
        )
        terms, cache = loss_forward(z, y, v, u, has_u, self.loss)
        grads, _ = backward(loss_backward(cache), tape)
        if self.widening:  # a widened network has no earlier self

            def of_logits(wide: Any) -> Any:
                return loss_backward(loss_forward(wide, y, v, None, None, self.loss)[1])

            grads = self.widening.gradients(params, grads, inputs, of_logits, *at)

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
        stats = track(stats, batch, self.model, reuse=True)
        if target:
            target.stepped(rows, z, self.own(params))
        if self.average:
            self.average.stepped(self.own(params), optimiser.step)

        numbers = terms._asdict()
        if v is not None:
            numbers["teacher_agreement"] = kernels.agreement(z, v)
        return State(params, stats, optimiser), numbers

    def inputs(self, rows: Any, augmentation: Params) -> Inputs:
        """Return the augmented clouds in rows (B,), all on xp."""
        if kernels.on_device(self.xp):
            x = kernels.views(self.points, rows, *augmentation)
        else:
            points = self.points[rows].swapaxes(1, 2)
            x = apply(points, Params(*(value[rows] for value in augmentation)))
        return Inputs(x, tuple(group[rows] for group in self.groups))

    @np.errstate(over="ignore", invalid="ignore")  # predict() refuses what is not finite
    def to_measure(
        self, model: Model, state: State, order: np.ndarray, augmentation: Params
    ) -> Model:
        """Return model with the weights that a run evaluates after an epoch, on xp.

        They are its own, or their average.  Statistics tracked in the steps belong to neither an
        average nor weights that learn for other networks too: they are estimated anew, over the
        batches and the view of the epoch.
        """
        params = self.average.params() if self.average else self.own(state.params)
        if not (self.average or self.widening):
            return model._replace(params=params, stats=state.stats)
        xp, size = self.xp, self.config.batch_size
        augmentation = Params(*(xp.asarray(value) for value in augmentation))
        # the shuffled batches of training: clouds stored class by class would be normalised so
        batches = (
            self.inputs(xp.asarray(order[step * size : (step + 1) * size]), augmentation)
            for step in range(self.config.steps_per_epoch(len(order)))
        )
        stats = estimate(params, self.model, batches, self.config.engine, self.work)
        return model._replace(params=params, stats=stats)


def train(
    splits: Splits,
    model_config: Any,
    loss_config: LossConfig,
    config: TrainConfig,
    views: Callable[[int], tuple[Params, Any]],
    *,
    self_target: SelfTarget | None = None,
    xp: Any = np,
    threads: int | None = None,
    work: Workspace | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    resume: Checkpoint | None = None,
    groups: tuple | None = None,
    init: Model | None = None,
) -> Iterator[Epoch]:
    """Train a model: yield an Epoch after each of the config.epochs epochs.

    views: from drawn_views or recorded_views; self_target: needed if loss_config.self_weight > 0;
    work: a Workspace to share with the self target; progress(steps done, steps in all, text).
    groups: of the training and of the test clouds, as prepare() of the model returns them (None:
    made here).  init: a Model of the same sizes and the same kind of data to begin from, instead of
    weights drawn from the seed.  resume: the Checkpoint to continue from, whatever init is; train
    yields its Epoch first.  An epoch's model, of which its numbers are, has the weights that
    Task.to_measure() returns.  The caller may stop after any epoch.  The labelled test clouds are
    measured after every epoch and decide nothing.
    Nothing is checked before the first Epoch is requested: then UsageError for settings that cannot
    run, DataError for a checkpoint or init of other sizes or groups of other clouds; later
    MinipcError if the loss is not finite.
    """
    clouds = splits.train
    if config.val_fraction:
        check_splittable(clouds, "val fraction")
    learnt, held = split_rows(clouds.labels, config)
    labels = kept_labels(clouds, learnt, config, needed=loss_config.kd_weight == 0)
    if (loss_config.self_weight > 0) != (self_target is not None):
        raise UsageError("self weight: a self target and a weight above 0 go together")
    threads = worker_threads(xp, threads)
    groups, test_groups = (
        groups_of(model_config, split.points, given)
        for split, given in zip(splits, groups or (None, None), strict=True)
    )
    task = Task(
        xp.asarray(np.ascontiguousarray(clouds.points.swapaxes(1, 2))),
        xp.asarray(labels),
        tuple(xp.asarray(group) for group in groups),
        model_config,
        loss_config,
        config,
        self_target,
        work or Workspace(xp, threads),
        xp,
        averaging(config),
        NetworkAugmentation(model_config, config, xp, threads)
        if config.augment_width > 1
        else None,
    )
    model = new_model(model_config, clouds.described, config.seed)
    if init is not None:
        check_same_kind(clouds.described, init.described, "the training clouds", "init")
        check_same_sizes(init, model_config, "init")
        model = model._replace(params=init.params, stats=init.stats)
    model = model._replace(trained=_how(clouds, config, loss_config, xp))
    state, rows = task.start(model), []
    if resume is not None:
        state, rows = restored(resume, state, xp), resume.rows
        if self_target:
            self_target.load(resume.self_target, xp)
        current = model._replace(params=task.own(state.params), stats=state.stats)
        current = restored_average(current, task.average, resume.average, xp)
        test_logits = predict(current, splits.test.points, xp, threads, config.engine, test_groups)
        yield epoch_of(rows, current, state, self_target, task.average, test_logits)
    for epoch in range(len(rows), config.epochs):
        begun = time.perf_counter()
        order = learnt[stream(config.seed, "shuffle", epoch).permutation(len(learnt))]
        augmentation, recorded = views(epoch)
        state, means, lr = task.epoch(state, epoch, order, augmentation, recorded, progress)
        _check_finite(state, means, epoch)
        seconds = round(time.perf_counter() - begun, 3)

        current = task.to_measure(model, state, order, augmentation)
        if not task.average:  # a checkpoint keeps the statistics of an average beside it
            state = state._replace(stats=current.stats)
        row: dict[str, Any] = {"epoch": epoch + 1, "lr": lr, **means}
        if task.average:
            row["weights"] = config.average  # of all that follows
        test_logits = predict(current, splits.test.points, xp, threads, config.engine, test_groups)
        if len(held):
            row |= measured(
                "val",
                clouds.labels[held],
                predict(
                    current,
                    clouds.points[held],
                    xp,
                    threads,
                    config.engine,
                    tuple(group[held] for group in groups),
                ),
            )
        row |= measured("test", splits.test.labels, test_logits)
        rows = [*rows, {**row, "train_seconds": seconds}]
        yield epoch_of(rows, current, state, self_target, task.average, test_logits)


def _how(clouds: Clouds, config: TrainConfig, loss_config: LossConfig, xp: Any) -> dict[str, Any]:
    """Return what a model file stores about its training, except the number of epochs done."""
    return {
        "of_epochs": config.epochs,
        "training": asdict(config),
        "loss": asdict(loss_config),
        "made_with": provenance(xp),
        "points_hash": clouds.points_hash,
        "labels_hash": clouds.labels_hash,
        "points": clouds.points.shape[1],
    }


def _check_finite(state: State, means: dict[str, float], epoch: int) -> None:
    """Raise MinipcError unless an epoch's losses and its last parameters and stats are finite."""
    # the arrays too, because the last loss was computed before the last step
    arrays = (*state.params.values(), *state.stats.values())
    finite = all(isfinite(value) for value in means.values()) and all(
        bool(module_of(value).isfinite(value).all()) for value in arrays
    )
    if not finite:
        raise MinipcError(
            f"training: the loss is no longer finite in epoch {epoch + 1} ({means['total']}); "
            "start a new run with a lower --lr, or with the guard if it was off"
        )


def _dropout_mask(model_config: Any, config: TrainConfig, epoch: int, step: int) -> Any:
    """Return the mask of (M14) for one step, float32 on the host, or None without dropout."""
    rate = model_config.dropout
    if rate == 0:
        return None
    width = net(model_config).dropout_width(model_config)
    uniform = stream(config.seed, "dropout", epoch, step).random((config.batch_size, width))
    return (uniform >= rate).astype(np.float32) / np.float32(1 - rate)
