"""What a record says about its teacher: `minipc audit --record` and `minipc loss --record`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from minipc.audit.bound import Rows
from minipc.audit.teacher import audit_teacher, earlier_self, named_self
from minipc.errors import DataError
from minipc.record.reader import RecordReader
from minipc.verbs.find import find_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from minipc.audit.teacher import TeacherAudit
    from minipc.settings import LossConfig


def audit_record(
    record: str, data: str | None, config: LossConfig, self_record: str | None = None
) -> TeacherAudit:
    """Return the audit.teacher.TeacherAudit of a record file under a LossConfig.

    data: a path, or None for the clouds in the record or the file that it names; self_record: the
    record of an earlier student.  Raises DataError if they do not belong together.
    """
    with _opened(record, data, self_record) as (reader, labels, earlier):
        return audit_teacher(reader, labels, config, earlier)


def recorded_rows(record: str, data: str | None = None, self_record: str | None = None) -> Rows:
    """Return the audit.bound.Rows of the first view of a record; arguments as audit_record().

    Raises DataError as audit_record(), and if one view alone gives no earlier self.
    """
    with _opened(record, data, self_record) as (reader, labels, earlier):
        u = earlier_self(reader, earlier, 0)
        if u is None:
            raise DataError(
                f"{record}: one view, so nothing to take for an earlier self; pass --self-record"
            )
        what = f"{record}, view 0, {len(labels)} rows; earlier self: {named_self(reader, earlier)}"
        return Rows(labels, reader.view(0)[2].astype(np.float64), u, what)


@contextmanager
def _opened(
    record: str, data: str | None, self_record: str | None
) -> Iterator[tuple[RecordReader, np.ndarray, RecordReader | None]]:
    """Yield an open record, the labels (N,) of its clouds, and the open second record or None."""
    with RecordReader(record) as reader, ExitStack() as stack:
        clouds = find_data(data, reader.meta["data_file"], record, reader=reader)[1].train
        reader.check_belongs(clouds)
        earlier: Any = self_record and stack.enter_context(RecordReader(self_record))
        if earlier:
            earlier.check_beside(reader)
            if earlier.views < reader.views:
                raise DataError(
                    f"{self_record}: {earlier.views} views, expected {reader.views}; record as many"
                )
        yield reader, clouds.labels, earlier
