"""minipc report: one HTML page of runs and studies."""

import click

from minipc.cli.options import FILE, Verb, common_options, option
from minipc.cli.show import Console, result


@click.command("report", cls=Verb, short_help="One HTML page of runs and studies.")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=FILE)
@option(
    "--out", help="File to write.", unless_given="report.html in RUN; in this folder for several"
)
@option("--data", metavar="FILE", type=FILE, help="Their clouds.", unless_given="looked for")
@option("--record", help="Their record.", unless_given="looked for")
@common_options
def command(
    runs: tuple[str, ...],
    out: str | None,
    data: str | None,
    record: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write one HTML page of RUNs, run folders or folders of studies, that opens anywhere.

    Settings, curves, confusion matrix, calibration, where the loss is bounded, the surest errors as
    clouds that turn, and the commands that made it.  Without RUN: the last run here, or the study.
    Data and record are looked for beside a run and here; what is missing is left out, and the page
    says so.
    """
    from minipc.report.lines.info import of_report
    from minipc.verbs.report import report

    with Console(quiet, verbose) as console:
        runs = runs or (console.last_run("RUN", or_study=True),)
        place, size = report(runs, data=data, record=record, out=out)
    result({"report": place, "bytes": size}, as_json, of_report)
