"""The student's earlier self: where the logits u of the negative-weight term come from.

Which self arXiv 2409.02020 means is not available to us; these are our readings, with their
effects derived in docs/math.md.  The student's own output of the same step is excluded: its
gradient is identically zero.  A row without a target yet has weight zero.  The whole state of a
target goes into the checkpoint of a run, else a resumed run would be another one.
"""

import numpy as np

from minipc.backend import module_of, to_host, tree_to
from minipc.models.inputs import points_of


class SelfTarget:
    """What training asks of every target, in this order; each kind overrides what it needs."""

    def epoch_starts(self, epoch, xp):
        """Epoch (from 0) begins on module xp."""

    def target(self, rows, inputs):
        """rows (B,) on the host, inputs as a model reads them -> u (B, K), has (B,) of 0 and 1; or
        None for no row.
        """
        raise NotImplementedError

    def stepped(self, rows, logits, params):
        """A step on the clouds rows ended: it saw logits (B, K) and made params."""

    def epoch_ended(self, epoch, params):
        """Epoch (from 0) ended with params; the next step may write into these arrays."""

    def state(self):
        """Return {name: array on the host}: all that is needed to go on."""
        return {}

    def load(self, state, xp):
        """Take over what state() returned at the same point of another run, onto module xp."""


class Snapshot(SelfTarget):
    """The student at the end of the last n-th epoch, run on the same replayed clouds.

    forward(params, inputs) -> logits must be the training form of batch norm (batch statistics,
    not tracked, no dropout), so that zero lag gives exactly zero self-gradient.
    """

    def __init__(self, forward, every=1):
        self.forward, self.every, self.params = forward, every, None

    def target(self, rows, inputs):
        if self.params is None:
            return None
        u = self.forward(self.params, inputs)
        return u, module_of(u).ones(len(u), u.dtype)

    def epoch_ended(self, epoch, params):
        if (epoch + 1) % self.every == 0:
            self.params = {name: value.copy() for name, value in params.items()}

    def state(self):
        return {name: to_host(value) for name, value in (self.params or {}).items()}

    def load(self, state, xp):
        self.params = tree_to(xp, state) or None


class Ema(Snapshot):
    """A moving average of the student's weights: e <- m e + (1 - m) w after every step.

    Run like a snapshot: with the batch's own statistics a student at rest equals its average
    exactly, so the stationary points stay and averaged statistics are not needed.  (Tarvainen &
    Valpola 2017 for the average.)
    """

    def __init__(self, forward, decay=0.99):
        super().__init__(forward)
        self.decay = decay

    def stepped(self, rows, logits, params):
        old, m = self.params or params, self.decay
        # e + (1 - m)(w - e) and not m e + (1 - m) w: at rest it adds exactly zero
        self.params = {
            name: old[name] + (1 - m) * (value - old[name]) for name, value in params.items()
        }

    def epoch_ended(self, epoch, params):
        pass


class History(SelfTarget):
    """The student's own logits at its last visit to the same cloud, usually under another view.

    Free, and not neutral: it pushes the views of one cloud apart (docs/math.md).  Kept as float16
    on the host, K a cloud, as in the checkpoint.
    """

    def __init__(self, clouds, classes):
        self.logits = np.zeros((clouds, classes), np.float16)
        self.visited = np.zeros(clouds, bool)

    def target(self, rows, inputs):
        points = points_of(inputs)
        xp = module_of(points)
        u = xp.asarray(self.logits[rows]).astype(points.dtype)
        return u, xp.asarray(self.visited[rows].astype(points.dtype))

    def stepped(self, rows, logits, params):
        largest = float(np.finfo(np.float16).max)
        self.logits[rows] = np.clip(to_host(logits), -largest, largest)
        self.visited[rows] = True

    def state(self):
        return {"logits": self.logits.copy(), "visited": self.visited.astype(np.uint8)}

    def load(self, state, xp):
        self.logits, self.visited = state["logits"].copy(), state["visited"].astype(bool)


class SecondRecord(SelfTarget):
    """Logits of an earlier student from a second record of the same views: a frozen target.

    view_logits(epoch) -> (N, K) on the host, of the view that this epoch replays.  Held for the
    whole run, it shifts the optimum (docs/math.md).
    """

    def __init__(self, view_logits):
        self.view_logits, self.logits = view_logits, None

    def epoch_starts(self, epoch, xp):
        self.logits = xp.asarray(self.view_logits(epoch))

    def target(self, rows, inputs):
        points = points_of(inputs)
        xp = module_of(points)
        u = self.logits[xp.asarray(rows)].astype(points.dtype)
        return u, xp.ones(len(u), u.dtype)
