"""Record a PyTorch teacher: train it as you like, then hand record() a function of NumPy arrays.

The function must see the network in evaluation mode: with batch statistics or dropout, logits would
depend on what else is in the block.  The id names the weights, so that another training run is
another record.
"""

import hashlib

import numpy as np
import torch
from torch import nn

from minipc.data.augment import AugmentConfig, apply, draw
from minipc.data.shapes import built_in_shapes
from minipc.record.recorder import record
from minipc.record.recording import Recording


class Teacher(nn.Module):
    """A PointNet of three shared layers: (B, P, 3) -> (B, K)."""

    def __init__(self, classes):
        super().__init__()
        self.shared = nn.Sequential(
            nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU()
        )
        self.head = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, classes)
        )

    def forward(self, points):
        return self.head(self.shared(points).amax(dim=1))


def trained(clouds, steps, batch=32):
    """Return a Teacher trained on fresh views of some of the clouds at every step."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Teacher(len(clouds.class_names))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        some = rng.integers(0, len(clouds), batch)
        params = draw(1, step, 0, batch, AugmentConfig())  # seed 1: not the views that are recorded
        points = torch.from_numpy(apply(clouds.points[some], params))
        loss = nn.functional.cross_entropy(model(points), torch.from_numpy(clouds.labels[some]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def weights_id(model):
    """Return a name for exactly these weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return f"torch-{digest.hexdigest()}"


def main(out="torch_teacher.h5", steps=250):
    clouds = built_in_shapes(0).train
    model = trained(clouds, steps)

    @torch.inference_mode()
    def logits_of(points):
        return model(torch.from_numpy(points)).numpy()

    done = record(Recording(clouds, weights_id(model), out, views=2), logits_of)
    print(
        f"{out}: {done.views} views, teacher accuracy {100 * done.teacher_accuracy:.1f} %, "
        f"{done.bytes} bytes"
    )


if __name__ == "__main__":
    main()
