"""The fast engine against the textbook: gradients, edges, threads, memory."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minipc.audit.problems import Step, distance_to_kinks
from minipc.data.augment import AugmentConfig, Params, apply, draw
from minipc.errors import DataError, UsageError
from minipc.models.model import track
from minipc.models.pointnet import (
    ModelConfig,
    forward_eval,
    forward_train,
    initial_stats,
    param_specs,
    sizes,
)
from minipc.nn import gradcheck, ops, optim
from minipc.nn.engine import backward
from minipc.nn.fast import fused, products
from minipc.nn.fast.workspace import Workspace
from minipc.nn.params import initialise
from reference_tests.tools.accuracy import (
    FAR,
    both,
    drawn_out,
    errors_in_float32,
    one_cloud_far,
    one_point_far,
    problem,
    statistics,
    worst,
)
from reference_tests.tools.fake_device import moved
from reference_tests.tools.memory import new_memory_of

SMALL = ModelConfig((6, 8, 12), (10,), classes=5)
EPSILON = np.finfo(np.float64).eps


def away_from_kinks(config, clouds, points):
    """Return problem() of the first seed whose ReLUs and pools no rounding can turn."""
    nothing = dict.fromkeys(Step._fields) | {"groups": ()}
    without_loss = Step(**nothing | {"model": config, "engine": "textbook"})
    for seed in range(100):
        params, x, dlogits = problem(config, clouds, points, seed=seed)
        if distance_to_kinks(params | {"points": x}, without_loss) > 1e-8:
            return params, x, dlogits
    raise AssertionError("100 draws, and each lay on a kink")


def in_long_double(config, params, points, dlogits):
    """Return what both() returns of the textbook engine, computed in long double."""
    params = {name: value.astype(np.longdouble) for name, value in params.items()}
    z, batch, tape = forward_train(params, points.astype(np.longdouble), config, None, "textbook")
    grads, d = backward(dlogits.astype(np.longdouble), tape)
    return z, batch, grads | {"points": d}


def distances(found, exact):
    """Return {name: distance}: gradients against the largest, all else against itself."""
    (z, batch, grads), (z_e, batch_e, grads_e) = found, exact
    own = {"z": (z, z_e)} | {
        name: (value, statistics(batch_e)[name]) for name, value in statistics(batch).items()
    }
    return {"gradients": worst(grads, grads_e)} | {
        name: worst({0: a}, {0: b}) for name, (a, b) in own.items()
    }


# exactness


@pytest.mark.parametrize(
    "config, clouds, points",
    [
        (SMALL, 4, 7),
        (SMALL, 2, 1),  # one point: it always wins
        (ModelConfig((5, 7, 130), (33,), 3), 5, 51),  # widths that no group divides
        (ModelConfig((4, 6), (5,), 3), 2, 70_000),  # more points than two bytes count
        (ModelConfig((5,), (), 3), 3, 10),  # the pooled layer alone
        (ModelConfig((16, 16, 32, 64), (32,), 40), 6, 300),
        (ModelConfig((32, 32, 64, 128), (64,), 40), 3, 256),
        (ModelConfig((64, 64, 64, 128, 1024), (512, 256), 40), 3, 130),
    ],
)
def test_both_engines_agree_to_rounding(config, clouds, points):
    """In float64 the fast engine is as near to long double as the textbook engine is.

    The latter's own error says how the problem magnifies roundings (a head's batch norm over two
    rows can divide by next to nothing); ten times that, as both are noise, and besides 100
    roundings and the random walk of those of a sum over all rows.
    """
    params, x, dlogits = away_from_kinks(config, clouds, points)
    mine, theirs = both(config, params, x, dlogits)
    exact = in_long_double(config, params, x, dlogits)
    assert mine[2].keys() == theirs[2].keys() == exact[2].keys()
    errors = [distances(found, exact) for found in (mine, theirs)]
    assert errors[0].keys() == errors[1].keys()
    floor = (100 + np.sqrt(clouds * points)) * EPSILON
    for name, error in errors[0].items():
        assert error <= 10 * errors[1][name] + floor, name
    assert max(errors[0].values()) < 1e-8  # and that is little
    assert {name: layer.rows for name, layer in mine[1].items()} == {
        n: layer.rows for n, layer in theirs[1].items()
    }
    tracked, tracked_t = (
        track(initial_stats(config, np.float64), each, config) for each in (mine[1], theirs[1])
    )
    assert worst(tracked, tracked_t) <= 10 * max(errors[1].values()) + floor


@pytest.mark.parametrize("block", [1, 3000, 2**20])  # 7 clouds as 1 each, as 2 + 2 + 2 + 1, as all
@pytest.mark.parametrize("small", [100, 10**6])
def test_no_division_into_blocks_changes_the_result_beyond_rounding(block, small, monkeypatch):
    monkeypatch.setattr(products, "SMALL", small)  # products in parts of the points, and whole ones
    config = ModelConfig((8, 16, 96), (10,), 5)
    params, x, dlogits = problem(config, 7, 48)
    work = Workspace()
    work.block = work.slice = block
    assert (
        len(fused.to_tower(x, config.shared[:-1], work).blocks())
        == {1: 7, 3000: 4, 2**20: 1}[block]
    )
    (z, _, grads), (z_t, _, grads_t) = both(config, params, x, dlogits, work)
    assert worst(grads, grads_t) <= 1e-12 and worst({"z": z}, {"z": z_t}) <= 1e-12


@pytest.mark.parametrize("gain", [-1.0, 0.0])
def test_both_engines_agree_where_every_gain_is_negative_or_zero(gain):
    params, x, dlogits = problem(SMALL, 5, 20)
    params |= {
        name: gain * np.abs(value) for name, value in params.items() if name.endswith(".gamma")
    }
    params["shared2.beta"] = (
        np.abs(params["shared2.beta"]) + 0.1
    )  # else nothing at all passes at zero
    (z, _, grads), (z_t, _, grads_t) = both(SMALL, params, x, dlogits)
    assert worst(grads, grads_t) <= 1e-12 and worst({"z": z}, {"z": z_t}) <= 1e-12


def test_a_batch_of_one_cloud_agrees():
    config = ModelConfig((6, 8), (), 4)  # a head's batch norm would make every logit its offset
    params, x, dlogits = problem(config, 1, 40)
    (z, _, grads), (z_t, _, grads_t) = both(config, params, x, dlogits)
    assert worst(grads, grads_t) <= 1e-12 and worst({"z": z}, {"z": z_t}) <= 1e-12


def test_constant_channels_agree():
    params, x, dlogits = problem(SMALL, 4, 30)
    x[:, :, 1] = 0.7  # a constant coordinate
    params["shared0.W"][:, 2] = 0  # a layer that computes a constant
    params["shared1.beta"][3] = -50  # a channel that is never positive
    (z, batch, grads), (z_t, batch_t, grads_t) = both(SMALL, params, x, dlogits)
    assert worst(grads, grads_t) <= 1e-12 and worst({"z": z}, {"z": z_t}) <= 1e-12
    assert worst(statistics(batch), statistics(batch_t)) <= 1e-12
    assert batch["shared0"].var[2] == 0


@pytest.mark.parametrize("dtype, digits", [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_padded_clouds_agree_summed_over_equal_points(dtype, digits):
    """Which of several equal points wins is a convention: products may round them apart."""
    params, x, dlogits = problem(SMALL, 5, 20, dtype)
    x = np.concatenate([x, x[:, :12], x[:, :12]], axis=1)
    (_, _, grads), (_, _, grads_t) = both(SMALL, params, x, dlogits)
    for each in (grads, grads_t):
        d = each["points"]
        each["points"] = np.concatenate([d[:, :12] + d[:, 20:32] + d[:, 32:], d[:, 12:20]], axis=1)
    assert worst(grads, grads_t) <= digits


def test_products_that_are_not_divided_agree_too():
    params, x, dlogits = problem(SMALL, 5, 20)
    work = Workspace()
    work.group = None  # as with another BLAS
    (_, _, grads), (_, _, grads_t) = both(SMALL, params, x, dlogits, work)
    assert worst(grads, grads_t) <= 1e-12


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 1e4])
def test_float32_far_from_the_origin_is_at_least_as_accurate_as_the_textbook(offset):
    """Both engines in float32 against float64; a tenth of slack, since both errors are noise."""
    fast, textbook = errors_in_float32(offset=offset)
    assert (fast <= 1.1 * textbook).all(), (fast, textbook)
    assert fast.max() < 1e-5


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("kind", [one_point_far, one_cloud_far, drawn_out])
def test_points_far_from_the_others_and_clouds_along_a_line_cost_float32_less_than_a_digit(
    kind, far
):
    """A float32 sum of squares loses the short directions beside long ones: section 4."""
    fast, textbook = errors_in_float32(kind(far))
    assert (fast <= 10 * textbook).all(), (fast, textbook)
    assert fast.max() < 1e-3


# gradients, operation by operation


@pytest.mark.parametrize("pooled", [False, True])
def test_each_pair_agrees_with_central_differences_and_with_the_textbook(pooled):
    """One layer between to_tower() and input_gradient(); gains below zero included."""
    rng = np.random.default_rng(3)
    arrays = {
        "x": rng.standard_normal((4, 9, 5)),
        "W": rng.standard_normal((5, 6)),
        "gamma": rng.standard_normal(6),
        "beta": 0.3 * rng.standard_normal(6),
    }
    weights = rng.standard_normal((4, 6) if pooled else (4, 9, 6))

    def textbook(a):
        y, linear = ops.linear_forward(a["x"], a["W"])
        y, norm, _ = ops.batch_norm_forward(y, a["gamma"], a["beta"], 1e-5)
        y, relu = ops.relu_forward(y)
        y, pool = ops.point_max_forward(y) if pooled else (y, None)
        return y, (linear, norm, relu, pool)

    y, (linear, norm, relu, pool) = textbook(arrays)
    d = ops.point_max_backward(weights, pool) if pooled else weights
    d, dgamma, dbeta = ops.batch_norm_backward(ops.relu_backward(d, relu), norm)
    dx, dW = ops.linear_backward(d, linear)
    wanted = {"x": dx, "W": dW, "gamma": dgamma, "beta": dbeta}

    x = fused.to_tower(arrays["x"], () if pooled else (6,), Workspace())
    layer = (arrays["W"], arrays["gamma"], arrays["beta"], 1e-5, "layer")
    if pooled:
        h, cache, _ = fused.pooled_forward(x, *layer)
        np.testing.assert_allclose(h, y, atol=1e-13)
        d, *found = fused.pooled_backward(weights, cache)
    else:
        activation, cache, _ = fused.shared_forward(x, *layer)
        rows = activation.of(slice(None)) + activation.shift[:, None]
        np.testing.assert_allclose(rows.swapaxes(1, 2), y, atol=1e-13)

        class Given:
            """A gradient from above that is simply there."""

            def of(self, clouds):
                return weights[clouds].swapaxes(1, 2)

        d, *found = fused.shared_backward(Given(), cache)
    grads = dict(zip(("W", "gamma", "beta"), found, strict=True)) | {"x": fused.input_gradient(d)}
    assert worst(grads, wanted) <= 1e-12

    def value(a):
        return float((textbook(a)[0] * weights).sum())

    gradcheck.require(gradcheck.check_gradients(value, arrays, grads, rng), 1e-6)


# threads and memory


def trained_steps(threads, config, dtype, steps=3):
    params, x, dlogits = problem(config, 15, 128, dtype)
    work = Workspace(np, threads)
    work.block = work.slice = (
        2**17
    )  # blocks of two clouds for the teacher, of eight for tiny, and a last one
    assert len(fused.to_tower(x, config.shared[:-1], work).blocks()) >= 2
    state = optim.adamw_start(params)
    for _ in range(steps):
        z, batch, tape = forward_train(params, x, config, None, "fused", work)
        grads, _ = backward(dlogits, tape)
        state = optim.adamw_in_place(params, grads, state, 1e-2, 1e-2, work)
    return params | statistics(batch) | {"z": z}


@pytest.mark.parametrize("name", ["tiny", "teacher"])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64]
)  # float64 has no slack in which an order could hide
def test_any_number_of_threads_gives_the_same_bits(name, dtype):
    one, two, three = (trained_steps(threads, sizes(name, 10), dtype) for threads in (1, 2, 3))
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key], err_msg=key)
        np.testing.assert_array_equal(value, three[key], err_msg=key)


@pytest.mark.parametrize("name", ["tiny", "student", "teacher"])
def test_a_step_after_the_first_takes_no_new_memory(name):
    """Forward, backward and AdamW of a batch of 32 x 1,024 points."""
    config, rng = sizes(name, 40), np.random.default_rng(0)
    params = initialise(param_specs(config), rng)
    points = rng.standard_normal((32, 1024, 3)).astype(np.float32)
    dlogits = rng.standard_normal((32, 40)).astype(np.float32) / 32
    work, state = (
        Workspace(),
        optim.adamw_start(params),
    )  # of each thread the same holds, once it had work

    def step(state):
        _, _, tape = forward_train(params, points, config, None, "fused", work)
        grads, _ = backward(dlogits, tape)
        return optim.adamw_in_place(params, grads, state, 1e-3, 1e-2, work)

    state = step(state)
    new = new_memory_of(lambda: step(state))
    assert new < 1e6, f"{new / 1e6:.2f} MB"


def test_a_thread_that_fails_ends_the_map_with_its_error():
    work = Workspace(np, 3)

    def function(item):
        if item == 2:
            raise DataError("two")
        return item

    for _ in range(20):
        with pytest.raises(DataError, match="two"):
            work.map(function, range(5))
    assert work.map(lambda item: item * item, range(7)) == [0, 1, 4, 9, 16, 25, 36]


def test_overflow_in_a_thread_is_treated_as_the_caller_said():
    work = Workspace(np, 3)
    large = np.full(1000, 3e38, np.float32)
    with np.errstate(over="ignore"):  # warnings are errors here
        work.map(lambda item: large * 10, range(6))


def test_an_interrupted_map_waits_for_its_threads_and_can_be_used_again():
    work, ended = Workspace(np, 2), []

    def function(item):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(KeyboardInterrupt):
        for _ in range(50):  # until the other thread had its share
            work.map(function, range(4))
    assert work.map(lambda item: item, range(3)) == [0, 1, 2]


def test_a_tape_is_read_once_and_before_the_next_forward():
    params, x, dlogits = problem(SMALL, 3, 10)
    work = Workspace()
    _, _, tape = forward_train(params, x, SMALL, work=work)
    backward(dlogits, tape)
    with pytest.raises(DataError, match="this tape was read already"):
        backward(dlogits, tape)
    _, _, tape = forward_train(params, x, SMALL, work=work)
    forward_train(params, 2 * x, SMALL, work=work)
    with pytest.raises(DataError, match="a later forward wrote over it"):
        backward(dlogits, tape)


def test_models_that_share_a_workspace_do_not_disturb_each_other():
    """As a run and its snapshot do: the same rows of a tower, other layers."""
    work, other = Workspace(), ModelConfig((8, 6, 12), (10,), classes=5)
    params, x, dlogits = problem(SMALL, 4, 20)
    theirs, _, _ = problem(other, 4, 20)
    (_, _, alone), _ = both(SMALL, params, x, dlogits)
    forward_train(params, 3 * x, SMALL, work=work)
    forward_train(theirs, x, other, work=work)
    (_, _, beside), _ = both(SMALL, params, x, dlogits, work)
    for name, value in alone.items():
        np.testing.assert_array_equal(beside[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["shared1.W", "shared1.gamma", "shared0.beta", "shared2.beta"])
def test_parameters_of_another_shape_are_refused(name):
    params, x, _ = problem(SMALL, 2, 4)
    stats = initial_stats(SMALL, np.float64)
    wrong = params | {name: params[name][:1]}
    with pytest.raises(DataError, match="expected shape"):
        forward_train(wrong, x, SMALL)
    if name.endswith("W"):
        with pytest.raises(DataError, match="W: expected shape"):
            forward_eval(wrong, stats, x, SMALL)


def test_buffers_are_kept_by_name_and_made_anew_for_another_shape():
    work = Workspace()
    first = work.array("a", (2, 3), np.float32, fill=1)
    first[0] = 5
    assert work.array("a", (2, 3), np.float32, fill=1) is first and first[0, 0] == 5
    other = work.array("a", (4,), np.float32, fill=1)
    assert other is not first and other.tolist() == [1, 1, 1, 1]
    assert np.shares_memory(other, first)
    other[0] = 7
    assert work.array("a", (4,), np.float32, fill=1) is other
    assert work.array("a", (4,), np.float32, fill=1, layout=(2,)).tolist() == [1, 1, 1, 1]
    larger = work.array("a", (9,), np.float32, fill=1)
    assert larger.tolist() == [1] * 9 and not np.shares_memory(larger, first)
    assert work.array("a", (4,), np.float64).dtype == np.float64
    assert work.scratch("a", (4,), np.float64) is not work.array("a", (4,), np.float64)


def test_adamw_in_place_equals_adamw_bit_for_bit():
    config = sizes("tiny", 10)
    params = initialise(param_specs(config), np.random.default_rng(0))
    rng, work = np.random.default_rng(1), Workspace(np, 2)
    work.slice = 256  # in several slices
    state, theirs = optim.adamw_start(params), optim.adamw_start(params)
    mine = {name: value.copy() for name, value in params.items()}
    for _ in range(4):
        grads = {
            name: rng.standard_normal(value.shape).astype(np.float32)
            for name, value in params.items()
        }
        params, theirs = optim.adamw_step(params, grads, theirs, 1e-2, 0.1)
        state = optim.adamw_in_place(mine, grads, state, 1e-2, 0.1, work)
    assert state.step == theirs.step == 4
    for name in params:
        np.testing.assert_array_equal(mine[name], params[name], err_msg=name)
        np.testing.assert_array_equal(state.m[name], theirs.m[name], err_msg=name)
        np.testing.assert_array_equal(state.v[name], theirs.v[name], err_msg=name)


def test_an_engine_that_is_none_is_refused():
    params, x, _ = problem(SMALL, 2, 4)
    with pytest.raises(UsageError, match="engine: expected fused or textbook, got 'fast'"):
        forward_train(params, x, SMALL, engine="fast")
    with pytest.raises(UsageError, match="engine: expected fused or textbook"):
        forward_eval(params, initial_stats(SMALL, np.float64), x, SMALL, "fast")


def test_augmented_points_of_any_memory_order_give_the_same_bits():
    config = sizes("tiny", 5)
    params, x, _ = problem(config, 4, 64, np.float32)
    params_of_view = Params(*draw(0, 0, 0, 4, AugmentConfig()))
    channels_first = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    a, b = apply(x, params_of_view), apply(channels_first, params_of_view)
    np.testing.assert_array_equal(a, b)
    for engine in ("fused", "textbook"):
        z, z_b = (forward_train(params, each, config, None, engine)[0] for each in (a, b))
        np.testing.assert_array_equal(z, z_b)


def run_python(code, **environment):
    """Return what a fresh interpreter prints that has no variables of BLAS but these."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


IN_A_NOTEBOOK = """
import sys
{before}
import numpy
from minipc.backend import blas_on_one_thread, one_blas_thread
from minipc.provenance import provenance
said = []
with blas_on_one_thread(said.append):
    inside = one_blas_thread(), provenance(numpy)["one_blas_thread"]
print(inside, len(said), "not promised" in "".join(said))
"""


def test_blas_is_brought_to_one_thread_by_threadpoolctl_or_the_run_says_that_it_is_not():
    pytest.importorskip("threadpoolctl")
    assert run_python(IN_A_NOTEBOOK.format(before="")) == "(True, True) 0 False\n"
    without = IN_A_NOTEBOOK.format(before='sys.modules["threadpoolctl"] = None')
    assert run_python(without) == "(False, False) 1 True\n"
    variables = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP")}
    assert run_python(without, **variables) == "(True, True) 0 False\n"


def test_a_step_on_a_device_waits_for_nothing(fake_cupy, monkeypatch):
    """No number and no array comes to the host between the batch and the new parameters."""
    config = sizes("tiny", 5)
    params, x, dlogits = moved(fake_cupy, problem(config, 4, 64, np.float32))
    params = {name: value.copy() for name, value in params.items()}
    stats = moved(fake_cupy, initial_stats(config))
    work, state = Workspace(fake_cupy), optim.adamw_start(params)

    def refused(*_):
        raise AssertionError("a transfer to the host")

    for name in ("get", "_number", "item"):
        monkeypatch.setattr(fake_cupy.ndarray, name, refused)
    monkeypatch.setattr(fake_cupy, "asnumpy", refused)
    for _ in range(2):
        _, batch, tape = forward_train(params, x, config, None, "fused", work)
        grads, _ = backward(dlogits, tape)
        state = optim.adamw_in_place(params, grads, state, 1e-3, 1e-2, work)
        stats = track(stats, batch, config)
