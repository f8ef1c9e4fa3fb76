"""Record a teacher of your own, then train a student that never loads it.

Any callable from points (B, P, 3) float32 to logits (B, K) is a teacher.  This one is an ensemble
of nearest class means over a few moments of the cloud.  A PyTorch or JAX model works the same way:
`lambda points: model(torch.from_numpy(points)).detach().numpy()`.
"""

import numpy as np

from minipc.data.shapes import built_in_shapes
from minipc.distil.train import TrainConfig, recorded_views, train
from minipc.models.pointnet import sizes
from minipc.nn.losses import LossConfig
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording


def moments(points: np.ndarray) -> np.ndarray:
    """Return standardised moments (B, 18); scale and shift of an axis do not change them."""
    x = (points - points.mean(axis=1, keepdims=True)) / points.std(axis=1, keepdims=True)
    x2, y = x * x, np.roll(x, 1, axis=2)
    products = (x2 * x, x2 * x2, x2 * x2 * x, x2 * x2 * x2, x * y, x2 * y * y)
    return np.concatenate([product.mean(axis=1) for product in products], axis=1)


def main(out: str = "any_teacher.h5", epochs: int = 2) -> None:
    splits = built_in_shapes(0)
    features = moments(splits.train.points)
    spread = features.std(axis=0)
    means = np.stack(
        [
            features[splits.train.labels == k].mean(axis=0)
            for k in range(len(splits.train.class_names))
        ]
    )

    def teacher(points):
        distance = ((moments(points)[:, None] - means) / spread) ** 2  # (B, K, 18)
        return -distance.mean(axis=2).astype(np.float32)

    done = record(Recording(splits.train, "nearest-class-means-1", out, views=2), teacher)
    print(f"teacher on the recorded views: {100 * done.teacher_accuracy:.1f} %, {done.bytes} bytes")
    with RecordReader(out) as reader:
        reader.check_belongs(splits.train)  # views of other clouds would teach nonsense
        model = sizes("tiny", len(splits.train.class_names))
        *_, last = train(
            splits,
            model,
            LossConfig(kd_weight=0.5),  # less than the default: this teacher errs often
            TrainConfig(epochs=epochs),
            recorded_views(reader),
        )
    print(f"student on the test split: {100 * last.rows[-1]['test_accuracy']:.1f} %")


if __name__ == "__main__":
    main()
