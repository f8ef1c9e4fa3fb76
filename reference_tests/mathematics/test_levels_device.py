"""PointNet++ on a device: what the host computes, the same bits again, nothing mixed."""

import numpy as np
import pytest

from minipc.backend import to_host
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import Clouds, Splits
from minipc.distil.train import TrainConfig, drawn_views, train
from minipc.errors import BackendError
from minipc.models import pointnet2
from minipc.models.inputs import Inputs
from minipc.nn import local
from minipc.nn.engine import backward
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.nn.params import initialise
from reference_tests.tools.fake_device import assert_agrees, moved

# Every kind of level: points repeat in the ball, one layer and several, offsets alone, the mean.
TEXTS = "4-4,6/3by4:5+,4/3by2:6-5/0.9x4:4,7-6+mean:6", "6/0.9x6by2:5-6,3/2by4:6,7-6:5"


def problem(text, dtype):
    """Return the config, parameters, statistics, Inputs and dlogits."""
    rng, config = np.random.default_rng(1), pointnet2.sizes(text, 4)
    params = initialise(pointnet2.param_specs(config), rng, np.float64)
    for name in params:
        if name.endswith("gamma"):
            params[name] = rng.uniform(-1.5, 1.5, params[name].shape)
    points = rng.standard_normal((5, 14, 3)).astype(np.float32)
    inputs = Inputs((points * [0.7, 1, 1.4]).astype(dtype), pointnet2.prepare(config, points))
    stats = pointnet2.initial_stats(config, dtype)
    dlogits = rng.standard_normal((5, 4)).astype(dtype)
    return config, {n: p.astype(dtype) for n, p in params.items()}, stats, inputs, dlogits


def computed(text, dtype, engine, xp):
    """Return logits, batch statistics, gradients and logits in evaluation, on the host."""
    config, params, stats, inputs, dlogits = problem(text, dtype)
    params, stats, inputs, dlogits = moved(xp, (params, stats, inputs, dlogits))
    z, batch, tape = pointnet2.forward_train(params, inputs, config, None, engine)
    z = to_host(z).copy()
    grads, _ = backward(dlogits, tape)
    grads = {name: to_host(grads[name]).copy() for name in params}
    moments = {name: (to_host(one.mean), to_host(one.var)) for name, one in batch.items()}
    evaluated = to_host(pointnet2.forward_eval(params, stats, inputs, config, engine))
    return z, moments, grads, evaluated


@pytest.mark.parametrize("text", TEXTS)
def test_a_step_and_an_evaluation_agree_between_modules(text, device, engine):
    host = computed(text, np.float64, engine, np)
    on_device = computed(text, np.float64, engine, device)
    # Sums of at most 400 terms a few layers deep; the fast engine adds in another order there.
    assert_agrees(device, on_device, host, digits=1e-11, exact=engine == "textbook")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_on_a_device_repeat_bit_for_bit(dtype, device, engine):
    once, again = (computed(TEXTS[0], dtype, engine, device) for _ in range(2))
    assert_agrees(np, again, once)


def test_groups_on_the_host_beside_points_on_a_device_are_refused(device, engine):
    config, params, stats, inputs, _ = problem(TEXTS[0], np.float32)
    params, stats, points = moved(device, (params, stats, inputs.points))
    mixed = Inputs(points, inputs.groups)
    with pytest.raises(BackendError, match="mixed"):
        pointnet2.forward_train(params, mixed, config, None, engine)
    with pytest.raises(BackendError, match="mixed"):
        pointnet2.forward_eval(params, stats, mixed, config, engine)


def test_training_on_a_device_agrees_with_the_host(device, engine):
    rng, labels = np.random.default_rng(0), np.arange(24) % 3
    stretch = np.array([[1, 1, 0.1], [0.1, 0.1, 1], [0.6, 0.6, 0.6]])[labels]
    points = (rng.standard_normal((24, 16, 3)) * stretch[:, None]).astype(np.float32)
    clouds = Clouds(points, labels, ("flat", "long", "round"), "z", "none")
    config = TrainConfig(epochs=2, batch_size=8, lr=1e-2, warmup_steps=2, engine=engine)
    found = []
    for xp in (np, device):
        *_, last = train(
            Splits(clouds, clouds),
            pointnet2.sizes("4,6/3:5+,4/3:6-5,7+mean:6", 3),
            LossConfig(**LABELS_ALONE),
            config,
            drawn_views(clouds, 0, AugmentConfig()),
            xp=xp,
            threads=1,
        )
        found.append([row["total"] for row in last.rows])
        assert all(isinstance(value, np.ndarray) for value in last.model.params.values())
    # Six steps of AdamW in float32: each step is of the size of lr, whatever a gradient rounds to.
    np.testing.assert_allclose(*found, rtol=1e-3)


def test_the_readers_of_a_point_are_on_the_module_of_the_members(device):
    members = np.array([[[0, 2], [2, 2]]])
    places = local.readers(device.asarray(members), 4)
    assert isinstance(places, device.ndarray)
    wanted = [[[0, 4, 4], [4, 4, 4], [1, 2, 3], [4, 4, 4]]]
    np.testing.assert_array_equal(to_host(places), wanted)
