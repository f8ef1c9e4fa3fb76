"""Lines of `minipc eval` and `minipc predict`."""

import math

from minipc.report.confusion import class_lines
from minipc.report.lines.text import Values, percent, printable


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
            f"{percent(values['ece'])}",
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
    told = f"agreement with {pair['with']}: {percent(pair['agreement'])}"
    if pair["mcnemar"] is None:
        return told
    return (
        f"{told}; right alone: {pair['gained']} clouds here, {pair['lost']} there, McNemar's exact "
        f"p {pair['mcnemar']:.3g}"
    )


def _accuracies(values: Values) -> str:
    return (
        f"accuracy {percent(values['accuracy'])}, mean class accuracy "
        f"{percent(values['mean_class_accuracy'])}"
    )


def of_predict(values: Values) -> list[str]:
    names = [printable(one["file"]) for one in values["predictions"]]
    width = max(map(len, names), default=0)
    return [
        f"{name:{width}}  "
        + ", ".join(f"{best['class']} {100 * best['probability']:.1f} %" for best in one["top"])
        for name, one in zip(names, values["predictions"], strict=True)
    ]
