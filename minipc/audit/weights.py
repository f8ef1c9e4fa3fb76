"""Weights in the audit: their averages, the statistics that go with them, and slices of wider sets.

A gradient check of the sum over two networks sees a gradient that is lost, but not an index that is
wrong: the slices of any index have gradients.  That the index is right is seen by silence: with
gamma = beta = 0 outside of its slice, the wide network computes what the narrow one does.
"""

from itertools import product
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike

from minipc.audit.facts import Fact, holds, near, same
from minipc.audit.neighbours import OFFSETS, SMALL, STRETCH
from minipc.audit.problems import (
    KINK,
    Arrays,
    Problem,
    cast,
    nearest_kink,
    step,
)
from minipc.distil import statistics
from minipc.distil.augmentation import NetworkAugmentation
from minipc.distil.averaging import EmaWeights, LastWeights
from minipc.models import pointnet
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from minipc.nn import losses, widening
from minipc.nn.engine import ENGINES, Tape, backward
from minipc.nn.losses import LossConfig
from minipc.nn.ops import BatchStats
from minipc.settings import TrainConfig

FLOAT32 = 2.0**-23  # of the largest entry: one rounding to float32, and float64's many


def averages(rng: Generator) -> list[Fact]:
    """(O5) unrolled, and the mean of the last epochs; later steps overwrite the arrays given."""
    steps, m = rng.standard_normal((6, 3, 4)).astype(np.float32), 0.8
    moving, last = EmaWeights(m), LastWeights(3)
    facts: list[Fact] = []
    for t in range(1, len(steps) + 1):
        live, until = steps[t - 1].copy(), steps[:t].astype(np.float64)
        moving.stepped({"W": live}, t)
        last.epoch_ended({"W": live})
        live += 1
        weights = m ** np.arange(t - 1, -1, -1.0)
        facts += [
            near(
                f"ema, step {t}", moving.mean["W"], np.tensordot(weights, until, 1) / sum(weights)
            ),
            near(f"last 3, epoch {t}", last.params()["W"], until[-3:].mean(axis=0), FLOAT32),
        ]
    return facts


def pooled_moments(rng: Generator) -> list[Fact]:
    """(M23): moments of batches of unequal sizes and means are those of all rows at once."""
    parts = [rng.standard_normal((rows, 5)) + 3 * rng.standard_normal(5) for rows in (7, 1, 12)]
    batches = [BatchStats(part.mean(axis=0), part.var(axis=0), len(part)) for part in parts]
    mean, var, rows = statistics.pooled(batches)
    every = np.concatenate(parts)
    facts = [
        near("mean of all rows", mean, every.mean(axis=0)),
        near("variance of all rows", var, every.var(axis=0)),
        same("number of rows", rows, len(every)),
    ]
    model = pointnet.ModelConfig((5, 6), (7,), classes=4)
    arrays, _ = step(model, LossConfig(), "textbook", rng, np.float64, clouds=9)
    clouds = arrays.pop("points") + 3 * rng.standard_normal((9, 1, 3))
    first = (clouds @ arrays["shared0.W"]).reshape(-1, 5)
    for engine in ENGINES:
        some = [Inputs(clouds[:4]), Inputs(clouds[4:6]), Inputs(clouds[6:])]
        stats = statistics.estimate(arrays, model, some, engine)
        facts += [
            near(f"mean of a layer, {engine}", stats["shared0.mean"], first.mean(axis=0), FLOAT32),
            near(
                f"variance of a layer, divisor rows - 1, {engine}",
                stats["shared0.var"],
                first.var(axis=0, ddof=1),
                FLOAT32,
            ),
            holds(
                "statistics of every layer", list(stats) == list(net(model).initial_stats(model))
            ),
        ]
    return facts


def inside_a_wider_one(rng: Generator, dtype: DTypeLike) -> list[Problem]:
    """(W2): the sum of the losses of the model and of a widened network, in the largest weights."""
    cases = ("5-6:7", "fused"), ("5/3:4+,3/2:3/4:4,5+mean", "textbook")
    return [_both(text, engine, rng, dtype) for text, engine in cases]


def _both(text: str, engine: str, rng: Generator, dtype: DTypeLike) -> Problem:
    model, loss = sizes(text, 4), LossConfig(0.9, 0.0, 2.5)
    config = TrainConfig(epochs=1, augment_width=2.0, augment_share=1.0, engine=engine)
    networks = NetworkAugmentation(model, config, np, 1)
    at = next(at for at in range(99) if networks.drawn(0, at) not in (model, networks.largest))
    indices = {each: networks.index(each) for each in (model, networks.drawn(0, at))}

    def forward(params: Arrays, inputs: Inputs, each: Any, engine: str) -> tuple[Any, Any, Tape]:
        slices = widening.take(params, indices[each])
        return net(each).forward_train(slices, inputs, each, None, engine)

    for _ in range(200):
        params, fixed = step(networks.largest, loss, engine, rng, np.float64, points=14)
        inputs = Inputs(params.pop("points") * STRETCH, fixed.groups)
        tapes = (forward(params, inputs, each, "textbook")[2] for each in indices)
        if min(nearest_kink(tape, dict(tape.params)) for tape in tapes) > KINK:
            break
    else:
        raise AssertionError("200 draws, and each lay on a kink")
    inputs = inputs._replace(points=inputs.points.astype(dtype))
    y, v = fixed.y.astype(dtype), fixed.v.astype(dtype)

    def terms(z: Any) -> tuple[Any, Any]:
        return losses.loss_forward(z, y, v, None, None, loss)

    def of_logits(z: Any) -> Any:
        return losses.loss_backward(terms(z)[1])

    def value(params: Arrays) -> float:
        each_z = (forward(params, inputs, each, engine)[0] for each in indices)
        return sum(float(terms(z)[0].total) for z in each_z)

    def gradients(params: Arrays) -> Arrays:
        z, _, tape = forward(params, inputs, model, engine)
        grads, _ = backward(of_logits(z), tape)
        return networks.gradients(params, grads, inputs, of_logits, 0, at)

    return Problem(cast(params, dtype), value, gradients)


def slices(rng: Generator) -> list[Fact]:
    """(W1), (W2): a slice is the network built apart, and the wide one that is silent outside."""
    total = {"W": np.zeros((3, 3))}
    for width in (2, 3):
        own = np.arange(width)
        widening.add(total, {"W": np.ones((width, width))}, {"W": (own[:, None], own)})
    facts = [
        same("gradients add where both own", total["W"], [[2, 2, 1], [2, 2, 1], [1, 1, 1]]),
        same("leading channels of each part", widening.leading((2, 2), (5, 5)), [0, 1, 5, 6]),
        same("leading channels of one part", widening.leading((3,), (5,)), [0, 1, 2]),
    ]
    for text in ("5-6:7", SMALL, OFFSETS):
        for engine in ENGINES:
            facts += _slice(text, engine, rng)
    return facts


def _slice(text: str, engine: str, rng: Generator) -> list[Fact]:
    small = sizes(text, 4)
    module = net(small)
    widths = [width + int(rng.integers(1, 4)) for width in module.widths(small)]
    large = module.with_widths(small, widths)
    index = widening.index_of(module.channels(small), module.channels(large))
    apart, fixed = step(small, LossConfig(), engine, rng, np.float64, points=14)
    inputs, dlogits = Inputs(apart.pop("points"), fixed.groups), rng.standard_normal((6, 4))
    wide, _ = step(large, LossConfig(), engine, rng, np.float64, points=14)
    del wide["points"]
    silent = {
        name: 0 * value if name.endswith(("gamma", "beta")) else value.copy()
        for name, value in wide.items()
    }
    for params in (wide, silent):
        widening.put(params, apart, index)
    expected = _results(small, apart, inputs, dlogits, engine)
    taken = _results(small, widening.take(wide, index), inputs, dlogits, engine)
    found = _results(large, silent, inputs, dlogits, engine)
    logits = {name: found.pop(name) for name in ("training", "evaluation")}
    found = logits | widening.take(found, index)
    # of the largest of all: a gradient may be zero but for rounding
    size = max(np.abs(value).max() for value in expected.values())
    return [
        *(same(f"{text}, {engine}, a slice: {n}", taken[n], v) for n, v in expected.items()),
        *(
            near(f"{text}, {engine}, silent: {n}", found[n], v, 1e-11, size)
            for n, v in expected.items()
        ),
    ]


def _results(config: Any, params: Arrays, inputs: Inputs, dlogits: Any, engine: str) -> Arrays:
    """Return logits of training and of evaluation, and the gradients."""
    module = net(config)
    z, _, tape = module.forward_train(params, inputs, config, None, engine)
    training = np.array(z)
    grads, _ = backward(dlogits, tape)
    stats = module.initial_stats(config, np.float64)
    evaluated = module.forward_eval(params, stats, inputs, config, engine)
    return {"training": training, "evaluation": evaluated} | grads


def widths(rng: Generator) -> list[Fact]:
    """(W3): evenly spaced, halves up; every layer draws for itself."""
    some, spaced = (16, 5, 7), ([16, 32, 48], [5, 10, 15], [7, 14, 21])
    drawn = {widening.draw_widths(some, 3, 2, rng) for _ in range(400)}
    # 27 combinations: each is missed by all draws with probability (26/27)^400 = 3e-7
    return [
        same("from w to r w", [widening.candidates(width, 3, 2) for width in some], spaced),
        same("rounded, halves up", widening.candidates(5, 1.6, 2), [5, 7, 8]),
        holds("every combination is drawn", drawn == set(product(*spaced))),
    ]
