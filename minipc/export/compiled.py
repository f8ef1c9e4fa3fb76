"""An exported C program on this machine: compiled, called from here, and timed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.errors import MinipcError, short

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

STRICT = ("-std=c99", "-ffp-contract=off")
# What the library adds: the size of the state, which C alone knows.
SHIM = """#include "model.h"
size_t state_bytes(void);
size_t state_bytes(void)
{
    return sizeof(minipc_state);
}
"""


def compiler() -> str | None:
    """Return the path of cc, or None where there is none."""
    return shutil.which("cc")


class Answers(NamedTuple):
    logits: np.ndarray  # (B, K) float32 or int32
    classes: np.ndarray  # (B,), -1 for a cloud that was refused
    seconds: np.ndarray  # (B,), of each cloud


class Compiled:
    """A program in memory of this process; threads may share it."""

    def __init__(self, library: Any, classes: int, dtype: Any, code: int | None) -> None:
        self.library, self.classes, self.dtype = library, classes, dtype
        self._classify = library.minipc_classify
        self._classify.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
        ]
        library.state_bytes.restype = ctypes.c_size_t
        self.buffers: int = library.state_bytes()  # bytes of the state
        self.code = code  # bytes of instructions and tables for a small program; None: not known

    def classify(self, points: np.ndarray) -> Answers:
        """Return what the program says of clouds (B, N, 3) float32."""
        points = np.ascontiguousarray(points, np.float32)
        logits = np.zeros((len(points), self.classes), self.dtype)
        classes, seconds = np.empty(len(points), np.int64), np.empty(len(points))
        state = ctypes.create_string_buffer(self.buffers)
        for i, cloud in enumerate(points):
            start = time.perf_counter()
            classes[i] = self._classify(state, cloud.ctypes.data, len(cloud), logits[i].ctypes.data)
            seconds[i] = time.perf_counter() - start
        return Answers(logits, classes, seconds)


@contextmanager
def compiled(
    cc: str, files: dict[str, str], classes: int, dtype: Any, points: int, fast: bool = True
) -> Iterator[Compiled]:
    """Yield the program of these files {name: text}, compiled by cc in a temporary folder.

    dtype: of its logits; points: the most of a cloud.  fast: with all of cc's optimisation, and
    once more for a small program, whose size is told.  Raises MinipcError where cc fails, or what
    it compiles cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="minipc-") as folder:
        for name, text in {**files, "shim.c": SHIM}.items():
            with open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write(text)
        level, most = "-O3" if fast else "-O0", f"-DMINIPC_MOST_POINTS={points}"
        shared = (level, *STRICT, most, "-shared", "-fPIC", "-o", "model.so")
        _run(cc, *shared, "model.c", "shim.c", "-lm", folder=folder)
        if fast:
            _run(cc, "-Os", *STRICT, "-c", "model.c", folder=folder)
        size = _size(folder) if fast else None
        try:
            library = ctypes.CDLL(os.path.join(folder, "model.so"))
        except OSError as reason:  # a compiler for another machine, a temporary folder without exec
            raise MinipcError(
                f"{cc}: what it compiles cannot be loaded here ({short(reason, 200)}); "
                "run it elsewhere: --no-check"
            ) from reason
        yield Compiled(library, classes, dtype, size)


def _run(*command: str, folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise MinipcError(
            f"{command[0]}: does not compile the program here ({short(reason.strip(), 200)}); "
            "compile it elsewhere: --no-check"
        )


def _size(folder: str) -> int | None:
    """Return the bytes that model.o takes in memory, by the tool size; None without it."""
    size = shutil.which("size")
    if size is None:
        return None
    done = subprocess.run([size, "model.o"], cwd=folder, capture_output=True, text=True)
    words = done.stdout.splitlines()[-1].split() if done.returncode == 0 else []
    return sum(map(int, words[:3])) if len(words) > 3 else None
