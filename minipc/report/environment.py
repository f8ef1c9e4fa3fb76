"""What minipc stands on here: versions, BLAS, devices, variables, the file system of this folder.

For bug reports, so without names of hosts, users and folders.
"""

import errno
import fcntl
import os
import platform
import re
import tempfile
from typing import NamedTuple

from minipc import __version__
from minipc.errors import BackendError, short
from minipc.installed import cupy_distributions, version_of

STANDS_ON = ("NumPy", "SciPy", "h5py", "click")


class Environment(NamedTuple):
    values: dict  # JSON
    lines: list  # text


def versions():
    """Return one line naming minipc, Python, what minipc stands on, and CuPy, as installed: nothing
    is imported.
    """
    found = {name: version_of(name) or "none" for name in STANDS_ON}
    found["CuPy"] = " and ".join(cupy_distributions().values()) or "none"
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"minipc {__version__}, Python {platform.python_version()}, {told}"


def examine():
    """Return the Environment of this process and of the current folder; a temporary file comes and
    goes.
    """
    import h5py  # here and in _devices, so that --version does not wait for any of these
    import numpy as np
    import scipy

    from minipc.backend import BLAS_THREADS, default_threads
    from minipc.provenance import provenance

    made_with = provenance(np)
    values = {
        "minipc": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpus": {"usable": default_threads(np), "present": os.cpu_count()},
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
        "variables": {
            name: _safe(value)
            for name, value in sorted(os.environ.items())
            if name.startswith("MINIPC_")
        },
        "folder": _folder(),
    }
    return Environment(values, _lines(values))


def _lines(values):
    """Return the lines for people of the values of an Environment."""
    cupy, folder = values["cupy"], values["folder"]
    found = (
        " and ".join(f"{name} {number}" for name, number in cupy["distributions"].items())
        or "not installed"
    )
    devices = [
        f"{device['name']} with {device['bytes'] / 1e9:.0f} GB" for device in cupy["devices"]
    ]
    threads = (
        ", ".join(f"{name}={value}" for name, value in values["blas_variables"].items())
        or "no variable set"
    )
    return [
        f"minipc    {values['minipc']}",
        f"Python    {values['python']}, {values['platform']}",
        f"CPUs      {values['cpus']['usable']} usable of {values['cpus']['present']}",
        f"NumPy     {values['numpy']}, its loops for {values['simd'] or 'any processor'}",
        f"BLAS      {values['blas']}, kernel {values['kernel'] or 'unknown'}; one thread: "
        f"{'yes' if values['one_blas_thread'] else 'no'} ({threads})",
        f"SciPy     {values['scipy']}",
        f"h5py      {values['h5py']}, HDF5 {values['hdf5']}",
        f"click     {values['click']}",
        f"CuPy      {found}; {', '.join(devices) or cupy['reason']}",
        f"variables {', '.join(f'{name}={value}' for name, value in values['variables'].items()) or 'none'}",
        f"folder    locks: {folder['locks']}; posix_fallocate: {folder['posix_fallocate']}",
    ]


def _devices():
    """Return the devices that CuPy computes on, with their memory, or the reason why there is
    none.
    """
    from minipc.backend import load

    try:
        runtime = load("cupy").cuda.runtime
    except BackendError as reason:
        return {"devices": [], "reason": _safe(str(reason), 300)}
    found = [runtime.getDeviceProperties(device) for device in range(runtime.getDeviceCount())]
    devices = [
        {"name": device["name"].decode(), "bytes": device["totalGlobalMem"]} for device in found
    ]
    return {"devices": devices, "reason": None}


def _folder():
    """Return whether the file system of the current folder keeps locks and reserves space: "yes" or
    why not.
    """
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


def _works(function, *arguments):
    try:
        function(*arguments)
    except (OSError, AttributeError) as reason:  # AttributeError: not on this platform
        return f"no ({getattr(reason, 'strerror', None) or 'not on this platform'})"
    return "yes"


def _lock_twice(file):
    """Raise OSError unless a lock on a file is refused to whoever opens it again."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(file.name, "rb") as again:
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError(errno.ENOLCK, "a lock was given twice")


def _safe(text, most=60):
    """Return text for a bug report: one line, without paths, cut to most characters."""
    return short(" ".join(re.sub(r"\S*[/\\~]\S*", "(path)", text).split()), most)
