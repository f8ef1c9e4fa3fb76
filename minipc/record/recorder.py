"""record(): run any teacher once over augmented views of each training cloud, into shards.

A teacher is any callable from points (B, P, 3) float32 to logits (B, K); contract.py lists its
requirements.  recording.py describes a recording and store.py the file protocol; this module only
computes the contents of shards.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.backend import module_of, ordered_map, padded_block
from minipc.data.augment import Params, apply, draw
from minipc.data.clouds import UNLABELLED
from minipc.errors import CheckFailed, DataError, MinipcError
from minipc.models.model import net
from minipc.nn import graph
from minipc.nn.engine import Evaluator
from minipc.progress import quiet
from minipc.provenance import provenance
from minipc.record.blocks import Blocks
from minipc.record.contract import (
    answer,
    asked,
    check_chance,
    check_no_probabilities,
    check_repeats,
    trial,
)
from minipc.record.reader import RecordReader
from minipc.record.recording import rows_of
from minipc.streams import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType
    from typing import Any

    from minipc.data.augment import AugmentConfig
    from minipc.data.clouds import Clouds
    from minipc.models.file import Model
    from minipc.record.plan import Plan
    from minipc.record.recording import Recording
    from minipc.record.store import Store

TRIAL = 512  # training clouds for the test of the teacher before the first shard


class Recorded(NamedTuple):
    """A finished recording and its cost; the fields are also the keys of `record --json`."""

    out: str
    run_id: str  # the recording_id of the plan
    clouds: int
    views: int
    classes: int
    bytes: int  # of the finished file
    bytes_per_view: int  # of one cloud: its parameters and its logits
    labelled: int  # clouds with a label
    teacher_accuracy: float | None  # on the recorded views of these; None if there are none
    clouds_per_second: float  # of this call's shards; 0 if none were missing
    resumed_shards: int  # shards that existed before, also as views of a finished record
    max_kl_of_rounding: float  # largest KL(softmax(v) || softmax(v as stored)), T = 1
    clouds_as: str | None  # int16 (lossless) or float32 if the record carries its clouds
    clouds_bytes: int  # of these; 0 without


class Share(NamedTuple):
    """The result of one computed share, while shards of other shares are missing."""

    out: str
    run_id: str  # the recording_id of the plan
    share: str  # i/n
    shards: int  # of the whole recording
    shards_there: int  # that verify now


def model_teacher(model: Model, engine: str = "fused") -> Callable[..., Any]:
    """Return a Model of ours in evaluation mode as a teacher, on the module of its arrays."""
    return net(model.config).evaluator(model.params, model.stats, model.config, engine)


def here(
    recording: Recording,
    store: Store,
    teacher: Callable[..., Any],
    missing: list[tuple[int, int, int]],
    block_done: Callable[[int], None],
) -> None:
    """Compute and commit the missing shards of a Store in this process.

    A thread writes one shard while the next one is computed.
    """
    made_with = provenance_of(recording.xp, recording.engine) | said_by(teacher)
    if recording.xp is not np:  # all views of some clouds, while a device holds these
        missing = sorted(missing, key=lambda shard: shard[1])
    kept: dict[Any, Blocks] = {}
    with ThreadPoolExecutor(1, "minipc-commit") as committer:
        committing: Any = None
        for view, first, stop in missing:
            *arrays, kl = compute_shard(
                recording.clouds,
                teacher,
                store.plan,
                recording.augment,
                view,
                first,
                stop,
                recording.xp,
                recording.threads,
                block_done,
                recording.groups,
                kept,
            )
            if committing:
                committing.result()
            committing = committer.submit(  # type: ignore[call-arg]
                store.commit_shard, view, first, *arrays, {**made_with, "max_kl": kl}
            )
        committing.result()


def record(
    recording: Recording,
    teacher: Callable[..., Any],
    compute: Callable[..., None] = here,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> Recorded | Share:
    """Carry out a Recording; return Recorded, or Share while shards of other shares are missing.

    teacher: points (B, P, 3) float32 of module recording.xp -> logits (B, K), K the number of class
    names; or Inputs -> (B, K) if the recording has groups.  recording.threads threads call it
    concurrently, on blocks of one fixed size.  The same cloud must always give the same logits.
    compute(recording, store, teacher, missing, block_done): replaces the local loop; it must commit
    every shard of missing, [(view, first, stop)], into the Store and call block_done(rows) as
    rows are done (see scheduler.on_scheduler); this process then only tests the teacher.  say and
    progress as in progress.py.

    After an interruption, the same call continues; with more views, or with_clouds, it adds them.
    Raises as Recording.open; DataError for a teacher near chance or whose logits depend on the
    block (unless force), for one that does not repeat its answers or does not return logits, and
    for logits that are not finite or overflow the chosen dtype; MinipcError if the disk is too
    small.  The teacher is tested before anything is written.  An exception before the first
    committed shard, also one that the teacher raises, leaves no files.
    """
    store = recording.open()
    store.check_space()
    rate = None
    if recording.missing(store):
        rate = _try_teacher(recording, teacher, store.plan, say)
    for line in store.begin():
        say(line)
    shards = sum(1 for _ in store.plan.shards())
    present = shards - len(store.missing())
    missing = recording.missing(store)
    seconds = 0.0
    if missing:
        say(_announcement(store, rows_of(missing), rate))
        start = time.perf_counter()
        store = _computed(recording, store, teacher, missing, compute, progress)
        seconds = time.perf_counter() - start
    elif recording.share is None:
        writing = "" if store.complete else "; writing the file"
        say(f"{store.out}: all {store.plan.views} views are recorded already{writing}")
    if recording.share is not None:
        store = recording.open()  # other recorders may have committed shards, or finished
        if left := len(store.missing()):
            share = "{}/{}".format(*recording.share)
            return Share(recording.out, store.plan.recording_id, share, shards, shards - left)
    # Also if nothing was missing: a kill may have come between the last shard and the merge.
    for name in store.finalise(progress):
        say(f"{store.parts.path}: {name} is kept; look at it and remove it")
    rate = round(rows_of(missing) / seconds, 1) if seconds else 0.0
    return _recorded(recording, store.clouds_bytes, rate, present)


def _announcement(store: Store, rows: int, rate: float | None) -> str:
    """Return the line before the first row is computed; rate: rows a second, or None."""
    plan = store.plan
    megabytes = (plan.estimated_bytes + store.clouds_bytes) / 1e6
    # no rate: the shard disappeared after the teacher could have been tested
    takes = f", about {rows / rate:.0f} s" if rate else ""
    return (
        f"{store.out}: {plan.clouds} clouds x {plan.views} views, {plan.bytes_per_view} bytes "
        f"each, {megabytes:.1f} MB in all; {rows} rows to compute{takes}"
    )


def _computed(
    recording: Recording,
    store: Store,
    teacher: Callable[..., Any],
    missing: list[tuple[int, int, int]],
    compute: Callable[..., None],
    progress: Callable[[int, int, str], None],
) -> Store:
    """Compute the missing shards by compute(); return the Store afterwards.

    An exception before the first committed shard leaves no files.  A failure is ignored if another
    recorder has computed the missing shards in the meantime.
    """
    done, rows = 0, rows_of(missing)

    def block_done(count: int) -> None:
        nonlocal done
        done += count
        progress(done, rows, "recording")

    try:
        compute(recording, store, teacher, missing, block_done)
    except BaseException as reason:  # any exception of the teacher, and Ctrl-C
        store.parts.abandon()
        if not isinstance(reason, MinipcError) or isinstance(reason, CheckFailed):
            raise
        store = recording.open()  # another recorder may have finished and removed the folder
        if store.missing():
            raise
    return store


def _recorded(recording: Recording, clouds_bytes: int, rate: float, present: int) -> Recorded:
    """Return the Recorded of a finished recording."""
    with RecordReader(recording.out) as reader:
        plan, carried = reader.plan, reader.meta.get("clouds")
        return Recorded(
            recording.out,
            plan.recording_id,
            plan.clouds,
            plan.views,
            plan.classes,
            os.path.getsize(recording.out),
            plan.bytes_per_view,
            recording.clouds.labelled,
            _recorded_accuracy(reader, recording.clouds.labels),
            rate,
            present,
            reader.meta["max_kl_of_rounding"],
            carried and carried["dtype"],
            clouds_bytes,
        )


def provenance_of(xp: ModuleType, engine: str | None) -> dict[str, Any]:
    """Return the provenance of a shard: provenance(), and the engine if the teacher is ours."""
    return provenance(xp) | ({"engine": engine} if engine else {})


def said_by(teacher: Callable[..., Any] | None) -> dict[str, Any]:
    """Return what a teacher of others adds to the provenance: its made_with (contract.py)."""
    return dict(getattr(teacher, "made_with", {}))


def compute_shard(
    clouds: Clouds,
    logits_of: Callable[..., Any],
    plan: Plan,
    augment: AugmentConfig,
    view: int,
    first: int,
    stop: int,
    xp: ModuleType,
    threads: int,
    block_done: Callable[[int], None] = quiet,
    groups: tuple[Any, ...] = (),
    kept: dict[Any, Blocks] | None = None,
) -> tuple[Any, ...]:
    """Return scale, shift (R, 3) float32, logits (R, K) as stored, and a KL of one shard.

    Computes clouds first .. stop - 1 of one view, R in all, in blocks of plan.block clouds.  Blocks
    are aligned to the cloud number and padded at the end, so that the bytes do not depend on how
    shards are divided.  groups: of all clouds, see Recording.  A device gets the clouds of the
    shard in one transfer, and its logits come back in one.  The KL is the largest
    KL(softmax(v) || softmax(v as stored)) at T = 1.  kept: of the caller, who gives it again for
    shards of the same clouds and teacher; what is kept on a device from one to the next.
    """
    # imported here: slow, and training and evaluation read records without it
    from scipy.special import log_softmax

    params, rows = draw(plan.seed, view, first, stop - first, augment), stop - first
    whole = -(-rows // plan.block) * plan.block
    applied = [padded_block(value, 0, whole) for value in params]
    on_host = (padded_block(array[:stop], first, whole) for array in (clouds.points, *groups))
    on_device = xp is not np
    # On a device, what does not depend on the block is done once: the head of a model of ours, and
    # its clouds' way there, or the views.
    ours = logits_of if on_device and isinstance(logits_of, Evaluator) else None
    if ours and ours.work and not graph.why_not(xp):
        kept = {} if kept is None else kept
        if (first, stop) not in kept:
            kept.clear()  # before others take memory
            points, *near = on_host
            kept[first, stop] = Blocks(ours, points, near, plan.block, xp)
        found = kept[first, stop].of(*applied)
    else:
        found = _blocks(
            logits_of,
            ours,
            list(map(xp.asarray, on_host)),
            Params(*map(xp.asarray, applied)),
            plan,
            threads,
        )

    blocks = []
    for start, logits in zip(range(0, rows, plan.block), found, strict=True):
        blocks.append(logits)
        block_done(min(plan.block, rows - start))
    together: Any = (np if isinstance(blocks[0], np.ndarray) else xp).concatenate(blocks)
    if ours:
        together = ours.head(together)
    exact = answer(together, (whole, plan.classes))[:rows]
    if not np.isfinite(exact).all():
        raise DataError(
            f"teacher: logits of view {view} are not finite; check the model and its input"
        )
    with np.errstate(over="ignore"):
        stored = exact.astype(plan.logits)
    if not np.isfinite(stored).all():
        raise DataError(
            f"teacher: a logit of {np.abs(exact).max():.3g} in view {view} does not fit float16; "
            "use --logits float32"
        )
    log_p = log_softmax(exact.astype(np.float64), axis=1)
    log_stored = log_softmax(stored.astype(np.float64), axis=1)
    kl = (np.exp(log_p) * (log_p - log_stored)).sum(axis=1).max()
    return *params, stored, float(max(kl, 0.0))


def _blocks(
    logits_of: Callable[..., Any],
    ours: Evaluator | None,
    arrays: Sequence[Any],
    params: Params,
    plan: Plan,
    threads: int,
) -> Iterator[Any]:
    """Yield the logits of each block, or the features of ours.    arrays: points, groups, on xp"""
    points, *near = arrays
    xp = module_of(points)
    views = apply(points, params) if xp is not np else None

    def block_logits(start: int) -> Any:
        here = slice(start, start + plan.block)
        if views is None:
            seen = apply(points[here], Params(*(value[here] for value in params)))
        else:
            seen = views[here]
        found = asked(ours.features if ours else logits_of, seen, [group[here] for group in near])
        if views is not None and isinstance(found, xp.ndarray):
            return found if ours else xp.array(found)  # a teacher may reuse its output
        return answer(found, (plan.block, plan.classes))

    yield from ordered_map(block_logits, range(0, len(points), plan.block), threads)


def _try_teacher(
    recording: Recording, teacher: Callable[..., Any], plan: Plan, say: Callable[[str], None]
) -> float:
    """Return rows a second on random training clouds under view 0.  Raises DataError as record."""
    clouds, xp = recording.clouds, recording.xp
    order = stream(plan.seed, "trial").permutation(len(clouds))
    # labelled clouds first, because these alone tell a teacher from a guess
    order = order[np.argsort(clouds.labels[order] == UNLABELLED, kind="stable")]
    chosen = np.sort(order[:TRIAL])
    some = clouds.taken(chosen)
    groups = tuple(group[chosen] for group in recording.groups)
    few, *near = (padded_block(array, 0, plan.block) for array in (some.points, *groups))
    views = apply(few, draw(plan.seed, 0, 0, len(few), recording.augment))
    check_repeats(teacher, views, plan.classes, xp, alone=not recording.force, groups=near)

    def logits_of(rows: int) -> np.ndarray:
        shard = (some, teacher, plan, recording.augment, 0, 0, rows)
        return compute_shard(*shard, xp, recording.threads, groups=groups)[2]

    if xp is not np:
        logits_of(min(plan.block, len(some)))  # untimed: a device compiles its kernels
    start = time.perf_counter()
    logits = logits_of(len(some))
    rate = len(some) / (time.perf_counter() - start)
    check_no_probabilities(logits)
    if clouds.labelled:
        known = some.labels != UNLABELLED
        largest = np.bincount(clouds.labels[clouds.labels != UNLABELLED]).max() / clouds.labelled
        check_chance(trial(some.labels[known], logits[known], largest), recording.force, say)
    else:
        say("teacher: no training cloud is labelled, so nothing can tell it from a guess")
    return rate


def _recorded_accuracy(reader: RecordReader, labels: np.ndarray) -> float | None:
    """Return the share of recorded rows of labelled clouds whose largest logit is the label.

    None where no cloud is labelled.
    """
    labelled = int((labels != UNLABELLED).sum())
    if not labelled:
        return None
    right = sum(
        int((reader.view(view)[2].argmax(axis=1) == labels).sum()) for view in range(reader.views)
    )
    return right / (reader.views * labelled)
