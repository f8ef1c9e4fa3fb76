"""The environment of minipc: versions, BLAS, devices, variables, the file system of this folder.

It is for bug reports, so it leaves out the names of hosts, users and folders.
"""

import errno
import os
import platform
import re
import tempfile
from collections.abc import Callable
from typing import Any

from minipc import __version__
from minipc.errors import BackendError, short
from minipc.installed import cupy_distributions, version_of
from minipc.storage import locks

STANDS_ON = ("NumPy", "SciPy", "h5py", "click")
# what an extra brings; looked up, never imported
OPTIONAL = (
    *("threadpoolctl", "distributed", "torch", "onnx", "onnxruntime", "safetensors"),
    *("trimesh", "laspy"),
)


def versions() -> str:
    """Return one line of the installed versions; nothing is imported."""
    numbers = {name: version_of(name) or "none" for name in STANDS_ON}
    numbers["CuPy"] = " and ".join(cupy_distributions().values()) or "none"
    packages = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return f"minipc {__version__}, Python {platform.python_version()}, {packages}"


def examine() -> dict[str, Any]:
    """Return the values of this process and of the current folder, a dict for JSON.

    It makes and removes a temporary file.  report/lines/doctor.py prints the values for people.
    """
    import h5py  # late, here and in _devices, so that --version does not wait for these imports
    import numpy as np
    import scipy

    from minipc.backend import BLAS_THREADS, worker_threads
    from minipc.provenance import provenance

    made_with = provenance(np)
    return {
        "minipc": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpus": {"usable": worker_threads(np), "present": os.cpu_count()},
        "numpy": np.__version__,
        "blas": made_with["blas"],
        "kernel": made_with["kernel"],
        "simd": made_with["simd"],
        "one_blas_thread": made_with["one_blas_thread"],
        "blas_variables": {
            name: _safe(os.environ[name]) for name in BLAS_THREADS if name in os.environ
        },
        "scipy": scipy.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "click": version_of("click"),
        "cupy": {"distributions": cupy_distributions(), **_devices()},
        "optional": {name: version_of(name) for name in OPTIONAL},
        "variables": {
            name: _safe(value)
            for name, value in sorted(os.environ.items())
            if name.startswith("MINIPC_")
        },
        "folder": _folder(),
    }


def _devices() -> dict[str, Any]:
    """Return the devices that CuPy computes on, with their memory, or the reason why not.

    graphs: "yes", or why steps and recorded blocks are no CUDA graphs there.
    """
    from minipc.backend import load
    from minipc.nn.graph import why_not

    try:
        cupy = load("cupy")
    except BackendError as reason:
        return {"devices": [], "reason": _safe(str(reason), 300), "graphs": "no device"}
    runtime = cupy.cuda.runtime
    devices = [runtime.getDeviceProperties(device) for device in range(runtime.getDeviceCount())]
    named = [
        {"name": device["name"].decode(), "bytes": device["totalGlobalMem"]} for device in devices
    ]
    return {"devices": named, "reason": None, "graphs": _safe(why_not(cupy), 300) or "yes"}


def _folder() -> dict[str, str]:
    """Return {feature: "yes", or why the file system of this folder does not have it}."""
    try:
        with tempfile.NamedTemporaryFile(dir=".", prefix=".minipc-doctor-") as file:
            return {
                "locks": _works(_lock_twice, file),
                "posix_fallocate": _works(lambda: os.posix_fallocate(file.fileno(), 0, 4096)),
            }
    except OSError as reason:
        return dict.fromkeys(
            ("locks", "posix_fallocate"), f"no file can be made here ({reason.strerror})"
        )


def _works(function: Callable[..., None], *arguments: Any) -> str:
    try:
        function(*arguments)
    except (OSError, AttributeError) as reason:  # AttributeError: not on this platform
        return f"no ({getattr(reason, 'strerror', None) or 'not on this platform'})"
    return "yes"


def _lock_twice(file: Any) -> None:
    """Raise OSError unless a second descriptor of a locked file is refused the lock."""
    locks.lock(file, wait=False)
    with open(file.name, "rb") as again:
        try:
            locks.lock(again, wait=False)
        except BlockingIOError:
            return
    raise OSError(errno.ENOLCK, "a lock was given twice")


def _safe(text: str, most: int = 60) -> str:
    """Return text for a bug report: one line, without paths, cut to most characters."""
    return short(" ".join(re.sub(r"\S*[/\\~]\S*", "(path)", text).split()), most)
