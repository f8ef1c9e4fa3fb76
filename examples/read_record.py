"""Read a record without minipc: docs/record_format.md on one page."""

import argparse
import hashlib
import json
import os
import struct

import h5py


def check(path: str) -> None:
    """Raise ValueError unless path is a complete, undamaged record of version 1, 2 or 3."""
    with open(path, "rb") as file:
        head = file.read(512).ljust(512)
        digest = hashlib.sha256(head[:40] + bytes(32) + head[72:])
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    magic, kind, version, _, length, expected_digest = struct.unpack("<8s16sIIQ32s", head[:72])
    header = magic, kind.rstrip(b"\0"), version in (1, 2, 3), length, expected_digest
    if header != (b"\x89minipc\n", b"record", True, os.path.getsize(path), digest.digest()):
        raise ValueError(f"{path}: is damaged, or no record of version 1 to 3")


def read_record(path: str):
    """Yield metadata, clouds {split: (points, labels)}, (scale, shift, logits) of each view."""
    check(path)
    with h5py.File(path, "r") as file:
        yield (meta := json.loads(file["meta"][()].tobytes()))
        grid = 2.0 ** (meta.get("clouds", {}).get("exponent") or 0)  # points in float32 have none
        yield {
            name: ((split["points"][()] * grid).astype("f4"), split["labels"][()])
            for name, split in file.get("clouds", {}).items()
        }
        for view in range(meta["plan"]["views"]):
            yield tuple(file[name][view] for name in ("augment/scale", "augment/shift", "logits"))


if __name__ == "__main__":
    (parser := argparse.ArgumentParser(description=__doc__)).add_argument("record")
    for part in read_record(parser.parse_args().record):
        print(part)
