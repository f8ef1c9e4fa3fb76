"""Several processes on one recording: each computes its share of the shards into the same place.

The store holds them together: shards are committed whole, two of a kind are the same bytes, and
whoever comes last finalises.  So a worker may die at any moment; what it leaves undone is computed
by the caller.

Why not concurrent.futures.ProcessPoolExecutor: where one of its processes is killed it ends all
others, and it does not say by which signal; and before Python 3.14 it cannot end its processes at
once, so Ctrl-C would wait for every share.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING

from minipc.errors import MinipcError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

POLL = 0.2  # seconds between two looks at the workers


def run_workers(
    function: Callable[[int, int], Any],
    count: int,
    *,
    say: Callable[[str], None],
    progress: Callable[[], None],
) -> None:
    """Run function(number, count) for number 0 .. count - 1 in a new process each; wait for all.

    function: importable, with arguments that can be pickled (functools.partial); a MinipcError that
    it raises is said, and so is a signal that ended it: the caller looks at what is missing.
    progress() is called while they run.  An exception here, Ctrl-C too, ends them all.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and a device's state
    workers = []
    try:
        for number in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_worker, args=(function, number, count, sender), daemon=True
            )
            process.start()
            sender.close()
            workers.append((number, process, receiver))
        while any(process.is_alive() for _, process, _ in workers):
            time.sleep(POLL)
            progress()
        said = set()
        for number, process, receiver in workers:
            process.join()
            failure = _failure(receiver)
            if failure:
                if failure not in said:
                    say(f"worker {number + 1} of {count}: {failure}")
                said.add(failure)
            elif process.exitcode:
                how = (
                    f"signal {-process.exitcode}"
                    if process.exitcode < 0
                    else f"exit code {process.exitcode}"
                )
                say(
                    f"worker {number + 1} of {count}: ended with {how}; what it left is computed "
                    "here"
                )
    finally:
        for _, process, receiver in workers:
            process.kill()
            process.join()
            receiver.close()


def _worker(function: Callable[[int, int], Any], number: int, count: int, sender: Any) -> None:
    """Compute one share; tell the parent of an expected failure in one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    try:
        function(number, count)
    except MinipcError as reason:
        sender.send(str(reason))


def _failure(receiver: Any) -> str | None:
    """Return the line that a worker sent, or None."""
    try:
        return receiver.recv() if receiver.poll() else None
    except EOFError:
        return None


def device_of(worker: int, devices: int, visible: str | None) -> str:
    """Return CUDA_VISIBLE_DEVICES for a worker: one device each, in turn.

    visible: its value here, or None.
    """
    names = [name for name in (visible or "").split(",") if name] or [
        str(number) for number in range(devices)
    ]
    return names[worker % len(names)]


def use_device(worker: int, devices: int) -> None:
    """Leave this process one device alone; to be called before CuPy is loaded."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device_of(
        worker, devices, os.environ.get("CUDA_VISIBLE_DEVICES")
    )
