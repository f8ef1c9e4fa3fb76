"""Without fcntl and its kin, as on Windows: what reads works, what needs a lock says so."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# What Windows does not have; blocked before anything of minipc is imported.
WITHOUT = """
import os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("pread", "pwrite", "posix_fallocate", "O_DIRECTORY", "O_NONBLOCK", "O_NOCTTY",
             "O_CLOEXEC"):
    delattr(os, name)
from minipc.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def without():
    """Run one command line without these functions: (exit code, stdout, stderr)."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_without_locks_what_reads_works_with_the_same_words(data, say, without):
    quick = ("--epochs", "2", "--model", "6-8:6", "--quiet")
    assert say("train", data, "--labels-only", "--out", "run", *quick)[0] == 0
    np.save("one.npy", np.random.default_rng(0).standard_normal((40, 3)))
    for words in (
        ("info", data),
        ("info", "run"),
        ("eval", "run", data, "--quiet"),
        ("predict", "run", "one.npy", "--quiet"),
    ):
        assert without(*words) == say(*words)


def test_without_locks_a_data_file_is_written_bit_for_bit(data, say, without):
    assert say("data", "hold-out", data, "-o", "with.h5")[0] == 0
    assert without("data", "hold-out", data, "-o", "without.h5")[0] == 0
    assert Path("with.h5").read_bytes() == Path("without.h5").read_bytes()


def test_without_limits_hdf5_of_others_is_read_and_it_says_so_once(folder, say, without):
    with h5py.File("others.h5", "w") as file:
        file["points"] = np.random.default_rng(0).standard_normal((20, 40, 3))
        file["labels"] = np.arange(20) % 2
    words = ("data", "pack", "others.h5", "--num-points", 40, "-o")
    assert say(*words, "with.h5", "--quiet")[0] == 0
    code, _, err = without(*words, "without.h5")
    assert code == 0 and err.count("\n") == 1 and "is read without limits" in err
    assert Path("with.h5").read_bytes() == Path("without.h5").read_bytes()


def test_without_locks_training_and_recording_say_so_in_one_line(data, say, without, folder):
    quick = ("--epochs", "2", "--model", "6-8:6", "--quiet")
    assert say("train", data, "--labels-only", "--out", "run", *quick)[0] == 0
    there = sorted(os.listdir(folder))
    for words in (
        ("train", data, "--labels-only", "--out", "new", *quick),
        ("train", "--resume", "--out", "run", "--quiet"),
        ("record", data, "--teacher", "run", "--views", 2, "--out", "new.h5", "--quiet", "--force"),
    ):
        code, out, err = without(*words)
        assert (code, out, err.count("\n")) == (1, "", 1) and "no fcntl" in err, (words, err)
        assert sorted(os.listdir(folder)) == there
