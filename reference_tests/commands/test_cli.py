"""The command line: the bare commands, JSON, and one line for every mistake."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from minipc.data.clouds import Clouds, Splits, read_clouds, write_clouds
from minipc.distil.evaluate import predict
from minipc.runs.config import read_config
from minipc.settings import LossConfig

QUICK = ("--epochs", 4, "--model", "8-16:8", "--lr", 0.01, "--warmup-steps", 4, "--quiet")


def test_bare_record_works_in_an_empty_folder(folder, say, small_shapes):
    code, out, err = say("record", "--views", 2)
    assert code == 0, err
    assert {"shapes.h5", "teacher", "record.h5"} == set(os.listdir(folder))
    assert out.endswith("\nnext: minipc train\n") and "teacher accuracy" in out
    code, out, err = say("record", "--views", 2)
    assert code == 0 and "recorded already" in err


def interrupt_in_epoch(number, patch):
    """Make training end as by Ctrl-C after the steps of an epoch, before its checkpoint."""
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return predict(*arguments)

    patch.setattr("minipc.distil.train.predict", interrupted)


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_teacher_whose_training_was_interrupted_is_trained_to_its_end(
    folder, say, small_shapes, monkeypatch, epoch
):
    (folder / "teacher").mkdir()
    (folder / "teacher/notes.txt").write_text("mine")
    code, _, err = say("record", "--views", 1)
    assert code == 3 and "no run of ours" in err  # somebody's folder: neither used nor renamed
    (folder / "teacher/notes.txt").unlink()  # an empty one is as good as none
    with monkeypatch.context() as patch:
        interrupt_in_epoch(epoch, patch)
        code, _, err = say("record", "--views", 1)
        assert code == 130 and "again" in err
    code, _, err = say("record", "--views", 1)
    assert code == 0 and (f"teacher: continues after epoch {epoch - 1}" in err) == (epoch > 1)
    whole = (folder / "teacher/model.h5").read_bytes()
    for path in (folder / "teacher").iterdir():
        path.unlink()
    (folder / "teacher").rmdir()
    assert say("record", "--views", 1, "--out", "other.h5")[0] == 0
    assert (folder / "teacher/model.h5").read_bytes() == whole


def test_bare_train_is_a_study_of_few_labels_that_goes_on_after_an_interruption(
    folder, say, small_shapes
):
    assert say("record", "--views", 3, "--quiet")[0] == 0
    assert say("train", "--views", "1:3", "--epochs", 2, "--dry-run")[0] == 0
    assert not os.path.exists("study")
    # as if it had been interrupted in its first run
    few = ("--record", "record.h5", "--views", "1:3", "--epochs", 2, "--labels-per-class", 5)
    os.mkdir("study")
    words = ("train", *few, "--labels-only", "--stop-after", 1, "--out", "study/labels-0")
    assert say(*words, "--quiet")[0] == 0
    code, out, err = say("train", "--views", "1:3", "--epochs", 2)
    assert code == 0 and "study: 6 runs, 0 finished" in err, err
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["arm", "labels", "record"]

    values = json.loads((folder / "study/compare.json").read_text())
    assert (values["reference"], values["seeds"]) == ("labels", [0, 1, 2])
    for arm in values["arms"]:
        for seed, run in enumerate(arm["runs"]):
            config = read_config(run)
            assert (config.training.seed, config.training.labels_per_class) == (seed, 5)
            assert config.views == (1, 3) and config.labels_only == (arm["arm"] == "labels")
            assert config.loss.kd_weight == (0 if config.labels_only else LossConfig.kd_weight)

    # each run is the one that its own command makes, and the finished study is told again
    assert say("train", *few, "--seed", 1, "--out", "alone", "--quiet")[0] == 0
    one, two = (folder / f"{name}/predictions.csv" for name in ("alone", "study/record-1"))
    assert one.read_bytes() == two.read_bytes()
    code, again, err = say("train", "--views", "1:3", "--epochs", 2)
    assert (code, again) == (0, out) and "6 finished" in err, err
    code, _, err = say("train", "--views", "1:3", "--epochs", 3)
    assert (code, err.count("\n")) == (2, 1) and "training.epochs" in err


def test_bare_train_refuses_what_a_study_cannot_do(folder, say, small_shapes):
    assert say("record", "--views", 3, "--quiet")[0] == 0
    for words, told in (
        (("--views", "0:4"), "0 <= A < B <= 3"),
        (("--self-record", "record.h5", "--self-weight", 0.1), "--self-target record"),
        (("--stop-after", 1), "--stop-after needs DATA or --record FILE"),
        (("--init", "teacher"), "--init needs DATA or --record FILE"),
        (("--resume",), "there is no run here"),
        (("--labels-per-class", 9), "labels per class: 9 is more than the 8"),
    ):
        for dry in ((), ("--dry-run",)) if words[0] != "--resume" else ((),):
            code, _, err = say("train", *words, *dry, "--quiet")
            assert (code, err.count("\n")) == (2, 1) and told in err, err
    assert not os.path.exists("study/labels-0")


@pytest.mark.parametrize(
    "wrong, code",
    [
        (["--views", 0], 2),
        (["--seed", -1], 2),
        (["--out", "no/where.h5"], 3),
        (["--out", "."], 3),
    ],
)
def test_bare_record_refuses_mistakes_before_it_trains_a_teacher(folder, say, wrong, code):
    found, _, err = say("record", *wrong)
    assert (found, err.count("\n")) == (code, 1)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("words", [[], ["data"]])
def test_a_group_without_a_verb_shows_its_help(say, words):
    code, out, err = say(*words)
    assert (code, err) == (0, "") and out.startswith("Usage: minipc") and out.count("\n") > 5


def test_training_needs_the_record_and_never_the_teacher(data, say, folder):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 2, "--quiet")[0] == 0
    for path in (folder / "teacher").iterdir():
        path.unlink()
    assert say("train", "--record", "record.h5", *QUICK)[0] == 0


def test_eval_finds_its_data_by_name_and_refuses_other_points(data, say, folder):
    assert say("train", data, "--labels-only", *QUICK)[0] == 0
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")
    assert say("eval", "../run")[0] == 0  # beside the run folder
    os.chdir(folder)
    splits = read_clouds(data)
    os.remove(data)
    reversed_points = (
        Clouds(c.points[:, ::-1].copy(), c.labels, c.class_names, "z", "none") for c in splits
    )
    write_clouds(data, Splits(*reversed_points))
    code, _, err = say("eval", "run")
    assert code == 3 and "holds other training points" in err


def test_json_holds_the_promised_keys(folder, say, small_shapes):
    code, out, _ = say("record", "--views", 2, "--json", "--quiet")
    assert code == 0
    assert set(json.loads(out)) >= {
        "out",
        "run_id",
        "clouds",
        "views",
        "classes",
        "bytes",
        "bytes_per_view",
        "teacher_accuracy",
        "clouds_per_second",
        "resumed_shards",
        "max_kl_of_rounding",
    }
    words = ("train", "--record", "record.h5", "--epochs", 2, "--json", "--quiet")
    code, out, err = say(*words)
    assert (code, err) == (0, "")
    values = json.loads(out)
    wanted = {
        "model",
        "parameters",
        "macs_per_cloud",
        "epochs",
        "seed",
        "test_accuracy",
        "test_mean_class_accuracy",
        "best_test_accuracy",
        "seconds",
        "out",
    }
    assert wanted <= set(values) and not values["labels_only"]
    assert values["best_test_accuracy"] >= values["test_accuracy"]


def test_the_four_commands_on_users_data(data, say):
    code, _, err = say("train", data, "--labels-only", "--out", "teacher", *QUICK)
    assert code == 0, err
    code, out, err = say("record", data, "--teacher", "teacher", "--views", 3, "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["views"] == 3
    code, out, err = say("train", "--record", "record.h5", "--self-weight", 0.2, "--json", *QUICK)
    assert code == 0, err
    assert json.loads(out)["out"] == "run" and json.loads(out)["record"] == "record.h5"
    for target in ("snapshot", "history"):
        negative = ("--record", "record.h5", "--self-weight", 0.2, "--self-target", target)
        code, _, err = say("train", data, *negative, *QUICK)
        assert code == 0, err
    code, out, err = say("train", "--record", "record.h5", "--labels-only", *QUICK)
    assert code == 0, err
    assert sorted(os.listdir()) == [
        "clouds.h5",
        "record.h5",
        "run",
        "run-2",
        "run-3",
        "run-4",
        "teacher",
    ]
    code, out, err = say("eval", "run", "--json")
    assert code == 0, err
    with open("run/metrics.jsonl") as file:
        last = json.loads(file.read().splitlines()[-1])
    assert json.loads(out)["accuracy"] == last["test_accuracy"]
    code, out, _ = say("eval", "run/model.h5", data)
    assert code == 0 and "mean class accuracy" in out
    with open("run/run.json") as file:
        described = json.load(file)
    assert (
        described["loss"]["self_weight"] == 0.2 and described["self_target"]["kind"] == "snapshot"
    )


def test_run_json_repeats_the_run(data, say):
    say("train", data, "--labels-only", "--seed", 3, "--out", "one", *QUICK)
    with open("one/run.json") as file:
        training = json.load(file)["training"]
    say("train", data, "--labels-only", "--seed", training["seed"], "--out", "two", *QUICK)

    def metrics(run):
        with open(f"{run}/metrics.jsonl") as file:
            return [{**json.loads(line), "train_seconds": 0} for line in file]

    assert metrics("one") == metrics("two")
    with open("one/model.h5", "rb") as one, open("two/model.h5", "rb") as two:
        assert one.read() == two.read()


def test_a_run_stopped_after_two_epochs_resumes_with_its_own_settings_alone(data, say, folder):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 3, "--quiet")[0] == 0
    settings = (
        "--record",
        "record.h5",
        "--self-weight",
        0.2,
        "--self-target",
        "ema",
        "--views",
        "1:3",
        *QUICK,
    )
    assert say("train", *settings, "--out", "whole")[0] == 0
    code, out, err = say("train", *settings, "--stop-after", 2)
    assert code == 0 and "stopped after epoch 2 of 4" in out and "--resume --out run" in out, err
    assert (
        say("record", data, "--teacher", "teacher", "--views", 4, "--quiet")[0] == 0
    )  # more views, later
    before = snapshot(folder)
    for wrong in (
        ("--epochs", 6),
        ("--seed", 1),
        ("--self-target", "history"),
        ("--views", "0:3"),
        ("--model", "tiny"),
        ("--labels-only",),
        ("--ema-decay", 0.5),
        ("--kd-weight", 0.8),
        ("--val-fraction", 0.1),
    ):
        code, out, err = say("train", "--resume", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1) and "leave the option out" in err, (
            wrong,
            err,
        )
    assert snapshot(folder) == before
    code, out, err = say(
        "train", "--resume", *settings
    )  # the very command again is no contradiction
    assert code == 0, err
    for name in ("model.h5", "predictions.csv"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    code, _, err = say("train", "--resume", "--out", "run")
    assert code == 0 and "all 4 epochs are done" in err  # finished: nothing is trained


def test_a_run_that_is_not_there_or_whose_files_changed_does_not_resume(data, say, folder):
    code, _, err = say("train", "--resume")
    assert code == 2 and "there is no run here" in err
    code, _, err = say("train", "--resume", "--out", "none")
    assert code == 3 and "none" in err and err.count("\n") == 1
    assert say("train", data, "--labels-only", "--stop-after", 2, *QUICK)[0] == 0
    splits = read_clouds(data)
    os.rename(data, "moved.h5")
    code, _, err = say("train", "--resume")
    assert code == 3 and "clouds.h5 is not beside it and not here; pass DATA" in err
    other = Splits(
        *(Clouds(c.points[:, ::-1].copy(), c.labels, c.class_names, "z", "none") for c in splits)
    )
    write_clouds("other.h5", other)
    code, _, err = say("train", "other.h5", "--resume")
    assert (
        code == 3 and "is not the data that run began with, other test points, train points" in err
    )
    code, _, err = say("train", "moved.h5", "--resume", "--record", "moved.h5")
    assert code == 2 and "has no use for --record" in err
    assert say("train", "moved.h5", "--resume")[0] == 0
    checkpoint = (folder / "run/checkpoint.h5").read_bytes()
    (folder / "run/checkpoint.h5").write_bytes(checkpoint[:-50])
    code, _, err = say("train", "moved.h5", "--resume")
    assert code == 3 and "checkpoint.h5: is damaged" in err


def test_an_earlier_student_from_a_second_record_is_a_self_target(data, say, folder):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 2, "--quiet")[0] == 0
    assert say("train", "--record", "record.h5", "--out", "first", *QUICK)[0] == 0
    assert (
        say("record", data, "--teacher", "first", "--views", 2, "--out", "self.h5", "--quiet")[0]
        == 0
    )
    negative = ("train", "--record", "record.h5", "--self-weight", 0.2, "--self-target", "record")
    code, _, err = say(
        *negative, "--self-record", "self.h5", "--stop-after", 2, "--out", "second", *QUICK
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (folder / "second/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["self_distillation"] > 0  # from the first step on
    assert say("train", "--resume", "--out", "second")[0] == 0
    code, _, err = say(*negative, "--out", "third", *QUICK)
    assert code == 2 and "--self-record FILE" in err
    seeded = (
        "record",
        data,
        "--teacher",
        "first",
        "--views",
        2,
        "--seed",
        1,
        "--out",
        "seeded.h5",
        "--quiet",
    )
    assert say(*seeded)[0] == 0
    code, _, err = say(*negative, "--self-record", "seeded.h5", "--out", "third", *QUICK)
    assert code == 3 and "not in its teacher alone: seed is 1 there and 0 here" in err
    words = ("record", data, "--teacher", "first", "--views", 1, "--out", "few.h5", "--quiet")
    assert say(*words)[0] == 0
    for dry in ((), ("--dry-run",)):  # a dry run says what the run would
        code, _, err = say(*negative, "--self-record", "few.h5", "--out", "third", *QUICK, *dry)
        assert code == 2 and "few.h5 has 1 views, expected 2" in err and "--views 0:1" in err
    assert not os.path.exists("third")


def test_views_of_a_record_can_be_chosen(data, say, folder):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 3, "--quiet")[0] == 0
    assert say("train", "--record", "record.h5", "--views", "2:3", "--out", "one", *QUICK)[0] == 0
    assert json.loads((folder / "one/run.json").read_text())["views"] == [2, 3]
    for wrong, message in (
        ("2:4", "0 <= A < B <= 3"),
        ("1:1", "0 <= A < B"),
        ("4", "B <= 3"),
        ("all", "is not A:B"),
        ("-1:2", "0 <= A"),
    ):
        code, _, err = say(
            "train", "--record", "record.h5", f"--views={wrong}", "--out", "two", *QUICK
        )
        assert (
            code == 2 and message in err and err.count("\n") == 1 and not os.path.exists("two")
        ), err
    assert say("train", "--record", "record.h5", "--views", 2, "--out", "first-two", *QUICK)[0] == 0
    assert json.loads((folder / "first-two/run.json").read_text())["views"] == [0, 2]
    code, _, err = say("train", data, "--labels-only", "--views", "0:1", *QUICK)
    assert code == 2 and "add --record FILE" in err


def test_a_dry_run_of_training_says_what_would_be_done_and_writes_nothing(
    data, say, folder, small_shapes
):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 2, "--quiet")[0] == 0
    before = snapshot(folder)
    for arguments in ((), (data, "--labels-only"), ("--record", "record.h5", "--self-weight", 0.2)):
        code, out, err = say("train", *arguments, "--dry-run", "--batch-size", 16)
        assert code == 0 and "nothing was written" in out and "loss = " in err, err
    code, _, err = say("train", data, "--labels-only", "--dry-run", "--out", "teacher")
    assert code == 2 and "exists already" in err
    code, _, err = say("train", data, "--labels-only", "--dry-run", "--batch-size", 500)
    assert code == 2 and "500 is more than" in err
    assert snapshot(folder) == before


def test_a_validation_split_chooses_the_best_model_and_both_are_reported(data, say, folder):
    code, out, err = say("train", data, "--labels-only", "--val-fraction", 0.25, *QUICK)
    assert code == 0 and "is best on the validation clouds" in out and "best.h5" in out, err
    code, out, _ = say("train", data, "--labels-only", "--val-fraction", 0.25, "--json", *QUICK)
    chosen = json.loads(out)["chosen"]
    rows = [json.loads(line) for line in (folder / "run-2/metrics.jsonl").read_text().splitlines()]
    assert chosen["val_accuracy"] == max(row["val_accuracy"] for row in rows)
    code, out, _ = say("eval", "run-2/best.h5", "--json")
    assert (
        json.loads(out)["accuracy"]
        == chosen["test_accuracy"]
        == rows[chosen["epoch"] - 1]["test_accuracy"]
    )


def test_eval_tells_calibration_votes_and_agreement(data, say):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("train", data, "--labels-only", "--seed", 1, *QUICK)[0] == 0
    code, plain, _ = say("eval", "run", "--json")
    assert code == 0 and "voted" not in json.loads(plain)
    code, out, _ = say("eval", "run", "--votes", 4, "--teacher", "teacher", "--json")
    values = json.loads(out)
    assert code == 0 and values["accuracy"] == json.loads(plain)["accuracy"]
    assert values["voted"]["votes"] == 4 and 0 <= values["voted"]["accuracy"] <= 1
    assert (
        0 < values["nll"] < 5 and 0 <= values["ece"] <= 1 and 0 < values["teacher_agreement"] <= 1
    )
    assert json.loads(say("eval", "run", "--teacher", "run", "--json")[1])["teacher_agreement"] == 1
    code, out, _ = say("eval", "run", "--votes", 4, "--teacher", "teacher")
    for text in (
        "accuracy",
        "mean class accuracy",
        "calibration error",
        "voting over 4 views",
        "agreement with",
    ):
        assert text in out


def test_data_make_and_info_describe_the_same_file(folder, say, small_shapes):
    code, made, _ = say("data", "make", "-o", "s.h5", "--seed", 1, "--json")
    assert code == 0
    code, info, _ = say("data", "info", "s.h5", "--json")
    assert code == 0 and json.loads(made).items() <= json.loads(info).items()
    assert json.loads(info)["classes"] == len(read_clouds("s.h5").train.class_names) >= 12
    code, out, _ = say("data", "info", "s.h5")
    assert code == 0 and "chair" in out


def snapshot(folder):
    """Return {path: content} of every regular file below folder, other names without content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_cupy_without_a_device_is_exit_5_with_the_remedy(data, say, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "cupy", None
    )  # import cupy fails, as where it is not installed
    code, out, err = say("train", data, "--labels-only", "--backend", "cupy")
    assert (code, out) == (5, "")
    assert "gpu12" in err and "--backend numpy" in err and err.count("\n") == 1
    assert not os.path.exists("run")


def test_cupy_with_a_driver_that_fails_is_exit_5_and_auto_takes_numpy(
    data, say, fake_cupy, monkeypatch
):
    def no_device():
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", no_device)
    code, _, err = say("train", data, "--labels-only", "--backend", "cupy")
    assert code == 5 and "no CUDA-capable device" in err
    assert say("train", data, "--labels-only", "--backend", "auto", *QUICK)[0] == 0


@pytest.mark.parametrize("model", ["8-16:8", "4,6/3:8+,4/3:8-8/2:6,12+mean:8"])
def test_the_whole_way_runs_on_a_device(data, say, fake_cupy, model):
    quick = (*QUICK, "--model", model, "--backend", "cupy")
    assert say("train", data, "--labels-only", "--out", "teacher", *quick)[0] == 0
    for verb, *words in (
        ("record", data, "--teacher", "teacher", "--views", 2),
        ("verify", "record.h5", "--teacher", "teacher"),
    ):
        code, out, err = say(verb, *words, "--backend", "cupy", "--quiet")
        assert code == 0, err
    code, out, err = say("train", "--record", "record.h5", "--self-weight", 0.2, *quick)
    assert code == 0, err
    assert say("eval", "run", "--backend", "cupy")[0] == 0
    with open("run/run.json") as file:
        assert json.load(file)["provenance"]["device"] == "fake"


def test_version_names_what_it_stands_on(say):
    code, out, _ = say("--version")
    assert code == 0
    for name in ("minipc", "Python", "NumPy", "SciPy", "h5py", "click", "CuPy"):
        assert name in out


@pytest.mark.parametrize("verb", [[], ["record"], ["train"], ["eval"], ["data"], ["data", "pack"]])
def test_help_is_there_for_every_verb(say, verb):
    code, out, _ = say(*verb, "--help")
    assert code == 0 and out.startswith("Usage: minipc")


def test_the_command_line_asks_blas_for_one_thread_before_numpy_is_loaded():
    code = (
        "import os, sys\nfrom minipc.cli import main\nassert 'numpy' not in sys.modules\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'], os.environ['OMP_NUM_THREADS'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["1", "1"]
    kept = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"OMP_NUM_THREADS": "2"},
    )
    assert kept.stdout.split() == ["1", "2"]


def test_a_run_resumes_on_its_own_test_split_classes_and_description_alone(data, say, folder):
    assert say("train", data, "--labels-only", "--stop-after", 2, *QUICK)[0] == 0
    train, test = read_clouds(data)
    changed = {
        "test points": (train, replace(test, points=test.points[:, ::-1].copy())),
        "test labels": (train, replace(test, labels=(test.labels + 1) % 3)),
        "class names": [replace(clouds, class_names=("x", "y", "q")) for clouds in (train, test)],
        "up axis": [replace(clouds, up_axis="y") for clouds in (train, test)],
    }
    for number, (name, splits) in enumerate(changed.items()):
        write_clouds(f"{number}.h5", Splits(*splits))
        code, _, err = say("train", f"{number}.h5", "--resume")
        assert code == 3 and f"is not the data that run began with, other {name};" in err, err


@pytest.mark.parametrize(
    "change",
    [
        {"record": "x"},
        {"record": {"file": 3, "run_id": "x"}},
        {"data": 7},
        {"views": 7},
        {"labels_only": 1},
        {"name": 4},
        {"model": []},
        {"training": {"epochs": 4}},
        {"clouds": None},
        {"more": 1},
    ],
)
def test_a_run_json_that_was_written_by_hand_is_exit_3_and_one_line(data, say, folder, change):
    assert say("train", data, "--labels-only", "--stop-after", 2, *QUICK)[0] == 0
    path = folder / "run/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, out, err = say("train", data, "--resume")
    assert (code, out, err.count("\n")) == (3, "", 1) and "run.json" in err, err


def test_a_student_resumes_from_a_record_that_carries_its_clouds_wherever_it_lies(
    data, say, folder
):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert (
        say("record", data, "--teacher", "teacher", "--views", 2, "--with-clouds", "--quiet")[0]
        == 0
    )
    os.remove(data)
    assert say("train", "--record", "record.h5", "--out", "whole", *QUICK)[0] == 0
    assert say("train", "--record", "record.h5", "--stop-after", 2, *QUICK)[0] == 0
    os.rename("record.h5", "moved.h5")
    code, _, err = say("train", "--resume", "--record", "moved.h5")
    assert code == 0, err
    assert (folder / "run/predictions.csv").read_bytes() == (
        folder / "whole/predictions.csv"
    ).read_bytes()
    assert say("eval", "run", "moved.h5")[0] == 0


@pytest.mark.parametrize("out", [None, "a folder"])
def test_the_line_after_ctrl_c_holds_the_command_that_goes_on(out, data, folder, say, monkeypatch):
    os.mkdir("elsewhere")
    os.rename(data, "elsewhere/clouds.h5")
    words = ("train", "elsewhere/clouds.h5", "--labels-only", *QUICK)
    assert say(*words, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_in_epoch(2, patch)
        code, _, err = say(*words, *(["--out", out] if out else []))
    name = out or "run"
    assert code == 130 and err.strip().count("\n") == 0  # the first one ends the line of ^C
    command = shlex.split(err.partition("go on with: minipc ")[2])
    assert command[-2:] == ["--out", name]
    code, _, err = say(*command)
    assert code == 0 and f"{name}: continues after epoch 1" in err
    for file in ("predictions.csv", "model.h5"):
        assert (folder / name / file).read_bytes() == (folder / "whole" / file).read_bytes()


def test_after_ctrl_c_before_the_folder_is_made_no_command_is_named(data, say, monkeypatch):
    def interrupted(*anything, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("minipc.verbs.train.find_data", interrupted)
    code, _, err = say("train", data, "--labels-only", *QUICK)
    assert (code, err.strip()) == (130, "minipc: interrupted; nothing was begun")


def test_a_record_alone_is_taken_as_the_record_to_learn_from(data, folder, say):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    words = ("record", data, "--teacher", "teacher", "--views", 2, "--with-clouds", "--quiet")
    assert say(*words)[0] == 0
    assert say("train", "--record", "record.h5", "--out", "asked", *QUICK)[0] == 0
    loud = [word for word in QUICK if word != "--quiet"]
    code, _, err = say("train", "record.h5", "--out", "understood", *loud)
    assert code == 0 and "record.h5: is a record; taken as --record record.h5" in err
    asked, understood = (
        (folder / name / "predictions.csv").read_bytes() for name in ("asked", "understood")
    )
    assert asked == understood
    # these clouds, as before
    assert say("train", "record.h5", "--labels-only", "--out", "alone", *QUICK)[0] == 0
    assert json.loads((folder / "alone/run.json").read_text())["record"] is None


def test_a_model_that_diverges_ends_in_one_line(data, say, folder):
    words = (
        "--model 8-16:8 --batch-size 8 --epochs 3 --lr 1e20 --optimiser sgd --warmup-steps 0"
    ).split()
    code, out, err = say("train", data, "--labels-only", "--quiet", *words)
    assert (
        (code, out, err.count("\n")) == (1, "", 1)
        and "no longer finite" in err
        and "lower --lr" in err
    )


def minipc(*words, **settings):
    """Run the command in a process of its own, as a shell would."""
    command = [sys.executable, "-m", "minipc", *map(str, words)]
    return subprocess.run(
        command, text=True, stdout=settings.pop("stdout", subprocess.PIPE), timeout=120, **settings
    )


def test_a_closed_or_full_stderr_does_not_end_a_training(data, folder):
    words = (
        "train",
        data,
        "--labels-only",
        *[word for word in QUICK if word != "--quiet"],
        "--epochs",
        2,
    )
    closed = minipc(*words, "--out", "closed", preexec_fn=lambda: os.close(2))
    assert closed.returncode == 0 and (folder / "closed/predictions.csv").exists()
    with open("/dev/full", "w") as full:
        assert minipc(*words, "--out", "full", stderr=full).returncode == 0
    assert (folder / "full/model.h5").read_bytes() == (folder / "closed/model.h5").read_bytes()


@pytest.mark.parametrize(
    "words", [("--help",), ("train", "--help"), ("--version",), ("data", "info", "clouds.h5")]
)
def test_a_full_disk_behind_stdout_is_one_line(data, words):
    with open("/dev/full", "w") as full:
        done = minipc(*words, stdout=full, stderr=subprocess.PIPE)
    assert (
        done.returncode == 1
        and done.stderr.count("\n") == 1
        and "stdout: cannot be written" in done.stderr
    )


def test_a_class_name_outside_the_letters_of_the_terminal_is_shown_escaped(data):
    splits = read_clouds(data)
    names = ("flat", "l\u00f6ng", "\U0001f600")
    write_clouds("names.h5", Splits(*(replace(clouds, class_names=names) for clouds in splits)))
    latin = dict(
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, encoding="latin-1", stderr=subprocess.PIPE
    )
    done = minipc("data", "info", "names.h5", **latin)
    assert (
        done.returncode == 0
        and "l\u00f6ng" in done.stdout
        and "\\U0001f600" in done.stdout
        and done.stderr == ""
    )


def test_a_new_run_that_fails_before_its_first_epoch_leaves_no_folder(data, say, folder):
    code, _, err = say(
        "train", data, "--labels-only", "--quiet", "--lr", 1e30, "--optimiser", "sgd"
    )
    assert code == 1 and "start a new run with a lower --lr" in err
    assert os.listdir(folder) == [data]


def test_a_teacher_that_is_not_finished_or_saw_these_views_is_said_so(data, say):
    assert say("train", data, "--labels-only", "--stop-after", 3, *QUICK)[0] == 0
    code, _, err = say("record", data, "--teacher", "run", "--views", 2, "--force")
    assert (
        code == 0
        and "run: only 3 of its 4 epochs are done" in err
        and "learnt from 2 of these views" in err
    )
    code, _, err = say(
        "record",
        data,
        "--teacher",
        "run",
        "--views",
        2,
        "--force",
        "--seed",
        1,
        "--out",
        "other.h5",
    )
    assert code == 0 and "learnt from" not in err
