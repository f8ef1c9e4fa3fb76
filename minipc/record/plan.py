"""The identity of a recording and its extent, fixed before any teacher is called.

The identity is everything that can change a recorded byte, so never dates, host names or paths.
The same identity resumes a recording; another identity at the same path is refused, naming the
fields that differ.  The extent is the number of views.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from minipc.errors import DataError, short
from minipc.storage.files import (
    canonical_json,
    check_keys,
    commit,
    from_dict,
    parse_json,
    read_bytes,
)
from minipc.streams import check_seed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FORMAT = 1  # of plans, shards and records together
MOST_ROWS = 4096  # in one shard: what a kill may cost, and the memory of a merge


@dataclass(frozen=True)
class Plan:
    """Identity and extent of a recording.  Raises DataError for invalid values."""

    clouds: int  # N
    classes: int  # K
    logits: str  # stored dtype, float16 or float32
    block: int  # clouds in one call of the teacher
    rows_per_shard: int  # a multiple of block, at most 4096
    augment: dict  # ranges and order of the operations; plain JSON
    seed: int  # of the Philox words
    points_hash: str  # SHA-256 of the clouds
    labels_hash: str
    teacher_id: str  # SHA-256 of a model, or a name that the caller chose
    class_names: tuple  # K, in label order
    up_axis: str
    normalisation: str
    views: int  # the extent: V
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("clouds", "classes", "block", "rows_per_shard", "views", "format"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise DataError(f"plan: {name}: expected an integer >= 1, got {value!r}")
        for name in ("points_hash", "labels_hash", "teacher_id", "up_axis", "normalisation"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"plan: {name}: expected text, got {getattr(self, name)!r}")
        check_seed(self.seed)
        if self.format != FORMAT:
            raise DataError(f"plan: format {self.format}; this minipc knows {FORMAT}: upgrade")
        if self.logits not in ("float16", "float32"):
            raise DataError(f"plan: logits: expected float16 or float32, got {self.logits!r}")
        if self.rows_per_shard > MOST_ROWS or self.rows_per_shard % self.block:
            raise DataError(
                f"plan: rows_per_shard: expected a multiple of the block {self.block}, at most "
                f"{MOST_ROWS}, got {self.rows_per_shard}"
            )
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.class_names) != self.classes:
            raise DataError(f"plan: {self.classes} classes, {len(self.class_names)} class names")
        # a copy through JSON: later changes by the caller, or tuples, cannot change the identity
        object.__setattr__(self, "augment", json.loads(canonical_json(self.augment)))

    @property
    def identity(self) -> dict[str, Any]:
        """The fields on which recorded bytes depend: all except views."""
        return {name: value for name, value in self.to_dict().items() if name != "views"}

    @cached_property
    def recording_id(self) -> str:
        """SHA-256 of the canonical JSON of the identity, as hexadecimal digits."""
        return hashlib.sha256(canonical_json(self.identity)).hexdigest()

    @property
    def rows(self) -> int:
        """The number of rows: views x clouds; row = view x N + cloud."""
        return self.views * self.clouds

    @property
    def bytes_per_view(self) -> int:
        """Bytes of one view of one cloud: 24 for scale and shift, and K logits."""
        return 24 + self.classes * np.dtype(self.logits).itemsize

    @property
    def estimated_bytes(self) -> int:
        """Size of the finished record, to within a few kB."""
        return self.rows * self.bytes_per_view + 2560 + len(canonical_json(self.to_dict()))

    @property
    def sizes(self) -> dict[str, int]:
        """{axis letter of fields.py: length} of the finished record, without clouds in it."""
        return {"V": self.views, "N": self.clouds, "D": 3, "K": self.classes}

    def shards(self) -> Iterator[tuple[int, int, int]]:
        """Yield (view, first, stop) of every shard, in the order of the rows."""
        for view in range(self.views):
            for first in range(0, self.clouds, self.rows_per_shard):
                yield view, first, min(first + self.rows_per_shard, self.clouds)

    def same_identity(self, other: Plan) -> bool:
        """Return whether other records the same bytes; the extent may differ."""
        return self.recording_id == other.recording_id

    def differences(self, other: Plan) -> str:
        """Return one line that names each field of the identity in which other differs."""
        mine, others = _flat(self.identity), _flat(other.identity)
        return "; ".join(
            f"{name} is {brief(others.get(name))} there and {brief(mine.get(name))} here"
            for name in sorted({*mine, *others})
            if mine.get(name) != others.get(name)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {**asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> Plan:
        """Return the Plan described by a mapping from a file.  Raises DataError naming where."""
        return from_dict(cls, values, where)


def brief(value: Any) -> str:
    """Return a value of a plan as text for a message; digests are cut to 16 digits."""
    return f"{value[:16]}..." if isinstance(value, str) and len(value) == 64 else short(value)


def write_plan(path: str, plan: Plan) -> None:
    """Commit plan to path as JSON, with its recording_id (key run_id) as a digest.

    Raises as files.commit does.
    """
    commit(path, canonical_json({"plan": plan.to_dict(), "run_id": plan.recording_id}))


def read_plan(path: str) -> Plan:
    """Return the Plan that write_plan committed.  Raises DataError, also for a damaged one."""
    values = parse_json(read_bytes(path, 1 << 24), path)
    check_keys(values, {"plan", "run_id"}, path)
    plan = Plan.from_dict(values["plan"], path)
    if plan.recording_id != values["run_id"]:
        raise DataError(f"{path}: is damaged: its digest does not match; remove it")
    return plan


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as a flat one, {"augment.shift_max": ...}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value})
    return flat
