"""minipc train: a student from a record, or any model from labels."""

import os
import shlex

import click

from minipc.cli.options import FILE, Verb, loss_options, shared_options
from minipc.cli.show import Console, result

OF_SELF = ("self_target", "self_every", "ema_decay", "self_record")
OF_DISTILLATION = ("kd_weight", "self_weight", "temperature", "guard", *OF_SELF)


class Views(click.ParamType):
    """A range of views, A:B, or B for 0:B."""

    name = "A:B"

    def convert(self, value, parameter, context):
        try:
            first, stop = (
                int(part) for part in (value if ":" in value else f"0:{value}").split(":")
            )
        except ValueError:
            self.fail(
                f"{value!r} is not A:B, e.g. 0:10 for the first ten views", parameter, context
            )
        return first, stop


@click.command(
    "train",
    cls=Verb,
    interrupted="finished epochs are kept; go on with: minipc train --resume --out FOLDER",
)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@click.option("--record", metavar="FILE", type=FILE, help="The record to learn from.")
@click.option(
    "--views", type=Views(), help="Only views A .. B-1 of the record; B is 0:B.  [default: all]"
)
@click.option(
    "--labels-only", is_flag=True, help="Labels alone; with --record on the views of the record."
)
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    help="teacher, student, tiny, or widths: 16-16-32-64:32.",
)
@loss_options()
@click.option(
    "--guard",
    type=click.Choice(["clip", "none"]),
    default="clip",
    show_default=True,
    help="Keeps the negative weight bounded.",
)
@click.option(
    "--self-target",
    type=click.Choice(["snapshot", "ema", "history", "record"]),
    default="snapshot",
    show_default=True,
    help="What the earlier self is.",
)
@click.option(
    "--self-every", type=int, default=1, show_default=True, help="Epochs between snapshots."
)
@click.option(
    "--ema-decay",
    type=float,
    default=0.99,
    show_default=True,
    help="m of the moving average, per step.",
)
@click.option(
    "--self-record", metavar="FILE", type=FILE, help="An earlier student, for --self-target record."
)
@click.option(
    "--val-fraction",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of the training clouds held out to choose best.h5 by.",
)
@click.option("--epochs", type=int, help="[default: 60; 40 without arguments]")
@click.option("--stop-after", type=int, metavar="E", help="Stop after epoch E; --resume goes on.")
@click.option(
    "--resume", is_flag=True, help="Go on with the run in --out, or with the last one here."
)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--lr", type=float, help="Largest learning rate.  [default: 3e-3; 1e-3 for teacher]")
@click.option("--weight-decay", type=float, default=1e-2, show_default=True)
@click.option("--warmup-steps", type=int, default=200, show_default=True)
@click.option(
    "--optimiser", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True
)
@click.option(
    "--clip-norm", type=float, default=0.0, help="Largest gradient norm.  [default: no clipping]"
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", "-o", type=FILE, help="Run folder.  [default: run, run-2, ...]")
@click.option(
    "--dry-run", is_flag=True, help="Check everything, say what would be trained, write nothing."
)
@shared_options
def command(
    data,
    record,
    views,
    labels_only,
    model,
    kd_weight,
    self_weight,
    temperature,
    label_smoothing,
    guard,
    self_target,
    self_every,
    ema_decay,
    self_record,
    val_fraction,
    epochs,
    stop_after,
    resume,
    batch_size,
    lr,
    weight_decay,
    warmup_steps,
    optimiser,
    clip_norm,
    seed,
    out,
    dry_run,
    backend,
    engine,
    threads,
    as_json,
    quiet,
    verbose,
):
    """Train a model and write a run folder.

    Without arguments: takes record.h5 and the data file that it names, trains a tiny student on
    labels alone and one from the record, and shows both.  With --resume every setting comes from
    the run; one that is given and differs is refused.
    """
    from minipc.backend import load
    from minipc.distil.self_target import SelfConfig
    from minipc.distil.train import TrainConfig
    from minipc.nn.losses import LABELS_ALONE, LossConfig
    from minipc.runs.config import read_config
    from minipc.runs.folder import last_name
    from minipc.verbs import demo, train

    given = _given()
    for name in [
        name for name, source in given.items() if source is click.core.ParameterSource.COMMANDLINE
    ]:
        option, kind = (
            f"--{name.replace('_', '-')}",
            {"self_every": "snapshot", "ema_decay": "ema"}.get(name),
        )
        if labels_only and name in OF_DISTILLATION:
            raise click.UsageError(f"--labels-only has no use for {option}; leave one out")
        if resume:
            continue  # the run's own settings are compared below
        if self_weight == 0 and name in OF_SELF:
            raise click.UsageError(f"{option} has no use without --self-weight, e.g. 0.2; add it")
        if kind not in (None, self_target):
            raise click.UsageError(f"{option} goes with --self-target {kind}, not {self_target}")
    if resume and dry_run:
        raise click.UsageError("--resume and --dry-run do not go together; leave one out")
    bare = data is None and record is None and not labels_only
    teacher = model == "teacher"
    with Console(quiet, verbose) as console:
        running = dict(
            xp=load(backend, console.say),
            threads=threads,
            say=console.say,
            progress=console.progress,
            detail=console.detail,
            stop_after=stop_after,
        )
        out = out and os.path.normpath(out)  # shells complete run/
        if resume:
            out = out or last_name("run")
            if out is None:
                raise click.UsageError("--resume: there is no run here; name its folder with --out")
            settings = dict(
                record=record,
                data=data,
                self_record=self_record,
                given=_wanted(given),
                **running,
            )
            bare = read_config(out).baseline is not None
            runs = demo.resume(out, **settings) if bare else [train.resume(out, **settings)]
        else:
            weights = (
                LABELS_ALONE
                if labels_only
                else dict(
                    kd_weight=kd_weight,
                    self_weight=self_weight,
                    temperature=temperature,
                    guard=guard,
                )
            )
            loss = LossConfig(label_smoothing=label_smoothing, **weights)
            config = TrainConfig(
                epochs=epochs
                if epochs is not None
                else demo.STUDENT_EPOCHS
                if bare
                else TrainConfig.epochs,
                batch_size=batch_size,
                lr=lr if lr is not None else 1e-3 if teacher else TrainConfig.lr,
                weight_decay=weight_decay,
                warmup_steps=warmup_steps,
                optimiser=optimiser,
                clip_norm=clip_norm,
                val_fraction=val_fraction,
                engine=engine,
                seed=seed,
            )
            self_config = SelfConfig(self_target, self_every, ema_decay)
            if bare:
                runs = demo.train(
                    model,
                    loss,
                    config,
                    out=out,
                    self_config=self_config,
                    dry_run=dry_run,
                    **running,
                )
            else:
                runs = [
                    train.train(
                        model,
                        loss,
                        config,
                        data=data,
                        record=record,
                        labels_only=labels_only,
                        self_config=self_config,
                        self_record=self_record,
                        views=views,
                        out=out,
                        dry_run=dry_run,
                        **running,
                    )
                ]
    if dry_run:
        result({"dry_run": True}, as_json, ["dry run: everything fits, nothing was written"])
        return
    values = runs[-1].values | ({"baseline": runs[0].values} if bare else {})
    result(values, as_json, _table([run.values for run in runs]))


def _given():
    """Return {parameter name: where it came from} of every option that is not at its default."""
    context, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: source for name, source in sources.items() if source is not default}


def _wanted(given):
    """Return {section of run.json: {setting: value}} of the options that were given, as
    verbs.train.resume takes it.
    """
    from minipc.distil.train import TrainConfig
    from minipc.nn.losses import LossConfig

    params = click.get_current_context().params
    sections = {
        "training": TrainConfig.__dataclass_fields__,
        "loss": LossConfig.__dataclass_fields__,
    }
    wanted = {
        section: {name: params[name] for name in names if name in given}
        for section, names in sections.items()
    }
    renamed = {
        "self_target": {"self_target": "kind", "self_every": "every", "ema_decay": "decay"},
        None: {"labels_only": "labels_only", "model": "name", "views": "views"},
    }
    for section, names in renamed.items():
        wanted[section] = {names[name]: params[name] for name in names if name in given}
    if "views" in wanted[None]:
        wanted[None]["views"] = list(wanted[None]["views"])  # as JSON has it
    return wanted


def _table(runs):
    """Return the lines of a table of runs, last epoch first, and what to do next."""
    lines = [
        f"{'trained on':12} {'accuracy':>9} {'mean class':>11} {'best on test':>12} "
        f"{'parameters':>11} {'MACs':>8}  run"
    ]
    for run in runs:
        source = "labels" if run["labels_only"] else "record"
        lines.append(
            f"{source:12} {100 * run['test_accuracy']:8.2f}% "
            f"{100 * run['test_mean_class_accuracy']:10.2f}% "
            f"{100 * run['best_test_accuracy']:11.2f}% {run['parameters']:11,d} "
            f"{run['macs_per_cloud'] / 1e6:7.2f}M  {run['out']}{os.sep}"
        )
    last = runs[-1]
    if "chosen" in last:
        chosen = last["chosen"]
        lines.append(
            f"epoch {chosen['epoch']} is best on the validation clouds "
            f"({100 * chosen['val_accuracy']:.2f}%); "
            f"there the test accuracy is {100 * chosen['test_accuracy']:.2f}%: {chosen['model']}"
        )
    if last["epochs_done"] < last["epochs"]:
        lines.append(f"stopped after epoch {last['epochs_done']} of {last['epochs']}")
        return [*lines, f"next: minipc train --resume --out {shlex.quote(last['out'])}"]
    return [*lines, f"next: minipc eval {shlex.quote(last['out'])}"]
