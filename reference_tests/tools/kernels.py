"""The tests that touch BLAS, under every kernel of OpenBLAS that runs here (make test-kernels).

One build of OpenBLAS holds kernels for many processors, which round differently; the variable
OPENBLAS_CORETYPE chooses one when the library is loaded.  Each kernel has its own process.
`python -m reference_tests.tools.kernels Haswell Nehalem` tries these alone; --others leaves out the
kernel that OpenBLAS itself chooses here, which make test covers.  What cannot run is named.
"""

import os
import subprocess
import sys

from minipc.backend import BLAS_THREADS

# From the newest to the oldest; names of OpenBLAS.  Others share the arithmetic of one of these.
KERNELS = (
    "SapphireRapids",
    "Cooperlake",
    "SkylakeX",
    "Haswell",
    "Sandybridge",
    "Nehalem",
    "Prescott",
)
TESTS = """
    mathematics/ops mathematics/fused mathematics/pointnet mathematics/independence
    mathematics/gradcheck mathematics/optim mathematics/losses mathematics/trajectory
    mathematics/evaluate mathematics/self_target mathematics/audit mathematics/augment
    mathematics/levels_device formats/golden
    mathematics/groups mathematics/local mathematics/pointnet2 mathematics/exported_programs
    commands/train commands/recorder commands/verify faults/resume
"""
IN_TWO = ("-n", "2", "--dist", "worksteal")
PROBE = """
import numpy
from minipc.backend import blas_kernel
numpy.ones((99, 99), "f4") @ numpy.ones((99, 99), "f4")
print(blas_kernel())
"""


def environment(kernel):
    """Return the environment of a process that computes by one kernel, on one thread."""
    return os.environ | dict.fromkeys(BLAS_THREADS, "1") | {"OPENBLAS_CORETYPE": kernel}


def answer(kernel):
    """Return OpenBLAS's name of this kernel, or "" where it cannot run here."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment(kernel), capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def runnable(wanted, say=lambda line: None):
    """Return {kernel asked for: its own name} of those that run here; say(line) names the rest."""
    found = {}
    for kernel in wanted:
        name = answer(kernel)
        if not name:
            say(f"{kernel}: left out, this processor or this BLAS cannot run it")
        elif name in found.values():
            say(f"{kernel}: left out, OpenBLAS takes {name} for it, which is tried")
        elif name != kernel and name in KERNELS:
            say(f"{kernel}: left out, OpenBLAS takes {name} for it")
        else:
            found[kernel] = name
    return found


def main(wanted, others=False):
    if unknown := set(wanted) - set(KERNELS):
        raise SystemExit(
            f"kernels: expected some of {', '.join(KERNELS)}, got {', '.join(sorted(unknown))}"
        )
    kernels = runnable(wanted or KERNELS, lambda line: print(line, flush=True))
    if not kernels:
        raise SystemExit(
            "kernels: none of them runs here; is NumPy's BLAS another one than OpenBLAS?"
        )
    if others:
        own = answer("")
        print(f"{own}: left out, make test runs under it", flush=True)
        kernels = {kernel: name for kernel, name in kernels.items() if name != own}
    failed = []
    for kernel in kernels:
        print(f"== kernel {kernel}", flush=True)
        folders = (name.split("/") for name in TESTS.split())
        files = [f"reference_tests/{folder}/test_{name}.py" for folder, name in folders]
        if subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *IN_TWO, *files], env=environment(kernel)
        ).returncode:
            failed.append(kernel)
    if failed:
        raise SystemExit(f"kernels: tests failed under {', '.join(failed)}")
    print(f"kernels: all tests passed under {', '.join(kernels)}")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--others"], "--others" in sys.argv)
