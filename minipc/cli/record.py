"""minipc record: run the teacher over augmented views of each training cloud."""

import click

from minipc.cli.options import FILE, Verb, shared_options
from minipc.cli.show import Console, result, size


@click.command("record", cls=Verb, short_help="Run a teacher once over augmented views.")
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@click.option("--teacher", metavar="MODEL", type=FILE, help="The trained teacher: a model file or a run folder.")
@click.option("--views", type=int, default=10, show_default=True, help="Augmented views of each cloud.")
@click.option("--out", "-o", type=FILE, default="record.h5", show_default=True, help="The record.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the views.")
@click.option("--logits", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
              help="How logits are stored.")
@click.option("--force", is_flag=True, help="Record a teacher that is no better than chance.")
@shared_options
def command(data, teacher, views, out, seed, logits, force, backend, threads, as_json, quiet, verbose):
    """Record a teacher's logits over augmented views of each training cloud.

    Without arguments, in an empty folder: makes built-in shapes (shapes.h5), trains a teacher on
    them (teacher/) and records it.  Interrupted, or with more views, run the same command again.
    """
    from minipc.backend import load
    from minipc.first_run import record_shapes
    from minipc.jobs import record_files

    if (data is None) != (teacher is None):
        raise click.UsageError(
            "name the data too: minipc record DATA --teacher MODEL" if data is None else
            f"a teacher is needed; train one with: minipc train {data} --labels-only --model teacher --out teacher, "
            f"then: minipc record {data} --teacher teacher"
        )
    with Console(quiet, verbose) as console:
        settings = dict(
            views=views, out=out, seed=seed, logits=logits, force=force, xp=load(backend, console.say),
            threads=threads, say=console.say, progress=console.progress,
        )
        done = record_shapes(**settings) if data is None else record_files(data, teacher, **settings)
    lines = [
        f"{done.out}: {done.clouds} clouds x {done.views} views, {size(done.bytes)}, run {done.run_id[:16]}",
        f"teacher accuracy on the recorded views {100 * done.teacher_accuracy:.2f} %; "
        f"largest KL by rounding logits {done.max_kl_of_rounding:.1e}",
        f"next: minipc train --record {done.out}",
    ]
    result(done._asdict(), as_json, lines)
