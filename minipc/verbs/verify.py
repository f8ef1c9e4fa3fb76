"""Verify a record against its data and its teacher: what `minipc verify` does.

The teacher is a model of ours, or one of others by a function that makes it (record/function.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import blas_on_one_thread, worker_threads
from minipc.data.groups_file import kept_groups
from minipc.errors import DataError
from minipc.models.file import model_id, on_module, read_model
from minipc.progress import quiet
from minipc.record import verify as certificate
from minipc.record.function import is_function, named_teacher
from minipc.record.reader import RecordReader
from minipc.record.recorder import model_teacher
from minipc.runs.folder import model_path
from minipc.verbs.find import find_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.record.verify import Verified


def verify(
    record: str,
    data: str | None = None,
    teacher: str | None = None,
    *,
    sample: int | None = 1024,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> Verified:
    """Return the record.verify.Verified of a record file, its data and its teacher.

    data None: the clouds in the record, or the file that it names.  teacher None: no logits are
    computed again; else sample is the number of rows to compute again, None for all.  teacher: a
    model file or run folder, or "file.py:function", called by one thread unless threads says more.
    Raises DataError if record, data and teacher do not belong together, or the teacher raises;
    UsageError for a function that cannot be imported.
    """
    with RecordReader(record) as reader, blas_on_one_thread(say):
        data, splits = find_data(data, reader.meta["data_file"], record, reader=reader)
        logits_of: Callable[..., Any] | None = None
        groups: tuple = ()
        ours = teacher is None or not is_function(teacher)
        if teacher is not None and not ours:
            logits_of = named_teacher(teacher)
            found = getattr(logits_of, "teacher_id", reader.plan.teacher_id)
            _check_id(teacher, record, reader.plan.teacher_id, found)
            threads = threads or 1  # not every teacher can be called by several at once
        elif teacher is not None:
            model = read_model(model_path(teacher))
            _check_id(teacher, record, reader.plan.teacher_id, model_id(model))
            logits_of = model_teacher(on_module(model, xp), engine)
            reader.check_belongs(splits.train)  # before groups of other clouds are made
            making: dict[str, Any] = dict(threads=threads, say=say, progress=progress)
            groups = kept_groups(model.config, splits.train, data, **making)
        return certificate.verify(
            reader,
            splits.train,
            logits_of,
            sample,
            groups=groups,
            xp=xp,
            threads=worker_threads(xp, threads),
            engine=engine if ours else None,
            repeats=ours,
            progress=progress,
        )


def _check_id(teacher: str, record: str, recorded: str, found: str) -> None:
    """Raise DataError unless the teacher found is the recorded one, by their ids."""
    if found != recorded:
        raise DataError(
            f"{teacher}: is not the teacher of {record}, which is {recorded[:16]}, "
            f"found {found[:16]}; pass the model that was recorded"
        )
