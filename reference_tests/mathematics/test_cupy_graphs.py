"""Steps replayed as a CUDA graph have the bits of those that are not."""

from types import SimpleNamespace

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig
from minipc.data.clouds import Clouds, Splits
from minipc.distil.self_target import Ema, History, Snapshot
from minipc.distil.train import drawn_views, train
from minipc.models.file import new_model, on_module
from minipc.models.model import net, sizes
from minipc.nn import graph, kernels
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig
from minipc.record.recorder import compute_shard, model_teacher
from minipc.settings import TrainConfig

CLOUDS, BATCH, POINTS, CLASSES = 48, 8, 32, 5
RUNS = {
    "tiny on a record": {"name": "tiny"},
    "with dropout": {"name": "tiny@0.3"},
    "clipped": {"name": "tiny", "clip_norm": 0.1},
    "levels": {"name": "8,16/5:12+,8/4:16,24+mean:12"},
    "levels without the last mean": {"name": "8,16/5:12,24"},
    "history": {"name": "tiny", "target": "history"},
    "snapshot": {"name": "tiny", "target": "snapshot"},
    "ema as target": {"name": "tiny", "target": "ema"},
    "averaged": {"name": "tiny", "average": "last", "average_epochs": 2},
    "a moving average": {"name": "tiny", "average": "ema", "average_decay": 0.9},
    "sgd": {"name": "tiny", "optimiser": "sgd", "lr": 0.01},
    "sgd, clipped and averaged": {
        "name": "tiny@0.3",
        "target": "ema",
        "optimiser": "sgd",
        "average": "ema",
        "clip_norm": 0.1,
    },
    "held out": {"name": "tiny", "val_fraction": 0.25},
}


def trained(xp, name="tiny", target=None, **settings):
    """Return the Epochs of two epochs of six steps on a record of random logits."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((CLOUDS, POINTS, 3)).astype(np.float32)
    clouds = Clouds(points, np.arange(CLOUDS) % CLASSES, tuple("abcde"), "z", "none")
    logits = rng.standard_normal((2, CLOUDS, CLASSES)).astype(np.float16)
    drawn, model, work = (
        drawn_views(clouds, 0, AugmentConfig()),
        sizes(name, CLASSES),
        Workspace(xp),
    )

    def forward(params, inputs):
        return net(model).forward_train(params, inputs, model, None, "fused", work)[0]

    targets = {
        None: lambda: None,
        "history": lambda: History(CLOUDS, CLASSES),
        "snapshot": lambda: Snapshot(forward),
        "ema": lambda: Ema(forward),
    }
    return list(
        train(
            Splits(clouds, clouds),
            model,
            LossConfig(0.9, self_weight=0.1 if target else 0, temperature=4),
            TrainConfig(epochs=2, batch_size=BATCH, warmup_steps=1, **settings),
            lambda epoch: (drawn(epoch)[0], logits[epoch]),
            self_target=targets[target]() if target in targets else target(CLOUDS, CLASSES),
            xp=xp,
            work=work,
        )
    )


class Rerun:
    """A Graph by calls: function() again, which sees what a graph sees, the arrays of its capture.

    So the emulated device, which captures nothing, tells whether all that changes lies in them.
    """

    def __init__(self, function, *works):
        self.function = function

    def replay(self):
        return self.function()


@pytest.fixture(params=["rerun", "captured"])
def capturing(cupy, request, monkeypatch):
    """CuPy on a device that captures graphs, or, as on the emulated one, runs them again."""
    if request.param == "rerun":
        monkeypatch.setattr(graph, "Graph", Rerun)
        monkeypatch.setattr(graph, "why_not", lambda xp: "")
    elif graph.why_not(cupy):
        pytest.skip(f"no CUDA graphs: {graph.why_not(cupy)}")
    return cupy


@pytest.mark.parametrize("name", RUNS)
def test_a_training_has_the_same_bits_with_graphs_and_without(capturing, monkeypatch, name):
    replays, replay = [], graph.Graph.replay
    monkeypatch.setattr(graph.Graph, "replay", lambda self: (replays.append(self), replay(self))[1])
    replayed = trained(capturing, **RUNS[name])
    assert len(replays) >= 5  # of eight steps or more
    assert len(set(map(id, replays))) <= (2 if RUNS[name].get("target") == "snapshot" else 1)
    monkeypatch.setattr(graph, "why_not", lambda xp: "to compare")
    plain = trained(capturing, **RUNS[name])
    assert plain[-1].rows[-1] | {"train_seconds": 0} == replayed[-1].rows[-1] | {"train_seconds": 0}
    for one, other in zip(replayed, plain, strict=True):
        for kind in ("params", "stats", "moments", "self_target", "average"):
            found, expected = getattr(one, kind), getattr(other, kind)
            assert found.keys() == expected.keys()
            assert [key for key in found if (found[key] != expected[key]).any()] == []


@pytest.mark.parametrize(
    "settings",
    [{"engine": "textbook"}, {"augment_width": 2}],
)
def test_what_changes_from_step_to_step_by_value_is_not_captured(cupy, monkeypatch, settings):
    monkeypatch.setattr(graph, "why_not", lambda xp: "")
    monkeypatch.setattr(graph, "Graph", None)  # called, it would be an error
    assert len(trained(cupy, **settings)) == 2


def test_a_self_target_that_is_not_ours_is_not_captured(cupy, monkeypatch):
    class Annealed(History):
        """It counts its steps in Python, where a graph does not see it."""

    monkeypatch.setattr(graph, "why_not", lambda xp: "")
    monkeypatch.setattr(graph, "Graph", None)
    assert len(trained(cupy, target=Annealed)) == 2


def test_where_a_capture_fails_a_warning_says_so_and_the_steps_go_on(cupy, monkeypatch):
    def fails(function, *works):
        raise RuntimeError("a graph\nthat this driver refuses")

    expected = trained(cupy)
    monkeypatch.setattr(graph, "why_not", lambda xp: "")
    monkeypatch.setattr(graph, "Graph", fails)
    with pytest.warns(RuntimeWarning, match="no CUDA graph .a graph that this driver refuses.:"):
        assert len(trained(cupy)) == len(expected)


def test_where_a_capture_fails_an_average_as_target_keeps_its_arrays(cupy, monkeypatch):
    made, tried = [], []

    def target(clouds, classes):
        made.append(Ema(lambda params, inputs: inputs.points[:, :CLASSES, 0] * params["out.b"]))
        return made[0]

    def fails(function, *works):
        before = dict(made[0].params)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "next_of", lambda *given: None)  # a capture counts no step
            patch.setattr(kernels, "add_to", None)  # called, after the target's step
            with pytest.raises(TypeError):
                function()
        tried.append(all(made[0].params[name] is value for name, value in before.items()))
        raise RuntimeError("a graph that fails late")

    monkeypatch.setattr(graph, "why_not", lambda xp: "")
    monkeypatch.setattr(graph, "Graph", fails)
    with pytest.warns(RuntimeWarning, match="fails late"):
        trained(cupy, target=target)
    assert tried and all(tried)


class Stream:
    """In the place of CuPy's, on a device that captures nothing: the function runs."""

    ptr = 0

    def __init__(self, non_blocking):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self):
        pass

    def end_capture(self):
        return SimpleNamespace(launch=lambda: None)


@pytest.fixture
def run_instead(cupy, monkeypatch):
    """CuPy whose streams run what they should capture."""
    monkeypatch.setattr(cupy.cuda, "Stream", Stream)
    monkeypatch.setattr(cupy.cuda.cublas, "setStream", lambda handle, stream: None)
    return cupy


def test_a_function_that_sends_arrays_of_the_host_becomes_no_graph(run_instead):
    work, host = Workspace(run_instead), np.arange(5.0)
    with pytest.warns(RuntimeWarning, match="no CUDA graph .an array of the host is sent in each"):
        assert graph.captured(lambda: run_instead.asarray(host), work) is None
    assert (run_instead.asarray(host) == run_instead.arange(5.0)).all()  # the allocator is back
    assert graph.captured(lambda: run_instead.arange(5.0) * 2, work).result[4] == 8


def test_a_capture_that_fails_leaves_no_buffers_that_nobody_filled(run_instead):
    work = Workspace(run_instead)
    kept = work.array("old", (2,), np.float32, fill=1)

    def function():
        for name in ("old", "new"):
            work.array(name, (3,), np.float32, fill=1)
            work.scratch(name, (3,), np.float32)
        work.tables["a table"] = run_instead.empty(3)
        raise RuntimeError("no more")

    with pytest.warns(RuntimeWarning, match="no more"):
        assert graph.captured(function, work) is None
    assert list(work.made) == ["old"] and work.array("old", (2,), np.float32) is kept
    assert not work.tables and not vars(work.own)


def test_a_device_computes_its_part_of_a_step_on_cupy_by_cublas_itself(cupy):
    """The product that a graph holds: CuPy refuses its own while a stream captures."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        a, b = rng.standard_normal((4, 5, 3)), rng.standard_normal((4, 3, 7))
        a, b = cupy.asarray(a.astype(dtype)), cupy.asarray(b.astype(dtype))
        outs = [cupy.zeros((4, 5, 7), dtype) for _ in range(2)]
        kernels.multiply(a, b, outs[0])

        class Refusing:
            __file__ = cupy.cuda.cublas.__file__

            def sgemmStridedBatched(*_):  # noqa: N802 (CuPy's name)
                raise NotImplementedError

            dgemmStridedBatched = sgemmStridedBatched  # noqa: N815

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cupy.cuda, "cublas", Refusing())
            kernels.multiply(a, b, outs[1])
        assert (outs[0] == outs[1]).all() and (outs[0] != 0).all()


def shards(xp, name, rows, kept=None):
    """Return what compute_shard returns for three views of so many clouds."""
    model = sizes(name, CLASSES)
    points = np.random.default_rng(0).standard_normal((rows, POINTS, 3)).astype(np.float32)
    clouds = Clouds(points, np.arange(rows) % CLASSES, tuple("abcde"), "z", "none")
    teacher = model_teacher(on_module(new_model(model, {}, 0), xp))
    plan = SimpleNamespace(seed=0, block=BATCH, classes=CLASSES, logits="float32")
    groups = net(model).prepare(model, points)
    given = (clouds, teacher, plan, AugmentConfig())
    return [
        compute_shard(*given, view, 0, rows, xp, 1, groups=groups, kept=kept) for view in range(3)
    ]


@pytest.mark.parametrize("rows", [1, 2 * BATCH, 3 * BATCH + 1])
@pytest.mark.parametrize("name", ["tiny", "8,16/5:12+,8/4:16,24+mean:12"])
def test_recorded_shards_have_the_same_bits_with_graphs_and_without(
    capturing, monkeypatch, name, rows
):
    replays, replay = [], graph.Graph.replay
    monkeypatch.setattr(graph.Graph, "replay", lambda self: (replays.append(self), replay(self))[1])
    replayed = shards(capturing, name, rows, {})
    assert len(replays) == 3 * -(-rows // BATCH) - 2 and len(set(map(id, replays))) == 1
    each_alone = shards(capturing, name, rows)
    monkeypatch.setattr(graph, "why_not", lambda xp: "to compare")
    for found in (replayed, each_alone):
        for one, other in zip(found, shards(capturing, name, rows), strict=True):
            for array, expected in zip(one, other, strict=True):
                np.testing.assert_array_equal(array, expected)
    assert (replayed[0][2] != replayed[1][2]).any()


def test_a_device_keeps_the_clouds_of_one_shard_alone(capturing):
    kept = {}
    for rows in (BATCH, 2 * BATCH):
        shards(capturing, "tiny", rows, kept)
    assert list(kept) == [(0, 2 * BATCH)]
