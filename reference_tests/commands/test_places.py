"""Places that refuse: full disks, read-only folders, and paths that are no files."""

import os
import subprocess

import pytest

from reference_tests.commands.test_cli import QUICK, snapshot


@pytest.fixture
def mounted(tmp_path):
    """mounted(size, *options) -> a small file system of its own; skipped where not allowed."""
    places = []

    def mount(size, *options):
        place = tmp_path / f"disk-{len(places)}"
        place.mkdir()
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            ",".join([f"size={size}", *options]),
            "tmpfs",
            str(place),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no mount command here")
        if done.returncode:
            pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, left):
    """Leave so many bytes of a small disk, rounded down to a page."""
    free = os.statvfs(place)
    rest = free.f_bavail * free.f_frsize - left
    (place / "filler").write_bytes(b"x" * rest)


def one_line(err):
    """Return the last line if it is the only one of an error."""
    lines = [line for line in err.splitlines() if line.startswith("minipc: ")]
    assert len(lines) == 1 and err.endswith(lines[0] + "\n") and "Traceback" not in err, err
    return lines[0]


@pytest.mark.parametrize(
    "command", ["data make -o {}/s.h5", "data pack vessels -o {}/v.h5 --num-points 64"]
)
def test_a_full_disk_ends_packing_in_one_line_and_leaves_nothing(
    folder, say, mounted, small_shapes, vessels, command
):
    disk = mounted("8k")
    fill(disk, 4096)
    code, out, err = say(*command.format(disk).split())
    assert (code, out) == (1, "") and "free some space" in one_line(err)
    assert os.listdir(disk) == ["filler"]


@pytest.fixture
def teacher(data, say):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0


def test_a_recording_that_cannot_fit_is_refused_before_the_first_shard(data, teacher, say, mounted):
    disk = mounted("64k")
    code, out, err = say(
        "record", data, "--teacher", "teacher", "--views", 100, "--out", disk / "r.h5"
    )
    assert (code, out) == (1, "") and "free" in one_line(err)
    assert os.listdir(disk) == []


@pytest.mark.parametrize("left", [4096, 12288, 20480, 28672])
def test_a_disk_that_fills_while_recording_loses_nothing_and_the_same_command_continues(
    data, teacher, folder, say, mounted, monkeypatch, left
):
    """The disk fills after the check of free space, at several stages, finalise included."""
    words = ("record", data, "--teacher", "teacher", "--views", 3, "--quiet")
    assert say(*words)[0] == 0
    disk = mounted("100k")
    with monkeypatch.context() as patch:
        patch.setattr("minipc.record.store.Store.check_space", lambda store: fill(disk, left))
        code, out, err = say(*words, "--out", disk / "record.h5")
    assert (code, out) == (1, "") and "free some space" in one_line(err)
    assert not (disk / "record.h5").exists()
    parts = disk / "record.h5.parts"  # gone where not one shard was committed
    assert not parts.exists() or not [
        name for name in os.listdir(parts) if name.endswith((".tmp", ".bad"))
    ]
    os.unlink(disk / "filler")
    assert say(*words, "--out", disk / "record.h5")[0] == 0
    assert (disk / "record.h5").read_bytes() == (folder / "record.h5").read_bytes()
    assert os.listdir(disk) == ["record.h5"]


def test_a_disk_that_fills_while_training_loses_no_finished_epoch(
    data, folder, say, mounted, monkeypatch
):
    whole = ("train", data, "--labels-only", "--no-report", *QUICK)
    assert say(*whole, "--out", "whole")[0] == 0
    disk = mounted("100k")
    assert say(*whole, "--out", disk / "run", "--stop-after", 2)[0] == 0
    before = snapshot(disk / "run")
    fill(disk, 0)
    code, out, err = say("train", data, "--resume", "--out", disk / "run", "--quiet")
    assert (code, out) == (1, "") and "free some space" in one_line(err) and "--resume" in err
    assert snapshot(disk / "run") == before
    os.unlink(disk / "filler")
    assert say("train", data, "--resume", "--out", disk / "run")[0] == 0
    for name in ("model.h5", "predictions.csv"):
        assert (disk / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_a_folder_that_may_not_be_written_to_is_exit_3(
    data, teacher, say, mounted, small_shapes, vessels
):
    place = mounted("64k", "ro")
    for command in (
        f"data make -o {place}/s.h5",
        f"data pack vessels -o {place}/v.h5",
        f"record {data} --teacher teacher --out {place}/r.h5",
        f"train {data} --labels-only --out {place}/run",
    ):
        code, out, err = say(*command.split(), "--quiet")
        assert (code, out) == (3, "") and str(place) in one_line(err), (command, err)
