"""Where an option's value comes from: a flag, MINIPC_<OPTION>, --config FILE.toml, a default.

click keeps the precedence.  Here is what click does not know: which variable belongs to an option,
how the table of a verb becomes click's default_map, and from which place a wrong value came.
"""

import difflib
import traceback

import click
from click.core import ParameterSource

from minipc.errors import DataError, MinipcError, UsageError, short
from minipc.settings import TrainConfig, settings_of


class _Name(click.Path):
    """A path, so that shells complete it.  We refuse an empty one; the readers check the rest."""

    def convert(self, value, parameter, context):
        if value in ("", b""):
            self.fail("is empty; name a file", parameter, context)
        return super().convert(value, parameter, context)


FILE = _Name(readable=False)
MOST_CONFIG = 1 << 20  # bytes


class Verb(click.Command):
    """A verb: a command whose options also read MINIPC_<OPTION> and a config file."""

    def __init__(self, *arguments, interrupted="", **settings):
        """interrupted: the message after Ctrl-C; the other arguments are those of click."""
        super().__init__(*arguments, **settings)
        self.interrupted = interrupted
        for name, option in options_of(self).items():
            option.envvar = f"MINIPC_{name.replace('-', '_').upper()}"

    def parse_args(self, context, arguments):
        try:
            return super().parse_args(context, arguments)
        except click.BadParameter as error:
            error.param_hint = (error.param and _place(context, error.param)) or error.param_hint
            raise

    def invoke(self, context):
        try:
            if context.params.get("quiet") and context.params.get("verbose"):
                raise UsageError("--quiet and --verbose contradict each other; leave one out")
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(self.interrupted) from error
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


def common_options(function):
    """Add the options of every verb: --quiet, --verbose, --json (as_json) and --config."""
    for option in (
        click.option(
            "--config",
            metavar="FILE",
            type=FILE,
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="TOML file of options, a table for each verb.",
        ),
        click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout."),
        click.option(
            "--verbose", "-v", is_flag=True, help="Details, and the traceback of a failure."
        ),
        click.option("--quiet", "-q", is_flag=True, help="No progress and no announcements."),
    ):
        function = option(function)
    return function


def shared_options(function):
    """Add the common options and --backend, --engine and --threads."""
    function = common_options(function)
    for option in (
        setting_options(TrainConfig, "Engine"),
        click.option(
            "--threads", type=click.IntRange(1), help="Worker threads.  [default: the CPUs]"
        ),
        click.option(
            "--backend",
            type=click.Choice(["auto", "numpy", "cupy"]),
            default="auto",
            show_default=True,
            help="auto takes cupy where a device answers.",
        ),
    ):
        function = option(function)
    return function


def setting_options(kind, *groups, leave_out=(), **defaults):
    """Return a decorator that adds an option for each setting of a dataclass, in its order.

    groups: only of these; leave_out: names of options; defaults: {option: another default}.
    """

    def add(function):
        for each in reversed(settings_of(kind).values()):
            if (each.group in groups or not groups) and each.option not in leave_out:
                function = _option(each, defaults.get(each.option, each.default))(function)
        return function

    return add


def _option(setting, default):
    """Return the click option of a setting; Verb adds its variable and its key."""
    name, words = f"--{setting.option.replace('_', '-')}", setting.unless_given
    help = "  ".join(filter(None, [setting.help, words and f"[default: {words}]"]))
    if setting.kind is bool:
        return click.option(name, is_flag=True, default=default, help=help)
    return click.option(
        name,
        type=click.Choice(setting.choices) if setting.choices else setting.kind,
        default=None if words else default,
        show_default=not words,
        help=help or None,
    )


def options_of(verb):
    """Return {name as typed, without leading dashes: option} of a verb."""
    options = (parameter for parameter in verb.params if isinstance(parameter, click.Option))
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def given_options():
    """Return {parameter: its source} of the running verb, without those at their default."""
    context, default = click.get_current_context(), ParameterSource.DEFAULT
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: source for name, source in sources.items() if source is not default}


def verbs_below(group, prefix=""):
    """Return {name: Verb} of a group and of the groups in it, with names such as "data.pack"."""
    verbs = {}
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        inner = isinstance(command, click.Group)
        verbs |= verbs_below(command, f"{prefix}{name}.") if inner else {f"{prefix}{name}": command}
    return verbs


def _configure(context, parameter, path):
    """Take the defaults of this verb's options from its table in a config file."""
    if path is None or context.resilient_parsing:
        return
    import tomllib  # both late, so that --help does not wait for them: the second loads NumPy

    from minipc.storage.files import read_bytes

    try:
        tables = tomllib.loads(read_bytes(path, MOST_CONFIG).decode("utf-8-sig"))
    except (ValueError, RecursionError) as reason:
        raise DataError(f"{path}: cannot be read as TOML ({reason}); correct it") from reason
    _check_tables(tables, verbs_below(context.find_root().command), path)
    own = _table_of(context)
    for name in own.split("."):
        tables = tables.get(name, {})
    context.default_map = _defaults(tables, context.command, f"{path}: [{own}]")
    context.meta["minipc.config"] = path


def _check_tables(tables, verbs, path, prefix=""):
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


def _defaults(table, verb, where):
    """Return {parameter name: value} of a table; click parses text and numbers as if typed."""
    options, values = options_of(verb), {}
    del options["config"]
    for key, value in table.items():
        if key not in options:
            raise UsageError(f"{where}: {key}: unknown option; {_known(key, options)}")
        flag = options[key].is_flag
        if isinstance(value, bool) != flag or not _is_scalar(value):
            wanted = "true or false" if flag else "text or a number"
            raise UsageError(f"{where}: {key}: expected {wanted}, found {_kind(value)}")
        values[options[key].name] = value if flag else str(value)
    return values


def _is_scalar(value):
    """Return whether a TOML value could also stand on a command line."""
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, float) or isinstance(value, int) and value.bit_length() <= 64


def _kind(value):
    """Return a TOML value for a message: its type, and its value if that is a scalar."""
    said = f" {short(repr(value))}" if _is_scalar(value) else ""
    return {bool: "boolean", int: "number", float: "number", str: "text"}.get(
        type(value), type(value).__name__
    ) + said


def _known(name, names):
    """Return the hint for an unknown name: the closest of names, or all of them."""
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


def _place(context, parameter):
    """Return where a parameter was set, or None for the command line or a default."""
    source = context.get_parameter_source(parameter.name)
    if source is ParameterSource.ENVIRONMENT:
        return parameter.envvar
    if source is ParameterSource.DEFAULT_MAP:
        (name,) = (
            name for name, option in options_of(context.command).items() if option is parameter
        )
        return f"{name} in [{_table_of(context)}] of {context.meta['minipc.config']}"
    return None


def _table_of(context):
    """Return the table name of this verb: its words on the command line, joined by dots."""
    above = context.parent and _table_of(context.parent)
    return (
        ""
        if context.parent is None
        else f"{above}.{context.info_name}"
        if above
        else context.info_name
    )
