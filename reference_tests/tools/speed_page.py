"""Writes docs/performance.md; every measured number of the page comes from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minipc.models.pointnet import NAMED_SIZES

TARGETS = {  # figure: its lowest accepted value, on two cores
    "teacher_step_vs_torch_eager": 5.5,
    "teacher_step_vs_torch_compile": 4.3,
    "teacher_step_vs_jax": 4.8,
    "student_step_vs_torch_eager": 2.8,
    "tiny_step_vs_torch_eager": 2.0,
    "recording_vs_large_product": 0.85,
    "product_vs_whole": 0.95,
    "teacher_memory_vs_torch_eager": 10,
    "pointnet2/8_step_vs_torch_eager": 4.0,
    "local-student_step_vs_torch_eager": 5.0,
    "local_recording_vs_torch_eager": 3.0,
    "pointnet2/8_memory_vs_torch_eager": 10,
}
LOCAL = ("pointnet2/8", "local-student")  # models with neighbourhoods
BY_KERNEL = {  # figure: its heading in the table of kernels
    "product_vs_whole": "our product against the whole one, slowest layer",
    "teacher_step_vs_torch_eager": "teacher step against PyTorch eager",
    "student_step_vs_torch_eager": "student",
    "tiny_step_vs_torch_eager": "tiny",
}
NAMES = {
    "numpy": "minipc",
    "torch_eager": "PyTorch eager",
    "torch_compile": "torch.compile",
    "jax": "JAX jit",
}


def table(head: Sequence[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown: the first column holds text, the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def linear(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return rows of a scaling table: amount, milliseconds, and growth divided by linear growth."""
    first = rows[0]
    return [
        (
            f"{row['of']:,}",
            f"{row['ms']:.1f}",
            f"{row['ms'] / first['ms'] / (row['of'] / first['of']):.2f}",
        )
        for row in rows
    ]


def faster(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return rows of the table by threads: their number, milliseconds, times as fast as one."""
    return [(row["of"], f"{row['ms']:.1f}", f"{rows[0]['ms'] / row['ms']:.2f}") for row in rows]


def scaling_table(size: str, by: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of one model's steps by points, clouds or threads, under a line of text."""
    fixed = {"points": " (32 clouds)", "clouds": " (1,024 points)", "threads": ""}[by]
    if by == "threads":
        lines = table(["threads", "ms a step", "times as fast"], faster(rows))
    else:
        lines = table([by, "ms a step", "against linear"], linear(rows))
    return f"{size.capitalize()}, by {by}{fixed}:\n\n{lines}"


def training(v: Mapping[str, Any], names: Iterable[str], peers: Sequence[str]) -> str:
    """Return the table of the training steps of these models, minipc's beside its peers'."""
    head = [
        "step",
        *(NAMES[name] for name in ("numpy", *peers)),
        *(f"against {NAMES[name]}" for name in peers),
        "against our textbook engine, one thread",
    ]
    rows = [
        (
            size,
            *(f"{v[f'{size}_step_ms'][name]:.1f} ms" for name in ("numpy", *peers)),
            *(f"{v[f'{size}_step_vs_{name}']:.2f}" for name in peers),
            f"{v[f'{size}_step_vs_textbook']:.1f}",
        )
        for size in names
    ]
    return table(head, rows)


def page(v: Mapping[str, Any]) -> str:
    """Return the page for the values v of one run of reference_tests.tools.speed."""
    peers = [
        name for name in ("torch_eager", "torch_compile", "jax") if f"teacher_step_vs_{name}" in v
    ]
    steps = training(v, NAMED_SIZES, peers)
    neighbours = training(v, LOCAL, [name for name in peers if name != "jax"])
    asked = [
        (
            name.replace("_", " "),
            f"{least:g}",
            f"{v[name]:g}",
            "reached" if v[name] >= least else "**not reached**",
        )
        for name, least in TARGETS.items()
        if name in v
    ]
    memory = [
        (
            size,
            f"{found['numpy']:.0f} MB",
            f"{found.get('torch', float('nan')):.0f} MB",
            f"{v.get(f'{size}_memory_vs_torch_eager', float('nan')):.1f}",
        )
        for size in (*NAMED_SIZES, *LOCAL)
        for found in [v[f"{size}_memory_mb"]]
    ]
    scaling = "\n\n".join(scaling_table(*name.split(), rows) for name, rows in v["scaling"].items())
    recording = (
        "The teacher in evaluation over augmented clouds of 1,024 points, clouds a second: "
        f"{v['recording_clouds_per_second']}"
    )
    if "recording_vs_torch_eager" in v:
        recording += (
            f", PyTorch eager {v['torch_recording_clouds_per_second']}: "
            f"{v['recording_vs_torch_eager']} times faster"
        )
    recording += (
        f".\nThat is {v['recording_gflops']} GFLOP/s. A float32 product of 4,096 x 4,096 by "
        "NumPy's BLAS on all "
        "threads\n"
        f"reaches {v['large_product_gflops']} here, so this is "
        f"{100 * v['recording_vs_large_product']:.0f} % of it: "
        "worker threads with BLAS on one thread each\ndivide the work better, and no product is "
        "too small."
    )
    parts = [
        (
            size,
            f"{found['step']:.1f}",
            f"{found['products']:.1f}",
            f"{1e-6 * found['operations'] / found['products']:.0f}",
            *(f"{found[name]:.1f}" for name in ("around", "waiting", "alone")),
            *(f"{v[f'{size}_step_ms'][name] / found['products']:.2f}" for name in peers),
        )
        for size in NAMED_SIZES
        for found in [v["step_parts"][size]]
    ]
    columns = ("products", "gathers", "maxima", "sums at points", "other")
    of_levels = "Milliseconds of one step on one thread, by what is done:\n\n" + table(
        ["step", "whole", *columns],
        [
            (size, *(f"{found.get(name, 0):.1f}" for name in ("step", *columns)))
            for size in LOCAL
            for found in [v["level_parts"][size]]
        ],
    )
    local_recording = (
        "PointNet++ SSG at full width in evaluation, clouds a second: "
        f"{v['local_recording_clouds_per_second']}"
    )
    if "local_recording_vs_torch_eager" in v:
        local_recording += f", {v['local_recording_vs_torch_eager']} times as many as PyTorch eager"
    threads = {
        name: rows[0]["ms"] / rows[-1]["ms"]
        for name, rows in v["scaling"].items()
        if name.endswith("threads")
    }
    together = ", ".join(f"{name.split()[0]} {ratio:.2f}" for name, ratio in threads.items())
    views = v["recording_seconds_by_views"]
    narrow = [
        [
            row[name]
            for name in ("layer", "whole", "fours", "ours", "moments", "float64", "Q", "passes")
        ]
        for row in v["narrow_layers_us"]
    ]
    kernels = [
        (kernel, *(f"{found[name]:.2f}" if name in found else "" for name in BY_KERNEL))
        for kernel, found in v["kernels"].items()
    ]
    return f"""# Performance

Written by `make bench` (`python -m reference_tests.tools.speed`), one run; nothing else ran on the machine.
A figure is the median of seven rounds, in which the libraries take turns, each alone in its own process on
all cores. A training step is forward, cross-entropy, backward and AdamW of the same model on the same
32 x 1,024 points in float32, with augmentation, dropout and running statistics. PyTorch eager is the faster
of its Conv1d and Linear forms, with its fused AdamW; JAX is jitted as a whole. minipc is faster where a ratio
is above 1. The ratios hold for this machine; other cores give other ratios.

Machine: {v["machine"]}.

## Training

{steps}

## Recording

{recording}

## Neighbourhoods

The same for PointNet++, with the groups made before; PyTorch eager is the faster of `index_select` and
`torch.gather` for its gathers, and has no ball query or farthest points to do here either.

{neighbours}

{of_levels}

{local_recording}.

## Memory

Peak resident memory of a training step above the interpreter with its libraries:

{table(["step", "minipc", "PyTorch eager", "ratio"], memory)}

## Against what was asked for

{table(["figure", "least", "measured", ""], asked)}

## Around the step

| what | measured | bound |
| --- | ---: | ---: |
| a busy neighbour process on one of the cores, against the idle step | {
        v["busy_neighbour"]:.2f} | 2.2 |
| store, share of the teacher's time while recording | {100 * v["store_share"]:.1f} % | 3 % |
| reading a view of a record, share of tiny's steps on it | {100 * v["reading_share"]:.1f} % | 5 % |
| an epoch of tiny from a record, against the sum of its steps | {v["epoch_vs_steps"]:.2f} | 1.15 |

## Scaling

"Against linear" is 1 where twice the work takes twice the time.

{scaling}

Recording 1,024 clouds took {
        ", ".join(f"{value} s for {key} views" for key, value in views.items())
    }; the trial of the
teacher on 512 clouds at the beginning is included.

## Narrow layers

Microseconds for one cloud of 1,024 points on one thread. "Whole" is the product of a layer in one call to
BLAS, "in fours" the same product four rows at a time, "ours" the form that minipc uses under this kernel.
"Moments" is Z~ Z~^T (fast_engine.md, section 4), "in float64" the same in that type, and Q its cost in the
backward; "passes" is the cost of a stored normalised activation instead, statistics and backward together.
(Each is measured alone.)

{table(["layer", "whole", "in fours", "ours", "moments", "in float64", "Q", "passes"], narrow)}

## Kernels

The first row is the page above, the others the short form of the benchmark on the same machine with
OPENBLAS_CORETYPE set. (PyTorch has its own BLAS, which this does not change, so the table does not show PyTorch
on an old processor.) fast_engine.md, section 6, says which form of the products each kernel gets.

{table(["kernel", *BY_KERNEL.values()], kernels)}

## What bounds it

The milliseconds of a step, from another run with a clock around each part. "Products" are those of the shared
layers and "around" is the other work of the threads, both divided by the number of threads; "waiting" is the time
to start the threads and to wait for the last; "alone" is work of one thread while the others rest. The last
columns are the ratios if a step were only its products.

{
        table(
            [
                "step",
                "whole",
                "products",
                "GFLOP/s",
                "around",
                "waiting",
                "alone",
                *(f"products against {NAMES[name]}" for name in peers),
            ],
            parts,
        )
    }

The large product reaches {
        v["large_product_gflops"]
    } GFLOP/s, and section 6 of fast_engine.md counts half the
arithmetic of the textbook form, so the products limit the teacher; the largest is that of the last shared layer,
where every entry is a candidate for the maximum. The work around narrow products limits the students: passes over
activations for ReLU and its mask, gathering and scattering at winners, nine points where threads wait for each
other, each at the cost of waking one, and hundreds of NumPy calls on arrays of a few hundred numbers, which run
on one thread. All threads together are as fast as one, times: {together}.
"""  # noqa: E501
