"""Scans and meshes that lie: changed copies of good files of every format.

`python -m reference_tests.faults.hostile_scans FOLDER` reads every file in FOLDER and prints what
came of it, how long it took and the memory it needed, as faults/hostile.py does for HDF5 files.
"""

import json
import os
import re
import sys
import time

import numpy as np

from minipc.data.readers.point_files import read_points
from minipc.errors import DataError
from reference_tests.formats.scans import CLOUDS, MESHES, pcd_compressed
from reference_tests.tools.memory import peak_of

HUGE = (b"1000000000000", b"4294967295", b"999999999999999999999999", b"-1", b"0")
COPIES = 1 << 16  # of three bytes of LZF that make 264: 17 MB


def lies(whole):
    """Yield (what, bytes): every number of the first lines replaced, and the file cut."""
    head = whole[:400]
    for at in list(re.finditer(rb"\b\d+\b", head))[:12]:
        for value in HUGE:
            yield (
                f"{value.decode()} at {at.start()}",
                whole[: at.start()] + value + whole[at.end() :],
            )
    for part in range(1, 20):
        yield f"cut after {part}/20", whole[: len(whole) * part // 20]
    yield "zeros behind it", whole + bytes(1000)
    yield "twice", whole * 2


def bombs():
    """Yield (name, bytes) of files that are small, and claim or cost much."""
    whole = MESHES["binary.stl"]
    yield "count.stl", whole[:80] + b"\xff\xff\xff\xff" + whole[84:]
    off = b"OFF\n8 1 0\n" + b"".join(b"%d %d 0\n" % (i * i, i) for i in range(8))
    yield "long-face.off", off + b"9001 " + b"0 1 2 " * 3000 + b"\n"
    yield "long-line.off", b"OFF\n" + b"1 " * 10_000_000
    yield "long-line.ply", b"ply\n" + b"comment " * 10_000_000
    yield "long-header.ply", b"ply\nformat ascii 1.0\n" + b"comment a\n" * 1_000_000
    yield "long-header.pcd", b"# a\n" * 1_000_000
    yield "many-fields.pcd", b"FIELDS " + b"x " * 30_000 + b"\n"
    yield "wide.pcd", CLOUDS["binary.pcd"].replace(b"COUNT 1 1 3", b"COUNT 9999999999 1 3")
    lists = "element face 1000000000\nproperty list uchar int vertex_indices\n"
    head = CLOUDS["little.ply"].replace(b"end_header", lists.encode() + b"end_header")
    yield "empty-lists.ply", head + bytes(1_000_000)
    yield "long-list.ply", head.replace(b"uchar int vertex", b"uint int vertex") + b"\xff" * 900
    packed = b"\x00a" + b"\xe0\xff\x00" * COPIES
    yield "compressed.pcd", pcd_compressed(packed)
    yield "backslashes.obj", b"v 0 0 0 \\\n" * 100_000
    yield "solid.stl", b"solid\n" + b"facet\n" * 1_000_000


def corpus(seed=0):
    """Yield (name, bytes) of every hostile file; the suffix says its format."""
    rng = np.random.default_rng(seed)
    for kind, files in (("cloud", CLOUDS), ("mesh", MESHES)):
        for name, whole in files.items():
            stem, suffix = name.split(".")
            changed = [data for _, data in lies(whole)]
            for _ in range(40):
                data = bytearray(whole)
                for _ in range(int(rng.integers(1, 6))):
                    data[int(rng.integers(len(data)))] = int(rng.integers(256))
                changed.append(bytes(data))
            for number, data in enumerate(changed):
                yield f"{kind}-{stem}-{number:03d}.{suffix}", data
    yield from bombs()


def read_all(folder):
    """Return {name: [outcome, CPU seconds]} of every file in folder."""
    found = {}
    for name in sorted(os.listdir(folder)):
        start = time.process_time()
        try:
            points = read_points(os.path.join(folder, name))
            whole = points.ndim == 2 and points.shape[1] == 3 and len(points)
            outcome = "read" if whole and np.isfinite(points).all() else "read what is none"
        except DataError as reason:
            outcome = "refused" if "\n" not in str(reason) else f"lines: {reason}"
        except BaseException as reason:
            outcome = f"{type(reason).__name__}: {reason}"
        found[name] = [outcome, time.process_time() - start]
    return found


def main(folder):
    """Print what came of all files, and the memory above the start, in bytes."""
    found = {}
    memory = peak_of(lambda: found.update(read_all(folder)))
    print(json.dumps({"found": found, "memory": memory}))


if __name__ == "__main__":
    main(sys.argv[1])
