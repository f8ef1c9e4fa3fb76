"""The replay certificate: check that plan, data and teacher reproduce a record.

RecordReader has already checked the file itself.  Here every stored parameter is drawn again from
the seed, and the teacher runs again over some rows.  If the provenance is the same (versions,
kernel, device), logits must be equal bit for bit; otherwise the bound below applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.data.augment import AugmentConfig, draw
from minipc.models.inputs import check_groups
from minipc.progress import quiet
from minipc.provenance import unlike
from minipc.record.recorder import compute_shard, provenance_of, said_by
from minipc.storage.files import from_dict
from minipc.streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.data.clouds import Clouds
    from minipc.record.plan import Plan
    from minipc.record.reader import RecordReader

# How much another BLAS kernel, version or device may change a logit, relative to the largest logit
# of its row; a logit stored as float16 may also round to the neighbouring number.
ELSEWHERE, NEIGHBOUR = 1e-4, 2.0**-10


class Verified(NamedTuple):
    """The result of a verification; passed is the verdict."""

    rows: int  # of the record; the parameters of all were drawn again
    parameters: int  # rows whose stored scale or shift is not what the seed draws
    sampled: int  # rows over which the teacher ran again; 0 without a teacher
    bitwise: bool | None  # whether bits must be equal: the arithmetic of all shards repeats here
    why: str  # if not bitwise, how the provenance differs; else empty
    different: int  # sampled rows with a logit outside the bound
    largest_difference: float  # between a stored and a computed logit
    agreement: float | None  # share of sampled rows with the same arg-max
    passed: bool
    failed: str  # the failed checks, in one line; empty if all passed


def verify(
    reader: RecordReader,
    clouds: Clouds,
    logits_of: Callable[..., Any] | None = None,
    sample: int | None = 1024,
    *,
    groups: tuple[Any, ...] = (),
    xp: ModuleType = np,
    threads: int = 1,
    engine: str | None = None,
    repeats: bool = True,
    progress: Callable[[int, int, str], None] = quiet,
) -> Verified:
    """Return Verified of an open record made from clouds.

    logits_of: the teacher, as in recorder.record, or None to skip it; groups: of the clouds, as in
    Recording; sample: rows to compute again, drawn as whole blocks of the plan, None for all.
    engine: the engine of ours that was recorded.  repeats: whether equal provenance promises equal
    bits; False for a teacher whose library promises none.  Raises DataError if the record was not
    made from clouds, or uses an augmentation that this version cannot draw.
    """
    reader.check_belongs(clouds)
    check_groups(groups, len(clouds))
    plan = reader.plan
    augment = from_dict(
        AugmentConfig,
        {name: value for name, value in plan.augment.items() if name != "order"},
        f"{reader.path}: plan",
    )
    blocks = _sample(plan, reader.views, sample) if logits_of else {}
    here = provenance_of(xp, engine) | said_by(logits_of)
    reasons = (
        [unlike(item["made_with"], here) for item in reader.meta["provenance"]] if logits_of else []
    )
    why = next(filter(None, reasons), "")
    if logits_of and not repeats:
        why = why or "no library but minipc's own promises here that bits repeat"
    bitwise = not why if logits_of else None
    total, done, wrong, different, same, largest = sum(map(len, blocks.values())), 0, 0, 0, 0, 0.0
    for view in range(reader.views):
        scale, shift, logits = reader.view(view)
        drawn = draw(plan.seed, view, 0, plan.clouds, augment)
        wrong += int(((drawn.scale != scale) | (drawn.shift != shift)).any(axis=1).sum())
        for first in blocks.get(view, ()):
            stop = min(first + plan.block, plan.clouds)
            computed = compute_shard(
                clouds,
                logits_of,  # type: ignore[arg-type]
                plan,
                augment,
                view,
                first,
                stop,
                xp,
                threads,
                groups=groups,
            )[2]
            stored = logits[first:stop]
            difference = np.abs(computed.astype(np.float64) - stored)
            allowed = 0.0 if bitwise else _allowed(stored)
            different += int((difference > allowed).any(axis=1).sum())
            same += int((computed.argmax(axis=1) == stored.argmax(axis=1)).sum())
            largest = max(largest, float(difference.max()))
            done += 1
            progress(done, total, "teacher again")
    rows = reader.views * plan.clouds
    sampled = sum(
        min(plan.block, plan.clouds - first) for firsts in blocks.values() for first in firsts
    )
    failed = []
    if wrong:
        failed.append(f"{wrong} of {rows} rows hold other parameters than seed {plan.seed} draws")
    if different:
        failed.append(f"{different} of {sampled} rows hold other logits than the teacher computes")
    return Verified(
        rows,
        wrong,
        sampled,
        bitwise,
        why,
        different,
        largest,
        same / sampled if sampled else None,
        not failed,
        "; ".join(failed),
    )


def _sample(plan: Plan, views: int, rows: int | None) -> dict[int, list[int]]:
    """Return {view: first rows of the blocks to compute again}."""
    firsts = range(0, plan.clouds, plan.block)
    every = views * len(firsts)
    count = every if rows is None else min(every, -(-rows // plan.block))
    chosen = np.sort(stream(plan.seed, "verify").permutation(every)[:count])
    blocks: dict[int, list[int]] = {}
    for number in chosen:
        blocks.setdefault(int(number) // len(firsts), []).append(firsts[int(number) % len(firsts)])
    return blocks


def _allowed(stored: np.ndarray) -> np.ndarray:
    """Return the largest difference allowed for another build, (B, K)."""
    exact = np.abs(stored.astype(np.float64))
    bound = ELSEWHERE * exact.max(axis=1, keepdims=True)
    return (
        bound + NEIGHBOUR * exact
        if stored.dtype == np.float16
        else np.broadcast_to(bound, exact.shape)
    )
