"""What a redesign must not change, as digests (make frozen; --write REASON keeps new ones).

Arrays: logits, gradients and statistics of both engines over sizes, dtypes and dropout; of two
PointNet++ over dtypes and threads, with their groups.  Files:
data, teacher, record and runs of a shortened demo, with one and two threads, provenance fixed.
Texts: every --help, docs/mistakes.md.  Arrays and files hold for one kernel of BLAS and for one
arithmetic of NumPy, so there is a file for each kernel (frozen/KERNEL.json), which names that
arithmetic; where none fits, it says so and compares the texts alone.  A change has a reason, which
the file keeps.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from unittest import mock

os.environ["COLUMNS"] = "100"  # the width of a help text
# Before NumPy is loaded: this sets one BLAS thread, as for the commands.
from minipc.cli.main import main as command_line  # noqa: E402
from minipc.cli.main import minipc  # noqa: E402
from minipc.cli.options import verbs_below  # noqa: E402

# isort: split
import numpy as np  # noqa: E402

from minipc.backend import blas_kernel  # noqa: E402
from minipc.data import shapes  # noqa: E402
from minipc.distil.train import TrainConfig  # noqa: E402
from minipc.models import model, pointnet, pointnet2  # noqa: E402
from minipc.models.inputs import Inputs  # noqa: E402
from minipc.nn.engine import ENGINES, backward  # noqa: E402
from minipc.nn.fast.workspace import Workspace  # noqa: E402
from minipc.nn.params import initialise  # noqa: E402
from minipc.provenance import provenance  # noqa: E402
from minipc.storage.files import sha256_arrays  # noqa: E402
from minipc.verbs import demo  # noqa: E402
from reference_tests.tools.accuracy import problem  # noqa: E402

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parent / "frozen"
SIZES = ("tiny", "student", "teacher", "5-7-130:33-9", "6:")
LEVELS = (  # of one layer; of several, two scales, a ball, offsets alone
    "8,16/5:12+,8/4:16,24+mean:12",
    "16/0.9x6:8-12/4:8-6,8/4:12-16+,24-16:12",
)
WRITTEN = ("shapes.h5", "record.h5", "model.h5")
KNOWS_PROVENANCE = (
    "minipc.record.recorder",
    "minipc.distil.train",
    "minipc.verbs.train",
)  # modules that ask for it


def arrays():
    """Yield (name, digest) of what both engines compute."""
    for engine, size, dtype, dropout in itertools.product(
        ENGINES, SIZES, (np.float32, np.float64), (False, True)
    ):
        config = pointnet.sizes(size, 7)
        params, x, dlogits = problem(config, 6, 40, dtype)
        width = (config.head or config.shared)[-1]
        mask = (
            (np.random.default_rng(1).random((6, width)) < 0.7).astype(dtype) if dropout else None
        )
        z, batch, tape = pointnet.forward_train(params, x, config, mask, engine)
        z = z.copy()
        grads, _ = backward(dlogits, tape)
        stats = model.track(pointnet.initial_stats(config, dtype), batch, config)
        evaluated = pointnet.forward_eval(params, stats, x, config, engine)
        found = [
            z,
            evaluated,
            *(grads[name] for name in sorted(grads)),
            *(stats[name] for name in sorted(stats)),
        ]
        yield f"{engine} {size} {np.dtype(dtype).name}{' dropout' * dropout}", sha256_arrays(*found)


def neighbourhoods():
    """Yield (name, digest) of groups, and of what both engines compute of a PointNet++."""
    points = np.random.default_rng(2).standard_normal((7, 40, 3)).astype(np.float32)
    for text in LEVELS:
        config = pointnet2.sizes(text, 5)
        yield f"groups {text}", sha256_arrays(*pointnet2.prepare(config, points))
    for engine, text, dtype, threads in itertools.product(
        ENGINES, LEVELS, (np.float32, np.float64), (1, 2)
    ):
        rng, config = np.random.default_rng(3), pointnet2.sizes(text, 5)
        params = initialise(pointnet2.param_specs(config), rng, np.float64)
        for name, value in params.items():
            if not name.endswith(".W"):  # gains of both signs, offsets
                value += rng.uniform(-2, 1, value.shape)
            params[name] = value.astype(dtype)
        seen = (points * np.float32([0.7, 1, 1.4])).astype(dtype)
        inputs = Inputs(seen, pointnet2.prepare(config, points))
        work = Workspace(threads=threads)
        work.block, work.slice = 2**12, 2**10  # several blocks even of these
        z, batch, tape = pointnet2.forward_train(params, inputs, config, None, engine, work)
        z = z.copy()
        dlogits = rng.standard_normal(z.shape).astype(dtype)
        grads, _ = backward(dlogits, tape)
        stats = model.track(pointnet2.initial_stats(config, dtype), batch, config)
        found = [z, pointnet2.forward_eval(params, stats, inputs, config, engine)]
        found += [arrays[name] for arrays in (grads, stats) for name in sorted(arrays)]
        yield (
            f"{engine} {text} {np.dtype(dtype).name}, {threads} threads",
            sha256_arrays(*found),
        )


def files(threads):
    """Yield (name, digest) of what a bare recording and two students of it write, shortened."""

    few = partial(shapes.make_shapes, train_per_class=8, test_per_class=2, points=32)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(chdir(folder))
        stack.enter_context(mock.patch.object(shapes, "make_shapes", few))
        stack.enter_context(
            mock.patch.object(demo, "TEACHER_TRAINING", TrainConfig(epochs=4, lr=1e-3))
        )
        for module in KNOWS_PROVENANCE:
            stack.enter_context(mock.patch(f"{module}.provenance", lambda xp: {"fixed": True}))
        student = ["train", "--record", "record.h5", "--epochs", "3"]
        for line in (
            ["record", "--views", "3", "--force"],
            [*student, "--labels-only", "--labels-per-class", "5", "--out", "run-labels"],
            [*student, "--self-weight", "0.2", "--out", "run"],
        ):
            told = StringIO()
            with redirect_stdout(told), redirect_stderr(told):
                try:
                    command_line([*line, "--threads", str(threads)])
                except SystemExit as end:
                    if end.code:
                        raise SystemExit(
                            f"frozen: minipc {' '.join(line)} failed:\n{told.getvalue()}"
                        ) from end
        for path in sorted(path for path in Path().rglob("*.h5") if path.name in WRITTEN):
            yield f"{path}, {threads} threads", hashlib.sha256(path.read_bytes()).hexdigest()


def texts():
    """Yield (name, digest) of what people read."""
    for name in ("", *verbs_below(minipc), "data"):
        told = StringIO()
        with redirect_stdout(told), suppress(SystemExit):
            command_line([*name.split("."), "--help"] if name else ["--help"])
        yield f"minipc {name} --help", hashlib.sha256(told.getvalue().encode()).hexdigest()
    yield "docs/mistakes.md", hashlib.sha256((ROOT / "docs/mistakes.md").read_bytes()).hexdigest()


def arithmetic():
    """Return what bits depend on beside the kernel of BLAS."""
    return {
        name: value for name, value in provenance(np).items() if name not in ("minipc", "python")
    }


def compared(kept, found):
    """Return one line for each digest that is not what was kept, or is there on one side only."""
    lines = []
    for name in sorted(kept.keys() | found.keys()):
        if kept.get(name) != found.get(name):
            how = "new" if name not in kept else "gone" if name not in found else "changed"
            lines.append(f"{name}: {how}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--write", metavar="REASON", help="keep what is found now; the reason is written beside it"
    )
    options = parser.parse_args()
    kernel = blas_kernel() or "unknown"
    path, now = KEPT / f"{kernel}.json", arithmetic()
    kept = (
        json.loads(path.read_text())
        if path.exists()
        else {"arithmetic": None, "digests": {}, "changes": []}
    )
    same = kept["arithmetic"] == now
    if not same and not options.write:
        print(
            f"frozen: nothing kept for kernel {kernel} with {now}; only texts are compared",
            file=sys.stderr,
        )
        kept = json.loads(min(KEPT.glob("*.json")).read_text())
    found = dict(
        [*arrays(), *neighbourhoods(), *files(1), *files(2), *texts()]
        if same or options.write
        else texts()
    )
    known = (
        kept["digests"]
        if same or options.write
        else {name: kept["digests"].get(name) for name in found}
    )
    lines = compared(known, found)
    if options.write:
        kept["changes"].append({"reason": options.write, "digests": len(lines)})
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(kept | {"arithmetic": now, "digests": found}, indent=1) + "\n")
    for line in lines:
        print(line)
    print(
        f"frozen under {kernel}: {len(found)} digests, {len(lines)} "
        f"{'written anew' if options.write else 'differ'}"
    )
    sys.exit(bool(lines) and not options.write)


if __name__ == "__main__":
    main()
