"""A recording computed by the workers of a Dask scheduler, one task for each shard.

If a worker dies, Dask runs its tasks again; only committed shards count.  A worker commits its
shards into the folder of the recording, which it must see under the same path, and returns their
digests.  Only this module imports distributed (the extra "dask").  Anyone who can connect to a
scheduler can run any code on its workers: use Dask in a trusted network, or with TLS.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minipc.backend import blas_on_one_thread, load, one_blas_thread
from minipc.errors import BackendError, DataError, MinipcError
from minipc.models.file import model_id, on_module
from minipc.record.embedded import check_recorded
from minipc.record.recorder import compute_shard, model_teacher, provenance_of
from minipc.record.shard import commit_shard, shard_name
from minipc.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from minipc.data.augment import AugmentConfig
    from minipc.data.clouds import Clouds
    from minipc.models.file import Model
    from minipc.record.plan import Plan
    from minipc.record.recording import Recording
    from minipc.record.store import Store

PATIENCE = 30  # seconds in which a scheduler answers and has a worker
LATE = 90  # seconds by which a shared folder may show a file later than it was made
RETRIES = 2  # of a shard that failed; Dask itself counts workers that a shard killed


def on_scheduler(
    address: str,
    read: Callable[[], tuple[Clouds, Model, tuple]],
    recording: Recording,
    store: Store,
    teacher: Callable[..., Any],
    missing: list[tuple[int, int, int]],
    block_done: Callable[[int], None],
) -> None:
    """Let the workers at address commit the missing shards of a Store into its parts.

    read: picklable, takes no arguments, returns (Clouds, Model, groups of these clouds); one worker
    calls it and passes the result to the others.  The other arguments are those of compute in
    recorder.record; workers build the teacher from the Model.  Raises BackendError if distributed
    is missing, the scheduler does not answer or no worker is left; DataError if a committed shard
    is not visible here; the MinipcError that a worker raised; and MinipcError for any other failure
    there.  Every exception, including Ctrl-C, cancels the remaining tasks; committed shards stay.
    """
    with _client(address) as client:
        done: queue.SimpleQueue[Any]
        parts, done = os.path.abspath(store.parts.path), queue.SimpleQueue()
        plan, backend = store.plan, recording.xp.__name__
        read = client.submit(_read, read, plan, pure=False, retries=RETRIES)
        tasks = {
            client.submit(
                _compute,
                read,
                backend,
                recording.engine,
                parts,
                plan,
                recording.augment,
                view,
                first,
                stop,
                pure=False,
                retries=RETRIES,
                priority=-number,  # view by view
            ): (view, first, stop)
            for number, (view, first, stop) in enumerate(missing)
        }
        for task in tasks:
            task.add_done_callback(done.put)
        for _ in range(len(tasks)):
            task = _next(done, client, address)
            view, first, stop = tasks[task]
            try:
                _seen(os.path.join(parts, shard_name(view, first)), task.result())
            except MinipcError:
                raise
            except Exception as reason:  # the shard killed too many workers, or they cannot run it
                what = f"{type(reason).__name__}: {' '.join(str(reason).split())}"
                raise MinipcError(
                    f"{address}: view {view}, row {first}: {what}; look at the workers and type "
                    "the same again"
                ) from reason
            task.release()
            block_done(stop - first)


def _read(
    read: Callable[[], tuple[Clouds, Model, tuple]], plan: Plan
) -> tuple[Clouds, Model, tuple[Any, ...]]:
    """Return the clouds and the teacher of the plan, and the groups; runs on a worker."""
    clouds, model, groups = read()
    check_recorded(clouds, plan, "scheduler: the clouds that a worker reads")
    if model_id(model) != plan.teacher_id:
        raise DataError(
            f"scheduler: a worker reads teacher {model_id(model)[:16]} under its name, the plan "
            f"has {plan.teacher_id[:16]}; give workers the files of this process"
        )
    return clouds, model, groups


def _compute(
    read: tuple[Clouds, Model, tuple[Any, ...]],
    backend: str,
    engine: str,
    parts: str,
    plan: Plan,
    augment: AugmentConfig,
    view: int,
    first: int,
    stop: int,
) -> str:
    """Compute and commit one shard; return its digest; runs on a worker."""
    from distributed import get_worker

    if get_worker().state.nthreads > 1 and not one_blas_thread():
        raise BackendError(
            "scheduler: a worker has several threads and BLAS more than one for each, so bits "
            "would not repeat; start workers with --nthreads 1"
        )
    clouds, model, groups = read
    xp = load(backend)
    with blas_on_one_thread():
        teacher = model_teacher(on_module(model, xp), engine)
        *arrays, kl = compute_shard(
            clouds, teacher, plan, augment, view, first, stop, xp, 1, groups=groups
        )
        made_with = {**provenance_of(xp, engine), "max_kl": kl}
        commit_shard(parts, plan, view, first, *arrays, made_with)  # type: ignore[call-arg, arg-type]
    return files.digest_of(os.path.join(parts, shard_name(view, first)))


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Yield a client of a scheduler that answers and has a worker.  Raises BackendError."""
    try:
        from distributed import Client
    except ImportError as reason:
        raise BackendError(
            f"scheduler: Dask is not installed ({reason}); in the checkout: "
            "pip install -e '.[dask]'"
        ) from reason
    # our own one-line error is enough
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answer.put(Client(address, timeout=PATIENCE))
        except Exception as reason:
            answer.put(reason)

    # in a thread, because a server of another protocol may block it forever
    threading.Thread(target=connect, daemon=True).start()
    try:
        client = answer.get(timeout=PATIENCE + 5)
    except queue.Empty:
        client = TimeoutError("it speaks, but not as a scheduler does: is this its port?")
    if isinstance(client, Exception):
        why = " ".join(str(client).split())
        raise BackendError(
            f"scheduler: {address} does not answer ({why}); start it: dask scheduler"
        ) from client
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as reason:
            raise BackendError(
                f"scheduler: {address} has no worker; start one: dask worker {address} --nthreads 1"
            ) from reason
        yield client


def _next(done: queue.SimpleQueue[Any], client: Any, address: str) -> Any:
    """Return the task that finishes next.  Raises BackendError if no worker is left."""
    while True:
        try:
            return done.get(timeout=PATIENCE)
        except queue.Empty:
            if not client.scheduler_info()["workers"]:
                raise BackendError(
                    f"scheduler: {address} has no worker left; look at their output (do they have "
                    "minipc?), start one, and type the same again"
                ) from None


def _seen(path: str, digest: str) -> None:
    """Raise DataError unless this process sees the shard that a worker committed.

    A shared folder may show a new file late, so this waits up to LATE seconds.
    """
    until = time.monotonic() + LATE
    while not (here := os.path.lexists(path)) and time.monotonic() < until:
        time.sleep(0.2)
    actual = files.digest_of(path)[:16] if here else "none"
    if not digest.startswith(actual):
        raise DataError(
            f"{path}: a worker committed {digest[:16]}, found {actual}; start workers on a folder "
            "that they share with this process, under the same name, and run the same command again"
        )
