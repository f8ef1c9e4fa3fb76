"""Lines of `minipc info` and `minipc report`: what a file or a folder is."""

import os

from minipc.report.lines.text import Values, made_with, printable, short_hash, size


def of_info(values: Values) -> list[str]:
    """Return the lines for the values that describe.describe returns."""
    return [_first_line(values), *_OF_KIND[values["kind"]](values)]


def _first_line(values: Values) -> str:
    path = values["file"]
    if values["kind"] == "run":
        return f"{path}: training run, {values['epochs']} of {values['of_epochs']} epochs done"
    if values["kind"] == "recording":
        return (
            f"{path}: unfinished recording, {values['present']} of {values['shards']} shards are "
            "there, intact"
        )
    return f"{path}: {values['kind']} file of {values['bytes']:,} bytes, intact"


def of_clouds(values: Values) -> list[str]:
    width = max(map(len, values["class_names"]))
    per_class = zip(
        values["class_names"], values["train_per_class"], values["test_per_class"], strict=True
    )
    return [
        f"{values['train']} training and {values['test']} test clouds of {values['points']} "
        f"points, {values['classes']} classes",
        *_few_labels(values),
        f"made from {values['source'] or 'an unknown source'}",
        f"up axis {values['up_axis']}, normalisation {values['normalisation']}, training points "
        f"{short_hash(values['points_hash'])}",
        *(f"  {name:{width}}  {train:5d} train  {test:5d} test" for name, train, test in per_class),
    ]


def _few_labels(values: Values) -> list[str]:
    """Return a line on the labels of a data file where some clouds have none."""
    counts = {name: (values[f"{name}_labelled"], values[name]) for name in ("train", "test")}
    if all(labelled == clouds for labelled, clouds in counts.values()):
        return []
    told = " and ".join(
        f"{labelled} of {clouds} {name}" for name, (labelled, clouds) in counts.items()
    )
    return [f"labelled: {told} clouds"]


def _model(values: Values) -> list[str]:
    trained = values["trained"]
    return [
        f"{values['title']}, {values['parameters']} parameters, {len(values['class_names'])} "
        f"classes, up axis {values['up_axis']}, normalisation {values['normalisation']}, identity "
        f"{short_hash(values['model_id'])}",
        *map(_neighbours, values["groups"]),
        f"trained for {trained.get('epochs', 0)} of {trained.get('of_epochs', 0)} epochs on "
        f"{trained.get('data_file')}, training points {short_hash(trained.get('points_hash'))}"
        if trained
        else "not trained",
        made_with(trained.get("made_with")),
    ]


def _record(values: Values) -> list[str]:
    carried = ", ".join(f"{n} {name}" for name, n in (values["carries"] or {}).items())
    return [
        *_plan(values),
        f"largest KL by rounding logits {values['max_kl_of_rounding']:.1e}, data file "
        f"{values['data_file']}, clouds in it: {carried or 'none'}",
        *(f"{item['rows']} rows {made_with(item['made_with'])}" for item in values["provenance"]),
    ]


def _shard(values: Values) -> list[str]:
    last = values["first"] + values["rows"] - 1
    how = made_with(values["provenance"])
    rows = f"rows {values['first']} to {last} of view {values['view']}, {how}"
    return [rows, *_plan(values)]


def _plan(values: Values) -> list[str]:
    return [
        f"{values['clouds']} clouds x {values['views']} views, {values['classes']} classes, logits "
        f"{values['logits']}, {values['bytes_per_view']} bytes a view of a cloud, seed "
        f"{values['seed']}, run {short_hash(values['run_id'])}",
        f"teacher {short_hash(values['teacher_id'])}, up axis {values['up_axis']}, normalisation "
        f"{values['normalisation']}, training points {short_hash(values['points_hash'])}",
    ]


def _checkpoint(values: Values) -> list[str]:
    return [
        f"a run after {values['epochs']} epochs and {values['steps']} steps, run "
        f"{short_hash(values['run_id'])}"
    ]


def _groups(values: Values) -> list[str]:
    return [
        f"neighbours in {values['clouds']} clouds, points {short_hash(values['points_hash'])}; a "
        "cache, made again where it is removed",
        *map(_neighbours, values["arrays"]),
    ]


def _neighbours(values: Values) -> str:
    """Return a line for one array of groups."""
    centres, *members = values["shape"]
    what = f"{centres} groups of {members[0]}" if members else f"{centres} centres"
    return f"  {values['name']}: {what}, of {values['below']} points, {values['rule']}"


def _recording(values: Values) -> list[str]:
    lines = _plan(values)
    if values["finished_views"]:
        record = values["file"].rstrip(os.sep).removesuffix(".parts")
        lines = [f"{record}: holds the first {values['finished_views']} views already", *lines]
    if values["other_files"]:
        lines.append(f"also there: {', '.join(values['other_files'])}")
    return [*lines, "next: the same `minipc record` command again continues it"]


def _source(settings: Values) -> str:
    """Return what a run learned from, and for a record with which weights."""
    record, loss, views = settings.get("record"), settings.get("loss"), ""
    if isinstance(record, dict):
        views = f"{record.get('file')} (run {short_hash(record.get('run_id'))})"
    if settings.get("labels_only") or not views:
        return "on labels alone" + (f", views of {views}" if views else "")
    if not isinstance(loss, dict):
        return f"from {views}"
    a, b, T = (loss.get(name) for name in ("kd_weight", "self_weight", "temperature"))
    return f"from {views} at a = {a}, b = {b}, T = {T}"


def _run(values: Values) -> list[str]:
    settings, folder = values["settings"], values["file"]
    lines = [
        f"learned {_source(settings)}, data {settings.get('data')}, training points "
        f"{short_hash(settings['clouds'].get('train_points'))}",
        made_with(settings.get("provenance")),
    ]
    if values["last"]:
        last = (
            f"{name} {value if isinstance(value, str) else f'{value:.6g}'}"
            for name, value in values["last"].items()
        )
        lines.append(f"last epoch: {', '.join(last)}")
    if values["epochs"] and "model.h5" not in values["files"]:
        lines.append(
            f"{os.path.join(folder, 'model.h5')}: is missing; minipc train --resume --out {folder} "
            "writes it again"
        )
    return lines + [_first_line(file) for file in values["files"].values()]


_OF_KIND = {
    "clouds": of_clouds,
    "model": _model,
    "record": _record,
    "shard": _shard,
    "checkpoint": _checkpoint,
    "groups": _groups,
    "recording": _recording,
    "run": _run,
}


def of_report(values: Values) -> list[str]:
    return [f"{printable(values['report'])}: {size(values['bytes'])}; open it in any browser"]
