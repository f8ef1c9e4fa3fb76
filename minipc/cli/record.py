"""minipc record: run the teacher over augmented views of each training cloud."""

from typing import Any

import click

from minipc.cli.options import FILE, Verb, option, setting_options, shared_options
from minipc.cli.show import Console, result
from minipc.settings import RecordConfig, chosen


class ShareOf(click.ParamType):
    """A share i/n of the shards: every n-th from the i-th on."""

    name = "i/n"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        try:
            number, count = (int(part) for part in value.split("/"))
        except ValueError:
            self.fail(
                f"{value!r} is not i/n, e.g. 0/4 for the first of four shares", parameter, context
            )
        return number, count


@click.command(
    "record",
    cls=Verb,
    interrupted="what was committed is kept; the same command again continues",
    short_help="Run a teacher once over augmented views.",
)
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option("--teacher", help="The trained teacher: a model file or a run folder.")
@option("--out", default="record.h5", help="The record.")
@option("--dry-run")
@setting_options(RecordConfig)
@option(
    "--force",
    group="Recording",
    is_flag=True,
    help="Record a teacher that is no better than chance, or depends on the block.",
)
@option(
    "--workers",
    group="Machine",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    help="Processes, each with its share of the shards.",
)
@option(
    "--shards",
    "share",
    group="Machine",
    type=ShareOf(),
    help="Only every n-th shard from the i-th on; a later run finishes.",
)
@option(
    "--scheduler",
    group="Machine",
    metavar="ADDRESS",
    help="A Dask scheduler whose workers compute the shards.",
)
@shared_options
def command(
    data: str | None,
    teacher: str | None,
    out: str,
    dry_run: bool,
    force: bool,
    workers: int,
    share: tuple[int, int] | None,
    scheduler: str | None,
    backend: str,
    engine: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Record a teacher's logits over augmented views of each training cloud.

    Without arguments, in an empty folder: makes built-in shapes (shapes.h5), trains a teacher on
    them (teacher/) and records it.  Interrupted, or with more views, run the same command again.
    """
    from minipc.backend import load
    from minipc.record.recorder import Share
    from minipc.report.lines import record as lines
    from minipc.verbs import demo, record

    if (data is None) != (teacher is None):
        raise click.UsageError(
            "name the data too: minipc record DATA --teacher MODEL"
            if data is None
            else f"a teacher is needed; train one with: minipc train {data} --labels-only --model "
            "teacher --out teacher, "
            f"then: minipc record {data} --teacher teacher"
        )
    if share is not None and (workers > 1 or data is None):
        raise click.UsageError("--shards goes with DATA and --teacher, and without --workers")
    if data is None and workers > 1:
        raise click.UsageError("--workers goes with DATA and --teacher")
    if scheduler is not None and not scheduler.strip():
        raise click.UsageError("--scheduler: the address is empty; e.g. tcp://10.0.0.1:8786")
    if scheduler and (workers > 1 or share is not None or data is None):
        raise click.UsageError(
            "--scheduler goes with DATA and --teacher, and without --workers and --shards"
        )
    what = dict(chosen(given, RecordConfig), out=out)
    with Console(quiet, verbose) as console:
        xp = load(backend, console.say)
        if dry_run:
            if data is None or teacher is None:
                plan = demo.forecast(**what)
            else:
                plan = record.forecast(data, teacher, **what)
            result(plan._asdict(), as_json, lines.of_record_dry_run)
            return
        settings = dict(what, force=force, xp=xp, engine=engine, threads=threads)
        settings |= dict(say=console.say, progress=console.progress)
        if data is None or teacher is None:
            done = demo.record(**settings)
        else:
            done = record.record(
                data, teacher, share=share, workers=workers, scheduler=scheduler, **settings
            )
    of_done = lines.of_record_share if isinstance(done, Share) else lines.of_record
    if data is None and out == demo.RECORD:
        of_done = lines.of_demo_record
    result(done._asdict(), as_json, of_done)
