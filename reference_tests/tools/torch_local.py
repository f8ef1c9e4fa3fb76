"""PointNet++ in plain PyTorch, for the benchmark and the tests of parity: the layers of minipc."""

from itertools import pairwise

import torch
from torch import nn

from minipc.models import pointnet2


def gathered(f, index, form):
    """Return f (B, N, C) at index (B, ...), (B, ..., C), by the operation that form names."""
    clouds, points, channels = f.shape
    flat = index.reshape(clouds, -1)
    if form == "gather":
        rows = torch.gather(f, 1, flat[..., None].expand(-1, -1, channels))
    else:
        first = points * torch.arange(clouds, device=f.device)[:, None]
        rows = f.reshape(-1, channels).index_select(0, (flat + first).reshape(-1))
    return rows.reshape(*index.shape, channels)


def column(widths):
    """Return the layers between widths: linear, batch norm, ReLU of the last axis."""
    return nn.ModuleList(
        nn.ModuleDict({"linear": nn.Linear(i, o, bias=False), "norm": nn.BatchNorm1d(o)})
        for i, o in pairwise(widths)
    )


def through(layers, x):
    """Return x (..., I) after all layers, statistics over all rows."""
    shape = x.shape[:-1]
    x = x.reshape(-1, x.shape[-1])
    for layer in layers:
        x = torch.relu(layer["norm"](layer["linear"](x)))
    return x.reshape(*shape, -1)


class PointNet2(nn.Module):
    """(B, N, 3) and groups -> (B, K): a pointnet2.ModelConfig, its layers by minipc's names."""

    def __init__(self, config, groups, form="index_select"):
        """groups: as pointnet2.prepare() returns them, int64 tensors."""
        super().__init__()
        self.config, self.groups, self.form = config, groups, form
        self.entry = column((3, *config.entry))
        channels, levels = (config.entry or (0,))[-1], []
        for level in config.parsed:
            scales = nn.ModuleList(column((3 + channels, *widths)) for _, widths in level.scales)
            channels = sum(widths[-1] for _, widths in level.scales)
            levels.append(
                nn.ModuleDict(
                    {"scales": scales, "residual": column((channels,) * (1 + level.residual))}
                )
            )
        self.levels, self.times = nn.ModuleList(levels), [level.times for level in config.parsed]
        self.last = column((3 + channels, *config.last))
        self.head = column((config.last[-1] * (1 + config.mean), *config.head))
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(
            (config.last[-1] * (1 + config.mean), *config.head)[-1], config.classes
        )

    def forward(self, points):
        x, arrays = through(self.entry, points) if len(self.entry) else None, iter(self.groups)
        for level, times in zip(self.levels, self.times, strict=True):
            centres = gathered(points, next(arrays), self.form)
            parts = []
            for scale, factor in zip(level["scales"], times, strict=True):
                members = next(arrays)
                rows = (gathered(points, members, self.form) - centres[:, :, None]) * factor
                if x is not None:
                    rows = torch.cat([rows, gathered(x, members, self.form)], dim=3)
                parts.append(through(scale, rows).amax(dim=2))
            x, points = torch.cat(parts, dim=2), centres
            if len(level["residual"]):
                x = x + through(level["residual"], x)
        x = through(self.last, torch.cat([points, x], dim=2))
        x = torch.cat([x.amax(dim=1), x.mean(dim=1)], dim=1) if self.config.mean else x.amax(dim=1)
        return self.out(self.dropout(through(self.head, x)))

    def layers(self):
        """Return {name in minipc: module with linear and norm}."""
        parts = {"entry": self.entry, "last": self.last, "head": self.head}
        named = {f"{name}{i}": one for name, part in parts.items() for i, one in enumerate(part)}
        for i, level in enumerate(self.levels):
            for s, scale in enumerate(level["scales"]):
                named |= {f"level{i}.scale{s}.{j}": one for j, one in enumerate(scale)}
            named |= {f"level{i}.residual": one for one in level["residual"]}
        return named


def groups_of(config, points):
    """Return the groups of points (B, N, 3) float32 as PyTorch reads them."""
    return [torch.as_tensor(group.astype("int64")) for group in pointnet2.prepare(config, points)]
