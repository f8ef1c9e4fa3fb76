"""`minipc report`: one page that holds what the runs say, opens anywhere, and hides nothing."""

import errno
import json
import os
import re
import shlex
import shutil
import xml.etree.ElementTree as tree
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import write_three_classes
from scipy.special import softmax

from minipc.cli.main import main
from minipc.data.clouds import Clouds, Splits, read_clouds, write_clouds
from minipc.errors import MinipcError, UsageError
from minipc.models.model import sizes
from minipc.nn.losses import formula, margins, smooth_labels
from minipc.record.reader import RecordReader
from minipc.report import charts, commands, run_page
from minipc.report.charts import Curve, curves, matrix, ticks_of
from minipc.runs.config import read_config
from minipc.verbs import report as verb
from reference_tests.tools.browser import Browser

QUICK = "--model 8-16:8 --epochs 3 --batch-size 16 --lr 0.01 --warmup-steps 4 --quiet".split()
NEGATIVE = "--kd-weight 0.7 --self-weight 0.2 --temperature 3".split()


def quietly(*words):
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0, words


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with clouds.h5, teacher, record.h5, a run in kd, and a study of two seeds."""
    folder, here = tmp_path_factory.mktemp("report"), os.getcwd()
    os.chdir(folder)
    try:
        write_three_classes("clouds.h5")
        quietly("train", "clouds.h5", "--labels-only", "--out", "teacher", *QUICK)
        words = ("--views", 2, "--force", "--quiet")
        quietly("record", "clouds.h5", "--teacher", "teacher", *words)
        quietly("train", "--record", "record.h5", *NEGATIVE, "--out", "kd", *QUICK)
        for seed in (0, 1):
            common = ("--record", "record.h5", "--seed", seed, "--no-report", *QUICK)
            quietly("train", *common, "--labels-only", "--out", f"study-labels-{seed}")
            quietly("train", *common, "--out", f"study-plain-{seed}")
        os.mkdir("study")
        for name in os.listdir():
            if name.startswith("study-"):
                os.rename(name, f"study/{name.removeprefix('study-')}")
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def way(made, tmp_path, monkeypatch):
    """A copy of the folder of made to stand in."""
    place = tmp_path / "way"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    return place


class Read(HTMLParser):
    """The tags of a page, each closed as it must be, its texts, and its attributes."""

    VOID = {"meta", "link", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def told(path):
    """Return the text of a report for readers."""
    return Read(Path(path).read_text()).text


# What a page holds


def test_training_ends_with_a_report_that_says_what_the_run_says(way):
    page = Read((way / "kd/report.html").read_text())
    config = read_config("kd")
    last = json.loads(Path("kd/metrics.jsonl").read_text().splitlines()[-1])
    assert formula(config.loss) in page.text
    for share in ("test_accuracy", "test_mean_class_accuracy", "test_ece"):
        assert f"{100 * last[share]:.2f} %" in page.text
    assert f"{last['test_nll']:.4f}" in page.text
    record = RecordReader("record.h5")
    assert record.plan.recording_id[:16] in page.text and record.plan.teacher_id[:16] in page.text
    record.close()
    assert commands.of_run(config, "kd") in page.text
    assert config.provenance["numpy"] in page.text
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert sum("over epochs: " in label for label in labels) == 3  # terms, accuracy, shares
    assert any("raised from" in label and "unbounded from" in label for label in labels)
    assert any("Calibration error" in label for label in labels)


def test_every_cloud_of_the_confusion_matrix_is_one_of_the_file(way):
    rows = [line.split(",") for line in Path("kd/predictions.csv").read_text().splitlines()[1:]]
    wrong = [row for row in rows if row[3] == "0"]
    text = told("kd/report.html")
    assert f"{len(wrong)} of {len(rows)} labelled test clouds are wrong." in text
    surest = sorted(wrong, key=lambda row: (-float(row[4]), int(row[0])))[0]
    said = f"{surest[1]}, said: {surest[2]} {100 * float(surest[4]):.1f} % sure"
    assert f"The surest: {said} test row {surest[0]} of clouds.h5" in text
    page = Read(Path("kd/report.html").read_text())
    assert page.tags.count("canvas") == min(10, len(wrong))


def test_the_same_run_gives_the_same_bytes_from_any_folder(way, say, monkeypatch):
    first = (way / "kd/report.html").read_bytes()
    os.unlink("kd/report.html")
    assert say("report", "kd")[0] == 0
    assert (way / "kd/report.html").read_bytes() == first
    monkeypatch.chdir(way / "kd")
    assert say("report", way / "kd", "--out", "again.html")[0] == 0
    assert (way / "kd/again.html").read_bytes() == first


def test_a_page_asks_for_nothing_and_is_small(way, say):
    say("report", "kd", "teacher", "study", "--out", "all.html")
    for path in ("kd/report.html", "all.html"):
        text = Path(path).read_text()
        assert len(text.encode()) < run_page.MOST_BYTES
        page = Read(text)
        links = {value for _, name, value in page.attributes if name in ("src", "href", "srcset")}
        assert all(link.startswith("#") or link == "data:," for link in links)
        targets = {value for _, name, value in page.attributes if name == "id"}
        assert {link[1:] for link in links if link.startswith("#")} <= targets
        assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
        assert page.tags.count("script") == 1


def test_every_picture_says_in_words_what_it_shows(way):
    page = Read(Path("kd/report.html").read_text())
    roles = sum(name == "role" and value == "img" for _, name, value in page.attributes)
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    hidden = sum(name == "aria-hidden" for _, name, _ in page.attributes)
    pictures = page.tags.count("svg") + page.tags.count("canvas")
    assert roles == len(labels) == pictures - hidden and all(len(label) > 20 for label in labels)


def test_runs_and_studies_stand_side_by_side(way, say):
    code, out, _ = say("report", "kd", "study", "--out", "all.html", "--json")
    assert code == 0
    assert json.loads(out) == {"report": "all.html", "bytes": os.path.getsize("all.html")}
    text = told("all.html")
    for name in ("kd", "labels-0", "labels-1", "plain-0", "plain-1"):
        assert f" {name} " in text
    assert "plain, mean of 2" in text and "What differs." in text
    assert "Compared: study" in text and re.search(r"plain .* labels.*; McNemar p ", text)
    say("report", "kd", "teacher", "--out", "two.html")
    # the teacher drew views of its own
    assert "Not compared. compare: " in told("two.html")


def test_the_mean_of_two_seeds_is_that_of_their_last_epochs(way, say):
    say("report", "study")
    last = [
        json.loads(Path(f"study/plain-{seed}/metrics.jsonl").read_text().splitlines()[-1])
        for seed in (0, 1)
    ]
    one, other = (row["test_accuracy"] for row in last)
    sd = 100 * abs(one - other) / 2**0.5
    wanted = f"plain, mean of 2 {50 * (one + other):.2f} ± {sd:.2f} %"
    assert wanted in told("study/report.html")


def test_the_map_counts_rows_whose_margin_is_negative(way):
    (arm,) = verb.gather(["kd"]).arms
    config, reader = arm.config.loss, RecordReader("record.h5")
    v, u = (reader.view(view)[2].astype(np.float64) for view in (0, 1))
    reader.close()
    y = smooth_labels(read_clouds("clouds.h5").train.labels, 3, 0.0, np.float64)
    for (b, T), share in arm.bound.shares.items():
        at = replace(config, temperature=T, guard="none")
        M = margins(y, softmax(v / T, axis=1), softmax(u / T, axis=1), b, at)
        assert share == (M < 0).any(axis=1).mean(), (b, T)
    assert (config.self_weight, config.temperature) in arm.bound.shares
    text = Path("kd/report.html").read_text()
    assert text.count("<span>trained</span>") == text.count(" chosen") - 1 == 1  # and its style


def test_names_of_classes_and_files_stay_text(folder, say):
    rng = np.random.default_rng(0)
    names = ("<script>alert(1)</script>", '"><img src=x onerror=1>', "a & b")
    points = rng.standard_normal((24, 16, 3)).astype(np.float32)
    clouds = Clouds(points, np.arange(24) % 3, names, "z", "none")
    write_clouds("<i>.h5", Splits(clouds, clouds))
    code, _, err = say("train", "<i>.h5", "--labels-only", "--out", "<b>&", *QUICK)
    assert code == 0, err
    page = Read(Path("<b>&/report.html").read_text())
    assert page.tags.count("script") == 1 and not {"img", "b>", "i>"} & set(page.tags)
    assert names[0] in page.text and "<i>.h5" in page.text and "<b>&" in page.text


def test_a_study_of_many_arms_shows_fewer_clouds_and_stays_small(way, monkeypatch):
    subject = verb.gather(["kd"])
    whole = run_page.run_page(subject)
    clouds = whole.count("data-points=")
    monkeypatch.setattr(run_page, "MOST_BYTES", len(whole) - 1)
    less = run_page.run_page(subject)
    assert 0 < less.count("data-points=") < clouds and len(less) < len(whole)
    monkeypatch.setattr(run_page, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="name fewer runs"):
        run_page.run_page(subject)


# What is missing


def test_a_run_without_its_data_and_record_is_reported_and_says_so(way, say):
    shutil.copytree("kd", "alone/deep/kd")
    os.chdir("alone")
    assert say("report", "deep/kd")[0] == 0
    text = told("deep/kd/report.html")
    assert "Not all of it is here" in text
    assert "its clouds are not shown: its file clouds.h5 is not beside it" in text
    assert "pass --data FILE" in text and "its record is left out" in text
    assert "The clouds are not here; the rows are:" in text and " test row " in text
    assert "made-up rows" in text  # of the map
    words = ("--data", "../clouds.h5", "--record", "../record.h5", "--out", "whole.html")
    assert say("report", "deep/kd", *words)[0] == 0
    assert Path("whole.html").read_bytes() == (way / "kd/report.html").read_bytes()


def test_other_clouds_of_the_same_name_are_not_shown(way, say):
    splits = read_clouds("clouds.h5")
    moved = replace(splits.test, points=splits.test.points + np.float32(1))
    os.unlink("clouds.h5")
    write_clouds("clouds.h5", Splits(splits.train, moved))
    assert say("report", "kd")[0] == 0
    text = Path("kd/report.html").read_text()
    assert "clouds.h5 holds others" in text and "<canvas" not in text
    code, _, err = say("report", "kd", "--data", "clouds.h5")
    assert code == 3 and "clouds.h5: belongs to none of these runs" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("predictions.csv", "predictions.csv is not there, so no class is counted"),
        ("metrics.jsonl", "no epoch is done"),
        ("model.h5", ""),
        ("checkpoint.h5", ""),
    ],
)
def test_what_is_missing_in_a_run_is_named(way, say, name, said):
    os.unlink(f"kd/{name}")
    code, _, err = say("report", "kd")
    assert code == 0, err
    assert said in told("kd/report.html")


def test_predictions_of_another_epoch_are_not_counted(way, say):
    lines = Path("kd/predictions.csv").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if ",1," in line)
    cloud, label, _, _, share = lines[at].split(",")
    lines[at] = f"{cloud},{label},{'long' if label != 'long' else 'flat'},0,{share}"
    Path("kd/predictions.csv").write_text("\n".join(lines) + "\n")
    assert say("report", "kd")[0] == 0
    text = told("kd/report.html")
    assert "predictions.csv is of another epoch" in text and "nothing can be counted" in text


def test_an_unfinished_run_is_reported_as_far_as_it_is(way, say):
    quietly("train", "clouds.h5", "--labels-only", "--stop-after", 2, "--out", "half", *QUICK)
    text = told("half/report.html")
    assert "half: 2 of its 3 epochs are done." in text and " 2 of 3 " in text


def test_without_labelled_test_clouds_nothing_is_counted(way, say):
    splits = read_clouds("clouds.h5")
    none = replace(splits.test, labels=np.full(len(splits.test), -1))
    write_clouds("none.h5", Splits(splits.train, none))
    quietly("train", "none.h5", "--labels-only", "--out", "none", *QUICK)
    text = told("none/report.html")
    assert "No accuracy" in text and text.count("No predictions of labelled test clouds") == 3


# What is refused


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("nowhere", 3, "nowhere: cannot be read"),
        ("clouds.h5", 3, "name the folder of a run or of a study"),
        ("empty", 3, "empty: holds no run.json"),
        ("kd kd", 2, "kd: is named twice"),
        ("kd study/../kd", 2, "kd: is named twice"),
        ("kd --out clouds.h5", 2, "clouds.h5: exists already"),
        ("kd --out nowhere/x.html", 3, "there is no folder nowhere"),
        ("kd --record teacher/model.h5", 3, "teacher/model.h5"),
        ("teacher --record record.h5", 3, "record.h5: belongs to none of these runs"),
        ("broken", 3, "broken/metrics.jsonl: expected a finite number raised"),
        ("cut", 3, "cut/predictions.csv: cannot be read"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(way, say, words, code, said):
    os.mkdir("empty")
    shutil.copytree("kd", "broken")
    metrics = Path("broken/metrics.jsonl")
    metrics.write_text(metrics.read_text().replace('"raised"', '"razed"'))
    shutil.copytree("kd", "cut")
    Path("cut/predictions.csv").write_text("cloud,label\n")
    before = {path: path.read_bytes() for path in way.rglob("*") if path.is_file()}
    ended, out, err = say("report", *shlex.split(words))
    assert (ended, out, err.count("\n")) == (code, "", 1) and said in err, err
    assert {path: path.read_bytes() for path in way.rglob("*") if path.is_file()} == before


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/report.html")


@pytest.mark.parametrize(
    ("reason", "told"),
    [(MinipcError("disk: full"), "disk: full"), (FULL, "No space left on device")],
)
def test_a_training_is_not_lost_by_its_report(way, say, monkeypatch, reason, told):
    def full(*_, **__):
        raise reason

    monkeypatch.setattr(verb, "write_page", full)
    words = [word for word in QUICK if word != "--quiet"]
    code, out, err = say("train", "clouds.h5", "--labels-only", "--out", "x", "--json", *words)
    assert code == 0 and json.loads(out)["report"] is None
    assert f"x: no report ({told}); later: minipc report x" in err
    assert os.path.exists("x/model.h5") and not os.path.exists("x/report.html")


def test_no_report_leaves_it(way):
    assert not any(path.name == "report.html" for path in (way / "study").rglob("*"))


# The commands


@pytest.mark.parametrize(
    "words",
    [
        "clouds.h5 --labels-only",
        "clouds.h5 --labels-only --label-smoothing 0.1 --model 6-8:4 --seed 3",
        "clouds.h5 --labels-only --optimiser sgd --clip-norm 1 --labels-per-class 2 --epochs 5",
        "--record record.h5",
        "--record record.h5 --views 1:2 --kd-weight 0.25 --temperature 2.5 --average ema",
        "--record record.h5 --self-weight 0.1 --self-target ema --ema-decay 0.9 --guard none",
        "--record record.h5 --self-weight 0.1 --self-every 2 --augment-width 3 --init teacher",
        "--record record.h5 --labels-only --val-fraction 0.25 --lr 0.00123456789",
    ],
)
def test_the_command_of_a_run_makes_its_settings_again(way, words):
    def settings(words, out):
        quick = [] if "--model" in words else "--model 8-16:8".split()
        short = [*quick, "--batch-size", "16", "--stop-after", "1", "--no-report", "--quiet"]
        quietly("train", *words, "--out", out, *(short if out == "one" else short[-4:]))
        return asdict(read_config(out))

    one = settings(shlex.split(words), "one")
    line = shlex.split(commands.of_run(read_config("one"), "two"))
    assert line[:2] == ["minipc", "train"] and line[-2:] == ["--out", "two"]
    assert settings(line[2:-2], "two") == one


@pytest.mark.parametrize(
    "name, text",
    [
        ("local-tiny", "8,16/3:16+,8/3:24,48+mean:24@0.25"),  # its offsets are multiplied since
        ("tiny", "16-8:4"),
        ("teacher", "16-8:4@0.3"),
        ("no name of today", "6"),
        ("tiny@0.5", "tiny@0.5"),
    ],
)
def test_the_command_of_a_run_whose_name_means_another_model_now_names_the_sizes(way, name, text):
    model = sizes(text, 3)
    config = replace(read_config("kd"), name=name, model=model, architecture=model.architecture)
    line = shlex.split(commands.of_run(config, "two"))
    told = line[line.index("--model") + 1]
    assert told == text and sizes(told, 3) == config.model


# Charts


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0.3, 0.31), (-2, 7), (1, 60), (0, 1e-7), (5, 5), (0, 12345)]
)
def test_ticks_are_few_round_and_hold_the_values(low, high):
    ticks = ticks_of(low, high)
    assert 1 <= len(ticks) <= 5 and ticks[0] <= low and ticks[-1] >= high
    assert all(re.fullmatch(r"-?[\d.]{1,8}(e[+-]\d+)?", f"{tick:.10g}") for tick in ticks)


def points_of(svg):
    """Return the vertices of each curve of a chart."""
    (drawing,) = (
        tree.fromstring(svg).iter("svg")
        if svg.count("<svg") == 1
        else [each for each in tree.fromstring(svg).iter("svg") if each.get("role")]
    )
    return [
        np.array([pair.split(",") for pair in each.get("points").split()], float)
        for each in drawing.iter("polyline")
    ]


def test_a_curve_goes_through_its_values():
    values = [3.0, 1.0, 2.0, 0.5]
    (line,) = points_of(curves("Loss", [Curve("a", range(1, 5), values)], low=0, high=3))
    x, y = line.T
    assert np.diff(x) == pytest.approx(np.diff(x)[0], abs=0.11)  # drawn to a tenth
    slope = (y[1] - y[0]) / (values[1] - values[0])
    assert slope < 0 and y == pytest.approx(y[0] + slope * (np.array(values) - 3), abs=0.11)


def test_a_long_curve_keeps_its_ends_and_loses_only_points_between():
    values = np.sin(np.arange(1000.0))
    (line,) = points_of(curves("Loss", [Curve("a", range(1, 1001), values.tolist())]))
    assert charts.MOST_POINTS / 2 < len(line) <= charts.MOST_POINTS + 1
    assert line[0, 0] == charts.LEFT and line[-1, 0] == charts.WIDTH - charts.RIGHT


def test_curves_differ_in_more_than_colour():
    assert len(set(charts.DASHES)) == charts.STYLES == len(charts.LIGHT) == len(charts.DARK)
    svg = curves("Loss", [Curve(f"{i}", [1, 2], [i, i + 1], i) for i in range(charts.STYLES)])
    drawn = re.findall(r'<polyline class="curve c\d"([^>]*?) points', svg)
    assert len(set(drawn)) == charts.STYLES


def test_a_matrix_holds_every_count_and_an_empty_row_nothing():
    counts = np.array([[5, 2, 0], [0, 7, 1], [0, 0, 0]])
    drawing = tree.fromstring(matrix("M", counts, ["a<", "b", "c"], "rows", "said"))
    texts = [each.text for each in drawing.iter("text")]
    assert sorted(text for text in texts if text.isdigit()) == ["1", "2", "5", "7"]
    assert texts.count("a<") == 2


# In a browser


def test_a_report_opens_from_a_file_at_two_widths_without_a_word_or_a_request(way):
    quietly("report", "kd", "study", "--out", "all.html", "--quiet")
    with Browser() as browser:
        for path in ("kd/report.html", "all.html"):
            for width in (390, 1100):
                browser.open(path, width)
                assert browser.faults() == []
                assert browser.value("document.documentElement.scrollWidth") <= width
                painted = browser.value(
                    "[...document.querySelectorAll('canvas')].every(c => "
                    "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
                    ".some((v, i) => i % 4 == 3 && v))"
                )
                assert painted and browser.value("document.querySelectorAll('canvas').length")
