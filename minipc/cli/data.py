"""minipc data: make the built-in shapes, pack what users have, say what a file holds."""

import click

from minipc.cli.options import FILE, Verbs, common_options
from minipc.cli.show import result


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
    from minipc.describe import describe_splits
    from minipc.first_run import built_in_shapes

    splits = built_in_shapes(seed)
    write_clouds(out, splits)
    described = describe_splits(out, splits)
    result(described.values, as_json, described.lines)


@command.command("pack")
@click.argument("source", metavar="SRC", type=FILE)
@click.option("--out", "-o", type=FILE, required=True, help="File to write.")
@click.option("--num-points", type=int, default=1024, show_default=True, help="First points kept of each cloud.")
@common_options
def pack(source, out, num_points, as_json, quiet, verbose):
    """Pack SRC, a ModelNet40 HDF5 folder, into one file."""
    from minipc.data.clouds import write_clouds
    from minipc.data.formats import read_modelnet
    from minipc.describe import describe_splits

    splits, changed = read_modelnet(source, num_points)
    write_clouds(out, splits)
    described = describe_splits(out, splits)
    total = len(splits.train) + len(splits.test)
    note = f"{changed} of {total} clouds were moved into the unit sphere, the others were there and are unchanged"
    result({**described.values, "normalised": changed}, as_json, [*described.lines, note])


@command.command("info")
@click.argument("file", metavar="FILE", type=FILE)
@common_options
def info(file, as_json, quiet, verbose):
    """Say what a packed data file holds."""
    from minipc.data.clouds import read_clouds
    from minipc.describe import describe_splits

    described = describe_splits(file, read_clouds(file))
    result(described.values, as_json, described.lines)
