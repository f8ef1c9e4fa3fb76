"""minipc info: what a file or folder of minipc holds."""

import click

from minipc.cli.options import FILE, Verb, common_options
from minipc.cli.show import Console, result


@click.command("info", cls=Verb, short_help="What any of our files is, and whether it is intact.")
@click.argument("file", metavar="[FILE]", type=FILE, required=False)
@common_options
def command(file: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what FILE is, made from what and by what, after reading all of it.

    FILE: data, a model, a record, a shard or a checkpoint; a run folder; the folder of an
    unfinished recording, OUT.parts.  Without FILE: the last run here.  Nothing is changed.
    """
    from minipc.report.describe import describe
    from minipc.report.lines.info import of_info

    with Console(quiet, verbose) as console:
        file = file or console.last_run("FILE")
    result(describe(file), as_json, of_info)
