"""The interface of a model: a module with these functions.

    param_specs(config)            {dotted name: Spec} of the parameters
    initial_stats(config, dtype)   {name.mean, name.var} of a new model
    prepare(config, points)        the groups of stored clouds (B, N, 3), () where there are none
    grouping(config)               [[centres, [[members, radius], ...]], ...] of the levels whose
                                   groups are kept in a file; else []
    forward_train(params, inputs, config, mask, engine, work)   logits, {layer: BatchStats}, tape
    evaluator(params, stats, config, engine)   logits_of(inputs), for a finished model
    forward_eval(params, stats, inputs, config, engine)   logits by an evaluator used once
    count(config, points)          Count of parameters and multiply-adds
    pooled_layers(config)          names of the layers before a maximum
    dropout_width(config)          width of the mask that forward_train takes
    widths(config)                 the hidden widths, in the order of the forward
    with_widths(config, widths)    the config of the same model with other hidden widths
    channels(config)               {layer: Channels}, which parts lie side by side (nn/widening.py)
    sizes(text, classes)           the config of a name or of widths by hand
    title(config)                  what people call it
    NAMED_SIZES                    the names

Its ModelConfig is a frozen dataclass of JSON values.  It has the fields classes, dropout, eps and
momentum, and the class attribute architecture, its name in MODELS.  nn.engine.backward() reads the
tape of any model, and track() updates the statistics of any model.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

from minipc.backend import module_of
from minipc.errors import DataError, UsageError
from minipc.models import pointnet, pointnet2
from minipc.models.inputs import check_groups
from minipc.nn import kernels, ops

MODELS = {"pointnet": pointnet, "pointnet2": pointnet2}


def net(config: Any) -> ModuleType:
    """Return the module of a model with this config."""
    return MODELS[config.architecture]


def groups_of(config: Any, points: Any, groups: tuple | None = None) -> tuple:
    """Return the groups of stored clouds (B, N, 3): those given, or else made of the points.

    Raises DataError for groups of another model, or of other clouds as far as the first one shows.
    """
    if groups is None:
        return net(config).prepare(config, points)
    check_groups(groups, len(points))
    first = net(config).prepare(config, points[:1])
    if len(first) != len(groups) or not all(
        one.shape == group[:1].shape and (one == group[:1]).all()
        for one, group in zip(first, groups, strict=True)
    ):
        raise DataError(
            "groups: are of other clouds or of another model; make them by prepare() of this model"
        )
    return groups


def track(
    stats: dict, batch: dict[str, ops.BatchStats], config: Any, reuse: bool = False
) -> dict[str, Any]:
    """Return running statistics moved towards those of one batch.  (M9)

    reuse: on a device, write them into the arrays of stats.
    """
    moved = {}
    for name, layer_batch in batch.items():
        if kernels.on_device(module_of(layer_batch.mean)):
            old = (stats[f"{name}.mean"], stats[f"{name}.var"])
            new = kernels.tracked(old, layer_batch[:2], layer_batch.rows, config.momentum, reuse)
            moved[f"{name}.mean"], moved[f"{name}.var"] = new
            continue
        moved[f"{name}.mean"], moved[f"{name}.var"] = ops.track(
            stats[f"{name}.mean"], stats[f"{name}.var"], layer_batch, config.momentum
        )
    return moved


def config_class(architecture: Any, where: Any) -> type[Any]:
    """Return the config class of an architecture read from file `where`.  Raises DataError."""
    if not isinstance(architecture, str) or architecture not in MODELS:
        raise DataError(
            f"{where}: architecture {architecture!r} is not known here; expected "
            f"{' or '.join(MODELS)}: upgrade"
        )
    return MODELS[architecture].ModelConfig


def sizes(text: str, classes: int) -> Any:
    """Return the config of a named size of any model, or of one by hand.

    By hand: "16-16-32-64:32" for a PointNet, "512/24:32,128/24:48,96:48" for a PointNet++ (the
    docstrings of their modules).  Behind any of them "@0.3" is the rate of dropout, in place of
    the model's own.  Raises UsageError for anything else.
    """
    text, at, rate = text.partition("@")
    if at:
        try:
            return replace(sizes(text, classes), dropout=float(rate))
        except ValueError:
            raise UsageError(
                f"model: expected a rate of dropout behind @, such as {text}@0.3, got {rate!r}"
            ) from None
    name = text.partition("/")[0]
    for module in MODELS.values():
        if name in module.NAMED_SIZES:
            return module.sizes(text, classes)
    if "," in text:
        return pointnet2.sizes(text, classes)
    if text[:1].isdigit():
        return pointnet.sizes(text, classes)
    names = ", ".join(name for module in MODELS.values() for name in module.NAMED_SIZES)
    raise UsageError(
        f"model: expected {names}, or one by hand such as 16-16-32-64:32, got {text!r}"
    )
