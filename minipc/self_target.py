"""The student's earlier self: where the logits u of the negative-weight term come from.

Which self arXiv 2409.02020 means is not available to us; these are our readings, with their
effects derived in docs/math.md.  The student's own output of the same step is excluded: its
gradient is identically zero.  A target answers `target(rows, points)` with (u, has) or None,
is told what the student said by `seen`, and what it has become by `epoch_ended`.
"""

import numpy as np

from minipc.backend import module_of, to_host
from minipc.errors import UsageError
from minipc.nn.pointnet import forward_train


class Snapshot:
    """The student at the end of the last n-th epoch, run on the same replayed clouds.

    It runs in the training form of batch norm (batch statistics, not tracked, no dropout), so
    that zero lag gives exactly zero self-gradient.
    """

    def __init__(self, config, every=1):
        if every < 1:
            raise UsageError(f"self every: expected at least 1 epoch, got {every}")
        self.config, self.every, self.params = config, every, None

    def target(self, rows, points):
        """rows (B,) on the host, points (B, N, 3) -> u (B, K), has (B,); None in the first epochs."""
        if self.params is None:
            return None
        u, _, _ = forward_train(self.params, points, self.config)
        return u, module_of(u).ones(len(u), u.dtype)

    def seen(self, rows, logits):
        """Nothing is kept of single steps."""

    def epoch_ended(self, epoch, params):
        """Keep params (never written into by the optimiser) after every n-th epoch, from 0."""
        if (epoch + 1) % self.every == 0:
            self.params = dict(params)


class History:
    """The student's own logits at its last visit to the same cloud, usually under another view.

    Free, and not neutral: it pushes the views of one cloud apart (docs/math.md).  Kept as float16
    on the host, K a cloud, as they would be in a checkpoint.
    """

    def __init__(self, clouds, classes):
        self.logits = np.zeros((clouds, classes), np.float16)
        self.visited = np.zeros(clouds, bool)

    def target(self, rows, points):
        """rows (B,) on the host, points (B, N, 3) -> u (B, K), has (B,), zero at a first visit."""
        xp = module_of(points)
        u = xp.asarray(self.logits[rows]).astype(points.dtype)
        return u, xp.asarray(self.visited[rows].astype(points.dtype))

    def seen(self, rows, logits):
        """Remember logits (B, K) of the clouds rows, clipped to what float16 holds."""
        largest = float(np.finfo(np.float16).max)
        self.logits[rows] = np.clip(to_host(logits), -largest, largest)
        self.visited[rows] = True

    def epoch_ended(self, epoch, params):
        """Nothing is kept of parameters."""
