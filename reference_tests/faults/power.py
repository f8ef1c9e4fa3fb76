"""A disk that can lose its power: what is on it after a crash, for every crash there can be.

A Journal stands in for the module `os` in minipc's modules, lets every call through and notes what
changes files.  From the notes it makes the states of the disk after a crash at any moment.  What
the model says of a power failure, after POSIX:

- bytes of a file are safe once fsync on it has returned; of later ones any subset of 512-byte
    blocks is
  there, and a file ends where its last surviving block does, with zeros where one is missing;
- names (creating, renaming, removing) are safe once fsync on their folder has returned; later ones
  happen in order, and any prefix of them is there.

A kill is gentler: everything that was called is there, and a write may end at any byte.
"""

import os
from typing import NamedTuple

BLOCK = 512


class Operation(NamedTuple):
    what: str  # create, write, allocate, sync, rename, remove, folder, or a mark of the test
    names: tuple  # paths below the root
    file: int = 0  # number of the file, counted as they are created
    at: int = 0
    data: bytes = b""


class Journal:
    """Stands in for `os`; notes in log what happens to files below root."""

    def __init__(self, root):
        self.root, self.log, self.files = os.fspath(root), [], 0
        self._open, self._named = {}, {}  # descriptor: file or folder; path: file

    def __getattr__(self, name):
        return getattr(os, name)

    def _below(self, path):
        return os.path.relpath(os.path.abspath(path), self.root)

    def mark(self, *names):
        """Note that the test has been promised something."""
        self.log.append(Operation("mark", names))

    def open(self, path, flags, *mode):
        new = flags & os.O_CREAT and not os.path.lexists(path)
        fd = os.open(path, flags, *mode)
        place = self._below(path)
        if new:
            self.files += 1
            self._named[place] = self.files
            self.log.append(Operation("create", (place,), self.files))
        self._open[fd] = place if flags & os.O_DIRECTORY else self._named.get(place)
        return fd

    def close(self, fd):
        self._open.pop(fd, None)
        os.close(fd)

    def pwrite(self, fd, data, at):
        count = os.pwrite(fd, data, at)
        self.log.append(Operation("write", (), self._open[fd], at, bytes(data[:count])))
        return count

    def posix_fallocate(self, fd, at, size):
        os.posix_fallocate(fd, at, size)
        self.log.append(Operation("allocate", (), self._open[fd], at + size))

    def fsync(self, fd):
        place = self._open[fd]
        if isinstance(place, str):
            self.log.append(Operation("folder", (place,)))
        elif place is not None:
            self.log.append(Operation("sync", (), place))

    def rename(self, old, new):
        os.rename(old, new)
        names = self._below(old), self._below(new)
        self._named[names[1]] = self._named.pop(names[0], None)
        self.log.append(Operation("rename", names))

    def unlink(self, path):
        os.unlink(path)
        self._named.pop(self._below(path), None)
        self.log.append(Operation("remove", (self._below(path),)))

    def mkdir(self, path, *mode):
        os.mkdir(path, *mode)
        self.log.append(Operation("mkdir", (self._below(path),)))

    def rmdir(self, path):
        os.rmdir(path)
        self.log.append(Operation("rmdir", (self._below(path),)))


NAMES = ("create", "rename", "remove", "mkdir", "rmdir")


def names_after(operations):
    """Return {path: file number, or None for a folder} after operations on names."""
    found = {}
    for one in operations:
        if one.what == "create":
            found[one.names[0]] = one.file
        elif one.what == "mkdir":
            found[one.names[0]] = None
        elif one.what == "rename":
            if one.names[0] in found:
                found[one.names[1]] = found.pop(one.names[0])
        elif one.what in ("remove", "rmdir"):
            found.pop(one.names[0], None)
    return found


def written(data, one):
    """Return data with one write or allocation in it."""
    end = one.at + len(one.data)
    data = data.ljust(end, b"\0")
    return data[: one.at] + one.data + data[end:]


def after_kill(log, at, bytes_of_last=None):
    """Return {path: bytes} after a kill at log[:at]; of a last write only some bytes."""
    contents = {}
    for number, one in enumerate(log[:at]):
        if one.what == "write" and number == at - 1 and bytes_of_last is not None:
            one = one._replace(data=one.data[:bytes_of_last])
        if one.what in ("write", "allocate"):
            contents[one.file] = written(contents.get(one.file, b""), one)
    return _disk(names_after(log[:at]), contents)


def after_power_failure(log, at, names, rng):
    """Return {path: bytes} after a power failure when log[:at] had been called.

    names: how many of the operations on names that no fsync of their folder followed are there; rng
    chooses among the blocks that no fsync of their file followed.
    """
    done = log[:at]
    lost = set(unsafe_names(log, at)[names:])
    kept = [one for number, one in enumerate(done) if one.what in NAMES and number not in lost]
    contents, durable = {}, {}
    for one in done:
        if one.what in ("write", "allocate"):
            contents[one.file] = written(contents.get(one.file, b""), one)
        elif one.what == "sync":
            durable[one.file] = contents.get(one.file, b"")
    survived = {
        file: _some_blocks(durable.get(file, b""), data, rng) for file, data in contents.items()
    }
    return _disk(names_after(kept), survived)


def _some_blocks(durable, data, rng):
    """Return data where only durable was synchronised: some of the other blocks are there."""
    found = durable
    for first in range(0, len(data), BLOCK):
        block = data[first : first + BLOCK]
        if found[first : first + BLOCK] != block and rng.random() < 0.5:
            found = written(found, Operation("write", (), 0, first, block))
    return found


def _disk(names, contents):
    return {path: None if file is None else contents.get(file, b"") for path, file in names.items()}


def unsafe_names(log, at):
    """Return which operations on names in log[:at] no fsync of their folder followed."""
    return [
        number
        for number, one in enumerate(log[:at])
        if one.what in NAMES
        and not all(
            any(
                after.what == "folder" and _holds(after.names[0], name)
                for after in log[number + 1 : at]
            )
            for name in one.names
        )
    ]


def _holds(folder, path):
    return (os.path.dirname(path) or ".") == folder


def lay_out(state, folder):
    """Make a state of the disk real in an empty folder."""
    for path, data in sorted(state.items()):
        place = os.path.join(folder, path)
        os.makedirs(place if data is None else os.path.dirname(place), exist_ok=True)
        if data is not None:
            with open(place, "wb") as file:
                file.write(data)
