"""minipc data: make the built-in shapes, pack the user's data; `data info` is `info`."""

import click

from minipc.cli.info import command as info
from minipc.cli.options import FILE, Verbs, common_options
from minipc.cli.show import Console, result


@click.group("data", cls=Verbs)
def command():
    """Make, pack and describe data sets."""


command.add_command(info)


@command.command("make")
@click.option("--out", "-o", type=FILE, required=True, help="File to write.")
@click.option("--seed", type=int, default=0, show_default=True)
@common_options
def make(out, seed, as_json, quiet, verbose):
    """Write the built-in procedural shapes to one file."""
    from minipc.data.clouds import write_clouds
    from minipc.data.shapes import built_in_shapes
    from minipc.report.describe import describe_splits
    from minipc.report.lines import of_data_make

    splits = built_in_shapes(seed)
    write_clouds(out, splits)
    result(describe_splits(out, splits), as_json, of_data_make)


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
    from minipc.data.readers.source import read_source
    from minipc.report.describe import describe_splits
    from minipc.report.lines import of_data_pack
    from minipc.storage.places import check_new_file

    check_new_file(out)  # first, because reading can take minutes
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
    values = {
        **describe_splits(out, packed.splits),
        "normalised": packed.moved,
        "sampled": packed.sampled,
        "padded": packed.padded,
        "split": packed.split,
        "test_clouds_in_training": repeated(packed.splits),
        "dry_run": dry_run,
    }
    result(values, as_json, of_data_pack)
