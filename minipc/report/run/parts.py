"""Pieces of HTML and of text that the sections of a report share."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def p(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; kind: its class."""
    return f"<p{of_kind(kind)}>{escape(text)}</p>\n"


def plural(count: int, word: str) -> str:
    """Return a count and its word."""
    return f"{count} {word}{'s' * (count != 1)}"


def share_of(share: float | None) -> str:
    """Return a share in percent, a dash for none."""
    return "-" if share is None else f"{100 * share:.2f} %"


def table(
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    *,
    numbers: Iterable[int] = (),
    caption: str = "",
    kind: str = "",
    raw: bool = False,
) -> str:
    """Return a table whose first column names its rows; rows: (class of the row, cells).

    numbers: the columns that are set right; kind: class of the table; raw: cells are HTML already.
    """
    right = ["number" if i in set(numbers) else "" for i in range(len(head))]
    top = "".join(
        f'<th scope="col"{of_kind(of)}>{escape(text)}</th>'
        for text, of in zip(head, right, strict=True)
    )
    body = []
    for of_row, cells in rows:
        first, *others = cells if raw else map(escape, cells)
        inner = "".join(
            f"<td{of_kind(of)}>{text}</td>" for text, of in zip(others, right[1:], strict=True)
        )
        body.append(f'<tr{of_kind(of_row)}><th scope="row">{first}</th>{inner}</tr>\n')
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table{of_kind(kind)}>{told}'
        f"<thead><tr>{top}</tr></thead><tbody>\n{''.join(body)}</tbody></table></div>\n"
    )


def of_kind(name: str) -> str:
    """Return the attribute class, or nothing."""
    return f' class="{name}"' if name else ""


def plain(value: Any) -> str:
    """Return a value of a setting as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
