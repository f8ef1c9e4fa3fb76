"""The gradient checker is itself tested: it must fail where a gradient is wrong."""

import numpy as np
import pytest

from minipc.errors import CheckFailed, DataError
from minipc.nn import gradcheck, ops
from minipc.nn.losses import soft_cross_entropy_backward, soft_cross_entropy_forward

NAMES = [
    "shared0.W",
    "shared0.gamma",
    "shared0.beta",
    "shared1.W",
    "shared1.gamma",
    "shared1.beta",
    "head0.W",
    "head0.gamma",
    "head0.beta",
    "out.W",
    "out.b",
    "points",
]


@pytest.fixture(scope="module")
def checked(smooth_problem):
    """Return (value, arrays, grads) of a small PointNet with the three-term loss."""
    arrays, step = smooth_problem(steps=2, guard="none")
    assert list(arrays) == NAMES
    return step.value, arrays, step.gradients(arrays)


def check(value, arrays, grads, seed=0):
    reports = gradcheck.check_gradients(value, arrays, grads, np.random.default_rng(seed))
    gradcheck.require(reports)
    return reports


def test_right_gradients_pass(checked):
    for seed in range(5):
        assert [report.name for report in check(*checked, seed)] == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0, 0.0])
def test_a_wrong_gradient_of_any_one_parameter_is_noticed(checked, name, factor):
    value, arrays, grads = checked
    for seed in range(4):  # every draw of directions, not only a lucky one
        with pytest.raises(CheckFailed, match=f"gradient of {name}: analytic .* exceeds 1e-06"):
            check(value, arrays, grads | {name: factor * grads[name]}, seed)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_wrong_entry_is_noticed(checked, name):
    value, arrays, grads = checked
    wrong = grads[name].copy()
    wrong.flat[np.abs(wrong).argmax()] *= 1.01
    with pytest.raises(CheckFailed, match=f"gradient of {name}"):
        check(value, arrays, grads | {name: wrong})


def test_gradients_in_swapped_order_are_noticed(checked):
    value, arrays, grads = checked
    same_shape = {"shared0.gamma": grads["shared0.beta"], "shared0.beta": grads["shared0.gamma"]}
    with pytest.raises(CheckFailed, match="shared0"):
        check(value, arrays, grads | same_shape)
    other_shape = {"shared0.W": grads["shared1.W"], "shared1.W": grads["shared0.W"]}
    with pytest.raises(
        DataError, match=r"gradient of shared0\.W: expected shape \(3, 5\), got \(5, 6\)"
    ):
        check(value, arrays, grads | other_shape)


def test_a_transposed_gradient_is_refused(checked):
    value, arrays, grads = checked
    with pytest.raises(DataError, match=r"gradient of out\.W"):
        check(value, arrays, grads | {"out.W": grads["out.W"].T})


def test_missing_and_additional_gradients_are_refused(checked):
    value, arrays, grads = checked
    missing = {name: grad for name, grad in grads.items() if name != "out.b"}
    with pytest.raises(DataError, match=r"only one side has \['out\.b'\]"):
        check(value, arrays, missing)
    with pytest.raises(DataError, match=r"only one side has \['head9\.b'\]"):
        check(value, arrays, grads | {"head9.b": np.zeros(3)})


def test_float32_is_refused(checked):
    value, arrays, grads = checked
    with pytest.raises(DataError, match=r"points: a gradient check needs float64, got float32"):
        check(value, arrays | {"points": arrays["points"].astype(np.float32)}, grads)


@pytest.mark.parametrize("name", [NAMES[0], NAMES[5], NAMES[-1]])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_noticed(checked, name, wrong):
    value, arrays, grads = checked
    damaged = grads[name].copy()
    damaged.flat[0] = wrong
    with pytest.raises(CheckFailed):
        check(value, arrays, grads | {name: damaged})


def test_a_truly_zero_gradient_is_accepted_and_a_false_zero_is_not():
    """A bias before batch norm: the mean takes it out again; its gradient is rounding alone."""
    rng = np.random.default_rng(8)
    arrays = {
        "x": rng.standard_normal((8, 4)),
        "b": rng.standard_normal(4),
        "beta": rng.standard_normal(4),
    }
    dy = rng.standard_normal((8, 4))
    gamma = 1 + rng.random(4)

    def forward(a):
        shifted, _ = ops.bias_forward(a["x"], a["b"])
        return ops.batch_norm_forward(shifted, gamma, a["beta"], 1e-5)[:2]

    def value(a):
        return float((forward(a)[0] * dy).sum())

    dshifted, _, dbeta = ops.batch_norm_backward(dy, forward(arrays)[1])
    dx, db = ops.bias_backward(dshifted, None)
    grads = {"x": dx, "b": db, "beta": dbeta}
    assert np.linalg.norm(db) < 1e-14 < np.linalg.norm(dx)
    for exact in (db, np.zeros(4)):
        check(value, arrays, grads | {"b": exact})
    with pytest.raises(CheckFailed, match="gradient of beta"):
        check(value, arrays, grads | {"beta": np.zeros(4)})
    with pytest.raises(CheckFailed, match="gradient of b:"):  # a small gradient where there is none
        check(value, arrays, grads | {"b": np.full(4, 1e-4)})


def test_the_beta_of_a_pooled_layer_before_a_normalised_head_may_have_no_gradient(smooth_problem):
    """Positive in every cloud, a pooled channel's beta only shifts what the head's norm centres."""
    arrays, step = smooth_problem(guard="none")
    arrays |= {"shared1.beta": arrays["shared1.beta"] + 10}  # every point positive: no ReLU between
    grads = step.gradients(arrays)
    assert np.linalg.norm(grads["shared1.beta"]) < 1e-13 < np.linalg.norm(grads["shared1.gamma"])
    reports = {report.name: report for report in check(step.value, arrays, grads)}
    assert reports["shared1.beta"].error < 1e-6  # against the largest gradient, not against itself


def test_inputs_are_never_changed(checked):
    value, arrays, grads = checked
    before = {name: array.copy() for name, array in arrays.items()}
    seen = []
    check(lambda a: seen.append(a) or value(a), arrays, grads)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])
    assert len(seen) == 2 * len(arrays)
    for i, name in enumerate(NAMES):  # exactly one array is new in each evaluation
        for given in seen[2 * i : 2 * i + 2]:
            assert {n for n in NAMES if given[n] is not arrays[n]} == {name}


# Taylor rates


def _loss_of(z_shape, seed):
    rng = np.random.default_rng(seed)
    q, z = rng.standard_normal(z_shape), rng.standard_normal(z_shape)

    def f(x):
        return float(soft_cross_entropy_forward(x, q)[0].sum())

    gradient = soft_cross_entropy_backward(np.ones(z_shape[0]), soft_cross_entropy_forward(z, q)[1])
    return f, z, gradient, rng.standard_normal(z_shape)


@pytest.mark.parametrize("seed", range(5))
def test_taylor_rates_are_two_for_a_right_gradient(seed):
    rates = gradcheck.taylor_rates(*_loss_of((6, 5), seed))
    assert len(rates) == 4
    assert all(abs(rate - 2) < 0.2 for rate in rates), rates  # the third order, h = 0.01 and below


@pytest.mark.parametrize("seed", range(5))
def test_taylor_rates_leave_the_band_for_a_gradient_one_percent_wrong(seed):
    f, z, gradient, direction = _loss_of((6, 5), seed)
    slope = (gradient * direction).sum()
    wrong = gradient + 0.01 * np.linalg.norm(gradient) * np.sign(
        slope
    ) * direction / np.linalg.norm(direction)
    rates = gradcheck.taylor_rates(f, z, wrong, direction, steps=8)
    assert any(abs(rate - 2) > 0.2 for rate in rates), rates
    assert abs(rates[-1] - 1) < 0.2  # the error's own order, once it dominates


@pytest.mark.parametrize("name", ["out.W", "head0.gamma", "shared0.beta"])
def test_taylor_rates_hold_for_the_whole_model(checked, name):
    value, arrays, grads = checked
    direction = np.random.default_rng(0).standard_normal(arrays[name].shape)
    direction *= 0.02 / np.linalg.norm(direction)  # steps of 2e-4 and less: no kink is so near
    rates = gradcheck.taylor_rates(
        lambda x: value(arrays | {name: x}), arrays[name], grads[name], direction, steps=3
    )
    assert all(abs(rate - 2) < 0.2 for rate in rates), (name, rates)  # third order and rounding
