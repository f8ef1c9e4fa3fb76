"""A recording on a real Dask cluster of this machine: the same bytes, whoever dies.

Needs distributed, which is no dependency: what a cluster is for is skipped without it, unless
MINIPC_REQUIRE_DASK=1.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minipc.data.clouds import read_clouds
from minipc.errors import BackendError, DataError, MinipcError
from minipc.models.file import model_id, read_model
from minipc.record import recording
from minipc.record.parallel import scheduler
from minipc.record.reader import RecordReader
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording
from minipc.record.shard import commit_shard, shard_name
from minipc.record.store import Store
from minipc.storage import files
from reference_tests.faults.test_power import PLAN, SHARDS, rows

QUICK = ("--epochs", "1", "--model", "6-8:6", "--quiet")
VIEWS = 12
ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.fixture
def cluster():
    """Start a cluster of some worker processes; all end with the test."""
    try:
        from distributed import LocalCluster
    except ImportError as reason:
        if os.environ.get("MINIPC_REQUIRE_DASK") == "1":
            raise
        pytest.skip(f"{reason}: no test of a cluster (MINIPC_REQUIRE_DASK=1 makes this a failure)")
    clusters = []

    def start(workers):
        clusters.append(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any free port: another cluster may run here
                silence_logs="CRITICAL",
            )
        )
        return clusters[-1]

    yield start
    for each in clusters:
        each.close()


@pytest.fixture
def whole(data, say, folder, monkeypatch):
    """The bytes of a record of one process, in shards of 32 rows."""
    monkeypatch.setattr(recording, "MOST_ROWS", 32)  # the plan says so, also to workers
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert (
        say(
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            VIEWS,
            "--force",
            "-q",
            "--out",
            "whole.h5",
        )[0]
        == 0
    )
    return (folder / "whole.h5").read_bytes()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_makes_the_same_bytes(workers, data, whole, cluster, say, folder):
    address = cluster(workers).scheduler_address
    code, out, err = say(
        "record",
        data,
        "--teacher",
        "teacher",
        "--views",
        VIEWS,
        "--force",
        "--scheduler",
        address,
        "--json",
        "-q",
    )
    assert code == 0 and json.loads(out)["views"] == VIEWS, err
    assert (folder / "record.h5").read_bytes() == whole and not (
        folder / "record.h5.parts"
    ).exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_the_middle_changes_no_byte(workers, data, whole, cluster, say, folder):
    """With one worker everything that was in memory dies, what had been read too."""
    running, there = cluster(workers), []
    victim, ended = running.workers[0].pid, threading.Event()

    def kill():
        while not ended.is_set() and not there:
            shards = len(list(folder.glob("record.h5.parts/view-*.h5")))
            if shards >= 3:
                there.append(shards)
                os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        code, _, err = say(
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            VIEWS,
            "--force",
            "-q",
            "--scheduler",
            running.scheduler_address,
        )
    finally:
        ended.set()
        killer.join()
    assert there and there[0] < 3 * VIEWS, there
    assert code == 0 and (folder / "record.h5").read_bytes() == whole, err
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)


@pytest.fixture
def programs(folder):
    """Start programs as a shell would; all end with the test."""
    started = []

    def start(line, **variables):
        words = shlex.split(line)
        program = (
            [sys.executable, "-m", "minipc"]
            if words[0] == "minipc"
            else [sys.executable, "-m", "dask"]
        )
        with open(folder / f"{words[1]}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    [*program, *words[1:]],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
                )
            )
        return started[-1]

    yield start
    for process in reversed(started):  # workers while their scheduler is there to hear of it
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # Dask's may miss a signal while it starts its workers
            process.kill()
            process.wait()


@pytest.fixture
def by_hand(cluster):
    """The three commands of the README's scheduler block, with this machine and a free port."""
    (text,) = (
        block
        for block in re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)
        if "dask" in block
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    text = text.replace("10.0.0.1:8786", f"127.0.0.1:{port}").replace(
        "10.0.0.1", f"127.0.0.1 --port {port}"
    )
    text = text.replace(
        "modelnet40.h5 --teacher teacher40 --views 300",
        f"clouds.h5 --teacher teacher --views {VIEWS}",
    )
    found = text.strip().splitlines()
    assert [line.split()[0] for line in found] == ["dask", "dask", "minipc"]
    return found


def test_the_commands_of_the_readme_make_the_same_rows(by_hand, whole, programs, folder):
    for line in by_hand[:2]:
        programs(line)
    assert programs(f"{by_hand[2]} --force --quiet").wait(60) == 0, (
        folder / "record.log"
    ).read_text()
    with RecordReader("record.h5") as found, RecordReader("whole.h5") as expected:
        for view in range(VIEWS):
            for one, other in zip(found.view(view), expected.view(view), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_scheduler_that_dies_costs_no_shard(by_hand, whole, programs, folder):
    place, views = Path("record.h5.parts"), 400
    first, *_ = [programs(line) for line in by_hand[:2]]
    process = programs(
        f"{by_hand[2]} --views {views} --force --quiet",
        DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s",
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(place.glob("view-*.h5")) and process.poll() is None:
        time.sleep(0.001)
    first.kill()
    assert process.wait(60) == 1
    told = (folder / "record.log").read_text()
    assert told.count("\n") == 1 and "look at the workers and type the same again" in told, told
    there = len(list(place.glob("view-*.h5")))
    assert 0 < there < views
    again = programs(
        f"minipc record clouds.h5 --teacher teacher --views {views} --force --quiet --json"
    )
    assert again.wait(60) == 0
    assert json.loads((folder / "record.log").read_text())["resumed_shards"] >= there


def refuse():
    """What a worker runs instead of reading."""
    raise DataError("clouds.h5: is not here")


def two_shards(address, read, folder):
    """Have the first two shards of PLAN computed by the workers of a scheduler."""
    store = Store(str(folder / "record.h5"), PLAN)
    asked = Recording(None, PLAN.teacher_id, store.out, PLAN.views, engine="fused")
    scheduler.on_scheduler(address, read, asked, store, None, SHARDS[:2], print)


def break_down():
    raise ZeroDivisionError("by hand")


@pytest.mark.parametrize(
    "read, kind, says",
    [
        (refuse, DataError, "^clouds.h5: is not here$"),
        (
            break_down,
            MinipcError,
            r"view 0, row \d: ZeroDivisionError: by hand; look at the workers",
        ),
    ],
)
def test_what_a_worker_says_arrives_in_one_line(read, kind, says, cluster, tmp_path):
    address = cluster(1).scheduler_address
    with pytest.raises(kind, match=says):
        two_shards(address, read, tmp_path)


def other_clouds(path):
    """What a worker reads that sees another file under the name of the data."""
    splits, model = read_clouds(path), read_model("teacher/model.h5")
    return replace(splits.train, points=splits.train.points * np.float32(2)), model, ()


def test_a_worker_that_sees_other_files_under_the_same_names_records_nothing(
    data, whole, cluster, folder
):
    address, clouds = cluster(1).scheduler_address, read_clouds(data).train
    model = read_model("teacher/model.h5")
    for read, teacher, says in (
        (partial(other_clouds, str(folder / data)), model_id(model), "points_hash is"),
        (partial(_same_files, str(folder)), "0" * 64, "a worker reads teacher"),
    ):
        workers = partial(scheduler.on_scheduler, address, read)
        asked = Recording(clouds, teacher, "other.h5", 1, force=True, engine="fused")
        with pytest.raises(DataError, match=says):
            record(asked, model_teacher(model), workers)
        assert not Path("other.h5").exists() and not Path("other.h5.parts").exists()


def _same_files(folder):
    return read_clouds(f"{folder}/clouds.h5").train, read_model(f"{folder}/teacher/model.h5"), ()


def sleep():
    time.sleep(60)


def test_when_no_worker_is_left_it_is_told(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "PATIENCE", 3)
    running = cluster(1)
    threading.Timer(1.0, lambda: running.scale(0)).start()
    with pytest.raises(BackendError, match="has no worker left; look at their output"):
        two_shards(running.scheduler_address, sleep, tmp_path)


def test_who_speaks_but_not_as_a_scheduler_is_not_waited_for(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendError, match="does not answer"):
            two_shards(address, sleep, tmp_path)


def test_a_scheduler_without_workers_or_nobody_at_all_is_told(
    cluster, data, whole, say, monkeypatch
):
    monkeypatch.setattr(scheduler, "PATIENCE", 1)
    for address, told in (
        (cluster(0).scheduler_address, "has no worker; start one: dask worker tcp://"),
        ("tcp://127.0.0.1:9", "does not answer"),
        ("nonsense://", "does not answer"),
    ):
        code, out, err = say(
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            2,
            "--force",
            "-q",
            "--scheduler",
            address,
        )
        assert (code, out, err.count("\n")) == (5, "", 1) and told in err, err
        assert not Path("record.h5.parts").exists()  # the place is free for another seed


def test_without_dask_the_extra_is_named(data, whole, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, out, err = say(
        "record",
        data,
        "--teacher",
        "teacher",
        "--views",
        2,
        "--force",
        "-q",
        "--scheduler",
        "tcp://127.0.0.1:9",
    )
    assert (code, out) == (5, "") and "pip install -e '.[dask]'" in err and err.count("\n") == 1


def test_a_shard_that_a_worker_committed_elsewhere_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "LATE", 0.3)
    path = tmp_path / shard_name(*SHARDS[0][:2])
    with pytest.raises(
        DataError, match="committed 00, found none; start workers on a folder that they share"
    ):
        scheduler._seen(str(path), "00")
    commit_shard(tmp_path, PLAN, *SHARDS[0][:2], *rows(*SHARDS[0]), {"device": "test"})
    with pytest.raises(DataError, match="a worker committed 00, found "):
        scheduler._seen(str(path), "00")
    scheduler._seen(str(path), files.digest_of(path))


def test_a_folder_that_shows_a_shard_late_is_waited_for(tmp_path):
    path = tmp_path / shard_name(*SHARDS[0][:2])
    commit_shard(tmp_path, PLAN, *SHARDS[0][:2], *rows(*SHARDS[0]), {"device": "test"})
    digest = files.digest_of(path)
    path.rename(tmp_path / "hidden")
    threading.Timer(0.4, (tmp_path / "hidden").rename, [path]).start()
    scheduler._seen(str(path), digest)
    assert path.exists()
