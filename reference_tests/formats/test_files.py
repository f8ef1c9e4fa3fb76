"""Commits are all or nothing, and readers believe no byte unchecked."""

import errno
import fcntl
import os
import pickle
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import h5py
import numpy as np
import pytest

from minipc.errors import DataError, MinipcError, UsageError
from minipc.storage import files, hdf5

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


class Killed(BaseException):
    """The process is gone: no handler of ours may see this as an error."""


@contextmanager
def killed_at(step, torn=False):
    """Let the process die at its step-th change of the disk; yields an object with .steps counted.

    From then on every change is refused, so cleaning up changes nothing either, as after kill -9;
    closing a descriptor still works, as the kernel does it.  torn: half of a write is done first.
    """
    changes = ("open", "pwrite", "posix_fallocate", "fsync", "rename", "unlink", "mkdir", "rmdir")
    real = {name: getattr(os, name) for name in changes}

    class Count:
        steps = 0

    def dying(name):
        def change(*args, **kwargs):
            if name == "open" and not args[1] & os.O_CREAT:
                return real[name](*args, **kwargs)
            Count.steps += 1
            if step is not None and Count.steps >= step:
                if torn and name == "pwrite" and Count.steps == step:
                    fd, data, at = args
                    real[name](fd, data[: len(data) // 2], at)
                raise Killed(name)
            return real[name](*args, **kwargs)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in changes:
            patch.setattr(os, name, dying(name))
        with suppress(Killed):
            yield Count


def write(path, values=VALUES, kind="model", version=1, **meta):
    def fill(file):
        hdf5.write_meta(file, meta)
        file.create_dataset("params/a.W", data=values)

    hdf5.write_hdf5(path, kind, version, fill)


def read(path, kind="model", version=1, shape=(None, 3), dtype=np.float32):
    with hdf5.open_hdf5(path, kind, version) as file:
        hdf5.check_members(file, {"meta", "params"}, path)
        hdf5.check_members(file["params"], {"a.W"}, path)
        return hdf5.read_meta(file, path), hdf5.read_array(file, "params/a.W", dtype, shape, path)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "file.h5")


# Values


def test_canonical_json_is_sorted_ascii_without_space_and_refuses_nan():
    assert files.canonical_json({"b": [1, 0.5], "a": "\u00e9"}) == b'{"a":"\\u00e9","b":[1,0.5]}'
    with pytest.raises(ValueError):
        files.canonical_json([float("nan")])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1]",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":1,"a":2}',
        b"\xff",
        b"[" * 100_000,
        b"nul",
    ],
)
def test_json_that_is_no_mapping_or_means_two_things_is_refused(text):
    with pytest.raises(DataError, match="here: expected a JSON object"):
        files.parse_json(text, "here")


@dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...]
    rate: float = 0.5

    def __post_init__(self):
        if self.rate < 0:
            raise UsageError(f"rate: expected >= 0, got {self.rate}")


def test_a_dataclass_is_rebuilt_from_json_with_its_tuples():
    built = files.from_dict(Config, {"sizes": [1, 2], "rate": 1.0}, "here")
    assert built == Config((1, 2), 1.0)


@pytest.mark.parametrize(
    "values",
    [
        {"sizes": [1]},
        {"sizes": [1], "rate": 1.0, "more": 1},
        {"sizes": [1], "rate": -1.0},
        {"sizes": [1], "rate": "x"},
        {"sizes": [1], "rate": None},
        [1],
        None,
    ],
)
def test_unknown_missing_and_refused_values_name_where_they_are(values):
    with pytest.raises(DataError, match="^here: "):
        files.from_dict(Config, values, "here")


def test_a_content_hash_knows_dtype_shape_and_value_but_not_layout():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    digest = files.sha256_arrays(x)
    assert (
        digest == files.sha256_arrays(np.asfortranarray(x)) == files.sha256_arrays(x.astype(">f4"))
    )
    others = [x.reshape(3, 2), x.astype(np.float64), x.view(np.int32), x + 1, x[:1]]
    assert len({digest, *(files.sha256_arrays(other) for other in others)}) == 6
    assert files.sha256_arrays(x[:1], x[1:]) != files.sha256_arrays(x[:0], x)
    assert files.sha256_arrays(np.float32(1)) != files.sha256_arrays(np.ones(1, np.float32))
    with pytest.raises(TypeError):
        files.sha256_arrays(np.array([None]))


# Writing


def test_a_file_comes_back_and_opens_with_plain_h5py(path):
    write(path, a=1)
    meta, values = read(path)
    assert meta == {"a": 1}
    np.testing.assert_array_equal(values, VALUES)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["params/a.W"][...], VALUES)
        assert bytes(file["meta"][...]) == b'{"a":1}'


def test_equal_contents_are_equal_bytes_whenever_they_are_written(path, tmp_path):
    write(path, a=1)
    time.sleep(1.1)  # HDF5 times count seconds
    write(str(tmp_path / "b.h5"), a=1)
    assert (tmp_path / "file.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_commit_takes_one_buffer_or_several_and_survives_short_writes(path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    files.commit(path, [b"abcdefgh", VALUES, np.empty((0, 3))])
    with open(path, "rb") as file:
        assert file.read() == b"abcdefgh" + VALUES.tobytes()


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_step_of_a_commit_leaves_the_old_file_or_the_new(path, tmp_path, torn):
    write(path, a="old")
    with open(path, "rb") as file:
        old = file.read()
    with killed_at(None) as count:
        write(path, a="new")
    with open(path, "rb") as file:
        new = file.read()
    found = []
    for step in range(1, count.steps + 1):
        files.commit(path, old)
        with killed_at(step, torn):
            write(path, a="new")
        with open(path, "rb") as file:
            found.append(file.read())
        files.sweep(str(tmp_path), "file.h5")
        assert os.listdir(tmp_path) == ["file.h5"]
    assert found == [old] * (count.steps - 1) + [new]  # only after the rename


@pytest.mark.parametrize("name", ["open", "pwrite", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_call_is_one_line_and_leaves_the_old_file_and_nothing_else(
    path, tmp_path, monkeypatch, name, code
):
    write(path, a="old")
    real, calls = getattr(os, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if name == "pwrite" and len(calls) == 1:
            return real(args[0], args[1][:5], args[2])  # the disk fills up in the middle
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        with pytest.raises(MinipcError, match="could not be written and is as it was") as caught:
            write(path, a="new")
    assert calls and "\n" not in str(caught.value) and str(caught.value).startswith(path)
    assert ("free some space" in str(caught.value)) == (code == errno.ENOSPC)
    assert caught.value.exit_code == (3 if code == errno.EACCES else 1)
    assert read(path)[0] == {"a": "old"} and os.listdir(tmp_path) == ["file.h5"]


def test_a_folder_that_cannot_be_made_durable_is_told_and_one_that_has_no_fsync_is_not(
    path, monkeypatch
):
    real = os.fsync

    def failing(code):
        def fsync(fd):
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                raise OSError(code, os.strerror(code))
            return real(fd)

        return fsync

    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(MinipcError, match="was written, but may not survive a power failure"):
        files.commit(path, b"x")
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    files.commit(path, b"y")


def test_whatever_the_block_raises_leaves_no_temporary(path, tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written_are_named_with_a_remedy(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, why in [
        (tmp_path, "found a folder"),
        (tmp_path / "pipe", "found a pipe"),
        ("/dev/null", "found a device"),
        (tmp_path / "no" / "x", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(DataError, match=why) as caught:
            files.commit(place, b"x")
        assert caught.value.exit_code == 3 and ";" in str(caught.value)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    files.commit(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "file").read_bytes() == b"x"


def test_a_sweep_removes_what_the_dead_left_and_nothing_of_the_living(tmp_path):
    dead, alive, foreign = (
        tmp_path / name
        for name in (
            ".file.h5.0123456789abcdef.tmp",
            ".file.h5.fedcba9876543210.tmp",
            ".file.h5.x.tmp",
        )
    )
    for name in (dead, alive, foreign):
        name.write_bytes(b"x")
    with open(alive, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.sweep(str(tmp_path), "other.h5")
        assert dead.exists()
        files.sweep(str(tmp_path), "file.h5")
    assert not dead.exists() and alive.exists() and foreign.exists()


def test_two_writers_never_share_a_temporary(path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 16)
    with files.replacing(path) as fd:
        files.write_at(fd, 0, b"first")
        with pytest.raises(MinipcError, match="File exists"):
            files.commit(path, b"second")
    with open(path, "rb") as file:
        assert file.read() == b"first"


def test_a_writer_at_work_is_not_swept_away(path, tmp_path):
    with files.replacing(path) as fd:
        files.write_at(fd, 0, b"x")
        files.sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["file.h5"]


# Reading


def test_every_truncation_and_every_single_bit_flip_is_refused(path):
    write(path)
    with open(path, "rb") as file:
        whole = file.read()
    fd = os.open(path, os.O_RDWR)
    for at, byte in enumerate(whole):
        for bit in range(8):
            os.pwrite(fd, bytes([byte ^ 1 << bit]), at)
            with pytest.raises(DataError):
                read(path)
        os.pwrite(fd, bytes([byte]), at)
    read(path)
    for size in reversed(range(len(whole))):
        os.truncate(path, size)
        with pytest.raises(DataError):
            read(path)
    os.close(fd)
    with open(path, "wb") as file:
        file.write(whole + b"\0")
    with pytest.raises(DataError, match="is damaged"):
        read(path)


def test_foreign_paths_are_refused_in_one_line_without_hanging(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    np.savez(tmp_path / "best.pth.npz", x=1)
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"x": 1}, protocol=2))
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = 1
    os.mkfifo(tmp_path / "pipe")
    write(str(tmp_path / "clouds.h5"), kind="clouds")
    write(str(tmp_path / "new.h5"), version=2)
    write(str(tmp_path / "odd.h5"), kind="odd\nity")
    write(str(tmp_path / "cut.h5"))
    os.truncate(tmp_path / "cut.h5", 300)
    for name, why in {
        "missing": "cannot be read .No such file",
        "empty": "is empty",
        "text": "is not a minipc file",
        "best.pth.npz": "is an archive, as torch.save .* import a checkpoint with minipc.torch",
        "old.pth": "is an archive, as torch.save .* clouds with `minipc data pack`",
        "plain.h5": "is HDF5, but not made by minipc",
        "pipe": "expected a file, found a pipe",
        ".": "expected a file, found a folder",
        "x\0y": "cannot be read .*embedded null",
        "clouds.h5": "is a minipc clouds file, but a model file is wanted",
        "cut.h5": "is damaged: it ends after 300",
        "new.h5": "was written by a newer format version 2; this minipc reads up to 1: upgrade",
        "odd.h5": "is a minipc 'odd\\\\nity' file, but a model file",
    }.items():
        with pytest.raises(DataError, match=why) as caught:
            read(str(tmp_path / name))
        assert len(str(caught.value).splitlines()) == 1 and caught.value.exit_code == 3


def test_a_failed_write_leaves_no_view_of_its_image(tmp_path):
    with pytest.raises(DataError, match="nowhere") as caught:
        write(str(tmp_path / "nowhere" / "file.h5"))
    (image,) = (
        entry.frame.f_locals["image"]
        for entry in caught.traceback
        if "image" in entry.frame.f_locals
    )
    # refused while there is a view; Python 3.13 says so on stderr when the traceback goes
    image.close()


def test_a_file_above_the_cap_is_not_even_hashed(path):
    write(path)
    with (
        pytest.raises(DataError, match="a model file has at most 1000 here"),
        hdf5.open_hdf5(path, "model", 1, cap=1000),
    ):
        pass


def hostile(path, change, meta=b"{}"):
    """Commit a self-consistent model file that change(h5py.File) made; digest and header hold."""

    def fill(file):
        file.create_dataset("meta", data=np.frombuffer(meta, np.uint8))
        file.create_group("params")
        change(file)

    hdf5.write_hdf5(path, "model", 1, fill)


def soft(file):
    file["params/b"] = VALUES
    file["params/a.W"] = h5py.SoftLink("/params/b")
    del file["params/b"]


def external_link(file):
    file["params/a.W"] = h5py.ExternalLink("other.h5", "/x")


def external_storage(file):
    file.create_dataset("params/a.W", (4, 3), "<f4", external=[("/etc/passwd", 0, 48)])


def virtual(file):
    layout = h5py.VirtualLayout((4, 3), "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", (4, 3))
    file.create_virtual_dataset("params/a.W", layout)


def another_object(file):
    file["params"]["a.W"] = np.dtype("<f4")  # a named type


def dataset(values=VALUES, **how):
    return lambda file: file.create_dataset("params/a.W", data=values, **how)


HOSTILE = {
    "soft link": (soft, "link to elsewhere"),
    "external link": (external_link, "link to elsewhere"),
    "external storage": (external_storage, "another storage"),
    "virtual": (virtual, "another storage"),
    "gzip": (dataset(compression="gzip"), "another storage"),
    "checksum": (dataset(fletcher32=True), "another storage"),
    "chunked": (dataset(chunks=(2, 3)), "another storage"),
    "unwritten": (
        lambda file: file.create_dataset("params/a.W", (4, 3), "<f4"),
        "expected 48 plain bytes",
    ),
    "shape bomb": (
        lambda file: file.create_dataset("params/a.W", (1 << 40, 3), "<f4"),
        "plain bytes",
    ),
    "big endian": (dataset(dtype=">f4"), "expected float32"),
    "float64": (dataset(dtype="<f8"), "expected float32"),
    "text": (dataset([["a"] * 3]), "expected float32"),
    "group": (lambda file: file.create_group("params/a.W"), "expected float32, found no array"),
    "named type": (another_object, "expected float32, found no array"),
    "no rows axis": (dataset(VALUES[0]), "expected shape"),
    "wrong axis": (dataset(VALUES.T), "expected shape"),
    "no shape": (
        lambda file: file.create_dataset("params/a.W", data=h5py.Empty("<f4")),
        "file.h5: ",
    ),
    "NaN": (dataset(np.where(VALUES == 5, np.float32("nan"), VALUES)), "NaN or infinite"),
    "more members": (lambda file: (dataset()(file), file.create_group("more")), "foreign"),
    "more params": (lambda file: (dataset()(file), file.create_group("params/b")), "foreign"),
    "no members": (lambda file: None, "misses"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_with_a_right_digest_is_refused(path, name):
    change, why = HOSTILE[name]
    hostile(path, change)
    with pytest.raises(DataError, match=why) as caught:
        read(path)
    assert str(caught.value).startswith(path) and len(str(caught.value).splitlines()) == 1


def test_hdf5_that_is_damaged_before_its_digest_was_made_is_our_error(path):
    """Bit flips with a recomputed digest: refused or read, never another exception."""
    write(path)
    with open(path, "rb") as file:
        whole = file.read()
    body, outcomes = whole[files.USER_BLOCK :], {True: 0, False: 0}
    for at in range(0, len(body), 5):
        changed = bytearray(body)
        changed[at] ^= 1 << at % 8
        header = files.sealed("model", 1, len(whole), [changed])
        with open(path, "wb") as file:
            file.write(header + changed)
        try:
            read(path)
            outcomes[True] += 1
        except DataError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 5


def test_a_file_that_shrinks_while_it_is_read_is_not_read_as_zeros(path):
    write(path, np.ones((50_000, 3), np.float32))
    with hdf5.open_hdf5(path, "model", 1) as file:
        dataset = hdf5.checked_dataset(file, "params/a.W", np.float32, (None, 3), path)
        os.truncate(path, 100_000)
        with pytest.raises(DataError, match="became shorter"):
            hdf5.read_dataset(dataset, path)


def test_what_a_killed_writer_left_goes_with_the_next_commit_of_the_same_file(tmp_path):
    abandoned = tmp_path / f".a.h5.{'0' * 16}.tmp"
    other = tmp_path / f".b.h5.{'0' * 16}.tmp"
    for path in (abandoned, other):
        path.write_bytes(b"half")
    files.commit(str(tmp_path / "a.h5"), b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "a.h5"]
