"""Write and read a trained model: weights, running statistics, sizes, and its training data.

Arrays and JSON, never a pickle: reading a model cannot execute anything.
"""

from dataclasses import asdict
from os import PathLike
from typing import Any, NamedTuple

import h5py
import numpy as np

from minipc.backend import tree_to
from minipc.data.clouds import UP_AXES
from minipc.data.prepare import NORMALISATIONS
from minipc.errors import DataError
from minipc.models.model import config_class, net
from minipc.nn.params import initialise
from minipc.storage import files, hdf5
from minipc.streams import stream

KIND, VERSION = "model", 2


class Model(NamedTuple):
    """A model with the description of the data that it understands."""

    config: Any  # of its module, see models/model.py
    params: dict  # {dotted name: float32 array}, of either backend
    stats: dict  # {name.mean, name.var: float32 array}
    described: dict  # Clouds.described of its training data
    trained: dict  # how: epochs, seed, data hashes; for people and reports only


def new_model(config: Any, described: dict[str, Any], seed: int) -> Model:
    """Return an untrained Model, its weights drawn from the stream "init" of seed."""
    params = initialise(net(config).param_specs(config), stream(seed, "init"))
    return Model(config, params, net(config).initial_stats(config), described, {})


def model_id(model: Model) -> str:
    """Return the SHA-256 of architecture, sizes, weights and statistics: the identity of a teacher.

    The name pointnet is not hashed, because files of version 1 store no architecture.
    """
    config = asdict(model.config)
    if model.config.architecture != "pointnet":
        config["architecture"] = model.config.architecture
    arrays = [source[name] for source in (model.params, model.stats) for name in sorted(source)]
    return files.sha256_arrays(np.frombuffer(files.canonical_json(config), np.uint8), *arrays)


def check_same_sizes(model: Model, config: Any, where: str | PathLike) -> None:
    """Raise DataError unless a run with this config can begin from model, read from where.

    Dropout and momentum may differ, because they belong to training.
    """
    found, expected = (
        {"architecture": each.architecture, **asdict(each), "dropout": None, "momentum": None}
        for each in (model.config, config)
    )
    for name, value in expected.items():
        if found.get(name) != value:
            raise DataError(
                f"{where}: its {name} is {found.get(name)}, but the model to train has {value}; "
                "begin from a model of the same sizes, or choose its --model"
            )


def on_module(model: Model, xp: Any) -> Model:
    """Return model with its arrays moved to module xp."""
    return model._replace(params=tree_to(xp, model.params), stats=tree_to(xp, model.stats))


def write_model(path: str | PathLike, model: Model) -> None:
    """Commit model to path, atomically; its arrays must be on the host."""
    _check_described(model.described, model.config.classes, path)

    def fill(file: h5py.File) -> None:
        hdf5.write_meta(
            file,
            {
                "architecture": model.config.architecture,
                "config": asdict(model.config),
                "described": model.described,
                "trained": model.trained,
            },
        )
        for group in ("params", "stats"):
            for name, value in getattr(model, group).items():
                file.create_dataset(f"{group}/{name}", data=value, dtype="<f4")

    hdf5.write_hdf5(path, KIND, VERSION, fill)


def _check_described(described: dict[str, Any], classes: int, path: str | PathLike) -> None:
    """Raise DataError unless `described` says what a model of so many classes was trained on."""
    files.check_keys(described, {"class_names", "up_axis", "normalisation"}, path)
    known = described["up_axis"] in UP_AXES and described["normalisation"] in NORMALISATIONS
    if len(described["class_names"]) != classes or not known:
        raise DataError(
            f"{path}: its class names, up axis or normalisation are not those of a model of "
            f"{classes} classes; train the model again"
        )


def read_model(path: str | PathLike) -> Model:
    """Return the Model in path.  Raises DataError for a missing, damaged or foreign file."""
    with hdf5.open_hdf5(path, KIND, VERSION) as file:
        hdf5.check_members(file, {"meta", "params", "stats"}, path)
        meta = hdf5.read_meta(file, path)
        keys = {"architecture", "config", "described", "trained"}
        files.check_keys({"architecture": "pointnet", **meta}, keys, path)  # version 1 has none
        kind = config_class(meta.get("architecture", "pointnet"), path)
        config = files.from_dict(kind, meta["config"], path)
        _check_described(meta["described"], config.classes, path)
        if not isinstance(meta["trained"], dict):
            raise DataError(f"{path}: its metadata contradicts itself; train the model again")
        shapes = {
            "params": {name: s.shape for name, s in net(config).param_specs(config).items()},
            "stats": {name: v.shape for name, v in net(config).initial_stats(config).items()},
        }
        read = {}
        for group, expected in shapes.items():
            hdf5.check_members(file[group], set(expected), path)
            read[group] = {
                name: hdf5.read_array(file, f"{group}/{name}", np.float32, shape, path)
                for name, shape in expected.items()
            }
    return Model(config, read["params"], read["stats"], meta["described"], meta["trained"])
