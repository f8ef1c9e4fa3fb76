"""How many operations a device is given in a training step and in a recorded block: a bound.

Counted on an emulated CUDA (bash ../shared/tools/cuda_emulation/run python -m pytest), where
that lies beside the checkout; a count says nothing about time.  Whoever lowers a count lowers its
bound here.
"""

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from minipc.backend import load
from minipc.data.augment import AugmentConfig, Params
from minipc.data.clouds import Clouds
from minipc.distil.self_target import History
from minipc.distil.steps import steps_of
from minipc.distil.train import Task, TrainConfig, _dropout_mask
from minipc.errors import DataError
from minipc.models.file import new_model, on_module
from minipc.models.model import net, sizes
from minipc.nn import graph, kernels
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.recorder import compute_shard, model_teacher

CLOUDS, POINTS, CLASSES = 32, 64, 5
MOST_OF_A_STEP = {
    ("tiny", "labels"): 76,
    ("student", "labels"): 76,
    ("teacher", "labels"): 98,
    ("tiny", "record"): 78,
    ("teacher", "record"): 100,
    ("tiny", "history"): 86,
    ("8,16/5:12+,8/4:16,24+mean:12", "labels"): 227,
}
MOST_OF_A_BLOCK = {"tiny": 10, "student": 10, "teacher": 12}


@pytest.fixture
def emulation():
    """The emulated device, which for the length of a test counts and computes nothing."""
    emulation = pytest.importorskip(
        "cuda_emulation", reason="counted only on the emulated device (see the module's docstring)"
    )
    emulation.execute(False)
    yield emulation
    emulation.execute(True)


def task_of(xp, name, data):
    """Return a Task on three batches of clouds, its first State and the arguments of step()."""
    rng, rows, model = np.random.default_rng(0), 3 * CLOUDS, sizes(name, CLASSES)
    points = rng.standard_normal((rows, 3, POINTS)).astype(np.float32)
    loss, target = LossConfig(0.9), None
    if data == "labels":
        loss = LossConfig(**LABELS_ALONE)
    if data == "history":
        loss, target = LossConfig(0.9, 0.1, temperature=4), History(rows, CLASSES)
        target.epoch_starts(0, xp)
    task = Task(
        xp.asarray(points),
        xp.asarray(rng.integers(0, CLASSES, rows)),
        tuple(map(xp.asarray, net(model).prepare(model, points.swapaxes(1, 2)))),
        model,
        loss,
        TrainConfig(epochs=2, batch_size=CLOUDS, warmup_steps=1),
        target,
        Workspace(xp),
        xp,
    )
    views = Params(*(xp.asarray(rng.uniform(0.7, 1.3, (rows, 3)).astype("f")) for _ in range(2)))
    logits = rng.standard_normal((rows, CLASSES)).astype(np.float16)
    given = views, None if data == "labels" else xp.asarray(logits)
    return task, task.start(new_model(task.model, {}, 0)), given


def stepped(task, state, given, number):
    """Return the State after a step on a batch of its own, at a learning rate of its own."""
    rows = np.arange(CLOUDS) + CLOUDS * (number % 3)
    mask = _dropout_mask(task.model, task.config, 0, number)
    return task.step(state, rows, *given, mask, 1e-3 / (1 + number), (0, number))[0]


@pytest.mark.parametrize("name, data", MOST_OF_A_STEP)
def test_a_training_step(emulation, name, data):
    xp = load("cupy")
    task, state, given = task_of(xp, name, data)
    for number in range(3):  # the first makes buffers, the second joins gradients
        with emulation.counting() as found:
            state = stepped(task, state, given, number)
    assert found.counts["all"] <= MOST_OF_A_STEP[name, data], found.names
    assert found.counts["sync"] == found.counts["D2H"] == 0  # the host never waits
    assert found.counts.get("malloc", 0) == 0
    assert found.counts["H2D"] <= 3  # which clouds, the rates of AdamW, the mask of dropout


@pytest.mark.parametrize("name, data", MOST_OF_A_STEP)
def test_what_changes_between_steps_lies_in_memory_that_does_not_move(
    emulation, monkeypatch, name, data
):
    """So a step can become a CUDA graph, which keeps the numbers and places of its capture."""
    launches = []

    def spy(make):
        def made(xp, kernel, *rest):
            launch = make(xp, kernel, *rest)

            def launched(*given, **sizes):
                flat = [x for one in given for x in (one if isinstance(one, tuple) else (one,))]
                numbers = [float(x) for x in flat if isinstance(x, int | float | np.number)]
                launches.append((kernel, numbers, sizes))
                return launch(*given, **sizes)

            return launched

        return made

    for maker in ("_elementwise", "_raw"):
        monkeypatch.setattr(kernels, maker, spy(getattr(kernels, maker)))
    task, state, given = task_of(load("cupy"), name, data)
    seen = []
    for number in range(4):  # the first two: as above
        launches.clear()
        state = stepped(task, state, given, number)
        kept = [
            (key, array.data.ptr)
            for arrays in (state.params, state.stats, state.optimiser.m, state.optimiser.v)
            for key, array in arrays.items()
        ]
        inputs = [
            (key, buffer.data.ptr)
            for key, (_, buffer, _) in task.work.made.items()
            if key.startswith("held")
        ]
        seen.append((kept, inputs, [*launches]))
    assert seen[2] == seen[3]
    assert {"affine", "adamw", "tracked", "loss_of_rows"} <= {kernel for kernel, *_ in launches}


@pytest.mark.parametrize("name, data", MOST_OF_A_STEP)
def test_what_becomes_a_graph_sends_nothing_waits_for_nothing_and_takes_no_memory(
    emulation, monkeypatch, name, data
):
    replays = []

    class Counted:
        """A Graph by calls, and what each has the device do."""

        def __init__(self, function, *works):
            self.function = function

        def replay(self):
            with emulation.counting() as found:
                result = self.function()
            replays.append(found.counts)
            return result

    monkeypatch.setattr(graph, "Graph", Counted)
    monkeypatch.setattr(graph, "why_not", lambda xp: "")
    task, state, given = task_of(load("cupy"), name, data)
    run = steps_of(task, state, np.arange(3 * CLOUDS).repeat(2), [1e-3] * 6)
    for number in range(6):
        rows, mask = np.arange(CLOUDS), _dropout_mask(task.model, task.config, 0, number)
        state = run(state, rows, *given, mask, 1e-3, (0, number))
    assert len(replays) == 3
    for counts in replays:
        assert not any(counts.get(kind) for kind in ("H2D", "D2H", "sync", "malloc", "hostalloc"))


@pytest.mark.parametrize("name", MOST_OF_A_BLOCK)
def test_a_recorded_block_and_what_goes_to_and_fro_in_a_shard(emulation, name):
    xp = load("cupy")
    teacher = model_teacher(on_module(new_model(sizes(name, CLASSES), {}, 0), xp))
    plan = SimpleNamespace(seed=0, block=CLOUDS, classes=CLASSES, logits="float32")
    names = tuple(f"class {number}" for number in range(CLASSES))

    def counted(blocks):
        """Return the counts of a shard of so many blocks."""
        rows = blocks * CLOUDS
        points = np.random.default_rng(0).standard_normal((rows, POINTS, 3)).astype(np.float32)
        clouds = Clouds(points, np.arange(rows) % CLASSES, names, "z", "none")
        for _ in range(2):
            # what nobody computed is any number
            with emulation.counting() as found, suppress(DataError):
                compute_shard(clouds, teacher, plan, AugmentConfig(), 0, 0, rows, xp, 1)
        return found.counts

    two, three = counted(2), counted(3)
    assert three["all"] - two["all"] <= MOST_OF_A_BLOCK[name]
    for counts in (two, three):
        assert (counts["H2D"], counts["D2H"], counts["sync"]) == (3, 1, 1)
