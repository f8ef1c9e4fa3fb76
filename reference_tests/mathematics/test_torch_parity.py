"""PyTorch as one more oracle, in float64: forward, loss, every gradient, statistics, optimisers.

Needs torch, which is no dependency: skipped without it, unless MINIPC_REQUIRE_TORCH=1.
"""

import numpy as np
import pytest

from minipc.audit.problems import multiplied_out
from minipc.models import pointnet2
from minipc.models.inputs import Inputs
from minipc.models.model import sizes as any_sizes
from minipc.models.model import track
from minipc.models.pointnet import (
    ModelConfig,
    forward_eval,
    forward_train,
    initial_stats,
    param_specs,
    sizes,
)
from minipc.nn import optim
from minipc.nn.engine import backward
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from minipc.nn.params import initialise
from reference_tests.tools.fake_device import map_arrays
from reference_tests.tools.with_torch import torch

# isort: split
import torch.nn.functional as F

from reference_tests.tools import torch_local

MODELS = {
    "tiny": sizes("tiny", 40),
    "teacher-like": ModelConfig((8, 8, 8, 16, 32), (16, 8), classes=10, dropout=0.3),
}
CLOSE = 1e-9  # of the largest of each tensor: float64, sums in another order, through all layers

every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())


def assert_close(got, want, name=""):
    want = want.detach().numpy()
    assert got.shape == want.shape, name
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE * np.abs(want).max(), err_msg=name)


def as_torch(array):
    return torch.from_numpy(np.array(array))


def draw(config, seed=0, B=8, N=24):
    """Return params with norms of their own, stats, points, mask or None, labels, v, u, has_u."""
    rng = np.random.default_rng(seed)
    params = initialise(param_specs(config), rng, np.float64)
    for name, value in params.items():
        if not name.endswith(".W"):
            value += 0.3 * rng.standard_normal(value.shape)
    # pooled channels that are zero in some cloud: else this offset has no gradient to compare
    params[f"shared{len(config.shared) - 1}.beta"] -= 2
    stats = map_arrays(lambda x: x + rng.random(x.shape), initial_stats(config, np.float64))
    mask = None
    if config.dropout:
        mask = (rng.random((B, config.head[-1])) >= config.dropout) / (1 - config.dropout)
    v, u = 3 * rng.standard_normal((2, B, config.classes))
    labels = rng.integers(0, config.classes, B)
    has_u = (rng.random(B) > 0.3).astype(np.float64)
    return params, stats, rng.standard_normal((B, N, 3)), mask, labels, v, u, has_u


def torch_pointnet(params, stats, points, config, training, mask=None):
    """The same network in torch; stats are moved in place where training."""

    def layer(x, name):
        flat = (x @ params[f"{name}.W"]).reshape(-1, params[f"{name}.W"].shape[1])
        flat = F.batch_norm(
            flat,
            stats[f"{name}.mean"],
            stats[f"{name}.var"],
            params[f"{name}.gamma"],
            params[f"{name}.beta"],
            training,
            config.momentum,
            config.eps,
        )
        return F.relu(flat).reshape(*x.shape[:-1], -1)

    x = points
    for i in range(len(config.shared)):
        x = layer(x, f"shared{i}")
    x = x.max(dim=1).values
    for i in range(len(config.head)):
        x = layer(x, f"head{i}")
    if mask is not None:
        x = x * mask
    return x @ params["out.W"] + params["out.b"]


def torch_loss(z, labels, v, u, has_u, c):
    """Cross-entropy of smoothed labels and two divergences, by torch's own functions."""
    T = c.temperature
    ce = F.cross_entropy(z, labels, label_smoothing=c.label_smoothing)
    log_s = F.log_softmax(z / T, dim=1)
    kd = T**2 * F.kl_div(log_s, F.log_softmax(v / T, dim=1), reduction="batchmean", log_target=True)
    each = F.kl_div(log_s, F.log_softmax(u / T, dim=1), reduction="none", log_target=True).sum(
        dim=1
    )
    self_kl = T**2 * (has_u * each).mean()
    return (1 - c.kd_weight) * ce + c.kd_weight * kd - c.self_weight * self_kl, ce, kd


@every_model
def test_evaluation_forward_is_torchs(config, engine):
    params, _, points, *_ = draw(config)
    _, batch, _ = forward_train(params, points, config, engine=engine)
    stats = {}
    for name, layer in batch.items():
        stats |= {f"{name}.mean": 0.9 * layer.mean, f"{name}.var": 1.1 * layer.var}
    want = torch_pointnet(
        *(map_arrays(as_torch, x) for x in (params, stats, points)), config, False
    )
    assert want.std(dim=0).min() > 0.01  # the clouds are told apart
    assert_close(forward_eval(params, stats, points, config, engine), want)


@every_model
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_training_forward_loss_gradients_and_statistics_are_torchs(config, T, engine):
    params, stats, points, mask, labels, v, u, has_u = draw(config)
    c = LossConfig(kd_weight=0.6, self_weight=0.4, temperature=T, label_smoothing=0.2, guard="none")
    z, batch, tape = forward_train(params, points, config, mask, engine)
    y = smooth_labels(labels, config.classes, c.label_smoothing, np.float64)
    terms, cache = loss_forward(z, y, v, u, has_u, c)
    grads, dpoints = backward(loss_backward(cache), tape)

    leaf = {name: as_torch(value).requires_grad_() for name, value in params.items()}
    tstats, tpoints = map_arrays(as_torch, stats), as_torch(points).requires_grad_()
    tmask = None if mask is None else as_torch(mask)
    tz = torch_pointnet(leaf, tstats, tpoints, config, True, tmask)
    total, ce, kd = torch_loss(tz, *map(as_torch, (labels, v, u, has_u)), c)
    total.backward()

    assert_close(z, tz, "logits")
    for name, got, want in (
        ("total", terms.total, total),
        ("ce", terms.labels, ce),
        ("kd", terms.distillation, kd),
    ):
        assert float(got) == pytest.approx(want.item(), rel=CLOSE), name
    norms = {name: np.abs(grad).max() for name, grad in grads.items()}
    assert min(norms.values()) > 1e-6 * max(norms.values()), norms  # none is zero, all are compared
    for name in params:
        assert_close(grads[name], leaf[name].grad, name)
    assert_close(multiplied_out(dpoints), tpoints.grad, "points")
    for name, value in track(stats, batch, config).items():
        assert_close(value, tstats[name], name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing):
    rng = np.random.default_rng(0)
    z, labels = 3 * rng.standard_normal((9, 7)), rng.integers(0, 7, 9)
    c = LossConfig(kd_weight=0.0, label_smoothing=smoothing)
    terms, _ = loss_forward(z, smooth_labels(labels, 7, smoothing, np.float64), None, None, None, c)
    want = F.cross_entropy(as_torch(z), as_torch(labels), label_smoothing=smoothing)
    assert float(terms.total) == pytest.approx(want.item(), rel=1e-14)  # a few roundings


def torch_optimiser(kind, leaf, lr, decay):
    weights = [value for name, value in leaf.items() if name.endswith(".W")]
    others = [value for name, value in leaf.items() if not name.endswith(".W")]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


@every_model
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_ten_optimiser_steps_on_given_gradients_are_torchs(config, kind):
    params, *_ = draw(config)
    leaf = {name: as_torch(value).requires_grad_() for name, value in params.items()}
    ours_start, ours_step = {
        "adamw": (optim.adamw_start, optim.adamw_step),
        "sgd": (optim.sgd_start, optim.sgd_step),
    }[kind]
    state, theirs = ours_start(params), torch_optimiser(kind, leaf, 0.01, 0.1)
    rng = np.random.default_rng(5)
    for _ in range(10):
        grads = {name: rng.standard_normal(value.shape) for name, value in params.items()}
        params, state = ours_step(params, grads, state, 0.01, 0.1)
        for name, value in leaf.items():
            value.grad = as_torch(grads[name])
        theirs.step()
    for name, value in params.items():
        np.testing.assert_allclose(
            value, leaf[name].detach().numpy(), rtol=0, atol=1e-14, err_msg=name
        )  # some tens of roundings of order-one numbers


@every_model
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_ten_training_steps_are_torchs(config, kind, engine):
    """Loss by loss, then parameters and statistics: errors of a step would add up."""
    params, stats, points, mask, labels, v, u, has_u = draw(config, seed=1)
    c = LossConfig(kd_weight=0.6, self_weight=0.4, temperature=4.0, guard="none")
    y = smooth_labels(labels, config.classes, c.label_smoothing, np.float64)
    leaf = {name: as_torch(value).requires_grad_() for name, value in params.items()}
    tstats, tpoints = map_arrays(as_torch, stats), as_torch(points)
    tmask = None if mask is None else as_torch(mask)
    targets = [as_torch(x) for x in (labels, v, u, has_u)]
    start, step = {
        "adamw": (optim.adamw_start, optim.adamw_step),
        "sgd": (optim.sgd_start, optim.sgd_step),
    }[kind]
    state, theirs = start(params), torch_optimiser(kind, leaf, 0.005, 0.05)
    for _ in range(10):
        z, batch, tape = forward_train(params, points, config, mask, engine)
        terms, cache = loss_forward(z, y, v, u, has_u, c)
        grads, _ = backward(loss_backward(cache), tape)
        params, state = step(params, grads, state, 0.005, 0.05)
        stats = track(stats, batch, config)
        theirs.zero_grad()
        total, _, _ = torch_loss(
            torch_pointnet(leaf, tstats, tpoints, config, True, tmask), *targets, c
        )
        total.backward()
        theirs.step()
        assert float(terms.total) == pytest.approx(total.item(), rel=CLOSE)
    for name, value in params.items():
        assert_close(value, leaf[name], name)
    for name, value in stats.items():
        assert_close(value, tstats[name], name)


# PointNet++, on the same groups

NEIGHBOURS = {
    "SSG": "32/0.9x8by2:8-8-16,8/1.5x6:12-12-24,16-32:16",
    "MSG": "32/0.5x4:6-8/0.9x8:6-6-10,8/1.0x5:8-12/2.0x8:8-8-12,16-24:16-8",
    "single layers": "8,32/6by8:12+,16/6by4:16+,8/4:16+,24+mean:12",
    "levels of both kinds": "6,32/6by4:8-10/0.9x9by2:6,8/4by2:12,16+mean",
}
every_neighbourhood = pytest.mark.parametrize("text", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())


def draw_neighbours(config, B=6, N=48):
    """Return params with norms of their own, stats, Inputs, mask, labels, v, u, has_u."""
    rng = np.random.default_rng(2)
    params = initialise(pointnet2.param_specs(config), rng, np.float64)
    for name, value in params.items():
        if not name.endswith(".W"):
            value += 0.3 * rng.standard_normal(value.shape)
    for name in pointnet2.pooled_layers(config):
        params[f"{name}.beta"] -= 1  # as in draw()
    stats = map_arrays(
        lambda x: x + rng.random(x.shape), pointnet2.initial_stats(config, np.float64)
    )
    x = rng.standard_normal((B, N, 3)).astype(np.float32)
    x[:, -5:] = x[:, :5]  # repeated points, as a small cloud has them
    inputs = Inputs(1.1 * x.astype(np.float64), pointnet2.prepare(config, x))
    mask = (rng.random((B, pointnet2.dropout_width(config))) >= 0.3) / 0.7
    v, u = 3 * rng.standard_normal((2, B, config.classes))
    has_u = (rng.random(B) > 0.3).astype(np.float64)
    return params, stats, inputs, mask, rng.integers(0, config.classes, B), v, u, has_u


def torch_pointnet2(config, params, stats, inputs, mask):
    """Return the model in torch with these weights, and its parameters by our names."""
    groups = [torch.as_tensor(group.astype(np.int64)) for group in inputs.groups]
    model = torch_local.PointNet2(config, groups).double()
    model.dropout.forward = lambda x: x * as_torch(mask)
    leaf = {"out.W": model.out.weight, "out.b": model.out.bias}
    for name, layer in model.layers().items():
        norm = layer["norm"]
        leaf |= {f"{name}.W": layer["linear"].weight}
        leaf |= {f"{name}.gamma": norm.weight, f"{name}.beta": norm.bias}
        norm.running_mean.copy_(as_torch(stats[f"{name}.mean"]))
        norm.running_var.copy_(as_torch(stats[f"{name}.var"]))
    assert leaf.keys() == params.keys()
    with torch.no_grad():
        for name, value in params.items():
            leaf[name].copy_(as_torch(ours(name, value)))
    return model, leaf


def ours(name, value):
    """Return a weight as torch has it, outputs first, or the other way."""
    return value.T if name.endswith(".W") else value


def assert_same_statistics(stats, model):
    for name, layer in model.layers().items():
        assert_close(stats[f"{name}.mean"], layer["norm"].running_mean, name)
        assert_close(stats[f"{name}.var"], layer["norm"].running_var, name)


@every_neighbourhood
def test_pointnet2_forward_loss_gradients_and_statistics_are_torchs(text, engine):
    config = any_sizes(text, 5)
    params, stats, inputs, mask, labels, v, u, has_u = draw_neighbours(config)
    c = LossConfig(kd_weight=0.6, self_weight=0.4, temperature=4.0, guard="none")
    z, batch, tape = pointnet2.forward_train(params, inputs, config, mask, engine)
    y = smooth_labels(labels, config.classes, c.label_smoothing, np.float64)
    terms, cache = loss_forward(z, y, v, u, has_u, c)
    grads, _ = backward(loss_backward(cache), tape)

    model, leaf = torch_pointnet2(config, params, stats, inputs, mask)
    tz = model(as_torch(inputs.points))
    total, *_ = torch_loss(tz, *map(as_torch, (labels, v, u, has_u)), c)
    total.backward()

    assert_close(z, tz, "logits")
    assert float(terms.total) == pytest.approx(total.item(), rel=CLOSE)
    norms = {name: np.abs(grad).max() for name, grad in grads.items()}
    assert min(norms.values()) > 1e-6 * max(norms.values()), norms  # none is zero, all are compared
    for name, grad in grads.items():
        assert_close(ours(name, grad), leaf[name].grad, name)
    assert_same_statistics(track(stats, batch, config), model)


@every_neighbourhood
def test_pointnet2_evaluation_is_torchs(text, engine):
    config = any_sizes(text, 5)
    params, _, inputs, mask, *_ = draw_neighbours(config)
    _, batch, _ = pointnet2.forward_train(params, inputs, config)
    stats = {}
    for name, layer in batch.items():
        stats |= {f"{name}.mean": 0.9 * layer.mean, f"{name}.var": 1.1 * layer.var}
    model, _ = torch_pointnet2(config, params, stats, inputs, np.ones_like(mask))
    want = model.eval()(as_torch(inputs.points))
    assert want.std(dim=0).min() > 0.01  # the clouds are told apart
    assert_close(pointnet2.evaluator(params, stats, config, engine)(inputs), want)


@every_neighbourhood
def test_ten_steps_of_pointnet2_are_torchs(text, engine):
    """Loss by loss, then parameters and statistics: errors of a step would add up."""
    config = any_sizes(text, 5)
    params, stats, inputs, mask, labels, v, u, has_u = draw_neighbours(config)
    c = LossConfig(kd_weight=0.6, self_weight=0.4, temperature=4.0, guard="none")
    y = smooth_labels(labels, config.classes, c.label_smoothing, np.float64)
    model, leaf = torch_pointnet2(config, params, stats, inputs, mask)
    targets, points = [as_torch(x) for x in (labels, v, u, has_u)], as_torch(inputs.points)
    state, theirs = optim.adamw_start(params), torch_optimiser("adamw", leaf, 0.005, 0.05)
    for _ in range(10):
        z, batch, tape = pointnet2.forward_train(params, inputs, config, mask, engine)
        terms, cache = loss_forward(z, y, v, u, has_u, c)
        grads, _ = backward(loss_backward(cache), tape)
        params, state = optim.adamw_step(params, grads, state, 0.005, 0.05)
        stats = track(stats, batch, config)
        theirs.zero_grad()
        total, *_ = torch_loss(model(points), *targets, c)
        total.backward()
        theirs.step()
        assert float(terms.total) == pytest.approx(total.item(), rel=CLOSE)
    for name, value in params.items():
        assert_close(ours(name, value), leaf[name], name)
    assert_same_statistics(stats, model)
