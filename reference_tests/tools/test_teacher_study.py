"""The study of teachers works: nothing is computed twice, and the test split is never opened."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from minipc.data.clouds import Clouds, Splits, write_clouds
from reference_tests.tools import teacher_study


@pytest.fixture
def data(folder):
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    stretch = np.array([[1, 1, 0.1], [0.1, 0.1, 1], [0.6, 0.6, 0.6]])[labels]
    points = rng.standard_normal((240, 24, 3)) * stretch[:, None]
    train = Clouds(points.astype(np.float32), labels, ("flat", "long", "round"), "z", "none")
    # A test split of one class: whoever measured on it would be right always or never.
    write_clouds(
        "clouds.h5",
        Splits(train, Clouds(train.points[:3], np.zeros(3, int), train.class_names, "z", "none")),
    )
    return "clouds.h5"


def study(monkeypatch, data, *words):
    arguments = [
        "study",
        data,
        "--points",
        "16",
        "--seeds",
        "1",
        "--views",
        "2",
        "--length",
        "0.02",
        *words,
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    teacher_study.main()


def test_the_study_trains_every_arm_once_and_goes_on_where_it_stopped(data, monkeypatch, capsys):
    study(monkeypatch, data, "--teachers", "base", "three teachers")
    lines = Path("study/results.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    names = [run["run"] for run in runs]
    assert len(names) == len(set(names)) == 3 + 2 + 2 + len(teacher_study.LOSSES) + 2
    assert (
        sum(name.startswith("teacher") for name in names) == 3
    )  # the ensemble takes the base teacher as it is
    assert "tiny, labels alone, smoothing 0.1, seed 0" in names
    records = [run for run in runs if run["run"].startswith("record of")]
    assert len(records) == 2 and all(0 < run["right_on_its_views"] <= 1 for run in records)
    assert all(
        0 <= run["held_out"] <= 1
        and run["held_out"] * 48 == pytest.approx(round(run["held_out"] * 48))
        for run in runs
        if run not in records
    )  # of 48 held-out clouds
    capsys.readouterr()
    study(monkeypatch, data, "--teachers", "base", "three teachers")
    assert capsys.readouterr().out == ""
    assert Path("study/results.jsonl").read_text().splitlines() == lines


def test_held_out_clouds_are_of_the_training_split(data):
    splits = teacher_study.held_out(data, 16)
    assert len(splits.train) == 192 and len(splits.test) == 48
    assert np.bincount(splits.test.labels).tolist() == [16, 16, 16]
    assert splits.train.points.shape[1:] == (16, 3)
