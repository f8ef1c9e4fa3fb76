"""minipc verify: the certificate of a record."""

import click

from minipc.cli.options import FILE, SAMPLE, Verb, option, shared_options, typed_options
from minipc.cli.show import Console, result
from minipc.errors import CheckFailed


@click.command(
    "verify", cls=Verb, short_help="Whether a record is what its data and teacher make of it."
)
@click.argument("record", metavar="RECORD", type=FILE)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option(
    "--teacher",
    help="Run this model again over a sample of the rows; or FILE.py:FUNCTION, which makes it.",
)
@option("--sample", type=SAMPLE, default="1024", help="Rows for --teacher, or all.")
@shared_options
def command(
    record: str,
    data: str | None,
    teacher: str | None,
    sample: int,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Verify RECORD: its bytes, its data, every stored parameter, and with --teacher its logits.

    DATA are the clouds it was made from; without, they are taken from the record or looked for
    beside it.  A teacher of others is named by a function that returns it: FILE.py:FUNCTION or
    PACKAGE.MODULE:FUNCTION.  Ends with 4 if something does not hold.
    """
    from minipc.backend import load
    from minipc.report.lines.record import of_verify
    from minipc.verbs.verify import verify

    if teacher is None and "sample" in typed_options():
        raise click.UsageError("--sample has no use without --teacher; add it")
    with Console(quiet, verbose) as console:
        verdict = verify(
            record,
            data,
            teacher,
            sample=sample or None,
            xp=load(backend, console.say),
            engine=engine,
            threads=threads,
            say=console.say,
            progress=console.progress,
        )
    result({"record": record, **verdict._asdict()}, as_json, of_verify)
    if not verdict.passed:
        raise CheckFailed(f"{record}: {verdict.failed}")
