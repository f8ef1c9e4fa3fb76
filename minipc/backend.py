"""Arrays on the host or on a device, and the threads that work on them.

The only file that names CuPy.  A backend is the array module itself, numpy or cupy: functions of
nn/ look it up from the arrays they are given, and nothing here ever falls back silently.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from minipc.errors import BackendError, UsageError
from minipc.installed import cupy_distributions

# clouds computed together by evaluation and recording, whatever the batch size or the threads
BLOCK = 32
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
# variables of CuPy and of CUDA's libraries; set to 0 they do no harm
OTHER_PRODUCTS = (
    "CUPY_TF32",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "CUBLAS_EMULATE_DOUBLE_PRECISION",
)
INSTALL = "pip install -e '.[gpu13]' (a driver from 580 on), or '.[gpu12]'"
# (what a failure of CuPy says, what to do); the first that is found counts
REMEDIES = (
    (r"CUDA_VISIBLE_DEVICES", "name a device there, or unset it"),
    (r"NVIDIA driver|no CUDA|libcuda\.", "it needs an NVIDIA card and NVIDIA's driver"),
    (r"cudaErrorInsufficientDriver|UnsupportedPtxVersion", "update the driver, or take '.[gpu12]'"),
    (
        r"gpu-architecture|NoKernelImage",
        "cards before Turing need '.[gpu12]' instead of '.[gpu13]'",
    ),
    (
        r"[Oo]ut of memory|MemoryAllocation|ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED|Unavailable",
        "end what fills the card (nvidia-smi names it), or name another in CUDA_VISIBLE_DEVICES",
    ),
    (r"CUPY_CACHE_DIR", "set CUPY_CACHE_DIR to a folder that can be written"),
    (
        r"lib(nvrtc|cu)|\.so\b|\.h\b|CUDA_PATH|CUDA root",
        f"CUDA's libraries come with the extra: {INSTALL}",
    ),
)


class _NoDevice(RuntimeError):
    """No device, so that CuPy is only installed: auto need not tell."""


def load(name: str, say: Callable[[str], Any] = lambda line: None) -> Any:
    """Return the array module for "numpy", "cupy" or "auto" (cupy where a device computes).

    Calls say(line) if auto takes numpy although there is a device.  Raises BackendError if name is
    cupy and it cannot run, or if a variable may make its products those of TF32; UsageError for an
    unknown name.
    """
    if name not in ("auto", "numpy", "cupy"):
        raise UsageError(f"backend: expected auto, numpy or cupy, got {name!r}")
    if name == "numpy":
        return np
    try:
        cupy = _computing_cupy()
    except Exception as reason:
        # An import can fail with OSError (missing library) and a device with CUDARuntimeError.
        text = " ".join(str(reason).split()) or type(reason).__name__
        found = [remedy for pattern, remedy in REMEDIES if re.search(pattern, text)]
        remedy = found[0] if found else INSTALL
        if name == "auto":
            if not isinstance(reason, _NoDevice) and getattr(reason, "name", "") != "cupy":
                say(f"backend numpy: CuPy is installed, but {text}; {remedy}")
            return np
        raise BackendError(
            f"backend cupy is not available here: {text}; {remedy}; or use --backend numpy"
        ) from reason
    for switch in OTHER_PRODUCTS:
        if os.environ.get(switch, "0") != "0":
            raise BackendError(
                f"backend cupy: {switch} is set, with which products may keep fewer bits than "
                "their numbers have; unset it, or use --backend numpy"
            )
    return cupy


def _computing_cupy() -> Any:
    """Return cupy after a first computation on its device, which loads all that it needs.

    Raises _NoDevice where there is none, and whatever CuPy raises where it does not compute.
    """
    if len(cupy_distributions()) > 1:
        raise RuntimeError(
            f"{' and '.join(cupy_distributions())} are installed over each other: uninstall both, "
            "then install one"
        )
    try:
        import cupy  # succeeds without a GPU
    except OSError as reason:
        raise _of_cache(reason) from reason
    runtime = cupy.cuda.runtime
    why = ""
    try:
        devices = runtime.getDeviceCount()
    except RuntimeError as reason:
        if runtime.driverGetVersion() == 0:
            raise _NoDevice("there is no NVIDIA driver") from reason
        if "cudaErrorNoDevice" not in str(reason):
            raise
        devices, why = 0, str(reason)
    if devices < 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            why = f"CUDA_VISIBLE_DEVICES={visible!r} shows no device"
        raise _NoDevice(why or "no CUDA device found")
    try:
        ones = cupy.ones((2, 2), np.float32)
        float((ones @ ones + ones).sum())  # needs the compiler and cuBLAS, which a wheel may lack
    except OSError as reason:
        raise _of_cache(reason) from reason
    return cupy


def _of_cache(reason: OSError) -> OSError:
    """Return an OSError of CuPy as one that names the folder of its compiled kernels.

    A missing library is an OSError without a number.
    """
    if reason.errno is None:
        return reason
    return OSError(f"CUPY_CACHE_DIR, for compiled kernels, cannot be written ({reason.strerror})")


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


def worker_threads(xp: Any, asked: int | None = None) -> int:
    """Return the threads that compute: as many as asked, or as the CPUs of this process.

    Beside a device it is one, whatever was asked: its kernels run one after the other.
    """
    if xp is not np:
        return 1
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


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
