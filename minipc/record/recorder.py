"""record(): run any teacher once over augmented views of each training cloud, into shards.

A teacher is any callable from (B, P, 3) float32 to (B, K) logits; ours is one of them, contract.py
says what is asked of it.  The file protocol is store.py's: this module only computes what a shard
holds.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from minipc.backend import BLOCK, ordered_map, padded_block
from minipc.data.augment import ORDER, AugmentConfig, Params, apply, draw
from minipc.errors import CheckFailed, DataError, MinipcError, UsageError
from minipc.models.pointnet import evaluator
from minipc.provenance import provenance
from minipc.record.contract import (
    answer,
    check_chance,
    check_no_probabilities,
    check_repeats,
    trial,
)
from minipc.record.plan import MOST_ROWS, Plan
from minipc.record.reader import RecordReader
from minipc.record.store import Store
from minipc.settings import RecordConfig
from minipc.storage.places import check_parent
from minipc.streams import stream

TRIAL = 512  # training clouds on which a teacher is tried before the first shard


class Recorded(NamedTuple):
    """What a recording holds and what it took, also the keys of `record --json`."""

    out: str
    run_id: str
    clouds: int
    views: int
    classes: int
    bytes: int  # of the finished file
    bytes_per_view: int  # of one cloud: its parameters and its logits
    teacher_accuracy: float  # on the recorded views
    clouds_per_second: float  # of this call's shards; 0 where nothing was left to do
    resumed_shards: int  # shards (or views of a finished record) that were there already
    max_kl_of_rounding: float  # largest KL(softmax(v) || softmax(v as stored)), T = 1
    clouds_as: str | None  # int16 (lossless) or float32 where the record carries its clouds
    clouds_bytes: int  # of these; 0 without


class Forecast(NamedTuple):
    """What record() would find and do, also the keys of `record --dry-run --json`.

    All but out, views and would_make are None where data or teacher are still to be made.
    """

    out: str
    views: int  # of the finished record
    would_make: list  # files that are not there, or not complete
    run_id: str | None = None
    clouds: int | None = None
    classes: int | None = None
    bytes: int | None = None  # of the finished file, to within a few kB
    bytes_per_view: int | None = None
    clouds_as: str | None = None  # as in Recorded
    clouds_bytes: int | None = None
    shards: int | None = None  # in all
    shards_there: int | None = None  # that verify, those of a finished record's views too
    rows_left: int | None = None  # to compute
    bytes_needed: int | None = (
        None  # for what is missing: the finished file is made beside its shards
    )
    bytes_free: int | None = None  # None also where the system does not tell
    damaged: tuple = ()  # a line for each file that would be set aside


class Share(NamedTuple):
    """What came of computing one share of a recording that others have to finish."""

    out: str
    run_id: str
    share: str  # i/n
    shards: int  # of the whole recording
    shards_there: int  # that verify now


def check_request(out, views, seed):
    """Raise UsageError or DataError for what no teacher needs to be called to refuse."""
    RecordConfig(views, seed)  # raises for what is out of bounds
    check_parent(out)


def pointnet_teacher(model, engine="fused"):
    """Return logits_of for record(): our PointNet in evaluation mode, on the module of its
    arrays.
    """
    return evaluator(model.params, model.stats, model.config, engine)


def quiet(*anything):
    """Report nothing."""


def forecast(
    clouds,
    teacher_id,
    out,
    views,
    *,
    seed=0,
    augment=AugmentConfig(),
    logits="float16",
    data_file=None,
    with_clouds=None,
):
    """Return the Forecast of record() with these arguments, by looking alone: nothing is changed.

    Raises what record() would raise before it calls a teacher.
    """
    store = _place(clouds, teacher_id, out, views, seed, augment, logits, data_file, with_clouds)
    plan, missing = store.plan, store.missing()
    store.check_space()
    shards, (needed, free) = sum(1 for _ in plan.shards()), store.space()
    return Forecast(
        out,
        plan.views,
        [] if store.complete else [out],
        run_id=plan.run_id,
        clouds=plan.clouds,
        classes=plan.classes,
        bytes=plan.estimated_bytes + store.clouds_bytes,
        bytes_per_view=plan.bytes_per_view,
        clouds_as=store.clouds_meta and store.clouds_meta["dtype"],
        clouds_bytes=store.clouds_bytes,
        shards=shards,
        shards_there=shards - len(missing),
        rows_left=sum(stop - first for _, first, stop in missing),
        bytes_needed=needed,
        bytes_free=free,
        damaged=tuple(store.damaged),
    )


def _check_share(share):
    if share is not None and not 0 <= share[0] < share[1]:
        raise UsageError(
            f"shards: expected i/n with 0 <= i < n, e.g. 0/4, got {share[0]}/{share[1]}"
        )


def _place(clouds, teacher_id, out, views, seed, augment, logits, data_file, with_clouds):
    """Return the Store of a recording, after every check that needs no teacher."""
    check_request(out, views, seed)
    plan = Plan(
        clouds=len(clouds),
        classes=len(clouds.class_names),
        logits=logits,
        block=BLOCK,
        rows_per_shard=MOST_ROWS,
        augment={**asdict(augment), "order": ORDER},
        seed=seed,
        points_hash=clouds.points_hash,
        labels_hash=clouds.labels_hash,
        teacher_id=teacher_id,
        **clouds.described,
        views=views,
    )
    return Store(out, plan, data_file, with_clouds)


def record(
    clouds,
    logits_of,
    teacher_id,
    out,
    views,
    *,
    seed=0,
    augment=AugmentConfig(),
    logits="float16",
    xp=np,
    threads=1,
    engine=None,
    data_file=None,
    with_clouds=None,
    force=False,
    share=None,
    elsewhere=None,
    say=quiet,
    progress=quiet,
):
    """Record views 0 .. views - 1 of every cloud to the file out and return Recorded.

    clouds: data.clouds.Clouds; logits_of: (B, P, 3) float32 of module xp -> (B, K), K the number of
    class names; it is called with blocks of one fixed size, by several threads at once if threads
    is above 1, and must repeat itself, whatever else is in the block.  teacher_id names the teacher
    for ever: another id is another record.  data_file is a hint for people, a base name.
    with_clouds: the Splits whose training split is clouds, for a record that carries both, so that
    it and nothing else trains a student.  engine: which of ours computes, for the provenance of the
    shards.  say(line) and progress(done, total, text) report. share: (i, n) with 0 <= i < n, only
    every n-th shard from the i-th on; where shards are missing afterwards the result is a Share,
    else the record is finished as ever.  elsewhere: a function of (parts, plan, augment, missing,
    block_done) that has the missing shards committed into the folder parts by others, as
    scheduler.on_scheduler does; logits_of then only tries the teacher.

    Run again after any interruption it continues; with more views, or with_clouds, it adds them.
    Raises UsageError for views or a seed that cannot be, DataError for a teacher near chance or
    whose logits depend on the block (unless force), for one that does not repeat itself or returns
    no logits, for logits that are not finite or do not fit the chosen dtype, and where another
    recording is in the same place; MinipcError where the disk is too small.  The teacher is tried
    before anything is written, and whatever is raised before the first shard is there, by the
    teacher too, leaves nothing.
    """
    _check_share(share)
    store = _place(clouds, teacher_id, out, views, seed, augment, logits, data_file, with_clouds)
    plan = store.plan  # a finished record of more views keeps them
    shards = [shard[:2] for shard in plan.shards()]
    mine = set(shards if share is None else shards[share[0] :: share[1]])
    store.check_space()
    rate = None
    if any(shard[:2] in mine for shard in store.missing()):
        rate = _try_teacher(clouds, logits_of, plan, augment, xp, threads, force, say)
    for line in store.begin():
        say(line)
    present = len(shards) - len(store.missing())
    missing = [shard for shard in store.missing() if shard[:2] in mine]
    left = sum(stop - first for _, first, stop in missing)
    seconds = 0.0
    if missing:
        takes = (
            f", about {left / rate:.0f} s" if rate else ""
        )  # none: it went missing in this very moment
        megabytes = (plan.estimated_bytes + store.clouds_bytes) / 1e6
        say(
            f"{out}: {plan.clouds} clouds x {plan.views} views, {plan.bytes_per_view} bytes each, "
            f"{megabytes:.1f} MB in all; {left} rows to compute{takes}"
        )
        done = 0

        def block_done(rows):
            nonlocal done
            done += rows
            progress(done, left, "recording")

        start = time.perf_counter()
        try:
            if elsewhere is not None:
                elsewhere(store.parts, plan, augment, missing, block_done)
            else:
                _compute_here(
                    store, clouds, logits_of, augment, missing, xp, threads, engine, block_done
                )
        except BaseException as reason:  # whatever the teacher raises, and Ctrl-C
            store.abandon()
            if not isinstance(reason, MinipcError):
                raise
            # another recorder may have finished meanwhile, and removed the parts
            store = _place(
                clouds, teacher_id, out, views, seed, augment, logits, data_file, with_clouds
            )
            if store.missing() or isinstance(reason, CheckFailed):
                raise
        seconds = time.perf_counter() - start
    elif share is None:
        say(
            f"{out}: all {plan.views} views are recorded already"
            + ("" if store.complete else "; writing the file")
        )
    if share is not None:  # others may have committed meanwhile, or finished
        store = _place(
            clouds, teacher_id, out, views, seed, augment, logits, data_file, with_clouds
        )
        left = len(store.missing())
        if left:
            return Share(
                out, plan.run_id, f"{share[0]}/{share[1]}", len(shards), len(shards) - left
            )
    # Also where nothing was missing: a kill may have come between the last shard and the merge.
    for name in store.finalise(progress):
        say(f"{store.parts}: {name} is kept; look at it and remove it")
    with RecordReader(out) as reader:
        carried = reader.meta.get("clouds")
        return Recorded(
            out,
            plan.run_id,
            plan.clouds,
            reader.views,
            plan.classes,
            os.path.getsize(out),
            plan.bytes_per_view,
            _recorded_accuracy(reader, clouds.labels),
            round(left / seconds, 1) if seconds else 0.0,
            present,
            reader.meta["max_kl_of_rounding"],
            carried and carried["dtype"],
            store.clouds_bytes,
        )


def _compute_here(store, clouds, logits_of, augment, missing, xp, threads, engine, block_done):
    """Compute and commit the missing shards of a Store; the disk works while the next one is
    computed.
    """
    made_with = provenance_of(xp, engine)
    with ThreadPoolExecutor(1, "minipc-commit") as committer:
        committing = None
        for view, first, stop in missing:
            *arrays, kl = compute_shard(
                clouds, logits_of, store.plan, augment, view, first, stop, xp, threads, block_done
            )
            if committing:
                committing.result()
            committing = committer.submit(
                store.commit_shard, view, first, *arrays, {**made_with, "max_kl": kl}
            )
        committing.result()


def provenance_of(xp, engine):
    """Return what a shard is made with: provenance(), and the engine where it is ours."""
    return provenance(xp) | ({"engine": engine} if engine else {})


def compute_shard(
    clouds, logits_of, plan, augment, view, first, stop, xp, threads, block_done=quiet
):
    """Return what one shard holds: scale and shift (R, 3) float32, logits (R, K) as stored, and a
    KL.

    Clouds first .. stop - 1 of one view in blocks of plan.block, aligned to the cloud number and
    padded at the end, so that the bytes do not depend on who computes which shard.  The KL is the
    largest KL(softmax(v) || softmax(v as stored)) at T = 1.
    """
    from scipy.special import (
        log_softmax,
    )  # here: slow to import, and training and evaluation read records without

    params = draw(plan.seed, view, first, stop - first, augment)

    def block_logits(start):
        points = xp.asarray(padded_block(clouds.points[:stop], start, plan.block))
        applied = Params(
            *(xp.asarray(padded_block(value, start - first, plan.block)) for value in params)
        )
        return answer(logits_of(apply(points, applied)), (plan.block, plan.classes))[: stop - start]

    blocks = []
    for logits in ordered_map(block_logits, range(first, stop, plan.block), threads):
        blocks.append(logits)
        block_done(len(logits))
    exact = np.concatenate(blocks)
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


def _try_teacher(clouds, logits_of, plan, augment, xp, threads, force, say):
    """Return rows a second on random training clouds under view 0.  Raises DataError as record()
    does.
    """
    chosen = np.sort(stream(plan.seed, "trial").permutation(len(clouds))[:TRIAL])
    some = replace(clouds, points=clouds.points[chosen], labels=clouds.labels[chosen])
    few = padded_block(some.points, 0, plan.block)
    check_repeats(
        logits_of,
        apply(few, draw(plan.seed, 0, 0, len(few), augment)),
        plan.classes,
        xp,
        alone=not force,
    )
    start = time.perf_counter()
    logits = compute_shard(some, logits_of, plan, augment, 0, 0, len(some), xp, threads)[2]
    rate = len(some) / (time.perf_counter() - start)
    check_no_probabilities(logits)
    largest = np.bincount(clouds.labels).max() / len(clouds)
    check_chance(trial(some.labels, logits, largest), force, say)
    return rate


def _recorded_accuracy(reader, labels):
    """Return the share of recorded rows whose largest logit is the label."""
    right = sum(
        int((reader.view(view)[2].argmax(axis=1) == labels).sum()) for view in range(reader.views)
    )
    return right / (reader.views * len(labels))
