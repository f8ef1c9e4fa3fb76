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

    def __init__(self, work: Workspace, function: Callable[[], Any]) -> None:
        cuda = work.xp.cuda
        # what the function allocates must stay its own: no pool may give it to others
        self.memory = cuda.MemoryPool()
        stream = cuda.Stream(non_blocking=True)
        with cuda.using_allocator(self.memory.malloc), stream:
            # CuPy refuses to, while a stream captures
            cuda.cublas.setStream(cuda.device.get_cublas_handle(), stream.ptr)
            stream.begin_capture()
            try:
                self.result = function()
            finally:
                self.graph = stream.end_capture()
        # another buffer may take the place of one of these, whose memory the graph still uses
        self.kept = [*work.made.values(), *work.joined.values(), *vars(work.own).values()]

    def replay(self) -> Any:
        """Have the device do it; return what function() returned, whose arrays are rewritten."""
        self.graph.launch()
        return self.result


def captured(work: Workspace, function: Callable[[], Any]) -> Graph | None:
    """Return the Graph of function, or None with a warning where its capture fails.

    Nothing was done then, and function() has the same result one operation at a time.
    """
    try:
        return Graph(work, function)
    except Exception as reason:  # the many classes of CuPy's errors
        warnings.warn(
            f"no CUDA graph ({_text(reason)}): the same operations run one at a time, and slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


@cache
def why_not(xp: Any) -> str:
    """Return why module xp cannot capture graphs, "" if it can, by a trial of a product."""
    if not kernels.on_device(xp):
        return "it compiles no kernels"
    a, out = xp.ones((2, 3, 4), np.float32), xp.zeros((2, 3, 3), np.float32)
    work = Workspace(xp)
    try:
        kernels.multiply(a, a.swapaxes(1, 2), out)  # compiled and loaded outside
        graph = Graph(work, lambda: kernels.multiply(a, a.swapaxes(1, 2), out))
        out[...] = 0
        graph.replay()
    except Exception as reason:  # as above
        return _text(reason)
    return "" if bool((out == 4).all()) else "a captured product was wrong"


def _text(reason: Exception) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
