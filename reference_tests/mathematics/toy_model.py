"""A second model, small and strange, for the tests of the seam (models/model.py).

    slices of the stored cloud along x + y, k points each: groups (B, S, k)
    augmented points gathered by group -> shared layer -> max -> features (B, S, C)
    -> shared layer -> max over slices -> output

It has two entries into the engine, the second of features whose gradient the first needs.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from minipc.backend import module_of
from minipc.models.inputs import inputs_of
from minipc.models.pointnet import Count
from minipc.nn import exact, ops
from minipc.nn.engine import Tape, engine_of
from minipc.nn.params import batch_norm_spec, batch_norm_stats, bias_spec, linear_spec, size_of
from minipc.nn.widening import Channels

NAMED_SIZES = {"toy": (4, 5, 6), "toy-wide": (4, 12, 20)}  # points of a slice, two widths


@dataclass(frozen=True)
class ModelConfig:
    architecture: ClassVar[str] = "toy"
    size: int  # points of a slice
    inner: int
    outer: int
    classes: int
    dropout: float = 0.25
    eps: float = 1e-5
    momentum: float = 0.1


def sizes(text, classes):
    return ModelConfig(*NAMED_SIZES[text], classes)


def title(config):
    return f"toy {config.size}-{config.inner}-{config.outer}"


def _layers(config):
    return [("inner", 3, config.inner), ("outer", config.inner, config.outer)]


def param_specs(config):
    specs = {}
    for name, fan_in, fan_out in _layers(config):
        specs |= linear_spec(name, fan_in, fan_out) | batch_norm_spec(name, fan_out)
    return (
        specs | linear_spec("out", config.outer, config.classes) | bias_spec("out", config.classes)
    )


def initial_stats(config, dtype=np.float32):
    stats = {}
    for name, _, width in _layers(config):
        stats |= batch_norm_stats(name, width, dtype)
    return stats


def prepare(config, points):
    slices = points.shape[1] // config.size
    along = points[:, :, 0] + points[:, :, 1]  # scaling by axis changes the order
    order = np.argsort(along, axis=1, kind="stable")[:, : slices * config.size]
    return (order.astype(np.uint16).reshape(len(points), slices, config.size),)


def widths(config):
    return config.inner, config.outer


def with_widths(config, widths):
    inner, outer = widths
    return replace(config, inner=inner, outer=outer)


def channels(config):
    layers = (*_layers(config), ("out", config.outer, config.classes))
    return {name: Channels((i,), (o,)) for name, i, o in layers}


def grouping(config):
    return []


def count(config, points):
    slices = points // config.size
    macs = slices * (config.size * 3 * config.inner + config.inner * config.outer)
    return Count(size_of(param_specs(config)), macs + config.outer * config.classes)


def pooled_layers(config):
    return ("inner", "outer")


def dropout_width(config):
    return config.outer


def _gathered(inputs):
    """Return the points of the slices (B * S, k, 3), and B and S."""
    points, (groups,) = inputs_of(inputs, groups=1)
    clouds, slices, size = groups.shape
    xp = module_of(points, groups)
    gathered = points[xp.arange(clouds)[:, None, None], groups]
    return gathered.reshape(clouds * slices, size, 3), clouds, slices


def _add_back(d, inputs):
    """The backward of gathering: a point of several slices gets the sum; here each is of one."""
    points, (groups,) = inputs
    xp = module_of(points)
    dpoints = xp.zeros_like(points)
    clouds = xp.arange(len(points))[:, None, None]
    dpoints[clouds, groups] += d.reshape(*groups.shape, 3)
    return dpoints


def forward_train(params, inputs, config, mask=None, engine="fused", work=None):
    x, clouds, slices = _gathered(inputs)
    engine = engine_of(engine, work, x, *params.values())
    tape = Tape(params, config.eps)
    x = tape.push((x, inputs), _add_back)
    x = engine.pooled(tape, engine.enter(tape, x, (), inner=True), "inner")
    x = tape.push((x.reshape(clouds, slices, -1), x.shape), lambda d, shape: d.reshape(shape))
    x = engine.enter(tape, x, (), name="features", inner=True)
    x = engine.pooled(tape, x, "outer")
    if mask is not None:
        x = tape.push(ops.dropout_forward(x, mask), ops.dropout_backward)
    return engine.output(tape, x, "out"), tape.batch, tape


def evaluator(params, stats, config, engine="fused"):
    engine = engine_of(engine, None, *params.values(), *stats.values())

    def entry(name, channels):
        of = [params[f"{name}.{part}"] for part in ("W", "gamma", "beta")]
        return engine.eval_entry(
            [(*of, stats[f"{name}.mean"], stats[f"{name}.var"])], config.eps, channels
        )

    inner, outer = entry("inner", 3), entry("outer", config.inner)
    out, b = exact.factor(params["out.W"]), params["out.b"]

    def logits_of(inputs):
        x, clouds, slices = _gathered(inputs)
        x = outer(inner(x).reshape(clouds, slices, -1))
        return ops.bias_forward(exact.product(x, out), b)[0]

    return logits_of


def forward_eval(params, stats, inputs, config, engine="fused"):
    return evaluator(params, stats, config, engine)(inputs)
