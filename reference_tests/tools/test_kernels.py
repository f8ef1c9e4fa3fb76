"""What is made under one kernel of BLAS is honest under the next."""

import json
import subprocess
import sys

import pytest

from minipc.provenance import provenance, unlike
from reference_tests.tools import kernels

HERE = {"blas": "openblas 0.3", "kernel": "Haswell", "one_blas_thread": True}


@pytest.fixture(scope="module")
def two():
    """Two kernels that this processor can run, Haswell and Nehalem where it can choose."""
    found = list(kernels.runnable(("Haswell", "Nehalem", "Sandybridge", "Prescott")))
    if len(found) < 2:
        pytest.skip(
            f"this processor and its BLAS run {len(found)} of the kernels of OpenBLAS that are "
            "tried"
        )
    return found[:2]


def minipc(kernel, *arguments):
    """Return (exit code, stdout, stderr) of a command under one kernel."""
    done = subprocess.run(
        [sys.executable, "-m", "minipc", *map(str, arguments)],
        env=kernels.environment(kernel),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_record_of_one_kernel_is_verified_under_another_and_the_message_says_what_was_asked(
    data, two
):
    one, other = two
    quick = ("--epochs", 2, "--model", "teacher", "--quiet")
    assert minipc(one, "train", data, "--labels-only", "--out", "teacher", *quick)[0] == 0
    assert (
        minipc(
            one,
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            2,
            "--logits",
            "float32",
            "--force",
        )[0]
        == 0
    )
    again = ("verify", "record.h5", "--teacher", "teacher", "--sample", "all", "--json")

    code, out, err = minipc(one, *again)
    told = json.loads(out)
    assert (code, told["bitwise"], told["why"], told["largest_difference"]) == (0, True, "", 0), err
    code, out, err = minipc(other, *again)
    told = json.loads(out)
    assert (code, told["passed"], told["bitwise"]) == (0, True, False), err
    assert told["why"] == f"kernel {kernels.answer(one)} there, {kernels.answer(other)} here"
    assert (
        0 < told["largest_difference"] < 1e-4
    )  # equal bits would need no bound, and prove nothing here
    code, out, _ = minipc(other, *again[:-1])
    assert code == 0 and f"not asked for bit for bit: kernel {kernels.answer(one)} there" in out


def test_a_run_that_goes_on_under_another_kernel_says_that_bits_may_differ(data, two):
    one, other = two
    begin = (
        "train",
        data,
        "--labels-only",
        "--out",
        "run",
        "--epochs",
        3,
        "--model",
        "6-8:6",
        "--stop-after",
        1,
    )
    assert minipc(one, *begin)[0] == 0
    code, _, err = minipc(other, "train", "--resume", "--out", "run", "--stop-after", 2)
    assert (
        code == 0
        and "bits may differ from here on from those of an uninterrupted run: kernel " in err
    ), err
    code, _, err = minipc(one, "train", "--resume", "--out", "run")
    assert code == 0 and "bits may differ" not in err, err


@pytest.mark.parametrize(
    "there, why",
    [
        (HERE, ""),
        (HERE | {"kernel": "Nehalem"}, "kernel Nehalem there, Haswell here"),
        ({"blas": "openblas 0.3", "one_blas_thread": True}, "kernel not said there, Haswell here"),
        (HERE | {"cuda_driver": 13000}, "cuda driver 13000 there, not said here"),
        (
            HERE | {"kernel": "Zen", "blas": "mkl"},
            "blas mkl there, openblas 0.3 here; kernel Zen there, Haswell here",
        ),
    ],
)
def test_bits_are_asked_for_only_where_all_that_rounds_is_known_and_the_same(there, why):
    assert unlike(there, HERE) == why


def test_bits_are_never_asked_for_where_blas_has_several_threads():
    several = HERE | {"one_blas_thread": False}
    assert unlike(several, several) == "BLAS has several threads, whose sums do not repeat"


def test_provenance_names_the_kernel_and_on_a_device_all_that_rounds(fake_cupy):
    import numpy as np

    assert {"kernel", "simd", "blas"} <= provenance(np).keys()
    assert provenance(fake_cupy).keys() - provenance(np).keys() == {
        "cupy",
        "cupy_distribution",
        "cuda_runtime",
        "cuda_driver",
        "nvrtc",
        "cublas",
        "cublas_workspace",
        "accelerators",
        "tf32",
    }


def test_kernels_that_cannot_run_are_named_and_left_out():
    said = []
    found = kernels.runnable(kernels.KERNELS, said.append)
    assert found and len(set(found.values())) == len(found)
    assert len(found) + len(said) == len(kernels.KERNELS)
    with pytest.raises(SystemExit, match="expected some of .*, got Zen9"):
        kernels.main(["Zen9"])
