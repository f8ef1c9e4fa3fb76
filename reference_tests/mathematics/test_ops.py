"""One table with every operation and loss; from it, the same claims for each.

A new `*_forward` without an entry fails test_every_forward_has_an_entry.
"""

from typing import Callable, NamedTuple

import numpy as np
import pytest
from scipy import special

from minipc.audit.problems import KINK
from minipc.errors import BackendError, DataError
from minipc.nn import gradcheck, local, losses, ops
from minipc.nn.losses import LossConfig
from reference_tests.mathematics import oracles
from reference_tests.tools.fake_device import assert_agrees, leaves, map_arrays, moved, on_host

EPS = 1e-5
MODULES = (ops, losses, local)


class Entry(NamedTuple):
    """One operation in one case; arrays are float64 on the host, {name: array}."""

    op: str  # forward is <op>_forward
    draw: Callable  # rng -> arrays, away from kinks
    forward: Callable  # arrays -> y, cache
    backward: Callable  # dy, cache -> gradients of `variables`, in order
    variables: tuple  # names that have a gradient
    oracle: Callable  # arrays -> y, slowly
    also: Callable = lambda arrays: ()  # further outputs, for dtype and agreement


def _normal(*names_and_shapes):
    return lambda rng: {name: rng.standard_normal(shape) for name, shape in names_and_shapes}


def _away_from_zero(rng):
    x = rng.standard_normal((4, 3, 5))
    return {"x": x + np.where(x > 0, KINK, -KINK)}


def _clear_winners(rng):
    """Points a third apart in every channel, in random order."""
    ranks = rng.permuted(np.broadcast_to(np.arange(6.0)[None, :, None], (3, 6, 4)), axis=1)
    return {"x": ranks / 3 + 0.1 * rng.standard_normal((3, 1, 4))}


def _groups_with_clear_winners(rng):
    return {"x": np.stack([_clear_winners(rng)["x"] for _ in range(2)])}


def _grouped(rng):
    """6 points, 5 groups of 3 members: one group is of one point, and one point is not read."""
    members = rng.integers(0, 5, (2, 5, 3)).astype(np.uint16)
    members[0, 1] = 4
    return {"f": rng.standard_normal((2, 6, 4)), "members": members}


def _with_mask(rng):
    mask = (rng.random((5, 4)) >= 0.3) / 0.7
    return {"x": rng.standard_normal((5, 4)), "mask": mask}


def _tracked(rng):
    x = {"x": 2 + rng.standard_normal((3, 4, 5))}
    return x | _normal(("gamma", 5), ("beta", 5), ("mean", 5))(rng) | {"var": 0.5 + rng.random(5)}


def _loss_inputs(rng):
    B, K = 6, 5
    arrays = {name: 2 * rng.standard_normal((B, K)) for name in "zvu"}
    arrays["y"] = losses.smooth_labels(rng.integers(0, K, B), K, 0.1, np.float64)
    arrays["has_u"] = np.array([1.0, 1, 0, 1, 1, 0])
    return arrays


def _simple(op, draw, names, variables, oracle, *constants):
    """An entry of an operation whose forward takes `names`, then constants."""
    module = next(module for module in MODULES if hasattr(module, f"{op}_forward"))
    forward, backward = getattr(module, f"{op}_forward"), getattr(module, f"{op}_backward")

    def as_tuple(dy, cache):
        grads = backward(dy, cache)
        return grads if isinstance(grads, tuple) else (grads,)

    return Entry(
        op,
        draw,
        lambda arrays: forward(*(arrays[name] for name in names), *constants)[:2],
        as_tuple,
        variables,
        lambda arrays: oracle(*(arrays[name] for name in names), *constants),
        lambda arrays: forward(*(arrays[name] for name in names), *constants)[2:],
    )


def _loss(temperature, guard, a=0.7, b=0.3):
    config = LossConfig(kd_weight=a, self_weight=b, temperature=temperature, guard=guard)
    oracle = oracles.guarded_loss if guard == "clip" else oracles.raw_loss
    names = ("z", "y", "v", "u", "has_u")

    def forward(arrays):
        terms, cache = losses.loss_forward(*(arrays[name] for name in names), config)
        return terms.total, cache

    return Entry(
        "loss",
        _loss_inputs,
        forward,
        lambda dy, cache: (dy * losses.loss_backward(cache),),
        ("z",),
        lambda arrays: oracle(*(arrays[name] for name in names), a, b, temperature),
        lambda arrays: losses.loss_forward(*(arrays[name] for name in names), config)[0],
    )


BATCH_NORM = _normal(("x", (7, 5)), ("gamma", 5), ("beta", 5))
BATCH_NORM_POINTS = _normal(("x", (3, 4, 5)), ("gamma", 5), ("beta", 5))
NORMED, MOMENTS = ("x", "gamma", "beta"), ("x", "gamma", "beta", "mean", "var")

TABLE = (
    {
        "linear": _simple(
            "linear", _normal(("x", (4, 3)), ("W", (3, 5))), "xW", ("x", "W"), oracles.linear
        ),
        "linear of points": _simple(
            "linear", _normal(("x", (2, 4, 3)), ("W", (3, 5))), "xW", ("x", "W"), oracles.linear
        ),
        "bias": _simple("bias", _normal(("x", (4, 3)), ("b", 3)), "xb", ("x", "b"), oracles.bias),
        "bias of points": _simple(
            "bias", _normal(("x", (2, 4, 3)), ("b", 3)), "xb", ("x", "b"), oracles.bias
        ),
        "batch_norm": _simple("batch_norm", BATCH_NORM, NORMED, NORMED, oracles.batch_norm, EPS),
        "batch_norm of points": _simple(
            "batch_norm", BATCH_NORM_POINTS, NORMED, NORMED, oracles.batch_norm, EPS
        ),
        "batch_norm, eps that matters": _simple(
            "batch_norm", BATCH_NORM, NORMED, NORMED, oracles.batch_norm, 0.5
        ),
        "batch_norm_eval": _simple(
            "batch_norm_eval", _tracked, MOMENTS, NORMED, oracles.batch_norm_eval, EPS
        ),
        "relu": _simple("relu", _away_from_zero, "x", ("x",), oracles.relu),
        "point_max": _simple("point_max", _clear_winners, "x", ("x",), oracles.point_max),
        "point_max of groups": _simple(
            "point_max", _groups_with_clear_winners, "x", ("x",), oracles.point_max
        ),
        "max_and_mean": _simple("max_and_mean", _clear_winners, "x", ("x",), oracles.max_and_mean),
        "gather": _simple("gather", _grouped, ("f", "members"), ("f",), oracles.gather),
        "dropout": _simple("dropout", _with_mask, ("x", "mask"), ("x",), oracles.dropout),
        "log_softmax": _simple(
            "log_softmax", _normal(("z", (4, 5))), "z", ("z",), oracles.log_softmax
        ),
        "log_softmax of points": _simple(
            "log_softmax", _normal(("z", (2, 3, 5))), "z", ("z",), oracles.log_softmax
        ),
        "soft_cross_entropy": _simple(
            "soft_cross_entropy",
            _normal(("z", (4, 5)), ("q", (4, 5))),
            "zq",
            ("z",),
            oracles.soft_cross_entropy,
        ),
    }
    | {
        f"loss T={T:g} {guard}": _loss(T, guard)
        for T in (1.0, 2.5, 4.0)
        for guard in ("clip", "none")
    }
    | {"loss labels alone, none": _loss(4.0, "none", a=0.0, b=0.0)}
)

every_entry = pytest.mark.parametrize("entry", TABLE.values(), ids=TABLE.keys())
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def _rng():
    return np.random.default_rng(7)


def _cotangent(rng, y):
    return np.asarray(rng.standard_normal(y.shape), y.dtype)


def _as_dtype(arrays, dtype):
    return {
        name: value.astype(dtype) if value.dtype == np.float64 else value
        for name, value in arrays.items()
    }


def test_every_forward_has_an_entry_and_a_backward():
    forwards = {
        name.removesuffix("_forward")
        for module in MODULES
        for name, function in vars(module).items()
        if name.endswith("_forward") and function.__module__ == module.__name__
    }
    assert forwards == {entry.op for entry in TABLE.values()}
    for op in forwards:
        assert any(hasattr(module, f"{op}_backward") for module in MODULES), op


@every_entry
def test_forward_equals_the_slow_oracle(entry):
    arrays = entry.draw(_rng())
    y, _ = entry.forward(arrays)
    want = np.asarray(entry.oracle(arrays))
    assert y.shape == want.shape
    # float64: some tens of roundings on numbers of order one
    np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-12)


@every_entry
@pytest.mark.parametrize("seed", range(3))
def test_gradient_agrees_with_central_differences(entry, seed):
    rng = np.random.default_rng(seed)
    arrays = entry.draw(rng)
    y, cache = entry.forward(arrays)
    dy = _cotangent(rng, y)
    grads = dict(zip(entry.variables, entry.backward(dy, cache), strict=True))

    def f(variables):
        return float((entry.forward(arrays | variables)[0] * dy).sum())

    variables = {name: arrays[name] for name in entry.variables}
    reports = gradcheck.check_gradients(f, variables, grads, rng)
    gradcheck.require(reports, 1e-6)  # h = 1e-5 resolves 1e-9; a wrong gradient is off by 1e-2


@every_entry
def test_backward_of_an_earlier_forward_is_not_disturbed_by_a_later_one(entry):
    rng = _rng()
    first, second = entry.draw(rng), entry.draw(rng)
    y, cache = entry.forward(first)
    dy = _cotangent(rng, y)
    alone = map_arrays(np.copy, entry.backward(dy, cache))
    _, later_cache = entry.forward(second)
    entry.backward(dy, later_cache)
    assert_agrees(np, entry.backward(dy, cache), alone)


@every_entry
def test_inputs_cotangent_and_cache_are_unchanged(entry, xp):
    rng = _rng()
    arrays = moved(xp, entry.draw(rng))
    before = map_arrays(np.copy, on_host(arrays))
    y, cache = entry.forward(arrays)
    assert_agrees(np, arrays, before)
    dy = xp.asarray(_cotangent(rng, y))
    held = map_arrays(np.copy, on_host((y, dy, cache)))
    entry.backward(dy, cache)
    assert_agrees(np, (y, dy, cache), held)
    assert_agrees(np, arrays, before)


@every_entry
@both_dtypes
def test_results_keep_the_dtype_and_the_module(entry, dtype, xp):
    rng = _rng()
    arrays = moved(xp, _as_dtype(entry.draw(rng), dtype))
    y, cache = entry.forward(arrays)
    grads = entry.backward(xp.asarray(_cotangent(rng, y)), cache)
    results = [y, *grads, *leaves(entry.also(arrays))]
    assert {value.dtype for value in results} == {np.dtype(dtype)}
    for name, grad in zip(entry.variables, grads, strict=True):
        assert grad.shape == arrays[name].shape, name
    if xp is not np:
        assert {type(value) for value in results} == {xp.ndarray}


@every_entry
@both_dtypes
def test_modules_agree(entry, dtype, device):
    rng = _rng()
    arrays = _as_dtype(entry.draw(rng), dtype)
    y, cache = entry.forward(arrays)
    dy = _cotangent(rng, y)
    want = (y, entry.backward(dy, cache), entry.also(arrays))
    there = moved(device, arrays)
    y, cache = entry.forward(there)
    got = (y, entry.backward(device.asarray(dy), cache), entry.also(there))
    # a real device sums in another order; the fake one must agree bit for bit
    assert_agrees(device, got, want, digits=1e-10 if dtype == np.float64 else 1e-5)


SEVERAL = {label: entry for label, entry in TABLE.items() if len(entry.draw(_rng())) > 1}


@pytest.mark.parametrize("entry", SEVERAL.values(), ids=SEVERAL.keys())
def test_host_and_device_in_one_call_are_refused(entry, fake_cupy):
    arrays = entry.draw(_rng())
    for name in arrays:
        with pytest.raises(BackendError, match="mixed"):
            entry.forward(arrays | moved(fake_cupy, {name: arrays[name]}))
        with pytest.raises(BackendError, match="mixed"):
            entry.forward(moved(fake_cupy, arrays) | {name: arrays[name]})


@every_entry
def test_strided_inputs_give_the_same_as_contiguous_ones(entry):
    arrays = entry.draw(_rng())
    strided = {name: np.repeat(value, 2, axis=-1)[..., ::2] for name, value in arrays.items()}
    y, cache = entry.forward(arrays)
    y_strided, cache_strided = entry.forward(strided)
    dy = _cotangent(_rng(), y)
    got = (y_strided, entry.backward(dy, cache_strided))
    for g, w in zip(leaves(got), leaves((y, entry.backward(dy, cache))), strict=True):
        # BLAS may sum a strided operand in another order: a few roundings of order-one numbers
        np.testing.assert_allclose(g, w, rtol=1e-13, atol=1e-13)


# special cases


def test_ties_in_the_pool_are_won_by_the_lowest_point(xp):
    x = np.zeros((1, 4, 3))
    x[0, :, 0] = [5, 5, 1, 5]  # three equal winners
    x[0, :, 1] = [1, 2, 2, 0]  # two
    y, cache = ops.point_max_forward(xp.asarray(x))  # channel 2: all equal
    assert_agrees(np, y, np.array([[5.0, 2.0, 0.0]]))
    dx = ops.point_max_backward(xp.asarray(np.array([[10.0, 20.0, 30.0]])), cache)
    want = np.zeros((1, 4, 3))
    want[0, 0, 0], want[0, 1, 1], want[0, 0, 2] = 10, 20, 30
    assert_agrees(np, dx, want)


def test_relu_has_derivative_zero_at_zero(xp):
    x = xp.asarray(np.array([-1.0, -0.0, 0.0, 5e-324, 2.0]))
    y, cache = ops.relu_forward(x)
    assert_agrees(np, y, np.array([0.0, 0.0, 0.0, 5e-324, 2.0]))
    dx = ops.relu_backward(xp.asarray(np.full(5, 3.0)), cache)
    assert_agrees(np, dx, np.array([0.0, 0.0, 0.0, 3.0, 3.0]))


@both_dtypes
def test_log_softmax_holds_for_rows_a_thousand_apart(dtype):
    z = np.array([[1000.0, 1001, 999], [-1000, -1001, -1002], [0, 800, -800]], dtype)
    logp, cache = ops.log_softmax_forward(z)
    few = 8 * np.finfo(dtype).eps  # a handful of roundings, relative to |z|
    np.testing.assert_allclose(logp, special.log_softmax(z.astype(float), axis=1), rtol=few)
    dz = ops.log_softmax_backward(np.ones_like(z), cache)
    assert np.isfinite(dz).all()
    # sum of the softmax is one, so K ones give 1 - K p
    np.testing.assert_allclose(dz, 1 - 3 * special.softmax(z.astype(float), axis=1), atol=few)


def test_batch_norm_normalises_with_divisor_rows():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)) * 5 + 3
    y, _, stats = ops.batch_norm_forward(x, np.ones(4), np.zeros(4), 1e-5)
    rows = x.reshape(6, 4)
    assert stats.rows == 6
    # exact up to rounding: the same six numbers a channel, averaged
    np.testing.assert_allclose(stats.var, rows.var(axis=0, ddof=0), rtol=1e-14)
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-14)
    want = rows.var(axis=0) / (rows.var(axis=0) + 1e-5)
    np.testing.assert_allclose(y.reshape(6, 4).var(axis=0), want, rtol=1e-13)  # rounding


def test_tracking_uses_the_variance_with_divisor_rows_minus_one(xp):
    x = np.random.default_rng(1).standard_normal((5, 3))
    _, _, stats = ops.batch_norm_forward(*moved(xp, (x, np.ones(3), np.zeros(3))), 1e-5)
    old = moved(xp, (np.full(3, 2.0), np.full(3, 7.0)))
    mean, var = on_host(ops.track(*old, stats, 0.25))
    # a convex combination of order-one numbers: a few roundings
    np.testing.assert_allclose(mean, 0.75 * 2 + 0.25 * x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(var, 0.75 * 7 + 0.25 * x.var(axis=0, ddof=1), rtol=1e-14)
    assert_agrees(np, old, (np.full(3, 2.0), np.full(3, 7.0)))


def test_tracking_a_single_row_does_not_divide_by_zero():
    _, var = ops.track(np.zeros(2), np.ones(2), ops.BatchStats(np.ones(2), np.zeros(2), 1), 0.5)
    np.testing.assert_array_equal(var, [0.5, 0.5])


def test_batch_norm_keeps_float32_digits_far_from_zero():
    """E[x^2] - E[x]^2 would lose every digit here: offset 1000, spread 1, eps of float32 1e-7."""
    rng = np.random.default_rng(2)
    x = (1000 + rng.standard_normal((32, 128, 4))).astype(np.float32)
    gamma, beta = np.ones(4, np.float32), np.zeros(4, np.float32)
    y, _, stats = ops.batch_norm_forward(x, gamma, beta, 1e-5)
    exact = x.astype(np.float64).reshape(-1, 4)
    # 4096 float32 additions to a sum of 4e6: 0.002 seen, 0.25 at worst
    np.testing.assert_allclose(stats.mean, exact.mean(axis=0), rtol=0, atol=0.005)
    # the mean's error enters the variance squared: 0.005^2 beside 1
    np.testing.assert_allclose(stats.var, exact.var(axis=0), rtol=1e-4)
    want = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    # the mean's error again, as a common shift
    np.testing.assert_allclose(y.reshape(-1, 4), want, rtol=1e-4, atol=0.005)


def test_batch_norm_of_a_constant_channel_is_beta_and_has_finite_gradients():
    x = np.full((6, 2), 3.0)
    y, cache, _ = ops.batch_norm_forward(x, np.full(2, 4.0), np.array([1.0, -1.0]), 1e-5)
    np.testing.assert_array_equal(y, np.broadcast_to([1.0, -1.0], (6, 2)))
    grads = ops.batch_norm_backward(np.random.default_rng(0).standard_normal((6, 2)), cache)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_batch_norm_backward_ignores_a_constant_and_a_multiple_of_the_result():
    """Shift and scale of x leave xhat alone, so those directions have no gradient."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((64, 3))
    _, cache, _ = ops.batch_norm_forward(x, np.full(3, 2.0), np.zeros(3), 1e-12)
    dx, dgamma, dbeta = ops.batch_norm_backward(np.ones((64, 3)), cache)
    np.testing.assert_allclose(dx, 0, atol=1e-14)  # rounding of a sum of 64
    np.testing.assert_array_equal(dbeta, 64)
    np.testing.assert_allclose(dgamma, 0, atol=1e-12)  # rounding of a sum of 64
    dx, _, _ = ops.batch_norm_backward(cache.xhat, cache)
    np.testing.assert_allclose(dx, 0, atol=1e-10)  # eps = 1e-12 beside a variance of 1


def test_evaluation_batch_norm_treats_each_row_alone():
    arrays = TABLE["batch_norm_eval"].draw(_rng())
    whole, _ = TABLE["batch_norm_eval"].forward(arrays)
    first, _ = TABLE["batch_norm_eval"].forward(arrays | {"x": arrays["x"][:1]})
    np.testing.assert_array_equal(whole[:1], first)


def test_dropped_entries_have_no_value_and_no_gradient_and_kept_ones_are_scaled(xp):
    mask = np.array([[0.0, 1.25, 0.0, 1.25]])
    y, cache = ops.dropout_forward(*moved(xp, (np.array([[1.0, 2.0, 3.0, 4.0]]), mask)))
    assert_agrees(np, y, np.array([[0.0, 2.5, 0.0, 5.0]]))
    dx = ops.dropout_backward(xp.asarray(np.array([[7.0, 8.0, 9.0, 10.0]])), cache)
    assert_agrees(np, dx, np.array([[0.0, 10.0, 0.0, 12.5]]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ops.linear_forward(np.ones((2, 3)), np.ones((4, 5))), r"W: .*\(3, \*\).*\(4, 5\)"),
        (lambda: ops.bias_forward(np.ones((2, 3)), np.ones(2)), r"b: .*\(3\).*\(2,\)"),
        (lambda: ops.bias_forward(np.ones((2, 3)), np.ones((1, 3))), r"b: "),
        (lambda: ops.batch_norm_forward(np.ones((2, 3)), np.ones(1), np.ones(3), EPS), "gamma: "),
        (lambda: ops.batch_norm_forward(np.ones((2, 3)), np.ones(3), np.ones(1), EPS), "beta: "),
        (lambda: ops.point_max_forward(np.ones((2, 3))), r"x: .*\(\*, \*, \*\)"),
        (lambda: ops.dropout_forward(np.ones((2, 3)), np.ones((1, 3))), "mask: "),
        (lambda: losses.soft_cross_entropy_forward(np.ones((2, 3)), np.ones((1, 3))), "q: "),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_fake_device_refuses_what_a_device_refuses(fake_cupy):
    here, there = np.ones(3), fake_cupy.asarray(np.ones(3))
    for mixture in (
        lambda: here + there,
        lambda: there + here,
        lambda: there @ here,
        lambda: np.maximum(there, here),
        lambda: fake_cupy.maximum(there, here),
        lambda: fake_cupy.concatenate([there, here]),
        lambda: np.concatenate([there, here]),
        lambda: np.asarray(there),
        lambda: np.add(here, here, out=there),
        lambda: np.add(there, there, out=here),
        lambda: there + [1.0, 2.0, 3.0],
        lambda: there.__iadd__(here),
        lambda: float(there),
        lambda: bool(there > 0),
        lambda: there[np.array([0, 1])],
        lambda: here[fake_cupy.asarray(np.array([0, 1]))],
        lambda: there.__setitem__(0, here),
        lambda: np.median(there),
    ):
        with pytest.raises((TypeError, IndexError)):
            mixture()
    assert not hasattr(there, "__array_interface__")


def test_fake_device_computes_what_numpy_does(fake_cupy):
    host = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    there = fake_cupy.asarray(host)
    assert isinstance(there.sum(), fake_cupy.ndarray)  # a reduction stays on the device
    assert float(there.sum()) == float(host.sum())
    rows = fake_cupy.asarray(np.array([2, 0]))
    assert_agrees(np, there[rows] * 2 - 1 / there[rows], host[[2, 0]] * 2 - 1 / host[[2, 0]])
    moving = there.copy()
    moving *= 2
    assert_agrees(np, (moving, there), (host * 2, host))
    assert_agrees(np, np.exp(there), np.exp(host))
    assert_agrees(np, fake_cupy.where(there > 0, there, 0), np.where(host > 0, host, 0))


def test_a_missing_device_is_told_apart_from_a_fake_one(fake_cupy):
    from minipc.backend import load, module_of, to_host, tree_to
    from minipc.provenance import provenance

    assert load("cupy") is fake_cupy and load("auto") is fake_cupy and load("numpy") is np
    tree = tree_to(fake_cupy, {"a": np.arange(3.0)})
    assert module_of(tree["a"]) is fake_cupy
    assert_agrees(np, to_host(tree["a"]), np.arange(3.0))
    assert_agrees(np, tree_to(np, tree), {"a": np.arange(3.0)})
    assert provenance(fake_cupy)["device"] == "fake"
    fake_cupy.cuda.runtime.getDeviceCount = lambda: 0
    assert load("auto") is np
    with pytest.raises(BackendError, match="no CUDA device found; it needs"):
        load("cupy")


def test_oracle_of_log_softmax_is_scipys():
    z = np.random.default_rng(0).standard_normal((5, 6)) * 10
    want = special.log_softmax(z, axis=1)
    np.testing.assert_allclose(oracles.log_softmax(z), want, atol=1e-13)  # roundings of |z| < 40
