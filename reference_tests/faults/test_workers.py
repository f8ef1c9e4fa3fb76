"""Many recorders, one record: the same bytes, whoever computes what, and whoever dies."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig
from minipc.data.clouds import read_clouds
from minipc.errors import CheckFailed, DataError, UsageError
from minipc.record import recorder, recording
from minipc.record.parallel.processes import device_of, run_workers
from minipc.record.parts import Parts
from minipc.record.plan import read_plan
from minipc.record.recorder import Share, here, record
from minipc.record.recording import Recording
from minipc.record.store import Store
from reference_tests.faults.test_power import PLAN, SHARDS, commit, rows

QUICK = ("--epochs", "1", "--model", "6-8:6", "--quiet")


@pytest.fixture
def many_shards(monkeypatch):
    """Shards of 32 rows, in this process."""
    monkeypatch.setattr(recording, "MOST_ROWS", 32)


def teacher(points):
    """Return the coordinates of the first point of each cloud as its logits."""
    return points.reshape(len(points), -1)[:, :3]


def recorded(clouds, compute=here, **asked):
    """Record the teacher above."""
    return record(Recording(clouds, "by hand", force=True, **asked), teacher, compute)


@pytest.fixture
def whole(data, say, folder):
    """The bytes of a record of one process."""
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert (
        say(
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            4,
            "--force",
            "--quiet",
            "--out",
            "whole.h5",
        )[0]
        == 0
    )
    return (folder / "whole.h5").read_bytes()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_worker_processes_makes_the_same_bytes(workers, data, whole, say, folder):
    code, out, err = say(
        "record",
        data,
        "--teacher",
        "teacher",
        "--views",
        4,
        "--force",
        "--workers",
        workers,
        "--json",
        "--quiet",
    )
    assert code == 0 and json.loads(out)["views"] == 4, err
    assert (folder / "record.h5").read_bytes() == whole and not (
        folder / "record.h5.parts"
    ).exists()


def test_shares_in_any_order_join_and_the_last_one_finishes(data, many_shards, folder):
    clouds = read_clouds(data).train  # 96 clouds: three shards a view

    one = partial(recorded, clouds, views=2)
    one(out="whole.h5")
    for number in (2, 0, 3):
        found = one(out="record.h5", share=(number, 4))
        assert isinstance(found, Share) and found.share == f"{number}/4" and found.shards == 6
    assert found.shards_there == 4  # 2; 0 and 4; 3
    again = one(out="record.h5", share=(0, 4))
    assert again.shards_there == 4
    done = one(out="record.h5", share=(1, 4))
    assert (
        done.views == 2
        and (folder / "record.h5").read_bytes() == (folder / "whole.h5").read_bytes()
    )
    assert done.clouds_per_second > 0  # of its own shards, though others finished theirs
    assert one(out="record.h5", share=(1, 4)).views == 2  # finished long ago
    for wrong in ((4, 4), (-1, 2)):
        with pytest.raises(UsageError, match="expected i/n with 0 <= i < n"):
            one(out="record.h5", share=wrong)


def test_a_share_that_nobody_computed_is_made_up_for_by_a_run_without_shares(
    data, whole, say, folder
):
    words = ("record", data, "--teacher", "teacher", "--views", 4, "--force", "--quiet")
    code, out, _ = say(*words, "--shards", "1/3")
    assert (
        code == 0
        and "share 1/3 is there, 1 of 4 shards in all" in out
        and not (folder / "record.h5").exists()
    )
    assert say(*words)[0] == 0 and (folder / "record.h5").read_bytes() == whole


def test_a_recorder_whose_workers_fail_goes_on_if_another_has_finished_and_leaves_no_plan_behind(
    data, many_shards
):
    clouds = read_clouds(data).train

    one = partial(recorded, clouds, views=2)
    one(out="whole.h5")

    def fail(*_):
        raise DataError("nobody is there")

    def another_finishes(*_):
        one(out="record.h5")
        fail()

    with pytest.raises(DataError, match="nobody is there"):
        one(out="record.h5", compute=fail)
    assert not os.path.exists("record.h5.parts")
    assert one(out="record.h5", compute=another_finishes).views == 2

    def another_differs(*_):
        one(out="again.h5")
        raise CheckFailed("the teacher does not repeat itself")

    with pytest.raises(CheckFailed):  # never passed over, though the record is whole
        one(out="again.h5", compute=another_differs)
    with open("record.h5", "rb") as found, open("whole.h5", "rb") as expected:
        assert found.read() == expected.read()


def only_files_lock(monkeypatch):
    """As on NFS, where a folder cannot be locked, as it cannot be open for writing."""
    real = fcntl.flock

    def flock(fd, how):
        number = fd if isinstance(fd, int) else fd.fileno()
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("folders_lock", [True, False], ids=["here", "NFS"])
def test_two_recorders_that_finish_at_once_both_finish(
    folders_lock, data, many_shards, monkeypatch
):
    if not folders_lock:
        only_files_lock(monkeypatch)
    clouds = read_clouds(data).train

    one = partial(recorded, clouds, views=8)
    one(out="whole.h5")
    with open("whole.h5", "rb") as file:
        whole = file.read()
    for number in range(4):
        out = f"both-{number}.h5"
        assert isinstance(one(out=out, share=(0, 2)), Share)
        place = Store(out, read_plan(f"{out}.parts/plan.json"))
        for view, first, stop in place.missing():
            *arrays, _ = recorder.compute_shard(
                clouds, teacher, place.plan, AugmentConfig(), view, first, stop, np, 1
            )
            place.commit_shard(
                view, first, *arrays, {**recorder.provenance_of(np, None), "max_kl": 0.0}
            )
        with ThreadPoolExecutor(3) as threads:
            ends = [threads.submit(one, out=out) for _ in range(3)]
        assert [end.result().views for end in ends] == [8, 8, 8] and not os.path.exists(
            f"{out}.parts"
        )
        with open(out, "rb") as file:
            assert len(file.read()) == len(whole)


@pytest.mark.parametrize("folders_lock", [True, False], ids=["here", "NFS"])
def test_a_recorder_removes_a_folder_whose_plan_another_removed(
    folders_lock, data, many_shards, monkeypatch
):
    """A waiter makes the lock file between the other's last unlink and its rmdir, which fails."""
    if not folders_lock:
        only_files_lock(monkeypatch)
    one = partial(recorded, read_clouds(data).train, views=8)
    whole, real = one(out="record.h5"), Parts._lock

    def lock(parts, held):
        locked = real(parts, held)
        os.unlink(f"{parts.path}/plan.json")
        return locked

    monkeypatch.setattr(Parts, "_lock", lock)
    os.mkdir("record.h5.parts")
    assert one(out="record.h5").views == whole.views == 8
    assert not os.path.exists("record.h5.parts")


class Sleeper:
    """A worker's function for tests: number 1 waits to be killed, and says its process."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __call__(self, number, count):
        path = os.path.join(self.folder, f"worker-{number}")
        with open(f"{path}.tmp", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{path}.tmp", path)
        if number == 1:
            time.sleep(60)
        if number == 2:
            raise UsageError("nothing to do for me")


def test_a_worker_that_is_killed_is_told_and_the_others_go_on(tmp_path):
    said, killed = [], []

    def look():
        path = tmp_path / "worker-1"
        if (
            path.exists() and not killed
        ):  # once: it may be gone, and its number another's, while others still begin
            killed.append(int(path.read_text()))
            os.kill(killed[0], signal.SIGKILL)

    run_workers(Sleeper(tmp_path), 3, say=said.append, progress=look)
    assert killed and sorted(path.name for path in tmp_path.iterdir()) == [
        "worker-0",
        "worker-1",
        "worker-2",
    ]
    assert sorted(said) == [  # each is told when it ends
        "worker 2 of 3: ended with signal 9; what it left is computed here",
        "worker 3 of 3: nothing to do for me",
    ]


def test_an_interruption_ends_all_workers(tmp_path):
    def interrupt():
        if (tmp_path / "worker-1").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(Sleeper(tmp_path), 2, say=print, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "worker-1").read_text()), 0)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_death_of_the_parent_ends_its_workers(tmp_path, how):
    """Else they would train or record on, unseen, and hold the locks of what they work on."""
    words = (
        "from reference_tests.faults.test_workers import *; from sys import argv; "
        "run_workers(Sleeper(argv[1]), 2, say=print, progress=lambda: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", words, tmp_path])
    path = tmp_path / "worker-1"
    until = time.monotonic() + 60
    while time.monotonic() < until and not path.exists():
        time.sleep(0.05)
    parent.send_signal(getattr(signal, how))
    parent.wait()
    status = Path(f"/proc/{path.read_text()}/stat")
    while time.monotonic() < until:
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":  # ended, not yet waited for
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    os.kill(int(path.read_text()), signal.SIGKILL)
    pytest.fail("the worker went on without its parent")


def test_a_recorder_killed_among_its_workers_is_joined_by_the_next(data, whole, folder):
    """All of its processes at once, as a job scheduler does it."""
    words = [
        sys.executable,
        "-m",
        "minipc",
        "record",
        data,
        "--teacher",
        "teacher",
        "--views",
        "4",
        "--force",
        "-q",
    ]
    process = subprocess.Popen(
        [*words, "--workers", "2"], start_new_session=True, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while (
        time.monotonic() < until
        and not (folder / "record.h5.parts").exists()
        and process.poll() is None
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(words, stdout=subprocess.DEVNULL).returncode == 0
    assert (folder / "record.h5").read_bytes() == whole


def test_two_recorders_of_one_shard_are_harmless_where_they_agree_and_told_where_not(tmp_path):
    first, second = (Store(tmp_path / "record.h5", PLAN) for _ in range(2))
    commit(first, *SHARDS[0])
    before = os.stat(f"{first.parts.path}/view-00000-row-00000000.h5")
    commit(second, *SHARDS[0])
    after = os.stat(f"{first.parts.path}/view-00000-row-00000000.h5")
    assert (before.st_ino, before.st_mtime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
    )  # the first one stays
    scale, shift, logits = rows(*SHARDS[0])
    logits[0, 0] = np.nextafter(logits[0, 0], np.float16(9))
    with pytest.raises(CheckFailed, match="the teacher does not repeat itself"):
        second.commit_shard(*SHARDS[0][:2], scale, shift, logits, {"device": "test"})
    second.commit_shard(
        *SHARDS[0][:2], scale, shift, logits, {"device": "another"}
    )  # another build rounds otherwise
    assert second.missing() == first.missing()


def test_each_worker_has_a_device_of_its_own_in_turn():
    assert [device_of(worker, 2, None) for worker in range(3)] == ["0", "1", "0"]
    assert [device_of(worker, 2, "5,7") for worker in range(3)] == ["5", "7", "5"]
    assert [device_of(worker, 2, "5, 7,") for worker in range(3)] == ["5", "7", "5"]
    # CUDA ends the list at the first entry that is no device
    assert [device_of(worker, 1, "0,-1,1") for worker in range(3)] == ["0", "0", "0"]


@pytest.mark.parametrize(
    "words, says",
    [
        (("--shards", "0/2"), "--shards goes with DATA"),
        (("--workers", "2"), "--workers goes with DATA"),
        (("clouds.h5", "--teacher", "t", "--shards", "2"), "is not i/n"),
        (("clouds.h5", "--teacher", "t", "--shards", "0/2", "--workers", "2"), "without --workers"),
        (("clouds.h5", "--teacher", "t", "--workers", "0"), "workers"),
        (("clouds.h5", "--teacher", "t", "--scheduler", ""), "the address is empty"),
        (("--scheduler", "tcp://host:8786"), "--scheduler goes with DATA"),
        (
            ("clouds.h5", "--teacher", "t", "--scheduler", "tcp://host:8786", "--workers", "2"),
            "without --workers",
        ),
        (
            ("clouds.h5", "--teacher", "t", "--scheduler", "tcp://host:8786", "--shards", "0/2"),
            "and --shards",
        ),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(words, says, data, say):
    code, out, err = say("record", *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err
