"""From PointNet to PointNet++ in forty lines, with nothing but the operations of docs/math.md.

A PointNet: rows -> linear, batch norm, ReLU -> maximum.  A level of PointNet++ is a PointNet of
each group of neighbours; it leaves fewer points, the centres, each with what its group looks like.
Without levels, forward() is a PointNet.
"""

from typing import Any

import numpy as np

from minipc.data.shapes import make_shapes
from minipc.nn import groups, local, losses, ops, optim, params
from minipc.nn.engine import Tape, backward


def group(points: np.ndarray, counts: tuple[int, ...], members: int) -> list[tuple[Any, Any]]:
    """Return (centres (B, M), members (B, M, k)) of each level, from points alone: made once."""
    levels, clouds = [], np.arange(len(points))[:, None]
    for count in counts:
        centres = groups.farthest_points(points, count)  # (G1)
        levels.append((centres, *groups.neighbours(points, centres, [groups.Scale(members)])))
        points = points[clouds, centres]  # the next level reads the centres of this one
    return levels


def pointnet(tape: Tape, rows: Any, layer: str) -> Any:
    """Return the maximum over the rows (..., N, I) of one layer, (..., O)."""
    (name, *names), (W, gamma, beta) = tape.of(layer, "W", "gamma", "beta")
    x = tape.push(ops.linear_forward(rows, W), ops.linear_backward, name)  # (M1), (M2)
    y, cache, _ = ops.batch_norm_forward(x, gamma, beta, tape.eps)  # (M5), (M6)
    x = tape.push((y, cache), ops.batch_norm_backward, *names)
    x = tape.push(ops.relu_forward(x), ops.relu_backward)  # (M10), (M11)
    return tape.push(ops.point_max_forward(x), ops.point_max_backward)  # (M12), (M13)


def beside(tape: Tape, positions: Any, f: Any) -> Any:
    """Return the rows [positions ; f]; positions are inputs, so only f has a gradient."""
    rows = np.concatenate([positions, f], axis=-1)
    return tape.push((rows, None), lambda d, _: d[..., 3:])


def forward(weights: dict, points: Any, levels: list) -> tuple[Any, Tape]:
    """Return logits (B, K) and the tape: a PointNet of what the levels leave."""
    tape, f, clouds = Tape(weights, eps=1e-5), None, np.arange(len(points))[:, None]
    for number, (centres, members) in enumerate(levels):
        rows = local.offsets(points, centres, members)  # (M18)
        if f is not None:
            read = tape.push(local.gather_forward(f, members), local.gather_backward)
            rows = beside(tape, rows, read)  # (M19), (M20)
        f = pointnet(tape, rows, f"level{number}")  # (B, M, O): one vector for each group
        points = points[clouds, centres]
    f = pointnet(tape, points if f is None else beside(tape, points, f), "last")  # (B, O)
    return tape.push(ops.linear_forward(f, weights["out.W"]), ops.linear_backward, "out.W"), tape


def train(shapes: Any, layers: dict[str, int], counts: tuple[int, ...], steps: int = 30) -> None:
    """Train one model; print its size and how often it is right, with statistics of the batch."""
    specs, inputs, classes = {}, 3, len(shapes.class_names)
    for name, width in layers.items():  # each layer but the first reads positions and features
        specs |= params.linear_spec(name, inputs, width) | params.batch_norm_spec(name, width)
        inputs = 3 + width
    specs |= params.linear_spec("out", inputs - 3, classes)
    weights = params.initialise(specs, np.random.default_rng(0))
    state, levels = optim.adamw_start(weights), group(shapes.train_points, counts, members=8)
    q = losses.smooth_labels(shapes.train_labels, classes, 0.0, np.float32)
    for _ in range(steps):
        z, tape = forward(weights, shapes.train_points, levels)
        _, cache = losses.soft_cross_entropy_forward(z, q)  # (L1), (L2)
        dz = losses.soft_cross_entropy_backward(np.full(len(z), 1 / len(z), z.dtype), cache)
        weights, state = optim.adamw_step(weights, backward(dz, tape)[0], state, 2e-2, 0.0)
    z, _ = forward(weights, shapes.test_points, group(shapes.test_points, counts, members=8))
    right, size = (z.argmax(1) == shapes.test_labels).mean(), sum(map(np.size, weights.values()))
    print(f"{len(counts)} levels, {size} parameters: {100 * right:.0f} % of test clouds are right")


if __name__ == "__main__":
    clouds = make_shapes(0, train_per_class=12, test_per_class=12, points=128)
    train(clouds, {"last": 110}, ())
    train(clouds, {"level0": 24, "level1": 24, "last": 32}, (32, 8))
