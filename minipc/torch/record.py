"""record_module(): what `minipc record` does, with a module of PyTorch as the teacher."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import BLOCK, worker_threads
from minipc.data.clouds import Clouds, Splits
from minipc.errors import UsageError
from minipc.progress import quiet
from minipc.record import recorder
from minipc.record.function import call_function, is_function
from minipc.record.parallel.processes import run_workers, use_device
from minipc.record.plan import MOST_ROWS
from minipc.record.recording import Recording
from minipc.torch.present import torch
from minipc.torch.teacher import ModuleTeacher
from minipc.verbs.find import read_data
from minipc.verbs.record import look

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minipc.record.recorder import Recorded, Share


DEFAULTS: dict[str, Any] = dict(  # of the options of a ModuleTeacher
    device="cpu", batch=BLOCK, channels_first=False, transform=None, output=None, teacher_id=None
)


def record_module(
    module: Any,
    data: str | os.PathLike | Splits | Clouds,
    out: str,
    *,
    views: int,
    seed: int = 0,
    logits: str = "float16",
    with_clouds: bool = False,
    force: bool = False,
    workers: int = 1,
    device: str = "cpu",
    batch: int = BLOCK,
    channels_first: bool = False,
    transform: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    teacher_id: str | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> Recorded | Share:
    """Record a module on training clouds; return what recorder.record returns.

    module: a torch.nn.Module, a ModuleTeacher, or "file.py:function" or "package.module:function",
    a function without arguments that returns one of the two.  data: path of a clouds file or of a
    record with clouds, or Splits, or the training Clouds.  workers: processes that compute the
    shares, each with a module that the function makes and its part of the processors, or with one
    CUDA device in turn; they need a text.  device to teacher_id: as in ModuleTeacher, and not
    beside one.  The rest is as in Recording and recorder.record.  The same call continues after an
    interruption.

    Raises as recorder.record and ModuleTeacher; UsageError for workers without a text, for
    with_clouds without a test split, and for options beside a ModuleTeacher.
    """
    if workers > 1 and not isinstance(module, str):
        raise UsageError(
            f"record: {workers} workers need a function that makes the module in each of them; "
            'pass "file.py:function" or one worker'
        )
    settings: dict[str, Any] = dict(
        views=views, seed=seed, logits=logits, with_clouds=with_clouds, force=force
    )
    options: dict[str, Any] = dict(
        device=device,
        batch=batch,
        channels_first=channels_first,
        transform=transform,
        output=output,
        teacher_id=teacher_id,
    )
    if isinstance(module, str):
        module = _absolute(module)
    teacher = _teacher(module, options)
    recording = _recording(teacher, data, out, **settings)
    store = recording.open()  # raises what it can before processes start
    if workers > 1 and recording.missing(store):
        devices = torch.cuda.device_count() if teacher.device == torch.device("cuda") else 0
        threads = max(worker_threads(np) // workers, 1)
        run_workers(
            partial(_record_share, module, data, out, devices, threads, settings, options),
            workers,
            say=say,
            progress=partial(look, out, views * -(-len(recording.clouds) // MOST_ROWS), progress),
        )
    return recorder.record(recording, teacher, say=say, progress=progress)


def _teacher(module: Any, options: dict[str, Any]) -> ModuleTeacher:
    """Return the ModuleTeacher of a module, or that which a named function returns."""
    if isinstance(module, str):
        if not is_function(module):
            raise UsageError(
                f"record: expected a module, or a text such as file.py:function, got {module!r}"
            )
        module = call_function(module)
    if not isinstance(module, ModuleTeacher):
        return ModuleTeacher(module, **options)
    given = [name for name, value in options.items() if value != DEFAULTS[name]]
    if given:
        raise UsageError(
            f"record: {', '.join(given)}: the module is a ModuleTeacher already; say so where it "
            "is made"
        )
    return module


def _recording(
    teacher: ModuleTeacher,
    data: str | os.PathLike | Splits | Clouds,
    out: str,
    *,
    with_clouds: bool,
    **settings: Any,
) -> Recording:
    """Return the Recording of a teacher on the training clouds of data."""
    path = None if isinstance(data, Splits | Clouds) else os.fspath(data)
    splits: Any = data if path is None else read_data(path)
    if with_clouds and not isinstance(splits, Splits):
        raise UsageError("record: with_clouds needs both splits; pass Splits or a path as data")
    return Recording(
        splits.train if isinstance(splits, Splits) else splits,
        teacher.teacher_id,
        out,
        data_file=path and os.path.basename(path),
        with_clouds=splits if with_clouds and isinstance(splits, Splits) else None,
        **settings,
    )


def _record_share(
    module: str,
    data: str | os.PathLike | Splits | Clouds,
    out: str,
    devices: int,
    threads: int,
    settings: dict[str, Any],
    options: dict[str, Any],
    number: int,
    count: int,
) -> None:
    """Compute one share of a recording in its own process; devices: how many CUDA devices."""
    if devices:
        use_device(number, devices)
    torch.set_num_threads(threads)
    teacher = _teacher(module, options)
    recorder.record(_recording(teacher, data, out, share=(number, count), **settings), teacher)


def _absolute(text: str) -> str:
    """Return file.py:function with the whole path of the file; other texts as they are."""
    source, _, name = text.rpartition(":")
    return f"{os.path.abspath(source)}:{name}" if source.endswith(".py") else text
