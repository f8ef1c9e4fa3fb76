"""The content of run.json: everything needed to repeat or resume a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from minipc.errors import DataError
from minipc.models.model import config_class
from minipc.runs.folder import read_run
from minipc.settings import LossConfig, SelfConfig, TrainConfig, settings_of
from minipc.storage import files

if TYPE_CHECKING:
    from minipc.data.clouds import Splits


OWN_SEED = "{seed}"  # in the name of what a run begins from: the seed of the run
NEW_SETTINGS = {  # their defaults are what old runs did
    name: each.default
    for name, each in settings_of(TrainConfig).items()
    if name.startswith(("average", "augment_", "labels_per_class"))
}


@dataclass(frozen=True)
class RecordName:
    """Which record a run replays."""

    file: str  # base name, a hint
    run_id: str

    def __post_init__(self) -> None:
        if not (isinstance(self.file, str) and isinstance(self.run_id, str)):
            raise DataError(
                f"record: expected a file name and a run_id, found {self.file!r}, {self.run_id!r}"
            )


@dataclass(frozen=True)
class Beginning:
    """The model that a run began from; its weights lie in init.h5 of the run folder."""

    file: str  # path, or name as given where OWN_SEED is in it; a hint
    model_id: str

    def __post_init__(self) -> None:
        if not (isinstance(self.file, str) and isinstance(self.model_id, str)):
            raise DataError(
                f"init: expected a file name and a model_id, found {self.file!r}, {self.model_id!r}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run, as run.json holds it.  Raises DataError for invalid values."""

    provenance: dict  # versions and device at the start
    data: str  # base name of its data file, a hint
    clouds: dict  # hashes and description of both splits: identity()
    record: RecordName | None
    self_record: RecordName | None  # of the self target "record"
    views: tuple | None  # first, stop: of the record
    augment: dict  # ranges and order; plain JSON
    labels_only: bool
    name: str  # of the model's size, as the user gave it
    architecture: str  # of the model, see models/model.py
    model: Any  # its config
    loss: LossConfig
    self_target: SelfConfig | None
    training: TrainConfig
    init: Beginning | None  # None: from weights drawn from the seed

    def __post_init__(self) -> None:
        kinds = get_type_hints(RunConfig)
        kinds["model"] = config_class(self.architecture, "model")
        for name, kind in {
            "record": RecordName,
            "self_record": RecordName,
            "model": kinds["model"],
            "loss": LossConfig,
            "self_target": SelfConfig,
            "training": TrainConfig,
            "init": Beginning,
        }.items():
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, files.from_dict(kind, getattr(self, name), name))
        if isinstance(self.views, list) and [type(view) for view in self.views] == [int, int]:
            object.__setattr__(self, "views", tuple(self.views))
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise DataError(
                    f"{name}: expected {getattr(kind, '__name__', kind)}, found "
                    f"{getattr(self, name)!r}"
                )


def read_config(out: str) -> RunConfig:
    """Return the RunConfig of a run folder.  Raises DataError.

    Old runs do not name their architecture, because there was only pointnet, nor what began,
    averaged or augmented their networks, because nothing did; and they kept all labels.  Some name
    a run on labels alone beside them, of which they are independent.
    """
    described = {"architecture": "pointnet", "init": None, **read_run(out)}
    described.pop("baseline", None)
    if isinstance(described.get("training"), dict):
        described["training"] = NEW_SETTINGS | described["training"]
    return files.from_dict(RunConfig, described, f"{out}: run.json")


def identity(splits: Splits) -> dict[str, Any]:
    """Return what identifies the data of a run: hashes of all arrays, and Clouds.described."""
    hashes = {
        f"{name}_{part}": getattr(clouds, f"{part}_hash")
        for name, clouds in splits._asdict().items()
        for part in ("points", "labels")
    }
    return hashes | splits.train.described
