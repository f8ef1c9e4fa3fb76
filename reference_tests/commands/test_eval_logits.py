"""minipc eval --logits: what another program's model says, measured as our models are."""

import csv
import io
import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_three_classes
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest

from minipc.cli.main import main
from minipc.data.clouds import UNLABELLED, read_clouds, write_clouds
from minipc.distil.evaluate import predict
from minipc.errors import DataError
from minipc.models.file import read_model
from minipc.runs.logits_file import read_logits
from minipc.verbs.evaluate import evaluate_logits
from reference_tests.commands.test_cli import QUICK

NAMES = ("flat", "long", "round")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with clouds.h5, two runs on it, and logits.npy of the first."""
    place = tmp_path_factory.mktemp("logits")
    before = os.getcwd()
    os.chdir(place)
    try:
        write_three_classes("clouds.h5")
        for seed, name in ((0, "run"), (1, "other")):
            with pytest.raises(SystemExit) as end:
                main(["train", "clouds.h5", "--labels-only", "--out", name, "--seed", str(seed),
                      *map(str, QUICK)])  # fmt: skip
            assert end.value.code == 0
        test = read_clouds("clouds.h5").test
        np.save("logits.npy", predict(read_model("run/model.h5"), test.points, np, 1))
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of that folder to stand in."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def logits():
    return np.load("logits.npy")


def write_csv(path, rows, header=None):
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        if header:
            lines.writerow(header)
        lines.writerows([repr(float(value)) for value in row] for row in rows)


def values_of(say, *words):
    code, out, err = say("eval", *words, "--json")
    assert code == 0, err
    return json.loads(out)


MEASURED = ("clouds", "labelled", "accuracy", "mean_class_accuracy", "nll", "ece", "confusion",
            "class_names", "class_accuracy")  # fmt: skip


def test_the_logits_of_a_model_of_ours_are_measured_as_the_model_is(place, say):
    wanted = values_of(say, "run")
    found = values_of(say, "--logits", "logits.npy", "clouds.h5")
    assert {name: found[name] for name in MEASURED} == {name: wanted[name] for name in MEASURED}
    assert found["logits"] == "logits.npy" and "model" not in found and "parameters" not in found
    text = say("eval", "run")[1].splitlines()
    lines = say("eval", "--logits", "logits.npy", "clouds.h5")[1].splitlines()
    assert lines[1:3] == text[1:3] and lines[3:] == text[4:]  # no line of parameters


@pytest.mark.parametrize("form", ["npz", "npz with labels", "csv", "csv with names", "csv turned",
                                  "float64", "Fortran", "big-endian"])  # fmt: skip
def test_every_form_of_the_same_logits_gives_the_same_numbers(form, place, say):
    values, path = logits(), "same.npy"
    if form.startswith("npz"):
        path = "same.npz"
        labels = {"labels": read_clouds("clouds.h5").test.labels} if "labels" in form else {}
        np.savez(path, logits=values, **labels)
    elif form == "csv turned":
        path = "same.csv"
        write_csv(path, values[:, ::-1], NAMES[::-1])
    elif form.startswith("csv"):
        path = "same.csv"
        write_csv(path, values, NAMES if "names" in form else None)
    else:
        kept = {"float64": values.astype(np.float64), "Fortran": np.asfortranarray(values)}
        np.save(path, kept.get(form, values.astype(">f4")))
    wanted = values_of(say, "--logits", "logits.npy", "clouds.h5")
    code, out, err = say("eval", "--logits", path, "clouds.h5", "--json")
    assert json.loads(out) == wanted | {"logits": path}, err
    assert ("with their labels" in err) == (form == "npz with labels")
    assert ("in another order" in err) == (form == "csv turned")


def test_the_order_that_is_taken_is_told_once(place, say):
    err = say("eval", "--logits", "logits.npy", "clouds.h5")[2]
    assert err.count("\n") == 1
    assert "in the order of the test clouds of clouds.h5, and of its classes: flat, long" in err
    assert say("eval", "--logits", "logits.npy", "clouds.h5", "-q")[2] == ""


def test_probabilities_are_taken_as_such_only_when_they_are_called_so(place, say):
    np.save("p.npy", softmax(logits().astype(np.float64), axis=1))
    code, out, err = say("eval", "--logits", "p.npy", "clouds.h5")
    assert (code, out) == (3, "") and "add --probabilities" in err and err.count("\n") == 1
    found = values_of(say, "--logits", "p.npy", "clouds.h5", "--probabilities")
    wanted = values_of(say, "--logits", "logits.npy", "clouds.h5")
    for name in ("nll", "ece", "accuracy"):
        # the logarithm of a float64 softmax: a few roundings of 2^-53 on numbers of size one
        assert found[name] == pytest.approx(wanted[name], rel=1e-12), name
    np.save("log-p.npy", log_softmax(logits().astype(np.float64), axis=1))  # are logits
    assert values_of(say, "--logits", "log-p.npy", "clouds.h5")["nll"] == pytest.approx(
        wanted["nll"], rel=1e-12
    )
    code, out, err = say("eval", "--logits", "logits.npy", "clouds.h5", "--probabilities")
    assert (code, out) == (3, "") and "leave --probabilities out" in err
    np.savez("p.npz", probabilities=np.load("p.npy"))
    assert (
        values_of(say, "--logits", "p.npz", "clouds.h5", "--probabilities")["nll"] == (found["nll"])
    )


def test_float16_and_printed_probabilities_are_probabilities(place):
    test = read_clouds("clouds.h5").test
    p = softmax(logits().astype(np.float64), axis=1)
    np.save("half.npy", p.astype(np.float16))
    np.savetxt("printed.csv", p, fmt="%.4f", delimiter=",")
    for path in ("half.npy", "printed.csv"):
        read = read_logits(path, test, "clouds.h5", True)
        assert np.exp(read) == pytest.approx(p, abs=1e-3)  # 11 bits; four decimals


def test_a_probability_of_zero_at_the_label_is_an_infinite_likelihood_and_told(place, say):
    test = read_clouds("clouds.h5").test
    p = np.eye(3)[test.labels]
    p[4] = np.roll(p[4], 1)
    np.save("hard.npy", p)
    code, out, err = say("eval", "--logits", "hard.npy", "clouds.h5", "--probabilities")
    assert code == 0 and "negative log-likelihood infinite nats" in out
    assert "1 clouds have probability 0 at their label" in err
    found = values_of(say, "--logits", "hard.npy", "clouds.h5", "--probabilities")
    assert found["nll"] is None and found["accuracy"] == pytest.approx(32 / 33)


def test_agreement_and_mcnemar_s_test_are_those_of_the_definition(place, say):
    test = read_clouds("clouds.h5").test
    theirs = predict(read_model("other/model.h5"), test.points, np, 1).argmax(axis=1)
    mine = logits()
    mine[5:9] = np.roll(mine[5:9], 1, axis=1)  # four clouds are said to be something else
    np.save("mine.npy", mine)
    np.save("theirs.npy", predict(read_model("other/model.h5"), test.points, np, 1))
    said = mine.argmax(axis=1)
    gained = int(((said == test.labels) & (theirs != test.labels)).sum())
    lost = int(((said != test.labels) & (theirs == test.labels)).sum())
    assert gained + lost
    wanted = {
        "agreement": float((said == theirs).mean()),
        "gained": gained,
        "lost": lost,
        "mcnemar": binomtest(gained, gained + lost).pvalue,
    }
    base = ("--logits", "mine.npy", "clouds.h5")
    for words, told in [
        (("--teacher", "other"), "other/model.h5"),
        (("--against", "theirs.npy"), "theirs.npy"),
        (("--against", "other"), "other/predictions.csv"),
        (("--against", "other/predictions.csv"), "other/predictions.csv"),
    ]:
        assert values_of(say, *base, *words)["compared"] == [wanted | {"with": told}], words
    table = Path("other/predictions.csv").read_text().splitlines()
    named = [f"{line},scan.ply" for line in table[1:]]  # as of data that name their files
    Path("named.csv").write_text("\n".join([f"{table[0]},file", *named]))
    assert values_of(say, *base, "--against", "named.csv")["compared"] == [
        wanted | {"with": "named.csv"}
    ]
    found = values_of(say, *base, "--teacher", "other", "--against", "run")
    assert [pair["with"] for pair in found["compared"]] == ["other/model.h5", "run/predictions.csv"]
    assert found["teacher_agreement"] == wanted["agreement"]
    out = say("eval", *base, "--against", "other")[1]
    assert f"right alone: {gained} clouds here, {lost} there, McNemar's exact p" in out


def test_predictions_whose_order_nothing_proves_are_taken_in_that_of_the_clouds_and_that_is_told(
    place, say
):
    table = "run/predictions.csv"
    assert "in the order" not in say("eval", "run", "--against", table)[2]
    Path("alone.csv").write_bytes(Path(table).read_bytes())
    err = say("eval", "run", "--against", "alone.csv")[2]
    assert "alone.csv: taken in the order of the test clouds of clouds.h5" in err


@pytest.mark.parametrize("words", [("run",), ("--logits", "logits.npy", "--teacher", "run")])
def test_a_file_with_other_test_clouds_is_not_what_a_run_was_measured_on(place, say, words):
    splits = read_clouds("clouds.h5")
    turned = type(splits.test)(
        np.ascontiguousarray(splits.test.points[::-1]), splits.test.labels[::-1], NAMES, "z", "none"
    )
    Path("clouds.h5").unlink()
    write_clouds("clouds.h5", splits._replace(test=turned))
    code, out, err = say("eval", *words)
    assert (code, out) == (3, "") and "other test points than run/model.h5 was measured on" in err
    assert say("eval", *words, "clouds.h5")[0] == 0  # by name they are taken


def test_a_model_is_compared_with_logits_too_and_with_probabilities(place, say):
    np.save("p.npy", softmax(logits(), axis=1))
    for path in ("logits.npy", "p.npy"):
        (pair,) = values_of(say, "run", "--against", path)["compared"]
        assert pair == {"with": path, "agreement": 1, "gained": 0, "lost": 0, "mcnemar": 1}


def test_data_is_that_of_the_teacher_where_it_is_not_named(place, say):
    found = values_of(say, "--logits", "logits.npy", "--teacher", "run")
    assert found["data"] == "clouds.h5" and found["teacher_agreement"] == 1
    code, out, err = say("eval", "--logits", "logits.npy")
    assert (code, out) == (2, "") and "name DATA" in err and err.count("\n") == 1


def test_the_variable_of_the_option_is_not_that_of_a_recording(place, say, monkeypatch):
    monkeypatch.setenv("MINIPC_LOGITS", "float32")  # for minipc record
    assert "model" in values_of(say, "run")
    monkeypatch.setenv("MINIPC_LOGITS_FILE", "logits.npy")
    assert values_of(say, "clouds.h5")["logits"] == "logits.npy"
    code, _, err = say("eval", "run")
    assert code == 2 and "MINIPC_LOGITS_FILE" in err and err.count("\n") == 1


def test_clouds_without_a_label_are_counted_nowhere(place, say):
    splits = read_clouds("clouds.h5")
    labels = splits.test.labels.copy()
    labels[::3] = UNLABELLED
    half = type(splits.test)(splits.test.points, labels, NAMES, "z", "none")
    write_clouds("half.h5", splits._replace(test=half))
    found = values_of(say, "--logits", "logits.npy", "half.h5", "--against", "logits.npy")
    assert found["labelled"] == 22 and found["clouds"] == 33
    none = type(half)(half.points, np.full(33, UNLABELLED), NAMES, "z", "none")
    write_clouds("none.h5", splits._replace(test=none))
    found = values_of(say, "--logits", "logits.npy", "none.h5", "--against", "logits.npy")
    assert found["accuracy"] is None and found["compared"][0]["mcnemar"] is None
    out = say("eval", "--logits", "logits.npy", "none.h5", "--against", "logits.npy")[1]
    assert "no accuracy" in out and out.count("agreement with logits.npy: 100.00 %\n") == 1


def test_permuted_rows_and_columns_are_suspected_where_nothing_can_prove_them(place, say):
    rng = np.random.default_rng(0)
    np.save("rows.npy", rng.permutation(logits()))
    np.save("columns.npy", np.roll(logits(), 1, axis=1))
    for path in ("rows.npy", "columns.npy"):
        code, out, err = say("eval", "--logits", path, "clouds.h5")
        assert code == 0 and "no better than chance; are its rows in the order" in err
    assert "chance" not in say("eval", "--logits", "logits.npy", "clouds.h5")[2]


def test_labels_beside_the_logits_prove_another_order(place, say):
    order = np.random.default_rng(0).permutation(33)
    np.savez(
        "moved.npz", logits=logits()[order], labels=read_clouds("clouds.h5").test.labels[order]
    )
    code, out, err = say("eval", "--logits", "moved.npz", "clouds.h5")
    assert (code, out) == (3, "") and "in the order of its test clouds" in err


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def csv_bytes(rows, header=None, more=""):
    lines = [",".join(map(str, row)) for row in ([header] if header else []) + list(rows)]
    return ("\n".join(lines) + "\n" + more).encode()


def with_(values, row, column, number):
    values = values.astype(np.float64)
    values[row, column] = number
    return values


def indexed(values):
    return [[number, *row] for number, row in enumerate(values)]


PICKLE = np.array([{"x": 1}], object)
ARRAYS = {  # {name: the array of a bad .npy, of the good logits}
    "short": lambda values: values[:-1],
    "long": lambda values: np.concatenate([values, values[:1]]),
    "training": lambda values: np.zeros((96, 3), np.float32),
    "wide": lambda values: np.concatenate([values, values[:, :1]], axis=1),
    "turned": lambda values: values.T,
    "flat": lambda values: values.ravel(),
    "batched": lambda values: values[None],
    "none": lambda values: values[:0],
    "nan": lambda values: with_(values, 4, 1, np.nan),
    "inf": lambda values: with_(values, 7, 2, np.inf),
    "huge": lambda values: with_(values, 7, 2, -1e308),
    "classes": lambda values: values.argmax(axis=1),
    "int": lambda values: np.round(values).astype(np.int64),
    "complex": lambda values: values.astype(np.complex64),
    "long-double": lambda values: values.astype(np.longdouble),
    "bool": lambda values: values > 0,
    "text": lambda values: values.astype(str),
    "pickle": lambda values: PICKLE,
}
CONTENTS = {  # {name: the bytes of a bad file, of the good logits}
    "cut.npy": lambda values: npy_bytes(values)[:-3],
    # a header of 2^50 rows with nothing behind it
    "claims.npy": lambda values: npy_bytes(values).replace(
        b"(33, 3), }              ", b"(1125899906842624, 3), }"
    ),
    "empty.npy": lambda values: b"",
    "noise.npz": lambda values: bytes(range(256)) * 9,
    "renamed.npz": lambda values: npz_bytes(scores=values),
    "labels.npz": lambda values: npz_bytes(logits=values, labels=np.zeros(33)),
    "pickle.npz": lambda values: npz_bytes(logits=PICKLE),
    "numbered.csv": lambda values: csv_bytes(values, ["0", "1", "2"]),
    "indexed.csv": lambda values: csv_bytes(indexed(values), ["", *NAMES]),
    "index.csv": lambda values: csv_bytes(indexed(values)),
    "other-names.csv": lambda values: csv_bytes(values, ["mug", "bowl", "vase"]),
    "blank.csv": lambda values: csv_bytes(values, more="\n"),
    "nan.csv": lambda values: csv_bytes(with_(values, 4, 1, np.nan)),
    "word.csv": lambda values: csv_bytes(values, more="1,2,x\n"),
    "underscore.csv": lambda values: b"1_000,2,3\n" * 33,
    "semicolons.csv": lambda values: b"1;2;3\n" * 33,
    "names-alone.csv": lambda values: b"flat,long,round\n",
    "latin.csv": lambda values: b"\xe9,2,3\n" * 33,
    "quote.csv": lambda values: b'1,2,"3\n',
    "newline.csv": lambda values: b"\n",
}


def bad(name):
    """Write the bad file of this name, if it is one to write."""
    stem, suffix = os.path.splitext(name)
    if name in CONTENTS:
        write(name, CONTENTS[name](logits()))
    elif stem in ARRAYS and suffix == ".npy":
        np.save(name, ARRAYS[stem](logits()), allow_pickle=True)
    elif name == "foreign.h5":
        with h5py.File(name, "w") as file:
            file["logits"] = logits()
    elif name == "pipe.npy":
        os.mkfifo(name)
    elif name == "folder.npy":
        os.mkdir(name)


def write(name, content):
    with open(name, "wb") as file:
        file.write(content)


BAD = {
    "short.npy": "expected (33, 3), a row for each test cloud of clouds.h5",
    "long.npy": "found (34, 3)",
    "training.npy": "found (96, 3)",
    "wide.npy": "found (33, 4)",
    "turned.npy": "found (3, 33)",
    "flat.npy": "found (99,)",
    "batched.npy": "found (1, 33, 3)",
    "none.npy": "found (0, 3)",
    "nan.npy": "cloud 4: expected finite float32 numbers, found nan",
    "inf.npy": "cloud 7: expected finite float32 numbers, found inf",
    "huge.npy": "cloud 7: expected finite float32 numbers, found -1e+308",
    "classes.npy": "found (33,)",
    "int.npy": "found int64; classes or votes are no logits",
    "complex.npy": "complex64",
    "long-double.npy": "float16, float32 or float64",
    "bool.npy": "bool",
    "text.npy": "expected float16",
    "pickle.npy": "save it again",
    "cut.npy": "save it again",
    "claims.npy": "save it again",
    "empty.npy": "found 0",
    "noise.npz": "save it again",
    "renamed.npz": "expected an array named logits, found ['scores.npy']; rename it",
    "labels.npz": "labels: expected (33,) whole numbers",
    "pickle.npz": "save it again",
    "numbered.csv": "line 1 numbers the columns",
    "indexed.csv": "line 1: expected the class names (flat, long, round)",
    "index.csv": "line 1: expected 3 numbers with commas between them, one for each class, found 4",
    "other-names.csv": "line 1: expected the class names (flat, long, round)",
    "blank.csv": "line 34: expected 3 numbers",
    "nan.csv": "cloud 4: expected finite float32 numbers",
    "word.csv": "line 34: column 3: expected a number, found 'x'",
    "underscore.csv": "line 1: column 1: expected a number, found '1_000'",
    "semicolons.csv": "line 1: expected the class names",
    "names-alone.csv": "found (0, 3)",
    "latin.csv": "save it again",
    "quote.csv": "save it again",
    "newline.csv": "line 1",
    "foreign.h5": "unknown suffix '.h5'; save the logits as .npy",
    "run/model.h5": "is a minipc model file, expected logits",
    "pipe.npy": "found a pipe",
    "folder.npy": "found a folder",
    "absent.npy": "No such file",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_of_logits_is_refused_in_one_line_that_says_why(name, place, say):
    bad(name)
    code, out, err = say("eval", "--logits", name, "clouds.h5", "--quiet")
    assert (code, out) == (3, "") and err.count("\n") == 1 and len(err) < 400, err
    assert err.startswith(f"minipc: {name}: ") and BAD[name] in err


WRONG = [
    (2, "run --logits logits.npy", "run is no data file; name DATA alone"),
    (2, "run clouds.h5 --logits logits.npy", "stands in place of a model"),
    (2, "--logits logits.npy clouds.h5 --votes 2", "--votes asks a model"),
    (2, "run --probabilities", "goes with --logits"),
    (2, "--logits '' clouds.h5", "is empty; name a file"),
    (3, "run --against other.npy", "other.npy: cannot be read"),
    (3, "run --against folder", "folder/predictions.csv: cannot be read"),
    (3, "run --against bad.csv", "bad.csv: cannot be read"),
    (2, "--logits logits.npy run/checkpoint.h5", "is no data file"),
    (3, "--logits logits.npy none.h5", "none.h5: cannot be read"),
]


@pytest.mark.parametrize("code, words, named", WRONG, ids=[words for _, words, _ in WRONG])
def test_what_contradicts_itself_is_one_line(code, words, named, place, say):
    os.mkdir("folder")
    write("bad.csv", b"cloud,label,predicted,right,probability\n0,flat,flat,0,1\n")
    found, out, err = say("eval", *shlex.split(words), "--quiet")
    assert (found, out) == (code, "") and named in err and err.count("\n") == 1, err


def test_predictions_of_other_clouds_are_no_comparison(place, say):
    splits = read_clouds("clouds.h5")
    test = splits.test
    write_clouds("fewer.h5", splits._replace(test=type(test)(
        test.points[:-1], test.labels[:-1], NAMES, "z", "none")))  # fmt: skip
    np.save("fewer.npy", logits()[:-1])
    code, out, err = say("eval", "--logits", "fewer.npy", "fewer.h5", "--against", "run", "-q")
    assert (code, out) == (3, "") and "are not the 32 test clouds of fewer.h5" in err


def test_predictions_of_other_clouds_with_the_same_labels_are_no_comparison(place, say):
    """Splits of one file by two seeds, where clouds of a class lie together, as in a folder."""
    splits = read_clouds("clouds.h5")
    order = np.argsort(splits.train.labels, kind="stable")
    train = replace(
        splits.train, points=splits.train.points[order], labels=splits.train.labels[order]
    )
    write_clouds("sorted.h5", splits._replace(train=train))
    for seed in (0, 1):
        words = ("--seed", seed, "--test-fraction", 0.5, "--quiet")
        assert say("data", "hold-out", "sorted.h5", "-o", f"{seed}.h5", *words)[0] == 0
        words = ("--labels-only", "--out", f"run{seed}")
        assert say("train", f"{seed}.h5", *words, *map(str, QUICK))[0] == 0
    assert (read_clouds("0.h5").test.labels == read_clouds("1.h5").test.labels).all()
    for other in ("run1", "run1/predictions.csv"):
        code, _, err = say("eval", "run0", "--against", other, "-q")
        assert code == 3 and "are not the" in err and "test clouds of 0.h5" in err, err
    assert values_of(say, "run0", "--against", "run0")["compared"][0]["agreement"] == 1


def test_what_another_program_calls_half_precision_is_no_file_of_logits(say):
    assert "here it is --logits float16" in say("record", "--fp16")[2]
    assert "this verb has no --logits float16" in say("eval", "--fp16")[2]


def test_from_python(place):
    found = evaluate_logits("logits.npy", "clouds.h5", against="run")
    assert found["compared"][0]["agreement"] == 1
    with pytest.raises(DataError, match="add --probabilities"):
        np.save("p.npy", softmax(logits(), axis=1))
        evaluate_logits("p.npy", "clouds.h5")
