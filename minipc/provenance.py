"""The software and hardware that computed a result, and whether two machines round alike."""

import os
import platform
from typing import Any

import numpy as np

from minipc import __version__
from minipc.backend import blas_kernel, one_blas_thread
from minipc.installed import cupy_distributions


def blas_build() -> tuple[str, str]:
    """Return name and version of the BLAS that NumPy was built with."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return blas.get("name", "unknown"), blas.get("version", "")


def provenance(xp: Any) -> dict[str, Any]:
    """Return versions, kernels and device of the arithmetic; no dates, host names or paths.

    Where two of these are equal and one_blas_thread holds, the same arithmetic gives the same bits.
    """
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    on_host = {
        "minipc": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": " ".join(blas_build()).strip(),
        "kernel": blas_kernel(),
        # the widest that NumPy's loops use
        "simd": ["", *simd.get("baseline", []), *simd.get("found", [])][-1],
        "one_blas_thread": one_blas_thread(),
        "device": platform.machine(),
    }
    return on_host if xp is np else on_host | _device_provenance(xp)


def _device_provenance(xp: Any) -> dict[str, Any]:
    """Return the libraries of a device; another version may round differently."""
    cuda = xp.cuda
    return {
        "device": cuda.runtime.getDeviceProperties(cuda.runtime.getDevice())["name"].decode(),
        "cupy": xp.__version__,
        "cupy_distribution": " and ".join(
            f"{name} {number}" for name, number in cupy_distributions().items()
        ),
        "cuda_runtime": cuda.runtime.runtimeGetVersion(),
        "cuda_driver": cuda.runtime.driverGetVersion(),
        "nvrtc": ".".join(map(str, cuda.nvrtc.getVersion())),
        "cublas": cuda.cublas.getVersion(cuda.Device().cublas_handle),
        # of this size cuBLAS chooses its algorithms, and so the bits of a product
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "accelerators": os.environ.get("CUPY_ACCELERATORS", ""),  # "" is CuPy's own choice
        # CuPy's own switch: 10-bit products, off by default
        "tf32": os.environ.get("CUPY_TF32", "0"),
    }


def unlike(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Return why bits may differ between two provenances, "" where they do not.

    An entry that one of them lacks is unknown, so it counts as different (older files have fewer).
    """
    different = [
        f"{name.replace('_', ' ')} {there.get(name, 'not said')} there, "
        f"{here.get(name, 'not said')} here"
        for name in sorted(there.keys() | here.keys())
        if (there.get(name), name in there) != (here.get(name), name in here)
    ]
    if not different and not here.get("one_blas_thread"):
        different = ["BLAS has several threads, whose sums do not repeat"]
    return "; ".join(different)
