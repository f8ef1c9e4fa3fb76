"""The certificate: a record that is what it says passes, and one row that is not does not."""

import json

import numpy as np
import pytest

from minipc.data.clouds import read_clouds
from minipc.errors import DataError
from minipc.models.file import read_model
from minipc.record import verify as module
from minipc.record.reader import RecordReader
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording
from minipc.record.verify import verify
from minipc.storage import hdf5

QUICK = ("--epochs", "2", "--model", "6-8:6", "--quiet")


@pytest.fixture
def recorded(data, say):
    """record.h5: three views of clouds.h5 by teacher/."""
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 3, "--quiet", "--force")[0] == 0
    return "record.h5"


def tampered(path, name, change):
    """Change one dataset of a record and seal it again, so that its digest holds."""
    with RecordReader(path) as found:
        arrays = {each: stored.read() for each, stored in found.rows.items()}
        meta = found.meta
    change(arrays[name])

    def fill(file):
        hdf5.write_meta(file, meta)
        for each, array in arrays.items():
            file[each] = array

    hdf5.write_hdf5(path, "record", 1, fill)


def test_a_record_as_it_was_made_is_certified_bit_for_bit(recorded, say):
    code, out, err = say("verify", recorded, "--teacher", "teacher", "--sample", "all", "--json")
    told = json.loads(out)
    assert code == 0 and told["passed"] and told["failed"] == "", err
    assert (
        told["rows"] == told["sampled"] == 3 * 96 and told["parameters"] == told["different"] == 0
    )
    assert told["bitwise"] is True and told["largest_difference"] == 0 and told["agreement"] == 1
    code, out, _ = say("verify", recorded)
    assert (
        code == 0
        and "288 of 288 rows are what the seed draws" in out
        and "teacher: not run again" in out
    )


def test_a_sample_is_whole_blocks_and_no_more_than_asked_for_but_for_the_last(recorded, say):
    assert (
        json.loads(say("verify", recorded, "--teacher", "teacher", "--sample", 40, "--json")[1])[
            "sampled"
        ]
        == 64
    )
    assert (
        json.loads(say("verify", recorded, "--teacher", "teacher", "--json")[1])["sampled"] == 288
    )


@pytest.mark.parametrize(
    "name, says", [("augment/scale", "parameters than seed 0"), ("augment/shift", "parameters")]
)
def test_one_parameter_that_the_seed_does_not_draw_is_exit_4(recorded, say, name, says):
    def change(array):
        array[1, 5, 2] = np.nextafter(array[1, 5, 2], np.float32(9))

    tampered(recorded, name, change)
    code, out, err = say("verify", recorded)
    assert (
        code == 4
        and err.count("\n") == 1
        and says in err
        and err.startswith("minipc: record.h5: 1 of 288 rows")
    )
    assert "NOT verified" in out and "287 of 288" in out


def test_one_logit_that_the_teacher_does_not_say_is_exit_4(recorded, say):
    def change(array):
        array[2, 7, 1] = np.nextafter(array[2, 7, 1], np.float16(9))

    tampered(recorded, "logits", change)
    assert say("verify", recorded)[0] == 0  # nobody asked the teacher
    code, _, err = say("verify", recorded, "--teacher", "teacher", "--sample", "all")
    assert code == 4 and "1 of 288 rows hold other logits than the teacher computes" in err


def test_another_build_is_held_to_a_bound_and_not_to_the_bits(recorded, say, monkeypatch):
    code, out, _ = say(
        "verify",
        recorded,
        "--teacher",
        "teacher",
        "--sample",
        "all",
        "--engine",
        "textbook",
        "--json",
    )
    told = json.loads(out)
    assert code == 0 and told["bitwise"] is False and told["agreement"] == 1

    def change(array):
        array[2, 7, 1] += np.float16(0.02 * np.abs(array[2, 7]).max() + 0.01)

    monkeypatch.setattr(module, "provenance_of", lambda xp, engine: {"numpy": "another"})
    assert say("verify", recorded, "--teacher", "teacher", "--sample", "all")[0] == 0
    tampered(recorded, "logits", change)
    code, _, err = say("verify", recorded, "--teacher", "teacher", "--sample", "all")
    assert code == 4 and "1 of 288" in err


def test_another_teacher_or_other_data_are_refused_as_such(recorded, say, data):
    assert say("train", data, "--labels-only", "--seed", 1, "--out", "other", *QUICK)[0] == 0
    code, _, err = say("verify", recorded, "--teacher", "other")
    assert code == 3 and "is not the teacher of record.h5" in err and err.count("\n") == 1
    assert say("data", "make", "-o", "shapes.h5", "--quiet")[0] == 0
    code, _, err = say("verify", recorded, "shapes.h5")
    assert code == 3 and "was made from other data" in err
    code, _, err = say("verify", recorded, "--sample", 3)
    assert code == 2 and "has no use without --teacher" in err
    for wrong in ("0", "-1", "some"):
        assert say("verify", recorded, "--teacher", "teacher", "--sample", wrong)[0] == 2


def test_a_record_that_carries_its_clouds_is_verified_alone(recorded, say, data, folder):
    assert (
        say(
            "record",
            data,
            "--teacher",
            "teacher",
            "--views",
            3,
            "--with-clouds",
            "--quiet",
            "--force",
        )[0]
        == 0
    )
    (folder / "clouds.h5").unlink()
    code, out, err = say("verify", recorded, "--teacher", "teacher", "--json")
    assert code == 0 and json.loads(out)["bitwise"] is True, err


def test_any_teacher_can_be_run_again_from_python(recorded, data, tmp_path):
    clouds = read_clouds(data).train
    calls = []

    def teacher(points):
        calls.append(len(points))
        return points.reshape(len(points), -1)[:, :3]

    record(
        Recording(
            clouds, "by hand", str(tmp_path / "any.h5"), views=2, force=True, logits="float32"
        ),
        teacher,
    )
    calls.clear()
    with RecordReader(str(tmp_path / "any.h5")) as reader:
        assert verify(reader, clouds, teacher, None).passed and set(calls) == {reader.plan.block}
        found = verify(reader, clouds, lambda points: teacher(points) + 1, 10)
        assert (
            not found.passed
            and found.different == found.sampled == 32
            and found.largest_difference >= 1
        )
        wrong = model_teacher(read_model("teacher/model.h5"))
        assert not verify(reader, clouds, wrong, 10).passed
        with pytest.raises(DataError, match="other data"):
            verify(reader, read_clouds(data).test)
