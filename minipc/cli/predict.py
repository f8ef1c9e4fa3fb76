"""minipc predict: the class of single files."""

import click

from minipc.cli.options import FILE, Verb, option, shared_options
from minipc.cli.show import Console, asked_width, result


@click.command("predict", cls=Verb, short_help="The class of single clouds.")
@click.argument("model", metavar="MODEL", type=FILE)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@option(
    "--top", metavar="N", type=click.IntRange(1), default=1, help="Classes shown for each file."
)
@option("--show", help="Draw each cloud, in braille.")
@option("--num-points", unless_given="as in training")
@option("--up-axis")
@shared_options
def command(
    model: str,
    files: tuple[str, ...],
    top: int,
    show: bool,
    num_points: int | None,
    up_axis: str | None,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Predict the class of each FILE with MODEL (a file, or a run folder).

    FILE: .npy, .npz, .xyz, .txt, .csv or .pts.  Each cloud is normalised and brought to its number
    of points as `minipc data pack` does it.
    """
    from minipc.backend import load
    from minipc.report.lines import of_predict
    from minipc.verbs.predict import predict

    width = asked_width(show, as_json)
    with Console(quiet, verbose) as console:
        values = predict(
            model,
            files,
            top=top,
            num_points=num_points,
            up_axis=up_axis,
            xp=load(backend, console.say),
            engine=engine,
            threads=threads,
            say=console.say,
        )
    result(values, as_json, of_predict)
    if width:
        from minipc.report.gallery import pictures_of
        from minipc.verbs.show import of_predictions

        result({}, False, lambda _: pictures_of(*of_predictions(values), width))
