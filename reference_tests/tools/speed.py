"""How fast, as ratios in one run: `python -m reference_tests.tools.speed` (make bench), not a test.

Every contender lives in a process of its own and computes alone; repetitions alternate, medians
count.  All use all cores: minipc by worker threads with BLAS on one, the others as they are.
Writes docs/performance.md; --quick is a short look that writes nothing; --json ends with one object
of ratios, above 1 where minipc is ahead.  Nothing else should run on the machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import partial
from importlib import metadata
from statistics import median

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is loaded, for what this process measures itself

import numpy as np  # noqa: E402

from minipc.backend import blas_kernel, load  # noqa: E402
from minipc.data.augment import AugmentConfig  # noqa: E402
from minipc.data.clouds import Clouds  # noqa: E402
from minipc.distil.train import Task, TrainConfig, recorded_views  # noqa: E402
from minipc.errors import MinipcError  # noqa: E402
from minipc.models.file import new_model  # noqa: E402
from minipc.models.pointnet import NAMED_SIZES, count, sizes  # noqa: E402
from minipc.nn.fast.products import product, second_moments  # noqa: E402
from minipc.nn.fast.workspace import Workspace  # noqa: E402
from minipc.nn.losses import LossConfig  # noqa: E402
from minipc.provenance import provenance  # noqa: E402
from minipc.record.reader import RecordReader  # noqa: E402
from minipc.record.recorder import compute_shard, model_teacher, record  # noqa: E402
from minipc.record.recording import Recording  # noqa: E402
from reference_tests.tools.kernels import KERNELS, environment, runnable  # noqa: E402
from reference_tests.tools.speed_page import BY_KERNEL, LOCAL, page  # noqa: E402
from reference_tests.tools.speed_parts import level_parts, parts  # noqa: E402
from reference_tests.tools.speed_workers import IN_A_ROW  # noqa: E402

THREADS = len(os.sched_getaffinity(0))
PEERS = {"torch": "torch", "torch compile": "torch", "jax": "jax"}
STEP = {"clouds": 32, "points": 1024}
OF_A_SHARD = 64  # batches recorded at once on a device


class Ended(SystemExit):
    """A contender's process ended: it cannot do what it was asked."""


class Worker:
    """One contender's process."""

    def __init__(self, name, threads=THREADS):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reference_tests.tools.speed_workers", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def ask(self, **task):
        time.sleep(0.3)  # until the threads of whoever computed before have come to rest
        with suppress(BrokenPipeError):  # it ended: the answer is missing
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"benchmark: {self.name} ended; its message stands above")
        return json.loads(line)


class Machine:
    """The contenders that are installed, and what is asked of them."""

    def __init__(self, stack, quick):
        self.stack, self.workers, self.rounds = stack, {}, 3 if quick else 7
        self.peers = [name for name, package in PEERS.items() if installed(package)]
        if quick:
            self.peers = [name for name in self.peers if name == "torch"]

    def worker(self, name):
        if name not in self.workers:
            self.workers[name] = self.stack.enter_context(Worker(name))
        return self.workers[name]

    def able(self, entries, say):
        """Return {label: (name, task)} of the entries that run here; say which do not."""
        able = {}
        for label, (name, task) in entries.items():
            try:
                self.worker(name).ask(**task)
                able[label] = name, task
            except Ended:
                self.workers.pop(name, None)
                say(f"without {label}: {name} cannot do {task['task']} of {task['size']} here")
        return able

    def race(self, *entries):
        """Return the median seconds of each entry (name, task), their repetitions alternating."""
        seconds = [[] for _ in entries]
        repeat = 1
        for number in range(self.rounds):
            for entry, found in zip(entries, seconds, strict=True):
                name, task = entry
                found += self.worker(name).ask(repeat=repeat, **task)["seconds"]
            if number == 0:  # as many in a row as fill half a second
                repeat = max(1, min(50, int(0.5 / max(min(map(min, seconds)), 1e-3))))
        return [median(found) for found in seconds]


def installed(package):
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def forms(size):
    """Return the forms that PyTorch has of a model: of its linear layers, or of its gathers."""
    return ("conv", "linear") if size in NAMED_SIZES else ("index_select", "gather")


def best_form(machine, task):
    """Return the entry of PyTorch eager in the faster of its two forms."""
    entries = [("torch", {**task, "form": form}) for form in forms(task["size"])]
    return min(zip(machine.race(*entries), entries, strict=True))[1]


def steps(machine, values, say):
    """Training steps of the three PointNets and of PointNet++ against every peer."""
    for size in (*NAMED_SIZES, *LOCAL):
        task = {"task": "step", "size": size, **STEP}
        entries = {"numpy": ("numpy", task)}
        if "torch" in machine.peers:
            entries["torch_eager"] = eager = best_form(machine, task)
            if "torch compile" in machine.peers:
                entries["torch_compile"] = ("torch compile", eager[1])
        if "jax" in machine.peers and size in NAMED_SIZES:
            entries["jax"] = ("jax", task)
        found = dict(zip(entries, machine.race(*entries.values()), strict=True))
        values[f"{size}_step_ms"] = {name: round(1000 * value, 2) for name, value in found.items()}
        for name in found.keys() - {"numpy"}:
            values[f"{size}_step_vs_{name}"] = round(found[name] / found["numpy"], 2)
        (textbook,) = machine.race(("numpy", {**task, "engine": "textbook"}))
        values[f"{size}_step_vs_textbook"] = round(textbook / found["numpy"], 2)
        say(f"{size}: {values[f'{size}_step_ms']}")


def recording(machine, values, say):
    """Clouds a second of the teacher in evaluation, augmentation included."""
    task = {"task": "record", "size": "teacher", **STEP}
    entries = [("numpy", task), ("product", {"task": "product"})]
    if "torch" in machine.peers:
        entries.append(best_form(machine, task))
    mine, product, *theirs = machine.race(*entries)
    clouds = 16 * STEP["clouds"]
    gflops = 2e-9 * count(sizes("teacher", 40), STEP["points"]).macs * clouds / mine
    large = 2e-9 * 4096**3 / product
    values |= {
        "recording_clouds_per_second": round(clouds / mine),
        "recording_gflops": round(gflops, 1),
        "large_product_gflops": round(large, 1),
        "recording_vs_large_product": round(gflops / large, 3),
    }
    if theirs:
        values["recording_vs_torch_eager"] = round(theirs[0] / mine, 2)
        values["torch_recording_clouds_per_second"] = round(clouds / theirs[0])
    task |= {"size": "pointnet2", "batches": 2}
    entries = [("numpy", task)]
    if "torch" in machine.peers:
        entries.append(best_form(machine, task))
    mine, *theirs = machine.race(*entries)
    values["local_recording_clouds_per_second"] = round(2 * STEP["clouds"] / mine)
    if theirs:
        values["local_recording_vs_torch_eager"] = round(theirs[0] / mine, 2)
    say(
        f"recording: {values['recording_clouds_per_second']} clouds a second, {gflops:.0f} of "
        f"{large:.0f} GFLOP/s"
    )


def on_device(machine, values, chosen, say):
    """Training steps of the chosen models and recording on a CUDA device, and PyTorch there."""
    values["device"] = provenance(load("cupy"))  # BackendError without one
    recorded = [size for size in chosen if size == "teacher"]
    clouds = OF_A_SHARD * STEP["clouds"]
    for kind, sizes_of, per in (("step", chosen, 1000 / IN_A_ROW), ("record", recorded, 1)):
        for size in sizes_of:
            name, task = f"{size}_{kind}", {"task": kind, "size": size, "device": True, **STEP}
            task |= {"batches": OF_A_SHARD} if kind == "record" else {}
            entries = {"minipc": ("numpy", task), **on_device_in_torch(machine, task, say)}
            found = dict(zip(entries, machine.race(*entries.values()), strict=True))
            # products of 10 bits are no contender: beside, with the same forms
            tf32 = {
                f"{label}_tf32": (peer, {**other, "tf32": True})
                for label, (peer, other) in entries.items()
                if label != "minipc"
            }
            apart = dict(zip(tf32, machine.race(*tf32.values()), strict=True)) if tf32 else {}
            for key, times in ((f"device_{name}", found), (f"device_{name}_tf32", apart)):
                values[key] = {
                    label: round(clouds / value if kind == "record" else value * per, 3)
                    for label, value in times.items()
                }
            for label in found.keys() - {"minipc"}:
                values[f"device_{name}_vs_{label}"] = round(found[label] / found["minipc"], 2)
            say(f"{size} {kind}: {values[f'device_{name}']}, TF32 {values[f'device_{name}_tf32']}")


def on_device_in_torch(machine, task, say):
    """Return {label: entry} of what PyTorch can do of a task here, each in its faster form."""
    if "torch" not in machine.peers:
        say("without torch: it is not installed")
        return {}
    eager = {form: ("torch", {**task, "form": form}) for form in forms(task["size"])}
    able = machine.able(eager, say)
    if not able:
        return {}
    seconds = dict(zip(able, machine.race(*able.values()), strict=True))
    best = able[min(able, key=seconds.get)]
    compiled = {"torch_compile": ("torch compile", best[1])}
    return {"torch_eager": best, **machine.able(compiled, say)}


def memory(machine, values, say):
    """Peak memory of a training step above the interpreter's, each in a fresh process."""
    for size in (*NAMED_SIZES, *LOCAL):
        task = {"task": "step", "size": size, "memory": True, **STEP}
        found = {}
        names = ["numpy", *(["torch"] if "torch" in machine.peers else [])]
        for name in names:
            each = []
            for form in forms(size) if name == "torch" else (None,):
                with Worker(name) as worker:
                    each.append(worker.ask(**task, **({"form": form} if form else {}))["bytes"])
            found[name] = min(each)
        values[f"{size}_memory_mb"] = {name: round(value / 1e6, 1) for name, value in found.items()}
        if "torch" in found:
            values[f"{size}_memory_vs_torch_eager"] = round(found["torch"] / found["numpy"], 2)
        say(f"{size}: {values[f'{size}_memory_mb']} MB")


def scaling(machine, values, say):
    """Step time against the points of a cloud, the clouds of a batch and the threads."""
    table = {}
    for size in ("teacher", "tiny"):
        for key, sweep in (
            ("points", [{"clouds": 32, "points": n} for n in (256, 512, 1024, 2048, 4096, 8192)]),
            ("clouds", [{"clouds": b, "points": 1024} for b in (8, 16, 32, 64, 128)]),
            ("threads", [{**STEP, "threads": t} for t in range(1, THREADS + 1)]),
        ):
            table[f"{size} {key}"] = []
            for task in sweep:
                (seconds,) = machine.race(("numpy", {"task": "step", "size": size, **task}))
                table[f"{size} {key}"].append({"of": task[key], "ms": round(1000 * seconds, 2)})
            say(f"{size} by {key}: {table[f'{size} {key}']}")
    values["scaling"] = table


def busy_neighbour(machine, values, say):
    """A step while another process keeps one core busy, against one alone."""
    task = ("numpy", {"task": "step", "size": "teacher", **STEP})
    (alone,) = machine.race(task)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        time.sleep(0.5)
        (beside,) = machine.race(task)
        neighbour.kill()
    values["busy_neighbour"] = round(beside / alone, 2)
    say(f"a busy neighbour: {values['busy_neighbour']} times the idle step")


def on_files(values, say):
    """What files and Python add to the arithmetic: the store, reading a record, an epoch."""
    rng, clouds = np.random.default_rng(0), 1024
    points = rng.standard_normal((clouds, 1024, 3)).astype(np.float32)
    names = tuple(f"class {k}" for k in range(40))
    data = Clouds(points, rng.integers(0, 40, clouds), names, "z", "none")
    teacher = model_teacher(new_model(sizes("teacher", 40), {}, 0))
    views = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2, 4):
            path = os.path.join(folder, f"{number}.h5")
            begun = time.perf_counter()
            record(Recording(data, "benchmark", path, number, threads=THREADS, force=True), teacher)
            views[number] = time.perf_counter() - begun
        with RecordReader(path) as reader:
            begun = time.perf_counter()
            for view in range(4):
                compute_shard(
                    data, teacher, reader.plan, AugmentConfig(), view, 0, clouds, np, THREADS
                )
            arithmetic = time.perf_counter() - begun
            # without the trial of the teacher on 512 clouds, which a recording does once
            values["store_share"] = round(
                (views[4] - views[2] - arithmetic / 2) / (arithmetic / 2), 4
            )
            values["recording_seconds_by_views"] = {
                key: round(value, 2) for key, value in views.items()
            }

            config = TrainConfig(epochs=4, warmup_steps=10)
            task = Task(
                np.ascontiguousarray(points.swapaxes(1, 2)),
                data.labels,
                (),
                sizes("tiny", 40),
                LossConfig(0.9),
                config,
                None,
                Workspace(np, THREADS),
                np,
            )
            model, replay = new_model(task.model, {}, 0), recorded_views(reader)
            state, order = task.start(model), np.arange(clouds)
            state, _, _ = task.epoch(state, 0, order, *replay(0), None)
            epochs, singles, reads = [], [], []
            for epoch in (1, 2, 3) * 3:
                begun = time.perf_counter()
                augmentation, logits = replay(epoch)
                reads.append(time.perf_counter() - begun)
                state, _, _ = task.epoch(state, epoch, order, augmentation, logits, None)
                epochs.append(time.perf_counter() - begun)
                for first in range(0, clouds, 32):
                    begun = time.perf_counter()
                    state, _ = task.step(
                        state, order[first : first + 32], augmentation, logits, None, 1e-3
                    )
                    singles.append(time.perf_counter() - begun)
    steps = median(singles) * clouds / 32
    values["reading_share"] = round(median(reads) / steps, 4)
    values["epoch_vs_steps"] = round(median(epochs) / steps, 3)
    say(
        f"store {values['store_share']:.2%} of the teacher, reading {values['reading_share']:.2%} "
        "of tiny's steps, "
        f"epoch {values['epoch_vs_steps']} times its steps"
    )


def moments_in_float64(z, work):
    return second_moments(z.astype(np.float64), work)


def passes(d, y, column):
    """Mean, variance, normalise; then dgamma and the three terms of (M6), in place."""
    for a, b in zip(d, y, strict=True):
        a.sum(axis=1)
        np.einsum("ij,ij->i", a, a)
        np.multiply(a, column, out=b)
        np.add(b, column, out=b)
        np.einsum("ij,ij->i", a, b)
        np.multiply(b, column, out=b)
        np.add(b, a, out=b)
        np.subtract(b, column, out=b)
        np.multiply(b, column, out=b)


def narrow_layers(values, say):
    """What products, moments and passes over an activation cost in each layer."""
    rng, ours, whole, fours, points = (
        np.random.default_rng(0),
        Workspace(),
        Workspace(),
        Workspace(),
        1024,
    )
    whole.group, fours.group = None, 4
    rows = []

    def us(**functions):
        """Return {name: median microseconds for one of four clouds}, the functions taking turns."""
        found = {name: [] for name in functions}
        for number in range(102):
            for name, function in functions.items():
                function()  # untimed: the caches are those of the function before
                begun = time.perf_counter()
                function()
                if number >= 2:
                    found[name].append(time.perf_counter() - begun)
        return {name: 1e6 * median(each) / 4 for name, each in found.items()}

    for width, above in ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 1024)):
        tower = rng.standard_normal((4, width + 1 + above, points)).astype(np.float32)
        z, d = tower[:, : width + 1], tower[:, width + 1 :]
        stacked = rng.standard_normal((width, width + 1 + above)).astype(np.float32)
        A = rng.standard_normal((above, width + 1)).astype(np.float32)
        dx, y = np.empty((4, width, points), np.float32), np.empty((4, above, points), np.float32)
        column, Q = (
            rng.standard_normal((above, 1)).astype(np.float32),
            stacked[:, : width + 1].copy(),
        )

        rows.append(
            {"layer": f"{width} to {above}"}
            | us(
                ours=partial(product, A, z, y, ours),
                whole=partial(product, A, z, y, whole),
                fours=partial(product, A, z, y, fours),
                moments=partial(second_moments, z, ours),
                float64=partial(moments_in_float64, z, ours),
                Q=partial(product, Q, z, dx, ours),
                passes=partial(passes, d, y, column),
            )
        )
    values["product_vs_whole"] = round(min(row["whole"] / row["ours"] for row in rows), 3)
    values["narrow_layers_us"] = [
        {key: value if key == "layer" else round(value, 1) for key, value in row.items()}
        for row in rows
    ]
    for row in values["narrow_layers_us"]:
        say(str(row))


def other_kernels(values, say):
    """The short form under every other kernel of OpenBLAS that runs here."""
    values["kernels"] = {
        values["kernel"]: {name: values[name] for name in BY_KERNEL if name in values}
    }
    for kernel, name in runnable(KERNELS, say).items():
        if name == values["kernel"]:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "reference_tests.tools.speed", "--steps", "--json"],
            env=environment(kernel),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        values["kernels"][kernel] = {name: found[name] for name in BY_KERNEL if name in found}


def machine_lines():
    """Return what the figures were measured on."""
    model = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    versions = {"minipc": installed("minipc"), "NumPy": np.__version__, "SciPy": installed("scipy")}
    versions |= {name: version for name in ("torch", "jax") if (version := installed(name))}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{THREADS} cores ({model}), Python {platform.python_version()}, {told}, {blas['name']} "
        f"{blas['version']}, "
        f"kernel {blas_kernel() or 'unknown'}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes; writes no page")
    parser.add_argument(
        "--steps", action="store_true", help="steps and products alone; writes no page"
    )
    parser.add_argument(
        "--gpu", action="store_true", help="on a CUDA device instead; writes no page"
    )
    parser.add_argument("--sizes", help="with --gpu: of these models alone, tiny,pointnet2/8 say")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    parser.add_argument("--out", default="docs/performance.md", help="the page to write")
    options = parser.parse_args()

    def say(line):
        print(line, file=sys.stderr, flush=True)

    values = {"machine": machine_lines(), "kernel": blas_kernel(), "quick": options.quick}
    say(values["machine"])
    if options.gpu:
        with ExitStack() as stack:
            chosen = options.sizes.split(",") if options.sizes else (*NAMED_SIZES, *LOCAL)
            on_device(Machine(stack, options.quick), values, chosen, say)
        print(json.dumps(values))
        return
    with ExitStack() as stack:
        machine = Machine(stack, options.quick or options.steps)
        for absent in PEERS.keys() - machine.peers:
            say(f"without {absent}")
        steps(machine, values, say)
        if options.steps:
            narrow_layers(values, say)
            print(json.dumps(values))
            return
        recording(machine, values, say)
        if not options.quick:
            busy_neighbour(machine, values, say)
            scaling(machine, values, say)
    with ExitStack() as stack:
        memory(Machine(stack, options.quick), values, say)
    narrow_layers(values, say)
    if not options.quick:
        on_files(values, say)
        values["step_parts"] = {size: parts(size, STEP, THREADS) for size in NAMED_SIZES}
        values["level_parts"] = {size: level_parts(size, STEP) for size in LOCAL}
        other_kernels(values, say)
        with open(options.out, "w") as file:
            file.write(page(values))
        say(f"wrote {options.out}")
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    try:
        main()
    except MinipcError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
