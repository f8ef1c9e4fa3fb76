"""Ctrl-C and closed pipes: one line or none, no traceback, nothing committed is lost."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from reference_tests.commands.test_cli import QUICK

MINIPC = [sys.executable, "-m", "minipc"]
ROOT = str(Path(__file__).parents[2])
LIMIT = 60  # seconds; far more than any of these needs


@pytest.fixture
def start(folder):
    """Start one command line in a process of its own; what is left of it at the end is killed."""
    started = []
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MINIPC_")
    }

    def run(*words, stdout=subprocess.PIPE):
        started.append(
            subprocess.Popen(
                [*MINIPC, *map(str, words)],
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=environment | {"PYTHONPATH": ROOT},
                preexec_fn=partial(
                    signal.signal, signal.SIGINT, signal.SIG_DFL
                ),  # a shell's background job ignores it
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(happened, process):
    """Return once happened() is true; raise if the process ends or time runs out first."""
    end = time.monotonic() + LIMIT
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_recording_that_is_interrupted_continues_to_the_same_bytes(data, say, start, folder):
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    words = ("record", data, "--teacher", "teacher", "--views", 300, "--threads", 2)
    assert start(*words, "--out", "undisturbed.h5").wait(LIMIT) == 0
    process = start(*words, "--out", "record.h5")
    wait_for(lambda: os.path.exists("record.h5.parts/view-00003-row-00000000.h5"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    lines = [line for line in err.splitlines() if line]
    assert lines[-1].startswith(
        "minipc: interrupted; what was committed is kept; the same command again continues"
    )
    assert sum(line.startswith("minipc: ") for line in lines) == 1
    kept = [name for name in os.listdir("record.h5.parts") if name.endswith(".h5")]
    assert 4 <= len(kept) < 300 and not os.path.exists("record.h5")
    code, out, err = say("info", "record.h5.parts")
    assert code == 0 and f"{len(kept)} of 300 shards are there, intact" in out, err
    assert start(*words, "--out", "record.h5").wait(LIMIT) == 0
    assert (folder / "record.h5").read_bytes() == (folder / "undisturbed.h5").read_bytes()
    assert not os.path.exists("record.h5.parts")


HERE = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\nos._exit(7)\n"
IN_A_FINALISER = """
import os, signal, time
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
        os._exit(7)
Last()
time.sleep(30)
os._exit(7)
"""


@pytest.mark.parametrize("module", ["click", "numpy", "h5py"])
@pytest.mark.parametrize("moment", [HERE, IN_A_FINALISER], ids=["here", "finaliser"])
def test_an_interruption_while_modules_are_loaded_shows_no_traceback_and_is_not_lost(
    module, moment, start, folder
):
    """A module of this name, found first, stands for the moment: it signals, as a terminal does."""
    (folder / f"{module}.py").write_text(moment)
    process = start("eval", "none.h5")
    _, err = process.communicate(timeout=LIMIT)
    # by the signal itself where Python saw it pass through eval(); a shell says 130 then as well
    assert process.returncode in (130, -signal.SIGINT)
    assert (
        "Traceback" not in err
        and err.strip().startswith("minipc: interrupted")
        and err.strip().count("\n") == 0
    )


def test_a_reader_who_has_seen_enough_is_no_failure_to_report(data, start, say, folder):
    for words in (
        ["info", data],
        ["info", data, "--json"],
        ["doctor"],
        ["--help"],
        ["data"],
        [],
        ["--version"],
    ):
        reading, writing = os.pipe()
        os.close(reading)
        process = start(*words, stdout=writing)
        os.close(writing)
        _, err = process.communicate(timeout=LIMIT)
        assert err == "" and process.returncode in (0, 1), words


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this platform")
def test_a_full_disk_behind_stdout_is_one_line(data, start):
    with open("/dev/full", "w") as full:
        process = start("info", data, stdout=full)
        _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and err.count("\n") == 1 and "stdout: cannot be written" in err
