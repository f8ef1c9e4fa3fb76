"""docs/performance.md: every measured number on the page comes from here."""

from minipc.models.pointnet import NAMED_SIZES

TARGETS = {  # figure: the least that was asked for, on two cores
    "teacher_step_vs_torch_eager": 5.5,
    "teacher_step_vs_torch_compile": 4.3,
    "teacher_step_vs_jax": 4.8,
    "student_step_vs_torch_eager": 2.8,
    "tiny_step_vs_torch_eager": 2.0,
    "recording_vs_large_product": 0.85,
    "product_vs_whole": 0.95,
    "teacher_memory_vs_torch_eager": 10,
}
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


def table(head, rows):
    """Return a table in Markdown: the first column text, the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def linear(rows):
    """Return rows of a scaling table: what, milliseconds, and the growth against linear in what."""
    first = rows[0]
    return [
        (
            f"{row['of']:,}",
            f"{row['ms']:.1f}",
            f"{row['ms'] / first['ms'] / (row['of'] / first['of']):.2f}",
        )
        for row in rows
    ]


def faster(rows):
    """Return rows of the table by threads: how many, milliseconds, times as fast as one."""
    return [(row["of"], f"{row['ms']:.1f}", f"{rows[0]['ms'] / row['ms']:.2f}") for row in rows]


def scaling_table(size, by, rows):
    """Return the table of one model's steps by points, clouds or threads, under a line of text."""
    fixed = {"points": " (32 clouds)", "clouds": " (1,024 points)", "threads": ""}[by]
    if by == "threads":
        lines = table(["threads", "ms a step", "times as fast"], faster(rows))
    else:
        lines = table([by, "ms a step", "against linear"], linear(rows))
    return f"{size.capitalize()}, by {by}{fixed}:\n\n{lines}"


def page(v):
    """Return the page for the values of one run of reference_tests.tools.speed."""
    peers = [
        name for name in ("torch_eager", "torch_compile", "jax") if f"teacher_step_vs_{name}" in v
    ]
    steps = [
        (
            size,
            *(f"{v[f'{size}_step_ms'][name]:.1f} ms" for name in ("numpy", *peers)),
            *(f"{v[f'{size}_step_vs_{name}']:.2f}" for name in peers),
            f"{v[f'{size}_step_vs_textbook']:.1f}",
        )
        for size in ("teacher", "student", "tiny")
    ]
    head = [
        "step",
        *(NAMES[name] for name in ("numpy", *peers)),
        *(f"against {NAMES[name]}" for name in peers),
        "against our textbook engine, one thread",
    ]
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
        for size in ("teacher", "student", "tiny")
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
        "worker threads with BLAS on one thread each\nare the better division, and no product is "
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
A figure is a median of seven rounds in which the contenders take turns, each alone in its own process.
All use all cores. Training steps are forward, cross-entropy, backward and AdamW of the same model on the
same 32 x 1,024 points in float32, augmentation, dropout and running statistics included. PyTorch eager is
the faster of its Conv1d and Linear forms, with its fused AdamW; JAX is jitted as a whole. Ratios above 1
are where minipc is ahead. They are of this machine: fewer or other cores give others.

Machine: {v["machine"]}.

## Training

{table(head, steps)}

## Recording

{recording}

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

Microseconds for one cloud of 1,024 points on one thread. "Whole" is the product of a layer as one call to
BLAS, "in fours" the same by four rows at a time, "ours" what is taken under this kernel; "moments" is Z~ Z~^T,
beside it what float64 would take; Q is what the backward pays for it; "passes" is what a stored normalised
activation would cost instead, statistics and backward together. (Measured without what surrounds them.)

{table(["layer", "whole", "in fours", "ours", "moments", "in float64", "Q", "passes"], narrow)}

## Kernels

The first row is the page above, the others the short form of the benchmark on the same machine with
OPENBLAS_CORETYPE set (PyTorch has its own BLAS, which that does not change: what an old processor would give it
is not shown). Which form of the products a kernel gets is said in fast_engine.md, section 6.

{table(["kernel", *BY_KERNEL.values()], kernels)}

## What bounds it

Where the milliseconds of a step go, in another run of it with a clock around each piece: "products" are those
of the shared layers and "around" is what threads do beside them, both divided among the threads; "waiting" is
what threads need to begin and to wait for the last; "alone" is what one thread does while the others rest. The
last columns are the ratios that would be left if a step were its products and nothing else.

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
arithmetic of the textbook form, so the teacher is bound by its products; the largest is the last shared layer's,
whose every entry is a candidate of the maximum. The students are bound by what lies around narrow products: passes
over activations for ReLU and its mask, gathering and scattering at winners, nine meetings of the threads at what
it takes to wake one, and hundreds of calls of NumPy on arrays of a few hundred numbers, which no thread
shares. All threads together are as fast as one, times: {together}.
"""  # noqa: E501
