"""Record several teachers as one: the mean of their logits.

    python examples/record_an_ensemble.py                       # two small ones on built-in shapes
    python examples/record_an_ensemble.py DATA OUT VIEWS TEACHER TEACHER...

The softmax of mean logits is the normalised geometric mean of the teachers' softmaxes: a class
needs the support of both.  (The logarithm of the mean softmax would be the arithmetic mean, where
one confident teacher suffices.)  The student learns from one file and loads neither teacher.
Typed again after an interruption, the second form goes on.
"""

import hashlib
import os
import sys

from minipc.data.augment import AugmentConfig
from minipc.data.clouds import Splits, read_clouds
from minipc.data.groups_file import kept_groups
from minipc.data.shapes import built_in_shapes
from minipc.distil.train import TrainConfig, drawn_views, train
from minipc.errors import UsageError
from minipc.models.file import Model, model_id
from minipc.models.model import net
from minipc.models.pointnet import sizes
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording
from minipc.verbs.find import read_model_for


def small_teacher(splits: Splits, widths: str, seed: int) -> Model:
    """Return a PointNet trained for four epochs."""
    config = TrainConfig(epochs=4, lr=5e-3, warmup_steps=20, seed=seed)
    views = drawn_views(splits.train, seed, AugmentConfig())
    size = sizes(widths, len(splits.train.class_names))
    *_, last = train(splits, size, LossConfig(label_smoothing=0.0, **LABELS_ALONE), config, views)
    print(f"teacher {widths}: {100 * last.rows[-1]['test_accuracy']:.1f} % on the test split")
    return last.model


def record_mean(
    splits: Splits, teachers: list[Model], out: str, views: int, data: str = ""
) -> None:
    """Record the mean logits of teachers, which all look at the same groups of neighbours."""
    first, *rest = [model.config for model in teachers]
    if any(net(other).grouping(other) != net(first).grouping(first) for other in rest):
        raise UsageError("ensemble: the teachers look at different groups of neighbours")
    members = [model_teacher(model) for model in teachers]

    def logits_of(points):
        return sum(member(points) for member in members) / len(members)

    identities = " ".join(sorted(map(model_id, teachers)))
    recording = Recording(
        splits.train,
        "mean-logits-" + hashlib.sha256(identities.encode()).hexdigest(),
        out,
        views,
        data_file=os.path.basename(data) or None,
        with_clouds=None if data else splits,
        groups=kept_groups(first, splits.train, data or out),
    )
    done = record(recording, logits_of)
    rate = 100 * done.teacher_accuracy
    print(f"{out}: {rate:.2f} % of {done.views} recorded views, {done.bytes} bytes")


def main(data: str = "", out: str = "ensemble.h5", views: str = "2", *teachers: str) -> None:
    if data:
        splits = read_clouds(data)
        models = [read_model_for(splits.train, data, teacher)[1] for teacher in teachers]
        record_mean(splits, models, out, int(views), data)
    else:
        splits = built_in_shapes(0)
        models = [small_teacher(splits, "16-16-32-64:32", 1), small_teacher(splits, "32-64:32", 2)]
        record_mean(splits, models, out, int(views))


if __name__ == "__main__":
    main(*sys.argv[1:])
