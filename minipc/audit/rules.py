"""Facts of models, both engines, optimisers, replay and earlier selves."""

import os
from collections.abc import Callable
from math import cos, pi
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.random import Generator

from minipc.audit.facts import ROUNDING, Fact, FactMaker, holds, near, same
from minipc.audit.problems import Arrays, Step, in_dtype, multiplied_out, step
from minipc.data import augment
from minipc.data.clouds import Clouds
from minipc.distil import self_target
from minipc.models import model as seam
from minipc.models import pointnet
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from minipc.nn import losses, optim
from minipc.nn.engine import ENGINES, backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording

# {layer: (mean, variance, rows)} of a batch.
Moments = dict[str, tuple[np.ndarray, np.ndarray, int]]

# Weight decay of a parameter.
DECAYED = {"out.W": 0.1, "out.b": 0.0, "shared0.gamma": 0.0, "shared0.beta": 0.0}


def _walk(rng: Generator, steps: int = 5) -> tuple[Arrays, list[Arrays]]:
    """Return parameters of every kind, and their gradients at each of some steps."""
    shapes = {"out.W": (3, 4), "out.b": (4,), "shared0.gamma": (5,), "shared0.beta": (5,)}
    draw = [
        {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        for _ in range(steps + 1)
    ]
    return draw[0], draw[1:]


def adamw(rng: Generator) -> list[Fact]:
    """(O1) unrolled: moments as weighted sums of all gradients, decay on weights alone."""
    start, grads = _walk(rng)
    lr, beta1, beta2, eps = 0.05, 0.8, 0.95, 1e-3
    params, state, expected = start, optim.adamw_start(start), dict(start)
    arrays = {name: value.copy() for name, value in start.items()}
    in_place = optim.adamw_start(start)
    work = small_work(block=1, slice=16)
    for t, g in enumerate(grads, start=1):
        params, state = optim.adamw_step(
            params, g, state, lr, 0.1, beta1=beta1, beta2=beta2, eps=eps
        )
        given = {name: value.copy() for name, value in g.items()}
        in_place = optim.adamw_in_place(
            arrays, given, in_place, lr, 0.1, work, beta1=beta1, beta2=beta2, eps=eps
        )
        for name, w in expected.items():
            past = [earlier[name] for earlier in grads[:t]]
            m = sum((1 - beta1) * beta1 ** (t - i) * one for i, one in enumerate(past, start=1))
            v = sum((1 - beta2) * beta2 ** (t - i) * one**2 for i, one in enumerate(past, start=1))
            m, v = m / (1 - beta1**t), v / (1 - beta2**t)
            expected[name] = w - lr * DECAYED[name] * w - lr * m / (np.sqrt(v) + eps)
    facts: list[Fact] = []
    for name in expected:
        facts += [
            near(name, params[name], expected[name]),
            same(f"{name} in place", arrays[name], params[name]),
        ]
    return facts


def sgd(rng: Generator) -> list[Fact]:
    """(O2) unrolled, and (O4): clipping keeps the direction and limits the norm."""
    start, grads = _walk(rng)
    params, state, expected = start, optim.sgd_start(start), dict(start)
    seen: dict[str, list[Any]] = {name: [] for name in start}
    for g in grads:
        params, state = optim.sgd_step(params, g, state, 0.05, 0.1, momentum=0.8)
        for name, w in expected.items():
            seen[name].append(g[name] + DECAYED[name] * w)
            velocity = sum(0.8**age * one for age, one in enumerate(reversed(seen[name])))
            expected[name] = w - 0.05 * velocity
    facts = [near(name, params[name], expected[name]) for name in expected]
    flat = np.concatenate([g.ravel() for g in grads[0].values()])
    for largest in (1.0, 100.0):
        clipped, norm = optim.clip_by_norm(grads[0], largest)
        scale = min(1.0, largest / np.linalg.norm(flat))
        facts += [
            near("norm", norm, np.linalg.norm(flat)),
            near("clipped", np.concatenate([g.ravel() for g in clipped.values()]), scale * flat),
        ]
    return facts


def schedule(rng: Generator) -> list[Fact]:
    """(O3): equal steps up to 1, then half a cosine down; warm-up is at most half of the run."""
    facts = []
    for steps, warmup in ((100, 10), (12, 200), (5, 0)):
        up = min(warmup, steps // 2)
        expected = [
            (t + 1) / up if t < up else (1 + cos(pi * (t - up) / (steps - up))) / 2
            for t in range(steps)
        ]
        factors = [optim.warmup_cosine(t, steps, warmup) for t in range(steps)]
        facts.append(near(f"{steps} steps, {warmup} of warm-up", factors, expected))
    return facts


def augmentation(rng: Generator) -> list[Fact]:
    """(A1) from NumPy's Philox directly, (A2) with two roundings in float32.

    float64 holds the product of two float32 exactly; their sum in float64, rounded to float32, is
    the sum in float32.
    """
    config = augment.AugmentConfig(0.5, 2.0, 0.3)
    params, expected = augment.draw(3, 1, 4, 5, config), []
    for cloud in range(4, 9):
        key, counter = np.array([3, 1], np.uint64), np.array([2 * cloud, 0, 0, 0], np.uint64)
        u = (np.random.Philox(key=key, counter=counter).random_raw(6) >> np.uint64(11)) / 2.0**53
        expected.append(np.concatenate([0.5 + 1.5 * u[:3], -0.3 + 0.6 * u[3:]]))
    points = rng.standard_normal((5, 64, 3)).astype(np.float32)
    scale, shift = (value[:, None].astype(np.float64) for value in params)
    scaled = (points.astype(np.float64) * scale).astype(np.float32)
    moved = (scaled.astype(np.float64) + shift).astype(np.float32)
    drawn = np.array(expected).astype(np.float32)
    return [
        same("drawn from seed, view and cloud", np.hstack(params), drawn),
        same("points scale + shift, two roundings", augment.apply(points, params), moved),
    ]


def replay(rng: Generator) -> list[Fact]:
    """A student sees what the teacher saw in the recording: bit for bit, in every view."""
    clouds = Clouds(
        rng.standard_normal((5, 12, 3)).astype(np.float32),
        np.arange(5) % 3,
        ("a", "b", "c"),
        "z",
        "none",
    )
    seen: list[np.ndarray] = []

    def teacher(points: np.ndarray) -> np.ndarray:
        """Remember points; return logits that are a function of each cloud."""
        seen.append(points.copy())
        return points.reshape(len(points), -1)[:, :3]

    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "record.h5")
        settings: Any = dict(views=2, seed=7, force=True, logits="float32", threads=1)
        record(Recording(clouds, "audit", path, **settings), teacher)
        with RecordReader(path) as reader:
            views = [reader.view(view) for view in range(2)]
    facts: list[Fact] = []
    for view, (scale, shift, logits) in enumerate(views):
        points = augment.apply(clouds.points, augment.Params(scale, shift))
        blocks = [block[:5] for block in seen]
        facts += [
            holds(f"points of view {view}", any(np.array_equal(points, block) for block in blocks)),
            same(f"logits of view {view}", logits, points.reshape(5, -1)[:, :3]),
        ]
    return [*facts, holds("views differ", not np.array_equal(views[0][0], views[1][0]))]


def _toy(
    rng: Generator,
) -> tuple[Callable[[Arrays, Any], Any], list[Arrays], tuple[Any, Any]]:
    """Return forward(params, points), the parameters of four steps, the points of two batches."""
    model = pointnet.ModelConfig((5, 6), (), classes=4)
    arrays, _ = step(model, LossConfig(), "textbook", rng, np.float64, clouds=6)
    points = arrays.pop("points")

    def forward(params: Arrays, points: Any) -> Any:
        return pointnet.forward_train(params, points, model, engine="textbook")[0]

    def moved(by: float) -> Arrays:
        return {
            name: value + by * rng.standard_normal(value.shape) for name, value in arrays.items()
        }

    return forward, [moved(0.1 * i) for i in range(4)], (points[:3], points[3:])


def _of(target: self_target.SelfTarget, rows: np.ndarray, points: np.ndarray) -> tuple[Any, Any]:
    """Return u and has of a target that has some."""
    u_and_has = target.target(rows, points)
    assert u_and_has is not None
    return u_and_has


def snapshot(rng: Generator) -> list[Fact]:
    """u are logits of the student after the latest epoch divisible by `every`, on these clouds."""
    forward, walk, (first, second) = _toy(rng)
    target = self_target.Snapshot(forward, every=2)
    facts = [holds("none before the first snapshot", target.target(np.arange(3), first) is None)]
    for epoch, params in enumerate(walk[:3]):
        live = {name: value.copy() for name, value in params.items()}
        target.epoch_ended(epoch, live)
        for value in live.values():
            value += 1  # the next step writes into these arrays
        if epoch:
            u, has = _of(target, np.arange(3), second)
            facts.append(near(f"after epoch {epoch}", u, forward(walk[1], second)))
            facts.append(holds("every row has one", (has == 1).all()))
    return facts


def ema(rng: Generator) -> list[Fact]:
    """u are logits of the student with weights m^k w_1 + (1 - m) sum of m^(k - i) w_i."""
    forward, walk, (first, _) = _toy(rng)
    target, m = self_target.Ema(forward, 0.8), 0.8
    for params in walk:
        target.stepped(np.arange(3), None, params)
    last = len(walk) - 1
    averaged = {
        name: m**last * walk[0][name]
        + (1 - m) * sum(m ** (last - i) * walk[i][name] for i in range(1, last + 1))
        for name in walk[0]
    }
    u, _ = _of(target, np.arange(3), first)
    return [near("the averaged student", u, forward(averaged, first))]


def history(rng: Generator) -> list[Fact]:
    """u are the logits of the cloud's last visit, as float16; a cloud not yet visited has no u."""
    logits = rng.standard_normal((2, 3, 4))
    target = self_target.History(6, 4)
    target.stepped(np.array([4, 0, 2]), logits[0], {})
    target.stepped(np.array([2, 5, 0]), logits[1], {})
    u, has = target.target(np.array([0, 1, 2, 4]), np.zeros((4, 1, 3)))
    expected = np.array([logits[1, 2], np.zeros(4), logits[1, 0], logits[0, 0]]).astype(np.float16)
    return [
        same("logits of the last visit", u, expected),
        same("rows that have one", has, [1.0, 0.0, 1.0, 1.0]),
    ]


def second_record(rng: Generator) -> list[Fact]:
    """u are the logits that an earlier student recorded on the view of this epoch."""
    views = rng.standard_normal((3, 6, 4))
    target = self_target.SecondRecord(lambda epoch: views[epoch % 3])
    facts: list[Fact] = []
    for epoch in (0, 2):
        target.epoch_starts(epoch, np)
        u, has = target.target(np.array([5, 1]), np.zeros((2, 1, 3)))
        facts += [
            same(f"view of epoch {epoch}", u, views[epoch, [5, 1]]),
            holds("every row", (has == 1).all()),
        ]
    return facts


def layers_by_definition(
    params: Arrays, model: Any, moments: Arrays | None = None
) -> tuple[Callable[[np.ndarray, str], np.ndarray], Moments]:
    """Return layer(x, name) as (M1) to (M11) define it, and the Moments that it fills.

    moments: tracked {name.mean, name.var} for evaluation; None: those of the batch.
    """
    of_batch: Moments = {}

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        y = np.einsum("...i,io->...o", x, params[f"{name}.W"])
        rows = y.reshape(-1, y.shape[-1])
        mean, var = rows.mean(axis=0), rows.var(axis=0)
        of_batch[name] = mean, var, len(rows)
        if moments:
            mean, var = moments[f"{name}.mean"], moments[f"{name}.var"]
        y = params[f"{name}.gamma"] * (y - mean) / np.sqrt(var + model.eps) + params[f"{name}.beta"]
        return np.where(y > 0, y, 0)

    return layer, of_batch


def _plain(
    params: Arrays,
    inputs: Inputs,
    model: pointnet.ModelConfig,
    mask: Any = 1.0,
    moments: Arrays | None = None,
) -> tuple[np.ndarray, Moments]:
    """Return logits of PointNet, and the Moments of its layers: (M1) to (M16) in one place."""
    layer, of_batch = layers_by_definition(params, model, moments)
    x = inputs.points
    for i in range(len(model.shared)):
        x = layer(x, f"shared{i}")
    x = x.max(axis=1)
    for i in range(len(model.head)):
        x = layer(x, f"head{i}")
    return np.einsum("bi,io->bo", x * mask, params["out.W"]) + params["out.b"], of_batch


def model(engine: str) -> FactMaker:
    """Return the maker of Facts of a whole PointNet: logits, statistics, evaluation."""

    def make(rng: Generator) -> list[Fact]:
        config = pointnet.ModelConfig(
            (6, 8), (7, 7), classes=4, dropout=0.4, eps=1e-3, momentum=0.3
        )
        arrays, fixed = step(config, LossConfig(), engine, rng, np.float64)
        inputs = Inputs(arrays.pop("points"))
        return by_definition(_plain, arrays, inputs, fixed)

    return make


def by_definition(
    plain: Callable[..., tuple[np.ndarray, Moments]], params: Arrays, inputs: Inputs, fixed: Step
) -> list[Fact]:
    """Return the Facts that the model of a Step computes the same as plain()."""
    config, module = fixed.model, net(fixed.model)
    logits, batch, _ = module.forward_train(params, inputs, config, fixed.mask, fixed.engine)
    expected, moments = plain(params, inputs, config, fixed.mask)
    facts = [near("logits in training, with dropout", logits, expected)]
    before = {name: value + 0.5 for name, value in module.initial_stats(config, np.float64).items()}
    tracked, both, kept = seam.track(before, batch, config), {}, 1 - config.momentum
    for name, (mean, var, rows) in moments.items():
        facts += [
            near(f"{name}, mean", batch[name].mean, mean),
            near(f"{name}, variance", batch[name].var, var),
        ]
        both[f"{name}.mean"] = kept * before[f"{name}.mean"] + config.momentum * mean
        unbiased = var * rows / (rows - 1)
        both[f"{name}.var"] = kept * before[f"{name}.var"] + config.momentum * unbiased
    facts += [near(f"tracked {name}", tracked[name], value) for name, value in both.items()]
    evaluated = module.forward_eval(params, both, inputs, config, fixed.engine)
    expected, _ = plain(params, inputs, config, moments=both)
    return [*facts, near("logits in evaluation", evaluated, expected)]


def small_work(block: int, slice: int) -> Workspace:
    """Return a Workspace of two threads that divides its work into far smaller parts than usual."""
    work = Workspace(np, 2)
    work.block, work.slice = block, slice
    return work


def divided_work(rng: Generator) -> list[Fact]:
    """Blocks, slices, threads and a reused Workspace change nothing."""
    config = pointnet.ModelConfig((16, 32, 48), (24, 24, 24), classes=5)
    work = small_work(block=2**19, slice=2**17)
    facts: list[Fact] = []
    for time in ("first", "second"):
        arrays, fixed = step(
            config, LossConfig(0.9, 0.3, 2.5), "fused", rng, np.float64, clouds=3, points=8192
        )
        # 1e-11: the sums run over 24,576 rows
        facts += agree(arrays, fixed, config, f", {time} step", work, allowed=1e-11)
    return facts


def engines(size: str) -> FactMaker:
    """Return the maker of Facts that both engines compute one function: gradients and logits."""

    def make(rng: Generator) -> list[Fact]:
        config = sizes(size, 10)
        arrays, fixed = step(
            config, LossConfig(0.9, 0.3, 2.5), "fused", rng, np.float64, clouds=5, points=24
        )
        for pooled in net(config).pooled_layers(config):
            arrays[f"{pooled}.gamma"][1] = 0  # all points tie
        arrays["points"][:, 16:] = arrays["points"][:, :8]  # padded clouds
        arrays["points"] += 3
        facts = agree(arrays, fixed, config, "", None, repeated=8)
        single = {name: value.astype(np.float32) for name, value in arrays.items()}
        rounded = in_dtype(fixed, np.float32).gradients(single)
        exact = fixed._replace(engine="textbook").gradients(arrays)
        largest = max(np.abs(g).max() for g in exact.values())
        worst = max(
            np.abs(rounded[name] - g).max() for name, g in exact.items() if name != "points"
        )
        return [*facts, near("float32, far from the origin", worst / largest, 0.0, allowed=1e-3)]

    return make


def agree(
    arrays: Arrays,
    fixed: Step,
    config: Any,
    when: str,
    work: Workspace | None,
    repeated: int = 0,
    allowed: float = ROUNDING,
) -> list[Fact]:
    """Return the Facts that both engines have the same gradients and logits.

    repeated: how many of the first points appear again at the end.  Gradients of equal points are
    added, because which of them is the maximum is a convention.
    """
    params = {name: value for name, value in arrays.items() if name != "points"}
    inputs = Inputs(arrays.get("points", fixed.points), fixed.groups)
    results = {}
    for engine in ENGINES:
        z, batch, tape = net(config).forward_train(params, inputs, config, fixed.mask, engine, work)
        _, cache = losses.loss_forward(z, fixed.y, fixed.v, fixed.u, fixed.has_u, fixed.loss)
        grads, dpoints = backward(losses.loss_backward(cache), tape)
        grads = {name: np.array(g) for name, g in grads.items()}
        if "points" in arrays:
            dx = np.array(multiplied_out(dpoints))
            dx[:, :repeated] += dx[:, dx.shape[1] - repeated :]
            grads["points"] = dx[:, : dx.shape[1] - repeated]
        before = net(config).initial_stats(config, np.float64)
        results[engine] = z.copy(), grads, seam.track(before, batch, config)
    fused, textbook = (results[engine] for engine in ENGINES)
    z, ours, stats = fused
    expected_z, theirs, expected_stats = textbook
    largest = max(np.abs(g).max() for g in theirs.values())
    logits, expected = (
        net(config).forward_eval(params, expected_stats, inputs, config, engine)
        for engine in ENGINES
    )
    return [
        *(
            near(f"gradient of {name}{when}", ours[name], g, allowed, largest)
            for name, g in theirs.items()
        ),
        *(
            near(f"{name}{when}", stats[name], value, 10 * allowed)
            for name, value in expected_stats.items()
        ),
        near(f"logits in training{when}", z, expected_z, allowed),
        near(f"logits in evaluation{when}", logits, expected, allowed),
    ]
