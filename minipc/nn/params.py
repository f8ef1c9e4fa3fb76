"""Parameters: specifications first, arrays second, in one flat dict of dotted names.

Gradients carry the same names.  Running statistics have no gradient and live in a dict of their
own, never among the parameters.
"""

from typing import NamedTuple

import numpy as np


class Spec(NamedTuple):
    """Shape of one parameter and how it starts: N(mean, std^2), a constant where std is zero."""

    shape: tuple
    mean: float
    std: float


def linear_spec(name, fan_in, fan_out):
    """Return the weight of one linear layer, He-initialised (He et al. 2015, eq. 10)."""
    return {f"{name}.W": Spec((fan_in, fan_out), 0.0, (2 / fan_in) ** 0.5)}


def batch_norm_spec(name, channels):
    """Return gamma (ones) and beta (zeros) of one batch norm."""
    return {
        f"{name}.gamma": Spec((channels,), 1.0, 0.0),
        f"{name}.beta": Spec((channels,), 0.0, 0.0),
    }


def bias_spec(name, channels):
    """Return one bias, starting at zero."""
    return {f"{name}.b": Spec((channels,), 0.0, 0.0)}


def initialise(specs, rng, dtype=np.float32):
    """Return {name: array of dtype}, drawn on the host from rng in the order of specs."""
    return {
        name: (spec.mean + spec.std * rng.standard_normal(spec.shape)).astype(dtype)
        for name, spec in specs.items()
    }
