"""HDF5 of strangers is read in a process with limits: what takes too much ends in one line."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from minipc.data.readers import limited
from minipc.data.readers.packed import Request
from minipc.data.readers.source import read_source
from minipc.errors import DataError, MinipcError, UsageError

ROOT = Path(__file__).parents[2]
SECONDS, MEMORY = 10, 300 << 20  # of computing for a file; bytes beyond what a good file takes

pytestmark = pytest.mark.skipif(
    not limited.available(), reason="this system cannot limit a process"
)

# Reads the files named on its command line, each with limits: [[refused or read, CPU seconds of
# parent and child]], and the most memory that a child has taken after each.
READ_ALL = """
import json, resource, sys, time
from minipc.data.readers.source import read_source
from minipc.errors import DataError
told = []
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)[0] + time.process_time()
    try:
        read_source(path, 16)
        outcome = "read"
    except DataError as reason:
        outcome = str(reason)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    told.append([outcome, children[0] + time.process_time() - before, children.ru_maxrss * 1024])
print(json.dumps(told))
"""


@pytest.fixture
def good(tmp_path):
    """A data set of two classes."""
    path = tmp_path / "good.h5"
    write_good(path)
    return str(path)


def write_good(path):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["points"] = rng.standard_normal((60, 64, 3)).astype(np.float32)
        file["labels"] = np.arange(60) % 2


def amplified(path, names, links):
    """One group of many names under many hard links: a small file of names * links names."""
    write_good(path)
    with h5py.File(path, "r+", libver="latest") as file:
        group = file.create_group("g")
        for number in range(names):
            group[f"{number:060d}"] = h5py.SoftLink("/nowhere")
        for number in range(links):
            file[f"h{number}"] = group


def inflated(path):
    """4 GiB of a pattern in some megabytes."""
    chunk = np.tile(np.arange(96, dtype=np.float32).reshape(32, 3), (1 << 15, 1))  # 12 MiB
    packed, count = zlib.compress(chunk.tobytes()), 4 * 2**30 // chunk.nbytes
    with h5py.File(path, "w") as file:
        shape = (count, len(chunk), 3)
        data = file.create_dataset(
            "points", shape, "<f4", chunks=(1, *shape[1:]), compression="gzip"
        )
        for row in range(count):
            data.id.write_direct_chunk((row, 0, 0), packed)
        file["labels"] = np.arange(count) % 2


def overfull(path):
    """Clouds in a chunk that says 46 kB and inflates to a gigabyte."""
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    # after a full flush nothing refers back, so the same bytes may follow again
    zeros = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (2**30 % 65521 << 16 | 1).to_bytes(4, "big")  # of a gigabyte of zeros
    packed = b"\x78\x01" + 64 * zeros + packer.flush() + checksum
    with h5py.File(path, "w") as file:
        shape = (60, 64, 3)
        file.create_dataset("points", shape, "<f4", chunks=shape, compression="gzip")
        file["points"].id.write_direct_chunk((0, 0, 0), packed)
        file["labels"] = np.arange(60) % 2


def nested(path):
    """Groups a thousand deep, and links that lead back."""
    write_good(path)
    with h5py.File(path, "r+") as file:
        group = file.create_group("deep")
        for _ in range(1000):
            group["up"] = file["/"]
            group = group.create_group("deep")
        file["loop"] = h5py.SoftLink("/loop")
        del file["labels"]


HOSTILE = {
    "names": lambda path: amplified(path, names=2000, links=2000),  # 4 million names
    "inflated": inflated,
    "overfull": overfull,
    "nested": nested,
}


def test_hostile_files_end_within_limits_and_the_good_one_is_read(tmp_path):
    files = {name: tmp_path / f"{name}.h5" for name in ("good", *HOSTILE)}
    write_good(files["good"])
    for name, make in HOSTILE.items():
        make(files[name])
    assert max(path.stat().st_size for path in files.values()) < 20 << 20
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *map(str, files.values())],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    told = dict(zip(files, json.loads(done.stdout), strict=True))
    assert told["good"][0] == "read"
    assert told["overfull"][0] != "read"
    assert "memory" in told["names"][0]  # of libhdf5, h5py or Python, whichever asks last
    assert "declares" in told["inflated"][0] and "expected points" in told["nested"][0]
    for outcome, seconds, memory in told.values():
        assert "\n" not in outcome and seconds < SECONDS
        assert memory - told["good"][2] < MEMORY


def test_a_file_that_takes_too_long_is_refused_in_one_line(tmp_path, monkeypatch, say):
    """The same names, but the time runs out before the memory."""
    amplified(tmp_path / "names.h5", names=1000, links=4000)
    monkeypatch.setattr(limited, "SECONDS", 0)
    monkeypatch.setattr(limited, "BYTES_A_SECOND", 1 << 40)
    code, out, err = say("data", "pack", tmp_path / "names.h5", "-o", tmp_path / "new.h5", "-q")
    assert (code, out, err.count("\n")) == (3, "", 1) and "s of computing" in err
    assert not (tmp_path / "new.h5").exists()


def test_with_limits_the_same_clouds_are_read(good):
    ours, theirs = (read_source(good, 48, limits=limits) for limits in (True, False))
    for one, other in zip(ours.splits, theirs.splits, strict=True):
        assert one.points_hash == other.points_hash and one.labels_hash == other.labels_hash
        assert one.described == other.described and one.source == other.source
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("request_, kind", [({"val_split": "train"}, UsageError), ({}, DataError)])
def test_errors_of_a_reader_are_those_without_limits(request_, kind, good, tmp_path):
    if kind is DataError:
        with h5py.File(good, "r+") as file:
            del file["labels"]
    for limits in (True, False):
        with pytest.raises(kind) as told:
            read_source(good, 16, limits=limits, **request_)
        assert type(told.value) is kind
        if limits:
            expected = str(told.value)
    assert str(told.value) == expected


def test_a_reader_that_is_left_leaves_no_process(good, monkeypatch):
    begun = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            begun.append(self)

    monkeypatch.setattr(limited.subprocess, "Popen", Noted)
    clouds = limited.scan("foreign_hdf5", good, Request(16), print).clouds
    assert next(clouds).points.shape == (64, 3)
    clouds.close()
    assert [process.returncode is not None for process in begun] == [True]  # ended, and waited for


@pytest.mark.parametrize(
    "code, kind, says",
    [
        ("import os; os.abort()", DataError, "libhdf5 crashed"),
        ("import os; os.kill(os.getpid(), 11)", DataError, "signal 11"),
        ("import os; os.kill(os.getpid(), 9)", MinipcError, "memory runs out"),
        ("import sys; sys.exit(7)", MinipcError, "ended with 7"),
        ("import sys; print('[', flush=True); sys.exit(7)", MinipcError, "ended with 7"),
        ("import os; print('half', end='', flush=True); os.abort()", DataError, "crashed"),
    ],
)
def test_however_the_child_ends_it_is_told_in_one_line(code, kind, says, good, monkeypatch):
    monkeypatch.setattr(limited, "command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(kind, match=says) as told:
        read_source(good, 16)
    assert "\n" not in str(told.value) and type(told.value) is kind


def test_a_child_that_is_silent_is_ended(good, monkeypatch):
    code = "import time; time.sleep(60)"
    monkeypatch.setattr(limited, "command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(limited, "SILENCE", 0.1)
    with pytest.raises(DataError, match="nothing was read for 0.1 s"):
        read_source(good, 16)


def test_a_system_without_limits_says_so_once_and_reads(good, monkeypatch):
    monkeypatch.setattr(limited, "available", lambda: False)
    lines = []
    packed = read_source(good, 16, say=lines.append)
    assert len(packed.splits.train) == 48 and len(lines) == 1 and "without limits" in lines[0]
