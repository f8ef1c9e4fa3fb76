"""The PointNet of published code, T-Nets included: a module to record as a teacher.

    record_module(published_pointnet("best_model.pth"), "clouds.h5", "record.h5", views=30)

As in that code (fxia22/pointnet.pytorch, yanx27/Pointnet_Pointnet2_pytorch): a T-Net turns the
points, another one the features behind the first layer, where the checkpoint has it; no ReLU
before the maximum.  It returns logits (B, K) for points (B, N, 3), not their log-softmax.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from minipc.errors import DataError, short
from minipc.torch.checkpoints import read_checkpoint, widths_of
from minipc.torch.present import torch


def published_pointnet(path: str | os.PathLike) -> Any:
    """Return the PublishedPointNet of a checkpoint, in evaluation mode.

    Raises DataError for a file that is none: other names, shapes or dtypes, more than three
    coordinates, values that are not finite.
    """
    where, state = os.fspath(path), read_checkpoint(path)
    parts = {
        name: widths_of(state, f"{name}{{}}", 1, where)
        for prefix in ("", "feat.stn.", "feat.fstn.")
        for name in (f"{prefix or 'feat.'}conv", f"{prefix}fc")
    }
    if [len(parts["feat.conv"]), len(parts["fc"])] != [3, 3]:
        raise DataError(
            f"{where}: expected feat.conv1 to 3 and fc1 to 3 of a published PointNet, found "
            f"{short(', '.join(state))}"
        )
    for name, value in state.items():
        counts = name.endswith(".num_batches_tracked")
        found = getattr(value, "dtype", type(value).__name__)
        if found != (torch.int64 if counts else torch.float32) or value.is_meta:
            raise DataError(
                f"{where}: {name}: expected a float32 tensor with values, found {found}; convert "
                "the network by module.float() and save it again"
            )
        if not value.isfinite().all() or name.endswith(".running_var") and (value < 0).any():
            raise DataError(
                f"{where}: {name} holds NaN, infinite values or a negative variance; its training "
                "diverged"
            )
    for name, side in (("feat.stn.", 3), ("feat.fstn.", parts["feat.conv"][0])):
        if parts[f"{name}fc"][-1:] not in ((), (side**2,)):
            raise DataError(
                f"{where}: {name}fc3 has {parts[f'{name}fc'][-1]} outputs, expected {side} x {side}"
            )
    module = PublishedPointNet(
        parts["feat.conv"],
        parts["fc"],
        (parts["feat.stn.conv"], parts["feat.stn.fc"]),
        (parts["feat.fstn.conv"], parts["feat.fstn.fc"]),
    )
    try:
        module.load_state_dict(state)
    except RuntimeError as reason:
        said = short(" ".join(str(reason).partition(":")[2].split()), 200)
        raise DataError(f"{where}: is no published PointNet of 3 coordinates: {said}") from reason
    return module.eval()


class _Layers(torch.nn.Module):
    """conv1, bn1, ... of (B, C, N); fc1, bn1 or a later one, ... of (B, C)."""

    def __init__(
        self, convs: Sequence[int], dense: Sequence[int] = (), norms_from: int = 1
    ) -> None:
        """convs, dense: widths, the input's first; norms_from: number of the first dense norm."""
        super().__init__()
        for number, (i, o) in enumerate(pairwise(convs), 1):
            self.add_module(f"conv{number}", torch.nn.Conv1d(i, o, 1))
            self.add_module(f"bn{number}", torch.nn.BatchNorm1d(o))
        for number, (i, o) in enumerate(pairwise(dense), 1):
            self.add_module(f"fc{number}", torch.nn.Linear(i, o))
            if number < len(dense) - 1:
                self.add_module(f"bn{norms_from + number - 1}", torch.nn.BatchNorm1d(o))
        self.norms_from, self.dense = norms_from, len(dense) - 1

    def conv(self, x: Any, number: int) -> Any:
        """Return a convolution and its norm, (B, O, N)."""
        return getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))

    def dense_layers(self, x: Any) -> Any:
        """Return all dense layers, a norm and a ReLU between two."""
        for number in range(1, self.dense):
            norm = getattr(self, f"bn{self.norms_from + number - 1}")
            x = norm(getattr(self, f"fc{number}")(x)).relu()
        return getattr(self, f"fc{self.dense}")(x)


class TNet(_Layers):
    """(B, C, N) -> a matrix (B, d, d) for the channels: the identity and what it has learnt."""

    def __init__(self, channels: int, convs: Sequence[int], dense: Sequence[int]) -> None:
        super().__init__((channels, *convs), (convs[-1], *dense), norms_from=len(convs) + 1)
        self.convs, self.side = len(convs), channels

    def forward(self, x: Any) -> Any:
        for number in range(1, self.convs + 1):
            x = self.conv(x, number).relu()
        x = self.dense_layers(x.max(dim=2).values)
        return x.reshape(-1, self.side, self.side) + torch.eye(self.side).to(x)


class PublishedPointNet(_Layers):
    """(B, N, 3) -> (B, K)."""

    def __init__(
        self,
        convs: Sequence[int],
        dense: Sequence[int],
        stn: tuple[Sequence[int], Sequence[int]] = ((), ()),
        fstn: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ) -> None:
        """convs, dense: widths of the three layers of each; stn, fstn: the same of the T-Nets."""
        super().__init__((), (convs[-1], *dense))
        self.feat = _Layers((3, *convs))
        self.feat.stn = TNet(3, *stn) if stn[0] and stn[1] else None
        self.feat.fstn = TNet(convs[0], *fstn) if fstn[0] and fstn[1] else None

    def forward(self, points: Any) -> Any:
        """points (B, N, 3) -> logits (B, K)"""
        x, feat = points.transpose(1, 2), self.feat
        if feat.stn is not None:
            x = feat.stn(x).transpose(1, 2) @ x  # a row vector times the matrix, point by point
        x = feat.conv(x, 1).relu()
        if feat.fstn is not None:
            x = feat.fstn(x).transpose(1, 2) @ x
        x = feat.conv(feat.conv(x, 2).relu(), 3)
        return self.dense_layers(x.max(dim=2).values)
