"""Fixtures of all tests: array modules, small data, and problems whose gradients are checked."""

from minipc.cli.main import main  # one BLAS thread, as the commands do, before NumPy is loaded

# isort: split
import os
import sys
import warnings
from functools import partial

import numpy as np
import pytest

from minipc import backend
from minipc.audit.problems import KINK, distance_to_kinks, step
from minipc.data import shapes
from minipc.data.clouds import Clouds, Splits, write_clouds
from minipc.distil.train import TrainConfig
from minipc.errors import BackendError
from minipc.models import pointnet
from minipc.nn.engine import ENGINES
from minipc.nn.losses import LossConfig
from minipc.nn.optim import adamw_start, adamw_step
from minipc.nn.params import initialise
from minipc.verbs import demo
from reference_tests.tools.fake_device import fake_module


@pytest.fixture
def fake_cupy(monkeypatch):
    """A fake CuPy for one test; `import cupy` and backend.load("cupy") find it."""
    module = fake_module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def pytest_sessionstart(session):
    """With MINIPC_REQUIRE_GPU=1, end at once where no device computes, with the reason."""
    if os.environ.get("MINIPC_REQUIRE_GPU") == "1":
        try:
            backend.load("cupy")
        except BackendError as reason:
            pytest.exit(f"MINIPC_REQUIRE_GPU=1, but: {reason}", returncode=reason.exit_code)


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
def cupy():
    """CuPy on a device that answers: the fake one compiles no kernels."""
    return _real_cupy()


@pytest.fixture
def torch():
    """PyTorch; without it a test is skipped, or fails with MINIPC_REQUIRE_TORCH=1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, at import; ours stay errors
            import torch.utils.data
    except ImportError:
        if os.environ.get("MINIPC_REQUIRE_TORCH") == "1":
            raise
        pytest.skip("torch is not installed (MINIPC_REQUIRE_TORCH=1 makes this a failure)")
    torch.set_num_threads(1)  # as in tools/with_torch.py
    return torch


@pytest.fixture(params=ENGINES)
def engine(request):
    """Both engines, by name."""
    return request.param


@pytest.fixture(scope="session")
def smooth_problem():
    """Return make(shared, head, steps, initial, engine, **loss) -> (arrays, Step), off every kink.

    It is the audit's problem after some steps of AdamW.  initial: parameters as the engine starts
    them; else norms have gains and offsets of their own.
    """

    def make(shared=(5, 6), head=(7,), steps=0, initial=False, engine="fused", **loss):
        model = pointnet.ModelConfig(shared, head, classes=4, dropout=0.4)
        usual = {"kd_weight": 0.7, "self_weight": 0.3, "temperature": 4.0, "label_smoothing": 0.1}
        for seed in range(200):
            rng = np.random.default_rng(seed)
            arrays, fixed = step(model, LossConfig(**(usual | loss)), engine, rng, np.float64)
            if initial:
                arrays |= initialise(pointnet.param_specs(model), rng, np.float64)
            points = arrays.pop("points")
            state = adamw_start(arrays)
            for _ in range(steps):
                grads = fixed.gradients(arrays | {"points": points})
                del grads["points"]
                arrays, state = adamw_step(arrays, grads, state, 0.05, 0.01)
            arrays["points"] = points
            if distance_to_kinks(arrays, fixed) > KINK:
                return arrays, fixed
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
    """vessels/: eighty .xyz files of 40 points in each of three class folders."""
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
