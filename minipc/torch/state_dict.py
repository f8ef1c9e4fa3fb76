"""Our models as state dicts of PyTorch, and back: the same bits, so the same identity.

export/state_dict.py says which names.  The tensors are float32 on the CPU.  Batch norm has the
conventions of PyTorch in both: the running variance is the one with divisor R - 1, momentum weighs
the new batch, so nothing is converted.

Published layers have a bias before batch norm, ours have none.  There it only moves the mean that
is subtracted again, so a bias b becomes part of the running mean: mean - b, rounded once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipc.errors import DataError, short
from minipc.export.folding import factors
from minipc.export.state_dict import NORM, RUNNING, places, state_dict
from minipc.models.file import Model
from minipc.models.model import net
from minipc.storage.files import check_keys
from minipc.torch.present import torch


def to_state_dict(model: Model, biases: bool = False) -> dict[str, Any]:
    """Return {name: tensor} of a Model: a state dict of minipc.torch.modules, or of published code.

    biases: add zeros as the biases before batch norm that published layers have, so that they load
    it strictly, and put what a level multiplies its offsets by into its weights.
    """
    arrays = state_dict(model, biases)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def from_state_dict(
    state: Mapping[str, Any],
    config: Any,
    described: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
    where: str = "state dict",
) -> Model:
    """Return the Model with the tensors of a state dict; its arrays are new.

    config: sizes of the model, as sizes() returns them; described: class names, up axis and
    normalisation of its training data, as Clouds.described returns them; trained: for people.
    Raises DataError, naming where, for missing or foreign names, other shapes, dtypes other than
    float32, values that are not finite, and a negative running variance.
    """
    check_keys(described, {"class_names", "up_axis", "normalisation"}, f"{where}: described")
    if len(described["class_names"]) != config.classes:
        raise DataError(
            f"{where}: described has {len(described['class_names'])} class names, but the model "
            f"has {config.classes} classes"
        )
    _check_names(state, config, where)
    model = net(config)
    specs, initial = model.param_specs(config), model.initial_stats(config)
    times = factors(config)  # in the weights where there are biases, see export/state_dict.py
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for place in places(config):
        layer, shape = place.layer, specs[f"{place.layer}.W"].shape
        weight = _array(state, f"{place.weight}.weight", (*shape[::-1], *[1] * place.ones), where)
        params[f"{layer}.W"] = place.back(weight)
        bias = None
        if not place.norm or f"{place.weight}.bias" in state:
            bias = _array(state, f"{place.weight}.bias", shape[1:], where)
        if not place.norm:
            params[f"{layer}.b"] = bias
            continue
        for names, arrays in ((NORM, params), (RUNNING, stats)):
            for ours, theirs in names.items():
                name = f"{place.norm}.{theirs}"
                arrays[f"{layer}.{ours}"] = _array(state, name, shape[1:], where)
        if (stats[f"{layer}.var"] < 0).any():
            raise DataError(
                f"{where}: {place.norm}.running_var: expected no negative variance, found "
                f"{stats[f'{layer}.var'].min():.3g}; the file is damaged or of another layer"
            )
        if bias is not None:
            stats[f"{layer}.mean"] -= bias
            params[f"{layer}.W"][:3] /= times.get(layer, 1)
    return Model(
        config,
        {name: params[name] for name in specs},
        {name: stats[name] for name in initial},
        {**described, "class_names": list(described["class_names"])},
        dict(trained or {}),
    )


def _check_names(state: Mapping[str, Any], config: Any, where: str) -> None:
    """Raise DataError unless a state dict has the names of a model, a bias more or not."""
    needed: set[str] = set()
    allowed: set[str] = set()
    for place in places(config):
        needed.add(f"{place.weight}.weight")
        (allowed if place.norm else needed).add(f"{place.weight}.bias")
        if place.norm:
            needed |= {f"{place.norm}.{part}" for part in (*NORM.values(), *RUNNING.values())}
            allowed.add(f"{place.norm}.num_batches_tracked")
    missing, foreign = needed - state.keys(), state.keys() - needed - allowed
    if missing or foreign:
        raise DataError(
            f"{where}: misses {short(', '.join(sorted(missing)) or 'nothing')}, has foreign "
            f"{short(', '.join(sorted(map(str, foreign))) or 'nothing')}; it is of another model "
            "than the one named here"
        )


def _array(state: Mapping[str, Any], name: str, shape: tuple, where: str) -> np.ndarray:
    """Return a tensor of a state dict as a new array, after every check."""
    value = state[name]
    if isinstance(value, torch.Tensor) and value.is_meta:
        raise DataError(f"{where}: {name} has no values (device meta); load the weights into it")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        found = getattr(value, "dtype", type(value).__name__)
        raise DataError(
            f"{where}: {name}: expected a float32 tensor, found {found}; convert the network by "
            "module.float() and save it again"
        )
    if tuple(value.shape) != shape:
        raise DataError(
            f"{where}: {name}: expected shape {shape}, found {tuple(value.shape)}; it is of "
            "another model than the one named here"
        )
    array = np.array(value.detach().cpu().to_dense().resolve_neg().numpy())
    if not np.isfinite(array).all():
        raise DataError(f"{where}: {name} holds NaN or infinite values; its training diverged")
    return array
