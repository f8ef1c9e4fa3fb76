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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minipc.backend import default_threads, module_of, to_host, tree_to
from minipc.data.augment import Params, apply, draw
from minipc.data.clouds import stratified
from minipc.distil.augmentation import Augmentation
from minipc.distil.evaluate import metrics, predict
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.checkpoint import Checkpoint
from minipc.models.file import Model, new_model
from minipc.models.inputs import Inputs
from minipc.models.model import groups_of, net, track
from minipc.nn import optim
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


class Epoch(NamedTuple):
    """The state of a training after an epoch, in arrays on the host that no later epoch changes.

    Weights and moments are copies, because the fast engine and its optimiser write the next step
    into the same arrays.
    """

    rows: list  # one dict of numbers for each epoch so far, as in metrics.jsonl
    model: Model
    params: dict  # that learn: the model's, or with network augmentation those of the largest
    steps: int  # of the optimiser, so far
    moments: dict  # of the optimiser, {"m.name": array}
    self_target: dict  # what SelfTarget.state() returned
    test_logits: np.ndarray  # (M, K) float32, for the M test clouds

    def checkpoint(self, run_id: str) -> Checkpoint:
        """Return the Checkpoint from which the run with this identity can be resumed."""
        return Checkpoint(
            run_id,
            self.rows,
            self.steps,
            self.params,
            self.model.stats,
            self.moments,
            self.self_target,
        )


def best_epoch(rows: list[dict]) -> int | None:
    """Return the index of the first epoch of the best validation accuracy, None without one."""
    if not rows or "val_accuracy" not in rows[0]:
        return None
    return max(range(len(rows)), key=lambda epoch: rows[epoch]["val_accuracy"])


class State(NamedTuple):
    """What every step changes."""

    params: dict  # of the model, or with network augmentation of the largest network
    stats: dict  # of the model
    optimiser: Any  # optim.AdamWState or SgdState


@dataclass(frozen=True)
class Task:
    """What stays the same during a run; arrays belong to module xp."""

    # (N, 3, P): the order of axes in which augmentation and the fast engine read memory
    points: Any
    labels: Any  # (N,)
    groups: tuple  # of all N clouds, as prepare() of the model returns them
    model: Any  # the config of a model, see models/model.py
    loss: LossConfig
    config: TrainConfig
    self_target: SelfTarget | None
    work: Workspace
    xp: Any
    augmentation: Augmentation | None = None

    def own(self, params: dict) -> dict:
        """Return the model's parameters, from those of a State."""
        return take(params, self.augmentation.own) if self.augmentation else params

    def start(self, model: Model) -> State:
        """Return the State before the first step; steps may write into its arrays."""
        params = {name: value.copy() for name, value in tree_to(self.xp, model.params).items()}
        if self.augmentation:
            params = self.augmentation.start(params)
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
        xp, config = self.xp, self.config
        sums: dict[str, Any] = {}
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
            state, numbers = self.step(state, rows, augmentation, logits, mask, lr, (epoch, step))
            sums = (
                {name: sums[name] + value for name, value in numbers.items()} if sums else numbers
            )
            if progress:
                progress(done + 1, config.epochs * steps, f"epoch {epoch + 1}/{config.epochs}")
        if self.self_target:
            self.self_target.epoch_ended(epoch, self.own(state.params))
        if self.augmentation:
            batches = xp.asarray(order[: steps * config.batch_size].reshape(steps, -1))
            inputs = (self.inputs(rows, augmentation) for rows in batches)
            stats = self.augmentation.statistics(state.params, state.stats, inputs)
            state = state._replace(stats=stats)
        return state, {name: float(total) / steps for name, total in sums.items()}, lr

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
        on_device = self.xp.asarray(rows)

        inputs = self.inputs(on_device, augmentation)
        x = inputs.points
        y = smooth_labels(
            self.labels[on_device], self.model.classes, self.loss.label_smoothing, x.dtype
        )
        v = None if logits is None else logits[on_device].astype(x.dtype)
        u, has_u = (target and target.target(rows, inputs)) or (None, None)

        z, batch, tape = net(self.model).forward_train(
            self.own(params), inputs, self.model, mask, config.engine, self.work
        )
        terms, cache = loss_forward(z, y, v, u, has_u, self.loss)
        grads, _ = backward(loss_backward(cache), tape)
        if self.augmentation:  # a widened network has no earlier self

            def of_logits(wide: Any) -> Any:
                return loss_backward(loss_forward(wide, y, v, None, None, self.loss)[1])

            grads = self.augmentation.gradients(params, grads, inputs, of_logits, *at)

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
            target.stepped(rows, z, self.own(params))

        numbers = terms._asdict()
        if v is not None:
            numbers["teacher_agreement"] = (z.argmax(axis=1) == v.argmax(axis=1)).mean(
                dtype=z.dtype
            )
        return State(params, stats, optimiser), numbers

    def inputs(self, rows: Any, augmentation: Params) -> Inputs:
        """Return what the network reads of the clouds in rows, indices on xp."""
        points = self.points[rows].swapaxes(1, 2)
        x = apply(points, Params(*(value[rows] for value in augmentation)))
        return Inputs(x, tuple(group[rows] for group in self.groups))


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
) -> Iterator[Epoch]:
    """Train a model: yield an Epoch after each of the config.epochs epochs.

    views: from drawn_views or recorded_views; self_target: needed if loss_config.self_weight > 0;
    work: a Workspace to share with the self target; progress(steps done, steps in all, text).
    groups: of the training and of the test clouds, as prepare() of the model returns them (None:
    made here).  resume: the Checkpoint to continue from; train yields its Epoch first.  The caller
    may stop after any epoch.  The test split is measured after every epoch and decides nothing.
    Nothing is checked before the first Epoch is requested: then UsageError for settings that cannot
    run, DataError for a checkpoint of other sizes or groups of other clouds; later MinipcError if
    the loss is not finite.
    """
    clouds = splits.train
    learnt, held = split_rows(clouds.labels, config)
    if (loss_config.self_weight > 0) != (self_target is not None):
        raise UsageError("self weight: a self target and a weight above 0 go together")
    threads = threads or default_threads(xp)
    groups, test_groups = (
        groups_of(model_config, split.points, given)
        for split, given in zip(splits, groups or (None, None), strict=True)
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
        Augmentation(model_config, config, xp, threads) if config.augment_width > 1 else None,
    )
    model = new_model(model_config, clouds.described, config.seed)
    model = model._replace(trained=_how(clouds, config, loss_config, xp))
    state, rows = task.start(model), []
    if resume is not None:
        state, rows = _restored(resume, state, xp), resume.rows
        if self_target:
            self_target.load(resume.self_target, xp)
        live = model._replace(params=task.own(state.params), stats=state.stats)
        test_logits = predict(live, splits.test.points, xp, threads, config.engine, test_groups)
        yield _after(rows, live, state, self_target, test_logits)
    for epoch in range(len(rows), config.epochs):
        begun = time.perf_counter()
        order = learnt[stream(config.seed, "shuffle", epoch).permutation(len(learnt))]
        state, means, lr = task.epoch(state, epoch, order, *views(epoch), progress)
        _check_finite(state, means, epoch)
        seconds = round(time.perf_counter() - begun, 3)

        live = model._replace(params=task.own(state.params), stats=state.stats)
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
        yield _after(rows, live, state, self_target, test_logits)


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


def _after(
    rows: list[dict],
    model: Model,
    state: State,
    self_target: SelfTarget | None,
    test_logits: np.ndarray,
) -> Epoch:
    """Return the Epoch that ended in state; model: with its own arrays of this state."""
    same = model.params is state.params
    model = model._replace(
        params=_copied(model.params),
        stats=_copied(state.stats),
        trained={"epochs": len(rows), **model.trained},
    )
    target = self_target.state() if self_target else {}
    moments = _copied(_moments(state.optimiser))
    params = model.params if same else _copied(state.params)
    return Epoch(rows, model, params, state.optimiser.step, moments, target, test_logits)


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


def _measured(split: str, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the numbers of one split for a row of metrics."""
    values = metrics(labels, logits)._asdict()
    return {f"{split}_{name}": value for name, value in values.items() if name != "confusion"}


def _copied(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return copies of arrays, on the host."""
    return {name: to_host(value).copy() for name, value in arrays.items()}


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in arrays.items()}


def _moments(optimiser: Any) -> dict[str, Any]:
    """Return the arrays of an optimiser's state as {"moment.name": array}."""
    return {
        f"{moment}.{name}": value
        for moment, arrays in optimiser._asdict().items()
        if moment != "step"
        for name, value in arrays.items()
    }


def _restored(checkpoint: Checkpoint, fresh: State, xp: Any) -> State:
    """Return the State of a Checkpoint on xp; a fresh State gives the expected names and shapes."""
    for expected, stored in (
        (fresh.params, checkpoint.params),
        (fresh.stats, checkpoint.stats),
        (_moments(fresh.optimiser), checkpoint.optimiser),
    ):
        if _shapes(stored) != _shapes(expected):
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
    # in the order of the model, because files are written in this order
    params, stats = (
        {name: xp.asarray(stored[name]).copy() for name in expected}
        for expected, stored in ((fresh.params, checkpoint.params), (fresh.stats, checkpoint.stats))
    )
    return State(params, stats, type(fresh.optimiser)(step=checkpoint.steps, **moments))


def _dropout_mask(model_config: Any, config: TrainConfig, epoch: int, step: int, xp: Any) -> Any:
    """Return the mask of (M14) for one step, float32 on xp, or None without dropout."""
    rate = model_config.dropout
    if rate == 0:
        return None
    width = net(model_config).dropout_width(model_config)
    uniform = stream(config.seed, "dropout", epoch, step).random((config.batch_size, width))
    return xp.asarray((uniform >= rate).astype(np.float32) / np.float32(1 - rate))
