"""PointNet++ for classification: a PointNet of every neighbourhood, level after level.

    points -> [point-wise layers] -> level: groups of neighbours -> shared layers -> max of each
    group -> next level ...
    -> [positions ; features] of the last centres -> shared layers -> max -> head

(Qi et al. 2017b, set abstraction; neighbours are found on the stored cloud, nearest first.)  A
level may have several scales, whose features are concatenated, and a residual point-wise layer
behind it.  As in PointNet, a layer that batch norm follows has no bias: with biases, as published
code has them, pointnet2 would have 3,328 parameters more, 1,475,688, and pointnet2-msg 4,512 more,
1,747,368.

A model by hand is one text, "16,512/24:32+,128/24:48+,32/16:48+,96+mean:48": a point-wise layer of
16; 512 centres with their 24 nearest points and rows of one layer of 32, "+" a residual layer; ...;
last layer of 96, maximum and mean, head of 48.  "0.2x32" in place of "24": the nearest, at most 32,
in a ball of radius 0.2; several scales are separated by "/".  "24by16": their offsets times 16, so
that short ones weigh as much as features do; a power of two, which rounds nothing.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import UsageError
from minipc.models.inputs import inputs_of
from minipc.models.pointnet import Count, Layer, check_constants, column
from minipc.nn import exact, local, ops
from minipc.nn.engine import Evaluator, Tape, engine_of, eval_norm_relu
from minipc.nn.fast.workspace import Workspace
from minipc.nn.groups import Scale, farthest_points, neighbours
from minipc.nn.levels import ENGINES, Near
from minipc.nn.params import (
    Spec,
    batch_norm_spec,
    batch_norm_stats,
    bias_spec,
    linear_spec,
    size_of,
)
from minipc.nn.widening import Channels

NAMED_SIZES = {  # name: (text by hand, dropout)
    "pointnet2": (
        "512/0.2x32:64-64-128,128/0.4x64:128-128-256,256-512-1024:512-256",
        0.4,
    ),
    "pointnet2-msg": (
        "512/0.1x16:32-32-64/0.2x32:64-64-128/0.4x128:64-96-128,"
        "128/0.2x32:64-64-128/0.4x64:128-128-256/0.8x128:128-128-256,256-512-1024:512-256",
        0.4,
    ),
    "local-teacher": ("48,512/24by32:96+,128/24by16:192+,32/16by8:192+,384+mean:192", 0.5),
    "local-student": ("16,512/24by32:32+,128/24by16:48+,32/16by8:48+,96+mean:48", 0.0),
    "local-tiny": ("8,512/24by32:16+,128/24by16:24+,32/16by8:24+,48+mean:24", 0.0),
}


class Level(NamedTuple):
    """One level of a model, as its text says."""

    centres: int  # M
    scales: tuple  # of (Scale, widths of the rows' layers)
    residual: bool  # whether a residual point-wise layer follows
    times: tuple  # of each scale: what its offsets are multiplied by


def _level(text: str) -> Level:
    """Return the Level of "512/24:32+" or "512/0.1x16:32-64/0.2x32:64-128"."""
    centres, *scales = text.removesuffix("+").split("/")
    parsed, times = [], []
    for scale in scales:
        near, widths = scale.split(":")
        near, by, factor = near.partition("by")
        times.append(_factor(factor) if by else 1)
        radius, x, members = near.rpartition("x")
        parsed.append((Scale(_whole(members), _radius(radius) if x else 0.0), _widths(widths)))
    if not parsed:
        raise ValueError(text)
    return Level(_whole(centres), tuple(parsed), text.endswith("+"), tuple(times))


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_whole(width) for width in text.split("-"))


def _whole(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):  # int() takes more: spaces, signs, "1_000"
        raise ValueError(text)
    return int(text)


def _factor(text: str) -> int:
    factor = _whole(text)
    if factor == 1 or factor & (factor - 1):
        raise ValueError(text)
    return factor


def _radius(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or float(text) == 0:
        raise ValueError(text)
    return float(text)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one PointNet++ and the constants of its batch norm."""

    architecture: ClassVar[str] = "pointnet2"
    entry: tuple  # widths of point-wise layers before the first level, may be empty
    levels: tuple  # of texts, "512/0.2x32:64-64-128": the module's docstring
    last: tuple  # widths of the layers over the last centres
    mean: bool  # whether the mean over the last centres joins the maximum
    head: tuple  # widths of the hidden layers after the pool, may be empty
    classes: int  # K
    dropout: float = 0.0  # rate before the output layer, training only
    eps: float = 1e-5  # added to the variance, batch norm
    momentum: float = 0.1  # weight of a new batch in the running statistics

    def __post_init__(self) -> None:
        widths = (*self.entry, *self.last, *self.head)
        if not self.last or any(not isinstance(w, int) or w < 1 for w in widths):
            raise UsageError(
                f"model: expected positive widths, at least one last, got {self.entry}, "
                f"{self.last}, {self.head}"
            )
        if not self.levels:
            raise UsageError("model: expected at least one level; a PointNet has none")
        centres = [level.centres for level in self.parsed]
        if any(above > below for below, above in pairwise(centres)):
            raise UsageError(f"model: expected fewer centres level by level, got {centres}")
        if not isinstance(self.mean, bool):
            raise UsageError(f"model: expected mean true or false, got {self.mean!r}")
        check_constants(self)

    @property
    def parsed(self) -> list[Level]:
        """The Levels of the texts.  Raises UsageError."""
        try:
            return [_level(text) for text in self.levels]
        except (ValueError, AttributeError):
            raise UsageError(
                "model: expected levels such as 512/24:32+, 512/24by16:32+ (offsets times 16, a "
                f"power of two) or 512/0.2x32:64-64-128, got {', '.join(map(str, self.levels))}"
            ) from None


def title(config: ModelConfig) -> str:
    """Return what people call a model of these sizes."""
    return f"PointNet++ {_text(config)}"


def _text(config: ModelConfig) -> str:
    """Return a config as sizes() reads it."""
    parts = ["-".join(map(str, config.entry))] if config.entry else []
    last = "-".join(map(str, config.last)) + ("+mean" if config.mean else "")
    head = f":{'-'.join(map(str, config.head))}" if config.head else ""
    return ",".join([*parts, *config.levels, last + head])


def sizes(text: str, classes: int) -> ModelConfig:
    """Return the ModelConfig of a name, of a name and a divisor of its hidden widths (rounded
    down, at least 1), such as pointnet2/8, or of a text by hand.  Raises UsageError for anything
    else.
    """
    name, slash, divisor = text.partition("/")
    if name not in NAMED_SIZES:
        return _by_hand(text, classes)
    by_hand, dropout = NAMED_SIZES[name]
    if slash and not re.fullmatch("[1-9][0-9]?", divisor):
        raise UsageError(f"model: expected {name}/2 to {name}/99, got {text!r}")
    config = replace(_by_hand(by_hand, classes), dropout=dropout)
    if not slash:
        return config
    narrow = [max(width // int(divisor), 1) for width in widths(config)]
    # a tiny network fits too little rather than too much
    return replace(with_widths(config, narrow), dropout=0.0)


def _by_hand(text: str, classes: int) -> ModelConfig:
    *parts, last = text.split(",")
    levels = tuple(part for part in parts if "/" in part)
    last, _, head = last.partition(":")
    try:
        entry = parts[: len(parts) - len(levels)]
        if len(entry) > 1 or (*entry, *levels) != tuple(parts):
            raise ValueError(text)
        widths_of_entry = _widths(entry[0]) if entry else ()
        widths = _widths(last.removesuffix("+mean"))
        heads = _widths(head) if head else ()
    except ValueError:
        raise UsageError(
            f"model: expected {', '.join(NAMED_SIZES)}, one of them with a divisor such as "
            f"pointnet2/8, or a text such as {NAMED_SIZES['local-student'][0]}, got {text!r}"
        ) from None
    return ModelConfig(widths_of_entry, levels, widths, last.endswith("+mean"), heads, classes)


def widths(config: ModelConfig) -> tuple[int, ...]:
    """Return every width that may be another one, in the order of the forward."""
    of_levels = [width for level in config.parsed for _, some in level.scales for width in some]
    return (*config.entry, *of_levels, *config.last, *config.head)


def with_widths(config: ModelConfig, widths: Sequence[int]) -> ModelConfig:
    """Return config with these widths in place of widths(config)."""
    each = iter(widths)

    def next_of(old: tuple) -> tuple:
        return tuple(islice(each, len(old)))

    return replace(
        config,
        entry=next_of(config.entry),
        levels=tuple(
            re.sub("(?<=[:-])[0-9]+", lambda _: str(next(each)), text) for text in config.levels
        ),
        last=next_of(config.last),
        head=next_of(config.head),
    )


class Layers(NamedTuple):
    """All layers of a model, the one place where texts become names."""

    entry: list  # of Layer
    levels: list  # for each level: ([Layers of a scale, ...], [its residual Layer, if any])
    last: list
    head: list
    out: Layer

    @property
    def normed(self) -> list[Layer]:
        """Every Layer that batch norm follows, in the order of the forward."""
        of_levels = [
            layer
            for scales, residual in self.levels
            for layers in (*scales, residual)
            for layer in layers
        ]
        return [*self.entry, *of_levels, *self.last, *self.head]


def _layers(config: ModelConfig) -> Layers:
    entry = column("entry", (3, *config.entry))
    channels, levels = (config.entry or (0,))[-1], []
    for i, level in enumerate(config.parsed):
        scales = [
            column(f"level{i}.scale{s}.", (3 + channels, *widths))
            for s, (_, widths) in enumerate(level.scales)
        ]
        channels = sum(widths[-1] for _, widths in level.scales)
        residual = [Layer(f"level{i}.residual", channels, channels)] if level.residual else []
        levels.append((scales, residual))
    last = column("last", (3 + channels, *config.last))
    pooled = config.last[-1] * (2 if config.mean else 1)
    head = column("head", (pooled, *config.head))
    return Layers(
        entry, levels, last, head, Layer("out", (pooled, *config.head)[-1], config.classes)
    )


def param_specs(config: ModelConfig) -> dict[str, Spec]:
    """Return {dotted name: Spec} of every parameter, in the order of the forward."""
    layers = _layers(config)
    specs: dict[str, Spec] = {}
    for name, fan_in, fan_out in layers.normed:
        specs |= linear_spec(name, fan_in, fan_out) | batch_norm_spec(name, fan_out)
    return specs | linear_spec(*layers.out) | bias_spec(layers.out.name, layers.out.fan_out)


def initial_stats(config: ModelConfig, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Return the running statistics of a new model: {name.mean: zeros, name.var: ones}."""
    stats: dict = {}
    for name, _, fan_out in _layers(config).normed:
        stats |= batch_norm_stats(name, fan_out, dtype)
    return stats


def count(config: ModelConfig, points: Any) -> Count:
    """Return Count for clouds of this many points, each layer applied to every row."""
    layers = _layers(config)

    def macs(rows: int, some: Iterable[Layer]) -> int:
        return rows * sum(layer.fan_in * layer.fan_out for layer in some)

    total = macs(points, layers.entry)
    for level, (scales, residual) in zip(config.parsed, layers.levels, strict=True):
        for (scale, _), of_scale in zip(level.scales, scales, strict=True):
            total += macs(level.centres * scale.members, of_scale)
        total += macs(level.centres, residual)
    total += macs(config.parsed[-1].centres, layers.last)
    return Count(size_of(param_specs(config)), total + macs(1, (*layers.head, layers.out)))


def prepare(config: ModelConfig, points: Any) -> tuple[np.ndarray, ...]:
    """Return the groups of stored clouds (B, N, 3) float32, on the host.

    For each level the centres (B, M), then the members (B, M, k) of each scale: indices of the
    points of the level below.  Raises DataError for a cloud of fewer points than centres.
    """
    levels, points = config.parsed, np.asarray(points, np.float32)
    order = farthest_points(points, levels[0].centres)  # of which the next levels take the first
    clouds, groups = np.arange(len(points))[:, None], []
    for number, level in enumerate(levels):
        centres = order if number == 0 else np.arange(level.centres)
        centres = np.broadcast_to(centres, (len(points), level.centres)).astype(np.uint32)
        groups += [centres, *neighbours(points, centres, [scale for scale, _ in level.scales])]
        points = points[clouds, centres]
    return tuple(groups)


def grouping(config: ModelConfig) -> list:
    """Return what groups depend on besides the points, as JSON has it: no width."""
    return [[level.centres, [list(scale) for scale, _ in level.scales]] for level in config.parsed]


def pooled_layers(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the layers whose maximum over points is taken."""
    layers = _layers(config)
    of_levels = [scale[-1].name for scales, _ in layers.levels for scale in scales]
    return (*of_levels, layers.last[-1].name)


def channels(config: ModelConfig) -> dict[str, Channels]:
    """Return {layer: Channels}.

    Offset and features, the scales of a level, and maximum and mean lie side by side.
    """
    layers = _layers(config)
    found = {name: Channels((i,), (o,)) for name, i, o in (*layers.normed, layers.out)}

    def reads(layer: Layer, *parts: int) -> None:
        found[layer.name] = Channels(parts, (layer.fan_out,))

    features = config.entry[-1:]
    for scales, residual in layers.levels:
        for first, *_ in scales:
            reads(first, 3, *features)
        features = tuple(scale[-1].fan_out for scale in scales)
        for layer in residual:  # its result is added to its input, channel by channel
            found[layer.name] = Channels(features, features)
    reads(layers.last[0], 3, *features)
    if config.mean:
        reads((*layers.head, layers.out)[0], config.last[-1], config.last[-1])
    return found


def dropout_width(config: ModelConfig) -> int:
    """Return the width of what dropout is applied to: the input of the output layer."""
    return _layers(config).out.fan_in


def _read(inputs: Any, config: ModelConfig) -> tuple[Any, list[tuple[Any, list, tuple]]]:
    """Return the points of inputs, for each level (centres, [members of each scale], its times)."""
    levels = config.parsed
    points, groups = inputs_of(inputs, sum(1 + len(level.scales) for level in levels))
    module_of(points, *groups)
    arrays = iter(groups)
    return points, [
        (next(arrays), [next(arrays) for _ in level.scales], level.times) for level in levels
    ]


def forward_train(
    params: dict[str, Any],
    inputs: Any,
    config: ModelConfig,
    mask: Any = None,
    engine: Any = "fused",
    work: Workspace | None = None,
) -> tuple[Any, dict[str, Any], Tape]:
    """Return logits (B, K), {layer: BatchStats} and the tape, with batch statistics.

    inputs: Inputs with the groups of prepare(); the rest as in pointnet.forward_train.  The tape's
    gradient of its input is none where the first level reads no features.
    """
    positions, groups = _read(inputs, config)
    engine = engine_of(engine, work, positions, *params.values(), engines=ENGINES)
    layers, tape, x = _layers(config), Tape(params, config.eps), None
    for layer in layers.entry:
        x = engine.pointwise(tape, positions if x is None else x, layer.name, inner=x is not None)
    for (centres, members, times), (scales, residual) in zip(groups, layers.levels, strict=True):
        near = Near(positions, centres)
        seen = map(near.times, times)
        x = engine.level(tape, x, list(zip(seen, members, scales, strict=True)))  # (B, M, O)
        positions = near.of_centres()
        for layer in residual:
            x = engine.pointwise(tape, x, layer.name, residual=True)
    x = engine.beside(tape, positions, x)
    *shared, pooled = layers.last
    if config.mean:
        for layer in layers.last:
            x = engine.pointwise(tape, x, layer.name)
        x = tape.push(local.max_and_mean_forward(x), local.max_and_mean_backward)
    else:
        x = engine.enter(tape, x, [layer.fan_out for layer in shared], "last", inner=True)
        for layer in shared:
            x = engine.shared(tape, x, layer.name)
        x = engine.pooled(tape, x, pooled.name)
    for layer in layers.head:
        x = engine.dense(tape, x, layer.name)
    if mask is not None:
        x = tape.push(ops.dropout_forward(x, mask), ops.dropout_backward)
    return engine.output(tape, x, layers.out.name), tape.batch, tape


def evaluator(
    params: dict[str, Any], stats: dict[str, Any], config: ModelConfig, engine: Any = "fused"
) -> Evaluator:
    """Return logits_of(inputs), as pointnet.evaluator does: the same bits in any batch."""
    engine = engine_of(engine, None, *params.values(), *stats.values(), engines=ENGINES)
    layers, eps = _layers(config), config.eps

    def values(layer: Layer) -> tuple:
        weights = [params[f"{layer.name}.{part}"] for part in ("W", "gamma", "beta")]
        return *weights, stats[f"{layer.name}.mean"], stats[f"{layer.name}.var"]

    entry = [engine.eval_pointwise(values(layer), eps) for layer in layers.entry]
    levels = [
        (
            [engine.eval_scale([values(layer) for layer in scale], eps) for scale in scales],
            [engine.eval_pointwise(values(layer), eps, residual=True) for layer in residual],
        )
        for scales, residual in layers.levels
    ]
    last = [values(layer) for layer in layers.last]
    pointwise = [engine.eval_pointwise(one, eps) for one in last]
    pooled = engine.eval_entry(last, eps, layers.last[0].fan_in)
    factors = {
        each.name: exact.factor(params[f"{each.name}.W"]) for each in (*layers.head, layers.out)
    }
    b = params[f"{layers.out.name}.b"]

    def features(inputs: Any) -> Any:
        positions, groups = _read(inputs, config)
        xp, x = module_of(positions, b), None
        for layer in entry:
            x = layer(positions if x is None else x)
        for (centres, members, times), (scales, residual) in zip(groups, levels, strict=True):
            near = Near(positions, centres)
            each = zip(scales, map(near.times, times), members, strict=True)
            parts = [scale(seen, x, some) for scale, seen, some in each]
            x = xp.concatenate(parts, axis=2)
            positions = near.of_centres()
            for layer in residual:
                x = layer(x)
        x = xp.concatenate([positions, x], axis=2)
        if config.mean:
            for layer in pointwise:
                x = layer(x)
            return local.max_and_mean_forward(x)[0]
        return pooled(x)

    def logits(x: Any) -> Any:
        for layer in layers.head:
            _, *norm = values(layer)
            x = eval_norm_relu(exact.product(x, factors[layer.name]), norm, eps)
        return ops.bias_forward(exact.product(x, factors[layers.out.name]), b)[0]

    return Evaluator(features, logits, engine.work)


def forward_eval(
    params: dict[str, Any],
    stats: dict[str, Any],
    inputs: Any,
    config: ModelConfig,
    engine: Any = "fused",
) -> Any:
    """Return the logits (B, K) of Inputs by an evaluator made for them alone."""
    return evaluator(params, stats, config, engine)(inputs)
