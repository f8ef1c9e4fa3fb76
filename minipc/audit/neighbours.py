"""Neighbourhoods in the audit: groups, the operations of a level, both engines, PointNet++.

A PointNet++ has no gradient of its points, because every level reads positions.  So the points stay
fixed here.  They are stretched after grouping, as augmentation does.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike

from minipc.audit.facts import Fact, FactMaker, holds, near, same
from minipc.audit.problems import (
    KINK,
    Arrays,
    Problem,
    ProblemMaker,
    Step,
    apart,
    cast,
    gains,
    in_dtype,
    nearest_kink,
    of_step,
    operation,
    smooth_step,
    step,
)
from minipc.audit.rules import Moments, agree, by_definition, layers_by_definition, small_work
from minipc.data import augment
from minipc.data.clouds import Clouds
from minipc.models import pointnet2
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from minipc.models.pointnet import Layer
from minipc.nn import groups, local
from minipc.nn.engine import Tape, backward
from minipc.nn.fast import local as fast_local
from minipc.nn.fast.workspace import Workspace
from minipc.nn.groups import Scale
from minipc.nn.levels import ENGINES, Near
from minipc.nn.losses import LossConfig
from minipc.nn.params import initialise
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording

STRETCH = 0.4, 1.0, 2.5  # of each axis, after grouping: it changes which points are near

# Point-wise layers before and between levels, two scales, levels of one layer and of two, the mean
# beside the maximum.
SMALL = "4,6/3:5+,4/3:4/2:4-5,6+mean:5"
OFFSETS = "6/4:5-6,3/3:6,7-6:5"  # its first level reads offsets alone; several last layers


def groups_by_definition(rng: Generator) -> list[Fact]:
    """(G1) and (G2) number by number, on a grid: most distances are equal, and points repeat."""
    points = rng.integers(0, 3, (2, 11, 3)).astype(np.float32) / 3
    scales = Scale(4), Scale(13), Scale(5, 0.5)

    def distance(cloud: np.ndarray, n: int, m: int) -> Any:
        d = cloud[n] - cloud[m]
        return (d[0] * d[0] + d[1] * d[1]) + d[2] * d[2]

    chosen: list[list[int]] = []
    expected: list[list[list[list[int]]]] = [[] for _ in scales]
    for cloud in points:
        order = [0]
        while len(order) < 5:
            left = [n for n in range(11) if n not in order]
            order.append(max(left, key=lambda n: (min(distance(cloud, n, m) for m in order), -n)))
        chosen.append(order)
        for scale, clouds in zip(scales, expected, strict=True):
            clouds.append([])
            for m in order:
                nearest = sorted(range(11), key=lambda n: (distance(cloud, n, m), n))
                square = np.float32(scale.radius) ** 2
                inside = [n for n in nearest if not square or distance(cloud, n, m) < square]
                inside = inside[: scale.members]
                clouds[-1].append(inside + nearest[:1] * (scale.members - len(inside)))
    centres = groups.farthest_points(points, 5)
    members = groups.neighbours(points, centres, scales)
    stretched = points * np.array(STRETCH, np.float32)
    return [
        same("farthest points, ties to the lowest", centres, chosen),
        same("the first of more centres", groups.farthest_points(points, 3), centres[:, :3]),
        *(same(f"members of {s}", members[i], expected[i]) for i, s in enumerate(scales)),
        holds(
            "other neighbours after scaling each axis",
            not np.array_equal(groups.neighbours(stretched, centres, scales)[0], members[0]),
        ),
    ]


def _members(rng: Generator, points: int, *shape: int) -> np.ndarray:
    """Return members of this shape: group 0 reads point 2 alone, and no group reads point 0."""
    members = rng.integers(1, points, shape)
    members[:, 0] = 2
    return members


def gather(rng: Generator, dtype: DTypeLike) -> list[Problem]:
    members = _members(rng, 7, 3, 5, 4)
    f = rng.standard_normal((3, 7, 6))
    pair = local.gather_forward, local.gather_backward
    return [operation(pair, {"f": f}, (members,), rng, dtype)]


def gather_facts(rng: Generator) -> list[Fact]:
    """On whole numbers every sum is exact, so the adjoint's identity holds bit for bit."""
    members = _members(rng, 7, 3, 5, 4)
    f, dy = (rng.integers(-9, 10, shape) * 1.0 for shape in ((3, 7, 6), (3, 5, 4, 6)))
    y, cache = local.gather_forward(f, members)
    df, rows, sums = local.gather_backward(dy, cache), np.empty_like(y), np.zeros_like(f)
    for b, m, j in np.ndindex(members.shape):
        rows[b, m, j] = f[b, members[b, m, j]]
        sums[b, members[b, m, j]] += dy[b, m, j]
    return [
        same("each member's features", y, rows),
        same("sum over the readers of a point", df, sums),
        same("<dy, gather f> = <gather' dy, f>", (dy * y).sum(), (df * f).sum()),
    ]


def offsets(rng: Generator) -> list[Fact]:
    """Dyadic points: every difference is exact, so a shift of the cloud changes nothing."""
    points = rng.integers(-64, 64, (2, 7, 3)) / 64
    centres, members = rng.integers(0, 7, (2, 5)), _members(rng, 7, 2, 5, 4)
    members[:, :, 0] = centres
    differences, expected = local.offsets(points, centres, members), np.empty((2, 5, 4, 3))
    for b, m, j in np.ndindex(members.shape):
        expected[b, m, j] = points[b, members[b, m, j]] - points[b, centres[b, m]]
    moved = local.offsets(points + [4, -2, 0.5], centres, members)
    return [
        same("p of the member - p of its centre", differences, expected),
        same("the same after all points move", moved, differences),
        same("0 at the centre", differences[:, :, 0], np.zeros((2, 5, 3))),
    ]


def max_and_mean(rng: Generator, dtype: DTypeLike) -> list[Problem]:
    pair = local.max_and_mean_forward, local.max_and_mean_backward
    return [operation(pair, {"x": apart(rng, (3, 7, 5))}, (), rng, dtype)]


def max_and_mean_facts(rng: Generator) -> list[Fact]:
    x = rng.standard_normal((2, 6, 3))
    y, _ = local.max_and_mean_forward(x)
    return [
        same("the largest", y[:, :3], x.max(axis=1)),
        near("the mean", y[:, 3:], np.einsum("bno->bo", x) / 6),
    ]


# Levels by themselves


LevelScales = list[tuple[np.ndarray, list[Layer]]]  # members and layers of each scale of a level

# The widths of the layers, for each scale of a level.
SCALES: dict[str, list[tuple[int, ...]]] = {
    "one layer": [(6,)],
    "two scales, of two layers and of one": [(5, 4), (6,)],
    "offsets alone": [(5, 4)],
}


def _level(
    kind: str, rng: Generator, clouds: int = 3, points: int = 9, count: int = 5
) -> tuple[Arrays, Near, LevelScales]:
    """Return arrays, Near and scales of one level; some groups share points, some points have none.

    count: of centres.
    """
    channels = 0 if kind == "offsets alone" else 4
    arrays: Arrays = {}
    scales: LevelScales = []
    for s, widths in enumerate(SCALES[kind]):
        layers: list[Layer] = []
        fan_in = 3 + channels
        for i, width in enumerate(widths):
            layers.append(Layer(f"scale{s}.{i}", fan_in, width))
            arrays[f"scale{s}.{i}.W"] = rng.standard_normal((fan_in, width))
            arrays[f"scale{s}.{i}.gamma"] = gains(rng, width)
            arrays[f"scale{s}.{i}.beta"] = rng.standard_normal(width) / 2
            fan_in = width
        arrays[f"scale{s}.{i}.gamma"][1] = 0.9  # at 0 the maximum has a kink
        members = np.argsort(rng.random((clouds, count, points)), axis=2)[:, :, : 3 + s]
        scales.append((members, layers))
    if channels:
        arrays["f"] = rng.standard_normal((clouds, points, channels))
        arrays["between.W"] = rng.standard_normal((channels, channels))
        arrays["between.gamma"] = gains(rng, channels)
        arrays["between.beta"] = rng.standard_normal(channels)
    centres = np.argsort(rng.random((clouds, points)), axis=1)[:, :count]
    return arrays, Near(rng.standard_normal((clouds, points, 3)) + 2, centres), scales


def _levels(
    engine: str, arrays: Arrays, place: Near, scales: LevelScales, work: Workspace | None
) -> tuple[Any, Tape]:
    """Return h of a residual point-wise layer and the level after it, and the tape."""
    levels, tape, x = ENGINES[engine](work), Tape(arrays, 1e-5), arrays.get("f")
    place = place._replace(positions=place.positions.astype(next(iter(arrays.values())).dtype))
    if x is not None:
        x = levels.pointwise(tape, x, "between", residual=True)
    return levels.level(tape, x, [(place, *scale) for scale in scales]), tape


def fused_levels(rng: Generator, dtype: DTypeLike) -> list[Problem]:
    """The fast engine's levels, in features and parameters."""
    return [_of_level(kind, rng, dtype) for kind in SCALES]


def _of_level(kind: str, rng: Generator, dtype: DTypeLike) -> Problem:
    for _ in range(200):
        arrays, place, scales = _level(kind, rng)
        h, tape = _levels("textbook", arrays, place, scales, None)
        if nearest_kink(tape, arrays) > KINK:
            break
    else:
        raise AssertionError("200 draws, and each lay on a kink")
    dh = rng.standard_normal(h.shape).astype(dtype)

    def value(arrays: Arrays) -> float:
        return float((_levels("fused", arrays, place, scales, Workspace())[0] * dh).sum())

    def gradients(arrays: Arrays) -> Arrays:
        grads, df = backward(dh, _levels("fused", arrays, place, scales, Workspace())[1])
        return grads | ({"f": df} if "f" in arrays else {})

    return Problem(cast(arrays, dtype), value, gradients)


def levels_agree(rng: Generator) -> list[Fact]:
    """Both engines agree: repeated members, a gain of 0, many blocks, two threads, a second use."""
    facts: list[Fact] = []
    work = small_work(block=2**9, slice=2**7)
    for kind in SCALES:
        arrays, place, scales = _level(kind, rng, clouds=7, points=40, count=17)
        for members, layers in scales:
            members[:, 3:7, 1:] = members[:, 3:7, :1]
            arrays[f"{layers[-1].name}.gamma"][1] = 0
        for time in ("first", "second"):
            results: dict[str, Arrays] = {}
            for engine in ENGINES:
                h, tape = _levels(engine, arrays, place, scales, work)
                dh = np.cos(np.arange(h.size)).reshape(h.shape)
                h, batch = np.array(h), dict(tape.batch)
                grads, df = backward(dh, tape)
                results[engine] = {"h": h} | {name: np.array(g) for name, g in grads.items()}
                results[engine] |= {"f": np.array(df)} if "f" in arrays else {}
                for layer, (mean, var, rows) in batch.items():
                    results[engine] |= {f"{layer} mean": mean, f"{layer} variance": var}
                    facts.append(same(f"rows of {layer}", rows, _rows(layer, place, scales)))
            size = max(np.abs(value).max() for value in results["textbook"].values())
            # 1e-11: ten times the rounding of sums of about 500 rows through two layers
            facts += [
                near(f"{kind}, {time} time: {name}", results["fused"][name], value, 1e-11, size)
                for name, value in results["textbook"].items()
            ]
    return facts


def _rows(layer: str, place: Near, scales: LevelScales) -> int:
    """Return how many rows a layer of _levels() has."""
    of_scales = {each.name: members.size for members, layers in scales for each in layers}
    return of_scales.get(layer, place.positions[..., 0].size)


def moments(rng: Generator) -> list[Fact]:
    """(F12): the level computes the moments of its rows without making the rows."""
    arrays, place, ((members, _),) = _level("one layer", rng, clouds=5, points=20, count=12)
    members[:, 3:7, 1:] = members[:, 3:7, :1]
    x = fast_local.to_level(
        place.positions, arrays["f"], place.centres, members, Workspace(), "moments"
    )
    features, _ = local.gather_forward(arrays["f"], members)
    rows = np.concatenate([local.offsets(*place, members), features], axis=3)
    rows = np.concatenate([rows - x.shift, np.ones_like(rows[..., :1])], axis=3)
    rows = rows.reshape(-1, rows.shape[3])
    return [
        near("moments of rows never made", x.moments, rows.T @ rows / len(rows)),
        same("rows", x.rows, len(rows)),
    ]


# Whole models


def _stretched(
    config: pointnet2.ModelConfig,
    loss: LossConfig,
    engine: str,
    rng: Generator,
    clouds: int = 6,
    points: int = 14,
) -> tuple[Arrays, Step]:
    """Return (parameters, Step) of a PointNet++ whose points were stretched after grouping."""
    arrays, fixed = step(config, loss, engine, rng, np.float64, clouds, points)
    return arrays, fixed._replace(points=arrays.pop("points") * STRETCH)


def small_step(engine: str, loss: LossConfig) -> ProblemMaker:
    """Return the maker of one training step of a small PointNet++, away from every kink."""

    def make(rng: Generator, dtype: DTypeLike) -> list[Problem]:
        draw = partial(_stretched, sizes(SMALL, 4), loss, engine, rng)
        return [of_step(*smooth_step(draw), dtype)]

    return make


def _plain(
    params: Arrays,
    inputs: Inputs,
    model: pointnet2.ModelConfig,
    mask: Any = 1.0,
    moments: Arrays | None = None,
) -> tuple[np.ndarray, Moments]:
    """Return logits of PointNet++, and the Moments of its layers, row by row."""
    layer, of_batch = layers_by_definition(params, model, moments)
    points, arrays = inputs.points, iter(inputs.groups)
    x: Any = None

    def row(b: int, n: int, centre: int, factor: int) -> list[Any]:
        offset = factor * (points[b, n] - points[b, centre])
        return [*offset, *([] if x is None else x[b, n])]

    for i in range(len(model.entry)):
        x = layer(points if x is None else x, f"entry{i}")
    for i, level in enumerate(model.parsed):
        centres, results = next(arrays), []
        for s, (_, widths) in enumerate(level.scales):
            rows = np.array(
                [
                    [
                        [row(b, n, c, level.times[s]) for n in group]
                        for c, group in zip(of, groups, strict=True)
                    ]
                    for b, (of, groups) in enumerate(zip(centres, next(arrays), strict=True))
                ]
            )
            for w in range(len(widths)):
                rows = layer(rows, f"level{i}.scale{s}.{w}")
            results.append(rows.max(axis=2))
        points = np.array([cloud[of] for cloud, of in zip(points, centres, strict=True)])
        x = np.concatenate(results, axis=2)
        if level.residual:
            x = x + layer(x, f"level{i}.residual")
    x = np.concatenate([points, x], axis=2)
    for i in range(len(model.last)):
        x = layer(x, f"last{i}")
    x = np.concatenate([x.max(axis=1), *([x.mean(axis=1)] if model.mean else [])], axis=1)
    for i in range(len(model.head)):
        x = layer(x, f"head{i}")
    return np.einsum("bi,io->bo", x * mask, params["out.W"]) + params["out.b"], of_batch


def model(engine: str) -> FactMaker:
    """Return the maker of Facts of whole PointNet++ models: by definition, and alone as in a batch.

    The groups are those of the stored clouds; the stretched points would have other groups.
    """

    def make(rng: Generator) -> list[Fact]:
        facts: list[Fact] = []
        for text in (SMALL, OFFSETS):
            config = replace(sizes(text, 4), dropout=0.4, eps=1e-3, momentum=0.3)
            params, fixed = _stretched(config, LossConfig(), engine, rng)
            inputs, module = Inputs(fixed.points, fixed.groups), net(config)
            facts += by_definition(_plain, params, inputs, fixed)
            logits_of = module.evaluator(
                params, module.initial_stats(config, np.float64), config, engine
            )
            alone = [
                logits_of(Inputs(points[None], tuple(group[None] for group in of)))
                for points, *of in zip(inputs.points, *inputs.groups, strict=True)
            ]
            others = module.prepare(config, fixed.points)
            facts += [
                same("each cloud as it is alone", logits_of(inputs), np.concatenate(alone)),
                holds("other groups once stretched", not _equal(others, fixed.groups)),
            ]
        return facts

    return make


def _equal(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(some, others, strict=True))


def engines(text: str) -> FactMaker:
    """Return the maker of Facts that both engines compute one PointNet++: gradients and logits."""

    def make(rng: Generator) -> list[Fact]:
        config, loss = sizes(text, 10), LossConfig(0.9, 0.3, 2.5)
        arrays, fixed = _stretched(config, loss, "fused", rng, clouds=5, points=32)
        for pooled in net(config).pooled_layers(config):
            arrays[f"{pooled}.gamma"][1] = 0  # all members tie
        fixed = fixed._replace(points=fixed.points + 3)
        # 1e-10: (F12) subtracts products of positions, far larger than those of offsets
        facts = agree(arrays, fixed, config, "", None, allowed=1e-10)
        single = {name: value.astype(np.float32) for name, value in arrays.items()}
        rounded = in_dtype(fixed, np.float32).gradients(single)
        exact = fixed._replace(engine="textbook").gradients(arrays)
        largest = max(np.abs(g).max() for g in exact.values())
        worst = max(np.abs(rounded[name] - g).max() for name, g in exact.items()) / largest
        return [*facts, near("float32, far from the origin", worst, 0.0, allowed=1e-3)]

    return make


def replay(rng: Generator) -> list[Fact]:
    """Replay of a PointNet++'s record: its views and the stored groups give the logits again."""
    config = sizes(SMALL, 3)
    module = net(config)
    params = initialise(module.param_specs(config), rng, np.float32)
    logits_of = module.evaluator(params, module.initial_stats(config), config)
    points = rng.standard_normal((5, 16, 3)).astype(np.float32)
    clouds = Clouds(points, np.arange(5) % 3, ("a", "b", "c"), "z", "none")
    stored = module.prepare(config, points)
    seen: list[Inputs] = []
    facts: list[Fact] = []

    def teacher(inputs: Inputs) -> Any:
        seen.append(inputs)
        return logits_of(inputs)

    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "record.h5")
        settings: Any = dict(views=2, seed=7, force=True, logits="float32", threads=1)
        record(Recording(clouds, "audit", path, groups=stored, **settings), teacher)
        with RecordReader(path) as reader:
            for view in range(2):
                scale, shift, logits = reader.view(view)
                moved = augment.apply(points, augment.Params(scale, shift))
                given = [x.groups for x in seen if np.array_equal(x.points[:5], moved)]
                facts += [
                    holds(
                        f"groups of the stored clouds, view {view}",
                        given and all(_equal([g[:5] for g in of], stored) for of in given),
                    ),
                    same(f"logits of view {view}", logits, logits_of(Inputs(moved, stored))),
                ]
    return facts
