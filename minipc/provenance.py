"""What arithmetic was done with, and whether that of two places rounds alike."""

import os
import platform

import numpy as np

from minipc import __version__
from minipc.backend import blas_kernel, one_blas_thread
from minipc.installed import cupy_distributions


def blas_build():
    """Return name and version of the BLAS that NumPy was built with."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return blas.get("name", "unknown"), blas.get("version", "")


def provenance(xp):
    """Return what arithmetic was done with: versions, kernels and device; no dates, hosts or paths.

    Where two of these are equal and one_blas_thread holds, the same arithmetic gives the same bits.
    """
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    found = {
        "minipc": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": " ".join(blas_build()).strip(),
        "kernel": blas_kernel(),
        "simd": ["", *simd.get("baseline", []), *simd.get("found", [])][
            -1
        ],  # the widest that NumPy's loops use
        "one_blas_thread": one_blas_thread(),
        "device": platform.machine(),
    }
    return found if xp is np else found | _device_provenance(xp)


def _device_provenance(xp):
    """Return the libraries of a device; another version of one may round otherwise."""
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
        "accelerators": os.environ.get("CUPY_ACCELERATORS", ""),  # "" is CuPy's own choice
        "tf32": os.environ.get(
            "CUPY_TF32", "0"
        ),  # CuPy's own switch: 10-bit products, off by default
    }


def unlike(there, here):
    """Return why bits may differ between two provenances, "" where they do not.

    An entry that one of them lacks (files of earlier versions say less) is unknown, and so not the
    same.
    """
    other = [
        f"{name.replace('_', ' ')} {there.get(name, 'not said')} there, "
        f"{here.get(name, 'not said')} here"
        for name in sorted(there.keys() | here.keys())
        if (there.get(name), name in there) != (here.get(name), name in here)
    ]
    if not other and not here.get("one_blas_thread"):
        other = ["BLAS has several threads, whose sums do not repeat"]
    return "; ".join(other)
