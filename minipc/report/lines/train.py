"""Lines of `minipc train`."""

import os
import shlex

from minipc.report.lines.text import Values, percent

NEARLY_ALL = 0.9  # share of rows that the guard changes, from which on a training is the guard's


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
    unbounded, raised = percent(values["unbounded"]), percent(values["raised"])
    lines, warned = [f"last epoch, b = {b:g}, T = {T:g}: "], ""
    if loss["guard"] == "none":
        lines[0] += f"{unbounded} of the rows have no lower bound, and no guard"
        warned = "NOT bounded below" * (values["unbounded"] > 0)
    else:
        lines[0] += f"the guard raised a class in {raised} of the rows; {unbounded} need it"
        warned = "the guard decided nearly every row" * (values["raised"] >= NEARLY_ALL)
    if warned:
        look = f"choose b and T by: minipc loss --record {shlex.quote(str(values['record']))}"
        remedy = "raise --temperature, e.g. 4, or lower --self-weight" if T <= 2 else look
        lines.append(f"warning: {warned}; {remedy}")
    return lines
