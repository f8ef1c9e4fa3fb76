"""The lines that people read, made from the values that `--json` prints and from nothing else.

Each kind of result has one function, from its values, a dict, to a list of lines.  So a program can
read everything that a person can.
"""

import math
import os
import shlex
from collections.abc import Iterable
from itertools import islice
from typing import Any

from minipc.report.confusion import class_lines

Values = dict[str, Any]  # of one result
NEARLY_ALL = 0.9  # share of rows that the guard changes, from which on a training is the guard's

# info


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


def _clouds(values: Values) -> list[str]:
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
        f"{_short(values['points_hash'])}",
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
        f"{_short(values['model_id'])}",
        *map(_neighbours, values["groups"]),
        f"trained for {trained.get('epochs', 0)} of {trained.get('of_epochs', 0)} epochs on "
        f"{trained.get('data_file')}, training points {_short(trained.get('points_hash'))}"
        if trained
        else "not trained",
        _made_with(trained.get("made_with")),
    ]


def _record(values: Values) -> list[str]:
    carried = ", ".join(f"{n} {name}" for name, n in (values["carries"] or {}).items())
    return [
        *_plan(values),
        f"largest KL by rounding logits {values['max_kl_of_rounding']:.1e}, data file "
        f"{values['data_file']}, clouds in it: {carried or 'none'}",
        *(f"{item['rows']} rows {_made_with(item['made_with'])}" for item in values["provenance"]),
    ]


def _shard(values: Values) -> list[str]:
    last = values["first"] + values["rows"] - 1
    made_with = _made_with(values["provenance"])
    rows = f"rows {values['first']} to {last} of view {values['view']}, {made_with}"
    return [rows, *_plan(values)]


def _plan(values: Values) -> list[str]:
    return [
        f"{values['clouds']} clouds x {values['views']} views, {values['classes']} classes, logits "
        f"{values['logits']}, {values['bytes_per_view']} bytes a view of a cloud, seed "
        f"{values['seed']}, run {_short(values['run_id'])}",
        f"teacher {_short(values['teacher_id'])}, up axis {values['up_axis']}, normalisation "
        f"{values['normalisation']}, training points {_short(values['points_hash'])}",
    ]


def _checkpoint(values: Values) -> list[str]:
    return [
        f"a run after {values['epochs']} epochs and {values['steps']} steps, run "
        f"{_short(values['run_id'])}"
    ]


def _groups(values: Values) -> list[str]:
    return [
        f"neighbours in {values['clouds']} clouds, points {_short(values['points_hash'])}; a "
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


def _run(values: Values) -> list[str]:
    settings, folder = values["settings"], values["file"]
    record, source = settings.get("record"), "on labels alone"
    if isinstance(record, dict):
        source = f"from {record.get('file')} (run {_short(record.get('run_id'))})"
    lines = [
        f"learned {source}, data {settings.get('data')}, training points "
        f"{_short(settings['clouds'].get('train_points'))}",
        _made_with(settings.get("provenance")),
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
    "clouds": _clouds,
    "model": _model,
    "record": _record,
    "shard": _shard,
    "checkpoint": _checkpoint,
    "groups": _groups,
    "recording": _recording,
    "run": _run,
}

# data


def of_data_make(values: Values) -> list[str]:
    first, *rest = _clouds(values)
    return [f"{values['file']}: {first}", *rest]


def of_data_pack(values: Values) -> list[str]:
    total, moved = values["train"] + values["test"], values["normalised"]
    rest = f", the other {total - moved} were in it" if moved < total else ""
    twins = values["test_clouds_in_training"]
    return [
        *of_data_make(values),
        "no cloud was normalised"
        if values["normalisation"] == "none"
        else f"{moved} of {total} clouds were moved into the unit sphere{rest}",
        f"{values['sampled']} clouds had more points than {values['points']} and were sampled, "
        f"{values['padded']} had fewer and are repeated",
        f"split: {values['split']}",
        *([f"note: {twins} test clouds are also training clouds, bit for bit"] if twins else []),
        "dry run: nothing was written"
        if values["dry_run"]
        else f"next: minipc train {shlex.quote(values['file'])} --labels-only --model teacher "
        "--out teacher",
    ]


SHOWN = 5  # clouds that a line of `data check` names


def of_data_check(values: Values) -> list[str]:
    """Return the lines of `data check`; each finding with the first clouds that it is of."""
    return [
        f"{values['file']}: {values['train']} training and {values['test']} test clouds of "
        f"{values['points']} points, {values['classes']} classes",
        *_equal_clouds(values),
        *_near_clouds(values),
        *_flat_clouds(values),
        *_balance(values),
        f"findings: {values['findings']}, and {len(values['near'])} test clouds that nearly are "
        "training clouds",
    ]


def _equal_clouds(values: Values) -> list[str]:
    exact = values["exact"]
    across = [group for group in exact if group["train"] and group["test"]]
    within = [group for group in exact if not (group["train"] and group["test"])]
    named = (
        f"{name} {' and '.join(map(str, group[name][:3]))}"
        for group in within
        for name in ("train", "test")
        if group[name]
    )
    lines = [
        f"the same points in both splits: {_count(values['test_clouds_in_training'], 'test cloud')}"
        + _first(f"test {group['test'][0]} is train {group['train'][0]}" for group in across),
        f"the same points twice in a split: {_count(len(within), 'group')}{_first(named)}",
    ]
    other_class = [" and ".join(group["labels"]) for group in exact if len(group["labels"]) > 1]
    if other_class:
        lines.append(
            f"the same points under different labels: {_count(len(other_class), 'group')}"
            + _first(other_class)
        )
    return lines


def _near_clouds(values: Values) -> list[str]:
    near, compared = values["near"], values["compared"]
    share = f" ({100 * len(near) / compared:.1f} %)" if compared else ""
    lines = [
        f"nearly in both splits: {len(near)} of {compared} test clouds{share}, no farther from a "
        f"training cloud than {values['near_limit']:g} times the distance of two samples of one "
        "surface" + _first(f"test {pair['test']} is nearly train {pair['train']}" for pair in near)
    ]
    foreign = [pair for pair in near if pair["same_class"] is False]
    if foreign:
        lines.append(
            f"nearly a training cloud of another class: {len(foreign)} of these"
            + _first(f"test {pair['test']}, train {pair['train']}" for pair in foreign)
        )
    if values["not_compared"]:
        lines.append(
            f"not compared: {_count(values['not_compared'], 'test cloud')} of fewer than "
            f"{values['fewest_points']} distinct points"
        )
    return lines


def _flat_clouds(values: Values) -> list[str]:
    lines = []
    for shape in ("point", "line", "plane"):
        flat = [each for each in values["degenerate"] if each["is"] == shape]
        if flat:
            lines.append(
                f"all in one {shape}: {_count(len(flat), 'cloud')}"
                + _first(f"{each['split']} {each['cloud']}" for each in flat)
            )
    if values["repeats"]:
        lines.append(
            f"more than half of the points repeated: {_count(len(values['repeats']), 'cloud')}"
            + _first(f"{each['split']} {each['cloud']}" for each in values["repeats"])
        )
    return lines or ["all in one point, line or plane: 0 clouds"]


def _balance(values: Values) -> list[str]:
    lines = []
    for name, balance in values["balance"].items():
        if balance["largest"]:
            (most, largest), (least, smallest) = balance["largest"], balance["smallest"]
            lines.append(
                f"classes of {name}: from {smallest} clouds ({least}) to {largest} ({most}), "
                f"{largest / smallest:.3g} times as many"
            )
        if balance["missing"]:
            lines.append(
                f"classes without a {name} cloud: {len(balance['missing'])}"
                + _first(balance["missing"])
            )
    return lines


def _count(number: int, of_what: str) -> str:
    return f"{number} {of_what}{'' if number == 1 else 's'}"


def _first(texts: Iterable[str]) -> str:
    """Return the first SHOWN texts for the end of a line."""
    shown = list(islice(texts, SHOWN + 1))
    more = ", ..." if len(shown) > SHOWN else ""
    return f" ({', '.join(shown[:SHOWN])}{more})" if shown else ""


# record and verify


def of_record(values: Values) -> list[str]:
    return [
        _size_of_record(values),
        f"teacher accuracy on the recorded views {_told(values, 'teacher_accuracy')}; largest "
        f"KL by rounding logits {values['max_kl_of_rounding']:.1e}",
        *_carried(values),
        f"next: minipc train --record {shlex.quote(values['out'])}",
    ]


def of_demo_record(values: Values) -> list[str]:
    return [*of_record(values)[:-1], "next: minipc train"]


def of_record_share(values: Values) -> list[str]:
    return [
        f"{values['out']}: share {values['share']} is there, {values['shards_there']} of "
        f"{values['shards']} shards in all",
        "the other shares, or the same command without --shards, go on and finish",
    ]


def of_record_dry_run(values: Values) -> list[str]:
    """Return the lines of a dry run: few while data or teacher do not exist yet."""
    makes = f"would make: {', '.join(values['would_make']) or 'nothing'}"
    if values["run_id"] is None:
        return [makes]
    free = "unknown" if values["bytes_free"] is None else size(values["bytes_free"])
    return [
        _size_of_record(values),
        *_carried(values),
        f"shards: {values['shards']}, there {values['shards_there']}, to do "
        f"{values['shards'] - values['shards_there']} ({values['rows_left']} rows); needs "
        f"{size(values['bytes_needed'])}, free {free}",
        *(f"would set aside: {line}" for line in values["damaged"]),
        makes,
    ]


def _size_of_record(values: Values) -> str:
    return (
        f"{values['out']}: {values['clouds']} clouds x {values['views']} views, "
        f"{size(values['bytes'])}, run {_short(values['run_id'])}"
    )


def _carried(values: Values) -> list[str]:
    if values["clouds_as"] is None:
        return []
    how = {"int16": "int16, lossless", "float32": "float32, as int16 would lose bits"}
    return [
        f"training and test clouds embedded as {how[values['clouds_as']]}: "
        f"{size(values['clouds_bytes'])}"
    ]


def of_verify(values: Values) -> list[str]:
    rows, sampled = values["rows"], values["sampled"]
    lines = [
        f"{values['record']}: whole, and made from these clouds",
        f"parameters: {rows - values['parameters']} of {rows} rows are what the seed draws, bit "
        "for bit",
    ]
    if sampled:
        bitwise = values["bitwise"]
        asked = "bit for bit" if bitwise else "to within what rounding changes elsewhere"
        lines += [
            f"teacher: {sampled - values['different']} of {sampled} sampled rows come out {asked}; "
            f"largest difference {values['largest_difference']:.2g}, arg-max agrees in "
            f"{_percent(values['agreement'])}",
            "asked for bit for bit: versions, kernel and device are those it was made with"
            if bitwise
            else f"not asked for bit for bit: {values['why']}",
        ]
    else:
        lines.append("teacher: not run again; pass --teacher MODEL")
    return [*lines, "verified" if values["passed"] else f"NOT verified: {values['failed']}"]


# train, eval and predict


def of_train(values: Values) -> list[str]:
    """Return what a run achieved, and what to do next."""
    if "dry_run" in values:
        return ["dry run: everything fits, nothing was written"]
    lines = [
        f"{'trained on':12} {'accuracy':>9} {'mean class':>11} {'best on test':>12} "
        f"{'parameters':>11} {'MACs':>8}  run"
    ]
    told = [
        f"{'-':>{width}}" if values[name] is None else f"{100 * values[name]:{width - 1}.2f}%"
        for name, width in (
            ("test_accuracy", 9),
            ("test_mean_class_accuracy", 11),
            ("best_test_accuracy", 12),
        )
    ]
    lines.append(
        f"{'labels' if values['labels_only'] else 'record':12} {' '.join(told)} "
        f"{values['parameters']:11,d} "
        f"{values['macs_per_cloud'] / 1e6:7.2f}M  {values['out']}{os.sep}"
    )
    if values["test_accuracy"] is None:
        lines.append("no accuracy: no test cloud is labelled")
    if "chosen" in values:
        chosen = values["chosen"]
        there = chosen["test_accuracy"]
        tested = "" if there is None else f"; there the test accuracy is {100 * there:.2f}%"
        lines.append(
            f"epoch {chosen['epoch']} is best on the validation clouds "
            f"({100 * chosen['val_accuracy']:.2f}%){tested}: {chosen['model']}"
        )
    lines += _negative_weight(values)
    if values.get("report"):
        lines.append(f"report: {values['report']}")
    out = shlex.quote(values["out"])
    if values["epochs_done"] < values["epochs"]:
        stopped = f"stopped after epoch {values['epochs_done']} of {values['epochs']}"
        return [*lines, stopped, f"next: minipc train --resume --out {out}"]
    return [*lines, f"next: minipc eval {out}"]


def _negative_weight(values: Values) -> list[str]:
    """Return lines on the rows of the last epoch whose loss has no lower bound of its own."""
    loss = values["loss"]
    if loss["self_weight"] == 0:
        return []
    b, T = loss["self_weight"], loss["temperature"]
    unbounded, raised = _percent(values["unbounded"]), _percent(values["raised"])
    lines, warned = [f"last epoch, b = {b:g}, T = {T:g}: "], ""
    if loss["guard"] == "none":
        lines[0] += f"{unbounded} of the rows have no lower bound, and no guard"
        warned = "NOT bounded below" * (values["unbounded"] > 0)
    else:
        lines[0] += f"the guard raised a class in {raised} of the rows; {unbounded} need it"
        warned = "the guard decided nearly every row" * (values["raised"] >= NEARLY_ALL)
    if warned:
        look = f"choose b and T by: minipc loss --record {shlex.quote(str(values['record']))}"
        remedy = "raise --temperature, e.g. 4, or lower --self-weight" if T == 1 else look
        lines.append(f"warning: {warned}; {remedy}")
    return lines


def of_eval(values: Values, columns: int = 80) -> list[str]:
    """Return lines of at most so many columns, where it is ours to choose."""
    few = values["labelled"] < values["clouds"]
    known = f", {values['labelled'] or 'none'} of them labelled" * few
    what = values["model" if "model" in values else "logits"]
    lines = [f"{what} on {values['clouds']} test clouds of {values['data']}{known}:"]
    if values["labelled"]:
        lines += [
            _accuracies(values),
            f"negative log-likelihood {_finite(values['nll'])} nats, calibration error (15 bins) "
            f"{_percent(values['ece'])}",
        ]
    else:
        lines.append("no accuracy: no test cloud is labelled")
    if "voted" in values and values["labelled"]:
        voted = values["voted"]
        lines.append(f"voting over {voted['votes']} views: {_accuracies(voted)}")
    lines += [_compared(pair) for pair in values.get("compared", [])]
    if "parameters" in values:
        lines.append(
            f"{values['parameters']} parameters, {values['macs_per_cloud'] / 1e6:.2f} M "
            "multiply-adds a cloud"
        )
    return [*lines, *class_lines(values["class_names"], values["confusion"], columns)]


def _finite(value: float | None) -> str:
    """Return a number for people; JSON has None for one that is infinite."""
    return "infinite" if value in (None, math.inf) else f"{value:.4f}"


def _compared(pair: Values) -> str:
    told = f"agreement with {pair['with']}: {_percent(pair['agreement'])}"
    if pair["mcnemar"] is None:
        return told
    return (
        f"{told}; right alone: {pair['gained']} clouds here, {pair['lost']} there, McNemar's exact "
        f"p {pair['mcnemar']:.3g}"
    )


def _accuracies(values: Values) -> str:
    return (
        f"accuracy {_percent(values['accuracy'])}, mean class accuracy "
        f"{_percent(values['mean_class_accuracy'])}"
    )


def of_export(values: Values) -> list[str]:
    what = {"onnx": "an ONNX graph", "safetensors": "a safetensors file"}.get(values["form"])
    what = what or f"a C program in {values['numbers']}"
    first = f"{values['out']}: {values['title']} as {what}"
    if values["form"] == "safetensors":
        return [f"{first}, {values['bytes']:,} bytes"]
    if values["form"] == "onnx":
        lines = [f"{first}, opset {values['opset']}, {values['bytes']:,} bytes"]
        next_steps = []
    else:
        code = values.get("code_and_weights_bytes")
        lines = [
            f"{first}: {', '.join(values['files'])}",
            f"weights {values['weights_bytes']:,} bytes, "
            f"{f'with code {code:,} bytes (cc -Os), ' if code else ''}buffers "
            f"{values['buffer_bytes']:,} bytes",
        ]
        if "milliseconds" in values:
            lines.append(f"{values['milliseconds']:.3g} ms a cloud here (cc -O3, one thread)")
        folder = shlex.quote(values["out"])
        next_steps = [f"next: make -C {folder} && {folder}/selftest && {folder}/classify FILE"]
    return [*lines, *_checked(values), *next_steps]


def _checked(values: Values) -> list[str]:
    """Return lines on how an exported form was checked, and on its accuracy."""
    tool = values["checked_with"]
    lines = []
    if tool is None:
        lines.append("not run here: " + _WITHOUT[values["form"]])
    if "same_class" in values:
        clouds = values["clouds"]
        run = f"run by {tool} on" if tool == "onnxruntime" else "compiled by cc and run on"
        allowed = f" (allowed {values['allowed']:.2g})" if "allowed" in values else ""
        lines.append(
            f"{run if tool else 'computed as the program would for'} {clouds} test clouds: largest "
            f"difference of a logit {values['largest_difference']:.2g}{allowed}, the same class on "
            f"{values['same_class']} of {clouds}"
        )
    if "accuracy" in values:
        exported = values.get("exported_accuracy")
        model = f"that of the model {_percent(values['accuracy'])}"
        if exported is not None:
            lines.append(f"accuracy {_percent(exported)}, {model}")
    if values.get("numbers") == "int8":
        lines.append(
            f"scales from {values['calibrated_on']} training clouds"
            + ("; every logit is the one that docs/export.md defines" * bool(tool))
        )
    return lines


_WITHOUT = {
    "c": "no cc, or --no-check",
    "onnx": "no onnxruntime (pip install -e '.[onnx]'), or --no-check",
}


def of_bench(values: Values) -> list[str]:
    forms, block = values["forms"], values["block"]
    kernel = f"{values['blas']}{', kernel ' * bool(values['kernel'])}{values['kernel']}"
    threads = f"{values['threads']} thread{'s' * (values['threads'] > 1)}"
    width = max(len(one["form"]) for one in forms)
    rows = [
        f"  {one['form']:{width}}  {one['milliseconds']:9.3f} {one['milliseconds_95']:9.3f}  "
        f"{one['clouds_per_second']:10,.0f}  {_bytes(one.get('bytes')):>9}  "
        f"{_bytes(one.get('peak_bytes')):>9}"
        for one in forms
    ]
    return [
        f"{values['model']}: {values['title']}, {values['parameters']:,} parameters, "
        f"{values['macs_per_cloud'] / 1e6:.2f} M multiply-adds a cloud of {values['points']} "
        "points",
        f"{threads}, engine {values['engine']}, BLAS {kernel}; C programs use one thread",
        f"  {'':{width}}  ms median  95th pct    clouds/s       size    buffers",
        *rows,
        "ms: one cloud alone; predict makes the model's constants anew, as `minipc predict` does; "
        f"the evaluator keeps them; clouds/s: {block} clouds at once",
        *(f"not measured: {reason}" for reason in values["missing"]),
    ]


def _bytes(count: int | None) -> str:
    return "-" if count is None else size(count)


def of_predict(values: Values) -> list[str]:
    names = [printable(one["file"]) for one in values["predictions"]]
    width = max(map(len, names), default=0)
    return [
        f"{name:{width}}  "
        + ", ".join(f"{best['class']} {100 * best['probability']:.1f} %" for best in one["top"])
        for name, one in zip(names, values["predictions"], strict=True)
    ]


# audit


def of_audit(values: Values) -> list[str]:
    checks = values["checks"]
    hold = f"{sum(check['passed'] for check in checks)} of {len(checks)} checks hold"
    if values["mutant"]:
        hold += f" with the mutant {values['mutant']}: {values['mutant_says']}"
    return [
        f"{'':26} {'gradients':>9}  {'largest':>8}  {'median':>8}  {'Taylor':>6}  {'float32':>8}  "
        f"{'facts':>5}  {'largest':>8}",
        *map(_check, checks),
        "Relative errors of gradients in float64, at the best of three steps: 1e-6 is allowed.  "
        "Taylor: 2 is right.",
        "float32: the same gradients computed in single precision; it decides nothing.  Facts: "
        "values by definition.",
        hold,
    ]


def _check(check: Values) -> str:
    return (
        f"{check['name']:26} {check['gradients'] or '-':>9}  {_or_dash(check['largest'], '8.1e')}  "
        f"{_or_dash(check['median'], '8.1e')}  {_or_dash(check['rate'], '6.2f')}  "
        f"{_or_dash(check['float32'], '8.1e')}  {check['facts'] or '-':>5}  "
        f"{_or_dash(check['deviation'], '8.1e')}  "
        f"{'ok' if check['passed'] else 'FAILED: ' + check['worst']}"
    )


def _or_dash(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else format("-", f">{form.partition('.')[0]}")


def of_audit_list(values: Values) -> list[str]:
    return [f"{name:36} {says}" for name, says in values["mutants"].items()]


def of_audit_inject_all(values: Values) -> list[str]:
    caught = values["mutants"]
    count = sum(check is not None for check in caught.values())
    return [
        f"{'mutant':36} caught by",
        *(
            f"{name:36} {check['check']}: {check['of']}" if check else f"{name:36} NOTHING"
            for name, check in caught.items()
        ),
        f"{count} of {len(caught)} mutants caught",
    ]


def of_audit_vectors(values: Values) -> list[str]:
    worst = values["worst"]
    return [
        *(f"{name:20} {error:8.1e}" for name, error in sorted(values["largest"].items())),
        f"{values['cases']} cases, {values['numbers']} numbers; largest difference "
        f"{worst['error']:.1e} ({worst['number']} of {worst['case']!r}), "
        f"{values['tolerance']:g} is allowed",
    ]


def of_audit_record(values: Values) -> list[str]:
    accuracy, a, b, T = (
        values[name] for name in ("accuracy", "kd_weight", "self_weight", "temperature")
    )
    edges, right = (
        values["safe_b_edges"],
        "no cloud is labelled: nobody knows how often it is right",
    )
    if accuracy is not None:
        few = f" of the {values['labelled']} labelled clouds" * (
            values["labelled"] < values["clouds"]
        )
        right = (
            f"teacher right in {_percent(sum(accuracy) / len(accuracy))} of the rows{few}, by view "
            f"{100 * min(accuracy):.2f} to {_percent(max(accuracy))}"
        )
    lines = [
        f"{values['record']}: {values['clouds']} clouds, {values['views']} views, "
        f"{values['classes']} classes",
        right,
        f"all views of a cloud name one class in {_percent(values['unanimous'])} of the clouds; "
        f"{_percent(values['agreement'])} of a cloud's views name its most frequent one",
        f"confidence {values['confidence']:.3f}, entropy {values['entropy']:.3f} nats (T = {T:g}: "
        f"{values['entropy_at_T']:.3f}; uniform: {math.log(values['classes']):.3f})",
        f"largest b with a bounded raw loss, at a = {a:g}, T = {T:g}, smoothing "
        f"{values['label_smoothing']:g}; rows",
        *_histogram("whatever the earlier self", values["safe_for_all"], edges),
    ]
    if values["safe_b"] is None:
        return lines
    view, cloud, bears = values["worst"]
    return [
        *lines,
        *_histogram(f"earlier self: {values['self_target']}", values["safe_b"], edges),
        f"with b = {b:g}: raw loss unbounded in {_percent(values['unbounded'])} of the rows; "
        + (
            f"the guard raises a class in {_percent(values['raised'])}"
            if b < a / 2
            else f"the guard does not take it, it needs b < a / 2 = {a / 2:g}"
        ),
        f"view {view} of cloud {cloud} bears least: b = {bears:.2g}",
    ]


def _histogram(title: str, counts: list[int], edges: list[float | None]) -> list[str]:
    total, most = sum(counts), max(counts)
    lines = [f"  {title}"]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        end = f"{low:6.3g} to {'more' if high is None else f'{high:.3g}':<5}"
        bar = "#" * round(40 * count / most)
        lines.append(f"  {end} {100 * count / total:6.2f} %  {bar}")
    return lines


# loss


def of_loss(values: Values) -> list[str]:
    from minipc.audit.conventions import KD_LIB  # imported late, as below: these modules are large

    lines = [_verdict(values), ""]
    if values["translated"]:
        theirs = values["translated"]
        lines += [
            f"{theirs['from']} {theirs['weight']:g} at T = {values['T']:g}, K = "
            f"{values['classes']} is a = {values['a']:.6g}; their loss is "
            f"{theirs['theirs_is_times_ours']:.6g} x ours",
            "",
        ]
    alike = (
        "The same gradient elsewhere"
        if values["b"] == 0
        else "The first two terms elsewhere (no third one there)"
    )
    return [
        *lines,
        values["formula"],
        *_gradient(values),
        "",
        f"{alike}, K = {values['classes']}, labels smoothed alike:",
        *(_convention(name, row) for name, row in values["elsewhere"].items()),
        f"  {KD_LIB}",
        "",
        *_bound(values),
        "",
        *_map(values),
    ]


def _gradient(values: Values) -> list[str]:
    from minipc.nn.losses import GUARD_FLOOR

    a, b, T = values["a"], values["b"], values["T"]
    if values["guard"] == "none" or b == 0:
        terms = (
            [f"{1 - a:g} (s_1 - y)"]
            + [f"+ {a * T:g} (s_T - p)"] * (a > 0)
            + [f"- {b * T:g} (s_T - r)"] * (b > 0)
        )
        return [f"gradient = {' '.join(terms)}, of a row, in its logits"]
    return [
        f"gradient = {1 - a:g} (s_1 - y) + {T:g} ((sum q') s_T - q'), of a row, in its logits;",
        f"q' = max({a:g} p - {b:g} r, {GUARD_FLOOR * a:g} p), class by class; it does not sum to "
        "one: s - q is wrong",
    ]


def _convention(name: str, row: Values) -> str:
    weight, times = "none", ""
    if row["weight"] is not None:
        weight = f"{row['weight']:.6g}"
        times = f"ours = {row['ours_is_times_theirs']:.4g} x theirs"
    return f"  {name:13} {weight:9} {times:24} {row['formula']} ({row['used_by']})"


def _verdict(values: Values) -> str:
    """Return whether the loss in use is bounded below, in one line."""
    share = f"{_percent(values['unbounded_share'])} of the rows"
    if values["b"] == 0:
        return "Bounded below: nothing is subtracted."
    if values["guard"] == "clip":
        return f"Bounded below by the guard; without it, not in {share}."
    if values["unbounded_share"]:
        return f"NOT bounded below: in {share} some M_i < 0, and the loss can fall without end."
    return "Bounded below in all of the rows; no guard, so other rows may not be."


def _bound(values: Values) -> list[str]:
    """Return lines on the rows, and on the one that allows the smallest b."""
    from numpy import argsort

    worst = values["worst_row"]
    label = f"label {worst['label']}" if worst["label"] >= 0 else "no label"
    columns = {
        "class": range(len(worst["y"])),
        "y": worst["y"],
        "p": worst["p"],
        "r": worst["r"],
        "M, no guard": worst["margins"],
    }
    if worst["target"] is not None:
        columns["target"], pulls = worst["target"], "the loss in use pulls s"
    elif worst["soft_target"] is not None:
        columns["target"] = worst["soft_target"]
        pulls = "the soft terms of the loss in use pull s_T"
    lines = [
        f"Rows: {values['rows']}.",
        f"Row {worst['row']} ({label}) bears the smallest b, up to {values['largest_safe_b']:.3g}; "
        "its least margins:",
        "  " + "  ".join(f"{name:>11}" for name in columns),
        *(
            "  " + "  ".join(f"{column[k]:11.3g}" for column in columns.values())
            for k in argsort(worst["margins"])[:3]
        ),
    ]
    if "target" in columns:
        negative = min(columns["target"]) < 0
        beyond = "; no probability is negative: it never gets there" if negative else ""
        lines.append(f"  target: where {pulls}{beyond}")
    return lines


def _map(values: Values) -> list[str]:
    """Return the map of unbounded rows over b and T."""
    shares = {(each["b"], each["T"]): each["unbounded_share"] for each in values["map"]}
    bs, Ts = (list(dict.fromkeys(axis)) for axis in zip(*shares, strict=True))
    return [
        f"Rows without a lower bound in %, at a = {values['a']:g}, smoothing "
        f"{values['label_smoothing']:g}, no guard:",
        "      b  " + "".join(f"T = {T:<5g}" for T in Ts),
        *(f"  {b:5g}  " + "".join(f"{100 * shares[b, T]:<9.3g}" for T in Ts) for b in bs),
    ]


def of_report(values: Values) -> list[str]:
    return [f"{printable(values['report'])}: {size(values['bytes'])}; open it in any browser"]


# doctor


def of_doctor(values: Values) -> list[str]:
    cupy, folder, blas_variables = values["cupy"], values["folder"], values["blas_variables"]
    installed = " and ".join(f"{name} {number}" for name, number in cupy["distributions"].items())
    devices = ", ".join(
        f"{each['name']} with {each['bytes'] / 1e9:.0f} GB" for each in cupy["devices"]
    )
    return [
        f"minipc    {values['minipc']}",
        f"Python    {values['python']}, {values['platform']}",
        f"CPUs      {values['cpus']['usable']} usable of {values['cpus']['present']}",
        f"NumPy     {values['numpy']}, its loops for {values['simd'] or 'any processor'}",
        f"BLAS      {values['blas']}, kernel {values['kernel'] or 'unknown'}; one thread: "
        f"{'yes' if values['one_blas_thread'] else 'no'} "
        f"({_settings(blas_variables) or 'no variable set'})",
        f"SciPy     {values['scipy']}",
        f"h5py      {values['h5py']}, HDF5 {values['hdf5']}",
        f"click     {values['click']}",
        f"CuPy      {installed or 'not installed'}; {devices or cupy['reason']}",
        "optional  "
        + ", ".join(f"{name} {number or 'absent'}" for name, number in values["optional"].items()),
        f"variables {_settings(values['variables']) or 'none'}",
        f"folder    locks: {folder['locks']}; posix_fallocate: {folder['posix_fallocate']}",
    ]


def _settings(values: Values) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


# parts of lines


def size(count: float) -> str:
    """Return a number of bytes as text, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _told(values: Values, name: str) -> str:
    """Return an accuracy over the training clouds in percent, and on how many where not on all."""
    if values[name] is None:
        return "unknown, as no cloud is labelled"
    few = f" (of {values['labelled']} labelled clouds)" * (values["labelled"] < values["clouds"])
    return _percent(values[name]) + few


def _short(digest: Any) -> str:
    return str(digest)[:16]


def _made_with(provenance: Any) -> str:
    items = provenance.items() if isinstance(provenance, dict) else []
    return f"made with {', '.join(f'{name} {value}' for name, value in items) or 'unknown tools'}"


def printable(path: str) -> str:
    """Return a path that can be printed; a file name need not be valid text, nor quiet."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
