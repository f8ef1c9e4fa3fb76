"""Memory and worker threads that the fast engine keeps from one step to the next.

A fresh array of many megabytes costs more in page faults than the arithmetic that fills it, so a
buffer is made once and asked for by name.  Work is split by the shape of the data alone and partial
results come back in that order: no number of threads changes a bit.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import prod

import numpy as np

from minipc.backend import blas_kernel

# Kernels of OpenBLAS that multiply small matrices where they lie, without copying them first.
SMALL_MATRIX_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")


class Workspace:
    """Named buffers of array module xp, and `threads` threads to work on them.

    One Workspace serves one training run.  Each step uses the same buffers again: arrays returned
    by the step before are overwritten.  With one thread, the default, no thread is started.
    """

    def __init__(self, xp=np, threads=1):
        self.xp, self.threads = xp, threads
        on_host = xp is np
        # Elements computed together: on the host as few as repay the interpreter, which threads
        # take in turns; a device takes all.
        self.block = 5 * 2**18 if on_host else 2**31
        self.slice = (
            2**16 if on_host else 2**22
        )  # elements of one cloud, or of one array, that stay in a cache
        # Rows of a product multiplied at once, None for all (products.py).
        self.group = 4 if on_host and blas_kernel() in SMALL_MATRIX_KERNELS else None
        self._generations = {}  # {name: forwards, and backwards that end what a forward wrote}
        self._arrays, self._own = {}, threading.local()
        self._pool = ThreadPoolExecutor(threads - 1, "minipc-step") if threads > 1 else None

    def generation(self, name):
        """Return how often what is kept under this name was begun or overwritten."""
        return self._generations.get(name, 0)

    def next_generation(self, name):
        """Count what is kept under this name as overwritten, and return its new generation."""
        self._generations[name] = self.generation(name) + 1
        return self._generations[name]

    def array(self, name, shape, dtype, fill=None):
        """Return the buffer of this name, made and filled anew only where shape or dtype
        changed.
        """
        found = self._arrays.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            found = self._arrays[name] = self.xp.empty(shape, dtype)
            if fill is not None:
                found[...] = fill
        return found

    def scratch(self, name, shape, dtype):
        """Return a buffer of this thread's own, made anew only where it has to be larger."""
        found, size = self._own.__dict__.get(name), prod(shape)
        if found is None or found.size < size or found.dtype != dtype:
            found = self._own.__dict__[name] = self.xp.empty(size, dtype)
        return found[:size].reshape(shape)

    def map(self, function, items):
        """Return [function(item) for item in items], computed by all threads.

        Each thread takes the next item when it is free, so a core that is busy with something
        else takes fewer.
        """
        if self._pool is None or len(items) == 1:
            return [function(item) for item in items]
        results, left = [None] * len(items), iter(range(len(items)))

        def work():
            for number in left:
                results[number] = function(items[number])

        # With a copy of the context each, in which NumPy keeps what to do about overflow.
        helpers = [
            self._pool.submit(copy_context().run, work)
            for _ in range(min(self.threads, len(items)) - 1)
        ]
        try:
            work()
        finally:
            # One that has not begun finds nothing to do; one that has must end before buffers are
            # used again.
            failed = [helper.exception() for helper in helpers if not helper.cancel()]
        for error in failed:
            if error is not None:
                raise error
        return results
