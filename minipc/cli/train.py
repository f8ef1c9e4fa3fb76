"""minipc train: a student from a record, or any model from labels."""

import os
import shlex
from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource

from minipc.cli.completion import models
from minipc.cli.options import (
    FILE,
    Verb,
    given_options,
    option,
    setting_options,
    shared_options,
    typed_options,
)
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


@click.command("train", cls=Verb)
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
    help="Begin from the weights of this model or run; {seed} in it is --seed.",
    unless_given="drawn from the seed",
)
@option("--out", metavar="FOLDER", help="Run folder.", unless_given="run, run-2, ...")
@option("--no-report")
@option("--dry-run")
@option(
    "--model",
    group="Model",
    metavar="NAME",
    shell_complete=models,
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

    Without DATA and --record: a small study in study/.  Takes record.h5, trains a tiny student from
    five labels a class, and one from these and the record, over three seeds, and compares them; the
    same command again goes on.  With --resume every setting comes from the run; one that is given
    and differs is refused.
    """
    from minipc.backend import load
    from minipc.report.compare import of_compare
    from minipc.report.lines.train import of_train

    # a variable or a key in a file may be set for other runs
    typed = typed_options()
    refuse_useless(typed, given, labels_only, resume)
    if resume and dry_run:
        raise click.UsageError("--resume and --dry-run do not go together; leave one out")
    with Console(quiet, verbose) as console:
        bare = not (resume or data or record or labels_only)
        if data and not (record or labels_only or resume) and _is_record(data):
            console.say(f"{data}: is a record; taken as --record {data}")
            data, record = None, data
        running: dict[str, Any] = dict(xp=load(backend, console.say), threads=threads)
        running |= dict(say=console.say, progress=console.progress)
        files: dict[str, Any] = dict(data=data, record=record, labels_only=labels_only)
        files |= dict(self_record=self_record, views=views, init=init)
        place = dict(out=out and os.path.normpath(out), dry_run=dry_run)  # shells complete run/
        if bare:
            if stop_after is not None or init:
                flag = "--init" if init else "--stop-after"
                raise click.UsageError(f"{flag} needs DATA or --record FILE; name one")
            out, values = _study(model, given, files, place, running)
        else:
            running |= dict(detail=console.detail, stop_after=stop_after)
            out, values = _run(model, given, files, place, running, resume)
        if values and not no_report:
            from minipc.verbs.report import report_at_end

            report = report_at_end([out], out, console.say, data=data, record=record)
            if bare:
                values["files"] += [report] if report else []
            else:
                values["report"] = report
    if bare and values:
        result(values, as_json, of_compare)
    else:
        result(values or {"dry_run": True}, as_json, of_train)


def _is_record(path: str) -> bool:
    from minipc.storage.files import kind_of

    return os.path.isfile(path) and kind_of(path) == "record"


def _folder(resume: bool) -> str:
    """Return the run folder where none is given: the last one to resume, else a new one.

    Raises UsageError if there is none to resume.
    """
    from minipc.runs.folder import free_name, last_name

    if not resume:
        return free_name("run")
    out = last_name("run")
    if out is None:
        raise click.UsageError("--resume: there is no run here; name its folder with --out")
    return out


def _goes_on(out: str, files: dict[str, Any]) -> str:
    """Return the line after Ctrl-C: what is kept, and the command that goes on with it."""
    if not os.path.lexists(os.path.join(out, "run.json")):
        return "nothing was begun"
    elsewhere = {"data": [], "record": ["--record"], "self_record": ["--self-record"]}
    words = ["minipc", "train"]
    for name, flag in elsewhere.items():
        if files[name] and os.path.dirname(files[name]):  # else it is found without its name
            words += [*flag, files[name]]
    words += ["--resume", "--out", out]
    return f"finished epochs are kept; go on with: {shlex.join(words)}"


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


def _study(
    model: str,
    given: dict[str, Any],
    files: dict[str, Any],
    place: dict[str, Any],
    running: dict[str, Any],
) -> tuple[str, Any]:
    """Return the folder and the values of the study of the bare command, None of a dry run."""
    from minipc.verbs import demo

    typed = given_options()
    given = given | {name: value for name, value in demo.STUDENT.items() if name not in typed}
    asked = arguments(model, given, files)
    for name in ("data", "record", "labels_only", "init"):
        del asked[name]
    place = place | {"out": place["out"] or demo.STUDY}
    try:
        return place["out"], demo.train(**asked, **place, **running)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "finished epochs are kept; the same command again goes on"
        ) from error


def _run(
    model: str,
    given: dict[str, Any],
    files: dict[str, Any],
    place: dict[str, Any],
    running: dict[str, Any],
    resume: bool,
) -> tuple[str, Any]:
    """Return the folder and the values of a run, new or resumed, None of a dry run."""
    from minipc.verbs import train

    out = place["out"] or _folder(resume)
    try:
        if resume:
            named = {name: files[name] for name in ("data", "record", "self_record")}
            run: Any = train.resume(out, **named, given=_given(), **running)
        else:
            asked = arguments(model, given, files)
            run = train.train(**asked, **place | {"out": out}, **running)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_goes_on(out, files)) from error
    return out, run and run.values | {"report": None}


def arguments(model: str, given: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of verbs.train.train, without the place and the running, for options.

    given: {option: value or None} of all settings; files: those of FILES.
    """
    from minipc.nn.losses import LABELS_ALONE

    lr = 1e-3 if model.partition("@")[0] == "teacher" else TrainConfig.lr
    default = {"epochs": TrainConfig.epochs, "lr": lr}
    given = given | {name: value for name, value in default.items() if given[name] is None}
    weights = given
    if files["labels_only"]:
        weights = {name: given[name] for name in given.keys() - OF_DISTILLATION} | LABELS_ALONE
    (loss,) = take(weights, LossConfig)
    training, earlier = take(given, TrainConfig, SelfConfig)
    return dict(model=model, loss=loss, config=training, self_config=earlier, **files)


def _given() -> dict[str | None, dict[str, Any]]:
    """Return {section of run.json: {setting: value}} of the options that were given."""
    params = click.get_current_context().params
    given = {name: params[name] for name in typed_options()}
    insisted: dict[str | None, dict[str, Any]] = {
        section: chosen(given, kind) for section, kind in SECTIONS.items()
    }
    top = {"labels_only": "labels_only", "model": "name", "views": "views"}
    insisted[None] = {key: given[name] for name, key in top.items() if name in given}
    if "views" in insisted[None]:
        insisted[None]["views"] = list(insisted[None]["views"])  # as JSON has it
    return insisted
