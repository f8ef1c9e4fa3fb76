"""Fixtures of all tests: array modules, of which one is a device that is not there, and problems
whose gradients can be checked.
"""

import os
import sys
import warnings
from functools import partial
from typing import Any, NamedTuple

# First of all, before NumPy is loaded: this sets one BLAS thread, as for the commands.
from minipc.cli.main import main

# isort: split
import numpy as np
import pytest

from minipc import backend
from minipc.data import shapes
from minipc.data.clouds import Clouds, Splits, write_clouds
from minipc.distil.train import TrainConfig
from minipc.errors import BackendError
from minipc.models import pointnet
from minipc.nn import ops
from minipc.nn.engine import ENGINES, backward
from minipc.nn.fast import fused
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from minipc.nn.optim import adamw_start, adamw_step
from minipc.nn.params import initialise
from minipc.verbs import demo
from reference_tests.tools.fake_device import fake_module

KINK = 1e-3  # 100 steps of the gradient checker: closer to a kink a difference would cross it


@pytest.fixture
def fake_cupy(monkeypatch):
    """A fake CuPy for one test; `import cupy` and backend.load("cupy") find it."""
    module = fake_module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def _real_cupy():
    try:
        return backend.load("cupy")
    except BackendError as reason:
        if os.environ.get("MINIPC_REQUIRE_GPU") == "1":
            pytest.fail(f"MINIPC_REQUIRE_GPU=1, but: {reason}", pytrace=False)
        pytest.skip("no CUDA device (MINIPC_REQUIRE_GPU=1 makes this a failure)")


def _module(request):
    if request.param == "numpy":
        return np
    return request.getfixturevalue("fake_cupy") if request.param == "fake" else _real_cupy()


@pytest.fixture(params=["numpy", "fake", "cupy"])
def xp(request):
    """Every array module: NumPy, the fake device, and CuPy where a device answers."""
    return _module(request)


@pytest.fixture(params=["fake", "cupy"])
def device(request):
    """Every array module that is not NumPy."""
    return _module(request)


@pytest.fixture
def torch():
    """PyTorch; a test that asks for it is skipped where it is not installed, or fails where it must
    be.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, at import; ours stay errors
            import torch.utils.data
    except ImportError:
        if os.environ.get("MINIPC_REQUIRE_TORCH") == "1":
            raise
        pytest.skip("torch is not installed (MINIPC_REQUIRE_TORCH=1 makes this a failure)")
    return torch


class Problem(NamedTuple):
    """One training step of a small PointNet in float64, away from every kink."""

    params: dict
    points: Any  # (B, N, 3)
    mask: Any  # (B, last width), dropout
    y: Any  # (B, K), and so are v and u
    v: Any
    u: Any
    has_u: Any  # (B,), one row has no target
    model: pointnet.ModelConfig
    loss: LossConfig
    engine: str = "fused"

    def value(self, arrays):
        """arrays: params and "points" -> the total loss, a float."""
        params = {name: arrays[name] for name in self.params}
        z, _, _ = pointnet.forward_train(
            params, arrays["points"], self.model, self.mask, self.engine
        )
        terms, _ = loss_forward(z, self.y, self.v, self.u, self.has_u, self.loss)
        return float(terms.total)

    def arrays(self):
        return self.params | {"points": self.points}

    def gradients(self):
        """The gradients of value(arrays()), by the engine."""
        z, _, tape = pointnet.forward_train(
            self.params, self.points, self.model, self.mask, self.engine
        )
        _, cache = loss_forward(z, self.y, self.v, self.u, self.has_u, self.loss)
        grads, dpoints = backward(loss_backward(cache), tape)
        return grads | {"points": multiplied_out(dpoints)}


def multiplied_out(dpoints):
    """Return dpoints (B, N, 3) as an array, from either engine."""
    return fused.input_gradient(dpoints) if isinstance(dpoints, fused.Gradient) else dpoints


def distance_to_kinks(problem):
    """Return the distance to the nearest kink: of a ReLU from zero, of the pool's two largest."""
    _, _, tape = pointnet.forward_train(
        problem.params, problem.points, problem.model, problem.mask, "textbook"
    )
    nearest = np.inf
    before_relu = None
    for op_backward, cache, names in tape:
        if op_backward is ops.batch_norm_backward:
            before_relu = cache.gamma * cache.xhat + problem.params[names[1]]
            nearest = min(nearest, np.abs(before_relu).min())
        elif op_backward is ops.point_max_backward and cache.points > 1:
            # a channel that is zero in all points has no winner to change: its gradient is zero
            two = np.sort(np.maximum(before_relu, 0), axis=1)[:, -2:]
            gap = (two[:, 1] - two[:, 0])[two[:, 1] > 0]
            nearest = min(nearest, gap.min(initial=np.inf))
    return nearest


@pytest.fixture(params=ENGINES)
def engine(request):
    """Both engines, by name."""
    return request.param


@pytest.fixture(scope="session")
def smooth_problem():
    """Return make(shared, head, steps, initial, **loss): a Problem, after some steps of AdamW.

    initial: parameters as the engine starts them.  Else norms have gains and offsets of their own,
    lower before the pool: a pooled channel that is positive in every cloud hides its offset from
    the head's batch norm, and a gradient that is truly zero checks nothing.
    """

    def make(shared=(5, 6), head=(7,), steps=0, initial=False, engine="fused", **loss):
        model = pointnet.ModelConfig(shared, head, classes=4, dropout=0.4)
        usual = {"kd_weight": 0.7, "self_weight": 0.3, "temperature": 4.0, "label_smoothing": 0.1}
        config = LossConfig(**(usual | loss))
        for seed in range(200):
            rng = np.random.default_rng(seed)
            B, N, K = 6, 5, model.classes
            y = smooth_labels(rng.integers(0, K, B), K, config.label_smoothing, np.float64)
            v, u = 2 * rng.standard_normal((2, B, K))
            has_u = np.array([1.0] * (B - 1) + [0.0])
            mask = (rng.random((B, (shared + head)[-1])) >= model.dropout) / (1 - model.dropout)
            points = rng.standard_normal((B, N, 3))
            params = initialise(pointnet.param_specs(model), rng, np.float64)
            if not initial:
                for name in params:
                    if not name.endswith(".W"):
                        params[name] += 0.2 * rng.standard_normal(params[name].shape)
                params[f"shared{len(shared) - 1}.beta"] -= 1
            problem = Problem(params, points, mask, y, v, u, has_u, model, config, engine)
            state = adamw_start(params)
            for _ in range(steps):
                grads = problem.gradients()
                del grads["points"]
                params, state = adamw_step(problem.params, grads, state, 0.05, 0.01)
                problem = problem._replace(params=params)
            if distance_to_kinks(problem) > KINK:
                return problem
        raise AssertionError("200 draws, and each lay on a kink")

    return make


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(capsys):
    """Run one command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return end.value.code, streams.out, streams.err

    return run


@pytest.fixture
def data(folder):
    """clouds.h5: three classes that a tiny model learns in a few epochs."""
    return write_three_classes("clouds.h5")


def write_three_classes(path):
    """Write the clouds of the fixture data to path and return it."""
    rng = np.random.default_rng(0)

    def clouds(n):
        labels = np.arange(n) % 3
        stretch = np.array([[1, 1, 0.1], [0.1, 0.1, 1], [0.6, 0.6, 0.6]])[labels]
        points = (rng.standard_normal((n, 16, 3)) * stretch[:, None]).astype(np.float32)
        return Clouds(points, labels, ("flat", "long", "round"), "z", "none")

    write_clouds(path, Splits(clouds(96), clouds(33)))
    return path


@pytest.fixture
def small_shapes(monkeypatch):
    """The bare commands on fewer shapes and epochs; the full ones run in CI."""
    monkeypatch.setattr(
        shapes,
        "make_shapes",
        partial(shapes.make_shapes, train_per_class=8, test_per_class=2, points=32),
    )
    monkeypatch.setattr(demo, "TEACHER_TRAINING", TrainConfig(epochs=8, lr=1e-3))


STRETCH = {
    "bowl": (1, 1, 0.1),
    "mug": (0.1, 0.1, 1),
    "vase": (0.6, 0.6, 0.6),
}  # of a cloud of each class


@pytest.fixture
def vessels(folder):
    """vessels/: eighty .xyz files of 40 points in each of three class folders, as somebody might
    have them.
    """
    return write_vessels(folder)


def write_vessels(folder):
    """Make the tree of the fixture vessels in folder and return its path."""
    rng = np.random.default_rng(0)
    for name, stretch in STRETCH.items():
        (folder / "vessels" / name).mkdir(parents=True)
        for number in range(1, 81):
            points = rng.standard_normal((40, 3)) * stretch
            np.savetxt(folder / "vessels" / name / f"{number:03d}.xyz", points, fmt="%.5f")
    return folder / "vessels"
