"""minipc loss: the formula in use, its weights in other libraries, and where it is bounded."""

from typing import Any

import click

from minipc.cli.completion import libraries
from minipc.cli.options import (
    FILE,
    Verb,
    common_options,
    option,
    setting_options,
    typed_options,
)
from minipc.cli.show import result
from minipc.errors import UsageError
from minipc.settings import LossConfig, take


@click.command("loss", cls=Verb, short_help="The formula in use, its conventions and its bound.")
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option("--record", help="Take the rows of this record; DATA are its clouds.")
@option("--self-record")
@option(
    "--classes",
    metavar="K",
    type=click.IntRange(2, 10**6),
    help="K without --record.",
    unless_given="40",
)
@setting_options(LossConfig)
@option(
    "--from",
    "theirs",
    group="Loss",
    metavar="NAME=WEIGHT",
    shell_complete=libraries,
    help="Translate another library's weight, e.g. deit=0.5.",
)
@common_options
def command(
    data: str | None,
    record: str | None,
    self_record: str | None,
    classes: int | None,
    theirs: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **weights: Any,
) -> None:
    """Say whether the loss is bounded below, and show it with its numbers filled in.

    Then the same weights in the conventions of other libraries, the row that bears the smallest b,
    and the share of unbounded rows over b and T.  Without --record the rows are made up.
    """
    from minipc.audit import bound
    from minipc.audit.conventions import check_name, from_theirs
    from minipc.nn.losses import formula
    from minipc.report.lines.loss import of_loss
    from minipc.verbs.audit import recorded_rows

    if record is None and (data or self_record):
        raise click.UsageError(
            f"{'--self-record' if self_record else 'DATA'} has no use without --record; add it"
        )
    if record is not None and classes is not None:
        raise click.UsageError("--classes: the record says how many; leave one out")
    translation = None
    if theirs:
        if "kd_weight" in typed_options():
            raise click.UsageError("--from and --kd-weight both say what a is; leave one out")
        name, weight = _named_weight(theirs)
        check_name(name)
    else:
        take(weights, LossConfig)  # raises before a record is read
    rows = recorded_rows(record, data, self_record) if record else bound.example_rows(classes or 40)
    K, T = rows.v.shape[1], weights["temperature"]
    if theirs:
        translation = from_theirs(name, weight, T, K)
        weights["kd_weight"] = translation.weight
    (config,) = take(weights, LossConfig)
    a, b, smoothing = config.kd_weight, config.self_weight, config.label_smoothing
    worst, shares = bound.worst_row(rows, config), bound.unbounded_shares(rows, a, smoothing)
    elsewhere = _elsewhere(a, T, K)
    values = {
        "formula": formula(config),
        "a": a,
        "b": b,
        "T": T,
        "label_smoothing": smoothing,
        "guard": config.guard,
        "classes": K,
        "rows": rows.what,
        "elsewhere": elsewhere,
        "translated": translation
        and {"from": name, "weight": weight, "theirs_is_times_ours": translation.times},
        "bounded": bool(config.guard == "clip" or b == 0 or worst.unbounded == 0),
        "unbounded_share": worst.unbounded,
        "largest_safe_b": worst.safe_b,
        "worst_row": {
            name: value.tolist() if hasattr(value, "tolist") else value
            for name, value in worst._asdict().items()
            if name not in ("unbounded", "safe_b")
        },
        "map": [{"b": b, "T": T, "unbounded_share": share} for (b, T), share in shares.items()],
    }
    result(values, as_json, of_loss)


def _named_weight(text: str) -> tuple[str, float]:
    """Return the name and the weight of NAME=WEIGHT."""
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise UsageError(f"from: expected NAME=WEIGHT, e.g. deit=0.5, got {text!r}") from None


def _elsewhere(a: float, T: float, K: int) -> dict[str, Any]:
    """Return {library: the same weight in its convention}."""
    from minipc.audit.conventions import CONVENTIONS, to_theirs

    conventions = {}
    for name, convention in CONVENTIONS.items():
        weight, times = to_theirs(name, a, T, K)
        finite = weight < float("inf")  # inf: no weight of theirs turns labels off
        conventions[name] = {
            "used_by": convention.used_by,
            "formula": convention.formula,
            "weight": weight if finite else None,
            "ours_is_times_theirs": times if finite else None,
        }
    return conventions
