"""Memory and worker threads that the fast engine keeps from one step to the next.

A fresh array of many megabytes costs more in page faults than the arithmetic that fills it, so each
buffer is made once and has a name.  The split of the work depends only on the shape of the data,
and partial results are combined in a fixed order: the number of threads does not change the result.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import prod
from typing import Any

import numpy as np

from minipc.backend import blas_kernel

# Kernels of OpenBLAS that multiply small matrices where they lie, without copying them first.
SMALL_MATRIX_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")


class Workspace:
    """Named buffers of array module xp, and `threads` threads to work on them.

    One Workspace serves one training run.  Each step uses the same buffers again: arrays returned
    by the step before are overwritten.  With one thread, the default, no thread is started.
    """

    def __init__(self, xp: Any = np, threads: int = 1) -> None:
        self.xp, self.threads = xp, threads
        on_host = xp is np
        # Elements computed together.  On the host: few, but enough to outweigh the cost of the
        # interpreter lock.  On a device: all.
        self.block = 5 * 2**18 if on_host else 2**31
        # elements of one cloud, or of one array, that stay in a cache
        self.slice = 2**16 if on_host else 2**22
        # Rows of a product multiplied at once; None means all rows (products.py).
        self.group = 4 if on_host and blas_kernel() in SMALL_MATRIX_KERNELS else None
        # {name: how many forwards began and backwards overwrote it}
        self._generations: dict[str, int] = {}
        # {name: (memory, the buffer in it, layout)}
        self.made: dict[str, tuple[Any, Any, Any]] = {}
        # {name: (array, {name: view})}, see join() in kernels.py
        self.joined: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.tables: dict[Any, Any] = {}  # of addresses on a device, see outer() in kernels.py
        # whether held() of kernels.py finds arrays sent, and steps replayed: distil/steps.py
        self.holds = False
        self.replayed: Any = None
        self.own = threading.local()  # {name: scratch} of each thread
        self._pool = ThreadPoolExecutor(threads - 1, "minipc-step") if threads > 1 else None

    def generation(self, name: str) -> int:
        """Return how many times the data of this name was started or overwritten."""
        return self._generations.get(name, 0)

    def next_generation(self, name: str) -> int:
        """Mark the data of this name as overwritten and return its new generation."""
        self._generations[name] = self.generation(name) + 1
        return self._generations[name]

    def array(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        fill: Any = None,
        layout: Any = None,
    ) -> Any:
        """Return the buffer of this name; a new shape, dtype or layout makes and fills a new one.

        layout: which parts of the buffer keep what it was filled with.  A new buffer overwrites the
        old one where that is large enough, so networks whose widths change need no new memory.
        """
        size, dtype = prod(shape), np.dtype(dtype)
        memory, buffer, kept = self.made.get(name, (None, None, None))
        if buffer is None or (buffer.shape, buffer.dtype, kept) != (shape, dtype, layout):
            if memory is None or memory.dtype != dtype or memory.size < size:
                memory = self.xp.empty(size, dtype)
            buffer = memory[:size].reshape(shape)
            if fill is not None:
                buffer[...] = fill
            self.made[name] = memory, buffer, layout  # filled before another thread can find it
        return buffer

    def zeros(self, count: int, dtype: Any) -> Any:
        """Return (count,) zeros, not to be written: see advancing() in fused.py."""
        return self.array(f"zeros {count} {np.dtype(dtype)}", (count,), dtype, fill=0)

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a buffer private to this thread; a larger size or new dtype makes a new one."""
        buffer, size = self.own.__dict__.get(name), prod(shape)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self.own.__dict__[name] = self.xp.empty(size, dtype)
        return buffer[:size].reshape(shape)

    def map(self, function: Callable[[Any], Any], items: Sequence) -> list:
        """Return [function(item) for item in items], computed by all threads.

        Each free thread takes the next item, so a busy core takes fewer items.
        """
        if self._pool is None or len(items) == 1:
            return [function(item) for item in items]
        results: list[Any] = [None] * len(items)
        left = iter(range(len(items)))

        def work() -> None:
            for number in left:
                results[number] = function(items[number])

        # Each thread gets a copy of the context: NumPy keeps its overflow settings there.
        helpers = [
            self._pool.submit(copy_context().run, work)
            for _ in range(min(self.threads, len(items)) - 1)
        ]
        try:
            work()
        finally:
            # Cancel the helpers that have not begun.  The others must end before the next step
            # uses the buffers.
            failed = [helper.exception() for helper in helpers if not helper.cancel()]
        for error in failed:
            if error is not None:
                raise error
        return results
