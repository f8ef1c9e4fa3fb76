"""The four earlier selves, and the effects that docs/math.md derives, on convex problems.

The problems are linear: logits z = x W of features x, or logits free of each other.  The targets
are the ones training uses; only the forward that they are given is small.
"""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from minipc.distil.self_target import Ema, History, SecondRecord, Snapshot
from minipc.errors import UsageError
from minipc.models.file import new_model
from minipc.models.pointnet import ModelConfig, forward_train
from minipc.nn.losses import LossConfig, loss_backward, loss_forward
from minipc.settings import SelfConfig

RAW = LossConfig(kd_weight=0.8, self_weight=0.3, temperature=2.5, guard="none")


def linear(params, x):
    """Logits (B, K) of features (B, D)."""
    return x @ params["W"]


def identity(params, x):
    """Logits that are the parameters themselves."""
    return params["z"]


def problem(rows=12, features=4, classes=3, seed=0):
    """Features, labels' weights y and teacher logits v of a problem without an exact fit."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features))
    y = 0.9 * np.eye(classes)[np.arange(rows) % classes] + 0.1 / classes
    return x, y, 2 * rng.standard_normal((rows, classes))


def gradient(z, y, v, target, config):
    """dL/dz (B, K), the batch mean taken; target (u, has) or None."""
    u, has = target if target is not None else (None, None)
    return loss_backward(loss_forward(z, y, v, u, has, config)[1])


def descend(target, config, steps, rate, seed=1):
    """Full-batch descent on problem(), one step an epoch.  Returns W and its last change."""
    x, y, v = problem()
    params = {"W": np.random.default_rng(seed).standard_normal((4, 3))}
    rows = np.arange(len(x))
    for epoch in range(steps):
        z = linear(params, x)
        told = target and target.target(rows, x)
        change = x.T @ gradient(z, y, v, told, config)
        params = {"W": params["W"] - rate * change}
        if target:
            target.stepped(rows, z, params)
            target.epoch_ended(epoch, params)
    return params["W"], np.abs(change).max()


@pytest.mark.parametrize("target", [Snapshot(linear), Ema(linear, 0.9)], ids=["snapshot", "ema"])
def test_zero_lag_gives_zero_gradient(target):
    x, y, v = problem()
    params = {"W": np.random.default_rng(1).standard_normal((4, 3))}
    rows = np.arange(len(x))
    target.stepped(rows, linear(params, x), params)
    target.epoch_ended(0, params)
    u, has = target.target(rows, x)
    np.testing.assert_array_equal(u, linear(params, x))  # bit for bit: no tolerance
    with_self = gradient(linear(params, x), y, v, (u, has), RAW)
    without = gradient(linear(params, x), y, v, None, RAW)
    np.testing.assert_allclose(
        with_self, without, atol=1e-16
    )  # two orders of one sum of numbers below 1


def test_a_pointnet_snapshot_has_zero_lag_although_batch_norm_runs_in_its_training_form():
    config = ModelConfig((8, 8), (6,), 3)
    model = new_model(config, {}, 0)
    points = np.random.default_rng(0).standard_normal((5, 9, 3)).astype(np.float32)
    for target in (
        Snapshot(lambda p, x: forward_train(p, x, config)[0]),
        Ema(lambda p, x: forward_train(p, x, config)[0]),
    ):
        assert target.target(np.arange(5), points) is None
        target.stepped(np.arange(5), None, model.params)
        target.epoch_ended(0, model.params)
        u, has = target.target(np.arange(5), points)
        np.testing.assert_array_equal(u, forward_train(model.params, points, config)[0])
        assert has.tolist() == [1] * 5 and has.dtype == np.float32


@pytest.mark.parametrize(
    "make", [lambda: Snapshot(linear, 5), lambda: Ema(linear, 0.8)], ids=["snapshot", "ema"]
)
def test_a_target_that_follows_keeps_the_stationary_point(make):
    plain, rest = descend(None, RAW, 4000, 0.5)
    negative, rest_negative = descend(make(), RAW, 4000, 0.5)
    assert max(rest, rest_negative) < 1e-12
    # the minimiser is unique up to a constant in z, here a constant column shift of W that never
    # moves from its start; a gradient of 1e-12 and a curvature above 1e-2 leave 1e-10
    np.testing.assert_allclose(negative, plain, atol=1e-10)
    early, _ = descend(make(), RAW, 20, 0.5)
    early_plain, _ = descend(None, RAW, 20, 0.5)
    assert np.abs(early - early_plain).max() > 1e-3  # on the way it did act


@pytest.mark.parametrize("b", [0.1, 0.2])
def test_a_held_target_shifts_the_optimum_to_the_stated_one(b):
    """At T = 1: s = ((1-a) y + a p - b r) / (1-b)."""
    _, y, v = problem()
    y, v = 0.5 * y + 0.5 / 3, 0.4 * v
    u = 0.5 * np.random.default_rng(3).standard_normal(y.shape)
    config = LossConfig(0.5, b, 1.0, guard="none")
    target = SecondRecord(lambda epoch: u)
    target.epoch_starts(0, np)
    rows, z = np.arange(len(y)), np.zeros_like(y)
    for _ in range(6000):
        z = z - 0.9 * len(y) * gradient(z, y, v, target.target(rows, z), config)
    c = 0.5 * y + 0.5 * softmax(v, axis=1)
    wanted = (c - b * softmax(u, axis=1)) / (1 - b)
    assert (wanted > 0).all()  # else there is no optimum
    np.testing.assert_allclose(softmax(z, axis=1), wanted, atol=1e-9)
    assert np.abs(wanted - c).max() > 0.02


def test_a_held_snapshot_oscillates_from_generation_to_generation_with_the_stated_factor():
    """At T = 1: s' - c = -b / (1-b) (s - c)."""
    _, y, v = problem(rows=3)
    b, config = 0.25, LossConfig(0.5, 0.25, 1.0, guard="none")
    c = 0.5 * y + 0.5 * softmax(v, axis=1)
    target, rows = Snapshot(identity), np.arange(3)
    z = log_softmax(np.log(c) + 0.1 * np.random.default_rng(0).standard_normal(c.shape), axis=1)
    for _ in range(3):
        before = softmax(z, axis=1) - c
        target.epoch_ended(0, {"z": z})
        for _ in range(4000):
            z = z - 0.9 * 3 * gradient(z, y, v, target.target(rows, z), config)
        np.testing.assert_allclose(softmax(z, axis=1) - c, -b / (1 - b) * before, atol=1e-10)


def test_history_pushes_the_views_of_a_cloud_apart_by_the_stated_gradient():
    """Averaged over two views w and their last visits w', the third term adds -b T Cov(J, s)."""
    rng = np.random.default_rng(4)
    clouds, features, classes = 5, 4, 3
    views = rng.standard_normal((2, clouds, features)).astype(np.float16).astype(np.float64)
    _, y, v = problem(rows=clouds)
    W = rng.integers(-4, 5, (features, classes)) / 4.0  # float16 holds these logits almost exactly
    rows, T, b = np.arange(clouds), RAW.temperature, RAW.self_weight
    added = np.zeros_like(W)
    for w in range(2):
        for visited in range(2):
            target = History(clouds, classes)
            target.stepped(rows, views[visited] @ W, {})
            z = views[w] @ W
            told = target.target(rows, views[w])
            pair = gradient(z, y, v, told, RAW) - gradient(z, y, v, None, RAW)
            added += views[w].T @ pair / 4
    s = softmax(views @ W / T, axis=2)  # (2, clouds, K)
    covariance = (
        sum(
            np.einsum("wd,wk->dk", views[:, i] - views[:, i].mean(axis=0), s[:, i]) / 2
            for i in range(clouds)
        )
        / clouds
    )
    np.testing.assert_allclose(
        added, -b * T * covariance, atol=2e-4
    )  # float16 logits: 5e-4 of a logit of 4
    assert np.abs(added).max() > 0.02


def test_history_raises_the_variance_within_a_cloud_and_moves_the_weights_at_its_fixed_point():
    rng = np.random.default_rng(0)
    clouds, features, classes = 6, 5, 3
    views = rng.standard_normal((2, clouds, features))
    _, y, v = problem(rows=clouds)
    rows = np.arange(clouds)

    def settle(target):
        W = np.zeros((features, classes))
        for visit in range(4000):
            x = views[visit % 2]
            z = x @ W
            W = W - 0.05 * (x.T @ gradient(z, y, v, target and target.target(rows, x), RAW))
            if target:
                target.stepped(rows, z, {})
        within = (views @ W).var(axis=0).sum(axis=1).mean()
        return W, within

    plain, variance = settle(None)
    pushed, variance_pushed = settle(History(clouds, classes))
    assert variance_pushed > 1.05 * variance
    assert np.abs(pushed - plain).max() > 0.05


@pytest.mark.parametrize("side, settles", [(0.97, True), (1.03, False)])
def test_ema_is_stable_exactly_below_the_stated_bound(side, settles):
    """Single mode: stable iff rate b λ < rate h + (1 - m) / m; h, λ curvatures of the rest and of
    the target.
    """
    h, m, rate = 0.2, 0.9, 0.5
    b_curvature = side * (h + (1 - m) / (m * rate))
    target = Ema(lambda params, x: params["w"], decay=m)
    w = np.array(1.0)
    target.stepped(None, None, {"w": w * 0.5})
    for _ in range(6000):
        e = target.forward(target.params, None)
        w = w - rate * (h * w - b_curvature * (w - e))
        target.stepped(None, None, {"w": w})
    assert (abs(float(w)) < 1e-6) == settles
    assert settles or abs(float(w)) > 1e3


def test_a_snapshot_is_taken_every_nth_epoch():
    target = Snapshot(linear, every=3)
    kept = []
    for epoch in range(7):
        target.epoch_ended(epoch, {"epoch": np.array(epoch)})
        kept.append(target.params and target.params["epoch"])
    assert kept == [None, None, 2, 2, 2, 5, 5]


def test_ema_follows_the_recursion_and_begins_with_the_first_step():
    target, rng = Ema(linear, decay=0.75), np.random.default_rng(0)
    weights = rng.standard_normal((4, 2, 3))
    wanted = weights[0]
    for W in weights:
        target.stepped(None, None, {"W": W})
        target.epoch_ended(0, {"W": W})  # an epoch's end changes nothing
        wanted = 0.75 * wanted + 0.25 * W
        np.testing.assert_allclose(target.params["W"], wanted, rtol=1e-14)


def test_history_knows_a_cloud_from_its_last_visit_only():
    target = History(6, 3)
    points = np.zeros((2, 4, 3), np.float32)
    u, has = target.target(np.array([1, 4]), points)
    assert has.tolist() == [0, 0] and has.dtype == u.dtype == np.float32
    target.stepped(np.array([1, 2]), np.array([[1.0, 2.0, 1e9], [4.0, 5.0, 6.0]], np.float32), {})
    u, has = target.target(np.array([1, 4]), points)
    assert has.tolist() == [1, 0]
    assert u[0].tolist() == [1, 2, 65504]  # what float16 holds


def test_a_recorded_target_is_the_row_of_the_view_that_is_replayed():
    logits = np.arange(24, dtype=np.float16).reshape(2, 4, 3)
    target = SecondRecord(lambda epoch: logits[epoch % 2])
    for epoch in range(3):
        target.epoch_starts(epoch, np)
        u, has = target.target(np.array([3, 0]), np.zeros((2, 5, 3), np.float32))
        np.testing.assert_array_equal(u, logits[epoch % 2][[3, 0]])
        assert u.dtype == np.float32 and has.tolist() == [1, 1]


def make(kind):
    """Return a target of each kind, for K = 3 and 6 clouds."""
    return {
        "snapshot": lambda: Snapshot(linear),
        "ema": lambda: Ema(linear),
        "history": lambda: History(6, 3),
        "record": lambda: SecondRecord(lambda epoch: np.ones((6, 3), np.float16)),
    }[kind]()


@pytest.mark.parametrize("kind", ["snapshot", "ema", "history", "record"])
def test_the_whole_state_of_a_target_comes_back(kind):
    rng = np.random.default_rng(0)
    first, second = make(kind), make(kind)
    x, rows = rng.standard_normal((3, 4)).astype(np.float32), np.array([0, 2, 5])
    for epoch in range(2):
        params = {"W": rng.standard_normal((4, 3)).astype(np.float32)}
        first.epoch_starts(epoch, np)
        first.stepped(rows, linear(params, x), params)
        first.epoch_ended(epoch, params)
    second.load(first.state(), np)
    for target in (first, second):
        target.epoch_starts(2, np)
    for mine, other in zip(first.target(rows, x), second.target(rows, x), strict=True):
        np.testing.assert_array_equal(mine, other)
    state = {name: value.copy() for name, value in first.state().items()}
    second.stepped(rows, -linear(params, x), {"W": -params["W"]})
    for name, value in state.items():
        np.testing.assert_array_equal(first.state()[name], value)  # the two share nothing


def test_a_target_that_has_seen_nothing_has_an_empty_state_that_comes_back():
    for kind in ("snapshot", "ema"):
        target = make(kind)
        assert target.state() == {}
        target.load({}, np)
        assert target.target(np.arange(2), np.zeros((2, 4))) is None


@pytest.mark.parametrize("kind", ["snapshot", "ema", "history", "record"])
def test_targets_work_on_the_device_and_give_their_state_to_the_host(kind, fake_cupy):
    target = make(kind)
    rows = fake_cupy.asarray(np.array([0, 2, 5]))
    x = fake_cupy.asarray(np.ones((3, 4), np.float32))
    params = {"W": fake_cupy.asarray(np.ones((4, 3), np.float32))}
    target.epoch_starts(0, fake_cupy)
    target.stepped(rows, linear(params, x), params)
    target.epoch_ended(0, params)
    state = target.state()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    again = make(kind)
    again.epoch_starts(0, fake_cupy)
    again.load(state, fake_cupy)
    u, has = again.target(rows, x)
    assert isinstance(u, fake_cupy.ndarray) and isinstance(has, fake_cupy.ndarray)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "itself"}, "self target: expected snapshot, ema, history, record, got 'itself'"),
        ({"every": 0}, "self every: expected at least 1 epoch, got 0"),
        ({"decay": 1.0}, "ema decay: expected 0 <= m < 1, got 1.0"),
        ({"decay": float("nan")}, "ema decay"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        SelfConfig(**changes)
