"""Our models as modules of PyTorch, to go on with there.  The names are export/state_dict.py's.

    module = to_module(read_model("teacher/last.h5"))     points (B, N, 3) -> logits (B, K)

A new module is in training mode, as any module of PyTorch.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from minipc.models import pointnet2
from minipc.models.file import Model
from minipc.torch.present import torch
from minipc.torch.state_dict import to_state_dict


def to_module(model: Model) -> Any:
    """Return a PointNet or PointNet2 below with the weights and statistics of a Model."""
    kind = {"pointnet": PointNet, "pointnet2": PointNet2}[model.config.architecture]
    module = kind(model.config)
    module.load_state_dict(to_state_dict(model))
    return module


class Head(torch.nn.Module):
    """[linear, batch norm, relu] of (B, I), dropout, linear: fc1, bn1, ... of its subclasses."""

    def __init__(self, fan_in: int, config: Any) -> None:
        super().__init__()
        self.depth = len(config.head)
        widths = (fan_in, *config.head)
        for number, (i, o) in enumerate(pairwise(widths), 1):
            setattr(self, f"fc{number}", torch.nn.Linear(i, o, bias=False))
            setattr(self, f"bn{number}", torch.nn.BatchNorm1d(o, config.eps, config.momentum))
        setattr(self, f"fc{self.depth + 1}", torch.nn.Linear(widths[-1], config.classes))
        self.dropout = torch.nn.Dropout(config.dropout)

    def logits(self, x: Any) -> Any:
        """Return the logits (B, K) of what was pooled, (B, I)."""
        for number in range(1, self.depth + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"fc{number}")(x)).relu()
        return getattr(self, f"fc{self.depth + 1}")(self.dropout(x))


class PointNet(Head):
    """A PointNet of ours, models/pointnet.py."""

    def __init__(self, config: Any) -> None:
        """config: a pointnet.ModelConfig."""
        super().__init__(config.shared[-1], config)
        self.feat = torch.nn.Module()
        self.shared = len(config.shared)
        for number, (i, o) in enumerate(pairwise((3, *config.shared)), 1):
            norm = torch.nn.BatchNorm1d(o, config.eps, config.momentum)
            self.feat.add_module(f"conv{number}", torch.nn.Conv1d(i, o, 1, bias=False))
            self.feat.add_module(f"bn{number}", norm)

    def forward(self, points: Any) -> Any:
        """points (B, N, 3) -> logits (B, K)"""
        x = points.transpose(1, 2)
        for number in range(1, self.shared + 1):
            conv, norm = getattr(self.feat, f"conv{number}"), getattr(self.feat, f"bn{number}")
            x = norm(conv(x)).relu()
        return self.logits(x.max(dim=2).values)


class PointNet2(Head):
    """A PointNet++ of ours, models/pointnet2.py."""

    def __init__(self, config: Any) -> None:
        """config: a pointnet2.ModelConfig."""
        super().__init__(config.last[-1] * (1 + config.mean), config)
        self.config = config
        channels = 0
        if config.entry:
            self.entry = SharedLayers((3, *config.entry), config)
            channels = config.entry[-1]
        for number, level in enumerate(config.parsed, 1):
            setattr(self, f"sa{number}", SetAbstraction(channels, level, config))
            channels = sum(widths[-1] for _, widths in level.scales)
        self.levels = len(config.levels)
        last = SharedLayers((3 + channels, *config.last), config)
        setattr(self, f"sa{self.levels + 1}", last)

    def forward(self, points: Any, groups: Sequence[Any] | None = None) -> Any:
        """points (B, N, 3), groups of the stored clouds -> logits (B, K)

        groups: int64 tensors as pointnet2.prepare() returns arrays, in a RecordDataset's rows too.
        None: of these points themselves, made by NumPy on the host; of an augmented cloud these
        are other ones than minipc takes.
        """
        if groups is None:
            groups = self.groups_of(points)
        each, x = iter(groups), None
        if self.config.entry:
            x = self.entry(points.transpose(1, 2)[..., None])[..., 0]  # (B, C, N)
        for number in range(1, self.levels + 1):
            points, x = getattr(self, f"sa{number}")(points, x, each)
        x = torch.cat([points.transpose(1, 2), x], dim=1)[..., None]
        x = getattr(self, f"sa{self.levels + 1}")(x)[..., 0]  # (B, O, M)
        pooled = [x.max(dim=2).values, *([x.mean(dim=2)] if self.config.mean else [])]
        return self.logits(torch.cat(pooled, dim=1))

    def groups_of(self, points: Any) -> list[Any]:
        """Return the groups of stored clouds (B, N, 3) as int64 tensors beside them."""
        groups = pointnet2.prepare(self.config, points.detach().cpu().float().numpy())
        return [torch.from_numpy(group.astype("int64")).to(points.device) for group in groups]


def layers_of(widths: Iterable[int], config: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (convolution, batch norm) of each layer between widths, for (B, I, k, M)."""
    for i, o in pairwise(widths):
        norm = torch.nn.BatchNorm2d(o, config.eps, config.momentum)
        yield torch.nn.Conv2d(i, o, 1, bias=False), norm


def through(layers: Iterable[tuple[Any, Any]], x: Any) -> Any:
    """Return x (B, I, k, M) after [linear, batch norm, relu] of its channels, (B, O, k, M)."""
    for conv, norm in layers:
        x = norm(conv(x)).relu()
    return x


class SharedLayers(torch.nn.Module):
    """Layers applied to each column: (B, I, k, M) -> (B, O, k, M)."""

    def __init__(self, widths: Sequence[int], config: Any) -> None:
        super().__init__()
        convs, norms = zip(*layers_of(widths, config), strict=True)
        self.mlp_convs = torch.nn.ModuleList(convs)
        self.mlp_bns = torch.nn.ModuleList(norms)

    def forward(self, x: Any) -> Any:
        return through(zip(self.mlp_convs, self.mlp_bns, strict=True), x)


class SetAbstraction(torch.nn.Module):
    """One level: groups of neighbours, shared layers, the maximum of each group."""

    def __init__(self, channels: int, level: Any, config: Any) -> None:
        """channels of the features that it reads; level: a pointnet2.Level."""
        super().__init__()
        made = [
            list(zip(*layers_of((3 + channels, *widths), config), strict=True))
            for _, widths in level.scales
        ]
        convs, norms = zip(*made, strict=True)
        if len(made) == 1:
            self.mlp_convs = torch.nn.ModuleList(convs[0])
            self.mlp_bns = torch.nn.ModuleList(norms[0])
        else:
            self.conv_blocks = torch.nn.ModuleList(map(torch.nn.ModuleList, convs))
            self.bn_blocks = torch.nn.ModuleList(map(torch.nn.ModuleList, norms))
        if level.residual:
            width = sum(widths[-1] for _, widths in level.scales)
            ((self.residual_conv, self.residual_bn),) = layers_of((width, width), config)
        self.residual, self.several, self.times = level.residual, len(made) > 1, level.times

    def forward(self, points: Any, x: Any, groups: Iterator[Any]) -> tuple[Any, Any]:
        """points (B, N, 3), features (B, C, N) or None -> centres (B, M, 3), (B, O, M)"""
        centres = taken(points, next(groups))
        scales = (
            zip(self.conv_blocks, self.bn_blocks, strict=True)
            if self.several
            else [(self.mlp_convs, self.mlp_bns)]
        )
        parts = []
        for (convs, norms), factor in zip(scales, self.times, strict=True):
            members = next(groups)
            rows = [(taken(points, members) - centres[:, :, None]) * factor]  # (B, M, k, 3)
            if x is not None:
                rows.append(taken(x.transpose(1, 2), members))
            # features before the offset where a level has several scales: state_dict.py
            ordered = torch.cat(rows[::-1] if self.several else rows, dim=3).permute(0, 3, 2, 1)
            parts.append(through(zip(convs, norms, strict=True), ordered).max(dim=2).values)
        x = torch.cat(parts, dim=1)
        if self.residual:
            x = x + through([(self.residual_conv, self.residual_bn)], x[:, :, None])[:, :, 0]
        return centres, x


def taken(rows: Any, index: Any) -> Any:
    """Return rows (B, N, C) at index (B, ...), as (B, ..., C)."""
    clouds = torch.arange(len(rows), device=rows.device)
    return rows[clouds.reshape(-1, *[1] * (index.dim() - 1)), index]
