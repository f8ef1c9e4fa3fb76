"""Lines of `minipc audit`."""

import math

from minipc.report.lines.text import Values, percent


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
            f"teacher right in {percent(sum(accuracy) / len(accuracy))} of the rows{few}, by view "
            f"{100 * min(accuracy):.2f} to {percent(max(accuracy))}"
        )
    lines = [
        f"{values['record']}: {values['clouds']} clouds, {values['views']} views, "
        f"{values['classes']} classes",
        right,
        f"all views of a cloud name one class in {percent(values['unanimous'])} of the clouds; "
        f"{percent(values['agreement'])} of a cloud's views name its most frequent one",
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
        f"with b = {b:g}: raw loss unbounded in {percent(values['unbounded'])} of the rows; "
        + (
            f"the guard raises a class in {percent(values['raised'])}"
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
