"""The clouds of a shard on a device, and the blocks of one view after the other as a CUDA graph.

Clouds and graph stay there as long as shards of other views of the same clouds follow: such a
shard sends the parameters of its views, and starts one operation for each block.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minipc.models.inputs import Inputs
from minipc.nn import graph, kernels
from minipc.nn.engine import Evaluator
from minipc.nn.fast.workspace import Workspace

EAGER = 2  # blocks that run one operation at a time, make buffers and load kernels


class Blocks:
    """The features of a model of ours on a device that captures graphs."""

    def __init__(
        self, ours: Evaluator, points: np.ndarray, groups: Sequence[np.ndarray], block: int, xp: Any
    ) -> None:
        """points (R, P, 3) and groups (R, ...) on the host, R a multiple of block.

        ours: of the fast engine; the textbook's products cannot be captured.
        """
        self.ours, self.block, self.work = ours, block, Workspace(xp)
        self.works = [work for work in (self.work, ours.work) if work]
        self.points = xp.ascontiguousarray(xp.asarray(points).swapaxes(1, 2))
        self.groups = tuple(map(xp.asarray, groups))
        self.order = xp.arange(len(points)).reshape(-1, block)
        self.counter = xp.zeros(1, np.int64)
        self.steps = 0
        self.graph: graph.Graph | None = None
        self.out: Any = None

    def of(self, scale: np.ndarray, shift: np.ndarray) -> Iterator[Any]:
        """Yield the features (block, O) of each block of a view, (R, 3) each, on the device.

        The next view overwrites them.
        """
        held = kernels.held(self.work, "scale", scale), kernels.held(self.work, "shift", shift)
        self.counter[...] = 0

        def step() -> None:
            kernels.next_of({"rows": self.order}, self.counter, self.work)
            rows = self.work.array("held rows", (self.block,), self.order.dtype)
            x = kernels.views(self.points, rows, *held)
            groups = tuple(group[rows] for group in self.groups)
            found = self.ours.features(Inputs(x, groups))
            if self.out is None:
                self.out = self.work.xp.empty((len(self.points), found.shape[1]), found.dtype)
            self.out[rows] = found

        for first in range(0, len(self.points), self.block):
            if self.steps == EAGER:
                self.graph = graph.captured(step, *self.works)
            self.steps += 1
            if self.graph is None:
                step()
            else:
                self.graph.replay()
            yield self.out[first : first + self.block]
