"""The arrays of a model under the names and in the layout of a state dict of PyTorch.

This is the one table of these names, for safetensors and for minipc.torch; it needs no PyTorch.
The names are those of published code, as far as it has such layers:

    PointNet      feat.conv1 (O, I, 1), feat.bn1, ...; fc1 (O, I), bn1, ...; fc3 without a norm
    PointNet++    sa1.mlp_convs.0 (O, I, 1, 1), sa1.mlp_bns.0, ... where a level has one scale;
                  sa1.conv_blocks.0.0, sa1.bn_blocks.0.0, ... where it has several; the layers over
                  the last centres are one sa more; fc1, bn1, ... as above
    ours alone    entry.mlp_convs.0, entry.mlp_bns.0; sa1.residual_conv, sa1.residual_bn

A norm has weight, bias, running_mean, running_var, num_batches_tracked.  Our W (I, O) is the weight
(O, I) transposed.  Published levels of several scales read the features first and the offset last,
all others the offset first, as ours do.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import to_host
from minipc.export.folding import factors
from minipc.models.file import Model
from minipc.models.model import net

NORM = {"gamma": "weight", "beta": "bias"}  # of our params
RUNNING = {"mean": "running_mean", "var": "running_var"}  # of our stats


class Place(NamedTuple):
    """Where a layer of ours stands in a state dict."""

    layer: str  # "level0.scale1.0"
    weight: str  # "sa1.conv_blocks.1.0"
    norm: str  # "sa1.bn_blocks.1.0"; "" for the output layer
    ones: int  # axes of length 1 behind (O, I)
    offset_last: bool  # its first input channels are features, its last three the offset

    def turned(self, W: np.ndarray) -> np.ndarray:
        """Return W (I, O) of ours as the weight (O, I, 1, ...) of PyTorch, a new array."""
        weight = np.roll(W, -3, axis=0) if self.offset_last else W
        return np.array(weight.T[(..., *[None] * self.ones)], order="C")

    def back(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight (O, I, 1, ...) of PyTorch as W (I, O) of ours, a new array."""
        W = weight.reshape(weight.shape[:2]).T
        return np.array(np.roll(W, 3, axis=0) if self.offset_last else W, order="C")


def places(config: Any) -> list[Place]:
    """Return the Place of each layer of a model, in the order of the forward."""
    specs = net(config).param_specs(config)
    shapes = {name[:-2]: spec.shape for name, spec in specs.items() if name.endswith(".W")}
    levels = list(getattr(config, "levels", ()))
    found = []
    for layer, (fan_in, _) in shapes.items():
        part, *numbers = re.split(r"(?<=[a-z])(?=\d)|\.", layer)
        at = [int(number) for number in numbers if number.isdigit()]
        if part == "shared":
            found.append(Place(layer, f"feat.conv{at[0] + 1}", f"feat.bn{at[0] + 1}", 1, False))
        elif part == "head":
            found.append(Place(layer, f"fc{at[0] + 1}", f"bn{at[0] + 1}", 0, False))
        elif part == "out":
            found.append(Place(layer, f"fc{len(config.head) + 1}", "", 0, False))
        elif layer.endswith(".residual"):
            sa = f"sa{at[0] + 1}.residual"
            found.append(Place(layer, f"{sa}_conv", f"{sa}_bn", 2, False))
        elif part == "level" and levels[at[0]].count("/") > 1:
            sa, rest = f"sa{at[0] + 1}", f"{at[1]}.{at[2]}"
            turned = at[2] == 0 and fan_in > 3
            found.append(
                Place(layer, f"{sa}.conv_blocks.{rest}", f"{sa}.bn_blocks.{rest}", 2, turned)
            )
        else:
            sa = {"entry": "entry", "level": f"sa{at[0] + 1}", "last": f"sa{len(levels) + 1}"}[part]
            found.append(
                Place(layer, f"{sa}.mlp_convs.{at[-1]}", f"{sa}.mlp_bns.{at[-1]}", 2, False)
            )
    return found


def state_dict(model: Model, biases: bool = False) -> dict[str, np.ndarray]:
    """Return {name: new array} of every parameter and running statistic of a model, on the host.

    biases: add zeros as the biases before batch norm that published layers have.  Published code
    multiplies no offset either, so what a level multiplies its offsets by is then in its weights.
    """
    state, times = {}, factors(model.config)
    for place in places(model.config):
        layer = place.layer
        W = np.array(to_host(model.params[f"{layer}.W"]))
        if biases:
            W[:3] *= times.get(layer, 1)
        state[f"{place.weight}.weight"] = place.turned(W)
        if not place.norm:
            state[f"{place.weight}.bias"] = np.array(to_host(model.params[f"{layer}.b"]))
            continue
        gamma = to_host(model.params[f"{layer}.gamma"])
        if biases:
            state[f"{place.weight}.bias"] = np.zeros_like(gamma)
        for names, arrays in ((NORM, model.params), (RUNNING, model.stats)):
            for ours, theirs in names.items():
                state[f"{place.norm}.{theirs}"] = np.array(to_host(arrays[f"{layer}.{ours}"]))
        state[f"{place.norm}.num_batches_tracked"] = np.array(0, np.int64)
    return state
