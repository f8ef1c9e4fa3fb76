"""What a terminal can show: colours, and how wide its lines are.

A word decides its colour, here alone.  So no colour says what the words do not say, and whoever
reads a file, a pipe or a terminal without colours (NO_COLOR, TERM=dumb) reads the same.
"""

import os
import re
import sys
from typing import TextIO

import click

from minipc.errors import escaped

COLOURS = {
    "red": r"^minipc:|\bFAILED\b.*|\bNOT (?:verified|bounded below)\b|\bNOTHING$",
    "yellow": r"^(?:warning|note):",
    "green": r"\bok$|^verified$",
}
USUAL = 80  # columns, where nobody says how many there are


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream (None: closed) is a terminal that can move its cursor."""
    try:
        return bool(stream and stream.isatty() and os.environ.get("TERM") != "dumb")
    except ValueError:  # closed meanwhile
        return False


def painted(line: str, stream: TextIO | None) -> str:
    """Return a line with the colours of its words, as it is where the stream shows none."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream):
        return line
    for colour, words in COLOURS.items():
        start, end = click.style("|", fg=colour).split("|")
        line = re.sub(words, rf"{start}\g<0>{end}", line)
    return line


def columns(stream: TextIO | None) -> int:
    """Return how many columns a line on a stream may take: COLUMNS, the terminal's, or 80."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # no terminal, or no file at all
        return USUAL


def complain(message: str) -> None:
    """Print the line of an expected failure on stderr."""
    line = escaped(" ".join(message.split()))  # it may name a file, whose name may be anything
    click.echo(painted(f"minipc: {line}", sys.stderr), err=True)
