"""minipc audit: checks of the mathematics, mutants, vectors, and a record's teacher."""

from contextlib import nullcontext
from typing import Any

import click

from minipc.cli.completion import mutants
from minipc.cli.options import (
    FILE,
    Verb,
    common_options,
    option,
    setting_options,
    typed_options,
)
from minipc.cli.show import Console, result
from minipc.errors import CheckFailed, MinipcError
from minipc.settings import LossConfig, option_names, take

OF_RECORD = ("data", *option_names(LossConfig), "self_record")


@click.command("audit", cls=Verb, short_help="Check the mathematics, or a record's teacher.")
@click.argument("data", metavar="[DATA]", type=FILE, required=False)
@option(
    "--inject",
    group="Checks",
    metavar="MUTANT",
    shell_complete=mutants,
    help="Break one thing on purpose, or all, one after another; see --list.",
)
@option("--list", "listed", group="Checks", is_flag=True, help="List the mutants.")
@option(
    "--vectors",
    group="Checks",
    is_flag=True,
    help="Hold the loss against the conformance vectors, number by number.",
)
@option("--record", help="What a record says of its teacher, and of safe weights.")
@option("--self-record")
@setting_options(LossConfig, leave_out=("guard",), self_weight=0.2)
@common_options
def command(
    data: str | None,
    inject: str | None,
    listed: bool,
    vectors: bool,
    record: str | None,
    self_record: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **weights: Any,
) -> None:
    """Hold every gradient against central differences, and every value against its definition.

    Ends with 0 if everything holds and with 4 if something does not.  With --inject a mutant is in
    place: the audit must catch it, and 4 is what it should end with; --inject all ends with 4 if
    one survives.  With --record it looks at the teacher recorded in FILE; DATA are its clouds, and
    a, b, T and e belong to it.
    """
    typed = typed_options()
    given = [name for name in OF_RECORD if name in typed]
    if "record" not in typed and (inject is not None or listed or vectors):
        record = None
    if record is None and given:
        what = "DATA" if given[0] == "data" else f"--{given[0].replace('_', '-')}"
        raise click.UsageError(f"{what} has no use without --record; add it")
    if sum((inject is not None, listed, vectors, record is not None)) > 1:
        raise click.UsageError(
            "--inject, --list, --vectors and --record do not go together; leave one"
        )
    from minipc.report.lines import audit as lines

    with Console(quiet, verbose) as console:
        if listed:
            values, of_values = _mutants(), lines.of_audit_list
        elif vectors:
            values, of_values = _vectors(), lines.of_audit_vectors
        elif record is not None:
            (loss,) = take(weights | {"guard": "none"}, LossConfig)
            values, of_values = _teacher(record, data, self_record, loss), lines.of_audit_record
        elif inject == "all":
            values, of_values = _all_mutants(console), lines.of_audit_inject_all
        else:
            values, of_values = _audit(inject, console), lines.of_audit
    result(values, as_json, of_values)
    if not values.get("passed", True):
        raise CheckFailed(values["failed"])


def _audit(name: str | None, console: Console) -> dict[str, Any]:
    """Return the values of one audit, with the mutant of this name, or without one for None."""
    from minipc.audit import checks, mutants

    mutant = None if name is None else mutants.find(name)
    with mutants.broken(mutant) if mutant else nullcontext():
        results = checks.audit(console.progress)
    failed = [check for check in results if not check.passed]
    values: dict[str, Any] = {
        "passed": not failed,
        "mutant": name,
        "mutant_says": mutant and mutant.says,
        "checks": [check._asdict() | {"relative_error": check.error} for check in results],
    }
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
    return values


def _all_mutants(console: Console) -> dict[str, Any]:
    """Return the values of all mutants; each stops at the first check that catches it."""
    from minipc.audit import checks, mutants

    caught: dict[str, Any] = {}
    for number, (name, mutant) in enumerate(mutants.MUTANTS.items()):
        console.progress(number, len(mutants.MUTANTS), name)
        with mutants.broken(mutant):
            check = checks.first_failure()
        caught[name] = check and {
            "check": check.name,
            "of": check.worst,
            "relative_error": check.error,
        }
    console.progress(1, 1, "")
    survived = [name for name, check in caught.items() if check is None]
    values: dict[str, Any] = {"passed": not survived, "mutants": caught}
    if survived:
        values["failed"] = f"mutants survived: {', '.join(survived)}; please report it"
    return values


def _mutants() -> dict[str, Any]:
    from minipc.audit.mutants import MUTANTS

    return {"mutants": {name: mutant.says for name, mutant in MUTANTS.items()}}


def _vectors() -> dict[str, Any]:
    """Return how far our loss is from the conformance vectors."""
    from minipc.audit.vectors import TOLERANCE, check

    differences = check()
    case, number, worst = differences[0]
    values: dict[str, Any] = {
        "passed": worst <= TOLERANCE,
        "cases": len({case for case, _, _ in differences}),
        "numbers": len(differences),
        "largest": {
            name: max(error for _, other, error in differences if other == name)
            for _, name, _ in differences
        },
        "worst": {"case": case, "number": number, "error": worst},
        "tolerance": TOLERANCE,
    }
    if not values["passed"]:
        values["failed"] = (
            f"vectors: {number} of {case!r} is off by {worst:.1e}, more than {TOLERANCE:g}"
        )
    return values


def _teacher(
    record: str, data: str | None, self_record: str | None, loss: LossConfig
) -> dict[str, Any]:
    """Return what a record says about its teacher."""
    from minipc.audit.teacher import SAFE_B
    from minipc.verbs.audit import audit_record

    audited = audit_record(record, data, loss, self_record)
    return {
        "record": record,
        "kd_weight": loss.kd_weight,
        "self_weight": loss.self_weight,
        "temperature": loss.temperature,
        "label_smoothing": loss.label_smoothing,
        **audited._asdict(),
        "safe_b_edges": [*SAFE_B[:-1], None],  # the last interval has no end
    }
