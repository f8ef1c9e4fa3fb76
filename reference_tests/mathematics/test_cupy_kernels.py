"""Our kernels on a device against the NumPy forms in whose place they stand."""

import numpy as np
import pytest

from minipc.data.augment import Params, apply
from minipc.models.file import new_model
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from minipc.models.pointnet import param_specs
from minipc.nn import exact, kernels, losses, optim
from minipc.nn.engine import backward, eval_norm_relu
from minipc.nn.fast.products import second_moments
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig
from minipc.nn.params import initialise
from reference_tests.tools.fake_device import assert_agrees, map_arrays, moved, on_host


def drawn(dtype, seed):
    return initialise(param_specs(sizes("tiny", 5)), np.random.default_rng(seed), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adamw_has_the_bits_of_numpy(cupy, dtype):
    trained = {}
    for xp in (np, cupy):
        work = Workspace(xp)
        params = {name: xp.asarray(value).copy() for name, value in drawn(dtype, 0).items()}
        state = optim.adamw_start(params)
        for step in range(1, 5):
            grads = {name: xp.asarray(value) for name, value in drawn(dtype, step).items()}
            grads = dict(reversed(grads.items()))  # as a backward returns them
            state = optim.adamw_in_place(params, grads, state, 1e-2, 0.1, work)
        of = {"params": params, "m": state.m, "v": state.v}
        trained[xp] = {(key, name): x for key, found in of.items() for name, x in found.items()}
    assert list(trained[np]) == list(trained[cupy])  # files are written in this order
    for key, value in trained[np].items():
        np.testing.assert_array_equal(cupy.asnumpy(trained[cupy][key]), value, err_msg=str(key))


def test_two_trainings_in_one_workspace_do_not_write_into_each_other(cupy):
    work = Workspace(cupy)
    first, second = (
        {name: cupy.asarray(value) for name, value in drawn(np.float32, seed).items()}
        for seed in (0, 1)
    )
    grads = {name: cupy.ones_like(value) for name, value in first.items()}
    optim.adamw_in_place(first, dict(grads), optim.adamw_start(first), 1e-2, 0.1, work)
    kept = {name: value.copy() for name, value in first.items()}
    optim.adamw_in_place(second, dict(grads), optim.adamw_start(second), 1e-2, 0.1, work)
    for name, value in first.items():
        np.testing.assert_array_equal(cupy.asnumpy(value), cupy.asnumpy(kept[name]))


def forward_and_backward(xp, config, params, points, dlogits, groups, steps=2):
    """Return logits, statistics and gradients of the last of some steps on one Workspace."""
    work, module = Workspace(xp), net(config)
    params = {name: xp.asarray(value) for name, value in params.items()}
    inputs = Inputs(xp.asarray(points), tuple(map(xp.asarray, groups)))
    state = optim.adamw_start(params)
    for _ in range(steps):
        z, batch, tape = module.forward_train(params, inputs, config, None, "fused", work)
        grads, _ = backward(xp.asarray(dlogits), tape)
        found = on_host((z, {name: stats[:2] for name, stats in batch.items()}, grads))
        kept = map_arrays(np.copy, found)
        state = optim.adamw_in_place(params, dict(grads), state, 0.0, 0.0, work)
    return kept


MODELS = (
    "tiny",
    "5-7-130:33-9",
    "6:",
    "8,16/5:12+,8/4:16,24+mean:12",
    "16/0.9x6:8-12/4:8-6,8/4:12-16+,24-16:12",
)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_of_the_fast_engine_is_that_of_the_host(cupy, name, dtype):
    """The second step, whose gradients go to their place among the joined ones."""
    config = sizes(name, 5)
    rng = np.random.default_rng(0)
    params = initialise(net(config).param_specs(config), rng, dtype)
    for key, value in params.items():
        if key.endswith(("gamma", "beta")):  # of both signs, and zero
            value[...] = rng.standard_normal(value.shape)
            value[0] = 0
    points = rng.standard_normal((6, 40, 3)).astype(dtype)
    dlogits = rng.standard_normal((6, 5)).astype(dtype)
    groups = net(config).prepare(config, points.astype(np.float32))
    given = config, params, points, dlogits, groups
    # rounding, in another order of sums (the rate is 0: both steps have the same weights)
    digits = 1e-9 if dtype == np.float64 else 1e-3
    assert_agrees(
        cupy, forward_and_backward(cupy, *given), forward_and_backward(np, *given), digits
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_exact_product_and_batch_norm_in_evaluation_have_the_bits_of_numpy(cupy, dtype):
    """Also for rows of zeros, of one large number, and of what is not finite."""
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((7, 200)).astype(dtype), rng.standard_normal((200, 9)).astype(dtype)
    x[0], x[1, 3], x[2, 5] = 0, 1e20, 1e-20
    want = exact.product(x, exact.factor(W))
    got = exact.product(cupy.asarray(x), exact.factor(cupy.asarray(W)))
    np.testing.assert_array_equal(cupy.asnumpy(got), want)
    norm = [rng.standard_normal(9).astype(dtype) ** 2 for _ in range(4)]
    got = eval_norm_relu(got, [cupy.asarray(value) for value in norm], 1e-5)
    np.testing.assert_array_equal(cupy.asnumpy(got), eval_norm_relu(want, norm, 1e-5))
    x[3, 4] = np.nan
    with np.errstate(invalid="ignore"):
        want = np.isnan(exact.product(x, exact.factor(W)))
    got = exact.product(cupy.asarray(x), exact.factor(cupy.asarray(W)))
    np.testing.assert_array_equal(np.isnan(cupy.asnumpy(got)), want)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_that_of_the_host(cupy, name):
    config, rng = sizes(name, 5), np.random.default_rng(0)
    model = new_model(config, {}, 0)
    stats = {
        key: rng.uniform(0.5, 2, value.shape).astype(np.float32)
        for key, value in model.stats.items()
    }
    points = rng.standard_normal((6, 40, 3)).astype(np.float32)
    inputs = Inputs(points, net(config).prepare(config, points))
    want = net(config).evaluator(model.params, stats, config)(inputs)
    params, stats, there = moved(cupy, (model.params, stats, inputs))
    # float32 sums of at most 1,024 terms in another order
    assert_agrees(cupy, net(config).evaluator(params, stats, config)(there), want, 1e-5)


def test_the_pool_takes_the_first_of_equal_points_and_keeps_what_is_not_a_number(cupy):
    z = np.zeros((2, 1, 300), np.float32)
    z[0, 0, [7, 200, 250]], z[1, 0, 299], z[1, 0, 150] = 3, np.inf, np.nan
    At, c = cupy.asarray([[1.0], [-1.0]], np.float32), cupy.zeros(2, np.float32)
    h, winners, positive = kernels.pool(At, c, cupy.asarray(z), Workspace(cupy))
    assert winners.tolist() == [[7, 0], [150, 150]]
    np.testing.assert_array_equal(cupy.asnumpy(h), [[3, 0], [np.nan, np.nan]])
    assert positive.tolist() == [[True, False], [False, False]]


def test_the_moments_of_one_block_are_summed_over_clouds_in_float64(cupy):
    """A device takes all clouds as one block; in float32 their sum would lose what is added."""
    z = np.ones((4097, 1, 2), np.float32)
    z[0] = 2.0**12
    found = second_moments(cupy.asarray(z), Workspace(cupy))
    assert found.dtype == np.float64 and float(found[0, 0]) == 2 * 2.0**24 + 2 * 4096


@pytest.mark.parametrize(  # the guard needs a teacher beside an earlier self
    "guard, given",
    [("clip", "labels"), ("clip", "teacher"), ("clip", "both"), ("none", "self"), ("none", "both")],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_is_that_of_numpy(cupy, guard, given, dtype):
    rng, (rows, classes) = np.random.default_rng(0), (9, 6)
    z, v, u = (3 * rng.standard_normal((rows, classes)).astype(dtype) for _ in range(3))
    y = losses.smooth_labels(rng.integers(-1, classes, rows), classes, 0.1, dtype)
    has_u = (np.arange(rows) % 3 > 0).astype(dtype)
    teacher, earlier = given in ("teacher", "both"), given in ("self", "both")
    config = LossConfig(0.7 * teacher, 0.3 * earlier, 3.0, label_smoothing=0.1, guard=guard)
    arrays = z, y, v if teacher else None, *((u, has_u) if earlier else (None, None))
    found = []
    for xp in (np, cupy):
        there = [None if x is None else xp.asarray(x) for x in arrays]
        terms, cache = losses.loss_forward(*there, config)
        found.append(on_host((*terms, losses.loss_backward(cache))))
    # sums of six numbers of size ten, here in float64 and there in dtype
    assert_agrees(cupy, found[1], found[0], 1e-5 if dtype == np.float32 else 1e-13, floor=1e-7)


def test_smoothed_labels_have_the_bits_of_numpy(cupy):
    labels = np.array([3, -1, 0, 4])
    for dtype in (np.float32, np.float64):
        want = losses.smooth_labels(labels, 5, 0.2, dtype)
        got = losses.smooth_labels(cupy.asarray(labels), 5, 0.2, dtype)
        np.testing.assert_array_equal(cupy.asnumpy(got), want)


def test_a_logit_that_is_not_a_number_reaches_the_loss_and_its_gradient(cupy):
    z, v = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    z[1, 2] = np.nan
    y = losses.smooth_labels(np.array([0, 1]), 3, 0.0, np.float32)
    terms, cache = losses.loss_forward(*map(cupy.asarray, (z, y, v)), None, None, LossConfig(0.5))
    assert np.isnan(float(terms.total))
    assert np.isnan(cupy.asnumpy(losses.loss_backward(cache))[1]).all()


def test_views_have_the_bits_of_apply(cupy):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((9, 3, 50)).astype(np.float32)
    params = Params(*(rng.uniform(0.5, 2, (9, 3)).astype(np.float32) for _ in range(2)))
    rows = np.array([4, 8, 0, 4])
    want = apply(points[rows].swapaxes(1, 2), Params(*(value[rows] for value in params)))
    got = kernels.views(*map(cupy.asarray, (points, rows, *params)))
    np.testing.assert_array_equal(cupy.asnumpy(got), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agreement_and_rows_of_logits_have_the_bits_of_numpy(cupy, dtype):
    """Also for equal logits, of which the first counts, and for what is not a number."""
    rng = np.random.default_rng(0)
    z, v = rng.integers(-2, 3, (2, 300, 4)).astype(dtype)
    z[5, 2:], v[5, 2], z[6] = np.nan, np.nan, np.nan
    want = kernels.agreement(z, v)
    got = kernels.agreement(cupy.asarray(z), cupy.asarray(v))
    assert 0.2 < want < 0.8 and got.dtype == want.dtype and float(got) == want
    stored = rng.standard_normal((9, 7)).astype(np.float16)
    rows = np.array([8, 0, 3, 3])
    got = kernels.rows_of(cupy.asarray(stored), cupy.asarray(rows), dtype)
    want = kernels.rows_of(stored, rows, dtype)
    assert got.dtype == want.dtype == dtype
    np.testing.assert_array_equal(cupy.asnumpy(got), want)


def test_what_a_step_reads_is_held_in_one_place(cupy):
    work = Workspace(cupy)
    first, second = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2).T
    places = set()
    for array in (first, second):
        held = kernels.held(work, "x", array)
        places.add(held.data.ptr)
        np.testing.assert_array_equal(cupy.asnumpy(held), array)
    assert len(places) == 1 and kernels.held(work, "x", None) is None


def test_a_product_with_a_repeated_row_or_column_is_right(cupy):
    a = cupy.asarray(np.arange(20.0).reshape(4, 5))
    row, column = cupy.asarray(np.arange(5.0)), cupy.asarray(np.arange(4.0))[:, None]
    repeated = (cupy.broadcast_to(row, (4, 5)), cupy.broadcast_to(column, (4, 5)))
    for b in repeated:
        for one, other in ((a, b.T), (b, a.T)):
            out = kernels.multiply(one, other, cupy.empty((4, 4)))
            want = cupy.asnumpy(one) @ cupy.asnumpy(other)
            np.testing.assert_array_equal(cupy.asnumpy(out), want)
