"""Every system call of a recording fails, once or for good: nothing committed is lost."""

import errno
import os
import signal

import pytest

from minipc.errors import MinipcError
from minipc.record.store import Store
from minipc.storage import files
from reference_tests.faults.test_power import PLAN, SHARDS, Judge, commit, on, record

CALLS = "open pwrite fsync rename posix_fallocate mkdir unlink rmdir listdir fstat pread".split()
# Calls of one function that are made to fail, spread over the recording; all of `make torture`.
MANY, SOME = (20, 6) if os.environ.get("MINIPC_ALL_FAULTS") else (6, 2)


class Failing:
    """Stands in for `os`; call number `nth` of a function fails, and with for_good all after it."""

    def __init__(self, name=None, nth=0, code=errno.EIO, for_good=False):
        self.name, self.nth, self.code, self.for_good, self.calls = name, nth, code, for_good, {}

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments):
            number = self.calls[name] = self.calls.get(name, 0) + 1
            if name == self.name and (number == self.nth or self.for_good and number > self.nth):
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments)

        return call


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """{name: calls} of one undisturbed recording."""
    disk = Failing()
    with on(disk):
        record(tmp_path_factory.mktemp("count"))
    return disk.calls


def test_a_recording_makes_all_these_calls(counts):
    assert counts.keys() == set(CALLS) and sum(counts.values()) > 200


@pytest.mark.parametrize(
    "for_good, code, most",
    [
        (False, errno.EIO, MANY),
        (False, errno.ENOSPC, SOME),
        (False, errno.EINTR, SOME),
        (True, errno.EIO, SOME),
        (True, errno.ENOSPC, MANY),
    ],
    ids=["EIO once", "ENOSPC once", "EINTR once", "EIO for good", "ENOSPC for good"],
)
@pytest.mark.parametrize("name", CALLS)
def test_whichever_call_fails_the_end_is_one_line_and_the_same_command_leads_to_the_same_bytes(
    name, for_good, code, most, counts, judge, tmp_path, record_property
):
    calls = counts[name]
    chosen = sorted({1 + round(i * (calls - 1) / (most - 1)) for i in range(most)})
    record_property("states", len(chosen))
    for nth in chosen:
        folder, told = tmp_path / str(nth), []
        folder.mkdir()
        try:
            with on(Failing(name, nth, code, for_good)):
                record(folder, lambda *names, told=told: told.append(names))
        except MinipcError as reason:
            assert "\n" not in str(reason) and os.strerror(code) in str(reason), (nth, reason)
        state = {
            os.path.relpath(os.path.join(place, each), folder): open_and_read(
                os.path.join(place, each)
            )
            for place, _, names in os.walk(folder)
            for each in names
        }
        assert judge.fault(state, set(told)) is None, nth
        assert len(Store(folder / "record.h5", PLAN).missing()) <= len(SHARDS) - sum(
            n[0] == "shard" for n in told
        )
        record(folder)
        assert (folder / "record.h5").read_bytes() == judge.record, nth


def open_and_read(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("nth", [1, 3, 6])
def test_a_disk_that_fails_under_libhdf5_sets_no_shard_aside(nth, judge, tmp_path, monkeypatch):
    """libhdf5 reads through a file object without os; here its descriptor goes bad."""
    place = Store(tmp_path / "record.h5", PLAN)
    for shard in place.missing():
        commit(place, *shard)
    guarded, guard, write_only = [], files._guard, os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)

    def then_fail(fd, *arguments):
        guard(fd, *arguments)
        guarded.append(1)
        if len(guarded) == nth:
            os.dup2(write_only, fd)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_guard", then_fail)
        with pytest.raises(MinipcError, match="cannot be read .*check the disk") as told:
            Store(tmp_path / "record.h5", PLAN).begin()
    os.close(write_only)
    assert told.value.exit_code == 1 and not list(tmp_path.glob("**/*.bad"))
    record(tmp_path)
    assert (tmp_path / "record.h5").read_bytes() == judge.record


def test_writes_of_a_few_bytes_at_a_time_make_the_same_record(judge, tmp_path):
    class Short(Failing):
        """pwrite takes at most 700 bytes."""

        def pwrite(self, fd, data, at):
            return os.pwrite(fd, memoryview(data)[:700], at)

    with on(Short()):
        record(tmp_path)
    assert (tmp_path / "record.h5").read_bytes() == judge.record


def test_signals_that_come_all_the_time_change_no_byte(judge, tmp_path):
    """A real EINTR, as often as the clock can: calls go on where they were."""
    came = []
    before = signal.signal(signal.SIGALRM, lambda *_: came.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        record(tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(came) > 10 and (tmp_path / "record.h5").read_bytes() == judge.record
