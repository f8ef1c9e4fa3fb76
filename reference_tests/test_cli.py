"""The command line: the bare commands, JSON, and one line for every mistake."""

import json
import os
import subprocess
import sys

import pytest

from minipc import first_run
from minipc.data import shapes
from minipc.data.clouds import Clouds, Splits, read_clouds, write_clouds
from minipc.model_file import new_model, write_model
from minipc.nn.pointnet import ModelConfig, sizes
from minipc.train import TrainConfig

QUICK = ("--epochs", 4, "--model", "8-16:8", "--lr", 0.01, "--warmup-steps", 4, "--quiet")


@pytest.fixture
def small_shapes(monkeypatch):
    """The bare commands on fewer shapes and epochs; the full ones run in CI."""
    monkeypatch.setattr(
        first_run, "make_shapes", lambda seed: shapes.make_shapes(seed, train_per_class=8, test_per_class=2, points=32)
    )
    monkeypatch.setattr(first_run, "TEACHER_TRAINING", TrainConfig(epochs=8, lr=1e-3))


def test_the_two_bare_commands_work_in_an_empty_folder(folder, say, small_shapes):
    code, out, err = say("record", "--views", 2)
    assert code == 0, err
    assert {"shapes.h5", "teacher", "record.h5"} == set(os.listdir(folder))
    assert "next: minipc train" in out and "teacher accuracy" in out
    code, out, err = say("train", "--epochs", 2)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["trained", "labels", "record", "next:"]
    assert {"run", "run-labels"} <= set(os.listdir(folder))
    assert "loss = 0.1 CE(y, s_1) + 0.9 T^2 KL(p || s_T), T = 4" in err
    code, out, err = say("record", "--views", 2)
    assert code == 0 and "recorded already" in err


def test_a_teacher_whose_training_was_interrupted_is_set_aside(folder, say, small_shapes, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    (folder / "teacher").mkdir()
    code, _, err = say("record", "--views", 1)
    assert code == 3 and "no run of ours" in err  # somebody's folder: neither used nor renamed
    (folder / "teacher").rmdir()
    with monkeypatch.context() as patch:
        patch.setattr("minipc.train.evaluate", interrupted)  # in the first epoch
        code, _, err = say("record", "--views", 1)
        assert code == 130 and "run again" in err
    code, _, err = say("record", "--views", 1)
    assert code == 0 and "did not finish; kept as teacher-unfinished" in err
    assert {"teacher", "teacher-unfinished", "record.h5"} <= set(os.listdir(folder))


def test_bare_train_runs_again_after_an_interruption(folder, say, small_shapes, monkeypatch):
    assert say("record", "--views", 1, "--quiet")[0] == 0

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("minipc.train.evaluate", interrupted)
        assert say("train", "--epochs", 1)[0] == 130
    code, out, err = say("train", "--epochs", 1)
    assert code == 0 and "run-2-labels" in out, err
    code, _, err = say("train", "--epochs", 1, "--out", "run-2")
    assert code == 2 and "run-2: exists already" in err and not os.path.exists("run-2-labels-labels")


@pytest.mark.parametrize("wrong, code", [
    (["--views", 0], 2), (["--seed", -1], 2), (["--out", "no/where.h5"], 3), (["--out", "."], 3),
])
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
    reversed_points = (Clouds(c.points[:, ::-1].copy(), c.labels, c.class_names, "z", "none") for c in splits)
    write_clouds(data, Splits(*reversed_points))
    code, _, err = say("eval", "run")
    assert code == 3 and "holds other training points" in err


def test_json_holds_the_promised_keys(folder, say, small_shapes):
    code, out, _ = say("record", "--views", 2, "--json", "--quiet")
    assert code == 0
    assert set(json.loads(out)) >= {
        "out", "run_id", "clouds", "views", "classes", "bytes", "bytes_per_view", "teacher_accuracy",
        "clouds_per_second", "resumed_shards", "max_kl_of_rounding",
    }
    code, out, err = say("train", "--epochs", 2, "--json", "--quiet")
    assert (code, err) == (0, "")
    values = json.loads(out)
    wanted = {
        "model", "parameters", "macs_per_cloud", "epochs", "seed", "test_accuracy", "test_mean_class_accuracy",
        "best_test_accuracy", "seconds", "out",
    }
    assert wanted <= set(values) and wanted <= set(values["baseline"])
    assert values["baseline"]["labels_only"] and not values["labels_only"]
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
    assert sorted(os.listdir()) == ["clouds.h5", "record.h5", "run", "run-2", "run-3", "run-4", "teacher"]
    code, out, err = say("eval", "run", "--json")
    assert code == 0, err
    with open("run/metrics.jsonl") as file:
        last = json.loads(file.read().splitlines()[-1])
    assert json.loads(out)["accuracy"] == last["test_accuracy"]
    code, out, _ = say("eval", "run/model.h5", data)
    assert code == 0 and "mean class accuracy" in out
    with open("run/run.json") as file:
        described = json.load(file)
    assert described["loss"]["self_weight"] == 0.2 and described["self_target"] == {"kind": "snapshot", "every": 1}


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


def test_data_make_and_info_describe_the_same_file(folder, say, small_shapes):
    code, made, _ = say("data", "make", "-o", "s.h5", "--seed", 1, "--json")
    assert code == 0
    code, info, _ = say("data", "info", "s.h5", "--json")
    assert code == 0 and json.loads(made) == json.loads(info)
    assert json.loads(info)["classes"] == len(read_clouds("s.h5").train.class_names) >= 12
    code, out, _ = say("data", "info", "s.h5")
    assert code == 0 and "chair" in out


def spoil(folder):
    """Make the files that the mistakes below are about."""
    splits = read_clouds("clouds.h5")
    other = Splits(*(Clouds(c.points[:, ::-1].copy(), c.labels, c.class_names, "z", "none") for c in splits))
    write_clouds("other.h5", other)
    renamed = Splits(*(Clouds(c.points, c.labels, ("long", "flat", "round"), "z", "none") for c in splits))
    write_clouds("renamed.h5", renamed)
    turned = Splits(*(Clouds(c.points, c.labels, c.class_names, "y", "none") for c in splits))
    write_clouds("turned.h5", turned)
    write_model("untrained.h5", new_model(ModelConfig((8,), (), 3), splits.train.described, 0))
    write_model("forty.h5", new_model(sizes("tiny", 40), {**splits.train.described, "class_names": ["a"] * 40}, 0))
    whole = (folder / "clouds.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[:-100])
    (folder / "flipped.h5").write_bytes(whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:])
    (folder / "empty.h5").write_bytes(b"")
    (folder / "text.h5").write_text("not a file of ours, whatever its name says\n" * 30)
    (folder / "folder.h5").mkdir()
    (folder / "taken").mkdir()
    os.mkfifo(folder / "pipe.h5")


MISTAKES = [
    (3, "train none.h5 --labels-only", "none.h5"),
    (3, "train folder.h5 --labels-only", "folder.h5"),
    (3, "train pipe.h5 --labels-only", "pipe.h5"),
    (3, "train empty.h5 --labels-only", "empty"),
    (3, "train text.h5 --labels-only", "not a minipc file"),
    (3, "train cut.h5 --labels-only", "damaged"),
    (3, "train flipped.h5 --labels-only", "damaged"),
    (3, "train untrained.h5 --labels-only", "is a minipc model file, but a clouds file is wanted"),
    (3, "train --record clouds.h5", "is a minipc clouds file, but a record file is wanted"),
    (2, "train clouds.h5", "--record FILE"),
    (2, "train --labels-only", "name the data"),
    (2, "train clouds.h5 --labels-only --model huge", "16-16-32-64:32"),
    (2, "train clouds.h5 --labels-only --batch-size 1000", "1000 is more than the 96 training clouds"),
    (2, "train clouds.h5 --labels-only --epochs 0", "epochs"),
    (2, "train clouds.h5 --labels-only --epochs many", "--help"),
    (2, "train clouds.h5 --labels-only --colour red", "--colour"),
    (2, "train clouds.h5 --labels-only --out taken", "taken: exists already"),
    (3, "train clouds.h5 --labels-only --out no/where", "no/where"),
    (2, "train --record record.h5 --self-weight 0.5", "b < a / 2"),
    (2, "train --record record.h5 --temperature 0.5", "T >= 1"),
    (2, "train --record record.h5 --kd-weight 2", "a from 0 to 1"),
    (3, "train other.h5 --record record.h5", "made from"),
    (3, "train renamed.h5 --record record.h5", "class_names is ('flat', 'long'"),
    (2, "record clouds.h5", "train clouds.h5 --labels-only --model teacher"),
    (2, "record --teacher good", "name the data"),
    (3, "record clouds.h5 --teacher none.h5", "none.h5"),
    (3, "record clouds.h5 --teacher untrained.h5 --out new.h5", "no better than chance"),
    (3, "record clouds.h5 --teacher forty.h5 --out new.h5", "class names"),
    (3, "record renamed.h5 --teacher good --out new.h5", "class names"),
    (3, "record turned.h5 --teacher good --out new.h5", "up axis"),
    (2, "record clouds.h5 --teacher good --views 0 --out new.h5", "views"),
    (2, "record clouds.h5 --teacher good --seed -1 --out new.h5", "seed"),
    (3, "record clouds.h5 --teacher good --out folder.h5", "folder.h5"),
    (3, "record clouds.h5 --teacher good --out no/where.h5", "no/where.h5"),
    (3, "eval none.h5 clouds.h5", "none.h5"),
    (3, "eval good renamed.h5", "class names"),
    (3, "eval taken clouds.h5", "model.h5"),
    (2, "data make -o clouds.h5", "exists already"),
    (3, "data pack none -o new.h5", "not a folder"),
    (3, "data pack taken -o new.h5", "shape_names.txt: missing"),
    (3, "data info text.h5", "not a minipc file"),
    (2, "data make", "--out"),
    (2, "walk", "walk"),
    (2, "train clouds.h5 --labels-only --self-weight 0.2", "--labels-only has no use for --self-weight"),
    (2, "train --record record.h5 --self-weight nan", "self weight"),
    (3, "train clouds.h5 --record untrained.h5", "is a minipc model file"),
    (2, "record clouds.h5 --teacher good --views 1000000000 --out new.h5", "views: expected 1 to 100000"),
]


def test_every_mistake_ends_in_one_line_and_its_exit_code_and_leaves_nothing(data, folder, say):
    assert say("train", data, "--labels-only", "--out", "good", *QUICK)[0] == 0
    code, _, err = say("train")  # there is no record.h5 yet
    assert code == 3 and "minipc record" in err and err.count("\n") == 1
    assert say("record", data, "--teacher", "good", "--views", 2, "--quiet")[0] == 0
    spoil(folder)
    before, wrong = snapshot(folder), []
    for code, line, named in MISTAKES:
        found, out, err = say(*line.split())
        one_line = err.startswith("minipc: ") and err.count("\n") == 1
        if (found, out) != (code, "") or named not in err or not one_line or snapshot(folder) != before:
            wrong.append((line, found, out, err, sorted(set(snapshot(folder)) - set(before))))
    assert not wrong, "\n".join(map(str, wrong))


def snapshot(folder):
    """Return {path: content} of every regular file below folder, other names without content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def test_cupy_without_a_device_is_exit_5_with_the_remedy(data, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy fails, as where it is not installed
    code, out, err = say("train", data, "--labels-only", "--backend", "cupy")
    assert (code, out) == (5, "")
    assert "gpu12" in err and "--backend numpy" in err and err.count("\n") == 1
    assert not os.path.exists("run")


def test_cupy_with_a_driver_that_fails_is_exit_5_and_auto_takes_numpy(data, say, fake_cupy, monkeypatch):
    def no_device():
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", no_device)
    code, _, err = say("train", data, "--labels-only", "--backend", "cupy")
    assert code == 5 and "no CUDA-capable device" in err
    assert say("train", data, "--labels-only", "--backend", "auto", *QUICK)[0] == 0


def test_the_whole_way_runs_on_a_device(data, say, fake_cupy):
    assert say("train", data, "--labels-only", "--backend", "cupy", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--backend", "cupy", "--views", 2, "--quiet")[0] == 0
    code, out, err = say("train", "--record", "record.h5", "--self-weight", 0.2, "--backend", "cupy", *QUICK)
    assert code == 0, err
    assert say("eval", "run", "--backend", "cupy")[0] == 0
    with open("run/run.json") as file:
        assert json.load(file)["provenance"]["device"] == "fake"


def test_version_names_what_it_stands_on(say):
    code, out, _ = say("--version")
    assert code == 0
    for name in ("minipc", "Python", "NumPy", "h5py", "HDF5", "CuPy"):
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["1", "1"]
    kept = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=environment | {"OMP_NUM_THREADS": "2"})
    assert kept.stdout.split() == ["1", "2"]
