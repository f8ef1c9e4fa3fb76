"""minipc train: a student from a record, or any model from labels."""

import click

from minipc.cli.options import FILE, Verb, shared_options
from minipc.cli.show import Console, result


@click.command("train", cls=Verb)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@click.option("--record", metavar="FILE", type=FILE, help="The record to learn from.")
@click.option("--labels-only", is_flag=True, help="Labels alone; with --record on the views of the record.")
@click.option("--model", default="tiny", show_default=True, help="teacher, student, tiny, or widths: 16-16-32-64:32.")
@click.option("--kd-weight", type=float, default=0.9, show_default=True, help="a: share of distillation.")
@click.option("--self-weight", type=float, default=0.0, show_default=True, help="b: subtracted self-distillation.")
@click.option("--temperature", type=float, default=4.0, show_default=True, help="T of both divergences.")
@click.option("--label-smoothing", type=float, help="e of the label term.  [default: 0.1; 0 for teacher]")
@click.option("--guard", type=click.Choice(["clip", "none"]), default="clip", show_default=True,
              help="Keeps the negative weight bounded.")
@click.option("--self-target", type=click.Choice(["snapshot", "history"]), default="snapshot", show_default=True,
              help="What the earlier self is.")
@click.option("--self-every", type=int, default=1, show_default=True, help="Epochs between snapshots.")
@click.option("--epochs", type=int, help="[default: 60; 20 without arguments]")
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--lr", type=float, help="Largest learning rate.  [default: 3e-3; 1e-3 for teacher]")
@click.option("--weight-decay", type=float, default=1e-2, show_default=True)
@click.option("--warmup-steps", type=int, default=200, show_default=True)
@click.option("--optimiser", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--clip-norm", type=float, default=0.0, help="Largest gradient norm.  [default: no clipping]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", "-o", type=FILE, help="Run folder.  [default: run, run-2, ...]")
@shared_options
def command(
    data, record, labels_only, model, kd_weight, self_weight, temperature, label_smoothing, guard,
    self_target, self_every, epochs, batch_size, lr, weight_decay, warmup_steps, optimiser, clip_norm,
    seed, out, backend, threads, as_json, quiet, verbose,
):
    """Train a model and write a run folder.

    Without arguments: takes record.h5 and the data file that it names, trains a tiny student on
    labels alone and one from the record, and shows both.
    """
    from minipc.backend import load
    from minipc.first_run import STUDENT_EPOCHS, train_both
    from minipc.jobs import train_files
    from minipc.nn.losses import LABELS_ALONE, LossConfig
    from minipc.train import TrainConfig

    if labels_only:
        source = click.get_current_context().get_parameter_source
        for name in ("kd_weight", "self_weight", "temperature", "guard", "self_target", "self_every"):
            if source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--labels-only has no use for --{name.replace('_', '-')}; leave one out")
    bare = data is None and record is None and not labels_only
    teacher = model == "teacher"
    smoothing = label_smoothing if label_smoothing is not None else 0.0 if teacher else 0.1
    labels_loss = LossConfig(label_smoothing=smoothing, **LABELS_ALONE)
    loss = labels_loss if labels_only else LossConfig(kd_weight, self_weight, temperature, smoothing, guard)
    if epochs is None:
        epochs = STUDENT_EPOCHS if bare else TrainConfig.epochs
    if lr is None:
        lr = 1e-3 if teacher else TrainConfig.lr
    config = TrainConfig(epochs, batch_size, lr, weight_decay, warmup_steps, optimiser, clip_norm, seed)
    with Console(quiet, verbose) as console:
        settings = dict(
            self_target=self_target, self_every=self_every, out=out, xp=load(backend, console.say), threads=threads,
            say=console.say, progress=console.progress,
        )
        if bare:
            runs = train_both(model, loss, labels_loss, config, **settings)
        else:
            runs = [train_files(data, record, model, loss, config, labels_only=labels_only, **settings)]
    values = runs[-1].values | ({"baseline": runs[0].values} if bare else {})
    result(values, as_json, _table([run.values for run in runs]))


def _table(runs):
    """Return the lines of a table of runs, last epoch first, and what to do next."""
    lines = [f"{'trained on':12} {'accuracy':>9} {'mean class':>11} {'best epoch':>11} "
             f"{'parameters':>11} {'MACs':>8}  run"]
    for run in runs:
        source = "labels" if run["labels_only"] else "record"
        lines.append(
            f"{source:12} {100 * run['test_accuracy']:8.2f}% {100 * run['test_mean_class_accuracy']:10.2f}% "
            f"{100 * run['best_test_accuracy']:10.2f}% {run['parameters']:11,d} "
            f"{run['macs_per_cloud'] / 1e6:7.2f}M  {run['out']}/"
        )
    return [*lines, f"next: minipc eval {runs[-1]['out']}"]
