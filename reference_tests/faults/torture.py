"""Real faults on real processes, bounded in count and time (make torture).

Run it as `python -m reference_tests.faults.torture`.  Recorder and training are killed at random
moments and go on, until both have ended as if nothing had happened: byte for byte.  Then a full
disk (a small tmpfs, where this user may mount one), Ctrl-C, two recorders at once, a damaged shard,
and a finalise that is killed.  Ends with 0 if nothing was lost and with a table for
docs/reliability.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from minipc.data.clouds import Clouds, Splits, write_clouds

CLOUDS, POINTS, VIEWS, EPOCHS = 2048, 64, 24, 24
NO_DISK = "skipped: a tmpfs cannot be mounted here"
RECORD = (
    "record",
    "clouds.h5",
    "--teacher",
    "teacher",
    "--views",
    str(VIEWS),
    "--force",
    "--threads",
    "1",
    "-q",
)
TRAIN = (
    "train",
    "--record",
    "whole.h5",
    "--epochs",
    str(EPOCHS),
    "--model",
    "8-16:8",
    "--threads",
    "1",
    "-q",
)


def minipc(*words, cwd, **how):
    """Start one command; return its process."""
    return subprocess.Popen(
        [sys.executable, "-m", "minipc", *words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        **how,  # a background job ignores it
    )


def run(*words, cwd, expected=0):
    """Run one command to its end; return its seconds."""
    start = time.monotonic()
    process = minipc(*words, cwd=cwd)
    _, err = process.communicate()
    if process.returncode != expected:
        raise SystemExit(
            f"torture: {' '.join(words)}: exit {process.returncode}, expected {expected}: "
            f"{err[-500:]}"
        )
    return time.monotonic() - start


def prepare(folder):
    """Make clouds.h5, teacher/, whole.h5 and the run undisturbed/; return their seconds."""
    rng = np.random.default_rng(0)
    stretch = np.array([[1, 1, 0.1], [0.1, 0.1, 1], [0.6, 0.6, 0.6]])

    def clouds(count):
        labels = np.arange(count) % 3
        points = rng.standard_normal((count, POINTS, 3)) * stretch[labels][:, None]
        return Clouds(points.astype(np.float32), labels, ("flat", "long", "round"), "z", "none")

    write_clouds(str(folder / "clouds.h5"), Splits(clouds(CLOUDS), clouds(30)))
    teacher = ("--labels-only", "--model", "64-128:32", "--epochs", "1", "--out", "teacher", "-q")
    run("train", "clouds.h5", *teacher, cwd=folder)
    recording = run(*RECORD, "--out", "whole.h5", cwd=folder)
    training = run(*TRAIN, "--out", "undisturbed", cwd=folder)
    return recording, training


def killed(start, finished, seconds, kills, rng):
    """Kill what start() begins at random moments; return how often it had already ended."""
    done = ended = 0
    while done < kills:
        process = start()
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.05, 1.05) * seconds)
        if process.poll() is None:
            process.kill()
            done += 1
        else:
            ended += 1
        process.communicate()
        finished()
    return ended


def recorder_killed(folder, kills, seconds, rng):
    out = folder / "killed.h5"
    whole, completed = (folder / "whole.h5").read_bytes(), 0

    def start_over_if_finished():
        nonlocal completed
        if out.exists() and not Path(f"{out}.parts").exists():
            assert out.read_bytes() == whole, "the recording that was killed is another one"
            out.unlink()
            completed += 1

    killed(
        lambda: minipc(*RECORD, "--out", "killed.h5", cwd=folder),
        start_over_if_finished,
        seconds,
        kills,
        rng,
    )
    run(*RECORD, "--out", "killed.h5", cwd=folder)
    assert out.read_bytes() == whole, "the recording that was killed is another one"
    return f"{kills} kills, {completed + 1} recordings completed meanwhile, all byte for byte"


def training_killed(folder, kills, seconds, rng):
    out, completed = folder / "killed", 0

    def start():
        begun = (out / "run.json").exists()
        words = ("train", "--resume", "-q", "--threads", "1") if begun else TRAIN
        return minipc(*words, "--out", "killed", cwd=folder)

    def same():
        for name in ("model.h5", "predictions.csv"):  # a checkpoint holds seconds too
            assert (out / name).read_bytes() == (folder / "undisturbed" / name).read_bytes(), (
                f"{name} is another one"
            )

    def start_over_if_finished():
        nonlocal completed
        if (out / "predictions.csv").exists():
            same()
            shutil.rmtree(out)
            completed += 1
        elif out.exists() and not (out / "run.json").exists():
            shutil.rmtree(out)  # killed before its settings were there: nothing was promised

    killed(start, start_over_if_finished, seconds, kills, rng)
    process = start()
    _, err = process.communicate()
    assert process.returncode == 0, err
    same()
    return f"{kills} kills, {completed + 1} trainings completed meanwhile, all byte for byte"


def interrupted(folder, seconds):
    process = minipc(*RECORD, "--out", "interrupted.h5", cwd=folder)
    time.sleep(max(0.6 * seconds, 0.5))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode in (0, 130), err
    run(*RECORD, "--out", "interrupted.h5", cwd=folder)
    assert (folder / "interrupted.h5").read_bytes() == (folder / "whole.h5").read_bytes()
    return f"exit {process.returncode}, then the same bytes"


def two_at_once(folder):
    both = [minipc(*RECORD, "--out", "both.h5", cwd=folder) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode)[1] for process in both]
    assert ends == [0, 0], ends
    assert (folder / "both.h5").read_bytes() == (folder / "whole.h5").read_bytes()
    return "both exit 0, the same bytes"


def damaged(folder, rng):
    run(*RECORD, "--shards", "0/2", "--out", "damaged.h5", cwd=folder)
    parts = folder / "damaged.h5.parts"
    shard = rng.choice(sorted(parts.glob("view-*.h5")))
    data = bytearray(shard.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    shard.write_bytes(data)
    run(*RECORD, "--out", "damaged.h5", cwd=folder)
    assert (folder / "damaged.h5").read_bytes() == (folder / "whole.h5").read_bytes()
    kept = [path.name for path in parts.iterdir()]
    assert kept == [f"{shard.name}.bad"], kept
    return "set aside, made again, the same bytes"


def finalise_killed(folder):
    """Kill the recorder while the merged file still has its temporary name."""
    whole, hits = (folder / "whole.h5").read_bytes(), 0
    for _ in range(20):
        process = minipc(*RECORD, "--out", "merged.h5", cwd=folder)
        while process.poll() is None:
            if list(folder.glob(".merged.h5.*.tmp")):
                process.kill()
                hits += 1
                break
        process.communicate()
        assert not (folder / "merged.h5").exists() or (folder / "merged.h5").read_bytes() == whole
        if hits == 3:
            break
    assert hits, "no kill met a finalise"
    run(*RECORD, "--out", "merged.h5", cwd=folder)
    assert (folder / "merged.h5").read_bytes() == whole and not list(
        folder.glob(".merged.h5.*.tmp")
    )
    return f"killed {hits} times in it, then the same bytes"


@contextmanager
def small_disk(size):
    """Give a mounted tmpfs of some bytes, or None where this user may not mount."""
    place = Path(tempfile.mkdtemp(prefix="minipc-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True
    )
    try:
        yield None if mounted.returncode else place
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", place], check=True)
        place.rmdir()


def too_small_disk(folder):
    """Record on disks of more and more bytes: one that is too small is refused in one line."""
    whole, stages = (folder / "whole.h5").read_bytes(), 0
    for size in range(64 << 10, 4 * len(whole), 192 << 10):
        with small_disk(size) as disk:
            if disk is None:
                return NO_DISK
            out = disk / "record.h5"
            process = minipc(*RECORD, "--out", str(out), cwd=folder)
            _, err = process.communicate()
            if process.returncode == 0:
                assert out.read_bytes() == whole
                return f"{stages} disks too small, each one line and exit 1; then the same bytes"
            assert process.returncode == 1 and err.count("\n") == 1 and "free some space" in err, (
                size,
                err,
            )
            assert not out.exists()
            stages += 1
    raise AssertionError("no disk was large enough")


def fill(disk):
    """Leave no byte free; return what holds them."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass
    return ballast


def disk_fills(folder, words, again, stages, same):
    """Fill the disk under a running command at each of stages; then free it and go on.

    words, again: the command and how it is typed again, functions of a folder on the disk;
    same(folder): raises unless it holds what an undisturbed run left.
    """
    failed = 0
    for reached in stages:
        with small_disk(64 << 20) as disk:
            if disk is None:
                return NO_DISK
            process = minipc(*words(disk), cwd=folder)
            while process.poll() is None and not reached(disk):
                time.sleep(0.0005)
            process.send_signal(signal.SIGSTOP)
            ballast = fill(disk)
            process.send_signal(signal.SIGCONT)
            _, err = process.communicate()
            if process.returncode:
                failed += 1
                assert (
                    process.returncode == 1 and err.count("\n") == 1 and "free some space" in err
                ), err
            ballast.unlink()
            if process.returncode:
                run(*again(disk), cwd=folder)
            same(disk)
    assert failed > len(stages) // 2, "too few stages met a full disk"
    return f"{len(stages)} stages, {failed} ended in one line and exit 1; then the same bytes"


def disk_fills_while_recording(folder):
    def shards(disk):
        return len(list(disk.glob("record.h5.parts/view-*.h5")))

    def record(disk):
        return *RECORD, "--out", str(disk / "record.h5")

    def same(disk):
        assert (disk / "record.h5").read_bytes() == (folder / "whole.h5").read_bytes()

    stages = [
        partial(lambda count, disk: shards(disk) >= count, count)
        for count in (0, 1, VIEWS // 2, VIEWS)
    ]
    stages[0] = lambda disk: (disk / "record.h5.parts").exists()
    return disk_fills(folder, record, record, stages, same)


def disk_fills_while_training(folder):
    def epochs(disk):
        with suppress(FileNotFoundError):
            return (disk / "run" / "metrics.jsonl").read_text().count("\n")
        return 0

    def again(disk):
        out = disk / "run"
        if (out / "checkpoint.h5").exists():
            return "train", "--resume", "-q", "--threads", "1", "--out", str(out)
        shutil.rmtree(out, ignore_errors=True)
        return train(disk)

    def train(disk):
        return *TRAIN, "--out", str(disk / "run")

    def same(disk):
        for name in ("model.h5", "predictions.csv"):
            assert (disk / "run" / name).read_bytes() == (
                folder / "undisturbed" / name
            ).read_bytes(), name

    stages = [
        partial(lambda count, disk: epochs(disk) >= count, count)
        for count in (1, EPOCHS // 2, EPOCHS - 1)
    ]
    return disk_fills(folder, train, again, [lambda disk: (disk / "run").exists(), *stages], same)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="of the recorder, and of the training"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng, found, begun = random.Random(options.seed), {}, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minipc-torture-") as name:
        folder = Path(name)
        recording, training = prepare(folder)
        for fault, what in (
            ("recorder killed", lambda: recorder_killed(folder, options.kills, recording, rng)),
            ("training killed", lambda: training_killed(folder, options.kills, training, rng)),
            ("Ctrl-C", lambda: interrupted(folder, recording)),
            ("two recorders at once", lambda: two_at_once(folder)),
            ("a damaged shard", lambda: damaged(folder, rng)),
            ("finalise killed", lambda: finalise_killed(folder)),
            ("a disk too small", lambda: too_small_disk(folder)),
            ("the disk fills while recording", lambda: disk_fills_while_recording(folder)),
            ("the disk fills while training", lambda: disk_fills_while_training(folder)),
        ):
            start = time.monotonic()
            found[fault] = what()
            print(
                f"{fault}: {found[fault]} ({time.monotonic() - start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    print(json.dumps(found) if options.json else f"nothing lost, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
