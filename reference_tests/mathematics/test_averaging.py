"""Averaged weights against their definitions, and their statistics against all rows at once."""

import numpy as np
import pytest

from minipc.distil.averaging import EmaWeights, LastWeights
from minipc.distil.statistics import estimate, pooled
from minipc.errors import DataError
from minipc.models.file import new_model
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from minipc.nn.ops import BatchStats, linear_forward

DESCRIBED = {"class_names": ["a", "b", "c"], "up_axis": "z", "normalisation": "none"}


def walk(steps, seed=0):
    """Weights after each of some steps, float32, far from zero beside their changes."""
    rng = np.random.default_rng(seed)
    return [
        {"W": (3 + rng.standard_normal((4, 2))).astype(np.float32), "b": np.float32([step, -step])}
        for step in range(1, steps + 1)
    ]


def test_ema_is_the_weighted_mean_of_all_steps_with_weights_that_add_up_to_one():
    steps, m = walk(20), 0.9
    average = EmaWeights(m)
    for t, params in enumerate(steps, 1):
        average.stepped(params, t)
        weights = m ** np.arange(t - 1, -1.0, -1)
        for name, value in average.mean.items():
            stacked = np.array([each[name] for each in steps[:t]], np.float64)
            # 20 steps of a few float64 roundings of numbers below 32
            expected = np.tensordot(weights / weights.sum(), stacked, 1)
            np.testing.assert_allclose(value, expected, rtol=0, atol=20 * 4 * 32 * 2.0**-53)


def test_ema_of_weights_at_rest_are_these_weights_bit_for_bit():
    (params,) = walk(1)
    average = EmaWeights(0.999)
    for step in range(1, 50):
        average.stepped(params, step)
    for name, value in average.params().items():
        np.testing.assert_array_equal(value, params[name])


def test_last_is_the_mean_of_the_last_n_epochs_and_of_all_before_the_nth():
    average, epochs = LastWeights(3), walk(5)
    for done, params in enumerate(epochs, 1):
        live = {name: value.copy() for name, value in params.items()}
        average.epoch_ended(live)
        for value in live.values():
            value += 100  # as the next step does, in place
        for name, value in average.params().items():
            last = np.array([each[name] for each in epochs[max(done - 3, 0) : done]], np.float64)
            # sums of three float32 are nearly exact in float64: one rounding to float32 is left
            np.testing.assert_allclose(value, last.mean(axis=0), rtol=2.0**-23)


@pytest.mark.parametrize("kind", [lambda: EmaWeights(0.9), lambda: LastWeights(12)])
def test_an_average_comes_back_from_its_state_bit_for_bit(kind):
    one, other, steps = kind(), kind(), walk(14)
    for step, params in enumerate(steps[:13], 1):  # more epochs than have one digit
        one.stepped(params, step)
        one.epoch_ended(params)
    other.load(dict(sorted(one.state().items())), steps[0], np)  # a file sorts its names
    for average in (one, other):
        average.stepped(steps[13], 14)
        average.epoch_ended(steps[13])
    assert list(one.params()) == list(other.params())
    for name, value in one.params().items():
        np.testing.assert_array_equal(other.params()[name], value)
    with pytest.raises(DataError, match="averaged weights"):
        kind().load(one.state(), {"W": steps[0]["W"]}, np)


def test_pooled_moments_are_those_of_all_rows_at_once_whatever_the_batches():
    rows = np.random.default_rng(3).standard_normal((60, 5)) * [1, 2, 3, 4, 5] + 100
    parts = [rows[:7], rows[7:9], rows[9:10], rows[10:]]
    batches = [BatchStats(part.mean(axis=0), part.var(axis=0), len(part)) for part in parts]
    mean, var, count = pooled(batches)
    assert count == 60
    # some 60 float64 roundings of numbers of size 100; the variance is of differences
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=60 * 2.0**-53)
    np.testing.assert_allclose(var, rows.var(axis=0), rtol=0, atol=60 * 100 * 2.0**-53)
    with pytest.raises(DataError, match="no batch"):
        pooled([])


def batches_of(model, count=3, clouds=4):
    points = np.random.default_rng(1).standard_normal((count, clouds, 48, 3)).astype(np.float32)
    return [Inputs(x, net(model.config).prepare(model.config, x)) for x in points]


@pytest.mark.parametrize("engine", ["fused", "textbook"])
def test_statistics_of_the_first_layer_are_those_of_all_points_with_divisor_rows_less_one(engine):
    model = new_model(sizes("8-16:8", 3), DESCRIBED, 0)
    batches = batches_of(model)
    stats = estimate(model.params, model.config, batches, engine)
    points = np.concatenate([each.points for each in batches]).astype(np.float64)
    x, _ = linear_forward(points.reshape(-1, 3), model.params["shared0.W"].astype(np.float64))
    assert list(stats) == list(model.stats)
    assert {value.dtype for value in stats.values()} == {np.dtype(np.float32)}
    # 576 rows: sums in float32 of numbers of size one, pairwise or by BLAS; the divisor is 1 / 576
    np.testing.assert_allclose(stats["shared0.mean"], x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(stats["shared0.var"], x.var(axis=0, ddof=1), rtol=1e-4)
    assert len(x) == 576


@pytest.mark.parametrize("name", ["8-16:8", "32/8:8,16:8"])
def test_both_engines_estimate_the_same_statistics_and_change_nothing(name):
    model = new_model(sizes(name, 3), DESCRIBED, 0)
    before = {key: value.copy() for key, value in model.params.items()}
    batches = batches_of(model)
    fused, textbook = (
        estimate(model.params, model.config, batches, engine) for engine in ("fused", "textbook")
    )
    for key, value in fused.items():
        # two float32 engines; a head over few clouds multiplies roundings by up to 1 / its spread
        np.testing.assert_allclose(value, textbook[key], rtol=1e-3, atol=1e-4, err_msg=key)
    for key, value in model.params.items():
        np.testing.assert_array_equal(value, before[key])


def test_statistics_of_no_batch_are_refused():
    model = new_model(sizes("8-16:8", 3), DESCRIBED, 0)
    with pytest.raises(DataError, match="no batch"):
        estimate(model.params, model.config, [])
