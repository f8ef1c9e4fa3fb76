"""The output of the verbs: announcements and progress on stderr, results on stdout."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from typing import Any

import click

from minipc.cli.terminal import columns, complain, is_terminal, painted
from minipc.errors import MinipcError, UsageError

SECONDS_BETWEEN_LINES = 5
BAR = 36  # characters of a bar with room enough; without room for SHORTEST there is none
SHORTEST = 8
TIME = len("1d 00:00:00")  # what is left, at most


class Console:
    """Announcements and progress on stderr; silent if quiet."""

    def __init__(self, quiet: bool, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet or sys.stderr is None, verbose  # None: closed by the shell
        self.bar: Any = None
        self.text: str | None = None
        self.start = self.last = 0.0

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()  # also after an error, because a bar hides the cursor

    def say(self, line: str) -> None:
        """Print one line."""
        self.end()
        self._echo(line)

    def failed(self, reason: Exception) -> None:
        """Print one line on what failed while the rest goes on; also if quiet."""
        self.end()
        complain(str(reason))

    def last_run(self, wanted: str, or_study: bool = False) -> str:
        """Return the last run here, and say which.  Raises UsageError that names what is wanted.

        or_study: where there is no run, the study of the bare commands.
        """
        # late, so that --help does not wait for NumPy
        from minipc.runs.folder import STUDY, last_run

        name = last_run(wanted, or_study)
        self.say(f"{name}: the {'study' if name == STUDY else 'last run'} here")
        return name

    def _echo(self, line: str) -> None:
        """Print one line; a log on a full disk must not end a long training."""
        if not self.quiet:
            with suppress(OSError):
                click.echo(painted(line, sys.stderr), err=True)

    def detail(self, line: str) -> None:
        """Print one line, only with --verbose."""
        if self.verbose:
            self.say(line)

    def progress(self, done: int, total: int, text: str) -> None:
        """Show done of total and the time left: a bar on a terminal, else a line now and then."""
        if self.quiet:
            return
        if is_terminal(sys.stderr):
            bar = self.bar or click.progressbar(
                length=total, file=sys.stderr, show_pos=False, update_min_steps=1
            )
            _fit(bar, text, columns(sys.stderr))
            if self.bar is None:
                self.bar = bar.__enter__()
            bar.update(done - bar.pos)
        else:
            now = time.monotonic()
            if self.text is None:
                self.start, self.last, self.text, self.first = now, now, text, done
            elif now - self.last >= SECONDS_BETWEEN_LINES and done > self.first:
                left = (now - self.start) / (done - self.first) * (total - done)
                self._echo(f"{text}: {100 * done / total:.0f} % done, {duration(left)} left")
                self.last = now
        if done >= total:
            self.end()

    def end(self) -> None:
        """Close the bar; the next progress starts a new one."""
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
        self.bar, self.text = None, None


def _fit(bar: Any, text: str, columns: int) -> None:
    """Make a bar with its text one line of a terminal: a wrapped line cannot be drawn over.

    What is too long goes in this order: the bar and the percentage, then parts of the text behind
    its last commas, then the end of the text.
    """
    beside = len("  []  100%  ") + TIME
    bar.width = min(BAR, columns - 1 - beside - len(text))  # a full last column may wrap
    bar.show_percent = bar.width >= SHORTEST
    bar.bar_template = (
        "%(label)s  [%(bar)s]  %(info)s" if bar.show_percent else "%(label)s  %(info)s"
    )
    room = columns - 1 - len("  ") - TIME
    while not bar.show_percent and len(text) > room and ", " in text:
        text = text.rpartition(", ")[0]
    bar.label = text if bar.show_percent else text[: max(room, 0)]


def duration(seconds: float) -> str:
    """Return seconds as text, in s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def result(
    values: dict[str, Any], as_json: bool, lines: Callable[[dict[str, Any]], list[str]]
) -> None:
    """Print values, a dict, as one JSON object, or the text that lines(values) makes, on stdout.

    Raises MinipcError for a full disk.
    """
    try:
        for line in [json.dumps(_without_infinities(values))] if as_json else lines(values):
            click.echo(line if as_json else painted(line, sys.stdout))
    except BrokenPipeError:
        raise  # the reader of the pipe has seen enough
    except OSError as reason:
        raise MinipcError(
            f"stdout: cannot be written ({reason.strerror}); free some space"
        ) from reason


def _without_infinities(value: Any) -> Any:
    """Return value with None for each float that JSON cannot write: infinities and NaN."""
    if isinstance(value, dict):
        return {name: _without_infinities(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def asked_width(show: bool, as_json: bool) -> int | None:
    """Return picture_width for the option --show; None without it.

    Raises UsageError with --json, and where stdout cannot hold braille.
    """
    if not show:
        return None
    if as_json:
        raise UsageError("--show and --json contradict each other; leave one out")
    width = picture_width(asked=True)
    if width is None:
        raise UsageError("--show: stdout cannot hold braille; set PYTHONIOENCODING=utf-8")
    return width


def picture_width(asked: bool = False) -> int | None:
    """Return how many cells wide a picture on stdout may be; None where none shall be there.

    Without being asked for, that is everywhere but on a terminal; anywhere where stdout cannot hold
    braille.
    """
    stream = sys.stdout
    if stream is None or not (asked or stream.isatty()):
        return None
    try:
        "\N{BRAILLE PATTERN DOTS-12345678}".encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return None
    return shutil.get_terminal_size().columns
