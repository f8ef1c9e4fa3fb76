"""minipc predict: the class of single files."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import click

from minipc.cli.options import FILE, Verb, option, shared_options
from minipc.cli.show import Console, asked_width, result
from minipc.errors import DataError


@click.command("predict", cls=Verb, short_help="The class of single clouds.")
@click.argument("names", metavar="[MODEL] FILE|FOLDER...", nargs=-1, required=True, type=FILE)
@option(
    "--top", metavar="N", type=click.IntRange(1), default=1, help="Classes shown for each file."
)
@option("--show", help="Draw each cloud, in braille.")
@option(
    "--format",
    "form",
    metavar="SUFFIX",
    help="What - is: npy, npz, xyz, ...",
    unless_given="npy and npz by their first bytes, else a text",
)
@option("--num-points", unless_given="as in training")
@option("--up-axis")
@option(
    "--turn",
    group="Clouds",
    type=click.Choice(["x", "y", "z"]),
    help="The files' up axis: turn the clouds to the model's.",
)
@shared_options
def command(
    names: tuple[str, ...],
    top: int,
    show: bool,
    form: str | None,
    num_points: int | None,
    up_axis: str | None,
    turn: str | None,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Predict the class of each FILE, and of each in FOLDER, with MODEL (a file, or a run folder).

    Without MODEL, the last run here.  FILE: a cloud or mesh, as `minipc data pack` takes it; - is
    standard input.  Each cloud is normalised and brought to its number of points as there.  A file
    that is not a cloud is told on stderr; the others are predicted, and the command ends with 3.
    """
    from minipc.backend import load
    from minipc.report.lines.evaluate import of_predict
    from minipc.verbs.predict import predict

    width = asked_width(show, as_json)
    console = Console(quiet, verbose)
    with ExitStack() as open_to_the_end:
        model, files = _split(names)
        model = model or console.last_run("MODEL")
        standard_input = _standard_input(files, form, console.say, open_to_the_end)
        with console:
            values = predict(
                model,
                files,
                top=top,
                num_points=num_points,
                up_axis=up_axis,
                turn=turn,
                xp=load(backend, console.say),
                engine=engine,
                threads=threads,
                say=console.say,
                progress=console.progress,
                failed=console.failed,
                standard_input=standard_input,
            )
        result(values, as_json, of_predict)
        if width and values["predictions"]:
            from minipc.report.gallery import pictures_of
            from minipc.verbs.show import of_predictions

            shown = of_predictions(values, standard_input)
            result({}, False, lambda _: pictures_of(*shown, width))
    if values["failed"]:
        click.get_current_context().exit(DataError.exit_code)


def _standard_input(
    files: Sequence[str], form: str | None, say: Callable[[str], None], stack: ExitStack
) -> str | None:
    """Return the file with what standard input holds, until the stack is closed; None without "-".

    Raises UsageError for several "-", and for a form without one.
    """
    from minipc.data.readers.standard_input import NAME, kept

    if files.count(NAME) > 1:
        raise click.UsageError("standard input holds one cloud; name - once")
    if NAME not in files:
        if form is not None:
            raise click.UsageError("--format goes with -, standard input; leave it out")
        return None
    if sys.stdin is None:
        raise DataError("standard input: is closed; send one cloud, or name its file")
    if sys.stdin.isatty():
        say("standard input: type x y z, a point on each line; Ctrl-D ends")
    return stack.enter_context(kept(sys.stdin.buffer, form))


def _split(names: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Return the model among names, which is the first or none, and the files and folders.

    A folder is a model if it is a run; a file, unless its suffix is that of a cloud.  Raises
    UsageError if there is nothing but a model.
    """
    from minipc.data.readers.point_files import SUFFIXES

    first, *rest = names
    if first == "-":
        is_model = False
    elif os.path.isdir(first):
        inside = (os.path.join(first, name) for name in ("run.json", "model.h5"))
        is_model = any(map(os.path.lexists, inside))
    else:
        is_model = os.path.splitext(first)[1].lower() not in SUFFIXES
    if not is_model:
        return None, names
    if not rest:
        raise click.UsageError(f"name the clouds too: minipc predict {first} FILE...")
    return first, rest
