"""Record a PyTorch teacher: train it as you like, then give the module to record_module().

It is called in evaluation mode, so that the logits of a cloud do not depend on the other clouds of
its block.  The id names the weights, so another training run makes another record.
"""

import numpy as np
import torch
from torch import nn

from minipc.data.augment import AugmentConfig, apply, draw
from minipc.data.clouds import Clouds
from minipc.data.shapes import built_in_shapes
from minipc.torch.record import record_module


class Teacher(nn.Module):
    """A PointNet of three shared layers: (B, P, 3) -> (B, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU()
        )
        self.head = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, classes)
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.head(self.shared(points).amax(dim=1))


def trained(clouds: Clouds, steps: int, batch: int = 32) -> Teacher:
    """Return a Teacher; each training step sees new views of randomly drawn clouds."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Teacher(len(clouds.class_names))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        some = rng.integers(0, len(clouds), batch)
        params = draw(
            1, step, 0, batch, AugmentConfig()
        )  # seed 1: other views than the recorded ones
        points = torch.from_numpy(apply(clouds.points[some], params))
        loss = nn.functional.cross_entropy(model(points), torch.from_numpy(clouds.labels[some]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def main(out: str = "torch_teacher.h5", steps: int = 250) -> None:
    clouds = built_in_shapes(0).train
    done = record_module(trained(clouds, steps), clouds, out, views=2)
    print(
        f"{out}: {done.views} views, teacher accuracy {100 * done.teacher_accuracy:.1f} %, "
        f"{done.bytes} bytes"
    )


if __name__ == "__main__":
    main()
