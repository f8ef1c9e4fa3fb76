"""The protocol of a recording on disk: shards in OUT.parts, then one file OUT.  (record_store.md)

The truth is the shards that verify, and a finished record counts as the shards of its views; there
is no manifest to fall out of step.  A kill at any byte costs at most the shard being computed, a
bad shard is set aside and never deleted, and any number of recorders may work on one plan.  Looking
changes nothing; writing starts with begin().  This module calls no teacher, and libhdf5 writes to
memory only.
"""

import fcntl
import os
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace

from minipc.data.clouds import check_same_kind
from minipc.errors import DataError, MinipcError
from minipc.record import embedded
from minipc.record.fields import cloud_fields, record_fields, write_rows
from minipc.record.finished import clouds_of, open_record, sizes
from minipc.record.plan import FORMAT, read_plan, write_plan
from minipc.record.shard import commit_shard, read_shard, shard_name
from minipc.storage import files

SHARD_OVERHEAD = 4096  # bytes beside the rows, rounded up, and the block that a file ends in


class Store:
    """The place of one recording.  Construction and missing() look; begin() is the first to write.

    Raises DataError where out or its parts belong to another identity, naming what differs.  A
    finished record with more views keeps them all: plan.views is then larger than asked.  Shards
    beyond the views asked for stay where they are.
    """

    def __init__(self, out, plan, data_file=None, with_clouds=None):
        """out: path of the finished record; data_file: base name of the clouds file, a hint.

        with_clouds: the Splits that the record shall carry; without, it keeps those it has.
        """
        self.out, self.parts = os.fspath(out), f"{os.fspath(out)}.parts"
        self.plan = plan
        self.data_file = data_file and os.path.basename(data_file)
        self.with_clouds = with_clouds
        self.clouds_meta, self.clouds_bytes = None, 0  # of the clouds that the record will carry
        self._embedded = None
        if with_clouds is not None:
            embedded.check_recorded(with_clouds.train, plan, "the training clouds to carry")
            check_same_kind(
                with_clouds.test.described,
                with_clouds.train.described,
                "the test split",
                "the training split",
            )
            self._embedded = embedded.encode(with_clouds)
            self.clouds_meta, self.clouds_bytes = self._embedded.meta, self._embedded.bytes
        self.damaged = []  # a line for every bad file met by looking
        self._present = None  # {(view, first): meta} of the shards that verified
        self._finished, self._carries = 0, False  # views of the finished record; has it clouds?
        self._look()

    def missing(self):
        """Return [(view, first, stop)] of the shards that are not there, after a first scan."""
        if self._present is None:
            self.scan()
        return [
            shard
            for shard in self.plan.shards()
            if shard[0] >= self._finished and shard[:2] not in self._present
        ]

    def scan(self, set_aside=False):
        """Verify every shard there is, and rename the bad ones if set_aside; return a line for
        each.
        """
        self._present, lines = {}, []
        for view, first, stop in self.plan.shards():
            path = self._path(view, first)
            if view >= self._finished and os.path.lexists(path):
                try:
                    self._present[view, first], _ = self._read(view, first, stop)
                except DataError as reason:
                    lines += self._set_aside(path, reason) if set_aside else [str(reason)]
        self.damaged += [] if set_aside else lines
        return lines

    @property
    def complete(self):
        """Whether the finished record holds all that was asked for."""
        carries = self._carries or self._embedded is None
        return self._finished >= self.plan.views and carries

    def begin(self):
        """Take the place: sweep what killed writers left, rename bad files, commit the plan.

        Returns a line for each file that was set aside.
        """
        files.sweep(self.parts)
        files.sweep(*os.path.split(os.path.realpath(self.out)))
        lines = self._commit_plan() if self._finished < self.plan.views else []
        return lines + self.scan(set_aside=True)

    def space(self):
        """Return the bytes that the missing shards and the finished file need, and the free ones.

        A finished record of fewer views lies beside the new one until that is verified, and its
        bytes are not free already.  Free is None where the system does not tell.
        """
        left = self.missing()
        rows = sum(stop - first for _, first, stop in left)
        needed = rows * self.plan.bytes_per_view + len(left) * SHARD_OVERHEAD
        if not self.complete:
            needed += self.plan.estimated_bytes + self.clouds_bytes
        try:
            place = os.statvfs(os.path.dirname(os.path.abspath(self.out)))
        except (AttributeError, OSError):  # missing in the system or in the file system
            return needed, None
        return needed, place.f_bavail * place.f_frsize

    def check_space(self):
        """Raise DataError where nothing may be written, MinipcError where the disk cannot hold what
        is missing.

        Now, and not after hours.
        """
        needed, free = self.space()
        if needed and not os.access(os.path.dirname(os.path.abspath(self.out)), os.W_OK):
            raise DataError(
                f"{self.out}: cannot be written; name a file in a folder that you may write to"
            )
        if free is not None and needed > free:
            raise MinipcError(
                f"{self.out}: needs {needed / 1e6:.1f} MB more, but its disk has {free / 1e6:.1f} "
                "MB free; "
                "free some space, or name an --out on another disk"
            )

    def commit_shard(self, view, first, scale, shift, logits, provenance):
        """Make one shard durable: rows first, first + 1, ... of a view.

        Arguments and errors as in shard.commit_shard.
        """
        meta = commit_shard(
            self.parts,
            self.plan,
            view,
            first,
            scale,
            shift,
            logits,
            provenance,
            prepare=self._commit_plan,  # another recorder may have finished and removed the parts
        )
        if self._present is not None:
            self._present[view, first] = meta

    def finalise(self, progress=None):
        """Make the record of all views durable in out, then remove the parts; return what is left.

        Verifies every shard, merges a finished record of fewer views or without clouds, and
        verifies the result before anything is removed.  Memory: one shard, and the clouds to carry.
        Killed anywhere, it can be run again.  progress(done, total, text) counts rows.  Returns the
        names left in OUT.parts (shards set aside, shards beyond the views, foreign files).  Raises
        DataError where shards are missing.
        """
        if self.complete and not os.path.isdir(self.parts):
            return []
        with self._alone():
            self._look()
            self.begin()
            missing = self.missing()
            if missing:
                raise DataError(
                    f"{self.out}: {len(missing)} of {sum(1 for _ in self.plan.shards())} shards "
                    "are missing; run the same command again to continue"
                )
            if not self.complete:
                self._merge(progress)
                self._look()  # reads the whole file and its digest again
            return self._remove_parts()

    def abandon(self):
        """Remove the plan again where no shard was committed, as if nothing had been asked."""
        with suppress(OSError):
            if os.listdir(self.parts) == ["plan.json"]:
                os.unlink(self._plan_path())
                os.rmdir(self.parts)

    def _look(self):
        """Verify out and take over its views and clouds; refuse another identity in this place."""
        self._finished, self._carries = 0, False
        if os.path.lexists(self.out):
            with open_record(self.out) as record:
                self._refuse_other(record.plan, self.out)
                self._finished, self._carries = record.plan.views, bool(record.clouds)
                self.data_file = self.data_file or record.meta["data_file"]
                if self._carries:
                    self._refuse_other_clouds(record)
                    self.clouds_meta = record.meta["clouds"]
                    self.clouds_bytes = sum(each.nbytes for each in record.clouds.values())
            self.plan = replace(self.plan, views=max(self.plan.views, self._finished))
        _, damage = self._committed_plan()
        self.damaged += [str(damage)] if damage else []

    def _refuse_other_clouds(self, record):
        if self.with_clouds is not None:
            there, here = clouds_of(record, self.out).test, self.with_clouds.test
            if (there.points_hash, there.labels_hash) != (here.points_hash, here.labels_hash):
                raise DataError(
                    f"{self.out}: carries other test clouds ({there.points_hash[:16]}, here "
                    f"{here.points_hash[:16]}); choose another --out, or leave out --with-clouds"
                )

    def _refuse_other(self, plan, place):
        if not self.plan.same_identity(plan):
            raise DataError(
                f"{place}: holds another recording: {self.plan.differences(plan)}; choose another "
                "--out, or remove it"
            )

    def _committed_plan(self):
        """Return (the Plan in the parts or None, the DataError of a damaged one or None)."""
        path = self._plan_path()
        if not os.path.lexists(path):
            return None, None
        try:
            plan = read_plan(path)
        except DataError as reason:
            return None, reason
        self._refuse_other(plan, self.parts)
        return plan, None

    def _commit_plan(self):
        """Commit the plan to the parts unless it lies there already; the extent only grows.

        Returns a line where a damaged one was set aside.
        """
        committed, damage = self._committed_plan()
        if committed is not None and committed.views >= self.plan.views:
            return []
        lines = self._set_aside(self._plan_path(), damage) if damage else []
        while True:
            try:
                with suppress(FileExistsError):
                    os.mkdir(self.parts)  # not its parents: a mistyped folder is a mistake
                files.sync_folder(os.path.dirname(os.path.abspath(self.parts)))
            except OSError as reason:
                raise files.write_error(f"{self.parts}: cannot be made", reason) from reason
            try:
                write_plan(self._plan_path(), self.plan)
                return lines
            except DataError as reason:
                if not isinstance(reason.__cause__, FileNotFoundError):
                    raise
                # another recorder has finished and removed the parts in this very moment

    def _plan_path(self):
        return os.path.join(self.parts, "plan.json")

    def _path(self, view, first):
        return os.path.join(self.parts, shard_name(view, first))

    def _read(self, view, first, stop):
        return read_shard(self._path(view, first), self.plan, view, first, stop)

    def _set_aside(self, path, reason):
        """Rename path to path.bad, .bad-2, ... and return a list of one line."""
        name, number = f"{path}.bad", 1
        while os.path.lexists(name):
            number += 1
            name = f"{path}.bad-{number}"
        try:
            os.rename(path, name)
            files.sync_folder(self.parts)
        except FileNotFoundError:  # another recorder set it aside, or has finished
            return []
        except OSError as failure:
            raise files.write_error(f"{path}: cannot be set aside", failure) from reason
        return [f"{reason}; kept as {os.path.basename(name)} and made again"]

    @contextmanager
    def _alone(self):
        """Hold the only lock on the parts, so that one recorder at a time merges and removes."""
        while True:
            self._commit_plan()
            with ExitStack() as held:
                try:
                    locked = self._lock(held)
                except OSError as reason:
                    raise files.write_error(f"{self.parts}: cannot be locked", reason) from reason
                if locked:
                    yield
                    return

    def _lock(self, held):
        """Lock the parts until the ExitStack held ends; False where another recorder removed them
        meanwhile.
        """

        def opened(path, flags):
            fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
            held.callback(os.close, fd)
            return fd

        try:
            path, fd = self.parts, opened(self.parts, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError:  # NFS locks only what is open for writing, which a folder cannot be
                path = self._lock_path()
                fd = opened(path, os.O_RDWR | os.O_CREAT)
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(fd, fcntl.LOCK_EX)
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except FileNotFoundError:
            return False

    def _lock_path(self):
        return os.path.join(self.parts, "lock")

    def _merge(self, progress):
        """Write the record of all views to out, from the finished record and the shards."""
        plan, done, carried = self.plan, 0, self._embedded
        with open_record(self.out) if self._finished else nullcontext() as old:
            if self._carries:
                arrays = {name: each.read() for name, each in old.clouds.items()}
                carried = embedded.Embedded(old.meta["clouds"], arrays)

            def blocks():
                nonlocal done
                for view, first, stop in plan.shards():
                    if view < self._finished:
                        arrays = {
                            name: each.row(view).rows(first, stop).read()
                            for name, each in old.rows.items()
                        }
                    else:
                        arrays = self._read(view, first, stop)[1]
                    yield view, first, arrays
                    done += stop - first
                    if progress:
                        progress(done, plan.rows, "merging")

            meta, version, more = self._merged_meta(old and old.meta), FORMAT, ((), {})
            if carried is not None:
                meta, version = {**meta, "clouds": carried.meta}, embedded.WITH_CLOUDS
                more = cloud_fields(carried.meta["dtype"]), carried.arrays
            fields = record_fields(plan.logits)
            write_rows(self.out, "record", version, meta, fields, sizes(plan), blocks(), *more)

    def _merged_meta(self, old):
        """Return the meta of the final record; old: the meta of the finished one, or None."""
        rows, kl = Counter(), 0.0
        if old:
            kl = old["max_kl_of_rounding"]
            for item in old["provenance"]:
                rows[files.canonical_json(item["made_with"])] += item["rows"]
        for meta in self._present.values():
            kl = max(kl, meta["max_kl"])
            rows[files.canonical_json(meta["provenance"])] += meta["rows"]
        return {
            "plan": self.plan.to_dict(),
            "run_id": self.plan.run_id,
            "data_file": self.data_file,
            "max_kl_of_rounding": kl,
            "provenance": [
                {"made_with": files.parse_json(text, self.out), "rows": rows[text]}
                for text in sorted(rows)
            ],
        }

    def _remove_parts(self):
        """Remove the shards whose rows are in the verified record; return the names that stay."""
        with suppress(OSError):
            for view, first, _ in self.plan.shards():
                with suppress(FileNotFoundError):
                    os.unlink(self._path(view, first))
            if not any(name.endswith(".h5") for name in os.listdir(self.parts)):
                os.unlink(self._plan_path())
            with suppress(FileNotFoundError):
                os.unlink(self._lock_path())
            os.rmdir(self.parts)
        with suppress(OSError):
            return sorted(os.listdir(self.parts))
        return []
