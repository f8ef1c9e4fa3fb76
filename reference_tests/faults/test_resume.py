"""A run that was stopped, or killed, and goes on equals one that was never stopped, bit for bit."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig, apply, draw
from minipc.data.clouds import Clouds, Splits, stratified, write_clouds
from minipc.distil.self_target import Ema, History, SecondRecord, Snapshot
from minipc.distil.state import best_epoch
from minipc.distil.statistics import estimate
from minipc.distil.train import TrainConfig, split_rows, train
from minipc.errors import DataError, MinipcError, UsageError
from minipc.models.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from minipc.models.pointnet import ModelConfig, forward_train
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.runs.folder import RunFolder, last_name, read_run
from minipc.storage import files
from minipc.streams import stream
from minipc.verbs.train import write_epochs

MODEL = ModelConfig((8, 8, 16), (8,), 3, dropout=0.25)
EPOCHS = 4


def blobs(n, seed, p=24):
    """Three classes that overlap: accuracies move from epoch to epoch."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    stretch = np.array([[1, 1, 0.6], [0.6, 0.6, 1], [0.8, 0.8, 0.8]])[labels]
    points = (rng.standard_normal((n, p, 3)) * stretch[:, None]).astype(np.float32)
    return Clouds(points, labels, ("flat", "long", "round"), "z", "none")


@pytest.fixture(scope="module")
def splits():
    return Splits(blobs(90, 0), blobs(40, 1))


def views_of(splits, seed=5):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((3, len(splits.train), 3)).astype(np.float16)
    return lambda epoch: (
        draw(0, epoch % 3, 0, len(splits.train), AugmentConfig()),
        logits[epoch % 3],
    )


def forward(params, points):
    return forward_train(params, points, MODEL)[0]


TARGETS = {
    "none": lambda splits: None,
    "snapshot": lambda splits: Snapshot(forward),
    "snapshot-every-3": lambda splits: Snapshot(forward, 3),
    "ema": lambda splits: Ema(forward, 0.9),
    "history": lambda splits: History(len(splits.train), 3),
    "record": lambda splits: SecondRecord(lambda epoch: views_of(splits, 8)(epoch)[1]),
}


def run(splits, path, target="none", stop_after=None, **changes):
    """Begin or go on with the run in path."""
    xp, progress = changes.pop("xp", np), changes.pop("progress", None)
    config = TrainConfig(
        **({"epochs": EPOCHS, "batch_size": 16, "lr": 1e-2, "warmup_steps": 4} | changes)
    )
    new = not os.path.exists(path)
    with RunFolder(str(path), {"target": target} if new else None) as folder:
        resume = None if new else folder.checkpoint()
        epochs = train(
            splits,
            MODEL,
            LossConfig(0.9, 0.0 if target == "none" else 0.2),
            config,
            views_of(splits),
            self_target=TARGETS[target](splits),
            xp=xp,
            threads=1,
            progress=progress,
            resume=resume,
        )
        done = len(resume.rows) if resume else 0
        stop = config.last_epoch(stop_after, done)
        return write_epochs(folder, epochs, splits.test, stop, done)


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in rows]


def assert_equal_runs(one, other):
    """Every file of two run folders is the same but for times."""
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    for name in ("model.h5", "best.h5", "predictions.csv"):
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    a, b = (read_checkpoint(str(path / "checkpoint.h5")) for path in (one, other))
    assert (a.run_id, a.steps, without_times(a.rows)) == (b.run_id, b.steps, without_times(b.rows))
    for group in ("params", "stats", "optimiser", "self_target"):
        mine, others = getattr(a, group), getattr(b, group)
        assert list(mine) == list(others)
        for name in mine:
            np.testing.assert_array_equal(
                mine[name], others[name], err_msg=f"{group}/{name}", strict=True
            )
    told = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (one, other)
    ]
    tables = [
        list(csv.DictReader((path / "metrics.csv").read_text().splitlines()))
        for path in (one, other)
    ]
    assert without_times(told[0]) == without_times(told[1]) == without_times(a.rows)
    assert (
        without_times(tables[0])
        == without_times(tables[1])
        == [{name: str(value) for name, value in row.items()} for row in without_times(a.rows)]
    )
    for rows in (told, tables):
        assert (
            [list(row) for row in rows[0]]
            == [list(row) for row in rows[1]]
            == [list(a.rows[0])] * len(a.rows)
        )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_stopped_after_two_and_resumed_equals_four_epochs(splits, tmp_path, target, optimiser):
    settings = dict(target=target, optimiser=optimiser, clip_norm=1.0, val_fraction=0.2)
    whole = run(splits, tmp_path / "whole", **settings)
    stopped = run(splits, tmp_path / "parts", stop_after=2, **settings)
    assert len(stopped.rows) == 2
    assert len(read_checkpoint(str(tmp_path / "parts/checkpoint.h5")).rows) == 2
    resumed = run(splits, tmp_path / "parts", **settings)
    assert without_times(resumed.rows) == without_times(whole.rows)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("average", ["ema", "last"])
def test_averaged_weights_stopped_after_every_epoch_equal_four_epochs(splits, tmp_path, average):
    settings = dict(average=average, average_decay=0.9, average_epochs=2, val_fraction=0.2)
    whole = run(splits, tmp_path / "whole", **settings)
    for stop in range(1, EPOCHS + 1):
        resumed = run(splits, tmp_path / "parts", stop_after=stop, **settings)
    assert without_times(resumed.rows) == without_times(whole.rows)
    assert {row["weights"] for row in whole.rows} == {average}
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_averaged_weights_are_kept_apart_from_the_live_ones_in_a_checkpoint(splits, tmp_path):
    run(splits, tmp_path / "live")
    averaged = run(splits, tmp_path / "averaged", average="last", average_epochs=3)
    live, other = (
        read_checkpoint(str(tmp_path / name / "checkpoint.h5")) for name in ("live", "averaged")
    )
    for name, value in live.params.items():  # training itself knows nothing of the average
        np.testing.assert_array_equal(other.params[name], value)
    for name, value in live.stats.items():
        np.testing.assert_array_equal(other.stats[name], value)
        np.testing.assert_array_equal(other.average[f"stats.{name}"], averaged.model.stats[name])
    assert live.average == {} and "weights" not in live.rows[0]
    assert any((averaged.model.params[name] != live.params[name]).any() for name in live.params)


def test_statistics_of_averaged_weights_are_those_of_the_batches_and_view_of_the_epoch(
    splits, tmp_path
):
    last = run(splits, tmp_path / "run", average="last", average_epochs=1, val_fraction=0.2)
    for name, value in last.params.items():  # the mean of one epoch is the live weights
        np.testing.assert_array_equal(last.model.params[name], value)
    learnt, _ = split_rows(splits.train.labels, TrainConfig(val_fraction=0.2, batch_size=16))
    order = learnt[stream(0, "shuffle", EPOCHS - 1).permutation(len(learnt))]
    view, _ = views_of(splits)(EPOCHS - 1)
    points = apply(splits.train.points, view)
    batches = [points[order[at : at + 16]] for at in range(0, len(order) - 15, 16)]
    stats = estimate(last.params, MODEL, batches)
    for name, value in last.model.stats.items():
        # the memory order of the points may change the last places of a product
        np.testing.assert_allclose(value, stats[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert (value != last.stats[name]).any()


def test_a_checkpoint_whose_average_is_gone_or_of_another_kind_is_refused(splits, tmp_path):
    run(splits, tmp_path / "run", average="ema", stop_after=1)
    with RunFolder(str(tmp_path / "run")) as folder:
        checkpoint = folder.checkpoint()
    config = dict(epochs=EPOCHS, batch_size=16)
    for average, kind in [({}, "ema"), (checkpoint.average, "last"), (checkpoint.average, "none")]:
        epochs = train(
            splits,
            MODEL,
            LossConfig(0.9, 0.0),
            TrainConfig(**config, average=kind),
            views_of(splits),
            resume=checkpoint._replace(average=average),
        )
        with pytest.raises(DataError, match="averaged weights"):
            next(epochs)


def test_stopped_after_every_epoch_equals_four_epochs(splits, tmp_path):
    run(splits, tmp_path / "whole", "history")
    for stop in range(1, EPOCHS + 1):
        run(splits, tmp_path / "parts", "history", stop_after=stop)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_run_resumes_on_the_device(splits, tmp_path, fake_cupy):
    run(splits, tmp_path / "whole", "ema", xp=fake_cupy)
    run(splits, tmp_path / "parts", "ema", xp=fake_cupy, stop_after=2)
    run(splits, tmp_path / "parts", "ema", xp=fake_cupy)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("average", ["ema", "last"])
def test_averaged_weights_resume_on_the_device(splits, tmp_path, fake_cupy, average):
    settings = dict(average=average, average_epochs=2, epochs=2, xp=fake_cupy)
    run(splits, tmp_path / "whole", **settings)
    run(splits, tmp_path / "parts", stop_after=1, **settings)
    run(splits, tmp_path / "parts", **settings)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_kill_between_the_files_of_an_epoch_costs_nothing(splits, tmp_path):
    """The checkpoint is committed first; whatever else is stale or missing follows from it."""
    run(splits, tmp_path / "whole", val_fraction=0.2)
    run(splits, tmp_path / "parts", stop_after=2, val_fraction=0.2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    run(splits, tmp_path / "parts", stop_after=3, val_fraction=0.2)
    for name in before.keys() - {"checkpoint.h5", "run.json"}:
        (tmp_path / "parts" / name).write_bytes(
            before[name]
        )  # as if killed right after the third checkpoint
    (tmp_path / "parts/metrics.csv").unlink()
    run(splits, tmp_path / "parts", val_fraction=0.2)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_trains_nothing_and_repairs_what_follows(splits, tmp_path):
    run(splits, tmp_path / "whole", val_fraction=0.2)
    run(splits, tmp_path / "again", val_fraction=0.2)
    checkpoint = (tmp_path / "again/checkpoint.h5").read_bytes()
    for name in ("model.h5", "predictions.csv", "metrics.jsonl"):
        (tmp_path / "again" / name).unlink()
    run(splits, tmp_path / "again", val_fraction=0.2)
    assert (tmp_path / "again/checkpoint.h5").read_bytes() == checkpoint
    assert_equal_runs(tmp_path / "whole", tmp_path / "again")


def test_best_is_the_first_epoch_of_the_best_validation_accuracy(splits, tmp_path):
    trained = run(splits, tmp_path / "run", val_fraction=0.3, epochs=6)
    accuracies = [row["val_accuracy"] for row in trained.rows]
    best = best_epoch(trained.rows)
    assert best == accuracies.index(max(accuracies))
    for stop in range(1, 7):
        run(splits, tmp_path / "parts", val_fraction=0.3, epochs=6, stop_after=stop)
        if stop == best + 1:
            at_best = (tmp_path / "parts/model.h5").read_bytes()
    assert (tmp_path / "run/best.h5").read_bytes() == at_best
    assert best < 5, "the case in which best and last differ is the one of interest"
    assert best_epoch([{"test_accuracy": 1.0}]) is None and best_epoch([]) is None
    rows = [
        {"val_accuracy": v, "test_accuracy": t}
        for v, t in ((0.5, 0.9), (0.7, 0.1), (0.7, 0.8), (0.6, 1.0))
    ]
    assert best_epoch(rows) == 1


def test_held_out_clouds_are_stratified_never_learnt_and_fixed_by_the_seed(splits):
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    taken = stratified(labels, 0.2, 7, "validation")
    assert [int(taken[labels == k].sum()) for k in range(4)] == [10, 2, 1, 0]
    np.testing.assert_array_equal(taken, stratified(labels, 0.2, 7, "validation"))
    assert not np.array_equal(taken, stratified(labels, 0.2, 8, "validation"))
    assert not stratified(labels, 0.0, 7, "validation").any()
    seen = []

    class Spy(History):
        def target(self, rows, points):
            seen.extend(rows)
            return super().target(rows, points)

    config = TrainConfig(epochs=6, batch_size=8, val_fraction=0.2, seed=3)
    epochs = train(
        splits,
        MODEL,
        LossConfig(0.9, 0.2),
        config,
        views_of(splits),
        self_target=Spy(90, 3),
        threads=1,
    )
    assert len(list(epochs)) == 6
    held_out = stratified(splits.train.labels, 0.2, 3, "validation")
    assert set(seen) == set(np.flatnonzero(~held_out)) and held_out.sum() == 18


def test_the_test_split_chooses_nothing(splits, tmp_path):
    """Other test clouds, same weights, same best epoch."""
    other = Splits(splits.train, blobs(40, 99))
    run(splits, tmp_path / "one", val_fraction=0.2)
    run(other, tmp_path / "two", val_fraction=0.2)
    for name in ("model.h5", "best.h5"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_predictions_hold_a_line_for_each_test_cloud(splits, tmp_path):
    trained = run(splits, tmp_path / "run")
    lines = (tmp_path / "run/predictions.csv").read_text().splitlines()
    assert lines[0] == "cloud,label,predicted,right,probability" and len(lines) == 41
    cells = [line.split(",") for line in lines[1:]]
    assert [int(cell[0]) for cell in cells] == list(range(40))
    assert {cell[1] for cell in cells} == {"flat", "long", "round"}
    right = [int(cell[3]) for cell in cells]
    assert right == [int(cell[1] == cell[2]) for cell in cells]
    assert sum(right) / 40 == trained.rows[-1]["test_accuracy"]
    assert all(1 / 3 <= float(cell[4]) <= 1 for cell in cells)


def test_a_checkpoint_of_another_run_is_refused(splits, tmp_path):
    run(splits, tmp_path / "one", stop_after=1)
    with RunFolder(str(tmp_path / "two"), {"target": "other"}) as folder:
        os.link(tmp_path / "one/checkpoint.h5", tmp_path / "two/checkpoint.h5")
        with pytest.raises(DataError, match="belongs to another run than run.json beside it"):
            folder.checkpoint()


def test_a_pipe_in_the_place_of_run_json_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(DataError, match="run.json: expected a file, found a pipe"):
        RunFolder(str(tmp_path))


def test_a_run_whose_checkpoint_is_gone_does_not_begin_again_over_its_model(splits, tmp_path):
    run(splits, tmp_path / "run")
    (tmp_path / "run/checkpoint.h5").unlink()
    before = (tmp_path / "run/model.h5").read_bytes()
    with pytest.raises(
        DataError, match="checkpoint.h5: is gone, so the run cannot go on; restore it, or start"
    ):
        run(splits, tmp_path / "run")
    assert (tmp_path / "run/model.h5").read_bytes() == before


def test_a_folder_that_a_kill_left_before_its_run_json_is_taken_over(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".run.json.0123456789abcdef.tmp").write_bytes(b"{")
    with RunFolder(str(path), {"seed": 0}) as folder:
        assert folder.described == {"seed": 0}
    assert os.listdir(path) == ["run.json"]  # the kill's temporary was swept
    with pytest.raises(UsageError, match="exists already"):
        RunFolder(str(path), {"seed": 0})


@pytest.mark.parametrize("target", TARGETS)
def test_a_kill_in_the_middle_of_an_epoch_costs_that_epoch_alone(splits, tmp_path, target):
    """SIGKILL to a process of its own, in the second step of the third epoch."""
    run(splits, tmp_path / "whole", target)
    child = os.fork()
    if not child:
        try:
            steps = iter(range(1, 1000))

            def progress(*told):
                if next(steps) == 12:  # five steps an epoch
                    os.kill(os.getpid(), signal.SIGKILL)

            run(splits, tmp_path / "parts", target, progress=progress)
        finally:
            os._exit(1)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(read_checkpoint(str(tmp_path / "parts/checkpoint.h5")).rows) == 2
    run(splits, tmp_path / "parts", target)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("after", range(1, 20))
def test_a_disk_that_is_full_at_any_file_of_an_epoch_costs_that_epoch_alone(
    splits, tmp_path, monkeypatch, after
):
    """run.json first; checkpoint, metrics, model and best each epoch; predictions last."""
    run(splits, tmp_path / "whole", "history", val_fraction=0.2)
    calls = []

    def full(folder, base):
        calls.append(base)
        if len(calls) == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return made(folder, base)

    made = files._new_temporary
    with monkeypatch.context() as patch:
        patch.setattr(files, "_new_temporary", full)
        with pytest.raises(MinipcError, match="No space left.*free some space"):
            run(splits, tmp_path / "parts", "history", val_fraction=0.2)
    run(splits, tmp_path / "parts", "history", val_fraction=0.2)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_serves_as_often_as_one_likes(splits, tmp_path):
    run(splits, tmp_path / "run", stop_after=2)
    with RunFolder(str(tmp_path / "run")) as folder:
        resume = folder.checkpoint()
    config = TrainConfig(epochs=EPOCHS, batch_size=16, lr=1e-2, warmup_steps=4)
    loss = LossConfig(0.9, 0.0)
    one, other = (
        list(train(splits, MODEL, loss, config, views_of(splits), resume=resume)) for _ in range(2)
    )
    assert [len(epoch.rows) for epoch in one] == [2, 3, 4]  # that of the checkpoint comes first
    one, other = one[-1], other[-1]
    assert without_times(one.rows) == without_times(other.rows)
    for name, value in one.model.params.items():
        np.testing.assert_array_equal(value, other.model.params[name], err_msg=name)


def test_a_checkpoint_of_other_sizes_is_refused(splits, tmp_path):
    run(splits, tmp_path / "run", stop_after=1)
    with RunFolder(str(tmp_path / "run")) as folder:
        resume = folder.checkpoint()
        config = TrainConfig(epochs=EPOCHS, batch_size=16)
        with pytest.raises(DataError, match="holds other layers or moments"):
            model = replace(MODEL, shared=(8, 8, 17))
            next(train(splits, model, LossConfig(0.9), config, views_of(splits), resume=resume))
        with pytest.raises(DataError, match="holds other layers or moments"):
            config = replace(config, optimiser="sgd")
            next(train(splits, MODEL, LossConfig(0.9), config, views_of(splits), resume=resume))


def test_two_processes_cannot_train_in_one_folder(splits, tmp_path):
    run(splits, tmp_path / "run", stop_after=1)
    with (
        RunFolder(str(tmp_path / "run")),
        pytest.raises(UsageError, match="another process is training in it"),
    ):
        RunFolder(str(tmp_path / "run"))
    RunFolder(str(tmp_path / "run")).__exit__()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_neither_keeps_a_folder_that_its_parent_has_left_nor_gives_it_away(
    splits, tmp_path
):
    run(splits, tmp_path / "run", stop_after=1)
    end = os.pipe()
    with RunFolder(str(tmp_path / "run")) as folder:
        if not (leaver := os.fork()):
            folder.__exit__()
            os._exit(0)
        os.waitpid(leaver, 0)
        with pytest.raises(UsageError, match="another process is training in it"):
            RunFolder(str(tmp_path / "run"))
        if not (stayer := os.fork()):
            os.close(end[1])
            os.read(end[0], 1)  # until the parent closes its end
            os._exit(0)
    RunFolder(str(tmp_path / "run")).__exit__()
    os.close(end[1])
    os.waitpid(stayer, 0)
    os.close(end[0])


def test_the_second_of_two_commands_in_one_folder_is_refused(folder, say):
    assert say("train", "clouds.h5", *QUICK, "--epochs", 3, "--stop-after", 1)[0] == 0
    before = {path: path.read_bytes() for path in (folder / "run").iterdir()}
    with RunFolder("run"):
        for words in (("--resume",), ("clouds.h5", "--resume", "--out", "run")):
            code, out, err = say("train", *words)
            assert (code, out, err.count("\n")) == (
                2,
                "",
                1,
            ) and "another process is training in it; wait" in err
        code, _, err = say("train", "clouds.h5", *QUICK, "--epochs", 3, "--out", "run")
        assert code == 2 and "exists already" in err
    assert {path: path.read_bytes() for path in (folder / "run").iterdir()} == before
    assert say("train", "--resume")[0] == 0


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((3, 2)).astype(np.float32) for name in ("b.W", "a.W")}
    wrote = Checkpoint(
        "ab" * 32,
        [{"epoch": 1, "total": 0.1}],
        7,
        arrays,
        {"a.mean": np.zeros(2, np.float32)},
        {"m.a.W": arrays["a.W"]},
        {"logits": np.ones((4, 3), np.float16), "visited": np.array([1, 0, 1, 1], np.uint8)},
    )
    path = str(tmp_path / "c.h5")
    write_checkpoint(path, wrote)
    read = read_checkpoint(path)
    assert read[:3] == wrote[:3]
    for group in ("params", "stats", "optimiser", "self_target"):
        assert set(getattr(read, group)) == set(getattr(wrote, group))
        for name, value in getattr(wrote, group).items():
            np.testing.assert_array_equal(getattr(read, group)[name], value, strict=True)
    whole = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="is damaged"):
        read_checkpoint(path)


def test_settings_of_stopping_that_cannot_be_are_refused(splits, tmp_path):
    for stop in (0, 5):
        with pytest.raises(UsageError, match=f"stop after: expected 1 to 4 epochs, got {stop}"):
            TrainConfig(epochs=4).last_epoch(stop)
    with pytest.raises(UsageError, match="val fraction: expected 0 <= f < 1, got 1.0"):
        TrainConfig(val_fraction=1.0)
    with pytest.raises(
        UsageError, match="stop after: 2 epochs are done already, got 1; leave it out"
    ):
        run(splits, tmp_path / "run", stop_after=2)
        run(splits, tmp_path / "run", stop_after=1)
    with pytest.raises(UsageError, match="val fraction: holds out nothing"):
        split_rows(np.arange(9), TrainConfig(val_fraction=0.5, batch_size=2))
    with pytest.raises(UsageError, match="more than the 27 training clouds"):
        loss, config = LossConfig(**LABELS_ALONE), TrainConfig(val_fraction=0.7)
        next(train(splits, MODEL, loss, config, views_of(splits)))


def test_the_last_run_is_the_last_of_the_numbered_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert last_name("run") is None
    for name in ("run", "run-2", "run-4"):
        os.mkdir(name)
    assert last_name("run") == "run-2"
    with pytest.raises(DataError, match="run.json: cannot be read.*check name and rights"):
        read_run("run")


# The command line, in processes of its own.

QUICK = (
    "--labels-only --model 8-16:8 --lr 0.01 --warmup-steps 4 --batch-size 16 --val-fraction "
    "0.2 --threads 1"
).split()


@pytest.fixture
def folder(tmp_path, monkeypatch, splits):
    monkeypatch.chdir(tmp_path)
    write_clouds("clouds.h5", splits)
    return tmp_path


def minipc(*arguments, start=False, cwd=None):
    command = [sys.executable, "-m", "minipc", *map(str, arguments)]
    if start:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell may have started the tests with Ctrl-C ignored, which a child inherits
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def epochs_done(path):
    try:
        return len(read_checkpoint(str(path / "checkpoint.h5")).rows)
    except DataError:
        return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory, splits):
    """The folder of a run of 80 epochs that nobody interrupted."""
    place = tmp_path_factory.mktemp("whole")
    write_clouds(place / "clouds.h5", splits)
    done = minipc("train", "clouds.h5", *QUICK, "--epochs", 80, "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(folder, whole, number):
    process = minipc("train", "clouds.h5", *QUICK, "--epochs", 80, "--out", "run", start=True)
    deadline = time.monotonic() + 60
    while epochs_done(folder / "run") < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    done = epochs_done(folder / "run")
    assert 5 <= done < 80
    if number == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in err
        assert [
            line for line in err.splitlines() if line.startswith("minipc: ")
        ] == err.splitlines()[-1:]
        assert "--resume" in err
    resumed = minipc("train", "--resume", "--out", "run")
    assert resumed.returncode == 0 and f"continues after epoch {done}" in resumed.stderr, (
        resumed.stderr
    )
    assert_equal_runs(whole, folder / "run")
