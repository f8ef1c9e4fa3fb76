"""The arrays of a model under the names and in the layout of PyTorch modules.

    PointNet      feat.conv1 (O, I, 1), feat.bn1, ...; fc1 (O, I), bn1, ...; the last fc has a bias
    PointNet++    sa1.mlp_convs.0 (O, I, 1, 1), sa1.mlp_bns.0, ... where a level has one scale;
                  sa1.conv_blocks.0.0, sa1.bn_blocks.0.0, ... where it has several; the layers over
                  the last centres are one sa more; fc1, bn1, ... as above
    ours alone    entry.mlp_convs.0, entry.mlp_bns.0; sa1.residual_conv, sa1.residual_bn

These are the names of published code, as far as it has such layers.  A norm has weight, bias,
running_mean, running_var and num_batches_tracked.  Our W (I, O) is the weight (O, I) transposed.
Published levels of several scales read the features first and the offset last; all others, and
ours, the offset first.
"""

import re
from typing import Any

import numpy as np

from minipc.models.file import Model
from minipc.models.model import net


def state_dict(model: Model) -> dict[str, np.ndarray]:
    """Return {name: array} of every parameter and running statistic of a model on the host."""
    found: dict[str, np.ndarray] = {}
    for layer in net(model.config).channels(model.config):
        weight, norm, ones, turned = _place(layer, model.config)
        W = model.params[f"{layer}.W"]
        W = np.roll(W, -3, axis=0) if turned and len(W) > 3 else W
        found[f"{weight}.weight"] = np.ascontiguousarray(W.T[(..., *[None] * ones)])
        if not norm:
            found[f"{weight}.bias"] = model.params[f"{layer}.b"]
            continue
        found[f"{norm}.weight"] = model.params[f"{layer}.gamma"]
        found[f"{norm}.bias"] = model.params[f"{layer}.beta"]
        found[f"{norm}.running_mean"] = model.stats[f"{layer}.mean"]
        found[f"{norm}.running_var"] = model.stats[f"{layer}.var"]
        found[f"{norm}.num_batches_tracked"] = np.array(0, np.int64)
    return found


def _place(layer: str, config: Any) -> tuple[str, str, int, bool]:
    """Return the names of a layer's weight and norm, the axes of length 1 behind (O, I), and
    whether the offset is last."""
    scales = [len(some) for _, some in net(config).grouping(config)]
    at = [int(number) for number in re.findall("[0-9]+", layer)]
    if layer == "out":
        return f"fc{len(config.head) + 1}", "", 0, False
    if layer.startswith("head"):
        return f"fc{at[0] + 1}", f"bn{at[0] + 1}", 0, False
    if layer.startswith("shared"):
        return f"feat.conv{at[0] + 1}", f"feat.bn{at[0] + 1}", 1, False
    if layer.endswith("residual"):
        return f"sa{at[0] + 1}.residual_conv", f"sa{at[0] + 1}.residual_bn", 2, False
    if layer.startswith("level") and scales[at[0]] > 1:
        level, scale, number = at
        of_layer = f"blocks.{scale}.{number}"
        sa = f"sa{level + 1}"
        return f"{sa}.conv_{of_layer}", f"{sa}.bn_{of_layer}", 2, number == 0
    above = len(scales) if layer.startswith("last") else at[0]
    part = "entry" if layer.startswith("entry") else f"sa{above + 1}"
    return f"{part}.mlp_convs.{at[-1]}", f"{part}.mlp_bns.{at[-1]}", 2, False
