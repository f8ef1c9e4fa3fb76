"""Optimiser steps against plain loops, the schedule, clipping, and what is refused."""

from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np
import pytest

from minipc.errors import BackendError, DataError
from minipc.nn import optim
from reference_tests.mathematics import oracles
from reference_tests.tools.fake_device import assert_agrees, map_arrays, moved

SHAPES = {
    "shared0.W": (3, 4),
    "shared0.gamma": (4,),
    "shared0.beta": (4,),
    "out.W": (4, 2),
    "out.b": (2,),
}
DECAYED = {"shared0.W", "out.W"}

both = pytest.mark.parametrize(
    "start, step, oracle",
    [
        (optim.adamw_start, optim.adamw_step, oracles.adamw),
        (optim.sgd_start, optim.sgd_step, oracles.sgd),
    ],
    ids=["adamw", "sgd"],
)


def draw(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def flat(tree):
    return {name: [float(x) for x in value.ravel()] for name, value in tree.items()}


@both
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twelve_steps_equal_the_loop(start, step, oracle, weight_decay):
    params, grads_of_steps = draw(0), [draw(seed) for seed in range(1, 13)]
    new, state = params, start(params)
    for grads in grads_of_steps:
        new, state = step(new, grads, state, 0.02, weight_decay)
    want = oracle(flat(params), [flat(g) for g in grads_of_steps], 0.02, weight_decay, DECAYED)
    assert state.step == 12 and list(new) == list(params)
    for name, values in flat(new).items():
        np.testing.assert_allclose(
            values, want[name], rtol=1e-13, atol=1e-14
        )  # some tens of roundings


def test_other_constants_reach_the_formulas():
    params, grads = draw(0), [draw(1), draw(2)]
    options = {"beta1": 0.5, "beta2": 0.7, "eps": 0.1}
    new, state = params, optim.adamw_start(params)
    slid, sgd_state = params, optim.sgd_start(params)
    for g in grads:
        new, state = optim.adamw_step(new, g, state, 0.3, 0.2, **options)
        slid, sgd_state = optim.sgd_step(slid, g, sgd_state, 0.3, 0.2, momentum=0.4)
    want = oracles.adamw(flat(params), [flat(g) for g in grads], 0.3, 0.2, DECAYED, **options)
    want_sgd = oracles.sgd(flat(params), [flat(g) for g in grads], 0.3, 0.2, DECAYED, momentum=0.4)
    for name in SHAPES:
        np.testing.assert_allclose(flat(new)[name], want[name], rtol=1e-13)  # a few roundings
        np.testing.assert_allclose(
            flat(slid)[name], want_sgd[name], rtol=1e-13, atol=1e-15
        )  # the same


def test_the_first_step_of_adamw_has_the_length_of_the_rate():
    """After bias correction m = g and v = g^2, so each number moves by lr towards -sign(g)."""
    params, grads = draw(0), draw(1)
    new, _ = optim.adamw_step(params, grads, optim.adamw_start(params), 0.01, 0.0)
    for name in params:
        moves = new[name] - params[name]
        np.testing.assert_allclose(moves, -0.01 * np.sign(grads[name]), rtol=1e-5)  # eps / |g|


@both
def test_only_weights_of_linear_layers_decay(start, step, oracle):
    params = draw(0)
    zero = {name: np.zeros_like(value) for name, value in params.items()}
    new, _ = step(params, zero, start(params), 0.5, 0.1)
    for name, value in params.items():
        if name in DECAYED:
            np.testing.assert_allclose(
                new[name], value * 0.95, rtol=1e-14
            )  # 1 - lr decay, one rounding
        else:
            np.testing.assert_array_equal(new[name], value)


@both
def test_missing_and_additional_gradients_are_refused_by_name(start, step, oracle):
    params, grads = draw(0), draw(1)
    state = start(params)
    missing = {name: grads[name] for name in grads if name != "out.b"}
    with pytest.raises(DataError, match=r"same names; only one side has \['out\.b'\]"):
        step(params, missing, state, 0.1, 0.0)
    with pytest.raises(DataError, match=r"only one side has \['points'\]"):
        step(params, grads | {"points": np.zeros(3)}, state, 0.1, 0.0)


@both
def test_a_step_changes_nothing_it_was_given(start, step, oracle):
    params, grads = draw(0), draw(1)
    _, state = step(params, draw(2), start(params), 0.1, 0.1)
    before = map_arrays(np.copy, (params, grads, state))
    step(params, grads, state, 0.1, 0.1)
    assert_agrees(np, (params, grads, state), before)


@both
def test_the_order_of_gradients_does_not_matter_and_that_of_parameters_is_kept(start, step, oracle):
    params, grads = draw(0), draw(1)
    new, _ = step(params, grads, start(params), 0.1, 0.1)
    backwards = dict(reversed(grads.items()))
    again, _ = step(params, backwards, start(params), 0.1, 0.1)
    assert list(again) == list(params)
    assert_agrees(np, again, new)


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_agree_between_modules(start, step, oracle, dtype, device):
    def run(xp):
        params = moved(xp, draw(0, dtype))
        state = start(params)
        for seed in (1, 2, 3):
            params, state = step(params, moved(xp, draw(seed, dtype)), state, 0.02, 0.1)
        return params, state

    # elementwise; a kernel on a real device may contract a product and a sum
    assert_agrees(device, run(device), run(np), digits=1e-10 if dtype == np.float64 else 1e-5)


@both
def test_host_gradients_for_device_parameters_are_refused(start, step, oracle, fake_cupy):
    params = moved(fake_cupy, draw(0))
    with pytest.raises(BackendError, match="mixed"):
        step(params, draw(1), start(params), 0.1, 0.0)


# the schedule


def test_the_rate_warms_up_and_falls_as_half_a_cosine():
    factors = [optim.warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[:10] == [(i + 1) / 10 for i in range(10)]
    assert factors[10] == 1.0 == max(factors)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.5, abs=1e-15)  # half-way between 10 and 100; cos(pi / 2)
    for i in (20, 77, 99):
        assert factors[i] == pytest.approx(
            (1 + cos(pi * (i - 10) / 90)) / 2, abs=1e-15
        )  # one rounding
    assert 0 < factors[-1] < 4e-4  # (pi / 90)^2 / 4 = 3.05e-4
    assert optim.warmup_cosine(100, 100, 10) == pytest.approx(0, abs=1e-15)  # cos(pi) + 1


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 30, 399, 400, 401])
def test_a_run_shorter_than_its_warm_up_still_reaches_the_full_rate(steps):
    factors = [optim.warmup_cosine(step, steps, 200) for step in range(steps)]
    assert max(factors) == 1.0
    assert all(0 < factor <= 1 for factor in factors)
    assert factors.index(1.0) <= steps // 2
    if steps >= 30:
        assert factors[-1] < 0.02


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    assert optim.warmup_cosine(0, 50, 0) == 1.0


# clipping


def test_long_gradients_are_scaled_to_the_largest_norm_and_keep_their_direction(xp):
    grads = draw(0)
    length = sqrt(sum(float((g * g).sum()) for g in grads.values()))
    clipped, norm = optim.clip_by_norm(moved(xp, grads), 0.5)
    assert float(norm) == pytest.approx(length, rel=1e-14)  # order of a sum
    assert clipped.keys() == grads.keys()
    for name, g in grads.items():
        host = clipped[name] if xp is np else xp.asnumpy(clipped[name])
        np.testing.assert_allclose(host, g * (0.5 / length), rtol=1e-13)  # a few roundings
    again, norm = optim.clip_by_norm(clipped, 10.0)
    assert float(norm) == pytest.approx(0.5, rel=1e-14)  # a few roundings


def test_short_and_zero_gradients_are_left_alone_bit_for_bit():
    for grads in (draw(0), {name: np.zeros(shape) for name, shape in SHAPES.items()}):
        clipped, _ = optim.clip_by_norm(grads, 1e3)
        assert_agrees(np, clipped, grads)
