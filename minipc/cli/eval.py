"""minipc eval: how good a model is on the test split."""

import click

from minipc.cli.options import FILE, Verb, shared_options
from minipc.cli.show import Console, result


@click.command("eval", cls=Verb, short_help="Accuracy of a model on the test split.")
@click.argument("model", metavar="MODEL", type=FILE)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@click.option(
    "--votes",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="Also the mean softmax over so many fixed views; it flatters.",
)
@click.option(
    "--teacher",
    metavar="MODEL",
    type=FILE,
    help="Also how often the arg-max agrees with this model's.",
)
@shared_options
def command(model, data, votes, teacher, backend, engine, threads, as_json, quiet, verbose):
    """Evaluate MODEL (a file, or a run folder) on the test split of DATA.

    Without DATA, the file it was trained on is looked for beside the model and here.
    """
    from minipc.backend import load
    from minipc.verbs.evaluate import evaluate

    with Console(quiet, verbose) as console:
        values = evaluate(
            model,
            data,
            votes=votes,
            teacher=teacher,
            xp=load(backend, console.say),
            engine=engine,
            threads=threads,
        )
    width = max(len(name) for name in values["class_accuracy"])
    lines = [
        f"{values['model']} on {values['clouds']} test clouds of {values['data']}:",
        f"accuracy {100 * values['accuracy']:.2f} %, mean class accuracy "
        f"{100 * values['mean_class_accuracy']:.2f} %",
        f"negative log-likelihood {values['nll']:.4f} nats, calibration error (15 bins) "
        f"{100 * values['ece']:.2f} %",
        *_voted(values),
        *(
            [f"agreement with {values['teacher']}: {100 * values['teacher_agreement']:.2f} %"]
            if teacher
            else []
        ),
        f"{values['parameters']} parameters, {values['macs_per_cloud'] / 1e6:.2f} M multiply-adds "
        "a cloud",
        *(
            f"  {name:{width}}  {100 * value:6.1f} %"
            for name, value in values["class_accuracy"].items()
        ),
    ]
    result(values, as_json, lines)


def _voted(values):
    if "voted" not in values:
        return []
    voted = values["voted"]
    return [
        f"voting over {voted['votes']} views: accuracy {100 * voted['accuracy']:.2f} %, "
        f"mean class accuracy {100 * voted['mean_class_accuracy']:.2f} %"
    ]
