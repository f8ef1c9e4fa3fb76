"""Hostile files: each is refused with exit code 3 in one line, quickly and in little memory."""

import io
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from minipc.data.clouds import read_clouds
from minipc.data.groups_file import Groups, indices_of, make_groups, write_groups
from minipc.models.model import sizes
from reference_tests.faults import hostile

SECONDS, MEMORY = 10, 300 << 20  # of CPU time for one file; bytes for all of them
HANGS = 600  # seconds after which a process that reads a corpus no longer reads, but waits


@pytest.fixture
def good(data, say, folder):
    """{kind: bytes of a good file}."""
    quick = ("--epochs", "2", "--model", "6-8:6", "--quiet")
    assert say("train", data, "--labels-only", "--out", "teacher", *quick)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 2, "--force", "--quiet")[0] == 0
    places = {
        "record": "record.h5",
        "clouds": data,
        "model": "teacher/model.h5",
        "checkpoint": "teacher/checkpoint.h5",
        "groups": "groups.h5",
    }
    clouds, config = read_clouds(data).train, sizes("8/4:6,4/0.9x3:7,6", 3)
    of_clouds = clouds.points_hash, len(clouds), indices_of(config, 16)
    write_groups("groups.h5", Groups(*of_clouds, make_groups(config, clouds.points)))
    return {kind: (folder / place).read_bytes() for kind, place in places.items()}


@pytest.fixture
def read_all(record_property):
    """read_in_a_process, its numbers noted."""

    def read(folder, files):
        found, memory = read_in_a_process(folder, files)
        record_property("files", len(found))
        record_property("refused", sum(outcome == "refused" for outcome, _ in found.values()))
        record_property("longest_ms", round(1000 * max(seconds for _, seconds in found.values())))
        record_property("megabytes", round(memory / 1e6))
        return found, memory

    return read


def read_in_a_process(folder, files):
    """Read {kind: [(name, bytes)]} in a process of its own: {(kind, name): (outcome, seconds)}, and
    its memory.
    """
    names = {}
    for kind, members in files.items():
        os.makedirs(folder / kind)
        for number, (name, data) in enumerate(members):
            (folder / kind / f"{number:05d}.h5").write_bytes(data)
            names[f"{kind}/{number:05d}.h5"] = kind, name
    done = subprocess.run(
        [sys.executable, "-m", "reference_tests.faults.hostile", folder],
        capture_output=True,
        text=True,
        timeout=HANGS,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {names[path]: outcome for path, outcome in told["found"].items()}, told["memory"]


def test_every_hostile_file_of_every_kind_is_refused(good, read_all, tmp_path):
    everything = {kind: list(hostile.corpus(whole, kind)) for kind, whole in good.items()}
    found, memory = read_all(tmp_path / "corpus", everything)
    assert len(found) > 5 * 200 and {kind for kind, _ in found} == set(hostile.OURS)
    accepted = {what: outcome for what, (outcome, _) in found.items() if outcome != "refused"}
    assert accepted == {}
    assert max(seconds for _, seconds in found.values()) < SECONDS and memory < MEMORY


def test_the_good_files_of_the_corpus_are_read(good, read_all, tmp_path):
    """Also when sealed again unchanged: it is the content of the others that is refused."""
    same = {
        kind: [
            ("as it was", whole),
            ("sealed again", hostile.changed(whole, kind, lambda file: None)),
        ]
        for kind, whole in good.items()
    }
    found, _ = read_all(tmp_path / "same", same)
    assert {outcome for outcome, _ in found.values()} == {"read"}


@pytest.fixture
def of_others():
    """{kind: bytes} of good data sets of others: an HDF5 file, a part of a ModelNet folder."""
    rng, found = np.random.default_rng(0), {}
    points, labels = (
        rng.standard_normal((60, 64, 3)).astype(np.float32),
        np.arange(60, dtype=np.uint8) % 2,
    )
    for kind, names in (("data set", ("points", "labels")), ("part", ("data", "label"))):
        image = io.BytesIO()
        with h5py.File(image, "w") as file:
            file[names[0]], file[names[1]] = points, labels[:, None]
            if kind == "data set":
                file["class_names"] = ["a", "b"]
        found[kind] = image.getvalue()
    return found


def test_every_hostile_data_set_of_others_is_refused(of_others, read_all, tmp_path):
    found, memory = read_all(
        tmp_path / "corpus",
        {kind: list(hostile.corpus_of_others(whole)) for kind, whole in of_others.items()},
    )
    assert len(found) == 2 * 33 + 4
    assert {what: outcome for what, (outcome, _) in found.items() if outcome != "refused"} == {}
    assert max(seconds for _, seconds in found.values()) < SECONDS and memory < MEMORY


def test_an_unusual_data_set_of_others_is_read(of_others, read_all, tmp_path):
    found, _ = read_all(
        tmp_path / "same",
        {kind: list(hostile.harmless_of_others(whole)) for kind, whole in of_others.items()},
    )
    assert (
        len(found) == 14
        and {what: outcome for what, (outcome, _) in found.items() if outcome != "read"} == {}
    )


def test_whatever_bytes_are_in_a_data_set_of_others_they_are_read_or_refused(
    of_others, read_all, tmp_path
):
    rng = np.random.default_rng(8)
    found, memory = read_all(
        tmp_path / "fuzz",
        {kind: list(hostile.fuzzed(whole, kind, 150, rng)) for kind, whole in of_others.items()},
    )
    assert {outcome for outcome, _ in found.values()} == {"read", "refused"}
    assert max(seconds for _, seconds in found.values()) < SECONDS and memory < MEMORY


def test_whatever_bytes_with_a_right_digest_are_read_or_refused_and_nothing_else(
    good, read_all, tmp_path
):
    """Fuzz: some bytes of the content are changed and the digest made anew."""
    rng = np.random.default_rng(7)
    found, memory = read_all(
        tmp_path / "fuzz",
        {kind: list(hostile.fuzzed(whole, kind, 150, rng)) for kind, whole in good.items()},
    )
    outcomes = {outcome for outcome, _ in found.values()}
    assert outcomes == {"read", "refused"}
    assert max(seconds for _, seconds in found.values()) < SECONDS and memory < MEMORY


@pytest.mark.parametrize("what", ["folder", "pipe", "link to nowhere", "device"])
def test_what_is_no_file_is_refused_without_hanging(what, say, folder):
    path = folder / "x.h5"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to nowhere":
        path.symlink_to("nowhere")
    else:
        path.symlink_to("/dev/zero")
    for words in (
        ("info", "x.h5"),
        ("verify", "x.h5"),
        ("train", "--record", "x.h5"),
        ("eval", "x.h5"),
        ("train", "x.h5", "--labels-only"),
    ):
        code, out, err = say(*words)
        assert (code, out, err.count("\n")) == (3, "", 1), (words, err)
