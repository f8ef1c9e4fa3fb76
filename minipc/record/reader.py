"""Row access for training: one contiguous slab a view, from a record that was verified once.

Opening reads the whole file for its digest; after that nothing but rows is read.  A record is
believed only together with the data it was made from: check_belongs().
"""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from minipc.errors import DataError, UsageError
from minipc.hdf5 import read_rows
from minipc.record.finished import clouds_of, open_record
from minipc.record.plan import told


class RecordReader:
    """A verified record, open for reading.  Raises DataError for a damaged or foreign file."""

    def __init__(self, path):
        self.path = path
        self._stack = ExitStack()
        self._record = self._stack.enter_context(open_record(path))
        self.plan, self.meta = self._record.plan, self._record.meta
        self.views = self.plan.views

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()

    def close(self):
        """Close the file; the arrays that were read stay."""
        self._stack.close()

    def view(self, view):
        """Return (scale (N, 3), shift (N, 3), logits (N, K) as stored) of one view, new arrays.

        float32, float32, float16 or float32.  Raises UsageError for a view that was not recorded,
        DataError for values that are not finite.
        """
        if not 0 <= view < self.views:
            raise UsageError(f"{self.path}: view {view}: expected 0 to {self.views - 1}")
        return tuple(read_rows(data, np.s_[view], self.path) for data in self._record.datasets.values())

    def clouds(self):
        """Return the Splits that the record carries, or None.

        Raises DataError where the training split is not the one that was recorded.
        """
        return clouds_of(self._record, self.path)

    def check_belongs(self, clouds):
        """Raise DataError, naming what differs, unless the record was made from these Clouds.

        clouds: anything with points_hash, labels_hash and described, the training split.
        """
        described = {**clouds.described, "class_names": tuple(clouds.described["class_names"])}
        found = {"points_hash": clouds.points_hash, "labels_hash": clouds.labels_hash, **described}
        differing = [
            f"{name} is {told(getattr(self.plan, name))} there and {told(value)} here"
            for name, value in found.items() if getattr(self.plan, name) != value
        ]
        if differing:
            raise DataError(
                f"record {self.path} was made from other data: {', '.join(differing)}; use the "
                "data that it was made from, or record again"
            )

    def check_beside(self, record):
        """Raise DataError unless this record differs from another in its teacher alone."""
        if self.plan.teacher_id == record.plan.teacher_id:
            raise DataError(f"{self.path}: holds the teacher of {record.path} itself; record an earlier student")
        same = replace(self.plan, teacher_id=record.plan.teacher_id)
        if not same.same_identity(record.plan):
            raise DataError(
                f"{self.path}: differs from {record.path} not in its teacher alone: {record.plan.differences(same)}; "
                "record the earlier student with the same data, seed and --logits"
            )
