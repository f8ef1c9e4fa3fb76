"""Optimiser steps and learning-rate schedules, as pure functions of dicts.

Weight decay applies to the weights of linear layers alone (names ending in ".W"): decay of batch
norm or biases regularises nothing and slows their training.
"""

from math import cos, pi
from typing import Any, NamedTuple

from minipc.backend import module_of
from minipc.errors import DataError
from minipc.nn import kernels


def _same_names(params: dict[str, Any], grads: dict[str, Any]) -> None:
    if params.keys() != grads.keys():
        odd = sorted(params.keys() ^ grads.keys())
        raise DataError(
            f"optimiser: parameters and gradients must have the same names; only one side has {odd}"
        )


def _decay(name: str, weight_decay: float) -> float:
    return weight_decay if name.endswith(".W") else 0.0


def _zeros(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value * 0 for name, value in params.items()}


class AdamWState(NamedTuple):
    step: int
    m: dict[str, Any]  # first moments
    v: dict[str, Any]  # second moments


def adamw_start(params: dict[str, Any]) -> AdamWState:
    """Return the state before the first step."""
    return AdamWState(0, _zeros(params), _zeros(params))


def adamw_step(
    params: dict[str, Any],
    grads: dict[str, Any],
    state: AdamWState,
    lr: float,
    weight_decay: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> tuple[dict[str, Any], AdamWState]:
    """Return new params and state after one step of AdamW.  (O1)

    Kingma & Ba 2015, algorithm 1, with the decay decoupled as in Loshchilov & Hutter 2019,
    algorithm 2.  Raises DataError unless parameters and gradients have the same names.
    """
    _same_names(params, grads)
    step = state.step + 1
    scale1, scale2 = 1 / (1 - beta1**step), 1 / (1 - beta2**step)
    new, m, v = {}, {}, {}
    for name, g in grads.items():
        xp = module_of(params[name], g)
        m[name] = beta1 * state.m[name] + (1 - beta1) * g
        v[name] = beta2 * state.v[name] + (1 - beta2) * (g * g)
        update = (m[name] * scale1) / (xp.sqrt(v[name] * scale2) + eps)
        new[name] = params[name] * (1 - lr * _decay(name, weight_decay)) - lr * update
    return {name: new[name] for name in params}, AdamWState(step, m, v)


def adamw_in_place(
    params: dict[str, Any],
    grads: dict[str, Any],
    state: AdamWState,
    lr: float,
    weight_decay: float,
    work: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> AdamWState:
    """Take one step of (O1) in place, bit for bit as adamw_step; return the new state.

    All arrays must be C-contiguous, and the gradients serve as scratch.  The threads of the
    Workspace work take long arrays in slices that stay in a core's cache; a short array costs less
    than a thread.  On a device it is one kernel, and the dicts then hold views of one array each.
    """
    _same_names(params, grads)
    xp, step = work.xp, state.step + 1
    if kernels.on_device(xp):
        rates = kernels.adamw_rates(step, lr, weight_decay, beta1, beta2, eps)
        kernels.adamw(params, grads, *state[1:], work, rates)
        return state._replace(step=step)
    scale1, scale2 = 1 / (1 - beta1**step), 1 / (1 - beta2**step)
    slices = [
        (name, first)
        for name, value in params.items()
        for first in range(0, value.size, work.slice)
    ]

    def update(item: tuple[str, int]) -> None:
        name, first = item
        some = slice(first, first + work.slice)
        p, g, m, v = (array[name].reshape(-1)[some] for array in (params, grads, state.m, state.v))
        t = work.scratch("adamw", g.shape, g.dtype)
        m *= beta1
        m += xp.multiply(g, 1 - beta1, out=t)
        v *= beta2
        v += xp.multiply(xp.multiply(g, g, out=t), 1 - beta2, out=t)
        t = xp.sqrt(xp.multiply(v, scale2, out=t), out=t)
        t += eps
        g = xp.multiply(m, scale1, out=g)
        g /= t
        g *= lr
        p *= 1 - lr * _decay(name, weight_decay)
        p -= g

    if len(slices) > len(params):
        work.map(update, slices)
    else:
        for item in slices:
            update(item)
    return state._replace(step=step)


class SgdState(NamedTuple):
    step: int
    velocity: dict[str, Any]


def sgd_start(params: dict[str, Any]) -> SgdState:
    """Return the state before the first step."""
    return SgdState(0, _zeros(params))


def sgd_step(
    params: dict[str, Any],
    grads: dict[str, Any],
    state: SgdState,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
) -> tuple[dict[str, Any], SgdState]:
    """Return new params and state after one step of SGD with momentum.  (O2)

    PyTorch's convention: the gradient includes the weight decay, velocity = momentum velocity
    + gradient, params -= lr velocity.
    """
    _same_names(params, grads)
    new, velocity = {}, {}
    for name, g in grads.items():
        module_of(params[name], g)
        decay = _decay(name, weight_decay)
        velocity[name] = momentum * state.velocity[name] + (g + decay * params[name])
        new[name] = params[name] - lr * velocity[name]
    return {name: new[name] for name in params}, SgdState(state.step + 1, velocity)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at step (from 0) of a run of this many steps.  (O3)

    Linear over the warm-up, (step + 1) / warmup, then half a cosine from 1 to 0.  A run shorter
    than twice the warm-up warms up over its first half.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + cos(pi * (step - warmup) / max(steps - warmup, 1)))


def clip_by_norm(grads: dict[str, Any], largest: float) -> tuple[dict[str, Any], Any]:
    """Return gradients scaled so that their joint 2-norm is at most largest, and that norm.  (O4)

    The norm comes back as a 0-d array of the gradients' module: no transfer from a device.
    """
    xp = module_of(*grads.values())
    norm = xp.sqrt(sum((g * g).sum() for g in grads.values()))
    factor = largest / xp.maximum(norm, largest)  # exactly 1 where nothing is clipped
    return {name: g * factor for name, g in grads.items()}, norm
