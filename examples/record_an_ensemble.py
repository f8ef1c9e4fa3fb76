"""Record two teachers as one: the mean of their logits.

The softmax of mean logits is the normalised geometric mean of the teachers' softmaxes: a class
needs the support of both.  (The logarithm of the mean softmax would be the arithmetic mean, where
one confident teacher suffices.)  The student learns from one file and loads neither teacher.
"""

import hashlib

from minipc.data.augment import AugmentConfig
from minipc.data.shapes import built_in_shapes
from minipc.distil.train import TrainConfig, drawn_views, train
from minipc.models.file import model_id
from minipc.models.pointnet import sizes
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording


def main(out: str = "ensemble.h5", epochs: int = 4) -> None:
    splits = built_in_shapes(0)
    teachers = []
    for seed, widths in ((1, "16-16-32-64:32"), (2, "32-32-64:32")):
        config = TrainConfig(epochs=epochs, lr=5e-3, warmup_steps=20, seed=seed)
        views = drawn_views(splits.train, seed, AugmentConfig())
        loss = LossConfig(label_smoothing=0.0, **LABELS_ALONE)
        size = sizes(widths, len(splits.train.class_names))
        *_, last = train(splits, size, loss, config, views)
        teachers.append(last.model)
        print(
            f"teacher {widths}, seed {seed}: {100 * last.rows[-1]['test_accuracy']:.1f} % on the "
            "test split"
        )

    members = [model_teacher(model) for model in teachers]

    def logits_of(points):
        return sum(member(points) for member in members) / len(members)

    both = (
        "mean-logits-"
        + hashlib.sha256(" ".join(sorted(map(model_id, teachers))).encode()).hexdigest()
    )
    done = record(Recording(splits.train, both, out, views=2, with_clouds=splits), logits_of)
    print(
        f"{out}: {100 * done.teacher_accuracy:.1f} % of {done.views} recorded views, {done.bytes} "
        "bytes with clouds"
    )


if __name__ == "__main__":
    main()
