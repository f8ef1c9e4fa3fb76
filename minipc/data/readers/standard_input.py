"""One cloud from standard input: its bytes, kept in a temporary file that the readers read."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from minipc.data.readers.point_files import LARGEST, SUFFIXES
from minipc.errors import DataError, MinipcError, UsageError
from minipc.storage import files

NAME = "-"  # on a command line
CALLED = "standard input"  # in messages
MAGIC = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz"}  # how a file that is no text begins


@contextmanager
def kept(stream: BinaryIO, form: str | None = None) -> Iterator[str]:
    """Yield the path of a file that holds all bytes of a stream until the block ends.

    form: what they are, a suffix of point_files without its dot; None: .npy and .npz are
    recognised by their first bytes, and all else is text.  Raises UsageError for another form,
    DataError for no bytes and for more than one cloud may have.
    """
    if form is not None and f".{form}" not in SUFFIXES:
        known = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise UsageError(f"--format: expected one of {known}, got {form!r}")
    parts = _parts(stream)
    first = next(parts)
    of_magic = (suffix for magic, suffix in MAGIC.items() if first.startswith(magic))
    try:
        made = tempfile.TemporaryDirectory(prefix="minipc-")
    except OSError as reason:
        raise MinipcError(
            f"{CALLED}: no temporary folder can be made ({reason.strerror}); set TMPDIR"
        ) from reason
    with made as folder:
        path = os.path.join(folder, f"cloud.{form}" if form else f"cloud{next(of_magic, '.xyz')}")
        with files.replacing(path) as fd:
            size = files.write_at(fd, 0, first)
            for part in parts:
                if size > LARGEST:
                    break
                size = files.write_at(fd, size, part)
        if not 0 < size <= LARGEST:
            fault = f"has more than {LARGEST} bytes" if size else "is empty"
            raise DataError(f"{CALLED}: {fault}; send one cloud, a point on each line")
        yield path


@contextmanager
def reading(path: str, file: str | None) -> Iterator[str]:
    """Yield the place of a path: the file if the path is "-" and there is one, else the path.

    A DataError of the block says "standard input" where it says file.
    """
    if path != NAME or file is None:
        yield path
        return
    try:
        yield file
    except DataError as reason:
        raise DataError(str(reason).replace(file, CALLED)) from reason


def _parts(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of a stream in parts of one size; the last is shorter, and may be empty."""
    while True:
        try:
            part = stream.read(files.CHUNK)
        except OSError as reason:
            raise DataError(f"{CALLED}: cannot be read ({reason.strerror or reason})") from reason
        yield part
        if len(part) < files.CHUNK:
            return
