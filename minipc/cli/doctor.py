"""minipc doctor: the environment, to paste into a bug report."""

import click

from minipc.cli.options import Verb, common_options
from minipc.cli.show import result


@click.command("doctor", cls=Verb, short_help="The environment, for a bug report.")
@common_options
def command(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what minipc stands on here: versions, BLAS, devices, variables and the current folder.

    No names of hosts, users or folders: the output can be pasted into a bug report as it is.
    """
    from minipc.report.environment import examine
    from minipc.report.lines.doctor import of_doctor

    result(examine(), as_json, of_doctor)
