"""Clouds without a label: read, trained on, and left out of every accuracy."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minipc.audit.teacher import audit_teacher
from minipc.data.augment import AugmentConfig, Params
from minipc.data.clouds import (
    UNLABELLED,
    Clouds,
    Splits,
    kept_labels,
    read_clouds,
    stratified,
    write_clouds,
)
from minipc.data.readers.source import read_source
from minipc.distil.train import drawn_views, split_rows, train
from minipc.errors import DataError, UsageError
from minipc.models.checkpoint import read_checkpoint, write_checkpoint
from minipc.models.pointnet import ModelConfig
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording
from minipc.runs.folder import read_run, run_id_of
from minipc.settings import TrainConfig

MODEL = ModelConfig((8, 16), (8,), 3, dropout=0.2)
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=1e-2, warmup_steps=4)
LABELS = LossConfig(**LABELS_ALONE)
QUICK = ["--epochs", 2, "--model", "8-16:8", "--quiet"]


@pytest.fixture
def splits(data):
    return read_clouds(data)


def forgotten(clouds, *kept):
    """Return the same clouds with the labels of the rows in kept alone."""
    labels = np.full(len(clouds), UNLABELLED, np.int64)
    labels[list(kept)] = clouds.labels[list(kept)]
    return replace(clouds, labels=labels)


def train_without(splits, *kept):
    return Splits(forgotten(splits.train, *kept), splits.test)


def favoured(splits):
    """Views whose logits favour the true label, as a recorded teacher's do."""
    clouds = splits.train
    logits = 4 * np.eye(3, dtype=np.float32)[clouds.labels] + clouds.points[:, 0]
    drawn = drawn_views(clouds, 0, AugmentConfig())
    return lambda epoch: (Params(*drawn(epoch)[0]), logits)


def trained(splits, loss, views, config=CONFIG):
    *_, last = train(splits, MODEL, loss, config, views, threads=1)
    return last


def same(one, other):
    assert one.model.params.keys() == other.model.params.keys()
    return all(
        np.array_equal(value, other.model.params[name]) for name, value in one.model.params.items()
    )


# data


def test_clouds_without_a_label_come_back_from_their_file(tmp_path, splits):
    few, path = Splits(forgotten(splits.train, 4), forgotten(splits.test)), tmp_path / "few.h5"
    write_clouds(path, few)
    back = read_clouds(path)
    np.testing.assert_array_equal(back.train.labels, few.train.labels)
    assert (back.train.labelled, back.test.labelled) == (1, 0)
    assert back.train.labels_hash != splits.train.labels_hash
    assert back.train.points_hash == splits.train.points_hash


def test_labels_that_count_from_1_are_refused_beside_unlabelled_ones(splits):
    labels = np.where(np.arange(96) < 9, UNLABELLED, splits.train.labels + 1)
    with pytest.raises(DataError, match="count from 1 to 3, expected from 0 to 2"):
        replace(splits.train, labels=labels)


def test_arrays_may_lack_labels_but_hold_no_other_negative_ones():
    points = np.random.default_rng(0).standard_normal((3, 5, 3))
    assert Clouds.from_arrays(points, [0, -1, 1], ["a", "b"]).labelled == 2
    with pytest.raises(DataError, match="whole numbers from -1, got -2"):
        Clouds.from_arrays(points, [0, -2, 1], ["a", "b"])


LAYOUTS = {  # class, split, number -> name of a file; and where clouds without a label lie
    "class/file": ("{name}/{number}.npy", "unlabelled"),
    "class/split/file": ("{name}/{split}/{number}.npy", "unlabelled"),
    "split/class/file": ("{split}/{name}/{number}.npy", "unlabelled"),
    "split/class/file, inside": ("{split}/{name}/{number}.npy", "train/unlabelled"),
}


def make_tree(folder, layout, place=None, unlabelled=4):
    """Make a tree of two classes, 8 clouds each, in folder; some unlabelled ones in place."""
    rng = np.random.default_rng(1)
    names = [
        layout.format(name=name, split="test" if number < 2 else "train", number=number)
        for name in ("bowl", "mug")
        for number in range(8)
    ]
    names += [f"{place}/{number}.npy" for number in range(unlabelled)] if place else []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.standard_normal((9, 3)))
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_unlabelled_gives_training_clouds_without_a_label(tmp_path, layout):
    names, place = LAYOUTS[layout]
    train, test = read_source(make_tree(tmp_path / "t", names, place), 8).splits
    assert train.class_names == ("bowl", "mug")
    assert (len(train) - train.labelled, test.labelled) == (4, len(test))
    without, others = read_source(make_tree(tmp_path / "u", names), 8).splits
    known = train.labels != UNLABELLED  # the labelled clouds are those of the tree without it
    np.testing.assert_array_equal(train.points[known], without.points)
    np.testing.assert_array_equal(train.labels[known], without.labels)
    np.testing.assert_array_equal(test.points, others.points)


def test_training_clouds_may_all_be_unlabelled(tmp_path):
    folder = make_tree(tmp_path / "t", "test/{name}/{number}.npy", "train/unlabelled")
    train, test = read_source(folder, 8).splits
    assert (len(train), train.labelled, len(test), test.labelled) == (4, 0, 16, 16)


@pytest.mark.parametrize(
    "layout, place, message",
    [
        ("{split}/{name}/{number}.npy", "test/unlabelled", "measure nothing; move them to .*unlab"),
        ("{name}/{number}.npy", "unlabeled", "class folder unlabeled: rename it to unlabelled"),
        ("{name}/{number}.npy", "Unlabelled", "class folder Unlabelled: rename it to unlabelled"),
        ("{name}/{number}.npy", "unlabelled/lamp", "lamp: is a folder where a cloud is expected"),
    ],
)
def test_a_folder_that_may_mean_unlabelled_is_asked_about(tmp_path, layout, place, message):
    with pytest.raises(DataError, match=message):
        read_source(make_tree(tmp_path / "t", layout, place), 8)


def test_a_stratified_choice_takes_no_unlabelled_cloud_and_else_the_same(splits):
    labels = splits.train.labels
    padded = np.concatenate([labels, np.full(30, UNLABELLED)])
    taken = stratified(padded, 0.25, 3, "validation")
    np.testing.assert_array_equal(taken[:96], stratified(labels, 0.25, 3, "validation"))
    assert not taken[96:].any() and taken.sum() == 24


# training


@pytest.mark.parametrize("engine", ["fused", "textbook"])
def test_a_kd_weight_of_1_reads_no_label(splits, engine):
    config, views = replace(CONFIG, engine=engine), favoured(splits)
    alone = LossConfig(kd_weight=1, self_weight=0)
    one, other = (trained(s, alone, views, config) for s in (splits, train_without(splits)))
    assert same(one, other)
    half = LossConfig(kd_weight=0.5, self_weight=0)
    one, other = (trained(s, half, views, config) for s in (splits, train_without(splits)))
    assert not same(one, other)


def test_labels_alone_need_a_label(splits):
    views = drawn_views(splits.train, 0, AugmentConfig())
    with pytest.raises(UsageError, match="none of the 96 training clouds has a label; learn from"):
        trained(train_without(splits), LABELS, views)
    last = trained(train_without(splits, 4), LABELS, views)
    assert 0 < last.rows[0]["labels"] < 1  # a mean over all clouds, of which one has a loss


def test_so_many_labels_of_each_class_are_kept_by_the_seed(splits):
    clouds, rows = splits.train, np.arange(10, 96)
    config = TrainConfig(labels_per_class=5, seed=3)
    kept = kept_labels(clouds, rows, config, True)
    assert [(kept == label).sum() for label in range(3)] == [5, 5, 5]
    known = kept != UNLABELLED
    np.testing.assert_array_equal(kept[known], clouds.labels[known])
    assert not known[:10].any() and kept.dtype == np.int64
    np.testing.assert_array_equal(kept_labels(clouds, rows, config, True), kept)
    assert (kept_labels(clouds, rows, replace(config, seed=4), True) != kept).any()
    assert kept_labels(clouds, rows, TrainConfig(), True) is clouds.labels
    with pytest.raises(UsageError, match="33 is more than the 32 labelled training clouds of cla"):
        kept_labels(clouds, np.arange(96), TrainConfig(labels_per_class=33), False)


def test_keeping_all_labels_of_each_class_changes_no_bit_and_fewer_do(splits):
    views = favoured(splits)
    every, all_32, five = (
        trained(splits, LossConfig(), views, replace(CONFIG, labels_per_class=n))
        for n in (0, 32, 5)
    )
    assert same(every, all_32) and not same(every, five)
    kept = kept_labels(splits.train, np.arange(96), TrainConfig(labels_per_class=5), False)
    by_hand = Splits(replace(splits.train, labels=kept), splits.test)
    assert same(five, trained(by_hand, LossConfig(), views))


def test_clouds_that_are_held_out_keep_their_labels(splits):
    config = replace(CONFIG, labels_per_class=5, val_fraction=0.25)
    few = trained(splits, LossConfig(), favoured(splits), config)
    learnt, held = split_rows(splits.train.labels, config)
    kept = kept_labels(splits.train, learnt, config, False)
    assert (kept != UNLABELLED).sum() == 15 and (kept[held] == UNLABELLED).all()
    accuracy = few.rows[-1]["val_accuracy"]  # of all 24
    assert accuracy * 24 == pytest.approx(round(accuracy * 24), abs=1e-9)  # one rounding


def files_of(run):
    return [Path(run, name).read_bytes() for name in ("model.h5", "predictions.csv")]


def test_few_labels_are_part_of_the_run_and_resumed_exactly(say, data):
    few = ["train", data, "--labels-only", "--labels-per-class", 5, *QUICK]
    assert say(*few, "--out", "whole")[0] == 0
    assert say(*few, "--out", "cut", "--stop-after", 1)[0] == 0
    code, out, _ = say("train", "--resume", "--out", "cut", "--json", "--quiet")
    assert code == 0 and files_of("cut") == files_of("whole")
    values = json.loads(out)
    assert (values["train_clouds"], values["train_labelled"]) == (96, 15)
    assert read_run("cut")["training"]["labels_per_class"] == 5
    code, _, err = say("train", "--resume", "--out", "cut", "--labels-per-class", 6)
    assert code == 2 and "labels per class is 5 there and 6 here" in err


def test_a_run_from_before_there_was_such_a_choice_goes_on(say, data):
    """Its run.json lacks the key, and its identity is that of run.json as it stands."""
    assert say("train", data, "--labels-only", *QUICK, "--out", "whole")[0] == 0
    assert say("train", data, "--labels-only", *QUICK, "--out", "old", "--stop-after", 1)[0] == 0
    described = read_run("old")
    del described["training"]["labels_per_class"]
    Path("old/run.json").write_text(json.dumps(described))
    checkpoint = read_checkpoint("old/checkpoint.h5")._replace(run_id=run_id_of(described))
    os.remove("old/checkpoint.h5")
    write_checkpoint("old/checkpoint.h5", checkpoint)
    code, _, err = say("train", "--resume", "--out", "old", "--quiet")
    assert (code, err) == (0, "") and files_of("old")[1] == files_of("whole")[1]


# what is told


@pytest.fixture
def few(splits):
    """few.h5: 9 of 96 training clouds and 7 of 33 test clouds are labelled."""
    write_clouds(
        "few.h5", Splits(forgotten(splits.train, *range(9)), forgotten(splits.test, *range(7)))
    )
    return "few.h5"


@pytest.fixture
def none(splits):
    """none.h5: the same clouds, no label at all."""
    write_clouds("none.h5", Splits(forgotten(splits.train), forgotten(splits.test)))
    return "none.h5"


def test_info_says_how_many_clouds_are_labelled(say, data, few):
    assert "labelled" not in say("info", data)[1]
    assert "labelled: 9 of 96 train and 7 of 33 test clouds\n" in say("info", few)[1]
    values = json.loads(say("info", few, "--json")[1])
    assert (values["train_labelled"], values["test_labelled"]) == (9, 7)
    assert (sum(values["train_per_class"]), sum(values["test_per_class"])) == (9, 7)


def test_a_training_says_first_how_many_clouds_are_labelled(say, data, few):
    _, _, err = say("train", few, "--labels-only", "--dry-run")
    assert "of 96 clouds (9 of them labelled)," in err
    assert "accuracy is told on 7 labelled of 33 test clouds" in err
    _, _, err = say("train", few, "--labels-only", "--labels-per-class", 2, "--dry-run")
    assert "of 96 clouds (6 of them labelled)," in err
    assert "labelled" not in say("train", data, "--labels-only", "--dry-run")[2]


def test_accuracy_is_that_of_the_labelled_test_clouds(say, few):
    assert say("train", few, "--labels-only", *QUICK, "--out", "run")[0] == 0
    rows = list(csv.DictReader(Path("run/predictions.csv").read_text().splitlines()))
    assert len(rows) == 33 and all(row["predicted"] for row in rows)
    assert all((row["label"], row["right"]) == ("", "") for row in rows[7:])
    right = [int(row["right"]) for row in rows[:7]]
    code, out, _ = say("eval", "run", few, "--votes", 2, "--json")
    values = json.loads(out)
    assert code == 0 and values["accuracy"] == sum(right) / 7
    assert (values["clouds"], values["labelled"]) == (33, 7)
    assert np.sum(values["confusion"]) == np.sum(values["voted"]["confusion"]) == 7
    assert "33 test clouds of few.h5, 7 of them labelled:" in say("eval", "run", few)[1]


def test_without_a_labelled_test_cloud_there_is_a_sentence_and_no_number(say, data, none):
    assert say("train", data, "--labels-only", *QUICK, "--epochs", 6, "--out", "good")[0] == 0
    code, out, _ = say("eval", "good", none, "--votes", 2)
    assert code == 0 and "no accuracy: no test cloud is labelled" in out
    assert "nan" not in out and "accuracy 0" not in out and "none of them labelled" in out
    values = json.loads(say("eval", "good", none, "--votes", 2, "--json")[1])
    assert values["accuracy"] is values["nll"] is values["voted"]["accuracy"] is None
    assert (values["labelled"], values["class_accuracy"]) == (0, {})

    code, out, err = say("record", none, "--teacher", "good", "--views", 2)
    assert code == 0 and "nothing can tell it from a guess" in err
    assert "recorded views unknown, as no cloud is labelled" in out
    code, out, _ = say("audit", none, "--record", "record.h5")
    assert code == 0 and "no cloud is labelled" in out
    assert say("verify", "record.h5", none, "--teacher", "good")[0] == 0

    fits = ["train", none, "--record", "record.h5", "--epochs", 2, "--model", "8-16:8"]
    code, out, err = say(*fits, "--kd-weight", 1, "--out", "run")
    assert code == 0 and "(no label is read)" in err and "none of the 33 test clouds" in err
    assert "no accuracy: no test cloud is labelled" in out
    assert "test_accuracy" not in Path("run/metrics.jsonl").read_text()
    values = json.loads(say("train", "--resume", "--out", "run", "--json")[1])
    assert values["test_accuracy"] is values["best_test_accuracy"] is None
    code, _, err = say("train", none, "--record", "record.h5", "--labels-only", "--dry-run")
    assert code == 2 and "none of the 96 training clouds has a label" in err


# the teacher


def by_name(clouds, labels):
    """A teacher that knows the labels (N,) of clouds by the order of their x coordinates."""
    ranks = {
        points[:, 0].argsort().tobytes(): k for points, k in zip(clouds.points, labels, strict=True)
    }

    def logits_of(points):
        return 5 * np.eye(3, dtype=np.float32)[[ranks[p[:, 0].argsort().tobytes()] for p in points]]

    return logits_of


def test_a_teacher_is_judged_by_the_labelled_clouds_alone(tmp_path, splits):
    """Right on 20 labelled clouds and wrong on the rest, or the other way round."""
    few, truth = forgotten(splits.train, *range(20)), splits.train.labels
    right = np.where(np.arange(96) < 20, truth, (truth + 1) % 3)
    wrong = np.where(np.arange(96) < 20, (truth + 1) % 3, truth)
    done = record(Recording(few, "right", str(tmp_path / "r.h5"), 2), by_name(few, right))
    assert (done.teacher_accuracy, done.labelled) == (1, 20)
    with pytest.raises(DataError, match="0 of 20 training clouds right.*no better than chance"):
        record(Recording(few, "wrong", str(tmp_path / "w.h5"), 2), by_name(few, wrong))
    with RecordReader(str(tmp_path / "r.h5")) as reader:
        audited = audit_teacher(reader, few.labels, LossConfig())
    assert (audited.accuracy, audited.labelled, audited.clouds) == ([1, 1], 20, 96)


def test_the_trial_of_a_teacher_begins_with_labelled_clouds(tmp_path, splits, monkeypatch):
    monkeypatch.setattr("minipc.record.recorder.TRIAL", 32)
    few, truth = forgotten(splits.train, *range(64, 96)), splits.train.labels
    with pytest.raises(DataError, match="0 of 32 training clouds right"):
        record(Recording(few, "wrong", str(tmp_path / "w.h5"), 1), by_name(few, (truth + 1) % 3))
