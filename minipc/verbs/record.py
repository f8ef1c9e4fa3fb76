"""Record a trained model: what `minipc record DATA --teacher MODEL` does."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import blas_on_one_thread, load, worker_threads
from minipc.data.groups_file import indices_of, kept_groups
from minipc.models.file import model_id, on_module
from minipc.models.model import net
from minipc.progress import quiet
from minipc.record import recorder, recording
from minipc.record.parallel.processes import run_workers, use_device
from minipc.record.plan import MOST_ROWS
from minipc.record.recorder import here, model_teacher
from minipc.record.recording import Recording
from minipc.verbs.find import read_data, read_model_for, say_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.data.clouds import Clouds, Splits
    from minipc.models.file import Model
    from minipc.record.recorder import Recorded, Share
    from minipc.record.recording import Forecast


def record(
    data: str,
    teacher: str,
    out: str,
    *,
    views: int,
    seed: int = 0,
    logits: str = "float16",
    with_clouds: bool = False,
    force: bool = False,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    share: tuple[int, int] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> Recorded | Share:
    """Record the model in file or run folder teacher on the training clouds of file data.

    Returns Recorded, or Share.  share as in Recording; say and progress as in progress.py.
    workers: processes that compute the shares, each with its part of the threads or with one
    device; then this process computes what is still missing and finishes.  scheduler: address of a
    Dask scheduler whose workers compute the shards.
    """
    splits, model = _read(data, teacher)
    what: dict[str, Any] = dict(views=views, seed=seed, logits=logits, force=force)
    settings: dict[str, Any] = dict(what, share=share, xp=xp, engine=engine)
    asked = _recording(data, splits, model, out, with_clouds, **settings)
    if net(model.config).grouping(model.config):
        asked.open()  # raises what it can before minutes of work
    making: dict[str, Any] = dict(threads=threads, say=say, progress=progress)
    groups = kept_groups(model.config, splits.train, data, **making)  # workers read what is kept
    threads = worker_threads(xp, threads)
    if workers > 1:
        devices = 0 if xp is np else xp.cuda.runtime.getDeviceCount()
        each: dict[str, Any] = dict(
            with_clouds=with_clouds, engine=engine, threads=max(threads // workers, 1)
        )
        run_workers(
            partial(_record_share, data, teacher, out, devices, what | each),
            workers,
            say=say,
            progress=partial(look, out, views * -(-len(splits.train) // MOST_ROWS), progress),
        )
    with blas_on_one_thread(say):
        done = recorder.record(
            replace(asked, groups=groups, threads=threads),
            model_teacher(on_module(model, xp), engine),
            here if scheduler is None else _workers_of(scheduler, data, teacher),
            say,
            progress,
        )
    _warn(teacher, model.trained, splits.train, views, seed, say)
    return done


def forecast(
    data: str,
    teacher: str,
    out: str,
    *,
    views: int,
    seed: int = 0,
    logits: str = "float16",
    with_clouds: bool = False,
) -> Forecast:
    """Return the Forecast of record() with these arguments; changes no file."""
    splits, model = _read(data, teacher)
    what: dict[str, Any] = dict(views=views, seed=seed, logits=logits)
    return recording.forecast(_recording(data, splits, model, out, with_clouds, **what))


def _recording(
    data: str, splits: Splits, model: Model, out: str, with_clouds: bool, **settings: Any
) -> Recording:
    """Return the Recording of a model on the training split of the file data."""
    return Recording(
        splits.train,
        model_id(model),
        out,
        data_file=os.path.basename(data),
        with_clouds=splits if with_clouds else None,
        **settings,
    )


def _read(data: str, teacher: str) -> tuple[Splits, Model]:
    """Return the Splits in data and the Model in teacher.  Raises DataError if they do not fit."""
    splits = read_data(data)
    model = read_model_for(splits.train, data, teacher)[1]
    indices_of(model.config, splits.train.points.shape[1])  # raises for few points
    return splits, model


def _record_share(
    data: str,
    teacher: str,
    out: str,
    devices: int,
    settings: dict[str, Any],
    number: int,
    count: int,
) -> None:
    """Compute one share of a recording in its own process; devices: how many CUDA devices."""
    if devices:
        use_device(number, devices)
    xp = load("cupy" if devices else "numpy")
    record(data, teacher, out, xp=xp, share=(number, count), **settings)


def look(out: str, shards: int, progress: Callable[[int, int, str], None]) -> None:
    """Report how many shards of the recording exist."""
    parts = f"{out}.parts"
    there = os.listdir(parts) if os.path.isdir(parts) else []
    done = sum(name.startswith("view-") and name.endswith(".h5") for name in there)
    progress(done, shards, "recording")


def _workers_of(scheduler: str, data: str, teacher: str) -> Callable[..., None]:
    """Return the `compute` argument of recorder.record that uses the workers of a scheduler."""
    from minipc.record.parallel.scheduler import on_scheduler

    read = partial(_clouds_and_model, os.path.abspath(data), os.path.abspath(teacher))
    return partial(on_scheduler, scheduler, read)


def _clouds_and_model(data: str, teacher: str) -> tuple[Clouds, Model, tuple]:
    """Return training clouds, teacher and groups; a worker of a scheduler calls this."""
    splits, model = _read(data, teacher)
    return splits.train, model, kept_groups(model.config, splits.train, data, threads=1)


def _warn(
    teacher: str,
    trained: dict[str, Any],
    clouds: Clouds,
    views: int,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Warn about a teacher whose training is unfinished, or that learnt from these views."""
    say_unfinished(teacher, trained, say)
    if trained.get("views_seed") == seed and trained.get("points_hash") == clouds.points_hash:
        seen = min(views, trained.get("epochs", 0))
        say(
            f"{teacher}: learnt from {seen} of these views, so its accuracy on them flatters; "
            "--seed draws others"
        )
