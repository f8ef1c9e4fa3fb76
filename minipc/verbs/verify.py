"""Verify a record against its data and its teacher: what `minipc verify` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import blas_on_one_thread, worker_threads
from minipc.data.groups_file import kept_groups
from minipc.errors import DataError
from minipc.models.file import model_id, on_module, read_model
from minipc.progress import quiet
from minipc.record import verify as certificate
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
    computed again; else sample is the number of rows to compute again, None for all.  Raises
    DataError if record, data and teacher do not belong together.
    """
    with RecordReader(record) as reader, blas_on_one_thread(say):
        data, splits = find_data(data, reader.meta["data_file"], record, reader=reader)
        logits_of, groups = None, ()
        if teacher is not None:
            model = read_model(model_path(teacher))
            if model_id(model) != reader.plan.teacher_id:
                raise DataError(
                    f"{teacher}: is not the teacher of {record}, which is "
                    f"{reader.plan.teacher_id[:16]}, "
                    f"found {model_id(model)[:16]}; pass the model that was recorded"
                )
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
            engine=engine,
            progress=progress,
        )
