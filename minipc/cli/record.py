"""minipc record: run the teacher over augmented views of each training cloud."""

import click

from minipc.cli.options import FILE, Verb, setting_options, shared_options
from minipc.cli.show import Console, result
from minipc.settings import RecordConfig, chosen


class ShareOf(click.ParamType):
    """A share i/n of the shards: every n-th from the i-th on."""

    name = "i/n"

    def convert(self, value, parameter, context):
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
@click.option(
    "--teacher",
    metavar="MODEL",
    type=FILE,
    help="The trained teacher: a model file or a run folder.",
)
@setting_options(RecordConfig, "Views")
@click.option("--out", "-o", type=FILE, default="record.h5", show_default=True, help="The record.")
@setting_options(RecordConfig, "Recording")
@click.option("--dry-run", is_flag=True, help="Check and say what would be done; change nothing.")
@click.option(
    "--workers",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Processes, each with its share of the shards.",
)
@click.option(
    "--shards",
    "share",
    type=ShareOf(),
    help="Only every n-th shard from the i-th on; a later run finishes.",
)
@click.option(
    "--scheduler", metavar="ADDRESS", help="A Dask scheduler whose workers compute the shards."
)
@click.option(
    "--force",
    is_flag=True,
    help="Record a teacher that is no better than chance, or depends on the block.",
)
@shared_options
def command(
    data,
    teacher,
    out,
    dry_run,
    workers,
    share,
    scheduler,
    force,
    backend,
    engine,
    threads,
    as_json,
    quiet,
    verbose,
    **given,
):
    """Record a teacher's logits over augmented views of each training cloud.

    Without arguments, in an empty folder: makes built-in shapes (shapes.h5), trains a teacher on
    them (teacher/) and records it.  Interrupted, or with more views, run the same command again.
    """
    from minipc.backend import load
    from minipc.record.recorder import Share
    from minipc.report import lines
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
            found = record.forecast(data, teacher, **what) if data else demo.forecast(**what)
            return result(found._asdict(), as_json, lines.of_record_dry_run)
        settings = dict(what, force=force, xp=xp, engine=engine, threads=threads)
        settings |= dict(say=console.say, progress=console.progress)
        if data is None:
            done = demo.record(**settings)
        else:
            done = record.record(
                data, teacher, share=share, workers=workers, scheduler=scheduler, **settings
            )
    of_done = lines.of_record_share if isinstance(done, Share) else lines.of_record
    result(done._asdict(), as_json, of_done)
