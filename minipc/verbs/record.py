"""Record a trained model: what `minipc record DATA --teacher MODEL` does."""

import os
from functools import partial

import numpy as np

from minipc.backend import blas_on_one_thread, default_threads, load
from minipc.models.file import model_id, on_module
from minipc.models.model import net
from minipc.progress import quiet
from minipc.record import recorder, recording
from minipc.record.parallel.processes import run_workers, use_device
from minipc.record.plan import MOST_ROWS
from minipc.record.recorder import here, model_teacher
from minipc.record.recording import Recording
from minipc.verbs.find import read_data, read_model_for


def record(
    data,
    teacher,
    out,
    *,
    views,
    seed=0,
    logits="float16",
    with_clouds=False,
    force=False,
    xp=np,
    engine="fused",
    threads=None,
    share=None,
    workers=1,
    scheduler=None,
    say=quiet,
    progress=quiet,
):
    """Record the model in file or run folder teacher on the training clouds of file data.

    Returns Recorded, or Share.  share as in Recording; say and progress as in progress.py.
    workers: processes that compute shares before this one does what they left and finishes; each
    with its part of the threads, or with one device.  scheduler: address of a Dask scheduler whose
    workers compute the shards.
    """
    splits, model = _read(data, teacher)
    what = dict(views=views, seed=seed, logits=logits, force=force)
    threads = threads or default_threads(xp)
    if workers > 1:
        devices = 0 if xp is np else xp.cuda.runtime.getDeviceCount()
        each = dict(with_clouds=with_clouds, engine=engine, threads=max(threads // workers, 1))
        run_workers(
            partial(_record_share, data, teacher, out, devices, what | each),
            workers,
            say=say,
            progress=partial(_look, out, views * -(-len(splits.train) // MOST_ROWS), progress),
        )
    with blas_on_one_thread(say):
        running = dict(share=share, xp=xp, threads=threads, engine=engine)
        done = recorder.record(
            _recording(data, splits, model, out, with_clouds, **what, **running),
            model_teacher(on_module(model, xp), engine),
            here if scheduler is None else _workers_of(scheduler, data, teacher),
            say,
            progress,
        )
    _warn(teacher, model.trained, splits.train, views, seed, say)
    return done


def forecast(data, teacher, out, *, views, seed=0, logits="float16", with_clouds=False):
    """Return the Forecast of record() with these arguments; no file is changed."""
    splits, model = _read(data, teacher)
    what = dict(views=views, seed=seed, logits=logits)
    return recording.forecast(_recording(data, splits, model, out, with_clouds, **what))


def _recording(data, splits, model, out, with_clouds, **settings):
    """Return the Recording of a model on the training split of the file data."""
    return Recording(
        splits.train,
        model_id(model),
        out,
        groups=net(model.config).prepare(model.config, splits.train.points),
        data_file=os.path.basename(data),
        with_clouds=splits if with_clouds else None,
        **settings,
    )


def _read(data, teacher):
    """Return the Splits in data and the Model in teacher.  Raises DataError unless they are of one
    kind.
    """
    splits = read_data(data)
    return splits, read_model_for(splits.train, data, teacher)[1]


def _record_share(data, teacher, out, devices, settings, number, count):
    """Compute one share of a recording, in a process of its own; devices: CUDA devices to choose
    from, or 0.
    """
    if devices:
        use_device(number, devices)
    xp = load("cupy" if devices else "numpy")
    record(data, teacher, out, xp=xp, share=(number, count), **settings)


def _look(out, shards, progress):
    """Report how many shards of the recording to out are there."""
    parts = f"{out}.parts"
    there = os.listdir(parts) if os.path.isdir(parts) else []
    done = sum(name.startswith("view-") and name.endswith(".h5") for name in there)
    progress(done, shards, "recording")


def _workers_of(scheduler, data, teacher):
    """Return what recorder.record takes for compute: the workers of a Dask scheduler."""
    from minipc.record.parallel.scheduler import on_scheduler

    read = partial(_clouds_and_model, os.path.abspath(data), os.path.abspath(teacher))
    return partial(on_scheduler, scheduler, read)


def _clouds_and_model(data, teacher):
    """Return what a worker of a scheduler computes with."""
    splits, model = _read(data, teacher)
    return splits.train, model


def _warn(teacher, trained, clouds, views, seed, say):
    """Say what speaks against a teacher: an unfinished training, or views that it learnt from."""
    if trained.get("epochs", 0) < trained.get("of_epochs", 0):
        say(f"{teacher}: only {trained['epochs']} of its {trained['of_epochs']} epochs are done")
    if trained.get("views_seed") == seed and trained.get("points_hash") == clouds.points_hash:
        seen = min(views, trained.get("epochs", 0))
        say(
            f"{teacher}: learnt from {seen} of these views, so its accuracy on them flatters; "
            "--seed draws others"
        )
