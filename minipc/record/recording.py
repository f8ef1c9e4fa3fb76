"""The request for a recording, and its forecast before any teacher is called."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.backend import BLOCK
from minipc.data.augment import ORDER, AugmentConfig
from minipc.data.clouds import Clouds, Splits
from minipc.errors import UsageError
from minipc.record.plan import MOST_ROWS, Plan
from minipc.record.store import Store
from minipc.settings import RecordConfig
from minipc.storage.places import check_parent

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, eq=False)
class Recording:
    """A request: views 0 .. views - 1 of every cloud, by one teacher, in the file out."""

    clouds: Clouds  # the training split
    teacher_id: str  # part of the identity: another id makes another record
    out: str
    views: int
    seed: int = 0  # of the views
    augment: AugmentConfig = AugmentConfig()
    logits: str = "float16"  # how logits are stored; or float32
    data_file: str | None = None  # base name of the clouds file, a hint for people
    with_clouds: Splits | None = None  # for a record that carries them; train must be clouds
    share: tuple | None = None  # (i, n), 0 <= i < n: only shards i, i + n, i + 2n, ...
    force: bool = False  # accept a teacher near chance, or whose logits depend on the block
    xp: ModuleType = np  # numpy or cupy: the module of the points that the teacher receives
    threads: int = 1  # that call the teacher concurrently
    engine: str | None = None  # our engine, if the teacher is ours; for the provenance of shards
    groups: tuple = ()  # for all clouds, from prepare() of the teacher's model

    def open(self) -> Store:
        """Return the Store of this recording, after every check that needs no teacher.

        Changes nothing.  Raises UsageError for invalid views, seed or share; DataError if out
        cannot be written, belongs to another recording, or is damaged.
        """
        if self.share is not None and not 0 <= self.share[0] < self.share[1]:
            number, count = self.share
            raise UsageError(
                f"shards: expected i/n with 0 <= i < n, e.g. 0/4, got {number}/{count}"
            )
        check_request(self.out, self.views, self.seed)
        plan = Plan(
            clouds=len(self.clouds),
            classes=len(self.clouds.class_names),
            logits=self.logits,
            block=BLOCK,
            rows_per_shard=MOST_ROWS,
            augment={**asdict(self.augment), "order": ORDER},
            seed=self.seed,
            points_hash=self.clouds.points_hash,
            labels_hash=self.clouds.labels_hash,
            teacher_id=self.teacher_id,
            **self.clouds.described,
            views=self.views,
        )
        return Store(self.out, plan, self.data_file, self.with_clouds)

    def missing(self, store: Store) -> list[tuple[int, int, int]]:
        """Return [(view, first, stop)] of the shards of this share that its Store lacks."""
        if self.share is None:
            return store.missing()
        number, count = self.share
        share = set(islice(store.plan.shards(), number, None, count))
        return [shard for shard in store.missing() if shard in share]


class Forecast(NamedTuple):
    """What record() would find and do; the fields are also the keys of `record --dry-run --json`.

    All except out, views and would_make are None while data or teacher do not exist yet.
    """

    out: str
    views: int  # of the finished record
    would_make: list  # files that are missing or not complete
    run_id: str | None = None  # the recording_id of the plan
    clouds: int | None = None
    classes: int | None = None
    bytes: int | None = None  # of the finished file, to within a few kB
    bytes_per_view: int | None = None
    clouds_as: str | None = None  # as in recorder.Recorded
    clouds_bytes: int | None = None
    shards: int | None = None  # in total
    shards_there: int | None = None  # that verify, including those of a finished record's views
    rows_left: int | None = None  # to compute
    bytes_needed: int | None = None  # for the missing shards, and the file made beside them
    bytes_free: int | None = None  # None too if the system does not report it
    damaged: tuple = ()  # a line for each file that would be renamed


def check_request(out: str, views: int, seed: int) -> None:
    """Raise UsageError or DataError for a request that is invalid for every teacher."""
    RecordConfig(views, seed)  # raises for values out of bounds
    check_parent(out)


def forecast(recording: Recording) -> Forecast:
    """Return the Forecast of record() for a Recording, which changes nothing.

    Raises what record() would raise before it calls a teacher.
    """
    store = recording.open()
    plan, missing = store.plan, store.missing()
    store.check_space()
    shards, (needed, free) = sum(1 for _ in plan.shards()), store.space()
    return Forecast(
        recording.out,
        plan.views,
        [] if store.complete else [recording.out],
        run_id=plan.recording_id,
        clouds=plan.clouds,
        classes=plan.classes,
        bytes=plan.estimated_bytes + store.clouds_bytes,
        bytes_per_view=plan.bytes_per_view,
        clouds_as=store.clouds_meta["dtype"] if store.clouds_meta else None,
        clouds_bytes=store.clouds_bytes,
        shards=shards,
        shards_there=shards - len(missing),
        rows_left=rows_of(missing),
        bytes_needed=needed,
        bytes_free=free,
        damaged=tuple(store.parts.damaged),
    )


def rows_of(shards: Iterable[tuple[int, int, int]]) -> int:
    """Return the number of rows in shards [(view, first, stop)]."""
    return sum(stop - first for _, first, stop in shards)
