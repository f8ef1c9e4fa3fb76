"""Row access for training: one contiguous slab a view, from a record that was verified once.

Opening reads the whole file for its digest; after that nothing but rows is read.  A record is
believed only together with the data it was made from: check_belongs().

Any threads may read at once, and so may processes that are forked while a reader is open (the
workers of a PyTorch DataLoader): every read has its own offset.  Where processes are spawned a
reader is sent as path and digest.
"""

import os
from contextlib import ExitStack
from dataclasses import replace

from minipc.errors import DataError, UsageError
from minipc.record.finished import clouds_of, open_record
from minipc.record.plan import told


class RecordReader:
    """A verified record, open for reading.  Raises DataError for a damaged or foreign file."""

    def __init__(self, path):
        self.path, self._place = path, os.path.abspath(path)
        self._stack = ExitStack()
        self._record = self._stack.enter_context(open_record(path))  # None once it is closed
        self.plan, self.meta = self._record.plan, self._record.meta
        self.views = self.plan.views

    def __reduce__(self):
        """Pickle as path and digest.  Raises UsageError for a closed reader."""
        return _reopened, (self._place, self._opened().digest)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()

    def close(self):
        """Close the file, in this process; the arrays that were read stay."""
        self._stack.close()
        self._record = None

    def view(self, view):
        """Return (scale (N, 3), shift (N, 3), logits (N, K) as stored) of one view, new arrays.

        float32, float32, float16 or float32.  Raises UsageError for a view that was not recorded,
        DataError for values that are not finite.
        """
        if not 0 <= view < self.views:
            raise UsageError(f"{self.path}: view {view}: expected 0 to {self.views - 1}")
        return tuple(stored.row(view).read() for stored in self._opened().rows.values())

    def clouds(self):
        """Return the Splits that the record carries, or None.

        Raises DataError where the training split is not the one that was recorded.
        """
        return clouds_of(self._opened(), self.path)

    def _opened(self):
        if self._record is None:
            raise UsageError(f"{self.path}: this reader was closed; open the record again")
        return self._record

    def check_belongs(self, clouds):
        """Raise DataError, naming what differs, unless the record was made from these Clouds.

        clouds: anything with points_hash, labels_hash and described, the training split.
        """
        described = {**clouds.described, "class_names": tuple(clouds.described["class_names"])}
        found = {"points_hash": clouds.points_hash, "labels_hash": clouds.labels_hash, **described}
        differing = [
            f"{name} is {told(getattr(self.plan, name))} there and {told(value)} here"
            for name, value in found.items()
            if getattr(self.plan, name) != value
        ]
        if differing:
            raise DataError(
                f"record {self.path} was made from other data: {', '.join(differing)}; use the "
                "data that it was made from, or record again"
            )

    def check_beside(self, record):
        """Raise DataError unless this record differs from another in its teacher alone."""
        if self.plan.teacher_id == record.plan.teacher_id:
            raise DataError(
                f"{self.path}: holds the teacher of {record.path} itself; record an earlier student"
            )
        same = replace(self.plan, teacher_id=record.plan.teacher_id)
        if not same.same_identity(record.plan):
            raise DataError(
                f"{self.path}: differs from {record.path} not in its teacher alone: "
                f"{record.plan.differences(same)}; "
                "record the earlier student with the same data, seed and --logits"
            )


def _reopened(path, digest):
    """Return the RecordReader that was pickled, verified again.  Raises DataError where path holds
    another record.
    """
    reader = RecordReader(path)
    found = reader._opened().digest
    if found != digest:
        reader.close()
        raise DataError(
            f"{path}: is not the record that was open in the process that sent it: digest "
            f"{found[:16]}, expected "
            f"{digest[:16]}; it was replaced or extended meanwhile: open it again"
        )
    return reader
