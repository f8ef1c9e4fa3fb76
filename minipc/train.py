"""Train a PointNet on labels, or on a record by exact replay; the teacher is never loaded.

Epoch e sees view e: drawn by the rule of a recording where there is no record, else view e mod V
of the record, its stored parameters applied to the same clouds in two rounded operations, so that
the student's input is bit for bit what the teacher saw.
"""

import time
from dataclasses import asdict, dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from minipc.augment import Params, apply, draw
from minipc.backend import default_threads, to_host, tree_to
from minipc.errors import MinipcError, UsageError
from minipc.evaluate import evaluate
from minipc.model_file import Model, new_model
from minipc.nn import optim
from minipc.nn.losses import LossTerms, loss_backward, loss_forward, smooth_labels
from minipc.nn.pointnet import backward, forward_train, track
from minipc.streams import check_seed, stream


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, from which seed."""

    epochs: int = 60
    batch_size: int = 32  # clouds; the last incomplete batch of an epoch is dropped
    lr: float = 3e-3  # largest learning rate, after the warm-up
    weight_decay: float = 1e-2  # on the weights of linear layers alone
    warmup_steps: int = 200  # linear, then cosine to zero
    optimiser: str = "adamw"  # or "sgd", with momentum 0.9
    clip_norm: float = 0.0  # largest joint 2-norm of the gradients; 0: no clipping
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name.replace('_', ' ')}: expected a positive integer, got {value!r}")
        if self.batch_size < 2:
            raise UsageError("batch size: batch norm in the head needs at least 2 clouds, got 1")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr: expected a positive number, got {self.lr!r}")
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name.replace('_', ' ')}: expected a value >= 0, got {getattr(self, name)!r}")
        if self.optimiser not in ("adamw", "sgd"):
            raise UsageError(f"optimiser: expected adamw or sgd, got {self.optimiser!r}")
        check_seed(self.seed)

    def steps_per_epoch(self, clouds):
        """Return the whole batches in this many clouds; UsageError where there is none."""
        if clouds < self.batch_size:
            raise UsageError(f"batch size: {self.batch_size} is more than the {clouds} training clouds; lower it")
        return clouds // self.batch_size


def drawn_views(clouds, seed, augment):
    """Return views(epoch) -> (Params, None): view e of every cloud, by the rule of a recording."""
    return lambda epoch: (draw(seed, epoch, 0, len(clouds), augment), None)


def recorded_views(reader, labels_only=False):
    """Return views(epoch) -> (Params, logits): view e mod V of an open RecordReader.

    With labels_only the same views come without logits, for a fair label-only student.
    """

    def views(epoch):
        scale, shift, logits = reader.view(epoch % reader.views)
        return Params(scale, shift), None if labels_only else logits

    return views


class Trained(NamedTuple):
    model: Model  # after the last epoch, on the host
    epochs: list  # a dict of numbers for each epoch, as in metrics.jsonl
    seconds: float


@np.errstate(over="ignore", invalid="ignore")  # what they would warn of ends in MinipcError below
def train(
    splits, model_config, loss_config, config, views, *,
    self_target=None, xp=np, threads=None, folder=None, progress=None, data_file=None,
):
    """Train a new model and return Trained.

    splits: data.clouds.Splits; views: as drawn_views or recorded_views return; self_target: see
    self_target.py, needed if loss_config.self_weight > 0; folder: a RunFolder or None; progress:
    called as progress(steps done, steps in all, text); data_file: a base name to write into the
    model as a hint for people.  The test split is measured after every
    epoch and chooses nothing.  Raises UsageError for settings that cannot run, MinipcError where
    the loss stops being finite.
    """
    clouds = splits.train
    steps = config.steps_per_epoch(len(clouds))
    if (loss_config.self_weight > 0) != (self_target is not None):
        raise UsageError("self weight: a self target and a weight above 0 go together")
    threads = threads or default_threads(xp)
    start = time.perf_counter()

    model = new_model(model_config, clouds.described, config.seed)
    params, stats = tree_to(xp, model.params), tree_to(xp, model.stats)
    state = (optim.adamw_start if config.optimiser == "adamw" else optim.sgd_start)(params)
    points, labels = xp.asarray(clouds.points), xp.asarray(clouds.labels)
    history = []

    for epoch in range(config.epochs):
        epoch_start = time.perf_counter()
        augmentation, logits = views(epoch)
        augmentation = Params(*(xp.asarray(value) for value in augmentation))
        logits = None if logits is None else xp.asarray(logits)
        order = stream(config.seed, "shuffle", epoch).permutation(len(clouds))
        sums = None
        for step in range(steps):
            done = epoch * steps + step
            lr = config.lr * optim.warmup_cosine(done, config.epochs * steps, config.warmup_steps)
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            on_device = xp.asarray(rows)

            x = apply(points[on_device], Params(*(value[on_device] for value in augmentation)))
            y = smooth_labels(labels[on_device], model_config.classes, loss_config.label_smoothing, x.dtype)
            v = None if logits is None else logits[on_device].astype(x.dtype)
            u, has_u = (self_target and self_target.target(rows, x)) or (None, None)

            mask = _dropout_mask(model_config, config, epoch, step, xp)
            z, batch, tape = forward_train(params, x, model_config, mask)
            terms, cache = loss_forward(z, y, v, u, has_u, loss_config)
            grads, _ = backward(loss_backward(cache), tape)

            if config.clip_norm:
                grads, _ = optim.clip_by_norm(grads, config.clip_norm)
            if config.optimiser == "adamw":
                params, state = optim.adamw_step(params, grads, state, lr, config.weight_decay)
            else:
                params, state = optim.sgd_step(params, grads, state, lr, config.weight_decay)
            stats = track(stats, batch, model_config)
            if self_target:
                self_target.seen(rows, z)
            sums = terms if sums is None else [total + term for total, term in zip(sums, terms)]
            if progress:
                progress(done + 1, config.epochs * steps, f"epoch {epoch + 1}/{config.epochs}")

        if self_target:
            self_target.epoch_ended(epoch, params)
        means = {name: float(total) / steps for name, total in zip(LossTerms._fields, sums)}
        # 0 x inf and 0 x NaN are NaN: the losses above were taken before the last step
        rest = sum(float((value * 0).sum()) for value in (*params.values(), *stats.values()))
        if not all(isfinite(value) for value in (*means.values(), rest)):
            raise MinipcError(
                f"training: the loss is no longer finite in epoch {epoch + 1} ({means['total']}); "
                "lower --lr, or keep the guard on if it was off"
            )
        train_seconds = time.perf_counter() - epoch_start
        live = model._replace(params=params, stats=stats)
        test = evaluate(live, splits.test, xp, threads)
        row = {
            "epoch": epoch + 1, "lr": lr, **means,
            "test_accuracy": test.accuracy, "test_mean_class_accuracy": test.mean_class_accuracy,
            "train_seconds": round(train_seconds, 3),
        }
        history.append(row)
        model = live._replace(
            params={name: to_host(value) for name, value in params.items()},
            stats={name: to_host(value) for name, value in stats.items()},
            trained={
                "epochs": epoch + 1, "of_epochs": config.epochs,
                "training": asdict(config), "loss": asdict(loss_config),
                "data_file": data_file, "points_hash": clouds.points_hash, "labels_hash": clouds.labels_hash,
            },
        )
        if folder:
            folder.epoch_ended(row, model)
    return Trained(model, history, time.perf_counter() - start)


def _dropout_mask(model_config, config, epoch, step, xp):
    """Return the mask of (M14) for one step, float32 on xp, or None without dropout."""
    rate = model_config.dropout
    if rate == 0:
        return None
    width = (model_config.head or model_config.shared)[-1]
    uniform = stream(config.seed, "dropout", epoch, step).random((config.batch_size, width))
    return xp.asarray((uniform >= rate).astype(np.float32) / np.float32(1 - rate))
