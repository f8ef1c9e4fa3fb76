"""PointNet for classification, without T-Nets: shared layers, max over points, head.

    points (B, N, 3) -> [linear, batch norm, relu] per point -> max -> [linear, batch norm, relu]
    -> dropout -> linear + bias -> logits (B, K)

(Qi et al. 2017, the "vanilla" form of section 5.2.)  A layer that batch norm follows has no bias,
since the mean would cancel it.  Training and evaluation are two functions; training returns the
tape that nn.engine.backward reads upwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import UsageError
from minipc.models.inputs import inputs_of
from minipc.nn import exact, ops
from minipc.nn.engine import Evaluator, Tape, engine_of, eval_norm_relu
from minipc.nn.params import (
    Spec,
    batch_norm_spec,
    batch_norm_stats,
    bias_spec,
    linear_spec,
    size_of,
)
from minipc.nn.widening import Channels

NAMED_SIZES = {  # name: (shared widths, head widths, dropout)
    "teacher": ((64, 64, 64, 128, 1024), (512, 256), 0.3),
    "student": ((32, 32, 64, 128), (64,), 0.0),
    "tiny": ((16, 16, 32, 64), (32,), 0.0),
}


def check_constants(config: Any) -> None:
    """Raise UsageError for classes, dropout, eps or momentum that a model cannot have."""
    if not isinstance(config.classes, int) or config.classes < 2:
        raise UsageError(f"model: expected at least 2 classes, got {config.classes!r}")
    if not 0 <= config.dropout < 1:
        raise UsageError(f"model: expected 0 <= dropout < 1, got {config.dropout!r}")
    if not (config.eps > 0 and 0 < config.momentum <= 1):
        raise UsageError(
            f"model: expected eps > 0 and 0 < momentum <= 1, got {config.eps!r}, "
            f"{config.momentum!r}"
        )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one PointNet and the constants of its batch norm."""

    architecture: ClassVar[str] = "pointnet"
    shared: tuple  # widths of the layers applied to every point
    head: tuple  # widths of the hidden layers after the pool, may be empty
    classes: int  # K
    dropout: float = 0.0  # rate before the output layer, training only
    eps: float = 1e-5  # added to the variance, batch norm
    momentum: float = 0.1  # weight of a new batch in the running statistics

    def __post_init__(self) -> None:
        widths = (*self.shared, *self.head)
        if not self.shared or any(not isinstance(w, int) or w < 1 for w in widths):
            raise UsageError(
                f"model: expected positive widths, at least one shared, got {self.shared}, "
                f"{self.head}"
            )
        check_constants(self)


def title(config: ModelConfig) -> str:
    """Return what people call a model of these sizes."""
    parts = (config.shared, config.head) if config.head else (config.shared,)
    return "PointNet " + ":".join("-".join(map(str, widths)) for widths in parts)


def sizes(text: str, classes: int) -> ModelConfig:
    """Return the ModelConfig of "teacher", "student", "tiny" or widths by hand, "W-W-W:H-H".

    Raises UsageError for anything else.
    """
    if text in NAMED_SIZES:
        shared, head, dropout = NAMED_SIZES[text]
        return ModelConfig(shared, head, classes, dropout)
    parts = text.partition(":")[::2]
    try:
        shared, head = (tuple(map(int, part.split("-"))) if part else () for part in parts)
    except ValueError:
        raise UsageError(
            f"model: expected {', '.join(NAMED_SIZES)} or widths such as 16-16-32-64:32, got "
            f"{text!r}"
        ) from None
    return ModelConfig(shared, head, classes)


class Layer(NamedTuple):
    name: str
    fan_in: int
    fan_out: int


def column(name: str, widths: Sequence[int]) -> list[Layer]:
    """Return the Layers between widths, numbered."""
    return [Layer(f"{name}{i}", *pair) for i, pair in enumerate(pairwise(widths))]


def _layers(config: ModelConfig) -> tuple[list[Layer], list[Layer], Layer]:
    """Return (shared, head, output) as Layers, the one place where widths become names."""
    widths = (config.shared[-1], *config.head)
    out = Layer("out", widths[-1], config.classes)
    return column("shared", (3, *config.shared)), column("head", widths), out


def param_specs(config: ModelConfig) -> dict[str, Spec]:
    """Return {dotted name: Spec} of every parameter, in the order of the forward."""
    shared, head, out = _layers(config)
    specs: dict = {}
    for name, fan_in, fan_out in (*shared, *head):
        specs |= linear_spec(name, fan_in, fan_out) | batch_norm_spec(name, fan_out)
    return specs | linear_spec(*out) | bias_spec(out.name, out.fan_out)


def initial_stats(config: ModelConfig, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Return the running statistics of a new model: {name.mean: zeros, name.var: ones}."""
    shared, head, _ = _layers(config)
    stats: dict = {}
    for name, _, fan_out in (*shared, *head):
        stats |= batch_norm_stats(name, fan_out, dtype)
    return stats


class Count(NamedTuple):
    parameters: int
    macs: int  # multiply-adds of the affine maps for one cloud, batch norm folded


def count(config: ModelConfig, points: int) -> Count:
    """Return Count for clouds of this many points."""
    shared, head, out = _layers(config)
    per_point = sum(layer.fan_in * layer.fan_out for layer in shared)
    per_cloud = sum(layer.fan_in * layer.fan_out for layer in (*head, out))
    return Count(size_of(param_specs(config)), points * per_point + per_cloud)


def prepare(config: ModelConfig, points: Any) -> tuple:
    """Return the groups of clouds (B, N, 3): a PointNet has none."""
    return ()


def grouping(config: ModelConfig) -> list:
    """Return what groups depend on: there are none."""
    return []


def widths(config: ModelConfig) -> tuple[int, ...]:
    """Return every width that may be another one, in the order of the forward."""
    return (*config.shared, *config.head)


def with_widths(config: ModelConfig, widths: Sequence[int]) -> ModelConfig:
    """Return config with these widths in place of widths(config)."""
    shared = len(config.shared)
    return replace(config, shared=tuple(widths[:shared]), head=tuple(widths[shared:]))


def channels(config: ModelConfig) -> dict[str, Channels]:
    """Return {layer: Channels}: no two parts lie side by side."""
    shared, head, out = _layers(config)
    return {name: Channels((i,), (o,)) for name, i, o in (*shared, *head, out)}


def pooled_layers(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the layers whose maximum over points is taken."""
    return (f"shared{len(config.shared) - 1}",)


def dropout_width(config: ModelConfig) -> int:
    """Return the width of the array that dropout masks, the input of the output layer."""
    return (*config.shared, *config.head)[-1]


def forward_train(
    params: dict,
    inputs: Any,
    config: ModelConfig,
    mask: Any = None,
    engine: Any = "fused",
    work: Any = None,
) -> tuple[Any, dict, Tape]:
    """Return logits (B, K), {layer: BatchStats} and the tape, with batch statistics.

    inputs: points (B, N, 3) or Inputs; B >= 2 if the head has batch norm.  mask (B, dropout_width)
    as in (M14), None for no dropout.  Neither params nor running statistics change (see
    model.track).  engine: "fused" or "textbook" (nn/engine.py).  work: the Workspace of a run,
    whose next forward_train overwrites this tape; without it the fast engine makes one.
    """
    points = inputs_of(inputs).points
    engine = engine_of(engine, work, points, *params.values())
    (*shared, pooled), head, out = _layers(config)
    tape = Tape(params, config.eps)
    x = engine.enter(tape, points, config.shared[:-1])
    for layer in shared:
        x = engine.shared(tape, x, layer.name)  # (B, N, O)
    x = engine.pooled(tape, x, pooled.name)  # (B, O)
    for layer in head:
        x = engine.dense(tape, x, layer.name)
    if mask is not None:
        x = tape.push(ops.dropout_forward(x, mask), ops.dropout_backward)
    return engine.output(tape, x, out.name), tape.batch, tape


def evaluator(params: dict, stats: dict, config: ModelConfig, engine: Any = "fused") -> Evaluator:
    """Return logits_of(inputs), what a finished model computes: running statistics, no dropout.

    logits_of takes points (B, N, 3) or Inputs and returns logits (B, K).  A cloud has the same bits
    alone as in any batch: each layer before the pool is one BLAS product per cloud, and the head's
    sums are exact.  Constants are computed here, once.  Threads may share logits_of.
    """
    engine = engine_of(engine, None, *params.values(), *stats.values())
    shared, head, out = _layers(config)
    norms = {
        layer.name: (
            params[f"{layer.name}.gamma"],
            params[f"{layer.name}.beta"],
            stats[f"{layer.name}.mean"],
            stats[f"{layer.name}.var"],
        )
        for layer in (*shared, *head)
    }
    pooled = engine.eval_entry(
        [(params[f"{layer.name}.W"], *norms[layer.name]) for layer in shared], config.eps
    )
    factors = {layer.name: exact.factor(params[f"{layer.name}.W"]) for layer in (*head, out)}
    b = params[f"{out.name}.b"]

    def features(inputs: Any) -> Any:
        points = inputs_of(inputs).points
        module_of(points, b)
        return pooled(points)

    def logits(x: Any) -> Any:
        for layer in head:
            x = exact.product(x, factors[layer.name])
            x = eval_norm_relu(x, norms[layer.name], config.eps)
        return ops.bias_forward(exact.product(x, factors[out.name]), b)[0]

    return Evaluator(features, logits, engine.work)


def forward_eval(
    params: dict,
    stats: dict,
    inputs: Any,
    config: ModelConfig,
    engine: Any = "fused",
) -> Any:
    """Return the logits (B, K) of points (B, N, 3) by an evaluator used only once."""
    return evaluator(params, stats, config, engine)(inputs)
