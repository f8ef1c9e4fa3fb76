"""The folder OUT.parts of a recording: its plan, and the shards computed so far.  (record_store.md)

Every shard that verifies counts; there is no manifest that could contradict the shards.  A kill
loses at most the shard being computed.  A bad shard is renamed, never deleted.  Any number of
recorders may work on one plan.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from minipc.errors import DataError
from minipc.record.plan import read_plan, write_plan
from minipc.record.shard import commit_shard, read_shard, shard_name
from minipc.storage import files, locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    import numpy as np

    from minipc.record.plan import Plan

SHARD_OVERHEAD = 4096  # bytes in addition to the rows: HDF5 structure and a partial last disk block


def refuse_other(plan: Plan, other: Plan, place: str) -> None:
    """Raise DataError, naming what differs, if place holds another recording than plan."""
    if not plan.same_identity(other):
        raise DataError(
            f"{place}: holds another recording: {plan.differences(other)}; choose another "
            "--out, or remove it"
        )


class Parts:
    """The shards of one plan.  Construction and missing() only read; begin() is the first to write.

    Raises DataError, naming what differs, if the folder belongs to another recording.
    """

    _present: Any

    def __init__(self, out: str, plan: Plan, finished: int = 0) -> None:
        """out: path of the record; finished: views in it, which need no shards."""
        self.path, self.plan, self.finished = f"{out}.parts", plan, finished
        self._present = None  # {(view, first): meta} of the shards that verified
        _, damage = self._committed_plan()
        self.damaged = [str(damage)] if damage else []  # a line for each bad file found so far

    def shard_path(self, view: int, first: int) -> str:
        """Return the path of a shard; the file need not exist."""
        return os.path.join(self.path, shard_name(view, first))

    def read(
        self, view: int, first: int, stop: int
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return (meta, {field name: array}) of one shard.  Raises DataError."""
        return read_shard(self.shard_path(view, first), self.plan, view, first, stop)

    def missing(self) -> list[tuple[int, int, int]]:
        """Return [(view, first, stop)] of the missing shards; the first call scans the folder."""
        if self._present is None:
            self.damaged += self._scan(lambda path, reason: [str(reason)])
        return [
            shard
            for shard in self.plan.shards()
            if shard[0] >= self.finished and shard[:2] not in self._present
        ]

    def metas(self) -> list[dict[str, Any]]:
        """Return the metas of the shards verified by the last scan or committed by this object."""
        return list(self._present.values())

    def bytes_missing(self) -> int:
        """Return the bytes on disk that the missing shards will take."""
        missing = self.missing()
        rows = sum(stop - first for _, first, stop in missing)
        return rows * self.plan.bytes_per_view + len(missing) * SHARD_OVERHEAD

    def begin(self) -> list[str]:
        """Remove temporaries of killed writers, commit the plan, rename bad files.

        Returns a line for each renamed file.  Raises MinipcError on a system without locks.
        """
        locks.check_locks(self.path)
        files.sweep(self.path)
        lines = self.commit_plan() if self.finished < self.plan.views else []
        return lines + self._scan(self._set_aside)

    def commit_shard(
        self,
        view: int,
        first: int,
        scale: np.ndarray,
        shift: np.ndarray,
        logits: np.ndarray,
        provenance: dict[str, Any],
    ) -> None:
        """Make one shard durable: rows first, first + 1, ... of a view.

        Arguments and errors as in shard.commit_shard.
        """
        meta = commit_shard(
            self.path,
            self.plan,
            view,
            first,
            scale,
            shift,
            logits,
            provenance,
            prepare=self.commit_plan,  # another recorder may have finished and removed the folder
        )
        if self._present is not None:
            self._present[view, first] = meta

    def abandon(self) -> None:
        """Remove the plan and the folder if no shard was committed."""
        with suppress(OSError):
            if os.listdir(self.path) == ["plan.json"]:
                os.unlink(self._plan_path())
                os.rmdir(self.path)

    def remove(self) -> list[str]:
        """Remove the plan and its shards, whose rows are in the verified record.

        Returns the names of files that stay: bad shards, shards of later views, foreign files.
        """
        with suppress(OSError):
            for view, first, _ in self.plan.shards():
                with suppress(FileNotFoundError):
                    os.unlink(self.shard_path(view, first))
            if not any(name.endswith(".h5") for name in os.listdir(self.path)):
                with suppress(FileNotFoundError):  # another recorder did, while we waited
                    os.unlink(self._plan_path())
            with suppress(FileNotFoundError):
                os.unlink(self._lock_path())
            os.rmdir(self.path)
        with suppress(OSError):  # a lock here is that of a recorder that waited, and removes it
            return sorted(set(os.listdir(self.path)) - {os.path.basename(self._lock_path())})
        return []

    def commit_plan(self) -> list[str]:
        """Commit the plan unless it is already here; the number of views never shrinks.

        Returns one line if a damaged plan was renamed, else no lines.
        """
        committed, damage = self._committed_plan()
        if committed is not None and committed.views >= self.plan.views:
            return []
        lines = self._set_aside(self._plan_path(), damage) if damage else []
        while True:
            try:
                with suppress(FileExistsError):
                    os.mkdir(self.path)  # not its parents: a mistyped folder is a mistake
                files.sync_folder(os.path.dirname(os.path.abspath(self.path)))
            except OSError as reason:
                raise files.write_error(f"{self.path}: cannot be made", reason) from reason
            try:
                write_plan(self._plan_path(), self.plan)
                return lines
            except DataError as reason:
                if not isinstance(reason.__cause__, FileNotFoundError):
                    raise
                # another recorder finished and removed the folder just now: try again

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock on the folder, so that only one recorder at a time merges and removes.

        Raises MinipcError on a system without locks.
        """
        locks.check_locks(self.path)
        while True:
            self.commit_plan()
            with ExitStack() as held:
                try:
                    locked = self._lock(held)
                except OSError as reason:
                    raise files.write_error(f"{self.path}: cannot be locked", reason) from reason
                if locked:
                    yield
                    return

    def _lock(self, held: ExitStack) -> bool:
        """Lock the folder until the ExitStack held closes.

        Returns False if another recorder has removed the folder.
        """

        def opened(path: str, flags: int) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
            held.callback(os.close, fd)
            return fd

        try:
            path, fd = self.path, opened(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                locks.lock(fd)
            except OSError:  # NFS locks only files open for writing; a folder cannot be
                path = self._lock_path()
                fd = opened(path, os.O_RDWR | os.O_CREAT)
                with suppress(OSError):  # a file system without locks
                    locks.lock(fd)
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            return False

    def _scan(self, report: Callable[[str, DataError], list[str]]) -> list[str]:
        """Verify every shard here; return the lines of report(path, DataError) for bad ones."""
        self._present, lines = {}, []
        for view, first, stop in self.plan.shards():
            path = self.shard_path(view, first)
            if view >= self.finished and os.path.lexists(path):
                try:
                    self._present[view, first], _ = self.read(view, first, stop)
                except DataError as reason:
                    lines += report(path, reason)
        return lines

    def _set_aside(self, path: str, reason: DataError) -> list[str]:
        """Rename path to path.bad, .bad-2, ... and return a list of one line."""
        name, number = f"{path}.bad", 1
        while os.path.lexists(name):
            number += 1
            name = f"{path}.bad-{number}"
        try:
            os.rename(path, name)
            files.sync_folder(self.path)
        except FileNotFoundError:  # another recorder renamed it, or finished
            return []
        except OSError as failure:
            raise files.write_error(f"{path}: cannot be set aside", failure) from reason
        return [f"{reason}; kept as {os.path.basename(name)} and made again"]

    def _committed_plan(self) -> tuple[Plan | None, DataError | None]:
        """Return (the Plan in the folder or None, the DataError of a damaged plan or None)."""
        path = self._plan_path()
        if not os.path.lexists(path):
            return None, None
        try:
            plan = read_plan(path)
        except DataError as reason:
            return None, reason
        refuse_other(self.plan, plan, self.path)
        return plan, None

    def _plan_path(self) -> str:
        return os.path.join(self.path, "plan.json")

    def _lock_path(self) -> str:
        return os.path.join(self.path, "lock")
