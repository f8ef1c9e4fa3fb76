"""The protocol of a recording on disk: shards in OUT.parts, then one file OUT.  (record_store.md)

The truth is the shards that verify, and a finished record counts as the shards of its views; there
is no manifest to fall out of step.  A kill at any byte costs at most the shard being computed, a
bad shard is set aside and never deleted, and any number of recorders may work on one plan.  This
module calls no teacher, and libhdf5 writes to memory only.
"""

import fcntl
import math
import os
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minipc import files, hdf5
from minipc.errors import DataError, UsageError
from minipc.record.fields import (
    check_arrays, open_fields, record_fields, shard_fields, write_rows,
)
from minipc.record.plan import FORMAT, Plan, read_plan, write_plan

RECORD_META = {"plan", "run_id", "data_file", "provenance", "max_kl_of_rounding"}
SHARD_META = {"run_id", "view", "first", "rows", "provenance", "max_kl"}


class Record(NamedTuple):
    """A verified, open record."""

    plan: Plan
    meta: dict  # keys RECORD_META
    datasets: dict  # {field name: h5py dataset (V, N, ...)}


@contextmanager
def open_record(path):
    """Yield the Record in path after every check but finite values.  Raises DataError."""
    with hdf5.open_hdf5(path, "record", FORMAT) as file:
        meta = hdf5.read_meta(file, path)
        files.check_keys(meta, RECORD_META, path)
        plan = Plan.from_dict(meta["plan"], path)
        made = meta["provenance"] if isinstance(meta["provenance"], list) else [None]
        for item in made:
            files.check_keys(item, {"rows", "made_with"}, path)
        hint = meta["data_file"]
        if not (
            meta["run_id"] == plan.run_id
            and all(type(item["rows"]) is int for item in made)
            and sum(item["rows"] for item in made) == plan.rows
            and (hint is None or isinstance(hint, str) and os.path.basename(hint) == hint)
        ):
            raise DataError(f"{path}: its metadata contradicts itself; make the record again")
        _kl(meta["max_kl_of_rounding"], path)
        fields = record_fields(plan.logits)
        yield Record(plan, meta, open_fields(file, fields, sizes(plan), path))


def sizes(plan):
    """Return {axis letter: length} of the finished record."""
    return {"V": plan.views, "N": plan.clouds, "D": 3, "K": plan.classes}


def shard_name(view, first):
    """Return the name of a shard in OUT.parts."""
    return f"view-{view:05d}-row-{first:08d}.h5"


def read_shard(path, plan, view, first, stop):
    """Return (meta, {field name: array}) of one verified shard of a plan.  Raises DataError."""
    fields = shard_fields(plan.logits)
    with hdf5.open_hdf5(path, "shard", FORMAT, cap=1 << 31) as file:
        datasets = open_fields(file, fields, {**sizes(plan), "N": stop - first}, path)
        meta = hdf5.read_meta(file, path)
        files.check_keys(meta, SHARD_META, path)
        _kl(meta["max_kl"], path)
        expected = {"run_id": plan.run_id, "view": view, "first": first, "rows": stop - first}
        for key, value in expected.items():
            if meta[key] != value:
                raise DataError(f"{path}: {key} is {meta[key]}, expected {value}")
        if not isinstance(meta["provenance"], dict):
            raise DataError(f"{path}: provenance is no mapping")
        return meta, {
            name: hdf5.read_rows(dataset, ..., path) for name, dataset in datasets.items()
        }


class Store:
    """The place of one recording.  Construction commits the plan before any teacher is called.

    Raises DataError where out or its parts belong to another identity, naming what differs.  A
    finished record with more views keeps them all: plan.views is then larger than asked.  Shards
    beyond the views asked for stay where they are.
    """

    def __init__(self, out, plan, data_file=None):
        """out: path of the finished record; data_file: base name of the clouds file, a hint."""
        self.out, self.parts = os.fspath(out), f"{os.fspath(out)}.parts"
        self.plan = plan
        self.data_file = data_file and os.path.basename(data_file)
        self.set_aside = []  # a line for every bad shard met
        self._present = None  # {(view, first): meta} of the shards that verified
        self._finished = 0  # views of the finished record
        self._look()
        if self._finished < self.plan.views:
            self._commit_plan()

    def missing(self):
        """Return [(view, first, stop)] of the shards that are not there, after a first scan."""
        if self._present is None:
            self.scan()
        return [
            shard for shard in self.plan.shards()
            if shard[0] >= self._finished and shard[:2] not in self._present
        ]

    def scan(self):
        """Verify every shard there is, rename the bad ones, and return a line for each of these."""
        files.sweep(self.parts)
        files.sweep(*os.path.split(os.path.realpath(self.out)))
        self._present, bad = {}, []
        for view, first, stop in self.plan.shards():
            path = self._path(view, first)
            if view >= self._finished and os.path.lexists(path):
                try:
                    self._present[view, first], _ = self._read(view, first, stop)
                except DataError as reason:
                    bad += self._set_aside(path, reason)
        self.set_aside += bad
        return bad

    def commit_shard(self, view, first, scale, shift, logits, provenance):
        """Make one shard durable: rows first, first + 1, ... of a view.

        scale, shift (R, 3) float32, logits (R, K) of the plan's dtype; provenance: versions, BLAS,
        device, and max_kl, the largest KL of rounding the logits.  Raises UsageError for a shard
        that is not in the plan, DataError for arrays that are not such, MinipcError as commit.
        """
        plan = self.plan
        if (
            not (0 <= view < plan.views and 0 <= first < plan.clouds)
            or first % plan.rows_per_shard
        ):
            raise UsageError(f"{self.out}: no shard of the plan begins at view {view}, row {first}")
        stop = min(first + plan.rows_per_shard, plan.clouds)
        made_with = dict(provenance)
        meta = {
            "run_id": plan.run_id, "view": view, "first": first, "rows": stop - first,
            "max_kl": _kl(made_with.pop("max_kl", 0.0), self.out), "provenance": made_with,
        }
        arrays = {"augment/scale": scale, "augment/shift": shift, "logits": logits}
        fields = shard_fields(plan.logits)
        check_arrays(arrays, fields, self._sizes(first, stop), f"{self.out}: view {view}")

        def fill(file):
            hdf5.write_meta(file, meta)
            for field in fields:
                dtype = np.dtype(field.dtype).newbyteorder("<")
                file.create_dataset(field.name, data=arrays[field.name], dtype=dtype)

        self._commit_plan()  # another recorder may have finished and removed the parts
        hdf5.write_hdf5(self._path(view, first), "shard", FORMAT, fill)
        if self._present is not None:
            self._present[view, first] = meta

    def finalise(self, progress=None):
        """Make the record of all views durable in out, then remove the parts; return what is left.

        Verifies every shard, merges a finished record of fewer views, and verifies the result
        before anything is removed.  Memory: one shard.  Killed anywhere, it can be run again.
        progress(done, total, text) counts rows.  Returns the names left in OUT.parts (shards set
        aside, shards beyond the views, foreign files).  Raises DataError where shards are missing.
        """
        if self._finished >= self.plan.views and not os.path.isdir(self.parts):
            return []
        with self._alone():
            self._look()
            self.scan()
            missing = self.missing()
            if missing:
                raise DataError(
                    f"{self.out}: {len(missing)} of {sum(1 for _ in self.plan.shards())} shards "
                    "are missing; run the same command again to continue"
                )
            if self._finished < self.plan.views:
                self._merge(progress)
                self._look()  # reads the whole file and its digest again
            return self._remove_parts()

    def abandon(self):
        """Remove the plan again where no shard was committed, as if nothing had been asked."""
        with suppress(OSError):
            if os.listdir(self.parts) == ["plan.json"]:
                os.unlink(os.path.join(self.parts, "plan.json"))
                os.rmdir(self.parts)

    def _look(self):
        """Verify out and take over its views; refuse another identity in this place."""
        if os.path.lexists(self.out):
            with open_record(self.out) as record:
                self._refuse_other(record.plan, self.out)
                self._finished = record.plan.views
                self.data_file = self.data_file or record.meta["data_file"]
            self.plan = replace(self.plan, views=max(self.plan.views, self._finished))
        else:
            self._finished = 0
        committed = self._committed_plan()
        if committed is not None:
            self._refuse_other(committed, self.parts)

    def _refuse_other(self, plan, place):
        if not self.plan.same_identity(plan):
            raise DataError(
                f"{place}: holds another recording: {self.plan.differences(plan)}; choose another "
                "--out, or remove it"
            )

    def _committed_plan(self):
        """Return the Plan in the parts, or None; one that is damaged is set aside."""
        path = os.path.join(self.parts, "plan.json")
        if not os.path.lexists(path):
            return None
        try:
            return read_plan(path)
        except DataError as reason:
            self.set_aside += self._set_aside(path, reason)
            return None

    def _commit_plan(self):
        """Commit the plan to the parts unless it lies there already; the extent only grows."""
        committed = self._committed_plan()
        if committed is not None:
            self._refuse_other(committed, self.parts)
            if committed.views >= self.plan.views:
                return
        try:
            with suppress(FileExistsError):
                os.mkdir(self.parts)  # not its parents: a mistyped folder is a mistake
            files.sync_folder(os.path.dirname(os.path.abspath(self.parts)))
        except OSError as reason:
            raise files.write_error(f"{self.parts}: cannot be made", reason) from reason
        write_plan(os.path.join(self.parts, "plan.json"), self.plan)

    def _path(self, view, first):
        return os.path.join(self.parts, shard_name(view, first))

    def _sizes(self, first, stop):
        return {**sizes(self.plan), "N": stop - first}

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
            try:
                fd = os.open(self.parts, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.parts)):
                    break
            os.close(fd)  # another recorder removed the parts while this waited
        try:
            yield
        finally:
            os.close(fd)

    def _merge(self, progress):
        """Write the record of all views to out, from the finished record and the shards."""
        plan, done = self.plan, 0
        with open_record(self.out) if self._finished else nullcontext() as old:

            def blocks():
                nonlocal done
                for view, first, stop in plan.shards():
                    if view < self._finished:
                        arrays = {
                            name: hdf5.read_rows(dataset, np.s_[view, first:stop], self.out)
                            for name, dataset in old.datasets.items()
                        }
                    else:
                        arrays = self._read(view, first, stop)[1]
                    yield view, first, arrays
                    done += stop - first
                    if progress:
                        progress(done, plan.rows, "merging")

            meta = self._merged_meta(old and old.meta)
            fields = record_fields(plan.logits)
            write_rows(self.out, "record", FORMAT, meta, fields, sizes(plan), blocks())

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
            "plan": self.plan.to_dict(), "run_id": self.plan.run_id, "data_file": self.data_file,
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
                os.unlink(os.path.join(self.parts, "plan.json"))
            os.rmdir(self.parts)
        return sorted(os.listdir(self.parts)) if os.path.isdir(self.parts) else []


def _kl(value, where):
    """Return value if it is a number that a divergence can be.  Raises DataError."""
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where}: max_kl: expected a finite number >= 0, got {value!r}")
    return value
