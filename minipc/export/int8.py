"""A network in whole numbers: weights of 8 bits, activations of 8, sums of 32, exact by definition.

    positions   q = floor(p / 2^e + 1/2), |q| <= 16383; offsets are differences of these
    activation  0 <= q <= 255 stands for q s; ReLU leaves nothing below zero
    weight      W = s_o w, -127 <= w <= 127, a scale for each output channel o
    a layer     t = a M + a' M' + B,  q = min(max(floor(t / 2^S), 0), 255)

a and a' are the sums of w q over the two parts of an input that lie side by side, such as
[offset ; features], each of which has its own scale; most layers have one.  M, M', B and S belong
to the channel; half of 2^S is in B, so that q is rounded.  The scale s of a layer is 1/255 of its
largest activation on training clouds.  simulated() computes these numbers as the C program does:
every one is a whole number, so both agree to the last bit.
"""

from typing import Any, NamedTuple

import numpy as np

from minipc.errors import DataError
from minipc.export.folding import Exact, Float32, Map, Network, walk

POSITIONS, LARGEST, WEIGHTS = 16383, 255, 127  # so that offsets fit in 16 bits
BITS = 24  # of a multiplier M
MOST_SHIFT, MOST_BIAS, MOST_FACTOR = 40, 1 << 60, 1 << 30  # so that t stays below 2^63
MOST_INPUTS = (2**31 - 1) // (LARGEST * WEIGHTS)  # of a layer: sums fit in 32 bits


class WholeMap(NamedTuple):
    """One layer in whole numbers."""

    name: str
    w: np.ndarray  # (I, O) int8
    split: int  # inputs of the first part
    factors: list  # of (O,) int64: M, and M' where there is a second part
    bias: np.ndarray  # (O,) int64, B
    shift: np.ndarray  # (O,) int64, S


class Rescale(NamedTuple):
    """floor(a factor / 2^shift + 1/2), the same for all channels."""

    factor: int
    shift: int


class WholeNetwork(NamedTuple):
    """A Network whose Maps are WholeMaps, with what else has a scale."""

    maps: dict  # {name: WholeMap}
    unit: float  # of positions, a power of two
    residuals: dict  # {name: Rescale} of the input that is added
    mean: Rescale | None  # of the sum over the last centres
    logit: float  # what 1 in the logits stands for, a power of two


class _Seen(Float32):
    """Float32 arithmetic that keeps the largest activation of each layer."""

    def __init__(self, largest: dict[str, float]) -> None:
        self.seen = largest

    def see(self, name: str, x: np.ndarray) -> np.ndarray:
        self.seen[name] = float(np.maximum(self.seen.get(name, 0.0), x.max()))  # NaN stays NaN
        return x

    def layer(self, each: Map, x: np.ndarray) -> np.ndarray:
        return self.see(each.name, super().layer(each, x))

    def mean(self, x: np.ndarray) -> np.ndarray:
        return self.see("mean", super().mean(x))

    def residual(self, each: Map, x: np.ndarray) -> np.ndarray:
        return self.see(each.name, super().layer(each, x) + x)


def see(network: Network, points: np.ndarray, groups: tuple, largest: dict[str, float]) -> None:
    """Update {layer: largest activation} by training clouds (B, N, 3); "positions" is there too.

    Raises DataError for activations that are not finite.
    """
    arithmetic = _Seen(largest)
    arithmetic.see("positions", abs(points))
    with np.errstate(over="ignore", invalid="ignore"):
        walk(network, points, groups, arithmetic)
    if not np.isfinite(list(largest.values())).all():
        raise DataError("model: its activations on these clouds are not finite; it has diverged")


def quantised(network: Network, largest: dict[str, float]) -> WholeNetwork:
    """Return the network in whole numbers, with the largest activations of see().

    A layer whose activations are all zero gets the scale of activations up to 1; a channel without
    weights has weights 0 and its bias.  Raises DataError for a layer of too many inputs.
    """

    def step(*names: str) -> float:
        return (max(largest[name] for name in names) or 1.0) / LARGEST

    far = largest["positions"] or 1.0
    unit = max(2.0 ** np.ceil(np.log2(far / POSITIONS)), 2.0**-100)  # its inverse is a float32
    maps: dict[str, WholeMap] = {}
    residuals: dict[str, Rescale] = {}
    features: list[tuple[int, float]] = []  # (channels, scale) of what the next layer reads

    def column(some: list[Map], inputs: list[tuple[int, float]], *joined: str) -> list:
        """Quantise layers one after the other; joined: layers that share the last one's scale."""
        for each in some:
            names = joined if joined and each is some[-1] else (each.name,)
            maps[each.name] = _whole(each, inputs, step(*names))
            inputs = [(each.A.shape[1], step(*names))]
        return inputs

    here = (3, unit)
    if network.entry:
        features = column(network.entry, [here])
    for level in network.levels:
        ends = [scale.maps[-1].name for scale in level.scales]
        for scale in level.scales:
            column(scale.maps, [here, *features], *ends)
        features = [(sum(scale.maps[-1].A.shape[1] for scale in level.scales), step(*ends))]
        if level.residual:
            name, (count, before) = level.residual.name, features[0]
            maps[name] = _whole(level.residual, features, step(name))
            residuals[name] = _rescale(before / step(name))
            features = [(count, step(name))]
    features = column(network.last, [here, *features])
    mean = None
    if network.mean:
        width, scale = features[0]
        mean = _rescale(scale / step("mean") / network.levels[-1].centres)
        features.append((width, step("mean")))
    features = column(network.head, features)
    out = network.out
    sizes = np.repeat([LARGEST * scale for _, scale in features], [n for n, _ in features])
    # no input makes a logit that does not fit, whatever the rounding of its parts
    most = 2 * float((sizes @ abs(out.A.astype(np.float64)) + abs(out.c)).max()) or 1.0
    logit = 2.0 ** np.ceil(np.log2(most / 2.0**30))
    maps["out"] = _whole(out, features, float(logit), rounded=False)
    return WholeNetwork(maps, float(unit), residuals, mean, float(logit))


def _rescale(m: float) -> Rescale:
    (factor,), shift = _fixed(np.array([[m]]), np.zeros(1))
    return Rescale(int(factor[0]), int(shift[0]))


def _fixed(m: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whole factors (P, O) and shifts (O,), so that factor / 2^shift is about m.

    m (P, O) real multipliers of a channel's parts; offset (O,) is shifted too, and must fit.
    """
    _, bits = np.frexp(m.max(axis=0))
    _, bits_of_offset = np.frexp(abs(offset))
    shift = np.minimum(np.minimum(BITS - bits, 60 - bits_of_offset), MOST_SHIFT)
    shift = np.maximum(shift, 1).astype(np.int64)
    factors = np.minimum(np.rint(m * 2.0**shift), MOST_FACTOR).astype(np.int64)
    return factors, shift


def _whole(
    each: Map, inputs: list[tuple[int, float]], step: float, rounded: bool = True
) -> WholeMap:
    """Return a layer in whole numbers.

    inputs: (channels, scale) of each part; step: the scale of the output; rounded: half of 2^S is
    in the bias.
    """
    if len(each.A) > MOST_INPUTS:
        raise DataError(
            f"model: layer {each.name} has {len(each.A)} inputs, and sums of 32 bits hold at most "
            f"{MOST_INPUTS}; export it without --int8"
        )
    A, first = each.A.astype(np.float64), inputs[0][0]
    parts = [A[:first], A[first:]][: len(inputs)]
    steps = [np.where((a := abs(part).max(axis=0)) > 0, a, 1.0) / WEIGHTS for part in parts]
    w = np.concatenate(
        [np.rint(part / of_weights) for part, of_weights in zip(parts, steps, strict=True)]
    ).astype(np.int8)
    m = np.stack(
        [of_weights * scale / step for of_weights, (_, scale) in zip(steps, inputs, strict=True)]
    )
    offset = each.c.astype(np.float64) / step
    factors, shift = _fixed(m, offset)
    bias = np.clip(np.rint(offset * 2.0**shift), -MOST_BIAS, MOST_BIAS).astype(np.int64)
    if rounded:
        bias += np.int64(1) << (shift - 1)
    return WholeMap(each.name, w, first, list(factors), bias, shift)


def simulated(
    network: Network, whole: WholeNetwork, points: np.ndarray, groups: tuple
) -> np.ndarray:
    """Return the logits (B, K) int32 of points (B, N, 3), bit for bit those of the C program."""
    return walk(network, points, groups, _Whole(whole)).astype(np.int32)


class _Whole(Exact):
    """The definition above; every array is int64."""

    def __init__(self, whole: WholeNetwork) -> None:
        self.whole = whole

    def positions(self, points: np.ndarray) -> np.ndarray:
        half = np.float32(0.5)  # as in C: product and sum are rounded to float32
        q = np.floor(points * np.float32(1 / self.whole.unit) + half)
        return np.clip(q, -POSITIONS, POSITIONS).astype(np.int64)

    def _total(self, each: Map, x: np.ndarray) -> tuple[np.ndarray, WholeMap]:
        layer = self.whole.maps[each.name]
        total = layer.bias
        for part, factor in zip(
            (slice(layer.split), slice(layer.split, None)), layer.factors, strict=False
        ):
            # float64 adds whole numbers below 2^53 without error
            sums = x[..., part].astype(np.float64) @ layer.w[part].astype(np.float64)
            total = total + sums.astype(np.int64) * factor
        return total, layer

    def layer(self, each: Map, x: np.ndarray) -> np.ndarray:
        total, layer = self._total(each, x)
        return np.clip(total >> layer.shift, 0, LARGEST)

    def _rescaled(self, x: np.ndarray, by: Any) -> np.ndarray:
        return (x * by.factor + (1 << (by.shift - 1))) >> by.shift

    def mean(self, x: np.ndarray) -> np.ndarray:
        return np.minimum(self._rescaled(x.sum(axis=-2), self.whole.mean), LARGEST)

    def residual(self, each: Map, x: np.ndarray) -> np.ndarray:
        before = self._rescaled(x, self.whole.residuals[each.name])
        return np.minimum(self.layer(each, x) + before, LARGEST)

    def logits(self, each: Map, x: np.ndarray) -> np.ndarray:
        """Rounded half away from zero: shifts of negative numbers are not defined in C."""
        total, layer = self._total(each, x)
        half = np.int64(1) << (layer.shift - 1)
        return np.sign(total) * ((abs(total) + half) >> layer.shift)
