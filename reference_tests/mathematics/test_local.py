"""Offsets, gather and its readers: what the table of test_ops.py does not ask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipc.data.augment import AugmentConfig, Params, apply, draw
from minipc.errors import BackendError, DataError
from minipc.nn import gradcheck, local, ops
from minipc.nn.groups import Scale, farthest_points, neighbours
from reference_tests.mathematics import oracles
from reference_tests.tools.fake_device import assert_agrees, map_arrays, moved, on_host

QUICKLY = settings(max_examples=60, deadline=None, derandomize=True)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@st.composite
def members_of(draw):
    """Members (B, M, k) and a number of points: some are read often, some never."""
    points = draw(st.integers(1, 9))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)))
    size = int(np.prod(shape))
    read = draw(st.lists(st.integers(0, points - 1), min_size=size, max_size=size))
    return np.array(read, draw(st.sampled_from([np.uint16, np.uint32]))).reshape(shape), points


def grouped(clouds=3, points=30, count=8, dtype=np.float64, seed=0):
    """Return positions, centres and members, a ball in which some groups have repeated members."""
    x = np.random.default_rng(seed).standard_normal((clouds, points, 3)).astype(np.float32)
    x[:, 20:23] = x[:, :3]
    centres = farthest_points(x, count)
    (members,) = neighbours(x, centres, [Scale(6, 1.0)])
    assert (members[:, :, 1:] == members[:, :, :1]).any()
    return x.astype(dtype), centres, members


# offsets


@both_dtypes
def test_offsets_are_those_of_the_slow_oracle_bit_for_bit(dtype, xp):
    positions, centres, members = grouped(dtype=dtype)
    found = local.offsets(*moved(xp, (positions, centres, members)))
    wanted = np.asarray(oracles.offsets(positions, centres, members)).astype(dtype)  # one rounding
    assert_agrees(np, found, wanted)


def test_the_offset_of_a_centre_from_itself_is_zero_wherever_the_cloud_lies():
    positions, centres, members = grouped(dtype=np.float32)
    found = local.offsets(positions + np.float32(1e4), centres, members)
    own = members == centres[:, :, None]
    assert own.any(axis=2).all() and not found[own].any() and found.any()


def test_groups_of_the_stored_cloud_are_read_from_the_augmented_one():
    stored, centres, members = grouped(dtype=np.float32)
    drawn = Params(*draw(0, 0, 0, len(stored), AugmentConfig()))
    seen = apply(stored, drawn)
    found = local.offsets(seen, centres, members)
    wanted = np.asarray(oracles.offsets(seen, centres, members)).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    scaled = local.offsets(stored, centres, members) * drawn.scale[:, None, None]
    # a shift moves no offset: three roundings of coordinates below 8
    np.testing.assert_allclose(found, scaled, rtol=0, atol=3 * 8 * np.finfo(np.float32).eps)


def test_positions_of_another_shape_and_arrays_of_two_modules_are_refused(fake_cupy):
    positions, centres, members = grouped()
    with pytest.raises(DataError, match=r"positions: expected shape \(\*, \*, 3\)"):
        local.offsets(positions[:, :, :2], centres, members)
    with pytest.raises(DataError, match=r"f: expected shape \(3, \*, \*\), got \(2, 30, 3\)"):
        local.gather_forward(positions[:2], members)
    there = fake_cupy.asarray(members)
    for mixture in (
        lambda: local.offsets(positions, centres, there),
        lambda: local.gather_forward(positions, there),
    ):
        with pytest.raises(BackendError, match="mixed"):
            mixture()


# gather and its readers


@QUICKLY
@given(members_of())
def test_readers_are_the_places_that_read_each_point(case):
    members, points = case
    np.testing.assert_array_equal(local.readers(members, points), oracles.readers(members, points))


def test_readers_are_the_same_on_a_device(fake_cupy):
    members = np.random.default_rng(0).integers(0, 7, (2, 5, 3)).astype(np.uint16)
    there = local.readers(fake_cupy.asarray(members), 8)
    assert_agrees(np, there, local.readers(members, 8))


@QUICKLY
@given(members_of())
def test_a_points_gradient_is_the_sum_over_its_readers_in_the_order_of_the_places(case):
    """In float32, rounded after every addition: the same bits wherever it is computed."""
    members, points = case
    rng = np.random.default_rng(members.size)
    dy = rng.standard_normal((*members.shape, 2)).astype(np.float32)
    f = rng.standard_normal((len(members), points, 2)).astype(np.float32)
    y, cache = local.gather_forward(f, members)
    df = local.gather_backward(dy, cache)
    wanted = np.zeros_like(f)
    for b, groups in enumerate(members):
        for m, group in enumerate(groups):
            for j, n in enumerate(group):
                assert (y[b, m, j] == f[b, n]).all()
                for o in range(2):
                    total = float(wanted[b, n, o]) + float(dy[b, m, j, o])
                    wanted[b, n, o] = oracles.rounded(total)
    np.testing.assert_array_equal(df, wanted, strict=True)


def test_a_gradient_of_ones_counts_the_readers_of_each_point(xp):
    members = np.array([[[0, 0, 0], [0, 2, 2]]], np.uint16)
    f = np.ones((1, 4, 2))
    y, cache = local.gather_forward(*moved(xp, (f, members)))
    df = local.gather_backward(xp.asarray(np.ones((1, 2, 3, 2))), cache)
    assert on_host(df)[0, :, 0].tolist() == [4, 0, 2, 0]


# the maximum of a group, and of the cloud beside its mean


def test_ties_in_a_group_are_won_by_the_first_member(xp):
    x = np.zeros((1, 2, 3, 2))
    x[0, 0, :, 0], x[0, 1, :, 0] = [1, 7, 7], [4, 4, 4]
    y, cache = ops.point_max_forward(xp.asarray(x))
    assert_agrees(np, y, np.array([[[7.0, 0], [4, 0]]]))
    dy = np.array([[[10.0, 20], [30, 40]]])
    wanted = np.zeros((1, 2, 3, 2))
    wanted[0, 0, 1, 0], wanted[0, 0, 0, 1], wanted[0, 1, 0] = 10, 20, [30, 40]
    assert_agrees(np, ops.point_max_backward(xp.asarray(dy), cache), wanted)


def test_a_repeated_member_never_wins_over_the_member_that_it_repeats():
    """So a ball filled up with its nearest point has the gradients of the ball itself."""
    positions, _, members = grouped()
    f, _ = local.gather_forward(positions, members)
    _, cache = ops.point_max_forward(f)
    first = np.argmax(members[:, :, :, None] == members[:, :, None, :], axis=2)  # where it is first
    winners = np.take_along_axis(first, cache.first, axis=2)
    np.testing.assert_array_equal(winners, cache.first)


def test_the_maximum_of_one_point_is_its_mean_and_both_gradients_are_added():
    x = np.random.default_rng(0).standard_normal((3, 1, 4))
    y, cache = local.max_and_mean_forward(x)
    np.testing.assert_array_equal(y, np.concatenate([x[:, 0], x[:, 0]], axis=1))
    dy = np.random.default_rng(1).standard_normal((3, 8))
    dx = local.max_and_mean_backward(dy, cache)
    np.testing.assert_array_equal(dx[:, 0], dy[:, :4] + dy[:, 4:])


@pytest.mark.parametrize("seed", range(3))
def test_gather_layer_and_maximum_of_groups_agree_with_central_differences(seed):
    """The features of a textbook level, with members repeated and points that nobody reads."""
    positions, centres, members = grouped(seed=seed)
    rng = np.random.default_rng(seed)
    offsets = local.offsets(positions, centres, members)
    arrays = {"f": rng.standard_normal((3, 30, 4)), "W": rng.standard_normal((7, 5))}
    weights = rng.standard_normal((3, 8, 5))

    def forward(a):
        gathered, gather = local.gather_forward(a["f"], members)
        rows = np.concatenate([offsets, gathered], axis=3)
        y, linear = ops.linear_forward(rows, a["W"])
        y, pool = ops.point_max_forward(y)
        return y, (gather, linear, pool)

    _, (gather, linear, pool) = forward(arrays)
    held = map_arrays(np.copy, (gather, linear, pool))
    d, dW = ops.linear_backward(ops.point_max_backward(weights, pool), linear)
    grads = {"f": local.gather_backward(d[..., 3:], gather), "W": dW}
    assert_agrees(np, (gather, linear, pool), held)
    reports = gradcheck.check_gradients(
        lambda a: float((forward(a)[0] * weights).sum()), arrays, grads, rng
    )
    gradcheck.require(reports, 1e-6)  # piecewise linear: right to rounding, wrong by 1e-2
