"""The command line: parse, call, print.  Nothing is computed here.

This module sets BLAS to one thread before NumPy can be imported, because minipc promises bitwise
repetition only then.  A variable that the user has set keeps its value.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from minipc.cli.terminal import complain
from minipc.errors import MinipcError

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

VERBS = (
    *("record", "verify", "train", "compare", "eval", "predict", "data", "info", "audit", "loss"),
    *("export", "bench", "report", "doctor"),
)


class Lazy(click.Group):
    """A group whose verbs have one file each, imported when they are needed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        names: Any = dict.fromkeys(VERBS)
        self.commands = names  # without the commands: click suggests a name for a typing error

    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return importlib.import_module(f"minipc.cli.{name}").command


def _versions(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if not given or context.resilient_parsing:
        return
    from minipc.report.environment import versions

    click.echo(versions())
    context.exit()


@click.group(
    cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_versions,
    help="Versions of minipc and of the packages that it uses.",
)
def minipc() -> None:
    """Offline distillation for point clouds: record a teacher once, train tiny students anywhere.

    In an empty folder, `minipc record` and then `minipc train` show the whole way on built-in
    shapes.

    Every option of a verb can be set in three places, the first of which wins: on the command line;
    in the environment, as MINIPC_EPOCHS for --epochs; in a file, --config FILE.toml, as epochs = 30
    below [train].
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every expected failure ends as one line on stderr and its exit code."""
    try:
        code = minipc.main(arguments, prog_name="minipc", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        main([*error.ctx.command_path.split()[1:], "--help"])
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "minipc"
        code = _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except MinipcError as error:
        code = _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        hint = str(error.__cause__ or "") if isinstance(error, click.Abort) else str(error)
        code = _fail(f"interrupted; {hint}" if hint else "interrupted", 130)
    except OSError as error:
        # a full disk under --help or --version; result() in show.py has its own message
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        code = _fail(f"stdout: cannot be written ({error.strerror})", 1)
    except MemoryError as error:
        reason = str(error) or "the machine gave no more"
        code = _fail(
            f"not enough memory: {reason}; use a smaller model, batch or number of points", 1
        )
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    complain(message)
    return code
