"""What lines have in common.

The lines that people read are made from the values that `--json` prints and from nothing else: each
kind of result has one function, from its values to a list of lines.  So a program can read
everything that a person can.
"""

from typing import Any

Values = dict[str, Any]  # of one result


def size(count: float) -> str:
    """Return a number of bytes as text, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def told(values: Values, name: str) -> str:
    """Return an accuracy over the training clouds in percent, and on how many where not on all."""
    if values[name] is None:
        return "unknown, as no cloud is labelled"
    few = f" (of {values['labelled']} labelled clouds)" * (values["labelled"] < values["clouds"])
    return percent(values[name]) + few


def short_hash(digest: Any) -> str:
    return str(digest)[:16]


def made_with(provenance: Any) -> str:
    items = provenance.items() if isinstance(provenance, dict) else []
    return f"made with {', '.join(f'{name} {value}' for name, value in items) or 'unknown tools'}"


def printable(path: str) -> str:
    """Return a path that can be printed; a file name need not be valid text, nor quiet."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
