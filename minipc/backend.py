"""Arrays on the host or on a device, and the threads that work on them.

The only file that names CuPy.  A backend is the array module itself, numpy or cupy: functions of
nn/ look it up from the arrays they are given, and nothing here ever falls back silently.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from minipc.errors import BackendError, UsageError

# clouds computed together by evaluation and recording, whatever the batch size or the threads
BLOCK = 32
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
REMEDY = (
    "pip install -e '.[gpu12]' or '.[gpu13]' in the checkout, on a machine with an NVIDIA driver, "
    "or use --backend numpy"
)


def load(name: str, say: Callable[[str], Any] = lambda line: None) -> Any:
    """Return the array module for "numpy", "cupy" or "auto" (cupy where a device computes).

    Calls say(line) if auto takes numpy although CuPy is installed.  Raises BackendError if name is
    cupy and it cannot run, UsageError for an unknown name.
    """
    if name not in ("auto", "numpy", "cupy"):
        raise UsageError(f"backend: expected auto, numpy or cupy, got {name!r}")
    if name == "numpy":
        return np
    try:
        import cupy  # succeeds without a GPU, so the next line looks for a device

        if cupy.cuda.runtime.getDeviceCount() < 1:
            raise RuntimeError("no CUDA device found")
        ones = cupy.ones((2, 2), np.float32)
        float((ones @ ones + ones).sum())  # needs the compiler and cuBLAS, which a wheel may lack
    except Exception as reason:
        # An import can fail with OSError (missing library) and a device with CUDARuntimeError.
        text = " ".join(str(reason).split()) or type(reason).__name__
        if name == "auto":
            if not isinstance(reason, ImportError):
                say(f"backend numpy: CuPy is installed, but {text}")
            return np
        raise BackendError(f"backend cupy is not available here: {text}; {REMEDY}") from reason
    return cupy


def module_of(*arrays: Any) -> Any:
    """Return the module that owns arrays, numpy or cupy; raise BackendError for a mixture."""
    cupy = sys.modules.get("cupy")  # if it was never imported, no array is CuPy's
    on_device = {cupy is not None and isinstance(array, cupy.ndarray) for array in arrays}
    if len(on_device) != 1:
        raise BackendError(
            "arrays from NumPy and CuPy were mixed in one call; move them with xp.asarray"
        )
    return cupy if on_device.pop() else np


def to_host(array: Any) -> np.ndarray:
    """Return array as a numpy array; the one way back from a device."""
    xp = module_of(array)
    return array if xp is np else xp.asnumpy(array)


def tree_to(xp: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Return a dict of arrays moved to module xp."""
    return {name: xp.asarray(to_host(array)) for name, array in arrays.items()}


def default_threads(xp: Any) -> int:
    """Return the worker threads to use: the CPUs of this process, or one beside a device."""
    return len(os.sched_getaffinity(0)) if xp is np and hasattr(os, "sched_getaffinity") else 1


def ordered_map(function: Callable[[Any], Any], items: Iterable, threads: int) -> Iterator:
    """Yield function(item) in the order of items, computed by worker threads.

    NumPy releases the interpreter lock, so blocks run in parallel; results do not depend on
    threads because no block sees another.
    """
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)


def one_blas_thread() -> bool:
    """Return whether BLAS uses one thread, by its variables or by threadpoolctl.

    Bitwise repetition on one machine is promised only then: the same product differs in the last
    place between one BLAS thread and two.  The command line sets these variables; for a notebook
    see blas_on_one_thread().
    """
    if all(os.environ.get(name) == "1" for name in BLAS_THREADS):
        return True
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return False
    return all(
        library["num_threads"] == 1
        for library in threadpool_info()
        if library["user_api"] == "blas"
    )


@contextmanager
def blas_on_one_thread(say: Callable[[str], Any] | None = None) -> Iterator[None]:
    """Limit BLAS to one thread inside this block; if that is impossible, call say(line) once.

    For programs that import NumPy before minipc can set the variables: threadpoolctl (the extra
    "threads") changes a BLAS that is already loaded.
    """
    with ExitStack() as limits:
        if not one_blas_thread():
            try:
                from threadpoolctl import threadpool_limits
            except ImportError:
                if say:
                    say(
                        "BLAS may use several threads: results are not promised to repeat bit for "
                        "bit, and steps are slower beside other work; in the checkout pip install "
                        "-e '.[threads]', or set OPENBLAS_NUM_THREADS, MKL_NUM_THREADS and "
                        "OMP_NUM_THREADS to 1 before NumPy is imported"
                    )
            else:
                limits.enter_context(threadpool_limits(1, "blas"))
        yield


@cache
def blas_kernel() -> str:
    """Return the name of OpenBLAS's kernel for this processor, "" with another BLAS.

    One build of OpenBLAS holds kernels for many processors; they round differently and are fast at
    different shapes.  We look up a symbol in NumPy's extension and its dependencies, so
    the answer is about the library that NumPy loaded.
    """
    library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    for name in (
        "scipy_openblas_get_corename64_",
        "scipy_openblas_get_corename",
        "openblas_get_corename64_",
        "openblas_get_corename",
    ):
        function = getattr(library, name, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            return function().decode()
    return ""


def padded_block(rows: np.ndarray, first: int, size: int) -> np.ndarray:
    """Return rows[first : first + size], with the last row repeated if there are too few.

    Every compute block has the same shape, because the result of a matrix product can depend on
    how many rows it has; the caller drops the results of repeated rows.
    """
    block = rows[first : first + size]
    if len(block) == size:
        return block
    return np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)])
