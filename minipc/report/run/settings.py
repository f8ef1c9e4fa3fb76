"""The loss of each arm with its numbers, and all settings side by side."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING

from minipc.nn.losses import formula
from minipc.report.run.parts import p, plain, table
from minipc.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipc.report.run.facts import Arm


def settings(arms: Sequence[Arm]) -> str:
    """Return the loss of each arm with its numbers, and all settings side by side."""
    lines = "\n".join(
        f"{f'{arm.name}: ' if len(arms) > 1 else ''}{formula(arm.config.loss)}" for arm in arms
    )
    text = f'<pre class="wrap">{escape(lines)}</pre>'
    if not all(arm.config.labels_only for arm in arms):
        text += p(
            "s_1 = softmax(z), s_T = softmax(z / T) of the student, p = softmax(v / T) of the "
            "teacher, r = softmax(u / T) of the student's earlier self, y the label.",
            "faint",
        )
    columns = [_values_of(arm) for arm in arms]
    names = list(dict.fromkeys(name for column in columns for name in column))
    cells = {name: [column.get(name, "-") for column in columns] for name in names}
    differ = [name for name in names if len(set(cells[name])) > 1]
    if differ:
        rows = [("", [name, *cells[name]]) for name in differ]
        text += table(["setting", *(arm.name for arm in arms)], rows, caption="What differs.")
        text += "<h3>The same in all</h3>"
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(cells[name][0])}</dd></div>\n"
        for name in names
        if name not in differ
    )
    return f'{text}<dl class="settings">{pairs}</dl>\n'


def _values_of(arm: Arm) -> dict[str, str]:
    """Return {setting: value} of an arm, for people."""
    config, values = arm.config, {}
    for part in (config.loss, config.self_target, config.training):
        if part is not None:
            for name, each in settings_of(type(part)).items():
                values[each.label] = plain(getattr(part, name))
    if config.labels_only:
        for name in ("kd weight", "self weight", "temperature", "guard"):
            values.pop(name)
    values["seed"] = ", ".join(str(run.config.training.seed) for run in arm.runs)
    sizes = {name: value for name, value in asdict(config.model).items() if name != "classes"}
    return {
        "model": f"{config.name} ({config.architecture})",
        **{f"model: {name.replace('_', ' ')}": plain(value) for name, value in sizes.items()},
        "data": config.data,
        "record": config.record.file if config.record else "none",
        "views": "drawn anew each epoch" if config.views is None else "%d:%d" % config.views,
        "begins from": config.init.file if config.init else "weights drawn from the seed",
        **values,
        **{f"views: {name.replace('_', ' ')}": plain(v) for name, v in config.augment.items()},
    }
