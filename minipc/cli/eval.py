"""minipc eval: how good a model is on the test split."""

import os
import sys
from functools import partial

import click

from minipc.cli.options import FILE, Verb, option, shared_options
from minipc.cli.show import Console, result
from minipc.cli.terminal import columns

OF_DATA = ("clouds", "record")  # kinds of files with a test split


@click.command("eval", cls=Verb, short_help="Accuracy of a model on the test split.")
@click.argument("model", metavar="[MODEL]", type=FILE, required=False)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option(
    "--votes",
    metavar="N",
    type=click.IntRange(0, 1000),
    default=0,
    help="Also the mean softmax over so many fixed views; it flatters.",
)
@option("--teacher", help="Also how often the arg-max agrees with this model's.")
@shared_options
def command(
    model: str | None,
    data: str | None,
    votes: int,
    teacher: str | None,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Evaluate MODEL (a file, or a run folder) on the test split of DATA.

    Without MODEL, the last run here.  Without DATA, the file it was trained on is looked for beside
    the model and here.
    """
    from minipc.backend import load
    from minipc.report.lines import of_eval
    from minipc.storage.files import kind_of
    from minipc.verbs.evaluate import evaluate

    with Console(quiet, verbose) as console:
        if model and not data and not os.path.isdir(model) and kind_of(model) in OF_DATA:
            model, data = None, model
        model = model or console.last_run("MODEL")
        values = evaluate(
            model,
            data,
            votes=votes,
            teacher=teacher,
            xp=load(backend, console.say),
            engine=engine,
            threads=threads,
            say=console.say,
            progress=console.progress,
        )
    result(values, as_json, partial(of_eval, columns=columns(sys.stdout)))
