"""minipc loss: the formula in use, what its weights mean elsewhere, and where it is bounded."""

import click

from minipc.cli.options import FILE, Verb, common_options, loss_options
from minipc.cli.show import result
from minipc.errors import UsageError


@click.command("loss", cls=Verb, short_help="The formula in use, its conventions and its bound.")
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@loss_options()
@click.option("--guard", type=click.Choice(["clip", "none"]), default="clip", show_default=True,
              help="Keeps the negative weight bounded.")
@click.option("--record", metavar="FILE", type=FILE, help="Take the rows of this record; DATA are its clouds.")
@click.option("--self-record", metavar="FILE", type=FILE, help="An earlier student's record, for --record.")
@click.option("--classes", type=click.IntRange(2, 10**6), help="K without --record.  [default: 40]")
@click.option("--from", "theirs", metavar="NAME=WEIGHT", help="Translate another library's weight, e.g. deit=0.5.")
@common_options
def command(
    data, kd_weight, self_weight, temperature, label_smoothing, guard, record, self_record, classes, theirs,
    as_json, quiet, verbose,
):
    """Show the loss with its numbers filled in, and what they mean.

    The same weights in the conventions of other libraries; whether the loss is bounded below, with
    the row that bears least; and the share of unbounded rows over b and T.  Without --record the
    rows are made up.
    """
    from minipc.audit import bound
    from minipc.jobs import recorded_rows
    from minipc.nn.losses import LossConfig, formula

    if record is None and (data or self_record):
        raise click.UsageError(f"{'--self-record' if self_record else 'DATA'} has no use without --record; add it")
    if record is not None and classes is not None:
        raise click.UsageError("--classes: the record says how many; leave one out")
    LossConfig(kd_weight, self_weight, temperature, label_smoothing, guard)  # every value makes sense
    rows = recorded_rows(record, data, self_record) if record else bound.example_rows(classes or 40)
    K = rows.v.shape[1]
    a, lines = kd_weight, []
    if theirs:
        a, lines = _translated(theirs, temperature, K)
    config = LossConfig(a, self_weight, temperature, label_smoothing, guard)
    worst = bound.worst_row(rows, config)
    shares = bound.unbounded_shares(rows, a, label_smoothing)
    elsewhere = _elsewhere(a, temperature, K)
    values = {
        "formula": formula(config), "classes": K, "rows": rows.what, "elsewhere": elsewhere,
        "bounded": bool(guard == "clip" or self_weight == 0 or worst.unbounded == 0),
        "unbounded_share": worst.unbounded,
        "largest_safe_b": worst.safe_b, "worst_row": worst.row,
        "map": [{"b": b, "T": T, "unbounded_share": share} for (b, T), share in shares.items()],
    }
    lines += [
        formula(config), *_gradient(config), "", f"The same gradient elsewhere, K = {K}:", *_table(elsewhere), "",
        *_bound(config, rows, worst), "", *_map(bound, shares, a, label_smoothing),
    ]
    result(values, as_json, lines)


def _translated(theirs, T, K):
    """Return our a for NAME=WEIGHT, and lines that say so."""
    from minipc.audit.conventions import from_theirs

    name, _, weight = theirs.partition("=")
    try:
        weight = float(weight)
    except ValueError:
        raise UsageError(f"from: expected NAME=WEIGHT, e.g. deit=0.5, got {theirs!r}") from None
    found = from_theirs(name, weight, T, K)
    what = f"{name} {weight:g} at T = {T:g}, K = {K} is a = {found.weight:.6g}"
    return found.weight, [f"{what}; their loss is {found.times:.6g} x ours", ""]


def _gradient(config):
    """Return the gradient as lines of text."""
    a, b, T = config.kd_weight, config.self_weight, config.temperature
    if config.guard == "none" or b == 0:
        terms = [f"{1 - a:g} (s_1 - y)"] + [f"+ {a * T:g} (s_T - p)"] * (a > 0) + [f"- {b * T:g} (s_T - r)"] * (b > 0)
        return [f"gradient = {' '.join(terms)}, of a row, in its logits"]
    return [
        f"gradient = {1 - a:g} (s_1 - y) + {T:g} ((sum q') s_T - q'), of a row, in its logits;",
        f"q' = max({a:g} p - {b:g} r, {0.05 * a:g} p), class by class: its sum is not one, so p - q would be wrong",
    ]


def _elsewhere(a, T, K):
    from minipc.audit.conventions import CONVENTIONS, to_theirs

    found = {}
    for name, convention in CONVENTIONS.items():
        weight, times = to_theirs(name, a, T, K)
        found[name] = {
            "used_by": convention.used_by, "formula": convention.formula,
            "weight": weight if weight < float("inf") else None,  # none weighs labels with nothing
            "ours_is_times_theirs": times if weight < float("inf") else None,
        }
    return found


def _table(elsewhere):
    from minipc.audit.conventions import KD_LIB

    return [
        f"  {name:13} {'none' if row['weight'] is None else format(row['weight'], '.6g'):9} "
        f"{'' if row['weight'] is None else 'ours = ' + format(row['ours_is_times_theirs'], '.4g') + ' x theirs':24}"
        f" {row['formula']} ({row['used_by']})" for name, row in elsewhere.items()
    ] + [f"  {KD_LIB}"]


def _bound(config, rows, worst):
    """Return lines on the bound of the raw loss, and on the row that bears least."""
    b, classes = config.self_weight, worst.margins.argsort()[:3]
    at_one = config.temperature == 1 and b < 1  # the whole loss is then one cross-entropy
    if b == 0:
        verdict = "bounded below: nothing is subtracted"
    elif config.guard == "clip":
        verdict = f"bounded below by the guard; without it unbounded in {100 * worst.unbounded:.2f} % of the rows"
    elif worst.unbounded:
        verdict = f"NOT bounded below: in {100 * worst.unbounded:.2f} % of the rows some M_i < 0"
    else:
        verdict = "bounded below in all of these rows"
    return [
        f"Rows: {rows.what}.",
        f"{verdict}. Row {worst.row} (label {worst.label}) bears b up to {worst.safe_b:.3g}; its least margins:",
        f"  {'class':>5}  {'y':>9}  {'p':>9}  {'r':>9}  {'M':>10}" + (f"  {'target':>10}" if at_one else ""),
        *(f"  {k:5}  {worst.y[k]:9.3g}  {worst.p[k]:9.3g}  {worst.r[k]:9.3g}  {worst.margins[k]:10.3g}"
          + (f"  {worst.margins[k] / (1 - b):10.3g}" if at_one else "")
          + ("  falls without end along z -> -infinity" if worst.margins[k] < 0 else "") for k in classes),
        *["  target: ((1 - a) y + a p - b r) / (1 - b), to which s is pulled; negative: no probability"] * at_one,
    ]


def _map(bound, shares, a, smoothing):
    """Return the map of unbounded rows over b and T."""
    return [
        f"Rows without a lower bound in %, at a = {a:g}, smoothing {smoothing:g}, no guard:",
        "      b  " + "".join(f"T = {T:<5g}" for T in bound.T),
        *(f"  {b:5g}  " + "".join(f"{100 * shares[b, T]:<9.3g}" for T in bound.T) for b in bound.B),
    ]
