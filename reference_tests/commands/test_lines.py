"""The lines that people read are made from the values that `--json` prints, and from no others."""

import json
from math import inf

import pytest

from minipc.cli.show import result
from minipc.report.lines import audit, doctor, evaluate, info, loss, record, train
from reference_tests.commands.test_cli import QUICK


def both(say, *words):
    """Return the lines that a command prints, and the values that it prints with --json."""
    code, out, _ = say(*words)
    again, values, _ = say(*words, "--json")
    assert code == again == 0, words
    return out.splitlines(), json.loads(values)


@pytest.fixture
def way(data, say):
    """clouds.h5, teacher/, record.h5 with its clouds, and run/."""
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    words = ("record", data, "--teacher", "teacher", "--views", 2, "--with-clouds", "--quiet")
    assert say(*words)[0] == 0
    assert say("train", "--record", "record.h5", *QUICK)[0] == 0


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (info.of_info, "info clouds.h5"),
        (info.of_info, "data info record.h5"),
        (info.of_info, "info run"),
        (info.of_info, "info teacher/checkpoint.h5"),
        (record.of_record, "record clouds.h5 --teacher teacher --views 2 --with-clouds --quiet"),
        (record.of_verify, "verify record.h5"),
        (record.of_verify, "verify record.h5 --teacher teacher --sample all"),
        (evaluate.of_eval, "eval run --votes 2 --teacher teacher"),
        (evaluate.of_eval, "eval run --against teacher"),
        (train.of_train, "train clouds.h5 --labels-only --dry-run"),
        (audit.of_audit_list, "audit --list"),
        (audit.of_audit_vectors, "audit --vectors"),
        (audit.of_audit_record, "audit --record record.h5 --self-weight 0.1"),
        (loss.of_loss, "loss --record record.h5 --self-weight 0.1"),
        (loss.of_loss, "loss --from deit=0.5"),
        (doctor.of_doctor, "doctor"),
    ],
)
def test_the_lines_are_made_from_the_values_of_json_alone(of, words, way, say):
    text, values = both(say, *words.split())
    assert text == of(values) and all(text[:1])


def test_the_lines_of_a_training_are_made_from_the_values_of_json_alone(way, say):
    values = json.loads(say("train", "--record", "record.h5", "--out", "a", *QUICK, "--json")[1])
    text = say("train", "--record", "record.h5", "--out", "b", *QUICK)[1]
    assert text.splitlines() == train.of_train(values | {"out": "b", "report": "b/report.html"})


def test_the_lines_of_a_dry_run_are_made_from_the_values_of_json_alone(way, say):
    words = "record clouds.h5 --teacher teacher --views 3 --dry-run"
    text, values = both(say, *words.split())
    made = record.of_record_dry_run(values)
    free = [line.partition("free ")[0] for line in made]  # others write to the disk meanwhile
    assert [line.partition("free ")[0] for line in text] == free != made


def test_data_info_is_info(way, say):
    for path in ("clouds.h5", "record.h5", "teacher"):
        for words in ([], ["--json"]):
            assert say("data", "info", path, *words) == say("info", path, *words)


def test_json_has_null_where_a_number_is_not_finite_and_a_line_has_the_number(capsys):
    values = {"a": inf, "b": [float("nan"), 1.5], "c": (2, {"d": -inf}), "e": "inf"}
    result(values, True, None)
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": [2, {"d": None}],
        "e": "inf",
    }
    result(values, False, lambda values: [f"a {values['a']}"])
    assert capsys.readouterr().out == "a inf\n"
