"""minipc data show: which clouds are shown, as they are, in a page, in a terminal and as lines."""

import base64
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_three_classes

from minipc.cli.main import main
from minipc.data.clouds import UNLABELLED, Splits, read_clouds, write_clouds
from minipc.data.prepare import fit_points, prepare, turned
from minipc.data.readers.point_files import read_points
from minipc.errors import DataError
from minipc.record.reader import RecordReader
from minipc.report import gallery
from minipc.verbs.show import of_predictions, of_splits, show
from reference_tests.commands.test_cli import QUICK


def rows_of(values):
    return [one["cloud"] for one in values["shown"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with clouds.h5, teacher/ and record.h5, two views."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        write_three_classes("clouds.h5")
        for words in (
            ("train", "clouds.h5", "--labels-only", "--out", "teacher", *QUICK),
            ("record", "clouds.h5", "--teacher", "teacher", "--views", "2", "--quiet"),
        ):
            with pytest.raises(SystemExit) as end:
                main(list(map(str, words)))
            assert end.value.code == 0, words
    return folder


@pytest.fixture
def record(made, folder):
    """The path of record.h5, in a folder of its own with the files that it was made from."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return "record.h5"


def test_without_options_one_cloud_of_each_class_is_shown_bit_for_bit(data):
    clouds = read_clouds(data).train
    values, points = show([data])
    assert [one["class"] for one in values["shown"]] == ["flat", "long", "round"]
    for row, shown in zip(rows_of(values), points, strict=True):
        assert shown.tobytes() == clouds.points[row].tobytes()
    assert [clouds.labels[row] for row in rows_of(values)] == [0, 1, 2]
    made, again = of_splits(data, read_clouds(data))
    assert made == values and all(map(np.array_equal, again, points))


def test_a_class_a_number_a_split_or_one_cloud_is_chosen(data):
    """Cloud n of clouds.h5 has class n mod 3."""
    assert rows_of(show([data], name="long")[0]) == list(range(1, 36, 3))
    assert rows_of(show([data], name="long", count=2)[0]) == [1, 4]
    assert rows_of(show([data], count=2)[0]) == [0, 3, 1, 4, 2, 5]
    assert rows_of(show([data], cloud=95)[0]) == [95]
    values, points = show([data], split="test", cloud=32)
    assert points[0].tobytes() == read_clouds(data).test.points[32].tobytes()
    assert (values["split"], values["clouds"]) == ("test", 33)


def test_clouds_without_a_label_and_classes_without_a_cloud_are_told(data):
    splits = read_clouds(data)
    labels = np.where(splits.train.labels == 1, UNLABELLED, splits.train.labels)
    write_clouds("few.h5", splits._replace(train=replace(splits.train, labels=labels)))
    values, _ = show(["few.h5"])
    assert [one["class"] for one in values["shown"]] == ["flat", "round", None]
    assert values["absent"] == ["long"]
    lines = gallery.of_data_show(values)
    assert "no training cloud of: long" in lines and any("no label" in line for line in lines)


def test_of_a_record_the_views_are_those_that_were_replayed_and_the_answers_those_recorded(record):
    values, points = show([record], cloud=7)
    clouds = read_clouds("clouds.h5").train
    stored, *views = values["shown"]
    assert stored["stored"] and points[0].tobytes() == clouds.points[7].tobytes()
    assert [one["view"] for one in views] == [0, 1]
    with RecordReader(record) as reader:
        for one, shown in zip(views, points[1:], strict=True):
            scale, shift, logits = (each[7] for each in reader.view(one["view"]))
            wanted = (clouds.points[7] * scale).astype(np.float32) + shift
            assert shown.tobytes() == wanted.tobytes()
            assert (one["scale"], one["shift"]) == (scale.tolist(), shift.tolist())
            p = np.exp(logits.astype(np.float64))
            assert one["teacher"]["class"] == clouds.class_names[p.argmax()]
            # float64 throughout, of logits of size ten
            assert one["teacher"]["probability"] == pytest.approx(p.max() / p.sum(), rel=1e-12)
    assert [one["view"] for one in show([record], views=(1, 2))[0]["shown"]] == [None, 1]
    several = show([record], name="round", count=2)[0]
    assert rows_of(several) == [2, 2, 2, 5, 5, 5]


def test_the_points_of_a_thinned_cloud_are_the_same_in_all_its_views(record):
    _, (stored, *views) = show([record], num_points=5)
    whole = read_clouds("clouds.h5").train.points[0]
    rows = [int(np.flatnonzero((whole == point).all(axis=1))[0]) for point in stored]
    for full, few in zip(show([record])[1][1:], views, strict=True):
        assert full[rows].tobytes() == few.tobytes()


def test_a_record_is_shown_with_its_own_clouds_and_refused_beside_others(record, say, folder):
    words = ("record", "clouds.h5", "--teacher", "teacher", "--views", 2, "--quiet")
    assert say(*words, "--with-clouds", "--out", "carry.h5")[0] == 0
    splits = read_clouds("clouds.h5")
    beside = show([record])
    os.remove("clouds.h5")
    values, points = show(["carry.h5"])
    assert all(map(np.array_equal, points, beside[1]))
    with pytest.raises(DataError, match="pass|not here"):
        show([record])
    other = replace(splits.train, points=splits.train.points[:, ::-1].copy())
    write_clouds("clouds.h5", Splits(other, splits.test))
    with pytest.raises(DataError, match="other training points"):
        show([record])


def test_files_of_one_cloud_are_shown_as_they_are_read(vessels):
    paths = ["vessels/mug/001.xyz", "vessels/bowl/002.xyz"]
    values, points = show(paths, num_points=20, up_axis="y")
    assert values["up_axis"] == "y" and [one["file"] for one in values["shown"]] == paths
    for path, shown in zip(paths, points, strict=True):
        assert np.array_equal(shown, fit_points(read_points(path), 20))
    (whole,) = show(paths[:1])[1]
    assert np.array_equal(whole, read_points(paths[0]))


@pytest.mark.parametrize("turning", [None, ["y", "z"]])
@pytest.mark.parametrize("count", [32, 900])  # a part of the points, and more than there are
def test_a_prediction_is_drawn_with_the_points_that_the_model_saw(folder, count, turning):
    whole = np.random.default_rng(0).normal(size=(300, 3)) + 5
    np.save("a.npy", whole)
    best = {"class": "mug", "probability": 0.75}
    predictions = [{"file": "a.npy", **best, "top": [best]}]
    given = {"predictions": predictions, "points": count, "up_axis": "z", "turned": turning}
    values, points = of_predictions(given)
    if turning:
        whole = turned(whole, *turning)
    seen = prepare(whole, "unit_sphere", count)[0][:300]  # then they are repeated
    middle = whole.mean(axis=0)
    radius = np.linalg.norm(whole - middle, axis=1).max()
    # the unit sphere is rounded to float32
    np.testing.assert_allclose((points[0] - middle) / radius, seen, atol=1e-6)
    assert gallery.captions(values["shown"][0]) == (
        "a.npy",
        ["mug 75.0 %", "32 of 300 points" if count == 32 else "300 points"],
    )


# the page


def read(path):
    return Path(path).read_text(encoding="utf-8")


def test_the_page_holds_what_is_shown_and_is_replaced_by_the_next(data, say):
    code, out, err = say("data", "show", data, "--out", "a.html")
    assert (code, err) == (0, "") and "written: a.html" in out
    first = read("a.html")
    assert first.count("data-points=") == 3
    code, out, _ = say("data", "show", data, "--count", 2, "--out", "a.html", "--json")
    text, values = read("a.html"), json.loads(out)
    assert values["out"] == "a.html" and values["bytes"] == len(text.encode())
    assert text.count("data-points=") == 6 and len(values["shown"]) == 6
    assert say("data", "show", data, "--out", "b.html")[0] == 0
    assert read("b.html") == first
    for one in values["shown"]:
        assert gallery.alternative(one, "z") in text.replace("&#x27;", "'")


def test_the_views_of_a_cloud_are_drawn_in_one_frame(record):
    values, points = show([record])
    made = re.findall(r'data-points="([^"]*)"', gallery.page_of(values, points))
    steps = [np.frombuffer(base64.b64decode(each), "<i2").reshape(-1, 3) for each in made]
    spans = np.array([np.ptp(each.astype(float), axis=0) for each in steps])
    extents = np.array([np.ptp(each, axis=0) for each in points])
    # a side of 32767 steps, rounded at both ends, of which the shortest has some hundreds
    np.testing.assert_allclose(spans / spans[0], extents / extents[0], rtol=1e-2)


def test_the_lines_are_made_from_the_values_of_json_alone(record, say):
    for words in ([record], ["clouds.h5", "--class", "long"]):
        text, values = say("data", "show", *words)[1], say("data", "show", *words, "--json")[1]
        assert text.splitlines() == gallery.of_data_show(json.loads(values))


# the terminal


def in_a_terminal(*words, **environment):
    """Return what `minipc words` writes to a terminal of 60 columns."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minipc", *words],
        stdout=there,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "60", "PYTHONUTF8": "1", **environment},
    )
    os.close(there)
    said = b""
    try:
        while piece := os.read(here, 4096):
            said += piece
    except OSError:  # Linux: the other end is closed
        pass
    os.close(here)
    assert process.wait() == 0
    return said.decode().replace("\r\n", "\n").splitlines()


def has_braille(text):
    return re.search("[\u2801-\u28ff]", text) is not None


def test_clouds_are_drawn_on_a_terminal_and_listed_in_a_pipe(data, say):
    lines = in_a_terminal("data", "show", data, "--count", "2")
    assert lines[0] == "clouds.h5: 6 of 96 training clouds, 16 points each, up axis z"
    assert has_braille("".join(lines)) and max(map(len, lines[1:-1])) <= 60
    assert "flat                flat                long" in lines
    values, points = show([data], count=2)
    assert lines == gallery.of_data_show(values, gallery.pictures_of(values, points, 60))
    assert not has_braille(say("data", "show", data)[1])
    listed = in_a_terminal("data", "show", data, PYTHONUTF8="0", PYTHONIOENCODING="latin-1")
    assert listed == say("data", "show", data)[1].splitlines()


def test_show_draws_at_the_end_of_a_prediction_also_in_a_pipe(record, say):
    np.savetxt("cloud.xyz", read_clouds("clouds.h5").train.points[0])
    plain = say("predict", "teacher", "cloud.xyz", "--quiet")[1]
    code, out, _ = say("predict", "teacher", "cloud.xyz", "--quiet", "--show")
    assert code == 0 and out.startswith(plain) and not has_braille(plain)
    assert has_braille(out.removeprefix(plain))
    assert out.rstrip().endswith(plain.split("  ")[1].strip())  # the answer below the picture


def test_show_has_nothing_to_draw_where_no_file_is_a_cloud(record, say):
    with open("one.xyz", "w") as file:
        file.write("nothing\n")
    code, out, err = say("predict", "teacher", "one.xyz", "--quiet", "--show")
    assert (code, out) == (3, "") and "one.xyz" in err and "Traceback" not in err


def test_show_draws_what_data_make_has_made(folder, say, monkeypatch):
    from minipc.data import shapes

    few = shapes.make_shapes
    monkeypatch.setattr(shapes, "make_shapes", lambda seed: few(seed, 2, 1, 64))
    assert not has_braille(say("data", "make", "-o", "a.h5")[1])
    code, out, _ = say("data", "make", "-o", "b.h5", "--show")
    assert code == 0 and has_braille(out) and "train cloud 24" in out
    assert say("data", "make", "-o", "c.h5", "--show", "--json")[0] == 2
    assert not os.path.exists("c.h5")
