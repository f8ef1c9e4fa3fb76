"""Lines of `minipc data`: what was made, packed or checked."""

import shlex
from collections.abc import Iterable
from itertools import islice

from minipc.report.lines.info import of_clouds
from minipc.report.lines.text import Values


def of_data_make(values: Values) -> list[str]:
    first, *rest = of_clouds(values)
    return [f"{values['file']}: {first}", *rest]


def of_data_hold_out(values: Values) -> list[str]:
    return [*of_data_make(values), *_twins(values)]


def _twins(values: Values) -> list[str]:
    twins = values["test_clouds_in_training"]
    return [f"note: {twins} test clouds are also training clouds, bit for bit"] if twins else []


def of_data_pack(values: Values) -> list[str]:
    total, moved = values["train"] + values["test"], values["normalised"]
    rest = f", the other {total - moved} were in it" if moved < total else ""
    return [
        *of_data_make(values),
        "no cloud was normalised"
        if values["normalisation"] == "none"
        else f"{moved} of {total} clouds were moved into the unit sphere{rest}",
        f"{values['sampled']} clouds had more points than {values['points']} and were sampled, "
        f"{values['padded']} had fewer and are repeated",
        f"split: {values['split']}",
        *_twins(values),
        "dry run: nothing was written"
        if values["dry_run"]
        else f"next: minipc train {shlex.quote(values['file'])} --labels-only --model teacher "
        "--out teacher",
    ]


SHOWN = 5  # clouds that a line of `data check` names


def of_data_check(values: Values) -> list[str]:
    """Return the lines of `data check`; each finding with the first clouds that it is of."""
    return [
        f"{values['file']}: {values['train']} training and {values['test']} test clouds of "
        f"{values['points']} points, {values['classes']} classes",
        *_equal_clouds(values),
        *_near_clouds(values),
        *_flat_clouds(values),
        *_balance(values),
        f"findings: {values['findings']}, and {len(values['near'])} test clouds that nearly are "
        "training clouds",
    ]


def _equal_clouds(values: Values) -> list[str]:
    exact = values["exact"]
    across = [group for group in exact if group["train"] and group["test"]]
    within = [group for group in exact if not (group["train"] and group["test"])]
    named = (
        f"{name} {' and '.join(map(str, group[name][:3]))}"
        for group in within
        for name in ("train", "test")
        if group[name]
    )
    lines = [
        f"the same points in both splits: {_count(values['test_clouds_in_training'], 'test cloud')}"
        + _first(f"test {group['test'][0]} is train {group['train'][0]}" for group in across),
        f"the same points twice in a split: {_count(len(within), 'group')}{_first(named)}",
    ]
    other_class = [" and ".join(group["labels"]) for group in exact if len(group["labels"]) > 1]
    if other_class:
        lines.append(
            f"the same points under different labels: {_count(len(other_class), 'group')}"
            + _first(other_class)
        )
    return lines


def _near_clouds(values: Values) -> list[str]:
    near, compared = values["near"], values["compared"]
    share = f" ({100 * len(near) / compared:.1f} %)" if compared else ""
    lines = [
        f"nearly in both splits: {len(near)} of {compared} test clouds{share}, no farther from a "
        f"training cloud than {values['near_limit']:g} times the distance of two samples of one "
        "surface" + _first(f"test {pair['test']} is nearly train {pair['train']}" for pair in near)
    ]
    foreign = [pair for pair in near if pair["same_class"] is False]
    if foreign:
        lines.append(
            f"nearly a training cloud of another class: {len(foreign)} of these"
            + _first(f"test {pair['test']}, train {pair['train']}" for pair in foreign)
        )
    if values["not_compared"]:
        lines.append(
            f"not compared: {_count(values['not_compared'], 'test cloud')} of fewer than "
            f"{values['fewest_points']} distinct points"
        )
    return lines


def _flat_clouds(values: Values) -> list[str]:
    lines = []
    for shape in ("point", "line", "plane"):
        flat = [each for each in values["degenerate"] if each["is"] == shape]
        if flat:
            lines.append(
                f"all in one {shape}: {_count(len(flat), 'cloud')}"
                + _first(f"{each['split']} {each['cloud']}" for each in flat)
            )
    if values["repeats"]:
        lines.append(
            f"more than half of the points repeated: {_count(len(values['repeats']), 'cloud')}"
            + _first(f"{each['split']} {each['cloud']}" for each in values["repeats"])
        )
    return lines or ["all in one point, line or plane: 0 clouds"]


def _balance(values: Values) -> list[str]:
    lines = []
    for name, balance in values["balance"].items():
        if balance["largest"]:
            (most, largest), (least, smallest) = balance["largest"], balance["smallest"]
            lines.append(
                f"classes of {name}: from {smallest} clouds ({least}) to {largest} ({most}), "
                f"{largest / smallest:.3g} times as many"
            )
        if balance["missing"]:
            lines.append(
                f"classes without a {name} cloud: {len(balance['missing'])}"
                + _first(balance["missing"])
            )
    return lines


def _count(number: int, of_what: str) -> str:
    return f"{number} {of_what}{'' if number == 1 else 's'}"


def _first(texts: Iterable[str]) -> str:
    """Return the first SHOWN texts for the end of a line."""
    shown = list(islice(texts, SHOWN + 1))
    more = ", ..." if len(shown) > SHOWN else ""
    return f" ({', '.join(shown[:SHOWN])}{more})" if shown else ""
