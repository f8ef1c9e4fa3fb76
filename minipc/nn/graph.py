"""What a device repeats, as one CUDA graph: the host starts one operation instead of a hundred.

A graph keeps kernels in their order, the numbers that they were given by value, and the addresses
of what they read and write.  So whatever changes from one replay to the next must lie in arrays
that stay where they are.  The kernels are the same, and so are the bits.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from minipc.nn import kernels
from minipc.nn.fast.workspace import Workspace


class Graph:
    """What function() has a device do, captured and not yet done."""

    def __init__(self, function: Callable[[], Any], *works: Workspace) -> None:
        """works: each Workspace whose buffers function() uses."""
        xp, cuda = works[0].xp, works[0].xp.cuda
        # what the function allocates must stay its own: no pool may give it to others
        self.memory = cuda.MemoryPool()
        stream = cuda.Stream(non_blocking=True)
        cuda.set_pinned_memory_allocator(_refuse)
        try:
            with cuda.using_allocator(self.memory.malloc), stream:
                # CuPy refuses to, while a stream captures
                cuda.cublas.setStream(cuda.device.get_cublas_handle(), stream.ptr)
                stream.begin_capture()
                try:
                    self.result = function()
                finally:
                    self.graph = stream.end_capture()
        finally:
            cuda.set_pinned_memory_allocator(xp.get_default_pinned_memory_pool().malloc)
        # other buffers may take the places of these, whose memory the graph still uses
        self.kept = [dict(buffers) for work in works for buffers in _buffers(work)]

    def replay(self) -> Any:
        """Have the device do it; return what function() returned, whose arrays are rewritten."""
        self.graph.launch()
        return self.result


def captured(function: Callable[[], Any], *works: Workspace) -> Graph | None:
    """Return the Graph of function, or None with a warning where its capture fails.

    Nothing was done then, and function() has the same result one operation at a time.
    """
    before = [(buffers, dict(buffers)) for work in works for buffers in _buffers(work)]
    try:
        return Graph(function, *works)
    except Exception as reason:  # the many classes of CuPy's errors
        for buffers, old in before:  # nobody filled those that the function made
            buffers.clear()
            buffers.update(old)
        warnings.warn(
            f"no CUDA graph ({_text(reason)}): the same operations run one at a time, and slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _buffers(work: Workspace) -> list[dict]:
    """Return the dicts in which a Workspace keeps this thread's arrays on a device."""
    return [work.made, work.joined, work.tables, vars(work.own)]


def _refuse(size: int) -> Any:
    """Stand in for the allocator of what CuPy sends from the host.

    A graph would send it again from memory that was given to others long ago.
    """
    raise RuntimeError("an array of the host is sent in each call")


@cache
def why_not(xp: Any) -> str:
    """Return why module xp cannot capture graphs, "" if it can, by a trial of a product."""
    if not kernels.on_device(xp):
        return "it compiles no kernels"
    a, out = xp.ones((2, 3, 4), np.float32), xp.zeros((2, 3, 3), np.float32)
    work = Workspace(xp)
    try:
        kernels.multiply(a, a.swapaxes(1, 2), out)  # compiled and loaded outside
        graph = Graph(lambda: kernels.multiply(a, a.swapaxes(1, 2), out), work)
        out[...] = 0
        graph.replay()
    except Exception as reason:  # as above
        return _text(reason)
    return "" if bool((out == 4).all()) else "a captured product was wrong"


def _text(reason: Exception) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
