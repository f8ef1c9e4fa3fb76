"""Parameters: specifications first, arrays second, in one flat dict of dotted names.

Gradients have the same names.  Running statistics have no gradient and a dict of their own.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np


class Spec(NamedTuple):
    """Shape and initial distribution of one parameter: N(mean, std^2); constant if std is 0."""

    shape: tuple[int, ...]
    mean: float
    std: float


def linear_spec(name: str, fan_in: int, fan_out: int) -> dict[str, Spec]:
    """Return the weight of one linear layer, He-initialised (He et al. 2015, eq. 10)."""
    return {f"{name}.W": Spec((fan_in, fan_out), 0.0, (2 / fan_in) ** 0.5)}


def batch_norm_spec(name: str, channels: int) -> dict[str, Spec]:
    """Return gamma (ones) and beta (zeros) of one batch norm."""
    return {
        f"{name}.gamma": Spec((channels,), 1.0, 0.0),
        f"{name}.beta": Spec((channels,), 0.0, 0.0),
    }


def batch_norm_stats(name: str, channels: int, dtype: Any) -> dict[str, np.ndarray]:
    """Return the running statistics of a new batch norm: mean zero, variance one."""
    return {f"{name}.mean": np.zeros(channels, dtype), f"{name}.var": np.ones(channels, dtype)}


def bias_spec(name: str, channels: int) -> dict[str, Spec]:
    """Return one bias, starting at zero."""
    return {f"{name}.b": Spec((channels,), 0.0, 0.0)}


def size_of(specs: dict[str, Spec]) -> int:
    """Return the number of parameters in all arrays."""
    return sum(prod(spec.shape) for spec in specs.values())


def initialise(
    specs: dict[str, Spec], rng: np.random.Generator, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Return {name: array of dtype}, drawn on the host from rng in the order of specs."""
    return {
        name: (spec.mean + spec.std * rng.standard_normal(spec.shape)).astype(dtype)
        for name, spec in specs.items()
    }
