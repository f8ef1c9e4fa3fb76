"""A recording on disk: shards in OUT.parts (parts.py), then one file OUT.

A finished record replaces the shards of its views.  To add views or clouds, it is merged with new
shards into a new file that replaces it.  begin() is the first function that writes.  This module
calls no teacher, and libhdf5 writes only to memory.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from minipc.data.clouds import check_same_kind
from minipc.errors import DataError, MinipcError
from minipc.record import embedded
from minipc.record.fields import cloud_fields, record_fields
from minipc.record.parts import Parts, refuse_other
from minipc.record.plan import FORMAT
from minipc.record.reader import RecordReader
from minipc.record.writer import write_rows
from minipc.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    import numpy as np

    from minipc.data.clouds import Splits
    from minipc.record.plan import Plan


class Store:
    """One recording on disk.  Construction and missing() only read; begin() is the first to write.

    Raises DataError, naming what differs, if out or its parts belong to another recording.  A
    finished record with more views keeps them all: plan.views is then larger than requested.
    Shards beyond the requested views stay.
    """

    parts: Parts
    clouds_meta: dict[str, Any] | None
    _embedded: embedded.Embedded | None

    def __init__(
        self, out: str, plan: Plan, data_file: str | None = None, with_clouds: Splits | None = None
    ) -> None:
        """out: path of the finished record; data_file: base name of the clouds file, a hint.

        with_clouds: the Splits to embed in the record; None keeps the clouds it already has.
        """
        self.out, self.plan = os.fspath(out), plan
        self.data_file = data_file and os.path.basename(data_file)
        self.with_clouds = with_clouds
        self.clouds_meta, self.clouds_bytes = None, 0  # of the clouds that the record will carry
        self._embedded = None
        if with_clouds is not None:
            embedded.check_recorded(with_clouds.train, plan, "the training clouds to carry")
            check_same_kind(
                with_clouds.test.described,
                with_clouds.train.described,
                "the test split",
                "the training split",
            )
            self._embedded = embedded.encode(with_clouds)
            self.clouds_meta, self.clouds_bytes = self._embedded.meta, self._embedded.bytes
        self._carries = False  # whether the finished record has clouds
        self._look()  # sets parts: the Parts for views that are not in the finished record

    @property
    def complete(self) -> bool:
        """Whether the finished record holds everything requested."""
        carries = self._carries or self._embedded is None
        return self.parts.finished >= self.plan.views and carries

    def missing(self) -> list[tuple[int, int, int]]:
        """Return [(view, first, stop)] of the missing shards; the first call scans the folder."""
        return self.parts.missing()

    def begin(self) -> list[str]:
        """Remove temporaries of killed writers, rename bad files, commit the plan.

        Returns a line for each renamed file.
        """
        files.sweep(*os.path.split(os.path.realpath(self.out)))
        return self.parts.begin()

    def commit_shard(
        self,
        view: int,
        first: int,
        scale: np.ndarray,
        shift: np.ndarray,
        logits: np.ndarray,
        provenance: dict[str, Any],
    ) -> None:
        """Write one shard durably.  Arguments and errors as in shard.commit_shard."""
        self.parts.commit_shard(view, first, scale, shift, logits, provenance)

    def space(self) -> tuple[int, int | None]:
        """Return (bytes that missing shards and the finished file need, free bytes).

        An old record of fewer views stays until the new one is verified, so its bytes do not count
        as free.  Free bytes are None if the system does not report them.
        """
        needed = self.parts.bytes_missing()
        if not self.complete:
            needed += self.plan.estimated_bytes + self.clouds_bytes
        try:
            place = os.statvfs(os.path.dirname(os.path.abspath(self.out)))
        except (AttributeError, OSError):  # missing in the system or in the file system
            return needed, None
        return needed, place.f_bavail * place.f_frsize

    def check_space(self) -> None:
        """Raise DataError if the folder is not writable, MinipcError if the disk is too small.

        Called before computing, so that it does not fail after hours.
        """
        needed, free = self.space()
        if needed and not os.access(os.path.dirname(os.path.abspath(self.out)), os.W_OK):
            raise DataError(
                f"{self.out}: cannot be written; name a file in a folder that you may write to"
            )
        if free is not None and needed > free:
            raise MinipcError(
                f"{self.out}: needs {needed / 1e6:.1f} MB more, but its disk has {free / 1e6:.1f} "
                "MB free; free some space, or name an --out on another disk"
            )

    def finalise(self, progress: Callable[[int, int, str], None] | None = None) -> list[str]:
        """Write the record of all views durably to out, then remove the parts.

        Verifies every shard, merges them with a finished record of fewer views or without clouds,
        and verifies the result before it removes anything.  Memory: one shard, and the clouds to
        embed.  After a kill, call it again.  progress(done, total, text) counts rows.  Returns the
        names left in OUT.parts (bad shards, shards of later views, foreign files).  Raises
        DataError if shards are missing.
        """
        if self.complete and not os.path.isdir(self.parts.path):
            return []
        with self.parts.locked():
            self._look()
            self.begin()
            missing = self.missing()
            if missing:
                raise DataError(
                    f"{self.out}: {len(missing)} of {sum(1 for _ in self.plan.shards())} shards "
                    "are missing; run the same command again to continue"
                )
            if not self.complete:
                self._merge(progress)
                self._look()  # reads the whole file and its digest again
            return self.parts.remove()

    def _look(self) -> None:
        """Verify out and take over its views and clouds; refuse another recording there."""
        finished, self._carries = 0, False
        if os.path.lexists(self.out):
            with RecordReader(self.out) as record:
                refuse_other(self.plan, record.plan, self.out)
                finished, self._carries = record.views, bool(record.stored_clouds)
                self.data_file = self.data_file or record.meta["data_file"]
                if self._carries:
                    self._refuse_other_clouds(record)
                    self.clouds_meta = record.meta["clouds"]
                    self.clouds_bytes = sum(each.nbytes for each in record.stored_clouds.values())
            self.plan = replace(self.plan, views=max(self.plan.views, finished))
        self.parts = Parts(self.out, self.plan, finished)

    def _refuse_other_clouds(self, record: RecordReader) -> None:
        if self.with_clouds is not None:
            there, here = record.clouds().test, self.with_clouds.test  # type: ignore[union-attr]
            if (there.points_hash, there.labels_hash) != (here.points_hash, here.labels_hash):
                raise DataError(
                    f"{self.out}: carries other test clouds ({there.points_hash[:16]}, here "
                    f"{here.points_hash[:16]}); choose another --out, or leave out --with-clouds"
                )

    def _merge(self, progress: Callable[[int, int, str], None] | None) -> None:
        """Write the record of all views to out, from the finished record and the shards."""
        plan, carried = self.plan, self._embedded
        old: Any
        clouds: Any
        with RecordReader(self.out) if self.parts.finished else nullcontext() as old:
            if self._carries:
                arrays = {name: each.read() for name, each in old.stored_clouds.items()}
                carried = embedded.Embedded(old.meta["clouds"], arrays)
            meta, version, clouds = self._merged_meta(old and old.meta), FORMAT, ((), {})
            if carried is not None:
                meta, version = {**meta, "clouds": carried.meta}, carried.version
                clouds = cloud_fields(carried.meta["dtype"]), carried.arrays
            fields, blocks = record_fields(plan.logits), self._blocks(old, progress)
            write_rows(self.out, "record", version, meta, fields, plan.sizes, blocks, *clouds)

    def _blocks(
        self, old: Any, progress: Callable[[int, int, str], None] | None
    ) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """Yield (view, first, {field name: array}) of all rows; old: the open record or None."""
        done = 0
        for view, first, stop in self.plan.shards():
            if view < self.parts.finished:
                rows = {name: each.row(view).rows(first, stop) for name, each in old.rows.items()}
                yield view, first, {name: each.read() for name, each in rows.items()}
            else:
                yield view, first, self.parts.read(view, first, stop)[1]
            done += stop - first
            if progress:
                progress(done, self.plan.rows, "merging")

    def _merged_meta(self, old: dict[str, Any] | None) -> dict[str, Any]:
        """Return the meta of the final record; old: the meta of the finished one, or None."""
        rows: Counter[bytes]
        rows, kl = Counter(), 0.0
        if old:
            kl = old["max_kl_of_rounding"]
            for item in old["provenance"]:
                rows[files.canonical_json(item["made_with"])] += item["rows"]
        for meta in self.parts.metas():
            kl = max(kl, meta["max_kl"])
            rows[files.canonical_json(meta["provenance"])] += meta["rows"]
        return {
            "plan": self.plan.to_dict(),
            "run_id": self.plan.recording_id,
            "data_file": self.data_file,
            "max_kl_of_rounding": kl,
            "provenance": [
                {"made_with": files.parse_json(text, self.out), "rows": rows[text]}
                for text in sorted(rows)
            ],
        }
