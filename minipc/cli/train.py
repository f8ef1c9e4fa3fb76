"""minipc train: a student from a record, or any model from labels."""

import os
from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource

from minipc.cli.options import FILE, Verb, given_options, option, setting_options, shared_options
from minipc.cli.show import Console, result
from minipc.settings import LossConfig, SelfConfig, TrainConfig, chosen, option_names, take

COMMANDLINE = ParameterSource.COMMANDLINE
SECTIONS = {"training": TrainConfig, "loss": LossConfig, "self_target": SelfConfig}  # of run.json
OF_SELF = {*option_names(SelfConfig), "self_record"}
OF_DISTILLATION = {*option_names(LossConfig), *OF_SELF} - {"label_smoothing"}
OF_AUGMENTATION = {"augment_steps", "augment_every", "augment_share"}
OF_ONE_TARGET = {"self_every": "snapshot", "ema_decay": "ema"}
OF_ONE_AVERAGE = {"average_decay": "ema", "average_epochs": "last"}
FILES = ("data", "record", "labels_only", "self_record", "views", "init")  # of verbs.train


class Views(click.ParamType):
    """A range of views: A:B, or B, which means 0:B."""

    name = "A:B"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
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
@option("--record", help="The record to learn from.")
@option(
    "--views",
    type=Views(),
    help="Only views A .. B-1 of the record; B is 0:B.",
    unless_given="all",
)
@option("--self-record", help="An earlier student's record, for --self-target record.")
@option(
    "--init",
    metavar="MODEL",
    type=FILE,
    help="Begin from the weights of this model or run.",
    unless_given="drawn from the seed",
)
@option("--out", metavar="FOLDER", help="Run folder.", unless_given="run, run-2, ...")
@option("--no-report")
@option("--dry-run")
@option(
    "--model",
    group="Model",
    metavar="NAME",
    default="tiny",
    help="teacher, student, tiny, pointnet2/8, local-student, ..., or by hand: 16-16-32-64:32.",
)
@option(
    "--labels-only",
    group="Loss",
    is_flag=True,
    help="Labels alone; with --record on the views of the record.",
)
@setting_options(LossConfig)
@setting_options(SelfConfig)
@setting_options(TrainConfig, "Epochs")
@option(
    "--stop-after",
    group="Epochs",
    metavar="N",
    type=int,
    help="Stop after epoch N; --resume goes on.",
)
@option(
    "--resume",
    group="Epochs",
    is_flag=True,
    help="Go on with the run in --out, or with the last one here.",
)
@setting_options(TrainConfig, "Steps")
@setting_options(TrainConfig, "Averaging")
@setting_options(TrainConfig, "Network augmentation")
@shared_options
def command(
    data: str | None,
    record: str | None,
    views: tuple[int, int] | None,
    self_record: str | None,
    init: str | None,
    out: str | None,
    no_report: bool,
    dry_run: bool,
    model: str,
    labels_only: bool,
    stop_after: int | None,
    resume: bool,
    backend: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Train a model and write a run folder.

    Without arguments: takes record.h5 and the data file that it names, trains a tiny student on
    labels alone and one from the record, and shows both.  With --resume every setting comes from
    the run; one that is given and differs is refused.
    """
    from minipc.backend import load
    from minipc.report.lines import of_train

    # a variable or a key in a file may be set for other runs
    typed = [name for name, source in given_options().items() if source is COMMANDLINE]
    refuse_useless(typed, given, labels_only, resume)
    if resume and dry_run:
        raise click.UsageError("--resume and --dry-run do not go together; leave one out")
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
            runs = _resumed(out, data, record, self_record, running)
        else:
            files: dict[str, Any] = dict(data=data, record=record, labels_only=labels_only)
            files |= dict(self_record=self_record, views=views, init=init)
            runs = _new(model, given, files, dict(out=out, dry_run=dry_run), running)
        if dry_run:
            result({"dry_run": True}, as_json, of_train)
            return
        values = runs[-1].values | ({"baseline": runs[0].values} if len(runs) == 2 else {})
        values["report"] = None
        if not no_report:
            from minipc.verbs.report import report_at_end

            folders = [run.values["out"] for run in runs]
            report = report_at_end(folders, folders[-1], console.say, data=data, record=record)
            values["report"] = report
    result(values, as_json, of_train)


def refuse_useless(
    names: Iterable[str], given: dict[str, Any], labels_only: bool, resume: bool = False
) -> None:
    """Raise UsageError for one of the options names that has no effect with the others.

    given: {option: value} of all settings.
    """
    for name in names:
        flag, kind = f"--{name.replace('_', '-')}", OF_ONE_TARGET.get(name)
        if labels_only and name in OF_DISTILLATION:
            raise click.UsageError(f"--labels-only has no use for {flag}; leave one out")
        if resume and name == "init":
            raise click.UsageError(
                "--resume has no use for --init: the run goes on from its own weights; leave one "
                "out"
            )
        if resume:
            continue  # resume() compares them with the run's own settings
        if given["self_weight"] == 0 and name in OF_SELF:
            raise click.UsageError(f"{flag} has no use without --self-weight, e.g. 0.2; add it")
        if name in OF_AUGMENTATION and (given["augment_width"] or 1) == 1:
            raise click.UsageError(f"{flag} has no use without --augment-width, e.g. 3; add it")
        if kind not in (None, given["self_target"]):
            raise click.UsageError(
                f"{flag} goes with --self-target {kind}, not {given['self_target']}"
            )
        kind = OF_ONE_AVERAGE.get(name)
        if kind not in (None, given["average"]):
            raise click.UsageError(f"{flag} goes with --average {kind}, not {given['average']}")


def _new(
    model: str,
    given: dict[str, Any],
    files: dict[str, Any],
    place: dict[str, Any],
    running: dict[str, Any],
) -> list[Any]:
    """Return the Runs of new run folders: one, or two if no file is named."""
    from minipc.verbs import demo, train

    bare = not (files["data"] or files["record"] or files["labels_only"])
    asked = arguments(model, given, files, demo.STUDENT_EPOCHS if bare else TrainConfig.epochs)
    if bare:
        if files["init"]:
            raise click.UsageError("--init needs DATA or --record FILE; name one")
        for name in ("data", "record", "labels_only", "init"):
            del asked[name]
        return demo.train(**asked, **place, **running) or []  # None: dry run
    return [train.train(**asked, **place, **running)]


def arguments(
    model: str, given: dict[str, Any], files: dict[str, Any], epochs: int = TrainConfig.epochs
) -> dict[str, Any]:
    """Return the arguments of verbs.train.train, without the place and the running, for options.

    given: {option: value or None} of all settings; files: those of FILES; epochs: unless given.
    """
    from minipc.nn.losses import LABELS_ALONE

    lr = 1e-3 if model.partition("@")[0] == "teacher" else TrainConfig.lr
    default = {"epochs": epochs, "lr": lr}
    given = given | {name: value for name, value in default.items() if given[name] is None}
    weights = given
    if files["labels_only"]:
        weights = {name: given[name] for name in given.keys() - OF_DISTILLATION} | LABELS_ALONE
    (loss,) = take(weights, LossConfig)
    training, earlier = take(given, TrainConfig, SelfConfig)
    return dict(model=model, loss=loss, config=training, self_config=earlier, **files)


def _resumed(
    out: str | None,
    data: str | None,
    record: str | None,
    self_record: str | None,
    running: dict[str, Any],
) -> list[Any]:
    """Return the Runs of a resumed run folder: its baseline, if it has one, and the run itself."""
    from minipc.runs.config import read_config
    from minipc.runs.folder import last_name
    from minipc.verbs import demo, train

    out = out or last_name("run")
    if out is None:
        raise click.UsageError("--resume: there is no run here; name its folder with --out")
    what = dict(record=record, data=data, self_record=self_record, given=_given(), **running)
    if read_config(out).baseline is not None:
        return demo.resume(out, **what)
    return [train.resume(out, **what)]


def _given() -> dict[str | None, dict[str, Any]]:
    """Return {section of run.json: {setting: value}} of the options that were given."""
    params = click.get_current_context().params
    given = {name: params[name] for name in given_options()}
    insisted: dict[str | None, dict[str, Any]] = {
        section: chosen(given, kind) for section, kind in SECTIONS.items()
    }
    top = {"labels_only": "labels_only", "model": "name", "views": "views"}
    insisted[None] = {key: given[name] for name, key in top.items() if name in given}
    if "views" in insisted[None]:
        insisted[None]["views"] = list(insisted[None]["views"])  # as JSON has it
    return insisted
