"""How runs were made: records, commands, environments."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from minipc.report import commands
from minipc.report.lines.text import size as bytes_of
from minipc.report.run.parts import p, plain, share_of, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipc.report.run.facts import Arm, RecordFacts, RunFacts


def record(arms: Sequence[Arm]) -> str:
    """Return a table of the records that the arms learnt from."""
    shown = {arm.record.plan.recording_id: arm.record for arm in arms if arm.record}
    named = {arm.config.record.file: arm.config.record for arm in arms if arm.config.record}
    if not named:
        return p("No record: every epoch drew views of its own.")
    if not shown:
        files = ", ".join(f"{name} (run {each.run_id[:16]})" for name, each in named.items())
        return p(f"{files}: not found beside the runs, so nothing more can be said of it.")
    columns = [_facts(each) for each in shown.values()]
    rows = [("", [name, *(column[name] for column in columns)]) for name in columns[0]]
    return table(["", *(each.file for each in shown.values())], rows)


def _facts(record: RecordFacts) -> dict[str, str]:
    """Return {name: value} of a record, for people."""
    plan = record.plan
    carried = ", ".join(f"{n} {name}" for name, n in (record.carries or {}).items())
    made = [f"{each['rows']} rows by {_made_with(each['made_with'])}" for each in record.provenance]
    return {
        "clouds": f"{plan.clouds}",
        "views of each": f"{plan.views}",
        "size": f"{bytes_of(record.bytes)}, {plan.bytes_per_view} bytes a view of a cloud",
        "logits": f"{plan.logits}; largest KL by rounding {record.max_kl:.1e}",
        "teacher": plan.teacher_id[:16],
        "accuracy of the teacher, view 0": share_of(record.teacher_accuracy),
        "seed of the views": str(plan.seed),
        "run": plan.recording_id[:16],
        "training points": plan.points_hash[:16],
        "data file": record.data_file or "not named",
        "clouds in it": carried or "none",
        "recorded": "; ".join(made),
    }


def made(arms: Sequence[Arm]) -> str:
    """Return the commands that make the runs again, and what they were computed with."""
    lines: list[str] = []
    for arm in arms:
        record, config = arm.record, arm.config
        if arm.source:
            lines.append(f"# {config.data}: {arm.source}")
        if record:
            lines.append(f"# the teacher of {record.file}: model {record.plan.teacher_id[:16]}")
            lines.append(commands.of_record(record.plan, record.data_file, record.file))
        lines += [commands.of_run(run.config, run.name) for run in arm.runs]
    text = "\n".join(dict.fromkeys(lines))
    environments = {run.name: _environment(run) for arm in arms for run in arm.runs}
    names = list(dict.fromkeys(name for each in environments.values() for name in each))
    distinct: dict[tuple[str, ...], list[str]] = {}
    for run, each in environments.items():
        distinct.setdefault(tuple(each.get(name, "-") for name in names), []).append(run)
    heads = ["", *(", ".join(runs) for runs in distinct.values())]
    if len(distinct) == 1:
        heads[1] = "all runs"
    took = [f"{run.name} {_seconds(run):.0f} s" for arm in arms for run in arm.runs]
    rows = [("", [name, *(cells[i] for cells in distinct)]) for i, name in enumerate(names)]
    return (
        f'<pre class="wrap">{escape(text)}</pre>'
        + p("Made from run.json; the files are named as it names them.", "faint")
        + "<h3>Environment</h3>"
        + table(heads, rows)
        + p(f"Training took: {'; '.join(took)}.")
    )


def _seconds(run: RunFacts) -> float:
    """Return how long the epochs of a run took to train, in seconds."""
    return float(sum(row.get("train_seconds", 0) for row in run.rows))


def _environment(run: RunFacts) -> dict[str, str]:
    """Return {name: value} of what a run was computed with."""
    there = {name.replace("_", " "): plain(v) for name, v in run.config.provenance.items()}
    again = run.trained.get("continued_with")
    continued = {"continued with": _made_with(again)} if again else {}
    return there | continued


def _made_with(provenance: Any) -> str:
    items = provenance.items() if isinstance(provenance, dict) else []
    return ", ".join(f"{name} {value}" for name, value in items) or "unknown tools"
