"""A finished model as affine maps, batch norm folded in; and the one walk through them.

Each layer becomes y = max(A x + c, 0).  A and c are computed in float64 and rounded to float32
once.  walk() is the order of the forward, and its arithmetic is an argument: float32 here, whole
numbers in int8.py, errors in rounding.py.  A PointNet is a network without levels.

Letters: B clouds, N points, M centres, k members of a group; "..." any axes.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from minipc.errors import DataError
from minipc.models.file import Model
from minipc.models.model import net


class Map(NamedTuple):
    """One layer: y = A x + c, then ReLU unless it is the last."""

    name: str  # as in the parameters, "shared0"
    A: np.ndarray  # (I, O) float32
    c: np.ndarray  # (O,) float32
    terms: np.ndarray  # (O,) float64, |beta| + |mean gamma / sigma|, of which c is the sum


class Scale(NamedTuple):
    members: int  # k, nearest first
    radius: float  # of the ball that holds them; 0: however far
    maps: list  # of Map


class Level(NamedTuple):
    centres: int  # M
    scales: list  # of Scale
    residual: Map | None


class Network(NamedTuple):
    """The maps of a model, by their place in the forward."""

    entry: list  # Maps of each point before the first level
    levels: list  # of Level
    last: list  # Maps of each point of the last level, whose maximum is taken
    mean: bool  # whether the mean joins the maximum
    head: list  # Maps of the cloud
    out: Map

    @property
    def maps(self) -> list[Map]:
        """All maps, in the order of the forward."""
        of_levels = [
            one
            for level in self.levels
            for some in (*(scale.maps for scale in level.scales), [level.residual])
            for one in some
            if one is not None
        ]
        return [*self.entry, *of_levels, *self.last, *self.head, self.out]


def factors(config: Any) -> dict[str, int]:
    """Return {layer: what a level multiplies the offsets by that it reads}, where that is not 1."""
    return {
        f"level{i}.scale{s}.0": factor
        for i, level in enumerate(getattr(config, "parsed", ()))
        for s, factor in enumerate(level.times)
        if factor != 1
    }


def folded(model: Model) -> Network:
    """Return the Network of a model on the host.  Raises DataError for weights out of float32."""
    config = model.config
    times = factors(config)
    maps = {name: _map(model, name, times.get(name, 1)) for name in net(config).channels(config)}

    def column(prefix: str) -> list[Map]:
        return [one for name, one in maps.items() if re.fullmatch(f"{prefix}[0-9]+", name)]

    levels = [
        Level(
            centres,
            [
                Scale(members, radius, column(rf"level{i}\.scale{s}\."))
                for s, (members, radius) in enumerate(scales)
            ],
            maps.get(f"level{i}.residual"),
        )
        for i, (centres, scales) in enumerate(net(config).grouping(config))
    ]
    mean = getattr(config, "mean", False)
    last = column("last") if levels else column("shared")
    return Network(column("entry"), levels, last, mean, column("head"), maps["out"])


def _map(model: Model, name: str, times: int) -> Map:
    """Fold one layer: A = W gamma / sigma, c = beta - mean gamma / sigma.  (F9)

    times: what a level multiplies its offsets by, the layer's first three rows.
    """
    W = model.params[f"{name}.W"].astype(np.float64)
    W[:3] *= times
    if name == "out":
        scale, beta, mean = 1.0, model.params["out.b"].astype(np.float64), 0.0
    else:
        gamma, beta = (
            model.params[f"{name}.{part}"].astype(np.float64) for part in ("gamma", "beta")
        )
        mean, var = (model.stats[f"{name}.{part}"].astype(np.float64) for part in ("mean", "var"))
        with np.errstate(invalid="ignore"):  # a negative variance: found below
            scale = gamma / np.sqrt(var + model.config.eps)
    with np.errstate(over="ignore", invalid="ignore"):
        A, c = (W * scale).astype(np.float32), (beta - mean * scale).astype(np.float32)
    if not (np.isfinite(A).all() and np.isfinite(c).all()):
        raise DataError(
            f"model: layer {name} has no finite float32 weights once its batch norm is folded; it "
            "has diverged: train it again with a lower --lr"
        )
    return Map(name, A, c, abs(beta) + abs(mean * scale))


def walk(network: Network, points: np.ndarray, groups: tuple, arithmetic: Any) -> Any:
    """Return the logits of points (B, N, 3) float32 with the groups of prepare().

    arithmetic has these methods, of arrays of its own kind:

        positions(points)     the points as a layer reads them
        take(x, members)      x (B, N, C), members (B, ...) indices -> (B, ..., C)
        minus(x, centres)     offsets (B, M, k, 3) of x from centres (B, M, 3)
        beside(x, y)          [x ; y] along the channels
        layer(map, x)         max(A x + c, 0)
        largest(x)            the maximum along the axis before the channels
        mean(x)               the mean along it
        residual(map, x)      layer(map, x) + x
        logits(map, x)        A x + c
    """
    a, arrays, x = arithmetic, iter(groups), None
    positions = a.positions(points)
    for each in network.entry:
        x = a.layer(each, positions if x is None else x)
    for level in network.levels:
        at, parts = a.take(positions, next(arrays)), []
        for scale in level.scales:
            members = next(arrays)
            rows = a.minus(a.take(positions, members), at)
            if x is not None:
                rows = a.beside(rows, a.take(x, members))
            for each in scale.maps:
                rows = a.layer(each, rows)
            parts.append(a.largest(rows))
        x = parts[0]
        for part in parts[1:]:
            x = a.beside(x, part)
        if level.residual:
            x = a.residual(level.residual, x)
        positions = at
    x = positions if x is None else a.beside(positions, x)
    for each in network.last:
        x = a.layer(each, x)
    pooled = a.largest(x)
    x = a.beside(pooled, a.mean(x)) if network.mean else pooled
    for each in network.head:
        x = a.layer(each, x)
    return a.logits(network.out, x)


def taken(x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return x (B, N, C) at members (B, ...), indices of points -> (B, ..., C)."""
    clouds = np.arange(len(x)).reshape(-1, *[1] * (members.ndim - 1))
    return x[clouds, members]


class Exact:
    """What is exact in any arithmetic of arrays, or one subtraction."""

    def take(self, x: np.ndarray, members: np.ndarray) -> np.ndarray:
        return taken(x, members)

    def minus(self, x: np.ndarray, centres: np.ndarray) -> np.ndarray:
        return x - centres[:, :, None]

    def beside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.concatenate([x, y], axis=-1)

    def largest(self, x: np.ndarray) -> np.ndarray:
        return x.max(axis=-2)


class Float32(Exact):
    """The arithmetic of the exported float programs."""

    def positions(self, points: np.ndarray) -> np.ndarray:
        return points

    def layer(self, each: Map, x: np.ndarray) -> np.ndarray:
        return np.maximum(self.logits(each, x), 0)

    def mean(self, x: np.ndarray) -> np.ndarray:
        return x.mean(axis=-2)

    def residual(self, each: Map, x: np.ndarray) -> np.ndarray:
        return self.layer(each, x) + x

    def logits(self, each: Map, x: np.ndarray) -> np.ndarray:
        return x @ each.A + each.c
