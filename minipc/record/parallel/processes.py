"""Several processes on one recording: each computes its share of the shards into one folder.

The runs of a study are processes too, as many at a time as asked (verbs/compare.py).

Only that folder coordinates the processes.  Each shard is committed whole, and two processes that
compute the same shard write the same bytes.  So a worker may die at any moment: the caller computes
the shards that are still missing and finalises the record.

Why not concurrent.futures.ProcessPoolExecutor?  If one of its processes is killed, it ends all the
others and does not report the signal.  Before Python 3.14 it cannot stop its processes at once, so
Ctrl-C would wait for every share.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from minipc.errors import MinipcError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

POLL = 0.2  # seconds between two looks at the workers


def run_workers(
    function: Callable[[int, int], Any],
    count: int,
    *,
    say: Callable[[str], None],
    progress: Callable[[], None],
    at_a_time: int | None = None,
    names: Sequence[str] | None = None,
    left: str = "what it left is computed here",
) -> None:
    """Run function(number, count) for number 0 .. count - 1, each in a new process; wait for all.

    function must be importable and picklable (a functools.partial is fine).  If it raises a
    MinipcError, or if a signal ends its process, say() reports that and the caller checks what is
    missing.  progress() is called while workers run.  An exception here, including Ctrl-C, ends all
    workers, and so does the death of this process.  at_a_time: processes at the same time, None:
    all; names: of the processes, in what is said; left: what becomes of the work of a process that
    did not end by itself.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and a device's state
    workers: list[tuple[int, Any, Any]] = []
    waiting, said = list(range(count)), set()
    try:
        while waiting or workers:
            while waiting and len(workers) < (at_a_time or count):
                number = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_worker, args=(function, number, count, sender), daemon=True
                )
                process.start()
                sender.close()
                workers.append((number, process, receiver))
            time.sleep(POLL)
            progress()
            for ended in [worker for worker in workers if not worker[1].is_alive()]:
                number, process, receiver = ended
                process.join()
                failure = _failure(receiver)
                name = names[number] if names else f"worker {number + 1} of {count}"
                if failure:
                    if names or failure not in said:
                        say(f"{name}: {failure}")
                    said.add(failure)
                elif process.exitcode:
                    how = (
                        f"signal {-process.exitcode}"
                        if process.exitcode < 0
                        else f"exit code {process.exitcode}"
                    )
                    say(f"{name}: ended with {how}; {left}")
                workers.remove(ended)
                receiver.close()
    finally:
        for _, process, receiver in workers:
            process.kill()
            process.join()
            receiver.close()


def _worker(function: Callable[[int, int], Any], number: int, count: int, sender: Any) -> None:
    """Compute one share; send an expected failure to the parent as one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(number, count)
    except MinipcError as reason:
        sender.send(str(reason))


def _end_with_parent() -> None:
    """Wait for the parent's end, and end: a signal may kill it before it can end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # we are a worker
    parent.join()
    os._exit(1)


def _failure(receiver: Any) -> str | None:
    """Return the line that a worker sent, or None."""
    try:
        return receiver.recv() if receiver.poll() else None
    except EOFError:
        return None


def device_of(worker: int, devices: int, visible: str | None) -> str:
    """Return CUDA_VISIBLE_DEVICES for a worker: one device, in turn.

    devices: how many this process sees.  visible: its CUDA_VISIBLE_DEVICES, or None.  CUDA ends the
    list at its first entry that is no device, so "0,-1,1" shows one.
    """
    names = visible.split(",")[:devices] if visible else list(map(str, range(devices)))
    return names[worker % len(names)].strip()


def use_device(worker: int, devices: int) -> None:
    """Let this process see only one device.  Call it before CuPy is loaded."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device_of(
        worker, devices, os.environ.get("CUDA_VISIBLE_DEVICES")
    )
