"""Every exception that minipc raises on purpose, each with the exit code of its class.

A message is one line for a person: what, where, expected, found, and what to do.  Any other
exception is a bug in minipc and keeps its traceback.
"""


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


def short(value, most=60):
    """Return value as text for a message, cut to at most `most` characters."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def check_shape(name, array, expected):
    """Raise DataError unless array.shape equals expected, a tuple in which None fits any length."""
    if len(array.shape) != len(expected) or any(
        want is not None and want != got for want, got in zip(expected, array.shape, strict=True)
    ):
        wanted = ", ".join("*" if want is None else str(want) for want in expected)
        raise DataError(f"{name}: expected shape ({wanted}), got {tuple(array.shape)}")
