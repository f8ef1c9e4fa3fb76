"""Kernels of levels and sums over points beside NumPy, at shapes that models do not reach."""

import numpy as np
import pytest

from minipc.nn import kernels
from minipc.nn.fast.workspace import Workspace


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("clouds, points, count, size", [(1, 1, 1, 1), (2, 31, 5, 3), (3, 32, 9, 8),
    (2, 33, 40, 4), (1, 128, 131, 32), (2, 70, 1, 5)])  # fmt: skip
def test_readers_on_cupy_are_the_places_of_each_point_in_order(
    cupy, dtype, clouds, points, count, size
):
    rng = np.random.default_rng(0)
    members = rng.integers(0, points, (clouds, count, size)).astype(dtype)
    first, places = (x.get() for x in kernels.readers(cupy.asarray(members), points))
    for c, groups in enumerate(members.reshape(clouds, -1)):
        for n in range(points):
            found = places[c, first[c, n] : first[c, n + 1]]
            np.testing.assert_array_equal(found, np.flatnonzero(groups == n))
        assert first[c, 0] == 0 and first[c, points] == count * size


def test_columns_of_a_view_on_cupy(cupy):
    rng = np.random.default_rng(0)
    tower, index = rng.standard_normal((3, 9, 11)), rng.integers(0, 11, (3, 20))
    u, out = cupy.asarray(tower)[:, 2:7], cupy.empty((3, 8, 20))[:, 1:6]
    kernels.columns(u, cupy.asarray(index), out)
    expected = np.take_along_axis(tower[:, 2:7], index[:, None], axis=2)
    np.testing.assert_array_equal(out.get(), expected)


def test_the_rows_of_a_level_on_cupy_from_views(cupy):
    rng = np.random.default_rng(0)
    tower, centre = rng.standard_normal((3, 9, 11)), rng.standard_normal((3, 5, 4))
    index, floor = rng.integers(0, 11, (3, 24)), rng.standard_normal(5)
    u, out = cupy.asarray(tower)[:, 2:7], cupy.empty((3, 8, 24))[:, 1:6]
    kernels.expand(u, *map(cupy.asarray, (index, centre, floor)), out)
    rows = np.take_along_axis(tower[:, 2:7], index[:, None], axis=2)
    rows = np.maximum(rows - np.tile(centre, (1, 1, 6)), floor[:, None])
    np.testing.assert_array_equal(out.get(), rows)


@pytest.mark.parametrize("gathered", [False, True])
def test_the_first_maximum_on_cupy_with_ties_and_what_is_no_number(cupy, gathered):
    rng = np.random.default_rng(0)
    points = rng.integers(-2, 3, (13, 6)).astype(np.float32)
    points[4, 2] = np.nan
    index = rng.integers(0, 13, (7, 30))
    rows = points[index]
    best, rank = cupy.empty((20, 6), np.float32), cupy.empty((20, 6), np.uint8)
    some = cupy.asarray(index)[:, 5:25]  # a view
    if gathered:
        kernels.first_of_gathered(cupy.asarray(points), some, best, rank)
    else:
        kernels.first_maximum(cupy.asarray(points)[some], 0, best, rank)
    rows = rows[:, 5:25]
    np.testing.assert_array_equal(best.get(), rows.max(axis=0))
    expected = np.where(np.isnan(rows).any(axis=0), 6, (rows == rows.max(axis=0)).argmax(axis=0))
    assert np.isnan(rows).any() and np.isfinite(rows.max(axis=0)).any()
    np.testing.assert_array_equal(rank.get(), expected)


@pytest.mark.parametrize("clouds, inputs, width, points", [(1, 1, 1, 1), (3, 5, 7, 1024),
    (2, 33, 20, 300), (5, 4, 4, 257), (2, 3, 300, 4096)])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_over_points_on_cupy_by_parts_of_views(cupy, dtype, clouds, inputs, width, points):
    rng, work = np.random.default_rng(0), Workspace(cupy)
    tower = rng.integers(-8, 9, (clouds, inputs + width + 1, points)).astype(dtype)  # exact sums
    there = cupy.asarray(tower)
    for _ in range(2):  # the second finds its tables
        found = kernels.outer(there[:, :inputs], there[:, inputs + 1 :], work)
        z, d = tower[:, :inputs].astype(np.float64), tower[:, inputs + 1 :]
        np.testing.assert_array_equal(found.get(), np.einsum("cin,con->io", z, d))
    assert len(work.tables) == 3
    np.testing.assert_array_equal(
        kernels.mean(there[:, 1:]).get(),
        tower[:, 1:].mean(axis=(0, 2), dtype=np.float64).astype(dtype),
    )


def test_tables_of_addresses_on_cupy_are_given_up_before_they_are_many(cupy, monkeypatch):
    monkeypatch.setattr(kernels, "MOST_TABLES", 10)
    work, z = Workspace(cupy), cupy.ones((4, 9, 256), np.float32)
    for first in range(8):
        assert (kernels.outer(z[:, first:], z, work) == 4 * 256).all()
        assert len(work.tables) <= 10 + 3
