"""minipc eval: how good a model is on the test split."""

import click

from minipc.cli.options import FILE, Verb, shared_options
from minipc.cli.show import Console, result


@click.command("eval", cls=Verb, short_help="Accuracy of a model on the test split.")
@click.argument("model", metavar="MODEL", type=FILE)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@shared_options
def command(model, data, backend, threads, as_json, quiet, verbose):
    """Evaluate MODEL (a file, or a run folder) on the test split of DATA.

    Without DATA, the file it was trained on is looked for beside the model and here.
    """
    from minipc.backend import load
    from minipc.jobs import eval_files

    with Console(quiet, verbose) as console:
        values = eval_files(model, data, xp=load(backend, console.say), threads=threads)
    width = max(len(name) for name in values["class_accuracy"])
    lines = [
        f"{values['model']} on {values['clouds']} test clouds of {values['data']}:",
        f"accuracy {100 * values['accuracy']:.2f} %, mean class accuracy {100 * values['mean_class_accuracy']:.2f} %",
        f"{values['parameters']} parameters, {values['macs_per_cloud'] / 1e6:.2f} M multiply-adds a cloud",
        *(f"  {name:{width}}  {100 * value:6.1f} %" for name, value in values["class_accuracy"].items()),
    ]
    result(values, as_json, lines)
