"""The benchmark works: tasks run, contenders agree, its page is made of its numbers."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from minipc.models.pointnet import NAMED_SIZES
from reference_tests.tools import speed, speed_parts, speed_workers
from reference_tests.tools.speed_page import LOCAL, linear, page

ROOT = Path(__file__).parents[2]
SMALL = {"size": "tiny", "clouds": 4, "points": 32}


@pytest.mark.parametrize("task", ["step", "record"])
@pytest.mark.parametrize("device", [False, True])
def test_a_task_runs_on_the_host_and_on_a_device(task, device, fake_cupy, monkeypatch):
    monkeypatch.setattr(speed_workers, "RECORDED", 2)
    monkeypatch.setattr(speed_workers, "IN_A_ROW", 2)
    once = speed_workers.ours({"task": task, "device": device, **SMALL})
    once(), once()


def test_a_worker_answers_line_by_line():
    done = subprocess.run(
        [sys.executable, "-m", "reference_tests.tools.speed_workers", "numpy", "1"],
        cwd=ROOT,
        text=True,
        check=True,
        input=json.dumps({"task": "step", **SMALL, "repeat": 3})
        + "\n"
        + json.dumps({"task": "step", **SMALL, "memory": True})
        + "\n",
        capture_output=True,
    )
    ready, timed, memory = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": "numpy"} and len(timed["seconds"]) == 3 and min(timed["seconds"]) > 0
    assert memory["bytes"] > 0


def test_growth_is_compared_with_linear():
    rows = linear([{"of": 256, "ms": 10.0}, {"of": 512, "ms": 20.0}, {"of": 1024, "ms": 20.0}])
    assert rows == [("256", "10.0", "1.00"), ("512", "20.0", "1.00"), ("1,024", "20.0", "0.50")]


def measured():
    """Return values as a run without JAX has them."""
    values = {
        "machine": "a machine",
        "busy_neighbour": 1.2,
        "store_share": 0.01,
        "reading_share": 0.001,
        "epoch_vs_steps": 1.05,
        "scaling": {"tiny threads": [{"of": 1, "ms": 5.0}, {"of": 2, "ms": 3.0}]},
        "recording_seconds_by_views": {1: 2.0, 2: 3.0},
        "recording_clouds_per_second": 600,
        "recording_gflops": 190.0,
        "large_product_gflops": 180.0,
        "recording_vs_large_product": 1.06,
    }
    for size in (*NAMED_SIZES, *LOCAL):
        values |= {
            f"{size}_step_ms": {"numpy": 10.0, "torch_eager": 60.0},
            f"{size}_step_vs_torch_eager": 6.0,
            f"{size}_step_vs_textbook": 7.0,
            f"{size}_memory_mb": {"numpy": 70.0, "torch": 600.0},
            f"{size}_memory_vs_torch_eager": 8.6,
        }
    part = {
        "step": 10.0,
        "products": 6.0,
        "around": 2.0,
        "waiting": 0.5,
        "alone": 1.5,
        "operations": 9e8,
    }
    values["step_parts"] = dict.fromkeys(NAMED_SIZES, part)
    values["local_recording_clouds_per_second"] = 50
    values["level_parts"] = dict.fromkeys(LOCAL, {"step": 9.0, "products": 5.0, "other": 4.0})
    values["narrow_layers_us"] = [
        dict(layer="16 to 16", whole=2, fours=3, ours=2, moments=1, float64=3, Q=1, passes=9)
    ]
    values |= {"kernel": "Haswell", "product_vs_whole": 1.0}
    values["kernels"] = {"Haswell": {"product_vs_whole": 1.0, "tiny_step_vs_torch_eager": 6.0}}
    return values


def test_the_page_says_what_was_reached_and_what_was_not():
    text = page(measured())
    assert "| teacher step vs torch eager | 5.5 | 6 | reached |" in text
    assert "| teacher memory vs torch eager | 10 | 8.6 | **not reached** |" in text
    assert "| pointnet2/8 step vs torch eager | 4 | 6 | reached |" in text
    assert "| local-student | 9.0 | 5.0 | 0.0 | 0.0 | 0.0 | 4.0 |" in text
    assert "JAX jit |" not in text and "nan" not in text
    assert "| tiny | 10.0 | 6.0 | 150 | 2.0 | 0.5 | 1.5 | 10.00 |" in text
    assert "| Haswell | 1.00 |  |  | 6.00 |" in text
    assert "| 2 | 3.0 | 1.67 |" in text and "times: tiny 1.67." in text


def test_the_operations_of_a_step_are_those_of_its_layers(monkeypatch):
    monkeypatch.setattr(speed_parts, "STEPS", 3)
    found = speed_parts.parts("tiny", {"clouds": 4, "points": 32}, 2)
    assert all(found[name] > 0 for name in ("step", "products", "around", "waiting", "alone"))
    layers = [(3, 16), (16, 16), (16, 32), (32, 64)]
    exact = (
        sum((i + 1) * o for i, o in layers[:-1]) + 32 * 64
    )  # forward, the last without its constant
    exact += sum((i + 1) ** 2 for i, _ in layers)  # moments
    exact += sum((i + 1) * o for i, o in layers[:-1])  # dW
    exact += 32 * 33 + 16 * (17 + 32) + 16 * (17 + 16)  # dX, not of the first
    assert found["operations"] == 2 * 4 * 32 * exact


def test_the_parts_of_a_step_with_levels_add_up(monkeypatch):
    monkeypatch.setattr(speed_parts, "STEPS", 5)
    task = {"clouds": 4, "points": 40}
    for size in ("4,16/3:4,6:5", "4,16/3:4-5,6:5"):
        found = speed_parts.level_parts(size, task)
        whole = found.pop("step")
        assert found.keys() == {*speed_parts.OF_LEVELS, "other"}
        assert min(found.values()) > 0 and sum(found.values()) == pytest.approx(whole)


def test_contenders_train_the_same_model_on_the_same_batch():
    pytest.importorskip("torch")
    task = {"task": "step", "clouds": 4, "points": 32, "size": "tiny"}
    for form in ("conv", "linear"):
        speed_workers.in_torch({**task, "form": form})()
    points, labels, scale, shift = speed_workers.batch(4, 32)
    assert points.shape == (4, 32, 3) and scale.shape == shift.shape == (4, 3) and labels.max() < 40
    np.testing.assert_array_equal(points, speed_workers.batch(4, 32)[0])


class Contender:
    """Stands in for a Worker: answers, or ends when a task for a device is asked of PyTorch."""

    def __init__(self, name, threads=1):
        self.name, self.asked = name, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, **task):
        if self.name in UNABLE:
            raise speed.Ended(f"{self.name} ended")
        ASKED.append((self.name, task.get("tf32", False)))
        return {"seconds": [0.02 if self.name == "numpy" else 0.04] * task.get("repeat", 1)}


UNABLE, ASKED = set(), []


@pytest.mark.parametrize("unable", [set(), {"torch compile"}, {"torch", "torch compile"}])
def test_on_a_device_a_contender_that_cannot_run_is_left_out_and_named(
    unable, fake_cupy, monkeypatch
):
    monkeypatch.setattr(speed, "Worker", Contender)
    monkeypatch.setattr(speed, "installed", lambda package: "1" if package == "torch" else None)
    monkeypatch.setattr(sys.modules[__name__], "UNABLE", unable)
    ASKED.clear()
    values, lines = {}, []
    with ExitStack() as stack:
        speed.on_device(speed.Machine(stack, True), values, [*NAMED_SIZES, *LOCAL], lines.append)
    step = values["device_tiny_step"]
    label = {"torch": "torch_eager", "torch compile": "torch_compile"}
    assert step.keys() == {"minipc", *(label[name] for name in label.keys() - unable)}
    if unable == {"torch compile"}:
        assert any("without torch_compile: torch compile cannot" in line for line in lines)
    if "torch" in unable:
        assert any("torch cannot do step of tiny" in line for line in lines)
    else:
        assert values["device_tiny_step_vs_torch_eager"] == 2
        assert set(values["device_tiny_step_tf32"]) >= {"torch_eager_tf32"}
        assert ("torch", True) in ASKED
    assert ("numpy", True) not in ASKED  # float32 of ours is never compared with TF32


def test_pytorch_multiplies_in_float32_unless_it_is_asked_for_tf32(torch):
    task = {"task": "record", **SMALL, "batches": 1}
    for tf32 in (True, False):
        speed_workers.in_torch({**task, "tf32": tf32})()
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
