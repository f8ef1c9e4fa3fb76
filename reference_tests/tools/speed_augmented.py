"""What network augmentation costs: its step against the steps of both networks, trained alone.

    python -m reference_tests.tools.speed_augmented [MODEL...]

For each model the same draws of widened networks, 32 x 1,024 points, float32, all threads.  A ratio
of 1 means that a step with two networks costs what the two steps cost.  Each round measures all
three, so what else the machine does hits them alike.
"""

import sys
import time
from statistics import median

import numpy as np

from minipc.backend import blas_on_one_thread, worker_threads
from minipc.data.augment import AugmentConfig, draw
from minipc.distil.augmentation import NetworkAugmentation
from minipc.distil.train import Task, TrainConfig
from minipc.models.file import new_model
from minipc.models.model import net, sizes
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LABELS_ALONE, LossConfig

MODELS = ("tiny", "student", "local-tiny", "local-student", "pointnet2/8")
ROUNDS, DRAWS, CLOUDS, POINTS, FACTOR = 5, 6, 32, 1024, 3.0


class Contender:
    """A training of one network, with or without augmentation."""

    def __init__(self, config, points, labels, augmented):
        threads = worker_threads(np)
        settings = TrainConfig(augment_width=FACTOR if augmented else 1.0, augment_share=1.0)
        widening = NetworkAugmentation(config, settings, np, threads) if augmented else None
        self.task = Task(
            np.ascontiguousarray(points.swapaxes(1, 2)),
            labels,
            net(config).prepare(config, points),
            config,
            LossConfig(label_smoothing=0.0, **LABELS_ALONE),
            settings,
            None,
            Workspace(np, threads),
            np,
            widening=widening,
        )
        self.state = self.task.start(new_model(config, {}, 0))

    def seconds(self, rows, view, step):
        """Return the seconds of one step."""
        begun = time.perf_counter()
        self.state, _ = self.task.step(self.state, rows, view, None, None, 1e-3, (0, step))
        return time.perf_counter() - begun


def ratio(name):
    """Return (seconds of the model's step, of both steps, of the augmented step), medians."""
    rng, model = np.random.default_rng(0), sizes(name, 40)
    points = rng.standard_normal((CLOUDS, POINTS, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=2).max()
    labels, rows = rng.integers(0, 40, CLOUDS), np.arange(CLOUDS)
    view = draw(0, 0, 0, CLOUDS, AugmentConfig())
    own, both = (Contender(model, points, labels, augmented) for augmented in (False, True))
    wide = [
        Contender(both.task.widening.drawn(0, step), points, labels, False) for step in range(DRAWS)
    ]
    rounds = []
    for number in range(ROUNDS + 1):
        times = [
            [each.seconds(rows, view, step) for step in range(DRAWS)] for each in (own, both)
        ] + [[each.seconds(rows, view, step) for step, each in enumerate(wide)]]
        if number:  # the first round makes the buffers
            rounds.append([sum(some) / DRAWS for some in times])
    alone, augmented, widened = (median(column) for column in zip(*rounds, strict=True))
    return alone, alone + widened, augmented


def main(*names):
    with blas_on_one_thread(print):
        print("| model | its step | both steps | augmented step | augmented / both |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name in names or MODELS:
            alone, both, augmented = (1000 * seconds for seconds in ratio(name))
            print(
                f"| `{name}` | {alone:.1f} ms | {both:.1f} ms | {augmented:.1f} ms | "
                f"{augmented / both:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
