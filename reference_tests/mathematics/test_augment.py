"""Augmentation: the random words by their definition, the draw bit for bit, apply rounded twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipc.data.augment import AugmentConfig, Params, apply, draw
from minipc.errors import BackendError, DataError, UsageError
from minipc.streams import check_seed, stream, view_words
from reference_tests.tools.fake_device import assert_agrees, is_fake, moved

MASK = 2**64 - 1


def philox(counter, key):
    """Philox4x64-10 in Python integers (Salmon et al. 2011, section 3.3): 4 words to 4 words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def words_of(seed, view, cloud):
    """The six words of one cloud: blocks 2 cloud + 1 and 2 cloud + 2 (NumPy increments first)."""
    return [w for block in (1, 2) for w in philox([2 * cloud + block, 0, 0, 0], [seed, view])][:6]


def test_philox_is_the_published_one():
    """Known answers of Random123, kat_vectors, philox4x64 with 10 rounds."""
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox([MASK] * 4, [MASK] * 2) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize("seed", [0, 1, 20, 2**53 + 1, 2**63, 2**63 + 12345, 2**64 - 1])
@pytest.mark.parametrize("view, first", [(0, 0), (1, 5), (299, 9841), (2**32 + 1, 2**40)])
def test_view_words_are_philox_words(seed, view, first):
    words = view_words(seed, view, first, 3)
    assert words.shape == (3, 6) and words.dtype == np.uint64
    assert words.tolist() == [words_of(seed, view, first + i) for i in range(3)]


def _float32_of(seed, view, cloud, config):
    """The draw of one cloud by its definition, in Python floats, rounded once to float32."""
    u = [(w >> 11) * 2.0**-53 for w in words_of(seed, view, cloud)]
    low, high, most = config.scale_low, config.scale_high, config.shift_max
    scale = [np.float32(low + (high - low) * x) for x in u[:3]]
    return scale, [np.float32(-most + (most + most) * x) for x in u[3:]]


@pytest.mark.parametrize(
    "config", [AugmentConfig(), AugmentConfig(0.5, 0.5, 0.0), AugmentConfig(0.1, 7.3, 3.3)]
)
@pytest.mark.parametrize("seed, view", [(0, 0), (7, 3), (2**64 - 1, 299)])
def test_draws_are_the_definition_bit_for_bit(config, seed, view):
    scale, shift = draw(seed, view, 2, 4, config)
    assert scale.dtype == shift.dtype == np.float32
    for i in range(4):
        want_scale, want_shift = _float32_of(seed, view, 2 + i, config)
        assert scale[i].tobytes() == np.array(want_scale).tobytes()
        assert shift[i].tobytes() == np.array(want_shift).tobytes()


def test_all_53_bits_of_a_word_count(monkeypatch):
    """At u = 1/2 + 2^-53 and a largest shift of 1, what is left is 2^-52: no float32 hides it."""
    words = np.full((1, 6), (2**52 + 1) << 11, np.uint64)
    monkeypatch.setattr("minipc.data.augment.view_words", lambda *key: words)
    _, shift = draw(0, 0, 0, 1, AugmentConfig(shift_max=1.0))
    np.testing.assert_array_equal(shift, np.float32(2.0**-52))


GOLDEN = {
    (0, 0, 0): [
        "3f2d2146 3f5e3279 3f427001 3cd312e7 3a798504 bdb62f7e",
        "3f60d0c6 3f544707 3fa13fc2 be1708b4 3ced6b84 bdc8b3f3",
    ],
    (1, 299, 9841): [
        "3f9bcb5b 3fadf989 3f474e18 3e0521ea 3d7d150f bce4f7c7",
        "3fadef23 3f5c1f5a 3fba3081 be213d03 3db2e01c 3e307a98",
    ],
    (0x8000000000000001, 7, 3): [
        "3f5e049c 3f94a108 3f94d2e8 be1bfd67 be3b344c 3e3f37f1",
        "3f7f4252 3f97cd45 3fa5fe0a 3df16e32 3e0e9dcc be1ed925",
    ],
    (0xFFFFFFFFFFFFFFFF, 4294967296, 8589934592): [
        "3fa0820a 3fa610d8 3f9da322 be3da35b 3da4bdba 3d783bda",
        "3faef07a 3fa8d7a9 3fa9285d bdd77255 be048fb9 bb6fdc98",
    ],
}


@pytest.mark.parametrize("seed, view, first", GOLDEN)
def test_draws_are_the_stored_ones(seed, view, first):
    """A record of today is the record of ten years on: scale and shift, float32 in hexadecimal."""
    scale, shift = draw(seed, view, first, 2, AugmentConfig())
    rows = np.concatenate([scale, shift], axis=1).view(np.uint32)
    assert [" ".join(f"{x:08x}" for x in row) for row in rows.tolist()] == GOLDEN[seed, view, first]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, MASK),
    view=st.integers(0, 2**40),
    first=st.integers(0, 2**40),
    before=st.integers(0, 5),
    clouds=st.integers(0, 8),
    after=st.integers(0, 5),
)
def test_a_clouds_draw_does_not_depend_on_how_many_are_drawn_with_it(
    seed, view, first, before, clouds, after
):
    config = AugmentConfig()
    whole = draw(seed, view, first, before + clouds + after, config)
    part = draw(seed, view, first + before, clouds, config)
    for got, want in zip(part, whole, strict=True):
        assert got.tobytes() == want[before : before + clouds].tobytes()


def test_seeds_views_and_clouds_do_not_repeat_each_other():
    seen = set()
    for seed in (0, 1, 2**64 - 1):
        for view in (0, 1, 2):
            seen |= {row.tobytes() for row in view_words(seed, view, 0, 50)}
    assert len(seen) == 3 * 3 * 50


def test_draws_fill_their_ranges_and_nothing_else():
    config = AugmentConfig()
    scale, shift = draw(3, 0, 0, 20_000, config)
    assert scale.min() >= np.float32(2 / 3) and scale.max() <= np.float32(3 / 2)
    assert shift.min() >= np.float32(-0.2) and shift.max() <= np.float32(0.2)
    for values, low, high in ((scale, 2 / 3, 3 / 2), (shift, -0.2, 0.2)):
        width = high - low
        assert values.min() < low + 1e-3 * width and values.max() > high - 1e-3 * width
        # uniform: five standard errors of the mean of 20,000 draws, each axis
        error = 5 * width / (12 * 20_000) ** 0.5
        np.testing.assert_allclose(values.mean(axis=0), (low + high) / 2, atol=error)
        correlation = np.corrcoef(values.T)
        assert np.abs(correlation - np.eye(3)).max() < 5 / 20_000**0.5  # five standard errors


def _cloud(B=16, N=256, seed=0):
    points = np.random.default_rng(seed).uniform(-1, 1, (B, N, 3)).astype(np.float32)
    return points, draw(5, 2, 0, B, AugmentConfig())


def test_apply_multiplies_then_adds_each_rounded_to_float32():
    points, params = _cloud()
    got = apply(points, params)
    assert got.dtype == np.float32
    scale, shift = (value[:, None, :].astype(np.float64) for value in params)
    # The product of two float32 is exact in float64.  Their sum may not be, but rounding it to 53
    # and then to 24 bits is rounding it to 24 (Figueroa 1995: 53 >= 2 * 24 + 2).
    product = (points.astype(np.float64) * scale).astype(np.float32)
    want = (product.astype(np.float64) + shift).astype(np.float32)
    assert got.tobytes() == want.tobytes()


def test_a_fused_multiply_add_would_differ_in_a_good_share_of_numbers():
    points, params = _cloud()
    scale, shift = (value[:, None, :].astype(np.float64) for value in params)
    fused = (points.astype(np.float64) * scale + shift).astype(np.float32)  # one rounding
    differing = (apply(points, params) != fused).mean()
    assert 0.05 < differing < 0.9  # a third or so: the test above can tell the two apart
    np.testing.assert_allclose(
        apply(points, params), fused, atol=2e-7
    )  # one unit in the last place


def test_apply_on_a_device_is_bit_for_bit_that_on_the_host(device):
    points, params = _cloud()
    got = apply(*moved(device, (points, params)))
    assert type(got) is device.ndarray
    assert got.get().tobytes() == apply(points, params).tobytes()


def test_subnormal_numbers_are_zero_on_a_device_the_exception_that_the_page_names(device):
    tiny = np.full((1, 2, 3), 2.0**-127, np.float32)
    params = Params(np.full((1, 3), 0.5, np.float32), np.zeros((1, 3), np.float32))
    assert (apply(tiny, params) == 2.0**-128).all()
    there = apply(device.asarray(tiny), Params(*map(device.asarray, params)))
    assert (device.asnumpy(there) == (2.0**-128 if is_fake(device) else 0)).all()


def test_apply_changes_neither_points_nor_parameters():
    points, params = _cloud(2, 5)
    before = points.copy(), params.scale.copy(), params.shift.copy()
    result = apply(points, params)
    assert_agrees(np, (points, *params), before)
    assert not np.shares_memory(result, points)


def test_the_identity_leaves_every_bit():
    points, _ = _cloud(2, 50)
    identity = Params(np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert apply(points, identity).tobytes() == points.tobytes()


@pytest.mark.parametrize(
    "points, scale, shift, message",
    [
        ((2, 5), (2, 3), (2, 3), r"points: expected shape \(\*, \*, 3\), got \(2, 5\)"),
        ((2, 5, 4), (2, 3), (2, 3), r"points: expected shape \(\*, \*, 3\), got \(2, 5, 4\)"),
        ((2, 5, 3), (1, 3), (2, 3), r"scale: expected shape \(2, 3\), got \(1, 3\)"),
        ((2, 5, 3), (2, 3), (3,), r"shift: expected shape \(2, 3\), got \(3,\)"),
        ((3, 3, 3), (3, 3), (3, 1), r"shift: expected shape \(3, 3\), got \(3, 1\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(points, scale, shift, message):
    with pytest.raises(DataError, match=message):
        apply(
            np.zeros(points, np.float32),
            Params(np.ones(scale, np.float32), np.zeros(shift, np.float32)),
        )


def test_host_parameters_for_device_points_are_refused(fake_cupy):
    points, params = _cloud(2, 5)
    for mixture in (
        (fake_cupy.asarray(points), params),
        (points, moved(fake_cupy, params)),
        (points, params._replace(shift=fake_cupy.asarray(params.shift))),
    ):
        with pytest.raises(BackendError, match="mixed"):
            apply(*mixture)


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0, 1.0, 0.1),
        (1.5, 1.0, 0.1),
        (0.5, float("inf"), 0.1),
        (float("nan"), 1.0, 0.1),
        (0.5, 1.0, -0.1),
        (0.5, 1.0, float("nan")),
        (0.5, 1.0, float("inf")),
    ],
)
def test_ranges_that_are_none_are_refused(wrong):
    with pytest.raises(UsageError, match=r"(scale|shift): expected"):
        AugmentConfig(*wrong)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "0", None])
def test_seeds_outside_of_64_bits_are_refused(seed):
    for use in (
        check_seed,
        lambda s: stream(s, "shuffle"),
        lambda s: draw(s, 0, 0, 1, AugmentConfig()),
    ):
        with pytest.raises(UsageError, match="seed: expected an integer from 0 to 2.64 - 1, got"):
            use(seed)


def test_streams_of_another_purpose_key_or_seed_are_others_and_the_same_one_repeats():
    first = stream(1, "shuffle", 0).random(4)
    np.testing.assert_array_equal(stream(1, "shuffle", 0).random(4), first)
    others = [stream(1, "dropout", 0), stream(1, "shuffle", 1), stream(2, "shuffle", 0)]
    for other in others:
        assert not np.isin(other.random(4), first).any()


@pytest.mark.parametrize(
    "one, other",
    [
        ((1, "shuffle"), (1, "shuffle", 0)),
        ((1, "shuffle", 0), (1, "shuffle", 0, 0)),
        ((1, "shuffle"), (1, "shuffle", 0, 0)),
    ],
)
def test_streams_with_keys_of_another_length_are_others(one, other):
    assert not np.isin(stream(*one).random(4), stream(*other).random(4)).any()


@pytest.mark.parametrize("key", [-1, 2**32])
def test_a_key_that_would_be_split_into_two_is_refused(key):
    with pytest.raises(UsageError, match="stream shuffle: expected keys from 0"):
        stream(1, "shuffle", key)


def test_randomness_comes_from_no_global_state():
    before = np.random.get_state()[1].tobytes()
    draw(1, 2, 3, 4, AugmentConfig())
    stream(1, "shuffle").random(3)
    assert np.random.get_state()[1].tobytes() == before
