"""Import published PointNet and PointNet++ checkpoints as models of ours, where they are such.

The layers are recognised by their names (export/state_dict.py), the widths by the shapes.  What a
checkpoint does not say is how its code groups points, and that may differ:

    PointNet++    ours: farthest points from index 0, members nearest first, closer than the radius,
                  groups of the stored cloud.  Published code: a random first point, the first
                  members in the order of the file, up to the radius, groups of what it is given.
                  The weights are the same, the logits near: measure with `minipc eval`.
    PointNet      published code has T-Nets, and no ReLU before its maximum.  Ours has no T-Nets and
                  a ReLU there: such a network is no model of ours, but a teacher (published.py).

torch.load reads tensors and numbers alone (weights_only=True): a file cannot run anything.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minipc.errors import DataError, UsageError, short
from minipc.models import pointnet, pointnet2
from minipc.models.file import Model
from minipc.progress import quiet
from minipc.torch.present import torch
from minipc.torch.state_dict import from_state_dict

WRAPPERS = ("model_state_dict", "state_dict", "model")
AS_TEACHER = (
    "record it as a teacher: minipc.torch.record.record_module(published_pointnet(PATH), ...), "
    "of minipc.torch.published"
)
PUBLISHED = {  # number of scales: centres and neighbours of the two levels
    1: ("512/0.2x32", "128/0.4x64"),
    3: ("512/0.1x16/0.2x32/0.4x128", "128/0.2x32/0.4x64/0.8x128"),
}
# Scalars of NumPy, which training loops save beside the weights, by the names of old and new NumPy.
_scalar = np.float64(0).__reduce__()[0]
SCALARS = [
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
]


def import_checkpoint(
    path: str | os.PathLike,
    described: Mapping[str, Any],
    *,
    levels: Sequence[str] | None = None,
    relu_before_max: bool = False,
    say: Callable[[str], None] = quiet,
) -> Model:
    """Return the Model of a checkpoint.

    described: class names, up axis and normalisation of its training data, as Clouds.described.
    levels: for a PointNet++ centres and neighbours of each level, such as "512/0.2x32"; None: the
    published ones.  relu_before_max: for a PointNet without T-Nets, that its code has a ReLU before
    its maximum; names and shapes do not tell.  say(line) tells what the checkpoint does not say.

    Raises DataError for a file that is no such checkpoint, or no model of ours; UsageError for
    levels that do not fit.
    """
    where = os.fspath(path)
    state = read_checkpoint(where)
    if not any(name.startswith("sa1.") for name in state):
        config: Any = _pointnet(state, len(described["class_names"]), relu_before_max, where)
    else:
        config = _pointnet2(state, len(described["class_names"]), levels, where)
        say(
            f"{where}: grouped as minipc does ({', '.join(config.levels)}); its code may choose "
            "other neighbours, so measure its accuracy here: minipc eval"
        )
    classes = widths_of(state, "fc{}", 1, where)[-1]
    if classes != config.classes:
        raise DataError(
            f"{where}: has {classes} classes, but {config.classes} class names were given; pass "
            "those of its training data, in its order"
        )
    say(f"{where}: batch norm with eps {config.eps:g} and momentum {config.momentum:g}")
    return from_state_dict(state, config, described, {"imported": os.path.basename(where)}, where)


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return {name: tensor} of a file that torch.save wrote, on the CPU.

    Takes the state dict out of what training loops wrap around it, and the "module." of
    DataParallel off its names.  Raises DataError for a file that is missing, damaged, holds more
    than tensors and numbers, or no state dict.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  what it raises differs from a file that is damaged
    except OSError as reason:
        raise DataError(f"{path}: cannot be read: {reason.strerror or reason}") from reason
    try:
        with file, torch.serialization.safe_globals(SCALARS):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as reason:  # UnpicklingError, RuntimeError, EOFError: whatever a file causes
        raise DataError(
            f"{path}: torch.load reads no weights from it ({_why(reason)}); save the state dict "
            "alone: torch.save(module.state_dict(), PATH)"
        ) from reason
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not any(map(torch.is_tensor, found.values())):
        raise DataError(
            f"{path}: expected a state dict, or one as {', '.join(WRAPPERS)}, found "
            f"{_contents(found)}"
        )
    names = [str(name) for name in found]
    if all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return dict(zip(names, found.values(), strict=True))


def _why(reason: Exception) -> str:
    """Return why torch.load reads nothing, without its advice to trust the file."""
    said = " ".join(str(reason).split())
    if found := re.search(r"GLOBAL ([\w.]+)", said):
        return f"it holds {found[1]}, which is neither a tensor nor a number"
    return "it is damaged, or not of torch.save" if said else type(reason).__name__


def _contents(found: Any) -> str:
    """Return what a file holds, for a message."""
    if isinstance(found, Mapping):
        return f"{short(', '.join(map(str, found)) or 'nothing')}"
    return f"a {type(found).__name__}"


def _pointnet(state: dict, classes: int, relu_before_max: bool, where: str) -> Any:
    """Return the ModelConfig of a PointNet without T-Nets.  Raises DataError."""
    shared, head = widths_of(state, "feat.conv{}", 1, where), widths_of(state, "fc{}", 1, where)
    if not shared or not head:
        raise DataError(
            f"{where}: expected the names of a PointNet (feat.conv1.weight, fc1.weight, ...) or a "
            f"PointNet++ (sa1.mlp_convs.0.weight, ...), found {short(', '.join(state))}"
        )
    if any(name.startswith(("feat.stn.", "feat.fstn.")) for name in state):
        raise DataError(f"{where}: has T-Nets, which models of minipc have not; {AS_TEACHER}")
    if not relu_before_max:
        raise DataError(
            f"{where}: published code of these names has no ReLU before its maximum, models of "
            f"minipc have one; {AS_TEACHER}; or pass relu_before_max=True if its code has one"
        )
    _check_points(state, "feat.conv1", where)
    dropout = pointnet.NAMED_SIZES["teacher"][2]  # 0.3, in published code too
    return pointnet.ModelConfig(shared, head[:-1], classes, dropout)


def _pointnet2(
    state: dict, classes: int, levels: Sequence[str] | None, where: str
) -> pointnet2.ModelConfig:
    """Return the ModelConfig of a PointNet++.  Raises DataError or UsageError."""
    numbers = {int(found[1]) for name in state if (found := re.match(r"sa(\d{1,3})\.", name))}
    last = max(numbers)
    scales = [_scales(state, number, where) for number in range(1, last)]
    if levels is None:
        counts = {len(each) for each in scales}
        if len(scales) != 2 or len(counts) != 1 or not counts <= PUBLISHED.keys():
            raise UsageError(
                f"{where}: has {len(scales)} levels of {', '.join(map(str, map(len, scales)))} "
                "scales, not two of one or three; pass levels, such as 512/0.2x32"
            )
        levels = PUBLISHED[counts.pop()]
    near = [level.split("/") for level in levels]
    if [len(each) - 1 for each in near] != [len(each) for each in scales]:
        raise UsageError(
            f"{where}: has levels of {', '.join(map(str, map(len, scales)))} scales, got levels "
            f"{', '.join(levels)}"
        )
    texts = [
        "/".join(
            [centres, *(f"{a}:{'-'.join(map(str, b))}" for a, b in zip(of, widths, strict=True))]
        )
        for (centres, *of), widths in zip(near, scales, strict=True)
    ]
    first = "sa1.mlp_convs.0" if len(scales[0]) == 1 else "sa1.conv_blocks.0.0"
    _check_points(state, first, where)
    over_centres = widths_of(state, f"sa{last}.mlp_convs.{{}}", 0, where)
    head = widths_of(state, "fc{}", 1, where)
    if not over_centres or not head:
        raise DataError(
            f"{where}: misses sa{last}.mlp_convs.0.weight or fc1.weight; it is no PointNet++ for "
            "classification"
        )
    dropout = pointnet2.NAMED_SIZES["pointnet2"][1]
    return pointnet2.ModelConfig((), tuple(texts), over_centres, False, head[:-1], classes, dropout)


def _scales(state: dict, number: int, where: str) -> list[tuple[int, ...]]:
    """Return the widths of each scale of a level.  Raises DataError where it has none."""
    found = [widths_of(state, f"sa{number}.mlp_convs.{{}}", 0, where)]
    if not found[0]:
        found = []
        while widths := widths_of(state, f"sa{number}.conv_blocks.{len(found)}.{{}}", 0, where):
            found.append(widths)
    if not found:
        raise DataError(
            f"{where}: misses sa{number}.mlp_convs.0.weight or sa{number}.conv_blocks.0.0.weight"
        )
    return found


def widths_of(state: Mapping[str, Any], names: str, first: int, where: str) -> tuple[int, ...]:
    """Return the outputs of the layers with names such as "fc{}", numbered from first."""
    widths: list[int] = []
    while (name := f"{names.format(first + len(widths))}.weight") in state:
        shape: tuple = tuple(getattr(state[name], "shape", ()))
        if len(shape) < 2 or 0 in shape:
            raise DataError(f"{where}: {name}: expected shape (O, I, ...), found {shape}")
        widths.append(int(shape[0]))
    return tuple(widths)


def _check_points(state: Mapping[str, Any], name: str, where: str) -> None:
    """Raise DataError unless the first layer reads three coordinates."""
    channels = state[f"{name}.weight"].shape[1]
    if channels != 3:
        raise DataError(
            f"{where}: {name}.weight reads {channels} numbers a point (normals?), models of "
            "minipc read the 3 coordinates; record it as a teacher by its own code"
        )
