"""minipc loss: the formula in use, what its weights mean elsewhere, and where it is bounded."""

import click

from minipc.cli.options import FILE, Verb, common_options, loss_options
from minipc.cli.show import result
from minipc.errors import UsageError


@click.command("loss", cls=Verb, short_help="The formula in use, its conventions and its bound.")
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@loss_options()
@click.option(
    "--guard",
    type=click.Choice(["clip", "none"]),
    default="clip",
    show_default=True,
    help="Keeps the negative weight bounded.",
)
@click.option(
    "--record", metavar="FILE", type=FILE, help="Take the rows of this record; DATA are its clouds."
)
@click.option(
    "--self-record", metavar="FILE", type=FILE, help="An earlier student's record, for --record."
)
@click.option("--classes", type=click.IntRange(2, 10**6), help="K without --record.  [default: 40]")
@click.option(
    "--from",
    "theirs",
    metavar="NAME=WEIGHT",
    help="Translate another library's weight, e.g. deit=0.5.",
)
@common_options
def command(
    data,
    kd_weight,
    self_weight,
    temperature,
    label_smoothing,
    guard,
    record,
    self_record,
    classes,
    theirs,
    as_json,
    quiet,
    verbose,
):
    """Show the loss with its numbers filled in, and what they mean.

    The same weights in the conventions of other libraries; whether the loss is bounded below, with
    the row that bears least; and the share of unbounded rows over b and T.  Without --record the
    rows are made up.
    """
    from minipc.audit import bound
    from minipc.audit.conventions import check_name, from_theirs
    from minipc.nn.losses import LossConfig, formula
    from minipc.verbs.audit import recorded_rows

    if record is None and (data or self_record):
        raise click.UsageError(
            f"{'--self-record' if self_record else 'DATA'} has no use without --record; add it"
        )
    if record is not None and classes is not None:
        raise click.UsageError("--classes: the record says how many; leave one out")
    translation = None
    if theirs:
        if (
            click.get_current_context().get_parameter_source("kd_weight")
            is not click.core.ParameterSource.DEFAULT
        ):
            raise click.UsageError("--from and --kd-weight both say what a is; leave one out")
        name, weight = _named_weight(theirs)
        check_name(name)
    else:
        LossConfig(
            kd_weight, self_weight, temperature, label_smoothing, guard
        )  # before a record is read
    rows = recorded_rows(record, data, self_record) if record else bound.example_rows(classes or 40)
    K, a, lines = rows.v.shape[1], kd_weight, []
    if theirs:
        translation = from_theirs(name, weight, temperature, K)
        a = translation.weight
        lines = [
            f"{name} {weight:g} at T = {temperature:g}, K = {K} is a = {a:.6g}; "
            f"their loss is {translation.times:.6g} x ours",
            "",
        ]
    config = LossConfig(a, self_weight, temperature, label_smoothing, guard)
    worst, shares = bound.worst_row(rows, config), bound.unbounded_shares(rows, a, label_smoothing)
    elsewhere = _elsewhere(a, temperature, K)
    values = {
        "formula": formula(config),
        "a": a,
        "b": self_weight,
        "T": temperature,
        "label_smoothing": label_smoothing,
        "guard": guard,
        "classes": K,
        "rows": rows.what,
        "elsewhere": elsewhere,
        "translated": translation
        and {"from": name, "weight": weight, "theirs_is_times_ours": translation.times},
        "bounded": bool(guard == "clip" or self_weight == 0 or worst.unbounded == 0),
        "unbounded_share": worst.unbounded,
        "largest_safe_b": worst.safe_b,
        "worst_row": {
            name: value.tolist() if hasattr(value, "tolist") else value
            for name, value in worst._asdict().items()
            if name not in ("unbounded", "safe_b")
        },
        "map": [{"b": b, "T": T, "unbounded_share": share} for (b, T), share in shares.items()],
    }
    alike = (
        "The same gradient elsewhere"
        if self_weight == 0
        else "The first two terms elsewhere (no third one there)"
    )
    lines += [
        formula(config),
        *_gradient(config),
        "",
        f"{alike}, K = {K}, labels smoothed alike:",
        *_table(elsewhere),
        "",
        *_bound(config, rows, worst),
        "",
        *_map(bound, shares, a, label_smoothing),
    ]
    result(values, as_json, lines)


def _named_weight(text):
    """Return name and weight of NAME=WEIGHT."""
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise UsageError(f"from: expected NAME=WEIGHT, e.g. deit=0.5, got {text!r}") from None


def _gradient(config):
    """Return the gradient as lines of text."""
    from minipc.nn.losses import GUARD_FLOOR

    a, b, T = config.kd_weight, config.self_weight, config.temperature
    if config.guard == "none" or b == 0:
        terms = (
            [f"{1 - a:g} (s_1 - y)"]
            + [f"+ {a * T:g} (s_T - p)"] * (a > 0)
            + [f"- {b * T:g} (s_T - r)"] * (b > 0)
        )
        return [f"gradient = {' '.join(terms)}, of a row, in its logits"]
    return [
        f"gradient = {1 - a:g} (s_1 - y) + {T:g} ((sum q') s_T - q'), of a row, in its logits;",
        f"q' = max({a:g} p - {b:g} r, {GUARD_FLOOR * a:g} p), class by class; it does not sum to "
        "one: p - q is wrong",
    ]


def _elsewhere(a, T, K):
    from minipc.audit.conventions import CONVENTIONS, to_theirs

    found = {}
    for name, convention in CONVENTIONS.items():
        weight, times = to_theirs(name, a, T, K)
        found[name] = {
            "used_by": convention.used_by,
            "formula": convention.formula,
            "weight": weight if weight < float("inf") else None,  # none weighs labels with nothing
            "ours_is_times_theirs": times if weight < float("inf") else None,
        }
    return found


def _table(elsewhere):
    from minipc.audit.conventions import KD_LIB

    return [
        f"  {name:13} {'none' if row['weight'] is None else format(row['weight'], '.6g'):9} "
        f"{'' if row['weight'] is None else 'ours = ' + format(row['ours_is_times_theirs'], '.4g') + ' x theirs':24}"
        f" {row['formula']} ({row['used_by']})"
        for name, row in elsewhere.items()
    ] + [f"  {KD_LIB}"]


def _bound(config, rows, worst):
    """Return lines on the bound of the loss, and on the row that bears least."""
    b = config.self_weight
    share = f"{100 * worst.unbounded:.2f} % of the rows"
    if b == 0:
        verdict = "bounded below: nothing is subtracted"
    elif config.guard == "clip":
        verdict = f"bounded below by the guard; without it unbounded in {share}"
    elif worst.unbounded:
        verdict = f"NOT bounded below: in {share} some M_i < 0"
    else:
        verdict = "bounded below in all of these rows"
    columns = {
        "class": range(len(worst.y)),
        "y": worst.y,
        "p": worst.p,
        "r": worst.r,
        "M, no guard": worst.margins,
    }
    if worst.target is not None:
        columns["target"], pulls = worst.target, "the loss in use pulls s"
    elif worst.soft_target is not None:
        columns["target"], pulls = worst.soft_target, "the soft terms of the loss in use pull s_T"
    lines = [
        f"Rows: {rows.what}.",
        f"{verdict}. Row {worst.row} (label {worst.label}) bears b up to {worst.safe_b:.3g}; its "
        "least margins:",
        "  " + "  ".join(f"{name:>11}" for name in columns),
        *(
            "  " + "  ".join(f"{values[k]:11.3g}" for values in columns.values())
            for k in worst.margins.argsort()[:3]
        ),
    ]
    if "target" in columns:
        beyond = (
            "; no probability is negative: it never gets there"
            if columns["target"].min() < 0
            else ""
        )
        lines.append(f"  target: where {pulls}{beyond}")
    return lines


def _map(bound, shares, a, smoothing):
    """Return the map of unbounded rows over b and T."""
    return [
        f"Rows without a lower bound in %, at a = {a:g}, smoothing {smoothing:g}, no guard:",
        "      b  " + "".join(f"T = {T:<5g}" for T in bound.T),
        *(f"  {b:5g}  " + "".join(f"{100 * shares[b, T]:<9.3g}" for T in bound.T) for b in bound.B),
    ]
