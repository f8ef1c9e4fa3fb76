"""A finished record, verified and open: its metadata, its rows view by view, its clouds.

Opening a record reads the whole file for its digest and checks its metadata.  Later reads take only
rows, without libhdf5, which does not survive a fork, and check that values are finite.
check_belongs() checks that a record was made from the data at hand.

Threads may read concurrently, and so may processes forked while a reader is open (the workers of a
PyTorch DataLoader): every read has its own offset.  Spawned processes receive path and digest.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from minipc.data.augment import ORDER
from minipc.errors import DataError, UsageError
from minipc.record import embedded
from minipc.record.fields import check_kl, cloud_fields, open_fields, record_fields
from minipc.record.plan import Plan, brief
from minipc.storage import files, hdf5

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    from minipc.data.clouds import Clouds, Splits
    from minipc.record.fields import Field

RECORD_META = {"plan", "run_id", "data_file", "provenance", "max_kl_of_rounding"}  # and "clouds"


class RecordReader:
    """A verified record, open for reading.  Raises DataError if damaged or not a record of ours.

    plan: its Plan; views: V; meta: keys RECORD_META, and "clouds" if it carries clouds; digest:
    of the whole file, hexadecimal.
    """

    _arrays: list[dict[str, hdf5.Stored]] | None

    def __init__(self, path: str) -> None:
        self.path, self._place = path, os.path.abspath(path)
        with ExitStack() as stack:
            whole = stack.enter_context(files.guarded(path, "record", embedded.WITH_FILES))
            with hdf5.hdf5_in(whole, path) as file:
                self.meta = hdf5.read_meta(file, path)
                self.plan = _checked_plan(self.meta, path)
                clouds: tuple[Field, ...]
                rows, clouds = record_fields(self.plan.logits), ()
                if "clouds" in self.meta:
                    embedded.check_meta(self.meta["clouds"], path)
                    clouds = cloud_fields(self.meta["clouds"]["dtype"])
                datasets = open_fields(file, (*rows, *clouds), self.plan.sizes, path)
                stored = {name: hdf5.Stored.of(each, whole) for name, each in datasets.items()}
            self.digest = files.digest_in(whole)
            self._stack = stack.pop_all()
        self.views = self.plan.views
        self._arrays = [
            {field.name: stored[field.name] for field in part} for part in (rows, clouds)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as path and digest.  Raises UsageError for a closed reader."""
        self._opened()
        return _reopened, (self._place, self.digest)

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file in this process; arrays that were read remain valid."""
        self._stack.close()
        self._arrays = None

    @property
    def rows(self) -> dict[str, hdf5.Stored]:
        """{field name: hdf5.Stored (V, N, ...)}.  Raises UsageError for a closed reader."""
        return self._opened()[0]

    @property
    def stored_clouds(self) -> dict[str, hdf5.Stored]:
        """{field name: hdf5.Stored} of its clouds, or empty.  Raises UsageError like rows."""
        return self._opened()[1]

    def view(self, view: int) -> tuple[np.ndarray, ...]:
        """Return (scale (N, 3), shift (N, 3), logits (N, K) as stored) of one view, new arrays.

        float32, float32, float16 or float32.  Raises UsageError for a view that was not recorded,
        DataError for values that are not finite.
        """
        if not 0 <= view < self.views:
            raise UsageError(f"{self.path}: view {view}: expected 0 to {self.views - 1}")
        return tuple(stored.row(view).read() for stored in self.rows.values())

    def clouds(self) -> Splits | None:
        """Return the Splits that the record carries, or None.

        Raises DataError if the training split is not the recorded one.
        """
        stored = self.stored_clouds
        if not stored:
            return None
        return embedded.decode(stored, self.meta["clouds"], self.plan, self.path)

    def _opened(self) -> list[dict[str, hdf5.Stored]]:
        if self._arrays is None:
            raise UsageError(f"{self.path}: this reader was closed; open the record again")
        return self._arrays

    def check_belongs(self, clouds: Clouds) -> None:
        """Raise DataError, naming what differs, unless the record was made from these Clouds.

        clouds: the training split; any object with points_hash, labels_hash and described works.
        """
        described = {**clouds.described, "class_names": tuple(clouds.described["class_names"])}
        given = {"points_hash": clouds.points_hash, "labels_hash": clouds.labels_hash, **described}
        differing = [
            f"{name} is {brief(getattr(self.plan, name))} there and {brief(value)} here"
            for name, value in given.items()
            if getattr(self.plan, name) != value
        ]
        if differing:
            raise DataError(
                f"record {self.path} was made from other data: {', '.join(differing)}; use the "
                "data that it was made from, or record again"
            )

    def check_beside(self, record: RecordReader) -> None:
        """Raise DataError unless this record differs from another only in its teacher."""
        if self.plan.teacher_id == record.plan.teacher_id:
            raise DataError(
                f"{self.path}: holds the teacher of {record.path} itself; record an earlier student"
            )
        same = replace(self.plan, teacher_id=record.plan.teacher_id)
        if not same.same_identity(record.plan):
            raise DataError(
                f"{self.path}: differs from {record.path} not in its teacher alone: "
                f"{record.plan.differences(same)}; record the earlier student with the same data, "
                "seed and --logits"
            )


def _checked_plan(meta: dict[str, Any], path: str) -> Plan:
    """Return the Plan in the metadata of a record; checks every key except "clouds"."""
    files.check_keys(meta, RECORD_META | ({"clouds"} & meta.keys()), path)
    plan = Plan.from_dict(meta["plan"], path)
    provenance: list[Any] = meta["provenance"] if isinstance(meta["provenance"], list) else [None]
    for item in provenance:
        files.check_keys(item, {"rows", "made_with"}, path)
    data_file = meta["data_file"]
    if not (
        meta["run_id"] == plan.recording_id
        and all(type(item["rows"]) is int for item in provenance)
        and sum(item["rows"] for item in provenance) == plan.rows
        and (
            data_file is None
            or isinstance(data_file, str)
            and os.path.basename(data_file) == data_file
        )
    ):
        raise DataError(f"{path}: its metadata contradicts itself; make the record again")
    check_kl(meta["max_kl_of_rounding"], path)
    if plan.augment.get("order") != ORDER:
        raise DataError(
            f"{path}: its views are {plan.augment.get('order')!r}; this minipc draws and replays "
            f"{ORDER!r}; read it with the version that wrote it"
        )
    return plan


def _reopened(path: str, digest: str) -> RecordReader:
    """Unpickle a RecordReader: open path and verify it again.

    Raises DataError if path holds another record.
    """
    reader = RecordReader(path)
    if reader.digest != digest:
        reader.close()
        raise DataError(
            f"{path}: is not the record that was open in the process that sent it: digest "
            f"{reader.digest[:16]}, expected {digest[:16]}; it was replaced or extended meanwhile: "
            "open it again"
        )
    return reader
