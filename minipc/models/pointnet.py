"""PointNet for classification, without T-Nets: shared layers, max over points, head.

    points (B, N, 3) -> [linear, batch norm, relu] per point -> max -> [linear, batch norm, relu]
    -> dropout -> linear + bias -> logits (B, K)

(Qi et al. 2017, the "vanilla" form of section 5.2.)  A layer that batch norm follows has no bias,
since the mean would cancel it.  Training and evaluation are two functions; training returns a
tape, the list of (backward, cache, parameter names) in the order of the forward, and backward
reads it upwards.  It is not autograd: no graph, no tracing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import UsageError, check_shape
from minipc.nn import exact, ops
from minipc.nn.fast import fused
from minipc.nn.fast.workspace import Workspace
from minipc.nn.params import batch_norm_spec, bias_spec, linear_spec

ENGINES = ("fused", "textbook")

NAMED_SIZES = {  # name: (shared widths, head widths, dropout)
    "teacher": ((64, 64, 64, 128, 1024), (512, 256), 0.3),
    "student": ((32, 32, 64, 128), (64,), 0.0),
    "tiny": ((16, 16, 32, 64), (32,), 0.0),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one PointNet and the constants of its batch norm."""

    shared: tuple  # widths of the layers applied to every point
    head: tuple  # widths of the hidden layers after the pool, may be empty
    classes: int  # K
    dropout: float = 0.0  # rate before the output layer, training only
    eps: float = 1e-5  # added to the variance, batch norm
    momentum: float = 0.1  # weight of a new batch in the running statistics

    def __post_init__(self):
        widths = (*self.shared, *self.head)
        if not self.shared or any(not isinstance(w, int) or w < 1 for w in widths):
            raise UsageError(
                f"model: expected positive widths, at least one shared, got {self.shared}, "
                f"{self.head}"
            )
        if not isinstance(self.classes, int) or self.classes < 2:
            raise UsageError(f"model: expected at least 2 classes, got {self.classes!r}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"model: expected 0 <= dropout < 1, got {self.dropout!r}")
        if not (self.eps > 0 and 0 < self.momentum <= 1):
            raise UsageError(
                f"model: expected eps > 0 and 0 < momentum <= 1, got {self.eps!r}, "
                f"{self.momentum!r}"
            )


def sizes(text, classes):
    """Return the ModelConfig of "teacher", "student", "tiny" or widths by hand, "W-W-W:H-H".

    Raises UsageError for anything else.
    """
    if text in NAMED_SIZES:
        shared, head, dropout = NAMED_SIZES[text]
        return ModelConfig(shared, head, classes, dropout)
    shared, _, head = text.partition(":")
    try:
        widths = [tuple(int(w) for w in part.split("-")) if part else () for part in (shared, head)]
    except ValueError:
        raise UsageError(
            f"model: expected {', '.join(NAMED_SIZES)} or widths such as 16-16-32-64:32, got "
            f"{text!r}"
        ) from None
    return ModelConfig(*widths, classes)


def check_engine(engine):
    """Raise UsageError for a name that is not an engine's."""
    if engine not in ENGINES:
        raise UsageError(f"engine: expected {' or '.join(ENGINES)}, got {engine!r}")


class Layer(NamedTuple):
    name: str
    fan_in: int
    fan_out: int


def _layers(config):
    """Return (shared, head, output) as Layers, the one place where widths become names."""
    shared = [
        Layer(f"shared{i}", *pair) for i, pair in enumerate(zip((3, *config.shared), config.shared))
    ]
    head_widths = (config.shared[-1], *config.head)
    head = [Layer(f"head{i}", *pair) for i, pair in enumerate(zip(head_widths, config.head))]
    return shared, head, Layer("out", head_widths[-1], config.classes)


def param_specs(config):
    """Return {dotted name: Spec} of every parameter, in the order of the forward."""
    shared, head, out = _layers(config)
    specs = {}
    for name, fan_in, fan_out in (*shared, *head):
        specs |= linear_spec(name, fan_in, fan_out) | batch_norm_spec(name, fan_out)
    return specs | linear_spec(*out) | bias_spec(out.name, out.fan_out)


def initial_stats(config, dtype=np.float32):
    """Return the running statistics of a new model: {name.mean: zeros, name.var: ones}."""
    shared, head, _ = _layers(config)
    stats = {}
    for name, _, fan_out in (*shared, *head):
        stats[f"{name}.mean"] = np.zeros(fan_out, dtype)
        stats[f"{name}.var"] = np.ones(fan_out, dtype)
    return stats


class Count(NamedTuple):
    parameters: int
    macs: int  # multiply-adds of the affine maps for one cloud, batch norm folded


def count(config, points):
    """Return Count for clouds of this many points."""
    shared, head, out = _layers(config)
    parameters = sum(int(np.prod(spec.shape)) for spec in param_specs(config).values())
    per_point = sum(layer.fan_in * layer.fan_out for layer in shared)
    per_cloud = sum(layer.fan_in * layer.fan_out for layer in (*head, out))
    return Count(parameters, points * per_point + per_cloud)


def forward_train(params, points, config, mask=None, engine="fused", work=None):
    """Return logits (B, K), {layer: BatchStats} and the tape, with batch statistics.

    points (B, N, 3), B >= 2 wherever the head has batch norm; mask (B, last width) for dropout as
    in (M14), None for no dropout.  params is not changed and statistics are not tracked.  engine:
    "fused" (fused.py) or "textbook" (ops.py alone).  work: the Workspace of a run, whose next
    forward_train may write over this tape; without it the fast engine makes one.
    """
    check_shape("points", points, (None, None, 3))
    check_engine(engine)
    shared, head, out = _layers(config)
    tape, batch = [], {}
    if engine == "fused":
        work = work or Workspace(module_of(points, *params.values()))

    def record(result, op_backward, *names):
        """Put one operation on the tape and return its output."""
        y, cache = result
        tape.append((op_backward, cache, names))
        return y

    def linear(x, name):
        W = f"{name}.W"
        if engine == "textbook":
            return record(ops.linear_forward(x, params[W]), ops.linear_backward, W)
        return record(fused.linear_forward(x, params[W], work, name), fused.linear_backward, W)

    def layer(x, name):
        x = linear(x, name)
        gamma, beta = f"{name}.gamma", f"{name}.beta"
        *result, batch[name] = ops.batch_norm_forward(x, params[gamma], params[beta], config.eps)
        x = record(result, ops.batch_norm_backward, gamma, beta)
        return record(ops.relu_forward(x), ops.relu_backward)

    x = points
    if engine == "textbook":
        for name, _, _ in shared:
            x = layer(x, name)  # (B, N, O)
        x = record(ops.point_max_forward(x), ops.point_max_backward)  # (B, O)
    else:
        x = fused.enter(points, config.shared[:-1], work)
        for name, _, _ in shared:
            last = name == shared[-1].name
            pair = (
                (fused.pooled_forward, fused.pooled_backward)
                if last
                else (fused.shared_forward, fused.shared_backward)
            )
            names = [f"{name}.{part}" for part in ("W", "gamma", "beta")]
            *result, batch[name] = pair[0](x, *(params[each] for each in names), config.eps, name)
            x = record(result, pair[1], *names)
    for name, _, _ in head:
        x = layer(x, name)
    if mask is not None:
        x = record(ops.dropout_forward(x, mask), ops.dropout_backward)
    x = linear(x, out.name)
    logits = record(
        ops.bias_forward(x, params[f"{out.name}.b"]), ops.bias_backward, f"{out.name}.b"
    )
    return logits, batch, tape


def backward(dlogits, tape):
    """Return {name: gradient} with the names of params, and dpoints (B, N, 3).

    Of the fast engine, whose tape can be read once, dpoints is a fused.Gradient: training does
    not need it, and fused.leave() multiplies it out.
    """
    grads, d = {}, dlogits
    for op_backward, cache, names in reversed(tape):
        if names:
            d, *dparams = op_backward(d, cache)
            grads |= zip(names, dparams)
        else:
            d = op_backward(d, cache)
    return grads, d


def track(stats, batch, config):
    """Return running statistics moved towards those of one batch.  (M9)"""
    moved = {}
    for name, layer_batch in batch.items():
        moved[f"{name}.mean"], moved[f"{name}.var"] = ops.track(
            stats[f"{name}.mean"], stats[f"{name}.var"], layer_batch, config.momentum
        )
    return moved


def evaluator(params, stats, config, engine="fused"):
    """Return logits_of(points), what a finished model computes: running statistics, no dropout.

    logits_of takes points (B, N, 3) and returns logits (B, K), the same bits for a cloud alone and
    at any place among any others: the layers before the pool are a product of BLAS for each cloud,
    and the head's sums are exact.  Constants are computed here, once.  Threads may share it.
    """
    check_engine(engine)
    xp = module_of(*params.values(), *stats.values())
    shared, head, out = _layers(config)

    def constants(name):
        return (
            params[f"{name}.gamma"],
            params[f"{name}.beta"],
            stats[f"{name}.mean"],
            stats[f"{name}.var"],
        )

    def norm_relu(x, name):
        x, _ = ops.batch_norm_eval_forward(x, *constants(name), config.eps)
        return ops.relu_forward(x)[0]

    factors = {name: exact.factor(params[f"{name}.W"]) for name, _, _ in (*head, out)}
    if engine == "fused":
        maps = fused.eval_maps(
            [(params[f"{name}.W"], *constants(name)) for name, _, _ in shared], config.eps
        )
        work = Workspace(xp)

    def logits_of(points):
        module_of(points, params[f"{out.name}.b"])
        check_shape("points", points, (None, None, 3))
        if engine == "fused":
            x = fused.shared_eval(points, maps, work)
        else:
            x = xp.ascontiguousarray(
                points
            )  # a product can round otherwise where memory is walked otherwise
            for name, _, _ in shared:
                x = norm_relu(ops.linear_forward(x, params[f"{name}.W"])[0], name)
            x = x.max(axis=1)  # (M12) without the search for who won, which only a backward needs
        for name, _, _ in head:
            x = norm_relu(exact.product(x, factors[name]), name)
        return ops.bias_forward(exact.product(x, factors[out.name]), params[f"{out.name}.b"])[0]

    return logits_of


def forward_eval(params, stats, points, config, engine="fused"):
    """Return the logits (B, K) of points (B, N, 3) by an evaluator made for them alone."""
    return evaluator(params, stats, config, engine)(points)
