"""Networks inside a wider one, as network augmentation trains them (Cai et al. 2022, NetAug).

The largest network is the only set of parameters.  Every narrower network of the same depth owns
the leading channels of each layer, W[:inputs, :outputs], gamma[:outputs].  Where channels lie side
by side, such as [offset ; features], scales, or [max ; mean], it owns the leading channels of each
part: otherwise a wider first part would push the second one to other rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import DataError


class Channels(NamedTuple):
    """The channels of one layer, as the widths of the parts that lie side by side."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def leading(parts: Sequence[int], of: Sequence[int]) -> np.ndarray:
    """Return the channels (sum of parts,) that parts own among `of`, the widths of a wider network.

    leading((3, 2), (3, 5)) is [0 1 2, 3 4]; leading((2, 2), (5, 5)) is [0 1, 5 6].  Raises
    DataError unless both have as many parts, and the wider network is nowhere narrower.
    """
    if len(parts) != len(of) or any(part > wide for part, wide in zip(parts, of, strict=True)):
        raise DataError(
            f"widening: channels {tuple(parts)} do not fit in {tuple(of)}; take a wider network of "
            "the same model"
        )
    first = np.cumsum((0, *of))[:-1]
    return np.concatenate(
        [begin + np.arange(part) for begin, part in zip(first, parts, strict=True)]
    )


def index_of(
    small: dict[str, Channels], large: dict[str, Channels], xp: Any = np
) -> dict[str, Any]:
    """Return {parameter: index of its slice in the array of the larger network}.  (W1)

    small, large: the channels() of both networks.  The index has arrays of xp: rows (I, 1) and
    columns (O,) of W, columns of gamma, beta and b.  Raises DataError as leading() does.
    """
    if small.keys() != large.keys():
        raise DataError(
            f"widening: the networks have other layers, {sorted(small.keys() ^ large.keys())}; "
            "take a wider network of the same model"
        )
    index: dict[str, Any] = {}
    for layer, wide in large.items():
        rows, columns = (
            xp.asarray(leading(*pair)) for pair in zip(small[layer], wide, strict=True)
        )
        index[f"{layer}.W"] = (rows[:, None], columns)
        index |= {f"{layer}.{part}": columns for part in ("gamma", "beta", "b")}
    return index


def take(params: dict[str, Any], index: dict[str, Any]) -> dict[str, Any]:
    """Return the slices of params, {name: array}, as C-contiguous copies.

    A network computes with them the same bits as one that was built apart with these values.
    """
    return {
        name: module_of(value).ascontiguousarray(value[index[name]])
        for name, value in params.items()
    }


def put(params: dict[str, Any], slices: dict[str, Any], index: dict[str, Any]) -> None:
    """Write the arrays of a narrower network into their slices of params."""
    for name, value in slices.items():
        params[name][index[name]] = value


def add(total: dict[str, Any], grads: dict[str, Any], index: dict[str, Any]) -> None:
    """Add the gradients of a narrower network into their slices of total.  (W2)

    No channel occurs twice in an index, so no term is lost.
    """
    for name, value in grads.items():
        total[name][index[name]] += value


def candidates(width: int, factor: float, steps: int) -> list[int]:
    """Return the widths that a layer may have: from width to factor times as many, in steps.  (W3)

    candidates(16, 3, 2) is [16, 32, 48]; fractions are rounded, halves up.
    """
    return [int(width * (1 + (factor - 1) * step / steps) + 0.5) for step in range(steps + 1)]


def draw_widths(
    widths: Sequence[int], factor: float, steps: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """Return one of the candidates of each width, each drawn for itself, equally likely."""
    drawn = rng.integers(0, steps + 1, len(widths))
    return tuple(
        candidates(width, factor, steps)[step] for width, step in zip(widths, drawn, strict=True)
    )
