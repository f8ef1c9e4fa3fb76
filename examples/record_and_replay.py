"""Record a teacher and replay it: the student sees the teacher's points, bit for bit.

The record holds the scale and shift that were applied to each cloud, as float32, not only a seed.
Replay rounds twice, the same way on every machine; one fused multiply-add would already differ.
"""

import os
import sys

import numpy as np

from minipc.data import augment
from minipc.data.shapes import built_in_shapes
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording


def main(out: str = "replay.h5", clouds: int = 64) -> None:
    if os.path.exists(out):
        sys.exit(f"{out} is there already, so the teacher need not look again; remove it first")
    train = built_in_shapes(0).train
    train = type(train)(
        train.points[:clouds],
        train.labels[:clouds],
        train.class_names,
        train.up_axis,
        "unit_sphere",
    )
    seen = []

    def teacher(points):
        """Stand in for a network: keep the points, and answer from the labels."""
        seen.append(points.copy())
        rows = np.arange(len(points)) + len(points) * (len(seen) - 1)
        return 4 * np.eye(len(train.class_names), dtype=np.float32)[train.labels[rows % clouds]]

    done = record(Recording(train, "by-hand", out, views=2, seed=7, force=True), teacher)
    print(f"{out}: {done.views} views of {done.clouds} clouds, {done.bytes} bytes")
    with RecordReader(out) as reader:
        scale, shift, logits = reader.view(1)
    replayed = augment.apply(train.points, augment.Params(scale, shift))
    drawn_again = augment.draw(7, 1, 0, clouds, augment.AugmentConfig())
    print(
        "parameters drawn again from seed 7:",
        "equal" if np.array_equal(drawn_again.scale, scale) else "DIFFERENT",
    )
    last = np.concatenate(seen)[-clouds:]
    print(
        "replayed points:", "equal bit for bit" if np.array_equal(last, replayed) else "DIFFERENT"
    )
    once = (train.points.astype(np.float64) * scale[:, None] + shift[:, None]).astype(np.float32)
    print(
        f"rounded once instead of twice: {100 * (once != replayed).mean():.0f} % of the "
        "coordinates differ"
    )
    print(
        "teacher right on its recorded logits:", bool((logits.argmax(axis=1) == train.labels).all())
    )


if __name__ == "__main__":
    main()
