"""The commands that make a run again, from its run.json: `minipc train` with every setting."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minipc.errors import UsageError
from minipc.models.model import net, sizes
from minipc.settings import settings_of

if TYPE_CHECKING:
    from minipc.record.plan import Plan
    from minipc.runs.config import RunConfig

ALWAYS = ("epochs", "lr", "seed")  # said even at their defaults, which depend on other options


def of_run(config: RunConfig, out: str) -> str:
    """Return the `minipc train` of a RunConfig into the folder out, as one line of a shell.

    Files have the names that run.json keeps: those of the folder in which they lie now.
    """
    words: list[str] = []
    if config.record is None:
        words.append(config.data)
    else:
        words += ["--record", config.record.file]
        if config.views is not None:
            words += ["--views", "%d:%d" % config.views]
    if config.labels_only:
        words.append("--labels-only")
    words += ["--model", _model(config)]
    if config.init:
        words += ["--init", config.init.file]
    loss = ("label_smoothing",) if config.labels_only else None
    words += _given(config.loss, ("kd_weight", "temperature") if loss is None else (), loss)
    if config.self_target:
        words += _given(config.self_target, ("kind",))
    if config.self_record:
        words += ["--self-record", config.self_record.file]
    words += _given(config.training, ALWAYS)
    return shlex.join(["minipc", "train", *words, "--out", out])


def _model(config: RunConfig) -> str:
    """Return the name of a run's model, or its text where the name now means another one."""
    with suppress(UsageError):
        if sizes(config.name, config.model.classes) == config.model:
            return config.name
    text = net(config.model).title(config.model).partition(" ")[2]
    dropout = config.model.dropout
    return text if sizes(text, config.model.classes).dropout == dropout else f"{text}@{dropout:g}"


def of_record(plan: Plan, data: str | None, out: str) -> str:
    """Return the `minipc record` of a Plan into the file out; nobody knows the teacher's path."""
    options = ["--views", str(plan.views), "--seed", str(plan.seed), "--logits", plan.logits]
    words = ["minipc", "record", data or "DATA", "--teacher", "MODEL", *options, "--out", out]
    return shlex.join(words)


def _given(config: Any, always: tuple[str, ...], only: tuple[str, ...] | None = None) -> list[str]:
    """Return the options of a dataclass of settings that are not at their defaults.

    always: fields that are given even so; only: the fields that may be given, None: all.
    """
    words = []
    for name, each in settings_of(type(config)).items():
        value = getattr(config, name)
        if (value != each.default or name in always) and (only is None or name in only):
            words += [f"--{each.option.replace('_', '-')}", str(value)]
    return words
