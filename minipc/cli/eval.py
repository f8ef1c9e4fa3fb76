"""minipc eval: how good a model is on the test split."""

import os
import sys
from functools import partial
from typing import Any

import click

from minipc.cli.options import FILE, Verb, option, shared_options
from minipc.cli.show import Console, result
from minipc.cli.terminal import columns
from minipc.errors import UsageError

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
@option(
    "--logits",
    metavar="FILE",
    type=FILE,
    envvar="MINIPC_LOGITS_FILE",  # that of the option's name is how `record` stores logits
    help="In place of MODEL: what another program says, in .npy, .npz or .csv.",
)
@option("--probabilities", is_flag=True, help="FILE of --logits holds probabilities.")
@option("--teacher", help="Also how often the arg-max agrees with this model's.")
@option(
    "--against",
    metavar="FILE",
    type=FILE,
    help="The same of logits in a file, of a predictions.csv or a run's.",
)
@shared_options
def command(
    model: str | None,
    data: str | None,
    votes: int,
    logits: str | None,
    probabilities: bool,
    teacher: str | None,
    against: str | None,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Evaluate MODEL (a file, or a run folder) on the test split of DATA.

    Without MODEL, the last run here.  Without DATA, the file it was trained on is looked for beside
    the model and here.  With --logits FILE, which has a row for each test cloud, DATA alone.
    """
    from minipc.backend import load
    from minipc.report.lines.evaluate import of_eval
    from minipc.storage.files import kind_of
    from minipc.verbs.evaluate import evaluate, evaluate_logits

    with Console(quiet, verbose) as console:
        only = data is None and model is not None
        if only and not os.path.isdir(str(model)) and kind_of(str(model)) in OF_DATA:
            model, data = None, model
        common: Any = dict(
            teacher=teacher,
            against=against,
            xp=load(backend, console.say),
            engine=engine,
            threads=threads,
            say=console.say,
            progress=console.progress,
        )
        if logits is not None:
            _check_alone(model, logits, votes)
            values = evaluate_logits(logits, data, probabilities=probabilities, **common)
        elif probabilities:
            raise UsageError("--probabilities goes with --logits FILE; leave it out")
        else:
            model = model or console.last_run("MODEL")
            values = evaluate(model, data, votes=votes, **common)
    result(values, as_json, partial(of_eval, columns=columns(sys.stdout)))


def _check_alone(model: str | None, logits: str, votes: int) -> None:
    """Raise UsageError for what has no use beside --logits."""
    if model is not None:
        raise UsageError(
            f"--logits stands in place of a model, and {model} is no data file; name DATA alone, "
            "and a model to compare with by --teacher"
        )
    if votes:
        raise UsageError("--votes asks a model, and --logits has none; leave one out")
