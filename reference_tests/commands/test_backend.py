"""Which backend a command takes, and the remedy by cause where CuPy cannot compute."""

import errno
import os
import sys

import numpy as np
import pytest

from minipc import backend
from minipc.errors import BackendError

QUICK = ("--epochs", "1", "--batch-size", "32", "--model", "8-16:8", "--quiet")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """No variable of CUDA or CuPy of whoever runs the tests."""
    for name in ("CUDA_VISIBLE_DEVICES", *backend.OTHER_PRODUCTS):
        monkeypatch.delenv(name, raising=False)


def fails(monkeypatch, module, name, reason):
    """Have the function of this name, "cuda.runtime.x" or "ones", raise reason."""

    def function(*arguments, **options):
        raise reason

    *owners, name = name.split(".")
    for owner in owners:
        module = getattr(module, owner)
    monkeypatch.setattr(module, name, function)


def refusal(name="cupy"):
    with pytest.raises(BackendError) as refused:
        backend.load(name)
    line = str(refused.value)
    assert "\n" not in line and refused.value.exit_code == 5 and "--backend numpy" in line
    return line


def said_by_auto():
    """Return the lines of auto, which must take NumPy."""
    lines = []
    assert backend.load("auto", lines.append) is np
    return lines


CAUSES = {  # {cause: (what fails, with what, the remedy)}
    "a driver too old": (
        "cuda.runtime.getDeviceCount",
        RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
        "update the driver",
    ),
    "a card full": (
        "ones",
        MemoryError("Out of memory allocating 512 bytes (allocated so far: 0 bytes)."),
        "nvidia-smi",
    ),
    "a full card at the first product": (
        "ones",
        RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"),
        "nvidia-smi",
    ),
    "no toolkit": (
        "ones",
        RuntimeError('Failure finding "libnvrtc.so": No such file'),
        "pip install -e '.[gpu13]'",
    ),
    "no headers": (
        "ones",
        RuntimeError('catastrophic error: cannot open source file "cuda_fp16.h"'),
        "pip install -e '.[gpu13]'",
    ),
    "a kernel cache that takes no file": (
        "ones",
        OSError(errno.EROFS, os.strerror(errno.EROFS), "/home/someone/.cupy/kernel_cache"),
        "set CUPY_CACHE_DIR",
    ),
    "a card that this CUDA does not know": (
        "ones",
        RuntimeError("nvrtc: error: invalid value for --gpu-architecture (-arch)"),
        "'.[gpu12]' instead of '.[gpu13]'",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_device_that_does_not_compute_is_told_with_the_remedy(fake_cupy, monkeypatch, cause):
    name, reason, remedy = CAUSES[cause]
    fails(monkeypatch, fake_cupy, name, reason)
    assert remedy in refusal()
    (line,) = said_by_auto()
    assert line.startswith("backend numpy: CuPy is installed, but") and remedy in line


def test_a_cache_that_cannot_be_made_fails_the_import_and_is_told(monkeypatch):
    """CuPy 14 makes the folder of its kernels when it is imported."""

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "cupy":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/nowhere")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert "set CUPY_CACHE_DIR" in refusal() and len(said_by_auto()) == 1


def test_auto_says_nothing_where_there_is_no_device(fake_cupy, monkeypatch):
    none = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    with monkeypatch.context() as patch:
        fails(patch, fake_cupy, "cuda.runtime.getDeviceCount", none)
        assert said_by_auto() == [] and "NVIDIA card" in refusal()
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        line = refusal()
        assert "CUDA_VISIBLE_DEVICES='' shows no device" in line and "unset it" in line
        assert said_by_auto() == []
    with monkeypatch.context() as patch:  # CuPy says the same of no driver as of an old one
        old = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        fails(patch, fake_cupy, "cuda.runtime.getDeviceCount", old)
        patch.setattr(fake_cupy.cuda.runtime, "driverGetVersion", lambda: 0)
        assert said_by_auto() == [] and "there is no NVIDIA driver" in refusal()
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy fails
    assert said_by_auto() == [] and "gpu12" in refusal()


def test_two_cupys_over_each_other_are_told(fake_cupy, monkeypatch):
    both = {"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}
    monkeypatch.setattr(backend, "cupy_distributions", lambda: both)
    assert "cupy-cuda12x and cupy-cuda13x" in refusal() and "uninstall both" in refusal()


@pytest.mark.parametrize("name", ["cupy", "auto"])
@pytest.mark.parametrize("switch", backend.OTHER_PRODUCTS)
def test_products_of_fewer_bits_are_refused(fake_cupy, monkeypatch, name, switch):
    monkeypatch.setenv(switch, "1")
    line = refusal(name)
    assert f"{switch} is set" in line and "unset it" in line
    monkeypatch.setenv(switch, "0")
    assert backend.load(name) is fake_cupy


def test_the_variable_means_nothing_to_numpy(monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert backend.load("auto") is np is backend.load("numpy")


def test_a_refusal_leaves_no_file(data, say, fake_cupy, monkeypatch, folder):
    monkeypatch.setenv("CUPY_TF32", "1")
    before = sorted(os.listdir(folder))
    code, out, err = say("train", data, "--labels-only", "--backend", "cupy", *QUICK)
    assert (code, out) == (5, "") and err.count("\n") == 1 and "CUPY_TF32" in err
    assert sorted(os.listdir(folder)) == before
