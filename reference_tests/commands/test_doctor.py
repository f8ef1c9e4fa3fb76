"""minipc doctor: what a bug report needs, and nothing that its writer would not want to publish."""

import fcntl
import getpass
import json
import os
import socket
import sys

import pytest

from minipc.report import environment


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, folder):
    """No MINIPC_ variable of whoever runs the tests, and an empty folder."""
    for name in [name for name in os.environ if name.startswith("MINIPC_")]:
        monkeypatch.delenv(name)


def report(say):
    code, out, err = say("doctor", "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_doctor_names_all_that_minipc_stands_on(say, folder):
    code, out, err = say("doctor")
    assert (code, err) == (0, "")
    for name in (
        "minipc",
        "Python",
        "CPUs",
        "NumPy",
        "BLAS",
        "SciPy",
        "h5py",
        "HDF5",
        "click",
        "CuPy",
        "locks",
    ):
        assert name in out
    values = report(say)
    assert values["numpy"] in out and values["blas"] in out and values["platform"] in out
    assert 1 <= values["cpus"]["usable"] <= values["cpus"]["present"]
    assert os.listdir(folder) == []


def test_what_extras_bring_is_told_with_its_version_and_imported_by_nobody(say, monkeypatch):
    there = {"torch": "2.99.0", "trimesh": "4.0"}
    monkeypatch.setattr(
        environment, "version_of", lambda name: there.get(name, None if name.islower() else "1")
    )
    for name in environment.OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    monkeypatch.setattr(environment, "_devices", lambda: {"devices": [], "reason": "none"})
    values = report(say)["optional"]
    assert values == {name: there.get(name) for name in environment.OPTIONAL}
    out = say("doctor")[1]
    assert "torch 2.99.0, onnx absent, onnxruntime absent, safetensors absent, trimesh 4.0" in out


def test_doctor_names_no_host_no_user_and_no_path(say, monkeypatch, folder):
    monkeypatch.setenv("MINIPC_OUT", f"{folder}/secret")
    monkeypatch.setenv("MINIPC_TEACHER", "~/secret")
    monkeypatch.setenv("MINIPC_EPOCHS", "12")
    for words in (["doctor"], ["doctor", "--json"]):
        _, out, _ = say(*words)
        assert "secret" not in out and "/" not in out
        for name in (socket.gethostname(), getpass.getuser()):
            assert len(name) < 6 or name not in out  # a short one may be part of a word
    assert report(say)["variables"] == {
        "MINIPC_EPOCHS": "12",
        "MINIPC_OUT": "(path)",
        "MINIPC_TEACHER": "(path)",
    }


def test_blas_threads_are_told(say, monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)  # which would ask BLAS itself
    assert report(say)["one_blas_thread"] is True
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    values = report(say)
    assert values["one_blas_thread"] is False and values["blas_variables"]["OMP_NUM_THREADS"] == "4"
    assert "one thread: no" in say("doctor")[1]


def test_without_cupy_doctor_says_why_and_ends_with_0(say, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cupy = report(say)["cupy"]
    assert cupy["devices"] == [] and "cupy" in cupy["reason"]


def test_a_device_is_named_with_its_memory(say, fake_cupy):
    cupy = report(say)["cupy"]
    assert cupy["devices"] == [{"name": "fake", "bytes": 8 << 30}] and cupy["reason"] is None
    assert "fake with 9 GB; CUDA graphs: it compiles no kernels" in say("doctor")[1]


def test_a_driver_that_fails_is_told_without_its_paths(say, fake_cupy, monkeypatch):
    def no_driver():
        raise RuntimeError("/usr/lib/libcuda.so.1: cannot\nopen shared object")

    monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", no_driver)
    cupy = report(say)["cupy"]
    assert (
        "cannot open shared object" in cupy["reason"]
        and "/usr" not in cupy["reason"]
        and not cupy["devices"]
    )


def test_a_file_system_without_locks_or_reservation_is_told(say, monkeypatch):
    assert set(report(say)["folder"]) == {"locks", "posix_fallocate"}
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *arguments: None)  # locks that hold nobody back
        assert report(say)["folder"]["locks"] == "no (a lock was given twice)"
    with monkeypatch.context() as patch:
        patch.delattr(os, "posix_fallocate", raising=False)
        assert report(say)["folder"]["posix_fallocate"] == "no (not on this platform)"


def test_a_folder_that_takes_no_file_is_told(say, monkeypatch):
    def refused(*arguments, **settings):
        raise PermissionError(13, "Permission denied", "/a/path")

    monkeypatch.setattr(environment.tempfile, "NamedTemporaryFile", refused)
    assert report(say)["folder"]["locks"] == "no file can be made here (Permission denied)"
