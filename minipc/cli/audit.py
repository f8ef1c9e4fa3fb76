"""minipc audit: the mathematics held against itself, mutants, conformance vectors, and a record's
teacher.
"""

from contextlib import nullcontext
from math import isfinite, log

import click

from minipc.cli.options import FILE, Verb, common_options, loss_options
from minipc.cli.show import Console, result
from minipc.errors import CheckFailed, MinipcError

OF_RECORD = ("data", "kd_weight", "self_weight", "temperature", "label_smoothing", "self_record")


@click.command("audit", cls=Verb, short_help="Check the mathematics, or a record's teacher.")
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@click.option(
    "--inject",
    metavar="MUTANT",
    help="Break one thing on purpose, or all, one after another; see --list.",
)
@click.option("--list", "listed", is_flag=True, help="List the mutants.")
@click.option(
    "--vectors",
    is_flag=True,
    help="Hold the loss against the conformance vectors, number by number.",
)
@click.option(
    "--record",
    metavar="FILE",
    type=FILE,
    help="What a record says of its teacher, and of safe weights.",
)
@loss_options(self_weight=0.2)
@click.option(
    "--self-record", metavar="FILE", type=FILE, help="An earlier student's record, for --record."
)
@common_options
def command(
    data,
    inject,
    listed,
    vectors,
    record,
    kd_weight,
    self_weight,
    temperature,
    label_smoothing,
    self_record,
    as_json,
    quiet,
    verbose,
):
    """Hold every gradient against central differences, and every value against its definition.

    Ends with 0 if everything holds and with 4 if something does not.  With --inject a mutant is in
    place: the audit must catch it, and 4 is what it should end with; --inject all ends with 4 if
    one survives.  With --record it looks at the teacher recorded in FILE; DATA are its clouds, and
    a, b, T and e belong to it.
    """
    context = click.get_current_context()
    given = [
        name
        for name in OF_RECORD
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    ]
    if record is None and given:
        what = "DATA" if given[0] == "data" else f"--{given[0].replace('_', '-')}"
        raise click.UsageError(f"{what} has no use without --record; add it")
    if sum((inject is not None, listed, vectors, record is not None)) > 1:
        raise click.UsageError(
            "--inject, --list, --vectors and --record do not go together; leave one"
        )
    with Console(quiet, verbose) as console:
        if listed:
            values, lines = _mutants()
        elif vectors:
            values, lines = _vectors()
        elif record is not None:
            values, lines = _teacher(
                record, data, self_record, kd_weight, self_weight, temperature, label_smoothing
            )
        elif inject == "all":
            values, lines = _all_mutants(console)
        else:
            values, lines = _audit(inject, console)
    result(values, as_json, lines)
    if not values.get("passed", True):
        raise CheckFailed(values["failed"])


def _audit(name, console):
    """Return the object and the lines of one audit, with the mutant of this name in place or
    without one.
    """
    from minipc.audit import checks, mutants

    mutant = None if name is None else mutants.find(name)
    with mutants.broken(mutant) if mutant else nullcontext():
        found = checks.audit(console.progress)
    failed = [check for check in found if not check.passed]
    values = {
        "passed": not failed,
        "mutant": name,
        "checks": [
            {name: _number(value) for name, value in check._asdict().items()}
            | {"relative_error": _number(check.error)}
            for check in found
        ],
    }
    lines = [
        f"{'':26} {'gradients':>9}  {'largest':>8}  {'median':>8}  {'Taylor':>6}  {'float32':>8}  "
        f"{'facts':>5}"
        f"  {'largest':>8}",
        *map(_row, found),
        "Relative errors of gradients in float64, at the best of three steps: 1e-6 is allowed.  "
        "Taylor: 2 is right.",
        "float32: the same gradients computed in single precision; it decides nothing.  Facts: "
        "values by definition.",
        f"{len(found) - len(failed)} of {len(found)} checks hold"
        + (f" with the mutant {name}: {mutant.says}" if mutant else ""),
    ]
    if failed:
        caught = "; ".join(f"{check.name} ({check.worst})" for check in failed[:3])
        values["failed"] = (
            f"mutant {name}: caught by {caught}"
            if mutant
            else f"audit: {caught} failed; see the table"
        )
    elif mutant:
        raise MinipcError(
            f"mutant {name}: survived, every check holds; please report it with `minipc doctor`"
        )
    return values, lines


def _number(value):
    """Return value, or None for a float that JSON has no number for."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _row(check):
    return (
        f"{check.name:26} {check.gradients or '-':>9}  {_or_dash(check.largest, '8.1e')}  "
        f"{_or_dash(check.median, '8.1e')}  {_or_dash(check.rate, '6.2f')}  "
        f"{_or_dash(check.float32, '8.1e')}  "
        f"{check.facts or '-':>5}  {_or_dash(check.deviation, '8.1e')}  "
        f"{'ok' if check.passed else 'FAILED: ' + check.worst}"
    )


def _all_mutants(console):
    """Return the object and the lines of all mutants, each stopped at the first check that catches
    it.
    """
    from minipc.audit import checks, mutants

    caught, lines = {}, [f"{'mutant':36} caught by"]
    for number, (name, mutant) in enumerate(mutants.MUTANTS.items()):
        console.progress(number, len(mutants.MUTANTS), name)
        with mutants.broken(mutant):
            check = checks.first_failure()
        caught[name] = check and {
            "check": check.name,
            "of": check.worst,
            "relative_error": _number(check.error),
        }
        lines.append(f"{name:36} {f'{check.name}: {check.worst}' if check else 'NOTHING'}")
    console.progress(1, 1, "")
    survived = [name for name, check in caught.items() if check is None]
    lines.append(f"{len(caught) - len(survived)} of {len(caught)} mutants caught")
    values = {"passed": not survived, "mutants": caught}
    if survived:
        values["failed"] = f"mutants survived: {', '.join(survived)}; please report it"
    return values, lines


def _mutants():
    from minipc.audit.mutants import MUTANTS

    values = {name: mutant.says for name, mutant in MUTANTS.items()}
    return {"mutants": values}, [f"{name:36} {says}" for name, says in values.items()]


def _vectors():
    """Return the object and the lines of our loss against the conformance vectors."""
    from minipc.audit.vectors import TOLERANCE, check

    found = check()
    case, number, worst = found[0]
    by_number = {
        name: max(error for _, other, error in found if other == name) for _, name, _ in found
    }
    names = {case for case, _, _ in found}
    values = {
        "passed": worst <= TOLERANCE,
        "cases": len(names),
        "numbers": len(found),
        "largest": {name: _number(error) for name, error in by_number.items()},
    }
    if not values["passed"]:
        values["failed"] = (
            f"vectors: {number} of {case!r} is off by {worst:.1e}, more than {TOLERANCE:g}"
        )
    return values, [
        *(f"{name:20} {error:8.1e}" for name, error in sorted(by_number.items())),
        f"{len(names)} cases, {len(found)} numbers; largest difference {worst:.1e} ({number} of "
        f"{case!r}), "
        f"{TOLERANCE:g} is allowed",
    ]


def _teacher(record, data, self_record, a, b, T, smoothing):
    """Return the object and the lines of a record's teacher."""
    from minipc.audit.teacher import SAFE_B
    from minipc.nn.losses import LossConfig
    from minipc.verbs.audit import audit_record

    config = LossConfig(a, b, T, smoothing, "none")
    found = audit_record(record, data, config, self_record)
    values = found._asdict() | {"safe_b_edges": [edge if edge < 1e300 else None for edge in SAFE_B]}
    least, most = min(found.accuracy), max(found.accuracy)
    mean = sum(found.accuracy) / len(found.accuracy)
    lines = [
        f"{record}: {found.clouds} clouds, {found.views} views, {found.classes} classes",
        f"teacher right in {100 * mean:.2f} % of the rows, by view {100 * least:.2f} to "
        f"{100 * most:.2f} %",
        f"all views of a cloud name one class in {100 * found.unanimous:.2f} % of the clouds; "
        f"{100 * found.agreement:.2f} % of a cloud's views name its most frequent one",
        f"confidence {found.confidence:.3f}, entropy {found.entropy:.3f} nats (T = {T:g}: "
        f"{found.entropy_at_T:.3f}; "
        f"uniform: {log(found.classes):.3f})",
        f"largest b with a bounded raw loss, at a = {a:g}, T = {T:g}, smoothing {smoothing:g}; "
        "rows",
        *_histogram("whatever the earlier self", found.safe_for_all, SAFE_B),
    ]
    if found.safe_b is not None:
        lines += [
            *_histogram(f"earlier self: {found.self_target}", found.safe_b, SAFE_B),
            f"with b = {b:g}: raw loss unbounded in {100 * found.unbounded:.2f} % of the rows; "
            + (
                f"the guard raises a class in {100 * found.raised:.2f} %"
                if b < a / 2
                else f"the guard does not take it, it needs b < a / 2 = {a / 2:g}"
            ),
            f"view {found.worst[0]} of cloud {found.worst[1]} bears least: b = "
            f"{found.worst[2]:.2g}",
        ]
    return values, lines


def _histogram(title, counts, edges):
    """Return a histogram as lines of text."""
    total, most = sum(counts), max(counts)
    ends = [
        f"{low:6.3g} to {'more' if high > 1e300 else f'{high:.3g}':<5}"
        for low, high in zip(edges, edges[1:])
    ]
    bars = ["#" * round(40 * count / most) for count in counts]
    return [
        f"  {title}",
        *(
            f"  {end} {100 * count / total:6.2f} %  {bar}"
            for end, count, bar in zip(ends, counts, bars)
        ),
    ]


def _or_dash(value, form):
    return format(value, form) if value is not None else format("-", f">{form.partition('.')[0]}")
