"""Every exception that minipc raises on purpose, each with the exit code of its class.

A message is one line for a person: what, where, expected, found, and what to do.  Any other
exception is a bug in minipc and keeps its traceback.
"""

from typing import Any


class MinipcError(Exception):
    """An expected failure; the command line ends with exit_code and one line."""

    exit_code = 1


class UsageError(MinipcError):
    """Invalid or contradictory options or arguments."""

    exit_code = 2


class DataError(MinipcError):
    """Data, a record or a model that is missing, damaged, foreign or not the expected one."""

    exit_code = 3


class CheckFailed(MinipcError):
    """A requested check that failed."""

    exit_code = 4


class BackendError(MinipcError):
    """A backend that is not available, or arrays of two backends in one call."""

    exit_code = 5


def short(value: object, most: int = 60) -> str:
    """Return value as text for a message, cut to at most `most` characters."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def escaped(text: str) -> str:
    """Return text on one line: every letter that cannot be printed becomes an escape.

    A file name may hold line ends, control characters, and bytes that are no text (as surrogates).
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def check_shape(name: str, array: Any, expected: tuple[int | None, ...]) -> None:
    """Raise DataError unless array.shape equals expected, a tuple in which None fits any length."""
    if len(array.shape) != len(expected) or any(
        length is not None and length != actual
        for length, actual in zip(expected, array.shape, strict=True)
    ):
        shape = ", ".join("*" if length is None else str(length) for length in expected)
        raise DataError(f"{name}: expected shape ({shape}), got {tuple(array.shape)}")
