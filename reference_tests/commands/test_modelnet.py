"""The whole way on ModelNet40 itself, as users have it: `make test-modelnet`."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from minipc.cli.main import main
from minipc.data.clouds import read_clouds
from minipc.record.reader import RecordReader

FOLDER = Path(
    os.environ.get("MINIPC_MODELNET")
    or Path(__file__).parents[3] / "shared/data/modelnet40_hdf5_1024"
)

pytestmark = [
    pytest.mark.modelnet,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason=f"ModelNet40 is not at {FOLDER}; set MINIPC_MODELNET"
    ),
]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    assert end.value.code == 0, streams.err
    return json.loads(streams.out)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("modelnet")


def test_the_official_split_is_packed_bit_for_bit(place, capsys):
    out = place / "modelnet40.h5"
    info = run(capsys, "data", "pack", FOLDER, "-o", out, "--num-points", 256, "--json")
    assert (info["train"], info["test"], info["classes"], info["points"]) == (9843, 2468, 40, 256)
    assert info["normalised"] == 0 and info["up_axis"] == "y"
    # the official counts of three classes, as ModelNet40's own list files have them
    names = info["class_names"]
    for name, train, test in (("airplane", 626, 100), ("chair", 889, 100), ("bowl", 64, 20)):
        assert info["train_per_class"][names.index(name)] == train
        assert info["test_per_class"][names.index(name)] == test
    splits = read_clouds(str(out))
    with h5py.File(FOLDER / "ply_data_train0.h5") as file:
        first = len(file["data"])
        np.testing.assert_array_equal(splits.train.points[:first], file["data"][:, :256])
        np.testing.assert_array_equal(splits.train.labels[:first], file["label"][:, 0])


def test_a_teacher_is_recorded_and_a_student_learns_from_it(place, capsys):
    data = place / "modelnet40.h5"
    small = ("--model", "16-32-64:32", "--epochs", 1, "--quiet", "--json")
    teacher = run(capsys, "train", data, "--labels-only", "--out", place / "teacher", *small)
    assert teacher["test_accuracy"] > 0.3  # the largest class has 4 % of the test clouds
    record = place / "record.h5"
    recorded = run(
        capsys,
        "record",
        data,
        "--teacher",
        place / "teacher",
        "--views",
        1,
        "--out",
        record,
        "--quiet",
        "--json",
    )
    assert recorded["clouds"] == 9843 and recorded["bytes_per_view"] == 24 + 2 * 40
    assert recorded["bytes"] < 1.02 * 9843 * 104
    assert recorded["teacher_accuracy"] > 0.3
    student = run(
        capsys,
        "train",
        "--record",
        record,
        "--self-weight",
        0.2,
        "--out",
        place / "student",
        *small,
    )
    assert student["test_accuracy"] > 0.3


def test_a_record_carries_modelnet_without_loss_as_int16(place, capsys):
    data, out = place / "modelnet40.h5", place / "carry.h5"
    words = (
        "--teacher",
        place / "teacher",
        "--views",
        1,
        "--out",
        out,
        "--with-clouds",
        "--quiet",
        "--json",
    )
    recorded = run(capsys, "record", data, *words)
    assert recorded["clouds_as"] == "int16"
    assert recorded["clouds_bytes"] == (9843 + 2468) * (256 * 3 * 2 + 8)  # points, and a label each
    with RecordReader(str(out)) as reader:
        carried = reader.clouds()
    for wanted, found in zip(read_clouds(str(data)), carried, strict=True):
        assert found.points.tobytes() == wanted.points.tobytes()
