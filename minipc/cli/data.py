"""minipc data: make the built-in shapes, pack what users have, say what a file holds."""

import shlex

import click

from minipc.cli.options import FILE, Verbs, common_options
from minipc.cli.show import Console, result


@click.group("data", cls=Verbs)
def command():
    """Make, pack and describe data sets."""


@command.command("make")
@click.option("--out", "-o", type=FILE, required=True, help="File to write.")
@click.option("--seed", type=int, default=0, show_default=True)
@common_options
def make(out, seed, as_json, quiet, verbose):
    """Write the built-in procedural shapes to one file."""
    from minipc.data.clouds import write_clouds
    from minipc.data.shapes import built_in_shapes
    from minipc.report.describe import describe_splits

    splits = built_in_shapes(seed)
    write_clouds(out, splits)
    described = describe_splits(out, splits)
    result(described.values, as_json, described.lines)


@command.command("pack")
@click.argument("source", metavar="SRC", type=FILE)
@click.option("--out", "-o", type=FILE, required=True, help="File to write.")
@click.option(
    "--num-points", type=int, default=1024, show_default=True, help="Points of each packed cloud."
)
@click.option(
    "--up-axis",
    type=click.Choice(["x", "y", "z", "unknown"]),
    help="Stored and compared ever after.  [default: y for ModelNet40, else unknown]",
)
@click.option(
    "--normalisation",
    type=click.Choice(["unit_sphere", "none"]),
    default="unit_sphere",
    show_default=True,
    help="What is done to each whole cloud.",
)
@click.option(
    "--test-fraction",
    type=float,
    help="Share of each class, where SRC has no split.  [default: 0.2]",
)
@click.option(
    "--val-split",
    type=click.Choice(["train", "leave-out"]),
    help="What becomes of a third split (val): joined to the training clouds, or not packed.",
)
@click.option("--dry-run", is_flag=True, help="Read and check everything, write nothing.")
@common_options
def pack(
    source,
    out,
    num_points,
    up_axis,
    normalisation,
    test_fraction,
    val_split,
    dry_run,
    as_json,
    quiet,
    verbose,
):
    """Pack SRC into one file: the HDF5 folder of ModelNet40, a tree of files, or one HDF5 file.

    A tree is class/file, class/train/file or train/class/file, a file one cloud: .npy, .npz, .xyz,
    .txt, .csv or .pts.  A cloud with more points than asked for is sampled, one with fewer repeated
    (of ModelNet40 the first are kept, as is customary).
    """
    from minipc.data.clouds import repeated, write_clouds
    from minipc.data.readers.formats import read_source
    from minipc.report.describe import describe_splits
    from minipc.storage.places import check_new_file

    check_new_file(out)  # before minutes of reading
    with Console(quiet, verbose) as console:
        packed = read_source(
            source,
            num_points,
            up_axis=up_axis,
            normalisation=normalisation,
            test_fraction=test_fraction,
            val_split=val_split,
            progress=console.progress,
        )
    if not dry_run:
        write_clouds(out, packed.splits)
    described = describe_splits(out, packed.splits)
    total, twins = len(packed.splits.train) + len(packed.splits.test), repeated(packed.splits)
    done = {
        "normalised": packed.moved,
        "sampled": packed.sampled,
        "padded": packed.padded,
        "split": packed.split,
        "test_clouds_in_training": twins,
        "dry_run": dry_run,
    }
    rest = f", the other {total - packed.moved} were in it" if packed.moved < total else ""
    notes = [
        "no cloud was normalised"
        if normalisation == "none"
        else f"{packed.moved} of {total} clouds were moved into the unit sphere{rest}",
        f"{packed.sampled} clouds had more points than {num_points} and were sampled, "
        f"{packed.padded} had fewer and "
        "are repeated",
        f"split: {packed.split}",
        *([f"note: {twins} test clouds are also training clouds, bit for bit"] if twins else []),
        "dry run: nothing was written"
        if dry_run
        else f"next: minipc train {shlex.quote(out)} --labels-only --model teacher --out teacher",
    ]
    result({**described.values, **done}, as_json, [*described.lines, *notes])


@command.command("info")
@click.argument("file", metavar="FILE", type=FILE)
@common_options
def info(file, as_json, quiet, verbose):
    """Say what a packed data file holds, or the clouds in a record."""
    from minipc.report.describe import describe_splits
    from minipc.verbs.find import read_data

    described = describe_splits(file, read_data(file))
    result(described.values, as_json, described.lines)
