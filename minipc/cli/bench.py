"""minipc bench: how fast a model is on this machine."""

import os

import click

from minipc.cli.options import FILE, Verb, option, shared_options
from minipc.cli.show import Console, result

OF_DATA = ("clouds", "record")  # kinds of files with a test split


@click.command("bench", cls=Verb, short_help="Latency and throughput of a model on this machine.")
@click.argument("model", metavar="[MODEL]", type=FILE, required=False)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option(
    "--seconds",
    group="Machine",
    metavar="S",
    type=click.FloatRange(0, 3600),
    default=2.0,
    help="Of measuring, for each form and number of clouds.",
)
@shared_options
def command(
    model: str | None,
    data: str | None,
    seconds: float,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure MODEL (a file, or a run folder) here, beside its exported forms that are at hand.

    Without MODEL, the last run here.  Without DATA, the file it was trained on is looked for beside
    the model and here.  Stop other work first: a busy machine gives other numbers.
    """
    from minipc.backend import load
    from minipc.report.lines.export import of_bench
    from minipc.storage.files import kind_of
    from minipc.verbs.bench import bench

    with Console(quiet, verbose) as console:
        if model and not data and not os.path.isdir(model) and kind_of(model) in OF_DATA:
            model, data = None, model
        values = bench(
            model or console.last_run("MODEL"),
            data,
            seconds=seconds,
            xp=load(backend, console.say),
            engine=engine,
            threads=threads,
            say=console.say,
            progress=console.progress,
        )
    result(values, as_json, of_bench)
