"""What our files and folders are, as numbers for programs and lines for people.

A file is read by its own reader, all of it, before it is called intact.  Nothing is written,
renamed or removed, so a recording or a training under way can be looked at.
"""

import os
from typing import NamedTuple

import numpy as np

from minipc.data.clouds import read_clouds
from minipc.errors import DataError
from minipc.models.checkpoint import read_checkpoint
from minipc.models.file import model_id, read_model
from minipc.models.pointnet import count
from minipc.record.plan import read_plan
from minipc.record.reader import RecordReader
from minipc.record.store import read_shard, shard_name
from minipc.runs.folder import read_run, run_id_of
from minipc.storage import files

IN_A_RUN = ("model.h5", "best.h5", "checkpoint.h5")


class Description(NamedTuple):
    values: dict  # JSON
    lines: list  # text


def describe(path):
    """Return the Description of any file or folder of ours.

    Raises DataError for what is missing, damaged or not ours.
    """
    if os.path.basename(path) in ("run.json", "plan.json"):
        path = os.path.dirname(path) or "."  # they say little without what lies beside them
    if os.path.isdir(path):
        if os.path.lexists(os.path.join(path, "run.json")):
            return _run(path)
        if os.path.lexists(os.path.join(path, "plan.json")):
            return _recording(path)
        raise DataError(
            f"{path}: is a folder with neither run.json nor plan.json, so none of ours; name a file"
        )
    kind = files.kind_of(path)
    if kind is None:
        with files.guarded(path, " or ".join(files.KINDS), 0):  # says what it is instead
            pass
    described = OF_KIND[kind](path)
    values = {
        "file": str(path),
        "kind": kind,
        "bytes": os.path.getsize(path),
        **described.values,
        "intact": True,
    }
    return Description(
        values, [f"{path}: {kind} file of {values['bytes']:,} bytes, intact", *described.lines]
    )


def _clouds(path):
    described = describe_splits(path, read_clouds(path))
    return described._replace(
        lines=[described.lines[0].removeprefix(f"{path}: "), *described.lines[1:]]
    )


def _model(path):
    model = read_model(path)
    trained, config = model.trained, model.config
    values = {
        "model_id": model_id(model),
        "shared": list(config.shared),
        "head": list(config.head),
        "parameters": count(config, 1).parameters,
        **model.described,
        "trained": trained,
    }
    widths = "-".join(map(str, config.shared)) + (
        f":{'-'.join(map(str, config.head))}" if config.head else ""
    )
    return Description(
        values,
        [
            f"PointNet {widths}, {values['parameters']} parameters, {config.classes} classes, "
            f"up axis {values['up_axis']}, normalisation {values['normalisation']}, identity "
            f"{values['model_id'][:16]}",
            "not trained"
            if not trained
            else f"trained for {trained.get('epochs', 0)} of {trained.get('of_epochs', 0)} epochs "
            "on "
            f"{trained.get('data_file')}, training points {str(trained.get('points_hash'))[:16]}",
            f"made with {_made_with(trained.get('made_with'))}",
        ],
    )


def _record(path):
    with RecordReader(path) as reader:
        for view in range(reader.views):
            reader.view(view)  # refuses values that are not finite
        plan, meta, carried = reader.plan, reader.meta, reader.clouds()
    values = {
        **_of_plan(plan),
        "data_file": meta["data_file"],
        "max_kl_of_rounding": meta["max_kl_of_rounding"],
        "provenance": meta["provenance"],
        "carries": carried and {name: len(clouds) for name, clouds in carried._asdict().items()},
    }
    carries = (
        ", ".join(f"{number} {name}" for name, number in (values["carries"] or {}).items())
        or "none"
    )
    return Description(
        values,
        [
            *_lines_of_plan(plan),
            f"largest KL by rounding logits {meta['max_kl_of_rounding']:.1e}, data file "
            f"{meta['data_file']}, "
            f"clouds in it: {carries}",
            *(
                f"{item['rows']} rows made with {_made_with(item['made_with'])}"
                for item in meta["provenance"]
            ),
        ],
    )


def _shard(path):
    plan = read_plan(os.path.join(os.path.dirname(path), "plan.json"))
    for view, first, stop in plan.shards():
        if shard_name(view, first) == os.path.basename(path):
            meta, _ = read_shard(path, plan, view, first, stop)
            lines = [
                f"rows {first} to {stop - 1} of view {view}, made with "
                f"{_made_with(meta['provenance'])}"
            ]
            return Description({**_of_plan(plan), **meta}, lines + _lines_of_plan(plan))
    raise DataError(
        f"{path}: is no shard of the plan.json beside it; `minipc record` makes what is missing "
        "again"
    )


def _checkpoint(path):
    found = read_checkpoint(path)
    values = {
        "epochs": len(found.rows),
        "steps": found.steps,
        "run_id": found.run_id,
        "last": found.rows[-1],
    }
    told = f"a run after {len(found.rows)} epochs and {found.steps} steps, run {found.run_id[:16]}"
    return Description(values, [told])


OF_KIND = {
    "clouds": _clouds,
    "model": _model,
    "record": _record,
    "shard": _shard,
    "checkpoint": _checkpoint,
}


def _recording(folder):
    """Return the Description of OUT.parts: the plan, and which of its shards are there and
    verify.
    """
    plan, out = (
        read_plan(os.path.join(folder, "plan.json")),
        folder.rstrip(os.sep).removesuffix(".parts"),
    )
    finished = 0  # views, in a record that is being extended
    if os.path.isfile(out):
        with RecordReader(out) as reader:
            finished = reader.views if reader.plan.same_identity(plan) else 0
    wanted = {shard_name(*shard[:2]): shard for shard in plan.shards() if shard[0] >= finished}
    names = {name for name in _listed(folder) if not name.startswith(".")} - {
        "plan.json"
    }  # .name.tmp: being written
    bad = []
    for name in sorted(names & set(wanted)):
        try:
            read_shard(os.path.join(folder, name), plan, *wanted[name])
        except DataError as reason:
            bad.append(reason)
    others, present = sorted(names - set(wanted)), len(names & set(wanted)) - len(bad)
    if bad:
        raise DataError(
            f"{bad[0]} ({len(bad)} shards are bad and {present} intact; `minipc record`, run "
            "again, sets bad ones "
            "aside and makes them again)"
        ) from bad[0]
    values = {
        "file": str(folder),
        "kind": "recording",
        **_of_plan(plan),
        "finished_views": finished,
        "shards": len(wanted),
        "present": present,
        "other_files": others,
        "intact": True,
    }
    lines = [
        f"{folder}: unfinished recording, {present} of {len(wanted)} shards are there, intact",
        *([f"{out}: holds the first {finished} views already"] if finished else []),
        *_lines_of_plan(plan),
        *([f"also there: {', '.join(others)}"] if others else []),
        "next: the same `minipc record` command again continues it",
    ]
    return Description(values, lines)


def _listed(folder):
    """Return the names in a folder."""
    try:
        return os.listdir(folder)
    except OSError as reason:
        raise DataError(
            f"{folder}: cannot be read ({reason.strerror}); check its rights"
        ) from reason


def _run(folder):
    """Return the Description of a run folder: run.json, and each file of ours in it."""
    path = os.path.join(folder, "run.json")
    settings = read_run(folder)
    if not all(
        isinstance(settings.get(name), dict) for name in ("training", "clouds", "provenance")
    ):
        raise DataError(
            f"{path}: is not of a run of ours: it misses clouds, provenance or training; check the "
            "name"
        )
    places = {name: os.path.join(folder, name) for name in IN_A_RUN}
    inside = {name: describe(place) for name, place in places.items() if os.path.lexists(place)}
    if "checkpoint.h5" in inside and inside["checkpoint.h5"].values["run_id"] != run_id_of(
        settings
    ):
        raise DataError(
            f"{folder}: checkpoint.h5 belongs to another run than run.json beside it; restore "
            "either"
        )
    done = (
        inside["checkpoint.h5"].values if "checkpoint.h5" in inside else {"epochs": 0, "last": None}
    )
    of_epochs, record = settings["training"].get("epochs"), settings.get("record")
    values = {
        "file": str(folder),
        "kind": "run",
        "epochs": done["epochs"],
        "of_epochs": of_epochs,
        "last": done["last"],
        "settings": settings,
        "files": {name: described.values for name, described in inside.items()},
    }
    source = "on labels alone"
    if isinstance(record, dict):
        source = f"from {record.get('file')} (run {str(record.get('run_id'))[:16]})"
    lines = [
        f"{folder}: training run, {done['epochs']} of {of_epochs} epochs done",
        f"learned {source}, data {settings.get('data')}, training points "
        f"{str(settings['clouds'].get('train_points'))[:16]}",
        f"made with {_made_with(settings.get('provenance'))}",
    ]
    if done["last"]:
        lines.append(
            "last epoch: "
            + ", ".join(f"{name} {value:.6g}" for name, value in done["last"].items())
        )
    if done["epochs"] and "model.h5" not in inside:
        lines.append(
            f"{places['model.h5']}: is missing; minipc train --resume --out {folder} writes it "
            "again"
        )
    return Description(values, lines + [described.lines[0] for described in inside.values()])


def _of_plan(plan):
    """Return the JSON values of a plan."""
    return {**plan.to_dict(), "run_id": plan.run_id, "bytes_per_view": plan.bytes_per_view}


def _lines_of_plan(plan):
    """Return the lines for people of a plan."""
    return [
        f"{plan.clouds} clouds x {plan.views} views, {plan.classes} classes, logits {plan.logits}, "
        f"{plan.bytes_per_view} bytes a view of a cloud, seed {plan.seed}, run {plan.run_id[:16]}",
        f"teacher {plan.teacher_id[:16]}, up axis {plan.up_axis}, normalisation "
        f"{plan.normalisation}, "
        f"training points {plan.points_hash[:16]}",
    ]


def _made_with(provenance):
    """Return a provenance as text."""
    items = provenance.items() if isinstance(provenance, dict) else []
    return ", ".join(f"{name} {value}" for name, value in items) or "unknown tools"


def describe_splits(path, splits):
    """Return the Description of a data file and its Splits."""
    train, test = splits
    classes = len(train.class_names)
    counts = {
        name: np.bincount(clouds.labels, minlength=classes)
        for name, clouds in splits._asdict().items()
    }
    values = {
        "file": str(path),
        "train": len(train),
        "test": len(test),
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
    width = max(len(name) for name in train.class_names)
    lines = [
        f"{path}: {len(train)} training and {len(test)} test clouds of {values['points']} points, "
        f"{classes} classes",
        f"made from {train.source or 'an unknown source'}",
        f"up axis {train.up_axis}, normalisation {train.normalisation}, training points "
        f"{train.points_hash[:16]}",
        *(
            f"  {name:{width}}  {counts['train'][i]:5d} train  {counts['test'][i]:5d} test"
            for i, name in enumerate(train.class_names)
        ),
    ]
    return Description(values, lines)
