"""Training on labels and on views, evaluation, self targets, run folders."""

import json
import os
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from minipc.backend import worker_threads
from minipc.data.augment import AugmentConfig, Params, apply, draw
from minipc.data.clouds import Clouds, Splits
from minipc.distil.evaluate import metrics, predict
from minipc.distil.self_target import History, Snapshot
from minipc.distil.train import TrainConfig, drawn_views, train
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.file import model_id, new_model, on_module, read_model, write_model
from minipc.models.pointnet import ModelConfig, forward_train
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.runs.folder import RunFolder, free_name, model_path
from minipc.verbs.train import write_epochs

MODEL = ModelConfig((8, 8, 16), (8,), 3)
LABELS = LossConfig(label_smoothing=0.1, **LABELS_ALONE)


def forward(params, points, config=MODEL):
    """The training form of batch norm, as a snapshot is run."""
    return forward_train(params, points, config)[0]


def blobs(n, seed, p=24):
    """Three easy classes: flat, long and round clouds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    stretch = np.array([[1, 1, 0.1], [0.1, 0.1, 1], [0.6, 0.6, 0.6]])[labels]
    points = (rng.standard_normal((n, p, 3)) * stretch[:, None]).astype(np.float32)
    return Clouds(points, labels, ("flat", "long", "round"), "z", "none")


@pytest.fixture(scope="module")
def splits():
    return Splits(blobs(70, 0), blobs(40, 1))


def run(splits, loss=LABELS, model=MODEL, views=None, **changes):
    target, folder = changes.pop("self_target", None), changes.pop("folder", None)
    extra = {name: changes.pop(name) for name in ("xp", "threads", "progress") if name in changes}
    config = TrainConfig(
        **({"epochs": 3, "batch_size": 16, "lr": 1e-2, "warmup_steps": 4} | changes)
    )
    views = views or drawn_views(splits.train, config.seed, AugmentConfig())
    epochs = train(splits, model, loss, config, views, self_target=target, **extra)
    if folder is not None:
        return write_epochs(folder, epochs, splits.test, config.epochs)
    *_, last = epochs
    return last


def assert_same_model(one, other):
    for a, b in ((one.params, other.params), (one.stats, other.stats)):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def teacher_views(splits, epochs=3):
    """Views whose logits favour the label, as a recorded teacher's would."""
    rng = np.random.default_rng(5)
    onehot = np.eye(3, dtype=np.float16)[splits.train.labels]
    logits = [
        6 * onehot + rng.standard_normal(onehot.shape).astype(np.float16) for _ in range(epochs)
    ]
    return lambda epoch: (
        draw(0, epoch, 0, len(splits.train), AugmentConfig()),
        logits[epoch % epochs],
    )


def test_training_on_labels_learns(splits):
    trained = run(splits, epochs=12)
    assert trained.rows[-1]["test_accuracy"] > 0.8  # three classes: chance is one third
    assert trained.rows[-1]["total"] < trained.rows[0]["total"]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(splits):
    first, second = run(splits), run(splits)
    assert_same_model(first.model, second.model)
    assert first.rows[0]["total"] == second.rows[0]["total"]
    assert model_id(run(splits, seed=1).model) != model_id(first.model)


@pytest.mark.parametrize("engine", ["fused", "textbook"])
def test_an_epoch_that_is_kept_is_not_changed_by_later_ones(splits, engine):
    """The fast engine writes a step into the arrays of the step before."""
    config = TrainConfig(epochs=3, batch_size=16, lr=1e-2, warmup_steps=4, engine=engine)
    views = drawn_views(splits.train, 0, AugmentConfig())

    def begun(stop):
        epochs = train(splits, MODEL, LABELS, config, views, threads=1)
        return [next(epochs) for _ in range(stop)]

    for number, kept in enumerate(begun(3), start=1):
        alone = begun(number)[-1]  # nothing came after it
        assert len(kept.rows) == len(alone.rows) == kept.model.trained["epochs"] == number
        assert kept.steps == alone.steps == number * (70 // 16)
        assert_same_model(kept.model, alone.model)
        assert kept.moments.keys() == alone.moments.keys() != set()
        for name, value in kept.moments.items():
            np.testing.assert_array_equal(value, alone.moments[name], err_msg=name)
        np.testing.assert_array_equal(kept.test_logits, alone.test_logits)


def test_training_changes_neither_clouds_nor_views(splits):
    points = splits.train.points.copy()
    scale, shift = (value.copy() for value in draw(0, 0, 0, len(splits.train), AugmentConfig()))
    run(splits, views=lambda epoch: (Params(scale, shift), None))
    np.testing.assert_array_equal(splits.train.points, points)
    again = draw(0, 0, 0, len(splits.train), AugmentConfig())
    np.testing.assert_array_equal(scale, again.scale)
    np.testing.assert_array_equal(shift, again.shift)


def test_epoch_e_sees_view_e_by_the_rule_of_a_recording(splits):
    views = drawn_views(splits.train, 9, AugmentConfig())
    for epoch in (0, 5):
        params, logits = views(epoch)
        assert logits is None
        for name, value in draw(9, epoch, 0, len(splits.train), AugmentConfig())._asdict().items():
            np.testing.assert_array_equal(getattr(params, name), value)


def test_the_first_step_sees_exactly_the_replayed_points(splits):
    seen = []

    class Spy(Snapshot):
        def target(self, rows, inputs):
            seen.append((rows.copy(), inputs.points.copy()))

    run(
        splits,
        LossConfig(0.9, 0.2),
        views=teacher_views(splits),
        self_target=Spy(forward),
        epochs=1,
    )
    params = draw(0, 0, 0, len(splits.train), AugmentConfig())
    rows = np.concatenate([rows for rows, _ in seen])
    points = np.concatenate([points for _, points in seen])
    assert (
        len(rows) == 64 and len(set(rows)) == 64
    )  # 70 clouds, the last 6 of the epoch are dropped
    np.testing.assert_array_equal(points, apply(splits.train.points, params)[rows])


def test_plain_distillation_is_the_negative_weight_at_zero_bit_for_bit(splits):
    views = teacher_views(splits)
    with_guard = run(splits, LossConfig(0.9, 0.0, guard="clip"), views=views)
    without = run(splits, LossConfig(0.9, 0.0, guard="none"), views=views)
    assert_same_model(with_guard.model, without.model)


@pytest.mark.parametrize("kind", ["snapshot", "history"])
def test_a_negative_weight_changes_the_student_from_the_second_epoch_on(splits, kind):
    views = teacher_views(splits)

    def target():
        return Snapshot(forward) if kind == "snapshot" else History(len(splits.train), 3)

    plain = run(splits, LossConfig(0.9, 0.0), views=views)
    negative = run(splits, LossConfig(0.9, 0.2), views=views, self_target=target())
    assert negative.rows[0]["labels"] == plain.rows[0]["labels"]  # no earlier self yet
    assert negative.rows[0]["self_distillation"] == 0 < negative.rows[1]["self_distillation"]
    assert negative.rows[1]["labels"] != plain.rows[1]["labels"]
    assert_same_model(
        negative.model, run(splits, LossConfig(0.9, 0.2), views=views, self_target=target()).model
    )


def test_weight_and_self_target_go_together(splits):
    with pytest.raises(UsageError, match="self target and a weight above 0 go together"):
        run(splits, LossConfig(0.9, 0.2), views=teacher_views(splits))
    with pytest.raises(UsageError, match="go together"):
        run(
            splits, LossConfig(0.9, 0.0), views=teacher_views(splits), self_target=Snapshot(forward)
        )


def test_distillation_without_teacher_logits_is_refused(splits):
    with pytest.raises(UsageError, match="needs teacher logits"):
        run(splits, LossConfig(0.9))


def test_a_batch_larger_than_the_data_is_refused(splits):
    with pytest.raises(UsageError, match="128 is more than the 70 training clouds; lower it"):
        run(splits, batch_size=128)


def test_a_loss_that_stops_being_finite_stops_the_run(splits):
    bad = np.full((70, 3), np.nan, np.float32)
    views = drawn_views(splits.train, 0, AugmentConfig())
    with pytest.raises(MinipcError, match="no longer finite in epoch 1.*lower --lr"):
        run(splits, LossConfig(0.9), views=lambda epoch: (views(epoch)[0], bad))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 0}, "epochs: expected a positive integer, got 0"),
        ({"batch_size": 1}, "batch norm in the head needs at least 2"),
        ({"lr": 0.0}, "lr: expected a positive number"),
        ({"lr": float("nan")}, "lr: expected a positive number"),
        ({"weight_decay": -1.0}, "weight decay: expected a value >= 0, got -1.0"),
        ({"clip_norm": float("inf")}, "clip norm: expected a value >= 0, got inf"),
        ({"optimiser": "adam"}, "expected adamw or sgd, got 'adam'"),
        ({"seed": -1}, "seed: expected an integer from 0"),
    ],
)
def test_training_settings_that_cannot_run_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**changes)


def test_dropout_sgd_and_clipping_train_and_repeat(splits):
    model = replace(MODEL, dropout=0.3)
    settings = dict(model=model, optimiser="sgd", clip_norm=1.0, lr=3e-2)
    first = run(splits, **settings)
    assert_same_model(first.model, run(splits, **settings).model)
    assert first.rows[-1]["total"] < first.rows[0]["total"]
    assert model_id(run(splits, **(settings | {"model": MODEL})).model) != model_id(first.model)


def test_training_runs_on_the_device_and_agrees_with_the_host(splits, fake_cupy, engine):
    views = teacher_views(splits)
    loss = LossConfig(0.9, 0.2)
    model = replace(MODEL, dropout=0.3)
    snapshot = partial(forward, config=model)
    settings = dict(epochs=2, engine=engine)
    host = run(splits, loss, model, views, self_target=Snapshot(snapshot), **settings)
    device = run(
        splits, loss, model, views, self_target=Snapshot(snapshot), xp=fake_cupy, **settings
    )
    if engine == "textbook":
        assert_same_model(host.model, device.model)
    # The fast engine divides its products otherwise there; AdamW makes steps of the noise of an
    # offset whose gradient is truly zero, so parameters are not compared, but what they amount to.
    for name in ("total", "labels", "distillation"):
        mine, theirs = ([row[name] for row in trained.rows] for trained in (host, device))
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, err_msg=name)
    assert all(isinstance(value, np.ndarray) for value in device.model.params.values())
    history = run(splits, loss, model, views, self_target=History(70, 3), epochs=2, xp=fake_cupy)
    assert history.rows[-1]["self_distillation"] > 0


def test_the_reported_accuracy_is_that_of_the_saved_model(splits, tmp_path):
    folder = RunFolder(str(tmp_path / "run"), {"seed": 0})
    trained = run(splits, folder=folder)
    model = read_model(model_path(folder.path))
    assert_same_model(model, trained.model)
    found = metrics(splits.test.labels, predict(on_module(model, np), splits.test.points, np, 2))
    assert found.accuracy == trained.rows[-1]["test_accuracy"]
    assert model.described == splits.train.described
    rows = [json.loads(line) for line in open_lines(folder.file("metrics.jsonl"))]
    assert rows == trained.rows and len(rows) == 3
    lines = open_lines(folder.file("metrics.csv"))
    assert lines[0].split(",") == list(rows[0]) and len(lines) == 4
    assert json.loads("".join(open_lines(folder.file("run.json")))) == {"seed": 0}


def open_lines(path):
    with open(path, encoding="ascii") as file:
        return file.read().splitlines()


def test_a_run_folder_is_never_reused(tmp_path):
    path = str(tmp_path / "run")
    RunFolder(path, {})
    with pytest.raises(UsageError, match="exists already; continue it with --resume, or"):
        RunFolder(path, {})
    assert free_name(path) == f"{path}-2"
    with pytest.raises(DataError, match="the run folder cannot be made"):
        RunFolder(str(tmp_path / "none" / "run"), {})


def test_what_is_no_json_leaves_no_folder_and_no_lock(tmp_path):
    path = str(tmp_path / "run")
    with pytest.raises(TypeError):
        RunFolder(path, {"seed": np.float32(1)})
    assert not os.path.exists(path)
    RunFolder(path, {"seed": 1})


def test_settings_may_be_numbers_of_numpy():
    config = replace(LABELS, temperature=np.float32(4), label_smoothing=np.float64(0.1))
    assert json.dumps(asdict(config)) and config.temperature == 4
    assert type(TrainConfig(epochs=np.int64(3)).epochs) is int


@pytest.mark.parametrize("key, value", [("up_axis", "Q"), ("normalisation", "none at all")])
def test_a_model_of_clouds_that_cannot_be_is_neither_written_nor_read(tmp_path, splits, key, value):
    model = run(splits, epochs=1).model
    wrong = model._replace(described=model.described | {key: value})
    path = str(tmp_path / "model.h5")
    with pytest.raises(DataError, match="up axis or normalisation"):
        write_model(path, wrong)
    assert not os.path.exists(path)


def test_a_model_comes_back_bit_for_bit_and_its_id_tells_every_change(tmp_path, splits):
    model = run(splits, epochs=1).model
    path = str(tmp_path / "model.h5")
    write_model(path, model)
    back = read_model(path)
    assert_same_model(model, back)
    assert (back.config, back.trained) == (model.config, model.trained)
    assert model_id(back) == model_id(model)
    for source in ("params", "stats"):
        for name, value in getattr(model, source).items():
            nudged = value.copy()
            nudged.flat[0] = np.nextafter(nudged.flat[0], np.float32(9))
            assert model_id(
                model._replace(**{source: getattr(model, source) | {name: nudged}})
            ) != model_id(model)
    assert model_id(model._replace(config=replace(MODEL, eps=1e-4))) != model_id(model)


def test_a_model_of_other_sizes_is_refused(tmp_path, splits):
    model = new_model(MODEL, splits.train.described, 0)
    path = str(tmp_path / "model.h5")
    write_model(path, model._replace(config=replace(MODEL, head=(9,))))
    with pytest.raises(DataError, match="head0"):
        read_model(path)


def test_threads_default_to_the_processors_of_this_process_and_to_one_beside_a_device(fake_cupy):
    assert worker_threads(np) == len(os.sched_getaffinity(0))
    assert worker_threads(fake_cupy) == worker_threads(fake_cupy, 4) == 1
    assert worker_threads(np, 4) == 4


def test_parameters_that_stop_being_finite_in_the_last_step_are_noticed(splits):
    with pytest.raises(MinipcError, match="no longer finite"):
        # one epoch of one step: its loss is taken before the step that overflows
        run(splits, epochs=1, batch_size=64, warmup_steps=0, lr=1e38, weight_decay=1e38)
