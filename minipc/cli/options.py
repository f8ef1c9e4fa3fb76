"""Options: what several verbs share, their groups in --help, and where their values come from.

A value comes from a flag, MINIPC_<OPTION>, --config FILE.toml or a default; click keeps the
precedence.  Here is what click does not know: which variable belongs to an option, how the table
of a verb becomes click's default_map, and from which place a wrong value came.
"""

import difflib
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.core import ParameterSource

from minipc.cli.hints import ELSEWHERE, EXAMPLES
from minipc.errors import DataError, MinipcError, UsageError, short
from minipc.settings import Setting, TrainConfig, settings_of

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class _Name(click.Path):
    """A path, so that shells complete it.  We refuse an empty one; the readers check the rest."""

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        if value in ("", b""):
            self.fail("is empty; name a file", parameter, context)
        return super().convert(value, parameter, context)


class _Sample(click.ParamType):
    """A number, or "all", which becomes 0."""

    name = "N|all"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        if value is None or isinstance(value, int):
            return value
        if value == "all":
            return 0
        if not value.isdigit() or not int(value):
            self.fail(f"{value!r} is neither a positive number nor all", parameter, context)
        return int(value)


FILE = _Name(readable=False)
SAMPLE = _Sample()
MOST_CONFIG = 1 << 20  # bytes
MOST_NAME = 30  # width of the first column of --help; the text of a longer option starts below it

# What every verb with the option has in common; a verb adds or replaces the rest (see option).
RECURRING: dict[str, dict[str, Any]] = {
    "--out": {"names": ("-o",), "metavar": "FILE", "type": FILE, "help": "File to write."},
    "--record": {"metavar": "FILE", "type": FILE},
    "--self-record": {
        "metavar": "FILE",
        "type": FILE,
        "help": "An earlier student's record, for --record.",
    },
    "--teacher": {"metavar": "MODEL", "type": FILE},
    "--dry-run": {
        "is_flag": True,
        "help": "Check everything, say what would be done, write nothing.",
    },
    "--no-report": {"is_flag": True, "help": "Write no report.html."},
    "--show": {"is_flag": True},
    "--num-points": {
        "group": "Clouds",
        "metavar": "N",
        "type": int,
        "help": "Points of each cloud.",
    },
    "--up-axis": {
        "group": "Clouds",
        "type": click.Choice(["x", "y", "z", "unknown"]),
        "help": "Of the files; compared with the model's.",
    },
    "--backend": {
        "group": "Machine",
        "type": click.Choice(["auto", "numpy", "cupy"]),
        "default": "auto",
        "help": "auto takes cupy where a device answers.",
    },
    "--threads": {
        "group": "Machine",
        "metavar": "N",
        "type": click.IntRange(1),
        "help": "Worker threads on the CPU; a device has one.",
        "unless_given": "the CPUs",
    },
    "--quiet": {
        "names": ("-q",),
        "group": "Messages",
        "is_flag": True,
        "help": "No progress and no announcements.",
    },
    "--verbose": {
        "names": ("-v",),
        "group": "Messages",
        "is_flag": True,
        "help": "Details, and the traceback of a failure.",
    },
    "--json": {
        "names": ("as_json",),
        "group": "Messages",
        "is_flag": True,
        "help": "End with one JSON object on stdout.",
    },
}


class Option(click.Option):
    """An option with its group in --help."""

    def __init__(self, *arguments: Any, group: str = "Input and output", **settings: Any) -> None:
        """group: the heading; the other arguments are those of click."""
        super().__init__(*arguments, **settings)
        self.group = group


class Verb(click.Command):
    """A verb: a command whose options also read MINIPC_<OPTION> and a config file."""

    def __init__(self, *arguments: Any, interrupted: str = "", **settings: Any) -> None:
        """interrupted: the message after Ctrl-C; the other arguments are those of click."""
        super().__init__(*arguments, **settings)
        self.interrupted = interrupted
        for name, option in options_of(self).items():
            option.envvar = option.envvar or f"MINIPC_{name.replace('-', '_').upper()}"

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, and the options below the headings of their groups."""
        if example := EXAMPLES.get(_table_of(context)):
            with formatter.section("Example"):
                formatter.write_text(example)
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            row = parameter.get_help_record(context)
            if isinstance(parameter, click.Option) and row is not None:
                # click itself adds --help, without a group
                groups.setdefault(getattr(parameter, "group", "Messages"), []).append(row)
        names = [name for rows in groups.values() for name, _ in rows]
        width = max(len(name) for name in names if len(name) <= MOST_NAME)  # one for all groups
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], width)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            told = _meant(error.option_name, options_of(self))
            if told is None:
                raise
            raise click.UsageError(
                f"no such option {error.option_name}; {told}", context
            ) from error
        except click.BadParameter as error:
            error.param_hint = (error.param and _place(context, error.param)) or error.param_hint
            raise

    def invoke(self, context: click.Context) -> Any:
        try:
            if context.params.get("quiet") and context.params.get("verbose"):
                raise UsageError("--quiet and --verbose contradict each other; leave one out")
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(str(error) or self.interrupted) from error
        except (MinipcError, click.ClickException) as error:
            if context.params.get("verbose") and not context.params.get("quiet"):
                traceback.print_exc()
            places = [_place(context, option) for option in options_of(self).values()]
            # name these places, because the user does not see them in the typed command
            if isinstance(error, (UsageError, click.UsageError)) and any(places):
                raise UsageError(
                    f"{error} (set elsewhere: {', '.join(filter(None, places))})"
                ) from error
            raise


class Verbs(click.Group):
    """A group of verbs."""

    command_class = Verb


def option(name: str, *names: str, **about: Any) -> Decorator:
    """Return a decorator that adds an option with the arguments that about and RECURRING name.

    about: arguments of Option, which win; unless_given: the default in words.
    """
    about = RECURRING.get(name, {}) | about
    names += about.pop("names", ())
    if words := about.pop("unless_given", ""):
        about["help"] += f"  [default: {words}]"
    about["show_default"] = "default" in about and not words
    return click.option(name, *names, cls=Option, **about)


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every verb: --quiet, --verbose, --json (as_json) and --config."""
    config = option(
        "--config",
        group="Messages",
        metavar="FILE",
        type=FILE,
        is_eager=True,
        expose_value=False,
        callback=_configure,
        help="TOML file of options, a table for each verb.",
    )
    return option("--quiet")(option("--verbose")(option("--json")(config(function))))


def shared_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the common options and --backend, --threads and --engine."""
    function = setting_options(TrainConfig, "Machine")(common_options(function))
    return option("--backend")(option("--threads")(function))


def setting_options(
    kind: type, *groups: str, leave_out: tuple[str, ...] = (), **defaults: Any
) -> Decorator:
    """Return a decorator that adds an option for each setting of a dataclass, in its order.

    groups: only of these; leave_out: names of options; defaults: {option: another default}.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for each in reversed(settings_of(kind).values()):
            if (each.group in groups or not groups) and each.option not in leave_out:
                function = _option(each, defaults.get(each.option, each.default))(function)
        return function

    return add


def _option(setting: Setting, default: Any) -> Decorator:
    """Return the click option of a setting; Verb adds its variable and its key."""
    name, help = f"--{setting.option.replace('_', '-')}", setting.help
    if setting.kind is bool:
        return option(name, group=setting.group, is_flag=True, default=default, help=help)
    return option(
        name,
        group=setting.group,
        metavar=setting.metavar or None,
        type=click.Choice(setting.choices) if setting.choices else setting.kind,
        default=None if setting.unless_given else default,
        unless_given=setting.unless_given,
        help=help,
    )


def options_of(verb: click.Command) -> dict[str, click.Option]:
    """Return {name as typed, without leading dashes: option} of a verb."""
    options = (parameter for parameter in verb.params if isinstance(parameter, click.Option))
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def _meant(typed: str, options: dict[str, click.Option]) -> str | None:
    """Return what to say of an option that does not exist, or None for one that nobody knows.

    options: those that exist, by name; typed: with dashes, as on the command line.
    """
    name = typed.lstrip("-").lower().replace("_", "-")
    meant = [f"--{name}", *ELSEWHERE.get(name, [])]
    for each in meant:
        option, _, value = each.removeprefix("--").partition(" ")
        # an option of this name may be another one: --logits of record and of eval
        if option in options and (
            not value or value in getattr(options[option].type, "choices", ())
        ):
            return f"here it is {each}"
    if not meant[1:]:
        return None
    option = meant[1].partition(" ")[0]
    return f"and this verb has no {meant[1] if option.removeprefix('--') in options else option}"


def given_options() -> dict[str, ParameterSource | None]:
    """Return {parameter: its source} of the running verb, without those at their default."""
    context, default = click.get_current_context(), ParameterSource.DEFAULT
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: source for name, source in sources.items() if source is not default}


def typed_options() -> list[str]:
    """Return the parameters of the running verb that were typed.

    What a variable or a file of settings says may be meant for other commands.
    """
    typed = ParameterSource.COMMANDLINE
    return [name for name, source in given_options().items() if source is typed]


def verbs_below(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Return {name: Verb} of a group and of the groups in it, with names such as "data.pack"."""
    verbs: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            verbs |= verbs_below(command, f"{prefix}{name}.")
        elif command is not None:
            verbs[f"{prefix}{name}"] = command
    return verbs


def _configure(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of this verb's options from its table in a config file."""
    if path is None or context.resilient_parsing:
        return
    tables = read_toml(path)
    root: Any = context.find_root().command  # the group of all verbs
    _check_tables(tables, verbs_below(root), path)
    own = _table_of(context)
    for name in own.split("."):
        tables = tables.get(name, {})
    context.default_map = values_of_table(tables, context.command, f"{path}: [{own}]")
    context.meta["minipc.config"] = path


def read_toml(path: str) -> dict[str, Any]:
    """Return the content of a TOML file.  Raises DataError."""
    import tomllib  # both late, so that --help does not wait for them: the second loads NumPy

    from minipc.storage.files import read_bytes

    try:
        return tomllib.loads(read_bytes(path, MOST_CONFIG).decode("utf-8-sig"))
    except (ValueError, RecursionError) as reason:
        raise DataError(f"{path}: cannot be read as TOML ({reason}); correct it") from reason


def _check_tables(
    tables: dict[str, Any], verbs: dict[str, click.Command], path: str, prefix: str = ""
) -> None:
    """Raise UsageError unless tables holds tables of verbs; other verbs check their own keys."""
    for name, table in tables.items():
        full = prefix + name
        group = any(verb.startswith(f"{full}.") for verb in verbs)
        if full not in verbs and not group:
            what = "table" if isinstance(table, dict) else "key outside of tables"
            raise UsageError(f"{path}: {full}: unknown {what}; {_known(full, verbs)}")
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: {full}: expected a table, found {_kind(table)}; write [{full}]"
            )
        if group:
            _check_tables(table, verbs, path, f"{full}.")


def values_of_table(table: dict[str, Any], verb: click.Command, where: str) -> dict[str, Any]:
    """Return {parameter name: value} of a table of TOML; click parses them as if typed.

    where: file and table, for messages.  Raises UsageError for an unknown key, and for a value that
    could not stand on a command line.
    """
    options, values = options_of(verb), {}
    del options["config"]
    for key, value in table.items():
        if key not in options:
            raise UsageError(f"{where}: {key}: unknown option; {_known(key, options)}")
        flag = options[key].is_flag
        if isinstance(value, bool) != flag or not _is_scalar(value):
            expected = "true or false" if flag else "text or a number"
            raise UsageError(f"{where}: {key}: expected {expected}, found {_kind(value)}")
        values[options[key].name] = value if flag else str(value)
    return values


def _is_scalar(value: Any) -> bool:
    """Return whether a TOML value could also stand on a command line."""
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, float) or isinstance(value, int) and value.bit_length() <= 64


def _kind(value: Any) -> str:
    """Return a TOML value for a message: its type, and its value if that is a scalar."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "text"}
    kind = kinds.get(type(value), type(value).__name__)
    return f"{kind} {short(repr(value))}" if _is_scalar(value) else kind


def _known(name: str, names: Iterable[str]) -> str:
    """Return the hint for an unknown name: the closest of names, or all of them."""
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


def _place(context: click.Context, parameter: click.Parameter) -> str | None:
    """Return where a parameter was set, or None for the command line or a default."""
    source = context.get_parameter_source(parameter.name)
    if source is ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    if source is ParameterSource.DEFAULT_MAP:
        options = options_of(context.command)
        (name,) = (name for name, option in options.items() if option is parameter)
        return f"{name} in [{_table_of(context)}] of {context.meta['minipc.config']}"
    return None


def _table_of(context: click.Context) -> str:
    """Return the table name of this verb: its words on the command line, joined by dots."""
    if context.parent is None:
        return ""
    above = _table_of(context.parent)
    return f"{above}.{context.info_name}" if above else str(context.info_name)
