"""minipc data: make, pack, check, hold out and show clouds; `data info` is `info`."""

import os
from collections.abc import Callable
from typing import Any

import click

from minipc.cli.completion import classes
from minipc.cli.info import command as info
from minipc.cli.options import FILE, Verbs, common_options, option, typed_options
from minipc.cli.show import Console, asked_width, picture_width, result
from minipc.cli.train import Views
from minipc.errors import CheckFailed, UsageError


def source_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of how a source is read: its split, and which of its data sets."""
    for add in (
        option(
            "--background",
            group="Clouds",
            type=click.Choice(["keep", "drop"]),
            help="What becomes of points that ScanObjectNN marks as background.",
            unless_given="keep",
        ),
        option(
            "--variant",
            group="Clouds",
            metavar="NAME",
            help="Which data set, where SRC holds several (ScanObjectNN, ModelNet texts).",
        ),
        option(
            "--val-split",
            group="Clouds",
            type=click.Choice(["train", "leave-out"]),
            help="What becomes of a third split (val): joined to the training clouds, or not "
            "packed.",
        ),
        option(
            "--test-fraction",
            group="Clouds",
            metavar="F",
            type=float,
            help="Share of each class, where SRC has no split.",
            unless_given="0.2",
        ),
    ):
        function = add(function)
    return function


@click.group("data", cls=Verbs)
def command() -> None:
    """Make, pack and describe data sets."""


command.add_command(info)


@command.command("make")
@option("--out", required=True)
@option("--seed", metavar="S", type=int, default=0, help="Seed of the shapes.")
@option("--show", help="Draw a cloud of each class, in braille.")
@common_options
def make(out: str, seed: int, show: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Write the built-in procedural shapes to one file."""
    from minipc.data.clouds import write_clouds
    from minipc.data.shapes import built_in_shapes
    from minipc.report.describe import describe_splits
    from minipc.report.lines.data import of_data_make

    width = asked_width(show, as_json)
    splits = built_in_shapes(seed)
    write_clouds(out, splits)
    result(describe_splits(out, splits), as_json, of_data_make)
    if width:
        from minipc.report.gallery import pictures_of
        from minipc.verbs.show import of_splits

        result({}, False, lambda _: pictures_of(*of_splits(out, splits), width))


@command.command("pack")
@click.argument("source", metavar="SRC", type=FILE)
@option("--out", required=True)
@option("--dry-run")
@option("--num-points", default=1024)
@option(
    "--up-axis",
    help="Of the clouds; stored in the file.",
    unless_given="y for the known data sets, else unknown",
)
@option(
    "--normalisation",
    group="Clouds",
    type=click.Choice(["unit_sphere", "none"]),
    default="unit_sphere",
    help="What is done to each whole cloud.",
)
@source_options
@common_options
def pack(
    source: str,
    out: str,
    dry_run: bool,
    num_points: int,
    up_axis: str | None,
    normalisation: str,
    test_fraction: float | None,
    val_split: str | None,
    variant: str | None,
    background: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Pack SRC into one file: a known data set, a tree of files, or one HDF5 file.

    Known are ModelNet40 (HDF5, or texts with normals), ScanObjectNN and ShapeNet part.
    A tree is class/file, class/train/file or train/class/file, a file one cloud or mesh: .npy,
    .npz, .xyz, .txt, .csv, .pts, .asc, .xyzn, .ply, .off, .obj, .stl, .pcd, .las or .laz.  A mesh
    is sampled on its surface.  A cloud with more points than asked for is sampled, one with fewer
    repeated (of ModelNet40 the first are kept, as is customary).
    """
    from minipc.data.clouds import repeated, write_clouds
    from minipc.data.readers.source import read_source
    from minipc.report.describe import describe_splits
    from minipc.report.lines.data import of_data_pack
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
            variant=variant,
            background=background,
            progress=console.progress,
            say=console.say,
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


@command.command("check", short_help="Look for clouds that are there twice, or flat, or rare.")
@click.argument("source", metavar="DATA", type=FILE)
@option("--num-points", default=1024, help="Points of each cloud, where DATA is not packed.")
@source_options
@option("--strict", help="End with exit code 4 if there is a finding.", is_flag=True)
@common_options
def check(
    source: str,
    num_points: int,
    test_fraction: float | None,
    val_split: str | None,
    variant: str | None,
    background: str | None,
    strict: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Say what is suspicious in DATA: a data file, or anything that `data pack` takes.

    Clouds with the same points, test clouds that nearly are training clouds, clouds that are a
    point, a line or a plane, classes without clouds and the balance of the others.  A finding is
    told and is no error, unless --strict is given.
    """
    from minipc.data.check import check
    from minipc.data.clouds import read_clouds
    from minipc.data.readers.source import read_source
    from minipc.report.describe import describe_splits
    from minipc.report.lines.data import of_data_check
    from minipc.storage.files import kind_of

    how: dict[str, Any] = {
        "test_fraction": test_fraction,
        "val_split": val_split,
        "variant": variant,
        "background": background,
    }
    with Console(quiet, verbose) as console:
        if not os.path.isdir(source) and kind_of(source) == "clouds":
            if {*how, "num_points"} & set(typed_options()):
                raise UsageError(
                    f"{source}: is packed, so how it is read is decided; leave out the options of "
                    "a source"
                )
            splits = read_clouds(source)
        else:
            splits = read_source(
                source, num_points, **how, progress=console.progress, say=console.say
            ).splits
        found = check(splits, console.progress)
    result({**describe_splits(source, splits), **found}, as_json, of_data_check)
    if strict and found["findings"]:
        raise CheckFailed(f"{source}: {found['findings']} findings, as told above (--strict)")


@command.command("hold-out", short_help="Training clouds alone, some of them for testing.")
@click.argument("source", metavar="DATA", type=FILE)
@option("--out", required=True)
@option(
    "--test-fraction",
    group="Clouds",
    metavar="F",
    type=float,
    default=0.2,
    help="Share of each class that becomes the test split.",
)
@option("--seed", metavar="S", type=int, default=0, help="Seed of the draw.")
@common_options
def hold_out(
    source: str,
    out: str,
    test_fraction: float,
    seed: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the training clouds of DATA to a file of their own, a part of them as its test split.

    For whatever is chosen by accuracy, such as the settings of a study: the test split of DATA is
    not in the new file, so it cannot choose.
    """
    from minipc.data import clouds
    from minipc.report.describe import describe_splits
    from minipc.report.lines.data import of_data_hold_out
    from minipc.storage.places import check_new_file

    check_new_file(out)
    splits = clouds.hold_out(clouds.read_clouds(source), test_fraction, seed)
    twins = clouds.repeated(splits)
    clouds.write_clouds(out, splits)
    values = describe_splits(out, splits) | {"test_clouds_in_training": twins}
    result(values, as_json, of_data_hold_out)


@command.command("show", short_help="Look at clouds: as a page, or in the terminal.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@option("--out", help="HTML page to write; one of its own is replaced.")
@option(
    "--split",
    group="Clouds",
    type=click.Choice(["train", "test"]),
    help="Which clouds of a data file.",
    unless_given="train",
)
@option(
    "--class",
    "name",
    group="Clouds",
    metavar="NAME",
    help="Only clouds of this class.",
    shell_complete=classes,
)
@option(
    "--count",
    group="Clouds",
    metavar="N",
    type=click.IntRange(1),
    help="The first N of each class.",
    unless_given="1; with --class 12",
)
@option("--cloud", group="Clouds", metavar="N", type=int, help="Only cloud N; they count from 0.")
@option(
    "--views",
    group="Clouds",
    type=Views(),
    help="Views A .. B-1 of a record; B is 0:B.",
    unless_given="the first 11",
)
@option("--num-points", help="At most so many points of each cloud.", unless_given="4096")
@option("--up-axis", help="Of the files, where they do not say.")
@common_options
def show(
    files: tuple[str, ...],
    out: str | None,
    split: str | None,
    name: str | None,
    count: int | None,
    cloud: int | None,
    views: tuple[int, int] | None,
    num_points: int | None,
    up_axis: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show clouds of FILE: a data file, a record, or files of one cloud each.

    Of a data file it shows one cloud of each class; of a record the first cloud, in the views that
    were replayed for the teacher, with its answers; of the files that `data pack` takes each.
    On a terminal it draws them there, in braille; --out makes a page where they turn.
    """
    from minipc.report.gallery import of_data_show, pictures_of
    from minipc.verbs.show import show

    values, points = show(
        files,
        split=split,
        name=name,
        cloud=cloud,
        count=count,
        views=views,
        num_points=num_points,
        up_axis=up_axis,
        out=out,
    )
    width = None if out or as_json else picture_width()
    pictures = pictures_of(values, points, width) if width else None
    result(values, as_json, lambda values: of_data_show(values, pictures))
