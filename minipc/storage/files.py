"""Every byte that minipc writes or trusts: commit, header, digest, guard, canonical JSON.

A file of ours is a 512-byte user block (magic, kind, version, length, SHA-256 of the whole file
with the 32 digest bytes as zero; zeros) and then an ordinary HDF5 image (hdf5.py).  Writing is all
or nothing: memory -> temporary file beside the target -> fsync -> rename -> fsync of the folder.
Reading is guarded: no code interprets a byte before the digest is verified.  This module knows no
schema: the module that owns a kind of file defines its contents.
"""

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from os import PathLike
from threading import Lock
from typing import Any, get_origin, get_type_hints

import numpy as np

from minipc.errors import DataError, MinipcError
from minipc.storage import locks

KINDS = ("clouds", "model", "record", "shard", "checkpoint", "groups")
USER_BLOCK = 512  # bytes; the smallest that HDF5 allows
CAP = 1 << 40  # bytes; larger files are not hashed unasked
CHUNK = 1 << 20  # bytes hashed or zeroed at a time

# flags of os.open that a system without them has no need of; only Windows has O_BINARY
_FLAGS = ("O_CLOEXEC", "O_BINARY")
_NO_WAIT = ("O_NONBLOCK", "O_NOCTTY")

_MAGIC = b"\x89minipc\n"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ARCHIVES = b"PK\3\4", b"\x80\2"  # a zip, and the pickle of old versions of PyTorch
_HEADER = struct.Struct("<8s16sIIQ32s")  # magic, kind, version, zero, length, digest
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
_POSITION = Lock()  # of descriptors, where a system cannot read or write at a place
_BAD_PLACE = "EACCES EPERM EROFS ENOENT ENOTDIR EISDIR ENAMETOOLONG ELOOP ENXIO".split()


def _flags(*names: str) -> int:
    """Return those of the named flags of os.open that this system has."""
    flags = 0
    for name in (*names, *_FLAGS):
        flags |= getattr(os, name, 0)
    return flags


def canonical_json(value: Any) -> bytes:
    """Return the one ASCII JSON spelling of value, as bytes.  Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(data: Any, where: str | PathLike) -> dict[str, Any]:
    """Return the mapping in JSON bytes.  Raises DataError for NaN, a repeated key or no mapping."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    try:
        values = json.loads(bytes(data), object_pairs_hook=distinct)
        canonical_json(values)  # refuses NaN and 1e999
        return {**values}
    except (ValueError, TypeError, RecursionError) as reason:
        raise DataError(f"{where}: expected a JSON object ({reason}); make it again") from reason


def check_keys(values: Any, names: Iterable[str], where: str | PathLike) -> None:
    """Raise DataError naming where unless the mapping values has exactly the keys names."""
    expected = set(names)
    keys = set(values) if isinstance(values, dict) else {type(values).__name__}
    if keys != expected:
        raise DataError(
            f"{where}: metadata misses {sorted(expected - keys)}, has unknown "
            f"{sorted(keys - expected)}; it was made by another program or version"
        )


def from_dict(kind: type[Any], values: Any, where: str | PathLike) -> Any:
    """Build the frozen dataclass kind from a mapping that was read from a file.

    Lists become tuples where the field is a tuple.  Raises DataError naming where for an unknown
    or missing key and for a value that the dataclass refuses; defaults are never used.
    """
    check_keys(values, [field.name for field in fields(kind)], where)
    hints = get_type_hints(kind)
    for name, value in values.items():
        if isinstance(value, list) and tuple in (hints[name], get_origin(hints[name])):
            values = {**values, name: tuple(value)}
    try:
        return kind(**values)
    except (MinipcError, TypeError, ValueError, AttributeError, OverflowError) as reason:
        raise DataError(f"{where}: {reason}") from reason


def sha256_arrays(*arrays: np.ndarray) -> str:
    """Return the SHA-256, in hexadecimal, of each array's little-endian dtype, shape and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind not in "biuf":
            raise TypeError(f"cannot hash an array of dtype {array.dtype}")
        exact: Any = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(canonical_json([exact.dtype.str, exact.shape]))  # arrays cannot run together
        digest.update(exact)
    return digest.hexdigest()


def commit(path: str | PathLike, data: Any, swept: bool = False) -> None:
    """Make path hold data (bytes-like, or a list of bytes-like), durably, or leave it as it was.

    swept: the caller has already removed stale temporaries; listing a large folder for each file
    would be slow.  Raises DataError if path is at fault, MinipcError if the machine fails.
    """
    with replacing(path, swept) as fd:
        at = 0
        for part in data if isinstance(data, (list, tuple)) else [data]:
            at = write_at(fd, at, part)


@contextmanager
def replacing(path: str | PathLike, swept: bool = False) -> Iterator[int]:
    """Yield the descriptor of a new temporary file, which replaces path when the block succeeds.

    Then fsync, rename, fsync of the folder.  Any exception, also in the block, removes the
    temporary and leaves path as it was.  OSErrors become the errors of commit.  Follows links.
    """
    place = os.path.realpath(path)
    folder, base = os.path.split(place)
    fd: int | None = None
    temporary: str | None = None
    state = "could not be written and is as it was"
    try:
        if os.path.exists(place) and not os.path.isfile(place):  # a rename would destroy a pipe
            raise _no_file(os.stat(place).st_mode, path)
        if not swept:
            sweep(folder, base)  # remove temporaries of killed writers of this file
        fd, temporary = _new_temporary(folder, base)
        yield fd
        os.fsync(fd)
        if locks.available():
            os.rename(temporary, place)
        else:  # Windows renames no open file
            os.close(fd)
            fd = None
            os.replace(temporary, place)
        temporary, state = None, "was written, but may not survive a power failure"
        sync_folder(folder)
    except OSError as reason:
        raise write_error(f"{path}: {state}", reason) from reason
    finally:
        if fd is not None:
            os.close(fd)
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def write_error(message: str, reason: OSError) -> MinipcError:
    """Return the error for an OSError of writing: DataError if the path is at fault."""
    message = f"{message} ({reason.strerror or reason})"
    code = errno.errorcode.get(reason.errno or 0, "-")
    if code in _BAD_PLACE:
        return DataError(f"{message}; name a file in a folder that you may write to")
    remedy = "free some space" if code in ("ENOSPC", "EDQUOT", "EFBIG") else "check the disk"
    again = "run the same command again (a training that has finished an epoch: with --resume)"
    return MinipcError(f"{message}; {remedy} and {again}")


def sync_folder(folder: str | PathLike) -> None:
    """Make the names in folder durable, if its file system supports that."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder
        return
    fd = os.open(folder, os.O_RDONLY | _flags("O_DIRECTORY"))
    try:
        os.fsync(fd)
    except OSError as reason:
        if reason.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_at(fd: int, at: int, data: Any) -> int:
    """Write all of a bytes-like at byte `at` of fd; return where it ends.  Python retries EINTR."""
    view = memoryview(data).cast("B") if memoryview(data).nbytes else b""  # (0, 3) has no cast
    while view:
        written = _pwrite(fd, view, at)
        view, at = view[written:], at + written
    return at


def _pread(fd: int, size: int, at: int) -> bytes:
    """Return up to size bytes of fd from byte `at`; without os.pread one thread at a time."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, at)
    with _POSITION:
        os.lseek(fd, at, os.SEEK_SET)
        return os.read(fd, size)


def _pwrite(fd: int, data: Any, at: int) -> int:
    """Write at byte `at` of fd and return how many bytes; without os.pwrite as _pread."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, at)
    with _POSITION:
        os.lseek(fd, at, os.SEEK_SET)
        return os.write(fd, data)


def seal(fd: int, kind: str, version: int) -> None:
    """Write the header of the finished image in fd, which is read back for the digest."""
    length = os.fstat(fd).st_size
    write_at(fd, 0, sealed(kind, version, length, _chunks(fd, length)))


def sweep(folder: str | PathLike, base: str | None = None) -> None:
    """Remove temporaries in folder (only those of the file base, if given) of dead writers.

    The kernel drops the lock of a killed writer; without locks nothing is removed.
    """
    with suppress(OSError):
        for name in os.listdir(folder):
            match = _TEMPORARY.fullmatch(name)
            if match and base in (None, match[1]):
                with suppress(OSError, DataError), _Exact(os.path.join(folder, name)) as file:
                    locks.lock(file, wait=False)
                    os.unlink(os.path.join(folder, name))


def _new_temporary(folder: str, base: str) -> tuple[int, str]:
    """Create and lock an exclusive file whose name fits _TEMPORARY; return (fd, path)."""
    while True:
        path = os.path.join(folder, f".{base}.{secrets.token_hex(8)}.tmp")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags(), 0o666)
        with suppress(OSError):  # a file system without locks
            locks.lock(fd)
        if os.path.exists(path):  # no sweep removed it before the lock
            return fd, path
        os.close(fd)


@contextmanager
def guarded(path: str | PathLike, kind: str, version: int, cap: int = CAP) -> Iterator["_Exact"]:
    """Yield a binary file object of a whole file of kind, of at most version and cap bytes.

    The caller reads from the descriptor that was hashed.  Raises DataError, one line.
    """
    with _Exact(path) as file:
        with _reading(path):
            _guard(file.fileno(), path, kind, version, cap)
        yield file


def kind_of(path: str | PathLike) -> str | None:
    """Return the kind that the header of path claims, unverified; None for a foreign file.

    Raises DataError if path cannot be read.
    """
    head = _head(path)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        return None
    kind = _HEADER.unpack(head)[1].rstrip(b"\0").decode("latin-1")
    return kind if kind in KINDS else None


def digest_of(path: str | PathLike) -> str:
    """Return the digest that the header of path claims, unverified, in hexadecimal.

    Raises DataError if path cannot be read or is too short for a header.
    """
    with _Exact(path) as file:
        return digest_in(file)


def digest_in(file: "_Exact") -> str:
    """Return the digest in the header of a file that guarded yields.  Raises DataError."""
    with _reading(file.path):
        head = _pread(file.fileno(), _HEADER.size, 0)
    if len(head) < _HEADER.size:
        raise DataError(f"{file.path}: is damaged: it ends after {len(head)} bytes; restore a copy")
    return _HEADER.unpack(head)[5].hex()


def _head(path: str | PathLike) -> bytes:
    with _Exact(path) as file, _reading(path):
        return _pread(file.fileno(), _HEADER.size, 0)


def read_bytes(path: str | PathLike, most: int) -> bytes:
    """Return the bytes of a small file that is not in our format.

    Raises DataError for more than `most` bytes, and for a folder or a pipe, without waiting.
    """
    with _Exact(path) as file, _reading(path):
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DataError(f"{path}: expected at most {most} bytes, found {size}; check the name")
        return _pread(file.fileno(), size, 0)


@contextmanager
def _reading(path: str | PathLike) -> Iterator[None]:
    """Turn an OSError of reading into MinipcError: a failing disk does not mean a bad file."""
    try:
        yield
    except OSError as reason:
        raise MinipcError(
            f"{path}: cannot be read ({reason.strerror or reason}); check the disk"
        ) from reason


class _Exact(io.RawIOBase):
    """A regular file whose reads are whole or raise: libhdf5 takes a short read for zeros.

    This object keeps its own position, because forked processes share the kernel's.
    """

    def __init__(self, path: str | PathLike) -> None:
        """Open path for reading; a pipe without a writer does not hang.  Raises DataError."""
        self.path, self._position = path, 0
        self._fd: int | None = None
        try:
            fd = os.open(path, os.O_RDONLY | _flags(*_NO_WAIT))
        except (OSError, ValueError) as reason:  # ValueError: a zero byte in the name
            why = getattr(reason, "strerror", None) or reason
            code = errno.errorcode.get(getattr(reason, "errno", None) or 0)
            kind, remedy = (
                (DataError, "name and rights")
                if code in (None, *_BAD_PLACE)
                else (MinipcError, "the disk")
            )
            raise kind(f"{path}: cannot be read ({why}); check {remedy}") from reason
        try:
            with _reading(path):
                mode = os.fstat(fd).st_mode
        except MinipcError:
            os.close(fd)
            raise
        if not stat.S_ISREG(mode):
            os.close(fd)
            raise _no_file(mode, path)
        self._fd = fd

    def fileno(self) -> int:
        if self.closed or self._fd is None:
            raise ValueError("the file is closed")
        return self._fd

    def close(self) -> None:
        super().close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def read_at(self, at: int, buffer: Any) -> None:
        """Fill a writable bytes-like from byte `at` on; safe for threads and forked processes.

        Raises DataError if the file ends earlier, MinipcError if it cannot be read.
        """
        view = memoryview(buffer).cast("B")
        while view:
            with _reading(self.path):
                piece = _pread(self.fileno(), min(len(view), CHUNK), at)
            if not piece:
                raise DataError(
                    f"{self.path}: became shorter while it was read: another program writes into "
                    "it, or its disk fails; look with minipc info, and restore a copy if it is "
                    "damaged"
                )
            view[: len(piece)] = piece
            view, at = view[len(piece) :], at + len(piece)

    def readinto(self, buffer: Any) -> int:
        self.read_at(self._position, buffer)
        self._position += len(buffer)
        return len(buffer)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            with _reading(self.path):
                position += os.fstat(self.fileno()).st_size
        self._position = position + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position


def _no_file(mode: int, path: str | PathLike) -> DataError:
    what = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
    return DataError(f"{path}: expected a file, found a {what}; name the file itself")


def _guard(fd: int, path: str | PathLike, kind: str, version: int, cap: int) -> None:
    """Raise DataError unless fd is whole, of this kind, of at most this version and cap bytes.

    All versions share the header and the digest, so this function can tell damage from a newer
    version.  It checks the kind first, before it hashes a large file.
    """
    size, head = os.fstat(fd).st_size, _pread(fd, USER_BLOCK, 0)
    if foreign := _foreign(head):
        raise DataError(f"{path}: {foreign}")
    if size < USER_BLOCK:
        raise DataError(f"{path}: is damaged: it ends after {size} bytes; restore a copy")
    _, name, written_by, *_ = _HEADER.unpack_from(head)
    claimed = name.rstrip(b"\0").decode("latin-1")
    shown = claimed if claimed in KINDS else ascii(claimed)
    other = f"{path}: is a minipc {shown} file, but a {kind} file is wanted; check the name"
    if claimed != kind and claimed in KINDS:
        raise DataError(other)
    if size > cap:
        raise DataError(f"{path}: has {size} bytes, but a {kind} file has at most {cap} here")
    if damage := _damage(fd, head, size):
        raise DataError(f"{path}: is damaged: {damage}; restore a copy or make it again")
    if claimed != kind:
        raise DataError(other)
    if written_by > version:
        newer = f"was written by a newer format version {written_by}"
        raise DataError(f"{path}: {newer}; this minipc reads up to {version}: upgrade")


def _foreign(head: bytes) -> str:
    """Return what a file that begins with head is instead of ours, and the remedy, or ""."""
    if not head:
        return "is empty; restore a copy or make it again"
    if head.startswith(_HDF5_MAGIC):
        return "is HDF5, but not made by minipc; see `minipc data pack`"
    if head.startswith(_ARCHIVES):
        return (
            "is an archive, as torch.save and np.savez write, not a minipc file; import a "
            "checkpoint with minipc.torch.checkpoints, clouds with `minipc data pack`"
        )
    return "" if head.startswith(_MAGIC[: len(head)]) else "is not a minipc file; check the name"


def _damage(fd: int, head: bytes, size: int) -> str:
    """Compare fd with the length and digest in its head; return what is wrong, "" if nothing."""
    _, kind, version, _, length, _ = _HEADER.unpack_from(head)
    if size != length:
        return f"it has {size} bytes, but {length} were written"
    if head != sealed(kind.rstrip(b"\0").decode("latin-1"), version, size, _chunks(fd, size)):
        return "its digest does not match"
    return ""


def sealed(kind: str, version: int, length: int, chunks: Iterable[bytes | memoryview]) -> bytes:
    """Return the 512-byte user block of an image whose bytes after it are chunks."""
    front = _MAGIC, kind.encode("latin-1"), version, 0, length
    digest = hashlib.sha256(_HEADER.pack(*front, bytes(32)).ljust(USER_BLOCK, b"\0"))
    for chunk in chunks:
        digest.update(chunk)
    return _HEADER.pack(*front, digest.digest()).ljust(USER_BLOCK, b"\0")


def _chunks(fd: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of fd from the end of the user block to stop, or to the end of the file."""
    at = USER_BLOCK
    while at < stop and (chunk := _pread(fd, min(CHUNK, stop - at), at)):
        yield chunk
        at += len(chunk)
