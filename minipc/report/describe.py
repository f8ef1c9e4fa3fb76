"""What our files and folders are, as values for programs; report/lines prints them for people.

A file is called intact only after its own reader has read all of it.  Nothing is written, renamed
or removed, so a recording or a training can be inspected while it runs.
"""

import os
from dataclasses import asdict
from typing import Any

import numpy as np

from minipc.data.clouds import UNLABELLED, Splits, read_clouds
from minipc.data.groups_file import Indices, indices_of, read_groups
from minipc.errors import DataError
from minipc.models.checkpoint import read_checkpoint
from minipc.models.file import model_id, read_model
from minipc.models.model import net
from minipc.record.plan import Plan, read_plan
from minipc.record.reader import RecordReader
from minipc.record.shard import read_shard, shard_name
from minipc.runs.folder import read_run, run_id_of, runs_below
from minipc.storage import files

IN_A_RUN = ("model.h5", "best.h5", "checkpoint.h5")


def describe(path: str) -> dict[str, Any]:
    """Return the values of any file or folder that minipc wrote, a dict for JSON.

    Raises DataError for a path that is missing, damaged or not ours.
    """
    if os.path.basename(path) in ("run.json", "plan.json"):
        path = os.path.dirname(path) or "."  # they say little without the files beside them
    if os.path.isdir(path):
        if os.path.lexists(os.path.join(path, "run.json")):
            return _run(path)
        if os.path.lexists(os.path.join(path, "plan.json")):
            return _recording(path)
        if runs := runs_below(path):
            raise DataError(
                f"{path}: is the folder of a study; name a run in it, such as {runs[0]}, or look "
                f"at all: minipc report {path}"
            )
        raise DataError(
            f"{path}: is a folder with neither run.json nor plan.json, so none of ours; name a file"
        )
    kind = files.kind_of(path)
    if kind is None:
        # raises, with what the file is instead
        with files.guarded(path, " or ".join(files.KINDS), 0):
            pass
    assert kind is not None
    described = OF_KIND[kind](path)
    size = os.path.getsize(path)
    return {"file": str(path), "kind": kind, "bytes": size, **described, "intact": True}


def _clouds(path: str) -> dict[str, Any]:
    return describe_splits(path, read_clouds(path))


def _model(path: str) -> dict[str, Any]:
    model = read_model(path)
    points = model.trained.get("points")  # of its training clouds; absent before it was trained
    return {
        "model_id": model_id(model),
        "architecture": model.config.architecture,
        "title": net(model.config).title(model.config),
        "groups": _described(indices_of(model.config, points)) if points else [],
        "config": asdict(model.config),
        "parameters": net(model.config).count(model.config, 1).parameters,
        **model.described,
        "trained": model.trained,
    }


def _record(path: str) -> dict[str, Any]:
    with RecordReader(path) as reader:
        for view in range(reader.views):
            reader.view(view)  # raises for values that are not finite
        plan, meta, carried = reader.plan, reader.meta, reader.clouds()
    return {
        **_of_plan(plan),
        "data_file": meta["data_file"],
        "max_kl_of_rounding": meta["max_kl_of_rounding"],
        "provenance": meta["provenance"],
        "carries": carried and {name: len(clouds) for name, clouds in carried._asdict().items()},
    }


def _shard(path: str) -> dict[str, Any]:
    plan = read_plan(os.path.join(os.path.dirname(path), "plan.json"))
    for view, first, stop in plan.shards():
        if shard_name(view, first) == os.path.basename(path):
            meta, _ = read_shard(path, plan, view, first, stop)
            return {**_of_plan(plan), **meta}
    raise DataError(
        f"{path}: is no shard of the plan.json beside it; "
        "`minipc record` makes what is missing again"
    )


def _checkpoint(path: str) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    return {
        "epochs": len(checkpoint.rows),
        "steps": checkpoint.steps,
        "run_id": checkpoint.run_id,
        "last": checkpoint.rows[-1],
    }


def _groups(path: str) -> dict[str, Any]:
    groups = read_groups(path)
    return {
        "points_hash": groups.points_hash,
        "clouds": groups.clouds,
        "arrays": _described(groups.indices),
    }


def _described(indices: list[Indices]) -> list[dict[str, Any]]:
    return [each._asdict() for each in indices]


OF_KIND = {
    "clouds": _clouds,
    "model": _model,
    "record": _record,
    "shard": _shard,
    "checkpoint": _checkpoint,
    "groups": _groups,
}


def _recording(folder: str) -> dict[str, Any]:
    """Return the values of OUT.parts: the plan, and which of its shards exist and are intact."""
    plan = read_plan(os.path.join(folder, "plan.json"))
    out = folder.rstrip(os.sep).removesuffix(".parts")
    finished = 0  # views of the finished record, if this recording extends one
    if os.path.isfile(out):
        with RecordReader(out) as reader:
            finished = reader.views if reader.plan.same_identity(plan) else 0
    expected = {shard_name(*shard[:2]): shard for shard in plan.shards() if shard[0] >= finished}
    # without hidden names: .NAME.tmp is being written
    names = {name for name in _listed(folder) if not name.startswith(".")} - {"plan.json"}
    bad = []
    for name in sorted(names & set(expected)):
        try:
            read_shard(os.path.join(folder, name), plan, *expected[name])
        except DataError as reason:
            bad.append(reason)
    others, present = sorted(names - set(expected)), len(names & set(expected)) - len(bad)
    if bad:
        raise DataError(
            f"{bad[0]} ({len(bad)} shards are bad and {present} intact; "
            "`minipc record`, run again, sets bad ones aside and makes them again)"
        ) from bad[0]
    return {
        "file": str(folder),
        "kind": "recording",
        **_of_plan(plan),
        "finished_views": finished,
        "shards": len(expected),
        "present": present,
        "other_files": others,
        "intact": True,
    }


def _listed(folder: str) -> list[str]:
    """Return the names in a folder."""
    try:
        return os.listdir(folder)
    except OSError as reason:
        raise DataError(
            f"{folder}: cannot be read ({reason.strerror}); check its rights"
        ) from reason


def _run(folder: str) -> dict[str, Any]:
    """Return the values of a run folder: of run.json and of each of our files in it."""
    path = os.path.join(folder, "run.json")
    settings = read_run(folder)
    if not all(
        isinstance(settings.get(name), dict) for name in ("training", "clouds", "provenance")
    ):
        raise DataError(
            f"{path}: is not of a run of ours: it misses clouds, provenance or training; "
            "check the name"
        )
    places = {name: os.path.join(folder, name) for name in IN_A_RUN}
    inside = {name: describe(place) for name, place in places.items() if os.path.lexists(place)}
    if "checkpoint.h5" in inside and inside["checkpoint.h5"]["run_id"] != run_id_of(settings):
        raise DataError(
            f"{folder}: checkpoint.h5 belongs to another run than run.json beside it; "
            "restore either"
        )
    done = inside.get("checkpoint.h5", {"epochs": 0, "last": None})
    return {
        "file": str(folder),
        "kind": "run",
        "epochs": done["epochs"],
        "of_epochs": settings["training"].get("epochs"),
        "last": done["last"],
        "settings": settings,
        "files": inside,
    }


def _of_plan(plan: Plan) -> dict[str, Any]:
    """Return the JSON values of a plan."""
    return {**plan.to_dict(), "run_id": plan.recording_id, "bytes_per_view": plan.bytes_per_view}


def describe_splits(path: str, splits: Splits) -> dict[str, Any]:
    """Return the values of a data file and its Splits."""
    train, test = splits
    classes = len(train.class_names)
    counts = {
        name: np.bincount(clouds.labels[clouds.labels != UNLABELLED], minlength=classes)
        for name, clouds in splits._asdict().items()
    }
    return {
        "file": str(path),
        "train": len(train),
        "test": len(test),
        "train_labelled": train.labelled,
        "test_labelled": test.labelled,
        "points": train.points.shape[1],
        "classes": classes,
        "class_names": list(train.class_names),
        "up_axis": train.up_axis,
        "normalisation": train.normalisation,
        "source": train.source,
        "points_hash": train.points_hash,
        "labels_hash": train.labels_hash,
        "train_per_class": counts["train"].tolist(),
        "test_per_class": counts["test"].tolist(),
    }
