"""Neighbourhoods against their definitions, and the same indices everywhere."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipc.errors import DataError
from minipc.models import pointnet2
from minipc.models.model import sizes
from minipc.nn import groups
from minipc.nn.groups import Scale, farthest_points, neighbours
from minipc.storage import files
from reference_tests.mathematics import oracles
from reference_tests.tools import kernels

QUICKLY = settings(max_examples=60, deadline=None, derandomize=True)

# On a grid, so that distances are equal, points repeat and a radius is met exactly; or anywhere.
GRID = st.integers(-2, 2).map(lambda n: n / 2)
ANYWHERE = st.floats(-4, 4, width=32)


@st.composite
def clouds_of(draw, most=14):
    """Two clouds (2, N, 3) float32 of equally many points."""
    number = draw(st.integers(1, most))
    values = draw(
        st.lists(draw(st.sampled_from([GRID, ANYWHERE])), min_size=6 * number, max_size=6 * number)
    )
    return np.array(values, np.float32).reshape(2, number, 3)


def some_clouds(clouds=3, points=40):
    """Return clouds of exact numbers, the same on any machine: of 1/1024ths, points repeated."""
    words = np.random.Philox(key=7).random_raw(clouds * points * 3) >> np.uint64(53)
    x = (words.astype(np.float32) / 1024 - 1).reshape(clouds, points, 3)
    x[:, points // 2 : points // 2 + 5] = x[:, :5]
    x[0, -3:] = x[0, 7]
    return x


SCALES = (Scale(1), Scale(6), Scale(5, 0.5), Scale(50, 0.3), Scale(50))


def all_groups(x):
    """Return centres and the members of SCALES, one tuple of arrays."""
    centres = farthest_points(x, 16)
    return centres, *neighbours(x, centres, SCALES)


def assert_same(found, wanted):
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)


# the definitions


@QUICKLY
@given(x=clouds_of(), data=st.data())
def test_centres_are_the_farthest_points_by_their_definition(x, data):
    count = data.draw(st.integers(1, x.shape[1]))
    wanted = [oracles.farthest_points(cloud, count) for cloud in x]
    np.testing.assert_array_equal(farthest_points(x, count), wanted)


@QUICKLY
@given(
    x=clouds_of(),
    members=st.integers(1, 17),
    radius=st.one_of(st.just(0.0), st.sampled_from([0.5, 1.0]), st.floats(0.0078125, 4, width=32)),
    data=st.data(),
)
def test_members_are_the_nearest_or_a_ball_by_their_definition(x, members, radius, data):
    """A ball excludes its surface; what is missing is the nearest again; ties by lower index."""
    count = data.draw(st.integers(1, x.shape[1]))
    centre = st.integers(0, x.shape[1] - 1)
    centres = np.array([data.draw(st.lists(centre, min_size=count, max_size=count)) for _ in x])
    (found,) = neighbours(x, centres, [Scale(members, radius)])
    wanted = [
        [oracles.group(cloud, c, members, radius) for c in row]
        for cloud, row in zip(x, centres, strict=True)
    ]
    np.testing.assert_array_equal(found, wanted)


def test_several_scales_are_those_of_each_scale_alone():
    x = some_clouds()
    centres = farthest_points(x, 9)
    alone = [neighbours(x, centres, [scale])[0] for scale in SCALES]
    assert_same(neighbours(x, centres, iter(SCALES)), alone)


def line(*places):
    """Return one cloud (1, N, 3) along x."""
    return np.array([[[place, 0, 0] for place in places]], np.float32)


def test_a_ball_excludes_the_point_at_exactly_its_radius():
    x, centre = line(0, 0.5, 0.25, 1), np.array([[0]])
    found = neighbours(x, centre, [Scale(4, 0.5), Scale(4, 0.5000001), Scale(2, 2.0)])
    assert [each[0, 0].tolist() for each in found] == [[0, 2, 0, 0], [0, 2, 1, 0], [0, 2]]


def test_the_square_of_the_radius_is_the_float32_nearest_to_it():
    """Its power, by the C library's powf, is another number for one radius in a thousand."""
    radii = np.arange(1, 2**24, 4099, dtype=np.float32) / np.float32(2**23)
    x = line(0, *radii)
    for n, radius in enumerate(radii, start=1):
        # itself at exactly this distance: outside; as powf rounds up, inside
        (found,) = neighbours(x[:, [0, n]], np.array([[0]]), [Scale(2, float(radius))])
        assert found[0, 0].tolist() == [0, 0], radius


def test_ties_are_won_by_the_lower_index():
    x = line(0, 1, -1, 1, 2, -2)
    assert farthest_points(x, 6)[0].tolist() == [0, 4, 5, 1, 2, 3]
    (found,) = neighbours(x, np.array([[0, 3]]), [Scale(5)])
    assert found[0].tolist() == [[0, 1, 2, 3, 4], [1, 3, 0, 4, 2]]


def test_repeated_points_are_chosen_last_and_none_is_chosen_twice():
    x = line(0, 0, 3, 0, 3, 1)
    assert farthest_points(x, 6)[0].tolist() == [0, 2, 5, 1, 3, 4]
    same = np.ones((2, 7, 3), np.float32)
    np.testing.assert_array_equal(farthest_points(same, 7), [np.arange(7)] * 2)
    (found,) = neighbours(same, farthest_points(same, 7), [Scale(3)])
    assert (found == [0, 1, 2]).all()  # equal distances: the lowest indices, whatever the centre


def test_one_point_is_its_own_centre_and_all_its_members():
    x = np.full((2, 1, 3), 5, np.float32)
    centres = farthest_points(x, 1)
    assert centres.tolist() == [[0], [0]]
    for scale in SCALES:
        (found,) = neighbours(x, centres, [scale])
        assert found.shape == (2, 1, scale.members) and not found.any()


def test_fewer_points_than_members_repeat_the_nearest():
    x = line(0, 1, 5)
    (found,) = neighbours(x, np.array([[2, 0]]), [Scale(5)])
    assert found[0].tolist() == [[2, 1, 0, 2, 2], [0, 1, 2, 0, 0]]


@pytest.mark.parametrize("points", [1 << 16, (1 << 16) + 1])
def test_indices_are_right_where_two_bytes_no_longer_count_the_points(points):
    x = np.zeros((1, points, 3), np.float32)
    x[0, :, 0] = np.arange(points)
    last = points - 1
    assert farthest_points(x, 2)[0].tolist() == [0, last]
    (found,) = neighbours(x, np.array([[last]]), [Scale(2)])
    assert found[0, 0].tolist() == [last, last - 1]
    assert found.dtype == (np.uint16 if points == 1 << 16 else np.uint32)


def test_more_centres_than_points_are_refused_with_the_remedy():
    expected = (
        "^groups: the model needs 5 centres and a cloud has 4 points; take clouds of more points, "
        "or a model with fewer centres$"
    )
    with pytest.raises(DataError, match=expected):
        farthest_points(np.zeros((2, 4, 3), np.float32), 5)
    with pytest.raises(DataError, match=expected):
        pointnet2.prepare(sizes("5/2:4,6", 3), np.zeros((2, 4, 3), np.float32))
    with pytest.raises(DataError, match=r"points: expected shape \(\*, \*, 3\), got \(4, 3\)"):
        farthest_points(np.zeros((4, 3), np.float32), 2)


# the same everywhere


def test_the_first_centres_are_the_centres_of_fewer():
    x = some_clouds()
    most = farthest_points(x, x.shape[1])
    assert (np.sort(most, axis=1) == np.arange(x.shape[1])).all()
    for count in (1, 2, 17, 39):
        np.testing.assert_array_equal(farthest_points(x, count), most[:, :count])


@pytest.mark.parametrize("chunk", [1, 40, 41, 100, 1 << 16])
def test_order_and_number_of_clouds_and_the_size_of_a_chunk_change_nothing(chunk, monkeypatch):
    x = some_clouds(7)
    wanted = all_groups(x)
    monkeypatch.setattr(groups, "CHUNK", chunk)
    assert_same(all_groups(x), wanted)
    for places in ([3], [6, 0], [5, 4, 3, 2, 1, 0, 6], [2, 2, 2]):
        assert_same(all_groups(x[places]), [each[places] for each in wanted])


def test_threads_at_the_same_time_change_nothing():
    x = some_clouds(8)
    wanted = all_groups(x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: all_groups(x[i : i + 1]), range(8)))
    assert_same([np.concatenate(parts) for parts in zip(*found, strict=True)], wanted)


@pytest.mark.parametrize(
    "stored",
    [
        np.asfortranarray,
        lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: np.concatenate([x, x], axis=2)[:, :, :3],
        lambda x: x[:, ::-1].copy()[:, ::-1],
    ],
    ids=["fortran", "channels first", "every second", "first three columns", "backwards"],
)
def test_the_order_of_memory_changes_nothing_and_nothing_is_written(stored):
    x = some_clouds()
    other = stored(x)
    assert not other.flags.c_contiguous
    other.setflags(write=False)
    assert_same(all_groups(other), all_groups(x))


def test_a_cloud_moved_without_rounding_keeps_its_groups():
    """1/1024ths below 2^13 are exact in float32, so only the differences matter."""
    x = some_clouds()
    assert_same(all_groups(x + np.float32(4096)), all_groups(x))


DIGEST = """
from reference_tests.mathematics import test_groups
from minipc.storage import files
print(files.sha256_arrays(*test_groups.fixed_groups()))
"""
WANTED = "4c79322e7023af1ed05fc14b7312cce058f428a1a12ccfb4559d118fc0a8fa9a"


def fixed_groups():
    """Return all groups of fixed clouds, as arrays of one dtype; thirds make every step round."""
    x = some_clouds(4, 150) / np.float32(3)
    return [np.asarray(each, "<u4") for each in all_groups(x)]


def test_groups_of_fixed_clouds_are_those_of_every_other_machine():
    """A change here changes every model of neighbourhoods that was ever trained."""
    assert files.sha256_arrays(*fixed_groups()) == WANTED


# NumPy's names for wide registers and fused multiply-add, since 2.4 and before; it warns of others.
WIDE = "X86_V4 AVX512_ICL AVX512_SPR X86_V3 AVX512F AVX512CD AVX512_SKX AVX2 FMA3"


def test_groups_of_fixed_clouds_are_the_same_without_wide_registers_and_fused_multiply_add():
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env=kernels.environment("Prescott") | {"NPY_DISABLE_CPU_FEATURES": WIDE},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == WANTED, done.stderr


# of a model


def test_a_models_groups_are_farthest_points_and_neighbours_level_by_level():
    """Levels take the first centres of the one below, and find neighbours among its centres."""
    x = some_clouds(2, 30)
    config = sizes("12/4:5/0.5x3:4,7/3:6,5/9:4,6", 3)
    found = pointnet2.prepare(config, x)
    for b, cloud in enumerate(x):
        order = oracles.farthest_points(cloud, 12)
        below, wanted = cloud, []
        for level, centres in zip(config.parsed, (order, range(7), range(5)), strict=True):
            wanted.append(list(centres))
            for scale, _ in level.scales:
                wanted.append([oracles.group(below, c, *scale) for c in centres])
            below = below[list(centres)]
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine[b], theirs)


def test_a_models_groups_do_not_depend_on_the_company_of_a_cloud():
    x, config = some_clouds(5, 64), sizes("32/6:4,8/0.7x5:6/4:3,6", 3)
    wanted = pointnet2.prepare(config, x)
    assert_same(pointnet2.prepare(config, x[[4, 1]]), [each[[4, 1]] for each in wanted])
