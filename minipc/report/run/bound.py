"""Where the raw loss of each arm is bounded below: the map over b and T."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from minipc.report.run.parts import p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minipc.report.run.facts import Arm


def bound(arms: Sequence[Arm]) -> str:
    """Return the maps of the arms that have one."""
    shown = [arm for arm in arms if arm.bound]
    if not shown:
        return p("On labels alone there is nothing to subtract: the loss is bounded below.")
    parts = [
        p(
            "For each class there is a margin, M_i = (1-a) y_i + T (a p_i - b r_i). If one is "
            "negative, the raw loss of that row falls without bound. The cells say in how many "
            "rows out of a hundred; the framed one is what was trained. The guard bounds every "
            "row, by changing the loss in those where it raises a class."
        )
    ]
    parts += [_map(arm, len(shown) > 1) for arm in shown]
    return "".join(parts)


def _map(arm: Arm, named: bool) -> str:
    """Return the map of one arm; the cell of its own b and T is framed and says so."""
    bound, loss = arm.bound, arm.config.loss
    assert bound is not None
    bs, Ts = (sorted(set(axis)) for axis in zip(*bound.shares, strict=True))
    here = (loss.self_weight, loss.temperature)
    rows = []
    for b in bs:
        cells = [f'<th scope="row">b = {b:g}</th>']
        for T in Ts:
            share, chosen = bound.shares[b, T], (b, T) == here
            cells.append(
                f'<td class="number{" chosen" * chosen}" style="--share:{0.6 * share:.2f}">'
                f"{_in_hundred(share)}{'<span>trained</span>' * chosen}</td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    head = "".join(f'<th scope="col" class="number">T = {T:g}</th>' for T in Ts)
    what = (
        f"At a = {loss.kd_weight:g} and label smoothing {loss.label_smoothing:g}; {bound.rows}. "
        f"Trained: b = {here[0]:g}, T = {here[1]:g}, where {_in_hundred(bound.shares[here])} of a "
        "hundred rows have no lower bound without the guard. Every row has one at this T up to "
        f"b = {bound.safe_b:.3g}."
    )
    title = f"<h3>{escape(arm.name)}</h3>" if named else ""
    return (
        f'{title}{p(what)}<div class="scroll" tabindex="0"><table class="map">'
        "<caption>Rows without a lower bound, %</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )


def _in_hundred(share: float) -> str:
    """Return a share in percent with a digit behind the point; 0 and 100 are exact."""
    if share in (0, 1):
        return f"{100 * share:.0f}"
    return "< 0.1" if share < 0.0005 else "> 99.9" if share > 0.9995 else f"{100 * share:.1f}"
