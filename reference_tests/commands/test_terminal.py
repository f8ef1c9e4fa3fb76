"""What a terminal shows: colours, one line of progress, the confusion matrix, examples, hints."""

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from minipc.cli.hints import ELSEWHERE, EXAMPLES
from minipc.cli.main import minipc
from minipc.cli.options import options_of, verbs_below
from minipc.cli.show import Console
from minipc.cli.terminal import columns, painted
from minipc.distil.train import TrainConfig
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.report.confusion import MOST_PAIRS, class_lines
from minipc.report.lines.train import of_train
from minipc.verbs.train import train

VERBS = verbs_below(minipc)
ROOT = str(Path(__file__).parents[2])


class Terminal(io.StringIO):
    """A stream that says it is a terminal; COLUMNS says how wide."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch):
    """A terminal that can show colours, whatever the tests run in."""
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


# colours

COLOURED = {
    "minipc: none.h5: cannot be read": "minipc:",
    "loss: guard   3  1e-3  FAILED: total": "FAILED: total",
    "NOT verified: parameters": "NOT verified",
    "NOT bounded below: in 3 % of the rows some M_i < 0": "NOT bounded below",
    "sign-of-b     NOTHING": "NOTHING",
    "warning: the guard decided nearly every row": "warning:",
    "linear        2  1e-9  ok": "ok",
}


@pytest.mark.parametrize("line", COLOURED)
def test_a_word_is_coloured_on_a_terminal_and_the_words_stay_the_same(line):
    shown = painted(line, Terminal())
    assert click.unstyle(shown) == line
    (word,) = re.findall("\x1b\\[3[1-3]m(.*?)\x1b\\[0m", shown)
    assert word == COLOURED[line]


@pytest.mark.parametrize("variable, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_the_user_wants_none(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert all(painted(line, Terminal()) == line for line in COLOURED)


def test_no_colour_in_a_file_and_on_a_closed_stream():
    closed = io.StringIO()
    closed.close()
    for stream in (io.StringIO(), None, closed):
        assert all(painted(line, stream) == line for line in COLOURED)


def test_an_empty_no_color_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert painted("FAILED", Terminal()) != "FAILED"


@pytest.mark.parametrize("no_colour", [False, True])
def test_an_error_is_red_on_a_real_terminal(no_colour, folder):
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": ROOT} | ({"NO_COLOR": "1"} if no_colour else {})
    words = [sys.executable, "-m", "minipc", "eval", "none.h5"]
    with os.fdopen(ours, "rb") as screen:
        done = subprocess.run(words, stderr=theirs, env=environment, timeout=60)
        os.close(theirs)
        shown = screen.read1().decode()
    plain = "minipc: none.h5: cannot be read"
    red = "\x1b[31mminipc:\x1b[0m none.h5: cannot be read"
    assert done.returncode == 3 and shown.startswith(plain if no_colour else red)


# progress

TEXT = "epoch 12/60, loss 0.512, test 84.1 %"


def shown_lines(monkeypatch, width, text):
    """Return the lines that a progress draws over one another, without what moves the cursor."""
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stderr", screen)
    with Console(quiet=False) as console:
        for done in range(1, 40):
            console.progress(done, 40, "epoch 1/60" if done < 3 else text)
    lines = re.sub("\x1b\\[[?0-9;]*[a-zA-Z]", "", screen.getvalue()).split("\r")
    return [line.rstrip("\n") for line in lines if line.strip()]


@pytest.mark.parametrize("width", [200, 80, 50, 30, 20])
def test_progress_is_one_line_of_the_terminal_whatever_its_width(width, monkeypatch):
    lines = shown_lines(monkeypatch, width, TEXT)
    assert max(map(len, lines)) < width


@pytest.mark.parametrize(
    "width, holds, lacks",
    [
        (200, [TEXT, f"[{'#' * 35}-]"], []),
        (80, [TEXT, "%  ["], []),
        (50, [TEXT], ["["]),
        (40, ["epoch 12/60, loss 0.512"], ["[", "test"]),
        (25, ["epoch 12/60"], ["[", "loss"]),
    ],
)
def test_a_narrow_terminal_loses_the_bar_first_and_then_the_last_numbers(
    width, holds, lacks, monkeypatch
):
    last = shown_lines(monkeypatch, width, TEXT)[-1]
    assert all(part in last for part in holds) and not any(part in last for part in lacks), last


def test_a_dumb_terminal_gets_lines_instead_of_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert shown_lines(monkeypatch, 80, TEXT) == []  # within the first seconds none is due


@pytest.mark.parametrize(
    "given, expected", [("50", 50), ("", 80), ("0", 80), ("many", 80), ("-3", 80)]
)
def test_columns_says_how_wide_a_line_is_and_nonsense_counts_as_not_set(
    given, expected, monkeypatch
):
    monkeypatch.setenv("COLUMNS", given)
    assert columns(io.StringIO()) == expected


@pytest.mark.parametrize("fraction, split", [(0, "test"), (0.25, "val")])
def test_the_progress_of_a_training_tells_loss_and_accuracy_of_the_last_epoch(
    fraction, split, data
):
    told = []
    config = TrainConfig(epochs=3, val_fraction=fraction)
    train(
        "8:8",
        LossConfig(**LABELS_ALONE),
        config,
        data=data,
        labels_only=True,
        out="run",
        progress=lambda done, total, text: told.append(text),
    )
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    brief = [
        f", loss {row['total']:.3f}, {split} {100 * row[f'{split}_accuracy']:.1f} %" for row in rows
    ]
    expected = [f"epoch {e}/3{part}" for e, part in enumerate(["", *brief[:2]], start=1)]
    assert list(dict.fromkeys(told)) == expected


# the negative weight

TRAINED = {
    "labels_only": False,
    "test_accuracy": 0.5,
    "test_mean_class_accuracy": 0.5,
    "best_test_accuracy": 0.5,
    "parameters": 9,
    "macs_per_cloud": 9,
    "record": "a record.h5",
    "out": "run",
    "epochs": 2,
    "epochs_done": 2,
}


def summary(raised, unbounded, **weights):
    loss = {"self_weight": 0.2, "temperature": 4, "guard": "clip"} | weights
    return "\n".join(of_train(TRAINED | {"loss": loss, "raised": raised, "unbounded": unbounded}))


def test_a_summary_tells_how_many_rows_the_guard_changed_and_warns_where_nearly_all():
    quiet = summary(0.125, 0.0625)
    assert "a class in 12.50 % of the rows; 6.25 % need it" in quiet and "warning" not in quiet
    assert "warning: the guard decided nearly every row" in summary(0.9, 0.9)
    assert "warning" not in summary(0.89, 0.89)
    assert "raise --temperature, e.g. 4" in summary(1, 1, temperature=1)
    assert "raise --temperature, e.g. 4" in summary(1, 1, temperature=2)
    assert "minipc loss --record 'a record.h5'" in summary(1, 1)


def test_a_summary_warns_of_every_row_without_a_bound_where_there_is_no_guard():
    assert "warning: NOT bounded below" in summary(0, 0.01, guard="none")
    assert "warning" not in summary(0, 0, guard="none")


def test_without_a_negative_weight_a_summary_says_nothing_of_it():
    assert "guard" not in summary(0, 0, self_weight=0)


def test_a_training_warns_before_it_begins_of_a_negative_weight_at_a_low_temperature(data, say):
    words = ("train", data, "--labels-only", "--model", "8:8", "--epochs", 1, "--out", "teacher")
    assert say(*words)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 1, "--force")[0] == 0
    words = ("train", "--record", "record.h5", "--self-weight", 0.2, "--dry-run")
    assert "warning: a negative weight at T = 1" in say(*words, "--temperature", 1)[2]
    assert "warning: a negative weight at T = 2" in say(*words)[2]  # the default
    assert "warning" not in say(*words, "--temperature", 4)[2]


# confusion

NAMES = [f"class-{i}" for i in range(5)]


def confusion(classes, seed=0):
    return np.random.default_rng(seed).integers(0, 40, (classes, classes)).tolist()


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_the_matrix_holds_every_count_where_it_fits(classes):
    names, counts = [f"class-{i}" for i in range(classes)], confusion(classes)
    counts[1][0] = 0
    _, head, *lines = class_lines(names, counts, 80)
    assert [int(number) for number in head.split()] == list(range(1, classes + 1))
    read = [
        [int(cell.replace(".", "0")) for cell in line.split("%")[1].split()[1:]] for line in lines
    ]
    assert read == counts
    assert [line.split()[:2] for line in lines] == [
        [name, f"{100 * row[i] / sum(row):.1f}"]
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    ]


@pytest.mark.parametrize("width", range(20, 120, 7))
@pytest.mark.parametrize("classes", [2, 5, 12, 40])
def test_no_line_of_a_confusion_is_wider_than_the_terminal_and_no_class_is_lost(width, classes):
    names, counts = [f"k{i}" for i in range(classes)], confusion(classes)
    lines = class_lines(names, counts, width)
    assert max(map(len, lines[1:])) <= max(width, len("  10 of 1000 k10 said to be k11 ."))
    assert {line.split()[0] for line in lines} >= set(names)


def test_where_the_matrix_does_not_fit_the_pairs_confused_most_are_told():
    counts = np.diag([10] * 20)
    counts[3, 7], counts[0, 1], counts[5, 4] = 9, 4, 4
    lines = class_lines([f"class-{i}" for i in range(20)], counts.tolist(), 60)
    at = lines.index("confused most often:")
    assert [line.split() for line in lines[at + 1 :]] == [
        "9 of 19 class-3 said to be class-7".split(),
        "4 of 14 class-0 said to be class-1".split(),
        "4 of 14 class-5 said to be class-4".split(),
    ]
    counts[counts == 0] = 1
    *_, rest = class_lines([f"class-{i}" for i in range(20)], counts.tolist(), 60)
    pairs = 20 * 19 - MOST_PAIRS
    assert rest.split()[0] == str(9 + 4 + 4 + 377 - 9 - 4 - 4 - (MOST_PAIRS - 3))
    assert rest.endswith(f"in {pairs} other pairs")


def test_a_perfect_model_took_no_class_for_another():
    lines = class_lines(NAMES, np.diag([3] * 5).tolist(), 30)
    assert lines[-1] == "no class was taken for another"


def test_a_class_without_a_cloud_has_a_column_and_no_line():
    counts = [[3, 1, 0], [0, 0, 0], [0, 2, 2]]
    _, _, *lines = class_lines(["flat", "long", "round"], counts, 80)
    assert [line.split()[0] for line in lines] == ["flat", "round"]
    assert lines[1].split("%")[1].split() == ["3", ".", "2", "2"]
    assert class_lines(["flat", "long"], [[0, 0], [0, 0]], 80) == []


# examples and hints


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_one_example_and_it_can_be_typed(verb, say, folder):
    first, *words = shlex.split(EXAMPLES[verb])
    typed = verb.split(".")
    assert first == "minipc" and words[: len(typed)] == typed
    context = click.Context(minipc, info_name="minipc")
    assert VERBS[verb].make_context(typed[-1], words[len(typed) :], parent=context)
    shown = " ".join(say(*typed, "--help")[1].split())
    assert f"Example: {EXAMPLES[verb]} " in shown


def test_every_option_that_a_hint_names_exists_and_takes_its_value():
    options = [pair for verb in VERBS.values() for pair in options_of(verb).items()]
    for name, meant in ELSEWHERE.items():
        for each in meant:
            flag, _, value = each.removeprefix("--").partition(" ")
            types = [option.type for one, option in options if one == flag]
            assert types, (name, each)
            assert not value or any(value in getattr(kind, "choices", ()) for kind in types), each
        assert "_" not in name and name == name.lower()


@pytest.mark.parametrize(
    "typed, told",
    [
        ("--tau 4", "no such option --tau; here it is --temperature"),
        ("--tau=4", "no such option --tau; here it is --temperature"),
        ("--temp 4", "here it is --temperature"),
        ("--alpha 0.5", "here it is --kd-weight"),
        ("--gpu", "here it is --backend cupy"),
        ("--device cuda", "here it is --backend"),
        ("--bs 8", "here it is --batch-size"),
        ("--learning-rate 1", "here it is --lr"),
        ("--learning_rate 1", "here it is --lr"),
        ("--kd_weight 1", "here it is --kd-weight"),
        ("--votes 3", "No such option"),
    ],
)
def test_a_name_from_elsewhere_is_answered_by_one_line_with_ours(typed, told, say, folder):
    code, out, err = say("train", *typed.split())
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1, err


def test_a_name_from_elsewhere_is_no_riddle_where_the_verb_has_no_such_option(say, folder):
    code, _, err = say("verify", "--tau", 4)
    assert code == 2 and "--tau; and this verb has no --temperature (see minipc verify" in err
