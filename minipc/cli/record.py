"""minipc record: run the teacher over augmented views of each training cloud."""

import shlex

import click

from minipc.cli.options import FILE, Verb, shared_options
from minipc.cli.show import Console, result, size


class ShareOf(click.ParamType):
    """i/n."""

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
@click.option(
    "--views", type=int, default=10, show_default=True, help="Augmented views of each cloud."
)
@click.option("--out", "-o", type=FILE, default="record.h5", show_default=True, help="The record.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the views.")
@click.option(
    "--logits",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="How logits are stored.",
)
@click.option(
    "--with-clouds", is_flag=True, help="Embed training and test clouds: one file trains a student."
)
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
    views,
    out,
    seed,
    logits,
    with_clouds,
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
):
    """Record a teacher's logits over augmented views of each training cloud.

    Without arguments, in an empty folder: makes built-in shapes (shapes.h5), trains a teacher on
    them (teacher/) and records it.  Interrupted, or with more views, run the same command again.
    """
    from minipc.backend import load
    from minipc.record.recorder import Share
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
    what = dict(views=views, out=out, seed=seed, logits=logits, with_clouds=with_clouds)
    with Console(quiet, verbose) as console:
        xp = load(backend, console.say)
        if dry_run:
            found = record.forecast(data, teacher, **what) if data else demo.forecast(**what)
            return result(found._asdict(), as_json, _foreseen(found))
        settings = dict(what, force=force, xp=xp, engine=engine, threads=threads)
        settings |= dict(say=console.say, progress=console.progress)
        if data is None:
            done = demo.record(**settings)
        else:
            done = record.record(
                data, teacher, share=share, workers=workers, scheduler=scheduler, **settings
            )
    if isinstance(done, Share):
        return result(
            done._asdict(),
            as_json,
            [
                f"{done.out}: share {done.share} is there, {done.shards_there} of {done.shards} "
                "shards in all",
                "the other shares, or the same command without --shards, go on and finish",
            ],
        )
    lines = [
        f"{done.out}: {done.clouds} clouds x {done.views} views, {size(done.bytes)}, run "
        f"{done.run_id[:16]}",
        f"teacher accuracy on the recorded views {100 * done.teacher_accuracy:.2f} %; "
        f"largest KL by rounding logits {done.max_kl_of_rounding:.1e}",
        *_carried(done),
        f"next: minipc train --record {shlex.quote(done.out)}",
    ]
    result(done._asdict(), as_json, lines)


def _carried(done):
    """Return the line about clouds in the record, if there are any."""
    if done.clouds_as is None:
        return []
    how = {"int16": "int16, lossless", "float32": "float32, as int16 would lose bits"}[
        done.clouds_as
    ]
    return [f"training and test clouds embedded as {how}: {size(done.clouds_bytes)}"]


def _foreseen(found):
    """Return the lines of a dry run; little is known while data or teacher are still to be made."""
    makes = f"would make: {', '.join(found.would_make) or 'nothing'}"
    if found.run_id is None:
        return [makes]
    free = "unknown" if found.bytes_free is None else size(found.bytes_free)
    return [
        f"{found.out}: {found.clouds} clouds x {found.views} views, {size(found.bytes)}, run "
        f"{found.run_id[:16]}",
        *_carried(found),
        f"shards: {found.shards}, there {found.shards_there}, to do "
        f"{found.shards - found.shards_there} "
        f"({found.rows_left} rows); needs {size(found.bytes_needed)}, free {free}",
        *(f"would set aside: {line}" for line in found.damaged),
        makes,
    ]
