"""The whole network: sizes, forward against loops, gradients, invariances, training steps."""

import numpy as np
import pytest

from minipc.audit.problems import KINK, distance_to_kinks, multiplied_out
from minipc.errors import BackendError, DataError, UsageError
from minipc.models.model import track
from minipc.models.pointnet import (
    ModelConfig,
    count,
    forward_eval,
    forward_train,
    initial_stats,
    param_specs,
    sizes,
)
from minipc.nn import gradcheck, optim
from minipc.nn.engine import backward
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from minipc.nn.params import initialise
from reference_tests.mathematics import oracles
from reference_tests.tools.fake_device import assert_agrees, leaves, map_arrays, moved

SMALL = ModelConfig((5, 6), (7,), classes=4, dropout=0.4)


def small(seed=0, dtype=np.float64, config=SMALL, B=4, N=6):
    """Return params with no default values left, stats, points and a dropout mask."""
    rng = np.random.default_rng(seed)
    params = initialise(param_specs(config), rng, np.float64)
    for name, value in params.items():
        if not name.endswith(".W"):
            value += 0.3 * rng.standard_normal(value.shape)
    # pooled channels that are zero in some cloud: else this offset has no gradient at all
    params[f"shared{len(config.shared) - 1}.beta"] -= 1
    stats = initial_stats(config, np.float64)
    for name, value in stats.items():
        value += rng.random(value.shape) - (0.5 if name.endswith(".mean") else 0.7)
    points = rng.standard_normal((B, N, 3))
    last = (*config.shared, *config.head)[-1]
    mask = (rng.random((B, last)) >= config.dropout) / (1 - config.dropout)
    return map_arrays(lambda array: array.astype(dtype), (params, stats, points, mask))


# sizes


@pytest.mark.parametrize(
    "name, parameters, macs",
    [
        # by hand, 40 classes, 1024 points: shared W + 2 norms, head W + 2 norms, output W + b
        (
            "teacher",
            (3 * 64 + 64 * 64 + 64 * 64 + 64 * 128 + 128 * 1024)
            + 2 * (64 + 64 + 64 + 128 + 1024)
            + (1024 * 512 + 512 * 256)
            + 2 * (512 + 256)
            + 256 * 40
            + 40,
            1024 * (192 + 4096 + 4096 + 8192 + 131072) + 524288 + 131072 + 10240,
        ),
        (
            "student",
            (3 * 32 + 32 * 32 + 32 * 64 + 64 * 128)
            + 2 * (32 + 32 + 64 + 128)
            + 128 * 64
            + 2 * 64
            + 64 * 40
            + 40,
            1024 * (96 + 1024 + 2048 + 8192) + 8192 + 2560,
        ),
        (
            "tiny",
            (3 * 16 + 16 * 16 + 16 * 32 + 32 * 64)
            + 2 * (16 + 16 + 32 + 64)
            + 64 * 32
            + 2 * 32
            + 32 * 40
            + 40,
            1024 * (48 + 256 + 512 + 2048) + 2048 + 1280,
        ),
    ],
)
def test_counts_are_those_made_by_hand(name, parameters, macs):
    assert parameters == {"teacher": 817_512, "student": 22_792, "tiny": 6_552}[name]
    assert macs == {"teacher": 151_857_152, "student": 11_643_392, "tiny": 2_936_064}[name]
    config = sizes(name, 40)
    assert count(config, 1024) == (parameters, macs)
    rng = np.random.default_rng(0)
    assert sum(value.size for value in initialise(param_specs(config), rng).values()) == parameters


@pytest.mark.parametrize(
    "text, shared, head",
    [
        ("16-16-32-64:32", (16, 16, 32, 64), (32,)),
        ("8:4-4", (8,), (4, 4)),
        ("8-16", (8, 16), ()),
    ],
)
def test_widths_by_hand_are_read(text, shared, head):
    config = sizes(text, 7)
    assert (config.shared, config.head, config.classes, config.dropout) == (shared, head, 7, 0.0)


@pytest.mark.parametrize(
    "text", ["big", "", ":32", "16-:8", "16-0", "-16", "16:32:8", "1.5", "16,32"]
)
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="^model: expected "):
        sizes(text, 40)


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="teacher, student, tiny or widths such as .*got 'big'"):
        sizes("big", 40)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"shared": ()}, "at least one shared"),
        ({"shared": (4, 0)}, "positive widths"),
        ({"head": (2.5,)}, "positive widths"),
        ({"classes": 1}, "at least 2 classes, got 1"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"dropout": float("nan")}, "0 <= dropout < 1"),
        ({"eps": 0.0}, "eps > 0"),
        ({"momentum": 0.0}, "momentum"),
        ({"momentum": 1.5}, "momentum"),
    ],
)
def test_models_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        ModelConfig(**({"shared": (4,), "head": (4,), "classes": 3} | wrong))


def test_parameters_start_as_they_are_specified():
    params = initialise(param_specs(sizes("teacher", 40)), np.random.default_rng(0))
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}
    for name, value in params.items():
        if name.endswith(".gamma"):
            np.testing.assert_array_equal(value, 1)
        elif name.endswith((".beta", ".b")):
            np.testing.assert_array_equal(value, 0)
        else:
            he = (2 / value.shape[0]) ** 0.5
            # five standard errors of a standard deviation and of a mean
            assert value.std() == pytest.approx(he, rel=5 / (2 * value.size) ** 0.5), name
            assert abs(value.mean()) < 5 * he / value.size**0.5, name


# forward


@pytest.mark.parametrize(
    "config", [SMALL, ModelConfig((4,), (), 3), ModelConfig((3, 4, 5), (6, 5), 2)]
)
def test_forward_equals_the_slow_oracle(config, engine):
    params, stats, points, mask = small(1, config=config)
    # float64: some hundreds of roundings on numbers of order one
    logits, _, _ = forward_train(params, points, config, engine=engine)
    np.testing.assert_allclose(logits, oracles.pointnet_train(params, points, config), atol=1e-12)
    logits, _, _ = forward_train(params, points, config, mask, engine)
    want = oracles.pointnet_train(params, points, config, mask)
    np.testing.assert_allclose(logits, want, atol=1e-12)  # the same
    logits = forward_eval(params, stats, points, config, engine)
    assert logits.std(axis=0).min() > 0.01  # the clouds are told apart
    want = oracles.pointnet_eval(params, stats, points, config)
    np.testing.assert_allclose(logits, want, atol=1e-12)  # the same


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_keeps_the_dtype(dtype, xp, engine):
    params, stats, points, mask = moved(xp, small(2, dtype))
    logits, batch, tape = forward_train(params, points, SMALL, mask, engine)
    labels = xp.asarray(np.array([0, 1, 2, 3]))
    y = smooth_labels(labels, 4, 0.1, dtype)
    has_u = xp.asarray(np.array([1, 0, 1, 1], dtype))
    config = LossConfig(0.9, 0.3, 4.0)
    terms, cache = loss_forward(logits, y, logits * 2, logits * 3, has_u, config)
    grads, dpoints = backward(loss_backward(cache), tape)
    grads_clipped, norm = optim.clip_by_norm(grads, 1.0)
    new, state = optim.adamw_step(params, grads_clipped, optim.adamw_start(params), 1e-3, 1e-2)
    slid, sgd_state = optim.sgd_step(params, grads, optim.sgd_start(params), 1e-3, 1e-2)
    results = {
        "logits": logits,
        "batch": batch,
        "terms": terms,
        "grads": grads,
        "dpoints": multiplied_out(dpoints),
        "clipped": grads_clipped,
        "norm": norm,
        "adamw": (new, state.m, state.v),
        "sgd": (slid, sgd_state.velocity),
        "track": track(stats, batch, SMALL),
        "eval": forward_eval(params, stats, points, SMALL, engine),
    }
    for name, result in results.items():
        assert leaves(result), name
        assert {leaf.dtype for leaf in leaves(result)} == {np.dtype(dtype)}, name
        if xp is not np:
            assert {type(leaf) for leaf in leaves(result)} == {xp.ndarray}, name


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2), (4, 3, 6), (1, 4, 6, 3)])
def test_points_of_another_shape_are_refused(shape):
    params, stats, _, _ = small()
    with pytest.raises(DataError, match=r"points: expected shape \(\*, \*, 3\), got"):
        forward_train(params, np.zeros(shape), SMALL)
    with pytest.raises(DataError, match=r"points: expected shape \(\*, \*, 3\), got"):
        forward_eval(params, stats, np.zeros(shape), SMALL)


def test_host_points_and_device_parameters_are_refused(fake_cupy, engine):
    params, stats, points, mask = small()
    with pytest.raises(BackendError, match="mixed"):
        forward_train(moved(fake_cupy, params), points, SMALL, engine=engine)
    with pytest.raises(BackendError, match="mixed"):
        forward_eval(params, moved(fake_cupy, stats), points, SMALL, engine)
    with pytest.raises(BackendError, match="mixed"):
        forward_train(params, points, SMALL, fake_cupy.asarray(mask), engine)


def test_forward_and_backward_change_nothing_they_were_given():
    params, stats, points, mask = given = small(3)
    before = map_arrays(np.copy, given)
    logits, batch, tape = forward_train(params, points, SMALL, mask, "textbook")
    held = map_arrays(np.copy, (logits, batch, [cache for _, cache, _ in tape]))
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    dlogits_before = dlogits.copy()
    once = map_arrays(np.copy, backward(dlogits, tape))
    twice = backward(dlogits, tape)
    forward_eval(params, stats, points, SMALL, "textbook")
    track(stats, batch, SMALL)
    assert_agrees(np, given, before)
    assert_agrees(np, (logits, batch, [cache for _, cache, _ in tape]), held)
    assert_agrees(np, dlogits, dlogits_before)
    assert_agrees(np, twice, once)


def test_a_second_forward_does_not_disturb_the_first():
    params, _, points, mask = small(4)
    logits, _, tape = forward_train(params, points, SMALL, mask, "textbook")
    dlogits = np.random.default_rng(0).standard_normal(logits.shape)
    alone = map_arrays(np.copy, backward(dlogits, tape))
    _, _, other = forward_train(params, points[::-1] * 2, SMALL, None, "textbook")
    backward(dlogits, other)
    assert_agrees(np, backward(dlogits, tape), alone)


def test_gradients_have_the_names_and_shapes_of_parameters(engine):
    for config in (SMALL, sizes("tiny", 40), ModelConfig((4,), (), 3)):
        params, _, points, mask = small(5, config=config)
        logits, batch, tape = forward_train(params, points, config, mask, engine)
        grads, dpoints = backward(logits, tape)
        assert grads.keys() == params.keys() == param_specs(config).keys()
        assert all(grads[name].shape == params[name].shape for name in params)
        assert multiplied_out(dpoints).shape == points.shape
        assert track(initial_stats(config), batch, config).keys() == initial_stats(config).keys()


# gradients


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("T", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("guard, b", [("clip", 0.3), ("none", 0.3), ("none", 0.9), ("clip", 0.0)])
def test_every_gradient_of_the_model_agrees_with_central_differences(
    smooth_problem, steps, T, guard, b, engine
):
    """Batch norm, dropout, three-term loss; at the start and after some steps of AdamW."""
    arrays, step = smooth_problem(
        steps=steps, temperature=T, guard=guard, self_weight=b, engine=engine
    )
    assert distance_to_kinks(arrays, step) > KINK
    grads = step.gradients(arrays)
    assert (step.mask == 0).any() and (step.has_u == 0).any()
    norms = {name: np.linalg.norm(grad) for name, grad in grads.items()}
    assert min(norms.values()) > 1e-3 * max(norms.values()), norms  # none is zero, all are checked
    for seed in range(2):
        rng = np.random.default_rng(seed)
        reports = gradcheck.check_gradients(step.value, arrays, grads, rng)
        assert len(reports) == len(arrays)  # one direction a parameter, and the points
        gradcheck.require(reports, 1e-6)  # h = 1e-5 resolves 1e-8 here; wrong is off by 1e-2


@pytest.mark.parametrize("T", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("guard", ["clip", "none"])
def test_gradients_agree_at_the_engines_own_initialisation(smooth_problem, T, guard, engine):
    arrays, step = smooth_problem(initial=True, temperature=T, guard=guard, engine=engine)
    np.testing.assert_array_equal(arrays["shared0.beta"], 0)
    rng = np.random.default_rng(1)
    reports = gradcheck.check_gradients(step.value, arrays, step.gradients(arrays), rng)
    gradcheck.require(reports, 1e-6)  # h = 1e-5 resolves 1e-8 here; wrong is off by 1e-2


@pytest.mark.parametrize("shared, head", [((6,), ()), ((4, 5, 6), (6, 5))])
def test_gradients_agree_for_other_depths(smooth_problem, shared, head, engine):
    arrays, step = smooth_problem(shared, head, guard="none", engine=engine)
    rng = np.random.default_rng(0)
    reports = gradcheck.check_gradients(step.value, arrays, step.gradients(arrays), rng)
    gradcheck.require(reports, 1e-6)  # h = 1e-5 resolves 1e-8 here; wrong is off by 1e-2


def test_single_entries_of_every_gradient_agree(smooth_problem, engine):
    """A direction averages; here each parameter's first, last and largest entry is looked at."""
    arrays, step = smooth_problem(guard="none", engine=engine)
    grads = step.gradients(arrays)
    largest = max(np.linalg.norm(grad) for grad in grads.values())
    for name, grad in grads.items():
        for entry in {0, grad.size - 1, int(np.abs(grad).argmax())}:
            e = np.zeros(grad.size)
            e[entry] = 1e-5
            up, down = (
                step.value(arrays | {name: arrays[name] + sign * e.reshape(grad.shape)})
                for sign in (1, -1)
            )
            # noise of the quotient is 1e-16 / 1e-5, and h^2 = 1e-10 of truncation
            assert (up - down) / 2e-5 == pytest.approx(
                grad.flat[entry], rel=1e-6, abs=1e-8 * largest
            ), name


# invariances


def test_point_order_does_not_matter(engine):
    params, stats, points, mask = small(6)
    order = np.random.default_rng(0).permutation(points.shape[1])
    # the same rows in another order: only sums over rows round differently
    np.testing.assert_allclose(
        forward_eval(params, stats, points[:, order], SMALL, engine),
        forward_eval(params, stats, points, SMALL, engine),
        atol=1e-12,
    )
    logits, batch, tape = forward_train(params, points, SMALL, mask, engine)
    logits_o, batch_o, tape_o = forward_train(params, points[:, order], SMALL, mask, engine)
    dlogits = np.random.default_rng(1).standard_normal(logits.shape)
    (grads, dpoints), (grads_o, dpoints_o) = (backward(dlogits, each) for each in (tape, tape_o))
    dpoints, dpoints_o = multiplied_out(dpoints), multiplied_out(dpoints_o)
    got = leaves((logits_o, batch_o, grads_o, dpoints_o))
    for g, w in zip(got, leaves((logits, batch, grads, dpoints[:, order])), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-12)  # the same


def test_points_repeated_as_padding_leave_the_logits_unchanged(engine):
    params, stats, points, _ = small(7)
    padded = np.concatenate([points, points[:, :1], points[:, :1], points[:, 3:5]], axis=1)
    np.testing.assert_allclose(
        forward_eval(params, stats, padded, SMALL, engine),
        forward_eval(params, stats, points, SMALL, engine),
        rtol=1e-12,
        atol=1e-12,
    )  # the maximum of the same numbers; products may be blocked differently


def test_evaluation_treats_each_cloud_alone_and_training_does_not(engine):
    params, stats, points, _ = small(8)
    whole = forward_eval(params, stats, points, SMALL, engine)
    alone = np.concatenate(
        [forward_eval(params, stats, cloud[None], SMALL, engine) for cloud in points]
    )
    np.testing.assert_allclose(alone, whole, atol=1e-12)  # products may be blocked differently
    trained, _, _ = forward_train(params, points, SMALL, engine=engine)
    fewer, _, _ = forward_train(params, points[:2], SMALL, engine=engine)
    assert np.abs(trained[:2] - fewer).max() > 1e-3


def test_evaluation_with_the_batchs_own_statistics_is_the_training_forward(engine):
    """Momentum 1 and the divisor undone: the two functions are the same formula."""
    config = ModelConfig((5, 6), (7,), classes=4, momentum=1.0)
    params, _, points, _ = small(9, config=config)
    logits, batch, _ = forward_train(params, points, config, engine=engine)
    stats = {}
    for name, layer in batch.items():
        stats |= {f"{name}.mean": layer.mean, f"{name}.var": layer.var}
    np.testing.assert_allclose(
        forward_eval(params, stats, points, config, engine), logits, atol=1e-12
    )  # roundings


def test_tracked_statistics_move_towards_those_of_the_batch(engine):
    params, stats, points, _ = small(10)
    before = map_arrays(np.copy, stats)
    _, batch, _ = forward_train(params, points, SMALL, engine=engine)
    moved_stats = track(stats, batch, SMALL)
    assert_agrees(np, stats, before)
    B, N, _ = points.shape
    first = points.reshape(-1, 3) @ params["shared0.W"]
    # a convex combination, momentum 0.1, a few roundings
    np.testing.assert_allclose(
        moved_stats["shared0.mean"],
        0.9 * stats["shared0.mean"] + 0.1 * first.mean(axis=0),
        atol=1e-14,
    )
    np.testing.assert_allclose(
        moved_stats["shared0.var"],
        0.9 * stats["shared0.var"] + 0.1 * first.var(axis=0, ddof=1),
        rtol=1e-13,
    )
    assert {name: layer.rows for name, layer in batch.items()} == {
        "shared0": B * N,
        "shared1": B * N,
        "head0": B,
    }


# one training step on a device


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("guard", ["clip", "none"])
def test_training_steps_agree_between_modules(dtype, guard, device, engine):
    params, stats, points, mask = small(11, dtype)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, len(points))
    v, u = (2 * rng.standard_normal((2, len(points), 4))).astype(dtype)
    has_u = np.array([1, 0, 1, 1], dtype)
    config = LossConfig(0.9, 0.3, 4.0, 0.1, guard)

    def three_steps(xp):
        p, s, x, m, t, teacher, earlier, has = moved(
            xp, (params, stats, points, mask, labels, v, u, has_u)
        )
        state, out = optim.adamw_start(p), []
        for step in range(3):
            y = smooth_labels(t, 4, config.label_smoothing, x.dtype)
            z, batch, tape = forward_train(p, x, SMALL, m, engine)
            terms, cache = loss_forward(z, y, teacher, earlier, has, config)
            grads, dpoints = backward(loss_backward(cache), tape)
            grads, norm = optim.clip_by_norm(grads, 0.5)
            lr = 0.01 * optim.warmup_cosine(step, 10, 2)
            p, state = optim.adamw_step(p, grads, state, lr, 0.01)
            s = track(s, batch, SMALL)
            out.append((z, terms, grads, multiplied_out(dpoints), norm, p, state.m, state.v, s))
        return (*out, forward_eval(p, s, x, SMALL, engine))

    want, got = three_steps(np), three_steps(device)
    # textbook: bit for bit on the fake device.  A real one sums in another order, and the fast
    # engine divides its products otherwise there; AdamW divides a small gradient by itself, noise
    # included
    digits = 1e-9 if dtype == np.float64 else 1e-2
    assert_agrees(device, got, want, digits, exact=engine == "textbook")
