"""record --dry-run and the check of free space: all is said before anything changes."""

import json
import os
from collections import namedtuple

import pytest

from minipc.errors import DataError, MinipcError, UsageError
from minipc.record.recorder import record
from minipc.record.recording import Recording, forecast
from minipc.record.store import Store
from reference_tests.commands.test_cli import QUICK
from reference_tests.formats.test_embedded_clouds import on_grid, teacher


def state(place):
    """Return {path: (kind, content, time of change)} of a folder and all below it."""
    found = {}
    for path in [place, *sorted(place.rglob("*"))]:
        about = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (about.st_mode, content, about.st_mtime_ns, about.st_ctime_ns)
    return found


@pytest.fixture
def out(tmp_path):
    return tmp_path / "record.h5"


@pytest.fixture
def splits():
    return on_grid()


def interrupted(out, splits, views, after):
    """Leave an interrupted recording: some shards, and what a kill and a bad disk leave."""
    calls = []

    def dying(points):
        calls.append(1)
        if (
            len(calls) > 3 + 3 + 3 * after
        ):  # it is tried with three blocks, the trial has three and so has each shard
            raise KeyboardInterrupt
        return teacher(points)

    with pytest.raises(KeyboardInterrupt):
        record(Recording(splits.train, "t", str(out), views, force=True), dying)


def test_a_dry_run_changes_nothing_and_its_forecast_comes_true(out, splits):
    before = state(out.parent)
    told = forecast(Recording(splits.train, "t", str(out), 3, with_clouds=splits))
    assert state(out.parent) == before
    assert (told.shards, told.shards_there, told.rows_left) == (3, 0, 210) and told.would_make == [
        str(out)
    ]
    done = record(
        Recording(splits.train, "t", str(out), 3, with_clouds=splits, force=True), teacher
    )
    assert abs(done.bytes - told.bytes) < 4000 and told.bytes_needed > told.bytes
    for name in (
        "out",
        "run_id",
        "clouds",
        "views",
        "classes",
        "bytes_per_view",
        "clouds_as",
        "clouds_bytes",
    ):
        assert getattr(done, name) == getattr(told, name)


def test_a_dry_run_on_a_damaged_interrupted_recording_sees_all_and_touches_nothing(out, splits):
    interrupted(out, splits, 4, after=2)
    parts = out.parent / "record.h5.parts"
    bad = parts / "view-00001-row-00000000.h5"
    bad.write_bytes(bad.read_bytes()[:-1])
    plan = parts / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-1])
    for name in (
        parts / ".plan.json.0123456789abcdef.tmp",
        out.parent / ".record.h5.0123456789abcdef.tmp",
    ):
        name.write_bytes(b"what a killed writer left")
    before = state(out.parent)
    told = forecast(Recording(splits.train, "t", str(out), 4))
    assert state(out.parent) == before
    assert (told.shards, told.shards_there, told.rows_left) == (4, 1, 210)
    assert [line.split(": ")[0] for line in told.damaged] == [str(plan), str(bad)]
    said = []
    done = record(Recording(splits.train, "t", str(out), 4, force=True), teacher, say=said.append)
    assert done.resumed_shards == told.shards_there
    assert sum("kept as" in line for line in said) == 2
    assert sorted(os.listdir(parts)) == ["plan.json.bad", "view-00001-row-00000000.h5.bad"]


def test_a_dry_run_knows_what_a_finished_record_lacks(out, splits):
    record(Recording(splits.train, "t", str(out), 2, force=True), teacher)
    before = state(out.parent)
    for views, carry, rows, makes in [
        (2, None, 0, []),
        (1, None, 0, []),
        (2, splits, 0, [str(out)]),
        (3, None, 70, [str(out)]),
    ]:
        told = forecast(Recording(splits.train, "t", str(out), views, with_clouds=carry))
        assert (told.rows_left, told.would_make) == (rows, makes)
        assert (told.bytes_needed == 0) == (not makes) and told.views == max(views, 2)
    assert state(out.parent) == before


@pytest.mark.parametrize(
    "change, error, named",
    [
        (dict(views=0), UsageError, "views"),
        (dict(seed=-1), UsageError, "seed"),
        (dict(seed=1), DataError, "seed is 0"),
        (dict(teacher_id="other"), DataError, "teacher_id"),
        (dict(logits="float32"), DataError, "logits"),
    ],
)
def test_a_dry_run_refuses_what_a_recording_would(out, splits, change, error, named):
    record(Recording(splits.train, "t", str(out), 1, force=True), teacher)
    settings = dict(clouds=splits.train, teacher_id="t", out=str(out), views=1)
    with pytest.raises(error, match=named):
        forecast(Recording(**(settings | change)))


# Free space


def disk(monkeypatch, free):
    """Let every disk have so many bytes free."""
    monkeypatch.setattr(
        os, "statvfs", lambda path: namedtuple("S", "f_bavail f_frsize")(free // 512, 512)
    )


def test_too_little_space_is_told_before_the_teacher_is_called_and_leaves_nothing(
    out, splits, monkeypatch
):
    calls = []
    needed = forecast(Recording(splits.train, "t", str(out), 3)).bytes_needed
    disk(monkeypatch, needed - 512)
    for run in (
        lambda: record(Recording(splits.train, "t", str(out), 3), calls.append),
        lambda: forecast(Recording(splits.train, "t", str(out), 3)),
    ):
        with pytest.raises(
            MinipcError, match="needs 0.0 MB more, but its disk has 0.0 MB free; free some"
        ) as caught:
            run()
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert not calls and os.listdir(out.parent) == []
    disk(monkeypatch, needed + 512)
    record(Recording(splits.train, "t", str(out), 3, force=True), teacher)


def test_the_space_that_is_needed_is_the_space_that_is_taken(out, splits, monkeypatch):
    """The most is needed when the last shard, the old and the new record are all there."""
    for views, carry in ((2, None), (3, None), (3, splits), (5, None)):
        told = forecast(Recording(splits.train, "t", str(out), views, with_clouds=carry))
        before, shards = size_of(out.parent), []
        with monkeypatch.context() as patch:
            patch.setattr(Store, "finalise", measured(Store.finalise, out.parent, shards))
            done = record(
                Recording(splits.train, "t", str(out), views, with_clouds=carry, force=True),
                teacher,
            )
        taken = shards[0] - before + done.bytes
        assert taken <= told.bytes_needed + 4000 and told.bytes_needed < taken + 4096 * 5


def measured(finalise, place, sizes):
    """Return Store.finalise that notes the bytes in place first."""

    def first_measured(store, progress):
        sizes.append(size_of(place))
        return finalise(store, progress)

    return first_measured


def size_of(place):
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def test_the_space_of_shards_that_are_there_is_not_asked_for_again(out, splits):
    whole = forecast(Recording(splits.train, "t", str(out), 4)).bytes_needed
    interrupted(out, splits, 4, after=3)
    left = forecast(Recording(splits.train, "t", str(out), 4))
    assert left.rows_left == 70 and left.bytes_needed < whole - 3 * 70 * left.bytes_per_view


@pytest.mark.parametrize("gone", ["missing", "failing"])
def test_where_the_system_does_not_tell_nothing_is_refused(out, splits, monkeypatch, gone):
    def failing(path):
        raise OSError("not supported")

    monkeypatch.delattr(os, "statvfs") if gone == "missing" else monkeypatch.setattr(
        os, "statvfs", failing
    )
    assert forecast(Recording(splits.train, "t", str(out), 1)).bytes_free is None
    record(Recording(splits.train, "t", str(out), 1, force=True), teacher)


# The command


def test_too_little_space_is_one_line_and_exit_1(data, say, folder, monkeypatch):  # noqa: F811
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    before = state(folder)
    disk(monkeypatch, 0)
    for more in ([], ["--dry-run"]):
        code, out, err = say("record", data, "--teacher", "teacher", *more)
        assert (code, out) == (1, "") and "free some space" in err and err.count("\n") == 1
    found = state(folder)
    assert found.pop(str(folder))[1] is None and before.pop(str(folder)) and found == before


def test_the_command_says_what_it_would_do_and_does_nothing(data, say, folder):  # noqa: F811
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    before = state(folder)
    code, out, err = say(
        "record", data, "--teacher", "teacher", "--views", 2, "--with-clouds", "--dry-run"
    )
    assert (code, err) == (0, "")
    assert "96 clouds x 2 views" in out and "shards: 2, there 0, to do 2 (192 rows); needs " in out
    assert "embedded as float32" in out and out.endswith("would make: record.h5\n")
    code, out, err = say(
        "record", data, "--teacher", "teacher", "--views", 2, "--dry-run", "--json"
    )
    values = json.loads(out)
    assert (code, values["rows_left"], values["would_make"], values["clouds_as"]) == (
        0,
        192,
        ["record.h5"],
        None,
    )
    assert state(folder) == before
    assert say("record", data, "--teacher", "teacher", "--views", 2, "--quiet")[0] == 0
    code, out, err = say("record", data, "--teacher", "teacher", "--views", 2, "--dry-run")
    assert (
        code == 0
        and "there 2, to do 0 (0 rows); needs 0 B" in out
        and out.endswith("would make: nothing\n")
    )


@pytest.mark.parametrize(
    "line, code, named",
    [
        ("record none.h5 --teacher teacher --dry-run", 3, "none.h5"),
        ("record clouds.h5 --teacher none --dry-run", 3, "none"),
        ("record clouds.h5 --dry-run", 2, "a teacher is needed"),
        ("record clouds.h5 --teacher teacher --seed 1 --dry-run", 3, "holds another recording"),
        (
            "record clouds.h5 --teacher teacher --out no/where.h5 --dry-run",
            3,
            "there is no folder no; make it first",
        ),
    ],
)
def test_the_command_refuses_in_a_dry_run_what_it_refuses_otherwise(
    data, say, folder, line, code, named
):  # noqa: F811
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 1, "--quiet")[0] == 0
    before = state(folder)
    found, out, err = say(*line.split())
    assert (found, out) == (code, "") and named in err and err.count("\n") == 1
    assert state(folder) == before


def test_a_bare_dry_run_names_the_files_that_would_be_made(folder, say, small_shapes):  # noqa: F811
    before = state(folder)
    code, out, err = say("record", "--dry-run", "--views", 2)
    assert (code, out, err) == (0, "would make: shapes.h5, teacher, record.h5\n", "")
    code, out, _ = say("record", "--dry-run", "--json")
    assert json.loads(out)["would_make"] == ["shapes.h5", "teacher", "record.h5"]
    assert state(folder) == before
    assert say("record", "--views", 1, "--quiet")[0] == 0
    before = state(folder)
    code, out, err = say("record", "--views", 3, "--dry-run", "--with-clouds")
    assert code == 0 and "104 clouds x 3 views" in out and "there 1, to do 2 (208 rows)" in out
    os.rename("teacher", "elsewhere")
    assert say("record", "--dry-run")[1] == "would make: teacher, record.h5\n"
    os.rename("elsewhere", "teacher")
    assert {name for name in state(folder)} == {name for name in before}
    (folder / "teacher" / "model.h5").unlink()
    assert (
        say("record", "--dry-run")[1] == "would make: teacher, record.h5\n"
    )  # an unfinished one is set aside
    (folder / "teacher" / "run.json").unlink()
    before = state(folder)
    code, out, err = say("record", "--dry-run")
    assert code == 3 and "no run of ours" in err and state(folder) == before
