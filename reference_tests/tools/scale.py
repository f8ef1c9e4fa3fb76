"""Does the store stay linear?  Measured with made-up logits and 10,000 shards.

Run it as `python -m reference_tests.tools.scale`.  No teacher runs: a callable returns numbers, and
a shard holds the rows of one view of a few clouds, so that what is measured is the store.  Every
stage runs in a process of its own, so that its peak memory is its own.  Then the same for shards of
several sizes, `--sizes` rows, and for recordings of usual sizes, `--large`.  Prints the tables of
docs/scale.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from unittest import mock

import numpy as np

from minipc.data.clouds import Clouds
from minipc.record.plan import Plan, read_plan
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording
from minipc.record.store import Store
from minipc.record.verify import verify
from reference_tests.tools.memory import peak_of

CLOUDS, CLASSES = 64, 40
STAGES = ("record half", "scan", "resume and finalise", "open", "verify")


def clouds(count=CLOUDS):
    points = np.random.default_rng(0).standard_normal((count, 8, 3)).astype(np.float32)
    names = tuple(f"class {k}" for k in range(CLASSES))
    return Clouds(points, np.arange(count) % CLASSES, names, "z", "none")


def teacher(points):
    """Return logits that cost nothing."""
    return np.tile(points.reshape(len(points), -1)[:, :8], (1, CLASSES // 8))


def stage(name, path, views):
    """Run one stage on the record in path."""
    if name == "record half":
        record(Recording(clouds(), "made up", path, views, force=True, share=(0, 2)), teacher)
    elif name == "scan":
        assert (
            len(Store(path, read_plan(os.path.join(f"{path}.parts", "plan.json"))).missing())
            == views // 2
        )
    elif name == "resume and finalise":
        record(Recording(clouds(), "made up", path, views, force=True), teacher)
    elif name == "open":
        RecordReader(path).close()
    else:
        with RecordReader(path) as reader:
            assert verify(reader, clouds(), teacher, 1024).passed


def measured(name, path, views):
    """Return (seconds, peak bytes above the imports) of a stage in a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "reference_tests.tools.scale",
            "--stage",
            name,
            "--path",
            path,
            "--views",
            str(views),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def print_shards(numbers):
    found, sizes = {}, {}
    for shards in numbers:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "record.h5")
            found[shards] = {name: measured(name, path, shards) for name in STAGES}
            sizes[shards] = os.path.getsize(path)
    heads = "".join(f" {shards:,} shards | MB |" for shards in numbers)
    print(f"| stage |{heads} times as long |\n| --- |{' ---: | ---: |' * len(numbers)} ---: |")
    first, last = numbers[0], numbers[-1]
    for name in STAGES:
        each = [stages[name] for stages in found.values()]
        cells = "".join(f" {seconds:.2f} s | {memory / 1e6:.0f} |" for seconds, memory in each)
        print(f"| {name} |{cells} {found[last][name][0] / found[first][name][0]:.1f} |")
    for shards, size in sizes.items():
        seconds = found[shards]["verify"][0]
        print(
            f"{shards:,} shards: {size / 1e6:.1f} MB, {size / shards / CLOUDS:.2f} bytes a row, "
            f"verified at {size / seconds / 1e6:.0f} MB/s"
        )


def commits(rows, many=2**17):
    """Return (seconds, bytes, files) of committing `many` rows, and seconds of finalising."""
    rng = np.random.default_rng(0)
    params, logits = (
        rng.standard_normal((2, rows, 3), np.float32),
        rng.standard_normal((rows, CLASSES), np.float32),
    )
    plan = Plan(
        clouds=many,
        classes=CLASSES,
        logits="float16",
        block=32,
        rows_per_shard=rows,
        augment={},
        seed=0,
        points_hash="0",
        labels_hash="0",
        teacher_id="made up",
        class_names=tuple(map(str, range(CLASSES))),
        up_axis="z",
        normalisation="none",
        views=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(os.path.join(folder, "record.h5"), plan)
        start = time.perf_counter()
        for view, first, _ in store.missing():
            store.commit_shard(view, first, *params, logits.astype(np.float16), {})
        committed = time.perf_counter()
        names = [entry for entry in os.scandir(store.parts.path) if entry.name.endswith(".h5")]
        size = sum(512 * entry.stat().st_blocks for entry in names)
        store.finalise()
        return (
            committed - start,
            size,
            len(names),
            time.perf_counter() - committed,
            os.path.getsize(store.out),
        )


def print_sizes(sizes):
    print(
        "| rows a shard | kB a shard on disk | ms a commit | rows committed a second | finalised, "
        "MB/s | "
        "files of a million clouds x 100 views |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for rows in sizes:
        seconds, size, files, finalising, whole = commits(rows)
        print(
            f"| {rows:,} | {size / files / 1e3:.0f} | {1e3 * seconds / files:.1f} | "
            f"{rows * files / seconds:,.0f} | "
            f"{whole / finalising / 1e6:.0f} | {100 * -(-(10**6) // rows):,} |"
        )


def print_large(count, views):
    """What a recording of a usual size costs beside its teacher."""
    data, seconds, finalise = clouds(count), {}, Store.finalise

    @contextmanager
    def timed(name):
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    def timed_finalise(*arguments):
        with timed("finalised"):
            return finalise(*arguments)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Store, "finalise", timed_finalise),
    ):
        path = os.path.join(folder, "record.h5")
        with timed("recorded"):
            record(Recording(data, "made up", path, views, force=True), teacher)
        size = os.path.getsize(path)
        with timed("opened"):
            reader = RecordReader(path)
        with reader, timed("verified"):
            assert verify(reader, data).passed
    seconds["verified"] += seconds["opened"]
    seconds["recorded"] -= seconds["finalised"]
    told = ", ".join(
        f"{name} in {value:.2f} s ({size / value / 1e6:.0f} MB/s)"
        for name, value in seconds.items()
    )
    print(
        f"{count:,} clouds x {views} views: {size / 1e6:.1f} MB, {size / count / views:.4f} bytes "
        f"a row; {told}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--stage")
    parser.add_argument("--path")
    parser.add_argument("--views", type=int)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 256, 1024, 4096])
    parser.add_argument(
        "--large",
        type=lambda text: tuple(map(int, text.split("x"))),
        nargs="*",
        default=[(9843, 20), (9843, 300)],
        help="CLOUDSxVIEWS",
    )
    options = parser.parse_args()
    if options.stage:
        start = time.perf_counter()
        memory = peak_of(lambda: stage(options.stage, options.path, options.views))
        print(json.dumps([time.perf_counter() - start, memory]))
        return
    if options.shards:
        print_shards(options.shards)
    if options.sizes:
        print_sizes(options.sizes)
    for count, views in options.large:
        print_large(count, views)


if __name__ == "__main__":
    main()
