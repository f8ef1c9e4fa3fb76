"""Read a data set of strangers in a process of its own, with limits on its memory and time.

A small HDF5 file can make libhdf5 compute for minutes, take gigabytes or crash.  So a reader scans
it in a child process, which the kernel stops; clouds come back through a pipe, as lines of JSON
with the bytes of the points after each.  Nothing that is read is executed or unpickled.
"""

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from math import prod
from typing import Any, NoReturn

import numpy as np

from minipc.data.readers.limits import MEMORY, available, command, limit
from minipc.data.readers.packed import Cloud, Listing, Request
from minipc.errors import DataError, MinipcError, UsageError

SECONDS = 5  # of computing for any file, and one more for each so many bytes of it:
BYTES_A_SECOND = 2 << 20  # reading gzip that compressed a hundredfold takes less
SILENCE = 60  # seconds without a byte from the child, which computes or waits for a disk
LINE, PIECE = 1 << 26, 16 << 20  # most bytes of a line, and of the points of a cloud

Say = Callable[[str], object]


def scan(reader: str, path: str, request: Request, say: Say) -> Listing:
    """Return the Listing that a module of this package, by name, makes of path: with limits.

    Without such limits on this system, say() so and scan here.  Raises what its scan raises, and
    DataError where a limit is reached or libhdf5 crashes; so does the iterator of the clouds.
    """
    if not available():
        say(f"{path}: this system cannot limit a process, so it is read without limits")
        scanned: Listing = import_module(f"{__package__}.{reader}").scan(path, request)
        return scanned
    messages = _messages(reader, path, request)
    listing = Listing(clouds=_clouds(messages), **next(messages))
    return listing._replace(
        class_names=tuple(listing.class_names), third=tuple(listing.third), size=int(listing.size)
    )


def _clouds(messages: Iterator[Any]) -> Iterator[Cloud]:
    for message in messages:
        yield Cloud(**message)


def _messages(reader: str, path: str, request: Request) -> Iterator[Any]:
    """Yield what the child sends: fields of a Listing, then of each Cloud; end it in any case."""
    seconds = SECONDS + _size(path) // BYTES_A_SECOND
    words = [reader, str(path), json.dumps(request._asdict()), str(seconds)]
    process = subprocess.Popen(
        command(__name__, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        pipe = _Pipe(process.stdout.fileno())
        while line := pipe.line():
            message = json.loads(line)
            if "error" in message:
                _raise(message, path)
            if "points" in message:
                dtype, shape = np.dtype(message.pop("dtype")), message["points"]
                data = pipe.read(dtype.itemsize * prod(shape))
                message["points"] = np.frombuffer(data, dtype).reshape(shape)
            yield message
        code = process.wait()
    except TimeoutError as reason:
        raise DataError(
            f"{path}: nothing was read for {SILENCE} s; look at its disk, copy it again"
        ) from reason
    except (EOFError, ValueError):  # the child ended within a message
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if code:
        _ended(code, path, seconds)


def _size(path: str) -> int:
    """Return the bytes of a file, or of all files in a folder and in those in it."""
    if not os.path.isdir(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    return sum(
        os.path.getsize(place)
        for folder, _, names in os.walk(path)
        for name in names
        if os.path.isfile(place := os.path.join(folder, name))
    )


def _raise(message: dict[str, Any], path: str) -> NoReturn:
    """Raise the error that the child told."""
    for kind in (MinipcError, UsageError, DataError):
        if message["error"] == kind.__name__:
            raise kind(message["text"])
    raise RuntimeError(f"{path}: in the process that read it:\n{message['text']}")


def _ended(code: int, path: str, seconds: int) -> NoReturn:
    """Raise the error for a child that ended with a code, and told nothing."""
    if -code == signal.SIGXCPU:
        raise DataError(
            f"{path}: takes more than {seconds} s of computing to read, which is too much for its "
            "size; write it again, with less compression"
        )
    if -code == signal.SIGKILL:
        raise MinipcError(
            f"{path}: the process that read it was killed, as a system does when its memory runs "
            "out; free some and run the command again"
        )
    if code < 0:
        raise DataError(
            f"{path}: libhdf5 crashed while it read this (signal {-code}); copy it again, or name "
            "another"
        )
    raise MinipcError(f"{path}: the process that read it ended with {code}; run the command again")


class _Pipe:
    """The end of a pipe from which lines and pieces are read, neither for ever nor without end."""

    def __init__(self, fd: int) -> None:
        self.fd, self.buffer, self.at = fd, bytearray(), 0
        self.poll = select.poll()  # select.select takes no descriptor above 1023
        self.poll.register(fd, select.POLLIN)

    def line(self) -> bytes:
        """Return the next line, b"" at the end.  Raises EOFError, TimeoutError, ValueError."""
        while (end := self.buffer.find(b"\n", self.at)) < 0:
            if len(self.buffer) - self.at > LINE:
                raise ValueError("a line without end")
            if not self._more():
                if len(self.buffer) > self.at:
                    raise EOFError
                return b""
        return self._take(end + 1 - self.at)

    def read(self, size: int) -> bytes:
        """Return size bytes.  Raises EOFError, TimeoutError, ValueError."""
        if not 0 <= size <= PIECE:
            raise ValueError(f"a piece of {size} bytes")
        while len(self.buffer) - self.at < size:
            if not self._more():
                raise EOFError
        return self._take(size)

    def _take(self, size: int) -> bytes:
        part = bytes(memoryview(self.buffer)[self.at : self.at + size])
        self.at += size
        return part

    def _more(self) -> int:
        """Wait for more bytes; return how many came."""
        if not self.poll.poll(1000 * SILENCE):
            raise TimeoutError
        data = os.read(self.fd, 1 << 20)
        del self.buffer[: self.at]  # what was taken
        self.at = 0
        self.buffer += data
        return len(data)


def child() -> None:
    """Scan as the words of the command line say, with limits, and write to stdout; then end."""
    reader, path, request, seconds = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends our parent, and it us
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    module = import_module(f"{__package__}.{reader}")
    # what libraries print when they run out of memory; our own errors go through the pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    unlimited = limit(int(seconds))
    out = sys.stdout.buffer
    try:
        listing = module.scan(path, Request(**json.loads(request)))
        told = {name: value for name, value in listing._asdict().items() if name != "clouds"}
        out.write(_line({**told, "third": list(listing.third)}))
        out.flush()
        for cloud in listing.clouds:
            points = np.ascontiguousarray(cloud.points)
            out.write(_line({**cloud._asdict(), "points": points.shape, "dtype": points.dtype.str}))
            out.write(points.data.cast("B"))
    except MinipcError as reason:
        out.write(_line({"error": type(reason).__name__, "text": str(reason)}))
    except (MemoryError, SystemError):  # the second: h5py, out of memory within its own handler
        unlimited()
        text = (
            f"{path}: takes more than {MEMORY >> 20} MiB of memory at once to read; store it in "
            "smaller pieces"
        )
        out.write(_line({"error": DataError.__name__, "text": text}))
    except Exception:
        out.write(_line({"error": RuntimeError.__name__, "text": traceback.format_exc()}))
    out.flush()


def _line(values: dict[str, Any]) -> bytes:
    """Return values as one line of JSON; NumPy's whole numbers become ours."""
    return json.dumps(values, default=int).encode() + b"\n"
