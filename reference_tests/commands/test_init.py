"""`minipc train --init`: from given weights, of the same sizes and the same kind of data."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minipc.data.clouds import Splits, read_clouds, write_clouds
from minipc.models.file import model_id, new_model, read_model, write_model
from minipc.models.pointnet import ModelConfig
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.runs.config import read_config
from minipc.settings import TrainConfig
from minipc.verbs import train as verb

QUICK = "--labels-only --model 8-16:8 --batch-size 16 --warmup-steps 2 --threads 1".split()


@pytest.fixture
def first(data, say):
    """The folder of a run of one epoch on data, a PointNet 8-16:8."""
    assert say("train", data, *QUICK, "--epochs", 1, "--out", "first")[0] == 0
    return "first"


def test_a_run_at_a_rate_of_almost_zero_stays_at_the_weights_it_began_from(data, first, say):
    begin = ("--init", first, "--epochs", 1, "--lr", "1e-30", "--seed", 7)
    code, out, err = say("train", data, *QUICK, *begin, "--out", "second", "--json")
    assert code == 0 and f"begins from: {first}/model.h5" in err
    one, two = read_model("first/model.h5"), read_model("second/model.h5")
    for name, value in one.params.items():
        # a step of 1e-30 changes no float32 weight but one that is zero
        np.testing.assert_allclose(two.params[name], value, rtol=0, atol=1e-25, err_msg=name)
    described = json.loads(Path("second/run.json").read_text())
    assert described["init"] == {"file": "first/model.h5", "model_id": model_id(one)}
    assert json.loads(out)["init"] == "first/model.h5"
    kept = read_model("second/init.h5")
    assert model_id(kept) == model_id(one)


def test_a_training_that_begins_from_an_unfinished_one_says_so(data, first, say):
    part = ("--epochs", 2, "--stop-after", 1, "--out", "part")
    assert say("train", data, *QUICK, *part)[0] == 0
    for beginning, warned in (("part", True), (first, False)):
        code, _, err = say("train", data, *QUICK, "--init", beginning, "--dry-run")
        assert code == 0 and ("part/model.h5: only 1 of its 2 epochs are done" in err) is warned


def test_the_statistics_to_begin_from_are_those_of_the_model(data, first, say):
    model = read_model("first/model.h5")
    stats = {name: value + 1000 for name, value in model.stats.items()}
    write_model("far.h5", model._replace(stats=stats))
    say("train", data, *QUICK, "--init", "far.h5", "--epochs", 1, "--out", "second")
    found = read_model("second/model.h5").stats["head0.mean"]
    # six batches with momentum 0.1 leave 0.9^6 = 0.53 of a thousand
    np.testing.assert_allclose(found, 0.9**6 * 1000, atol=20)


class Killed(Exception):
    """Not an error of ours: as if the process had ended."""


def test_a_run_killed_in_its_first_epoch_resumes_without_the_file_that_it_began_from(
    data, first, say
):
    loss, config = LossConfig(**LABELS_ALONE), TrainConfig(epochs=1, batch_size=16, warmup_steps=2)
    choices = dict(data=data, labels_only=True, threads=1)
    verb.train("8-16:8", loss, config, init="first", out="whole", **choices)

    def dying(done, total, text):
        if done == 3 and text.startswith("epoch"):
            raise Killed

    with pytest.raises(Killed):
        verb.train("8-16:8", loss, config, init="first", out="part", progress=dying, **choices)
    os.rename("first", "elsewhere")
    verb.resume("part", threads=1)
    one, two = read_model("whole/model.h5"), read_model("part/model.h5")
    assert model_id(one) == model_id(two)


def test_a_run_does_not_resume_from_other_weights_than_those_it_began_from(data, first, say):
    loss, config = LossConfig(**LABELS_ALONE), TrainConfig(epochs=1, batch_size=16, warmup_steps=2)

    def dying(done, total, text):
        if text.startswith("epoch"):
            raise Killed

    with pytest.raises(Killed):
        verb.train(
            "8-16:8", loss, config, data=data, labels_only=True, init=first, out="part",
            progress=dying, threads=1,
        )  # fmt: skip
    model = read_model("part/init.h5")
    write_model("part/init.h5", model._replace(params={k: 2 * v for k, v in model.params.items()}))
    code, _, err = say("train", "--resume", "--out", "part", "--quiet")
    assert code == 3 and "part/init.h5: is not the model that run.json names" in err
    os.unlink("part/init.h5")
    assert say("train", "--resume", "--out", "part", "--quiet")[0] == 3


@pytest.mark.parametrize(
    "change, what",
    [
        (dict(shared=(8, 17)), "its shared is (8, 17), but the model to train has (8, 16)"),
        (dict(head=()), "its head is (), but the model to train has (8,)"),
        (dict(eps=1e-3), "its eps is 0.001"),
    ],
)
def test_a_model_of_other_sizes_is_refused_and_leaves_no_folder(data, first, say, change, what):
    config = replace(ModelConfig((8, 16), (8,), 3), **change)
    write_model("other.h5", new_model(config, read_clouds(data).train.described, 0))
    code, _, err = say("train", data, *QUICK, "--init", "other.h5", "--out", "second")
    assert code == 3 and "other.h5: " + what in err and len(err.splitlines()) == 1
    assert not os.path.exists("second")


def test_a_model_of_other_data_is_refused(data, first, say):
    turned = Splits(*(replace(split, up_axis="y") for split in read_clouds(data)))
    write_clouds("turned.h5", turned)
    code, _, err = say("train", "turned.h5", *QUICK, "--init", first, "--out", "second")
    assert code == 3 and "up axis is y, but first/model.h5 has z" in err


def test_options_of_beginning_and_averaging_that_have_no_use_are_refused(data, first, say):
    for arguments, what in {
        ("--resume", "--out", first, "--init", first): "--resume has no use for --init",
        ("--init", first): "--init needs DATA or --record",
        (data, "--labels-only", "--average-decay", "0.9"): "goes with --average ema, not none",
        (data, "--labels-only", "--average", "ema", "--average-epochs", "3"): "--average last",
    }.items():
        code, _, err = say("train", *arguments)
        assert code == 2 and what in err, (arguments, err)


def test_a_run_from_before_averaging_and_beginnings_is_still_read(data, first, say):
    path = Path("first/run.json")
    described = json.loads(path.read_text())
    del described["init"]
    for name in ("average", "average_decay", "average_epochs"):
        del described["training"][name]
    path.write_text(json.dumps(described))
    config = read_config(first)
    assert config.init is None and config.training.average == "none"


def test_averaged_weights_are_said_in_the_metrics_and_evaluate_as_measured(data, say):
    average = ("--average", "last", "--average-epochs", 2, "--epochs", 3)
    code, out, _ = say("train", data, *QUICK, *average, "--out", "mean", "--json")
    assert code == 0 and json.loads(out)["weights"] == "last"
    rows = [json.loads(line) for line in Path("mean/metrics.jsonl").read_text().splitlines()]
    assert [row["weights"] for row in rows] == ["last"] * 3
    code, out, _ = say("info", "mean")
    assert code == 0 and "weights last, test_accuracy" in out
    code, out, _ = say("eval", "mean", "--json")
    assert json.loads(out)["accuracy"] == rows[-1]["test_accuracy"]
    assert json.loads(out)["nll"] == rows[-1]["test_nll"]
