"""minipc compare: arms of a study, or finished runs, against training on labels alone."""

import copy
import os
import re
from typing import Any

import click

from minipc.cli import train
from minipc.cli.options import (
    FILE,
    Verb,
    common_options,
    option,
    options_of,
    read_toml,
    typed_options,
    values_of_table,
)
from minipc.cli.show import Console, result
from minipc.errors import DataError, UsageError, short
from minipc.settings import LossConfig, SelfConfig, TrainConfig, option_names

# of a study file, each with a value of its kind, which is the default of the last three
KEYS: dict[str, Any] = {"data": "", "record": "", "seeds": [0], "common": {}, "arms": {}}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")  # of an arm: it becomes the name of a folder
LABELS, ALONE = "labels", {"labels-only": True}  # the arm that is added
OF_ARMS = {"model", *train.FILES} - {"data"}  # options of an arm beside the settings
for _kind in (LossConfig, SelfConfig, TrainConfig):
    OF_ARMS |= {*option_names(_kind)}
OF_ARMS -= {"seed"}


@click.command(
    "compare",
    cls=Verb,
    interrupted="finished epochs are kept; the same command again goes on",
    short_help="Arms over seeds against labels alone.",
)
@click.argument("paths", metavar="STUDY.toml|RUN...", nargs=-1, required=True, type=FILE)
@option(
    "--out",
    metavar="FOLDER",
    help="Folder of the runs and of compare.md, .csv, .json, .svg.",
    unless_given="STUDY; for runs, nothing is written",
)
@option("--no-report")
@option(
    "--at-a-time",
    group="Machine",
    metavar="N",
    type=click.IntRange(1, 1000),
    help="Runs of a study trained at the same time.",
    unless_given="the CPUs, or devices",
)
@option("--threads", default=1, help="Worker threads of each run of a study.", unless_given="1")
@option("--backend")
@common_options
def command(
    paths: tuple[str, ...],
    out: str | None,
    no_report: bool,
    at_a_time: int | None,
    threads: int,
    backend: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train the arms of a study with several seeds, and compare them; or compare finished RUNs.

    STUDY.toml names data, record, seeds, common settings and arms; an arm on labels alone is added
    if there is none.  The last epoch decides, never the best; the test split chooses nothing.
    """
    from minipc.backend import load
    from minipc.report.compare import of_compare
    from minipc.verbs import compare

    out = out and os.path.normpath(out)
    studies = [path for path in paths if path.endswith(".toml")]
    if studies and len(paths) > 1:
        raise click.UsageError(f"{studies[0]}: is a study; name it alone, or name runs alone")
    arms: dict[str, dict[str, Any]] = {}
    with Console(quiet, verbose) as console:
        if studies:
            arms, seeds = read_study(studies[0])
            out = out or os.path.basename(studies[0]).removesuffix(".toml")
            try:
                values = compare.study(
                    arms,
                    seeds,
                    out,
                    at_a_time=at_a_time,
                    threads=threads,
                    xp=load(backend, console.say),
                    say=console.say,
                    progress=console.progress,
                )
            except (UsageError, DataError) as reason:
                raise type(reason)(f"{studies[0]}: {reason}") from reason
        else:
            for name in ("at_a_time", "threads", "backend"):
                if name in typed_options():
                    flag = f"--{name.replace('_', '-')}"
                    raise click.UsageError(f"{flag} goes with STUDY.toml: runs are trained already")
            values = compare.compare_runs(paths, out)
        if out is not None and not no_report:
            from minipc.verbs.report import report_at_end

            beside: dict[str, Any] = {name: _of_all(arms, name) for name in ("data", "record")}
            if studies:  # not runs of an arm that was taken out
                beside["runs"] = [run for arm in values["arms"] for run in arm["runs"]]
            report = report_at_end([out] if studies else paths, out, console.say, **beside)
            values["files"] += [report] if report else []
    result(values, as_json, of_compare)


def _of_all(arms: dict[str, dict[str, Any]], name: str) -> str | None:
    """Return the file that all arms name so, or None: the report then looks beside the runs."""
    files = {asked[name] for asked in arms.values()}
    return files.pop() if len(files) == 1 else None


def read_study(path: str) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Return ({arm: arguments of verbs.train.train}, seeds) of a study file.

    Raises DataError for a file that is not TOML, UsageError for a key or value that no study has.
    """
    tables = read_toml(path)
    _check_keys(tables, path)
    seeds, common, arms = (tables.get(key, KEYS[key]) for key in ("seeds", "common", "arms"))
    asked = {
        name: _asked(f"{path}: [arms.{name}]", own, common, tables) for name, own in arms.items()
    }
    if any(each["labels_only"] for each in asked.values()):
        return asked, seeds
    if LABELS in asked:
        raise UsageError(
            f"{path}: [arms.{LABELS}]: is not on labels alone; add labels-only = true, or name it "
            "otherwise"
        )
    return {LABELS: _asked(f"{path}: [common]", ALONE, common, tables), **asked}, seeds


def _check_keys(tables: dict[str, Any], path: str) -> None:
    """Raise UsageError unless a study file has the keys of a study, each of its kind."""
    for key, value in tables.items():
        if key not in KEYS:
            raise UsageError(f"{path}: {key}: unknown key; known: {', '.join(KEYS)}")
        if type(value) is not type(KEYS[key]) or value == "":
            expected = {"seeds": "integers, as in [0, 1, 2]", "common": "a table", "arms": "tables"}
            kind = expected.get(key, "the name of a file")
            raise UsageError(f"{path}: {key}: expected {kind}, found {short(repr(value))}")
    for seed in tables.get("seeds", []):
        if type(seed) is not int:
            raise UsageError(
                f"{path}: seeds: expected integers, as in [0, 1, 2], found {short(repr(seed))}"
            )
    for name, table in tables.get("arms", {}).items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: arms.{short(name)}: expected a table, found {short(repr(table))}; write "
                f"[arms.{short(name)}]"
            )
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{path}: arms.{short(name)}: expected a name of letters, digits and _ . + -, "
                "because it names a folder"
            )


def _asked(
    where: str, own: dict[str, Any], common: dict[str, Any], tables: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of verbs.train.train for one arm, read as `minipc train` reads them.

    own and common: tables of options, of which own wins; where: for messages.
    """
    both = {"record": tables["record"]} if "record" in tables else {}
    both |= common
    if (both | own).get("labels-only") is True:  # what the other arms have in common goes unused
        both = {
            key: value
            for key, value in both.items()
            if key.replace("-", "_") not in train.OF_DISTILLATION
        }
    given = values_of_table(both | own, train.command, where)
    for name in given:
        if name not in OF_ARMS:
            why = "seeds = [...] at the top sets it" if name == "seed" else "no arm can set it"
            raise UsageError(f"{where}: {name.replace('_', '-')}: {why}; leave it out here")
    params = _parsed(given, where)
    params |= {"data": tables.get("data")}
    files = {name: params.pop(name) for name in train.FILES}
    model = params.pop("model")
    # only the arm's own: what is common to all arms may be of use to others
    try:
        train.refuse_useless(
            values_of_table(own, train.command, where), params, files["labels_only"]
        )
        return train.arguments(model, params, files)
    except (UsageError, click.UsageError) as reason:
        raise UsageError(f"{where}: {reason}") from reason


def _parsed(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Return all parameters of `minipc train`; variables are not read: a study is its file."""
    parameters = [copy.copy(parameter) for parameter in train.command.params]
    for parameter in parameters:
        parameter.envvar = None
    bare = click.Command("train", params=parameters)
    context = click.Context(bare, info_name="train", default_map=given)
    try:
        bare.parse_args(context, [])
    except click.BadParameter as reason:
        names: Any = {each.name: name for name, each in options_of(train.command).items()}
        key = names[reason.param.name] if reason.param else ""
        raise UsageError(f"{where}: {key}: {reason.message}") from reason
    return context.params
