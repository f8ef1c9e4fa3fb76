"""The name of a cloud's file travels: packed data, records, predictions.csv, report; safely."""

import csv
import os
from dataclasses import replace
from html import escape

import numpy as np
import pytest

from minipc.data.clouds import Clouds, Splits, hold_out, read_clouds, write_clouds
from minipc.data.readers.point_files import read_prepared
from minipc.errors import DataError, escaped
from minipc.record.reader import RecordReader
from minipc.runs.predictions import joined, parsed
from minipc.storage import hdf5

# line ends, control characters, markup, bytes that are no UTF-8, a formula, a comma, quotes
STRANGE = [
    "a\nb\r.xyz",
    "\x1b[31mred\x07.xyz",
    "<script>&amp;\"'.xyz",
    os.fsdecode(b"\xff\x80.xyz"),
]
STRANGE += ["=1+1,2.xyz", "\u202eltr \N{SNOWMAN}.xyz", "n" * 240 + ".xyz"]
QUICK = "--model 8-16:8 --epochs 2 --batch-size 4 --warmup-steps 2 --quiet".split()


@pytest.fixture
def tree(folder):
    """A folder of three classes, each with the strange names in its test split."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("flat", "long", "round")):
        for split, files in (("train", ["1.xyz", "2.xyz", "3.xyz"]), ("test", STRANGE)):
            os.makedirs(f"things/{name}/{split}")
            for file in files:
                cloud = rng.standard_normal((20, 3)) * (1, 1, number)
                np.savetxt(f"things/{name}/{split}/{file}", cloud)
    return "things"


def names_in(tree, split):
    return [
        f"{name}/{split}/{file}"
        for name in sorted(os.listdir(tree))
        for file in sorted(os.listdir(f"{tree}/{name}/{split}"))
    ]


def test_names_travel_from_a_tree_to_predictions_record_and_report(tree, say):
    assert say("data", "pack", tree, "-o", "data.h5", "--num-points", 16)[0] == 0
    train, test = read_clouds("data.h5")
    assert list(train.files) == names_in(tree, "train") and len(set(test.files)) == 3 * len(STRANGE)
    assert list(test.files) == names_in(tree, "test")
    for clouds in (train, test):  # each name stands beside its own cloud
        for name, points in zip(clouds.files, clouds.points, strict=True):
            own = read_prepared(f"{tree}/{name}", "unit_sphere", 16)[0]
            assert own.tobytes() == points.tobytes()
    assert say("train", "data.h5", "--labels-only", "--out", "run", *QUICK)[0] == 0
    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [escaped(name) for name in test.files]
    assert all(row["file"].isprintable() for row in rows)
    with open("run/predictions.csv", "rb") as file:
        assert file.read().count(b"\n") == 1 + len(test)  # one line a cloud, for every tool
    with open("run/report.html", encoding="utf-8") as file:
        page = file.read()
    assert "<script>&amp;" not in page and "\x1b" not in page
    wrong = [escape(f"file {row['file']}") for row in rows if row["right"] == "0"]
    assert wrong and any(text in page for text in wrong)
    words = ("--teacher", "run", "--views", 2, "--force", "--with-clouds", "--quiet")
    assert say("record", "data.h5", *words)[0] == 0
    with RecordReader("record.h5") as reader:
        assert [clouds.files for clouds in reader.clouds()] == [train.files, test.files]
    os.rename("data.h5", "elsewhere.h5")
    assert say("train", "--record", "record.h5", "--out", "far", *QUICK)[0] == 0
    with open("far/predictions.csv", encoding="utf-8", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [row["file"] for row in rows]
    for words in (("report", "run", "far"), ("info", "record.h5"), ("info", "elsewhere.h5")):
        assert say(*words)[0] == 0, words


def test_names_change_no_hash_and_no_identity(tree, say, folder):
    say("data", "pack", tree, "-o", "named.h5", "--num-points", 16)
    named = read_clouds("named.h5")
    bare = Splits(*(replace(clouds, files=()) for clouds in named))
    write_clouds("bare.h5", bare)
    for one, other in zip(named, read_clouds("bare.h5"), strict=True):
        assert other.files == () and one.described == other.described
        assert (one.points_hash, one.labels_hash) == (other.points_hash, other.labels_hash)
    say("train", "bare.h5", "--labels-only", "--out", "run", *QUICK)
    ids = []
    for data in ("named.h5", "bare.h5"):
        words = ("--teacher", "run", "--views", 2, "--force", "--with-clouds", "--quiet")
        assert say("record", data, *words, "--out", f"of-{data}")[0] == 0
        with RecordReader(f"of-{data}") as reader:
            ids.append(reader.plan.recording_id)
    assert ids[0] == ids[1]
    assert say("train", "named.h5", "--record", "of-bare.h5", "--out", "mixed", *QUICK)[0] == 0


def test_a_file_without_names_is_written_as_before(tmp_path):
    rng = np.random.default_rng(0)
    clouds = Clouds.from_arrays(rng.standard_normal((4, 9, 3)), [0, 1, 0, 1], ["a", "b"])
    write_clouds(tmp_path / "a.h5", Splits(clouds, clouds))
    with hdf5.open_hdf5(tmp_path / "a.h5", "clouds", 2) as file:  # a minipc of version 2 reads it
        assert "files" not in hdf5.read_meta(file, "a.h5")


def test_names_follow_their_clouds_when_some_are_held_out():
    points = np.random.default_rng(0).standard_normal((20, 9, 3))
    clouds = Clouds.from_arrays(points, np.arange(20) % 2, ["a", "b"])
    clouds = replace(clouds, files=tuple(f"{i}.xyz" for i in range(20)))
    at = {clouds.points[i].tobytes(): f"{i}.xyz" for i in range(20)}
    for split in hold_out(Splits(clouds, clouds), 0.3):
        assert [at[cloud.tobytes()] for cloud in split.points] == list(split.files)


@pytest.mark.parametrize(
    "files, message",
    [
        (("a",), "expected 2 file names or none, got 1"),
        (("a", 3), "expected file names that are text, got 3"),
        (("a", "\ud800"), "expected file names that are text"),
        (("a", "b\0"), "at most 4096 bytes, got 2"),
        (("a", "\u00e9" * 2049), "at most 4096 bytes, got 4098"),
    ],
)
def test_names_that_are_none_are_refused(files, message):
    clouds = Clouds.from_arrays(np.eye(3)[None].repeat(2, 0), [0, 1], ["a", "b"])
    with pytest.raises(DataError, match=message) as raised:
        replace(clouds, files=files)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("names", [{}, ["a"], [1, 2, 3, 4], "abcd", ["a", "b", "c", "\0"]])
def test_a_data_file_that_lies_about_names_is_refused(tmp_path, names):
    clouds = Clouds.from_arrays(np.eye(3)[None].repeat(2, 0), [0, 1], ["a", "b"])

    def fill(file):
        hdf5.write_meta(file, {**clouds.described, "source": "", "files": names})
        for name in ("train", "test"):
            file.create_dataset(f"{name}/points", data=clouds.points)
            file.create_dataset(f"{name}/labels", data=clouds.labels)

    hdf5.write_hdf5(tmp_path / "a.h5", "clouds", 3, fill)
    with pytest.raises(DataError, match="a.h5: .*file"):
        read_clouds(tmp_path / "a.h5")


def test_predictions_are_read_with_and_without_names():
    head = b"cloud,label,predicted,right,probability"
    old = parsed(head + b"\n0,a,a,1,0.5\n1,b,a,0,0.7\n", ["a", "b"], "x")
    new = parsed(head + b',file\n0,a,a,1,0.5,"a,1.xyz"\n1,b,a,0,0.7,b.xyz\n', ["a", "b"], "x")
    assert (old.files, new.files) == ((), ("a,1.xyz", "b.xyz"))
    assert joined([new, new]).files == new.files * 2 and joined([old, new]).files == ()
    for wrong in (b"\n0,a,a,1,0.5,x\n", b",file\n0,a,a,1,0.5\n", b",name\n0,a,a,1,0.5,x\n"):
        with pytest.raises(DataError, match="x: cannot be read"):
            parsed(head + wrong, ["a", "b"], "x")


def test_a_bad_file_of_a_strange_name_is_told_in_one_line(tree, say):
    say("data", "pack", tree, "-o", "data.h5", "--num-points", 16)
    say("train", "data.h5", "--labels-only", "--out", "run", *QUICK)
    for name in STRANGE:
        with open(name, "w") as file:
            file.write("1 2\n")
        code, out, err = say("predict", "run", f"./{name}", "--up-axis", "unknown")
        assert (code, out, err.count("\n")) == (3, "", 1) and err[:-1].isprintable(), err
        assert say("predict", "run", f"things/flat/test/{name}")[0] == 0
