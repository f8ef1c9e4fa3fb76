"""A second model goes the whole way by its name alone: no command knows what it is made of."""

import json

import numpy as np
import pytest

from minipc.models.model import MODELS
from minipc.record.reader import RecordReader
from minipc.verbs import train as verb
from reference_tests.mathematics import toy_model


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", toy_model)


def ok(say, *line):
    """Return the JSON object of a command that must succeed."""
    code, out, err = say(*line, "--json", "--quiet")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_it_trains_records_verifies_replays_evaluates_and_predicts(toy, data, say, folder):
    teach = ["--model", "toy-wide", "--labels-only", "--epochs", "4", "--batch-size", "8"]
    trained = ok(say, "train", data, *teach, "--lr", "0.01", "--out", "teacher")
    assert trained["parameters"] == 3 * 12 + 2 * 12 + 12 * 20 + 2 * 20 + 20 * 3 + 3
    recorded = ok(say, "record", data, "--teacher", "teacher", "--views", "2", "--force")
    verified = ok(say, "verify", "record.h5", data, "--teacher", "teacher", "--sample", "all")
    assert verified["passed"] and verified["bitwise"] and verified["different"] == 0
    student = ["--record", "record.h5", "--model", "toy", "--epochs", "3", "--batch-size", "8"]
    student += ["--self-weight", "0.2"]
    whole = ok(say, "train", data, *student, "--out", "whole")
    ok(say, "train", data, *student, "--out", "parts", "--stop-after", "1")
    ok(say, "train", "--resume", "--out", "parts")
    assert (folder / "whole/model.h5").read_bytes() == (folder / "parts/model.h5").read_bytes()
    evaluated = ok(say, "eval", "whole", data)
    assert evaluated["accuracy"] == whole["test_accuracy"]
    assert ok(say, "info", "whole/model.h5")["architecture"] == "toy"
    assert "toy 4-5-6" in say("info", "whole/model.h5")[1]
    assert recorded["views"] == 2


def test_its_teacher_reads_groups_of_the_stored_clouds_under_every_view(toy, data, say, folder):
    from minipc.data.augment import Params, apply
    from minipc.data.clouds import read_clouds
    from minipc.models.file import read_model
    from minipc.models.inputs import Inputs

    teach = ["--model", "toy", "--labels-only", "--epochs", "1", "--batch-size", "8"]
    ok(say, "train", data, *teach, "--out", "teacher")
    ok(
        say,
        "record",
        data,
        "--teacher",
        "teacher",
        "--views",
        "2",
        "--logits",
        "float32",
        "--force",
    )
    points, model = read_clouds(data).train.points, read_model("teacher/model.h5")
    groups = toy_model.prepare(model.config, points)
    logits_of = toy_model.evaluator(model.params, model.stats, model.config)
    with RecordReader("record.h5") as reader:
        for view in range(2):
            scale, shift, logits = reader.view(view)
            applied = apply(points, Params(scale, shift))
            np.testing.assert_array_equal(logits_of(Inputs(applied, groups)), logits)
            wrong = toy_model.prepare(model.config, applied)  # slices of the augmented cloud
            assert (logits_of(Inputs(applied, wrong)) != logits).any()


def test_a_run_of_before_there_were_architectures_is_a_pointnet(data, say, folder):
    ok(say, "train", data, "--labels-only", "--epochs", "1", "--batch-size", "8", "--out", "run")
    described = json.loads((folder / "run/run.json").read_text())
    assert described.pop("architecture") == "pointnet"
    (folder / "run/run.json").write_text(json.dumps(described))
    assert verb.read_config("run").model == verb.sizes("tiny", 3)


def test_a_predicted_file_is_grouped_on_the_fly(toy, data, say, folder):
    from minipc.data.clouds import read_clouds

    teach = ["--model", "toy", "--labels-only", "--epochs", "1", "--batch-size", "8"]
    ok(say, "train", data, *teach, "--out", "run")
    np.save("cloud.npy", read_clouds(data).test.points[0])
    (found,) = ok(say, "predict", "run", "cloud.npy")["predictions"]
    assert found["class"] in read_clouds(data).test.class_names
