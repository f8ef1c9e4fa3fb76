"""minipc info: what any of our files is, called intact only after its own reader took all of it."""

import json
import os
import shutil

import numpy as np
import pytest

from minipc.errors import DataError
from minipc.models.file import new_model, write_model
from minipc.models.pointnet import ModelConfig
from minipc.record.plan import write_plan
from minipc.record.store import Store
from minipc.report.describe import describe
from minipc.report.lines.info import of_info
from minipc.storage import hdf5
from minipc.storage.files import KINDS, canonical_json
from reference_tests.commands.test_cli import QUICK
from reference_tests.formats.test_record_store import PLAN, record, shard, shard_path
from reference_tests.formats.test_record_store import replace as with_fields


def snapshot(folder):
    """Return {path: (content, time of change)} of everything below folder."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else None,
            path.stat().st_mtime_ns,
        )
        for path in [folder, *folder.rglob("*")]
    }


def flip(path, at=-20):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.fixture
def whole_way(data, say):
    """clouds.h5, a run folder, its model and a record."""
    assert say("train", data, "--labels-only", "--out", "teacher", *QUICK)[0] == 0
    assert say("record", data, "--teacher", "teacher", "--views", 2, "--quiet")[0] == 0
    assert say("train", "--record", "record.h5", *QUICK)[0] == 0


def test_info_tells_every_file_of_the_whole_way(whole_way, say, folder):
    before = snapshot(folder)
    expected = {
        "clouds.h5": ("clouds", {"train": 96, "test": 33, "classes": 3}, "flat"),
        "run/model.h5": (
            "model",
            {"parameters": 371, "class_names": ["flat", "long", "round"]},
            "PointNet 8-16:8",
        ),
        "record.h5": (
            "record",
            {"views": 2, "clouds": 96, "data_file": "clouds.h5", "seed": 0},
            "192 rows made with",
        ),
        "teacher": ("run", {"epochs": 4, "of_epochs": 4}, "on labels alone"),
        "run": ("run", {"epochs": 4, "of_epochs": 4}, "from record.h5"),
        "run/run.json": ("run", {"epochs": 4}, "4 of 4 epochs"),
    }
    for path, (kind, some, told) in expected.items():
        code, out, err = say("info", path)
        assert (code, err) == (0, "") and told in out, path
        code, out, err = say("info", path, "--json")
        values = json.loads(out)
        assert code == 0 and values["kind"] == kind and some.items() <= values.items(), path
        assert kind == "run" or values["intact"] and values["bytes"] == os.path.getsize(path)
    assert snapshot(folder) == before


def test_a_record_names_its_teacher_and_its_data_by_what_they_are(whole_way):
    model, record, clouds = (
        describe(name) for name in ("teacher/model.h5", "record.h5", "clouds.h5")
    )
    assert record["teacher_id"] == model["model_id"]
    assert record["points_hash"] == clouds["points_hash"] == model["trained"]["points_hash"]


def test_info_names_the_training_points_of_whatever_was_made_from_them(whole_way, say):
    points = describe("clouds.h5")["points_hash"][:16]
    for path in ("clouds.h5", "teacher", "run", "teacher/model.h5", "record.h5"):
        assert f"training points {points}" in say("info", path)[1], path


def test_a_model_that_was_never_trained_is_said_to_be_that(folder, say):
    described = {"class_names": ["a", "b"], "up_axis": "z", "normalisation": "none"}
    write_model("new.h5", new_model(ModelConfig((8,), (), 2), described, 0))
    code, out, _ = say("info", "new.h5")
    assert code == 0 and "\nnot trained\n" in out and "None" not in out


def test_a_record_says_whether_it_carries_its_clouds(whole_way, say, data):
    assert describe("record.h5")["carries"] is None
    words = ("--teacher", "teacher", "--views", 2, "--with-clouds", "--out", "with.h5", "--quiet")
    assert say("record", data, *words)[0] == 0
    assert describe("with.h5")["carries"] == {"train": 96, "test": 33}
    assert "clouds in it: 96 train, 33 test" in say("info", "with.h5")[1]


def test_a_run_says_how_far_it_came_and_what_it_measured_last(whole_way, folder):
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    values = describe("run")
    assert values["last"] == json.loads(lines[-1]) and values["files"]["model.h5"]["intact"]
    assert values["settings"] == json.loads((folder / "run/run.json").read_text())


def test_a_run_says_what_it_learned_from_and_with_which_weights(whole_way, folder, say):
    def learned():
        (line,) = (line for line in say("info", "run")[1].splitlines() if "learned" in line)
        return line.split(", data ")[0]

    path = folder / "run/run.json"
    settings = json.loads(path.read_text())
    loss, record = settings["loss"], settings["record"]
    views = f"record.h5 (run {record['run_id'][:16]})"
    weights = f"a = {loss['kd_weight']}, b = {loss['self_weight']}, T = {loss['temperature']}"
    assert learned() == f"learned from {views} at {weights}"
    (folder / "run/checkpoint.h5").unlink()  # which belongs to these settings alone
    path.write_text(json.dumps(settings | {"labels_only": True}))
    assert learned() == f"learned on labels alone, views of {views}"
    path.write_text(json.dumps(settings | {"labels_only": True, "record": None}))
    assert learned() == "learned on labels alone"
    path.write_text(json.dumps(settings | {"loss": None}))
    assert learned() == f"learned from {views}"


def test_a_run_that_has_not_ended_an_epoch_is_described(whole_way, folder):
    for path in (folder / "run").iterdir():
        if path.name != "run.json":
            path.unlink()
    values = describe("run")
    assert (values["epochs"], values["of_epochs"], values["last"], values["files"]) == (
        0,
        4,
        None,
        {},
    )


@pytest.mark.parametrize("path", ["clouds.h5", "run/model.h5", "record.h5"])
def test_a_file_with_one_bit_changed_is_exit_3_and_one_line(path, whole_way, folder, say):
    flip(folder / path)
    code, out, err = say("info", path)
    assert (
        (code, out) == (3, "")
        and err.count("\n") == 1
        and f"{path}: is damaged: its digest does not match" in err
    )


def test_a_run_folder_with_a_damaged_model_is_not_described_as_if_nothing_were(
    whole_way, folder, say
):
    flip(folder / "run/model.h5")
    code, out, err = say("info", "run")
    assert (code, out) == (3, "") and "run/model.h5: is damaged" in err and err.count("\n") == 1


def test_a_record_whose_values_are_not_finite_is_not_intact(folder):
    record("record.h5")

    def fill(file):
        with hdf5.open_hdf5("record.h5", "record", 1) as old:
            for name in ("meta", "augment", "logits"):
                old.copy(name, file)
            file["logits"][1, 3, 0] = np.inf

    hdf5.write_hdf5("infinite.h5", "record", 1, fill)
    with pytest.raises(DataError, match="infinite.h5: logits holds NaN or infinite"):
        describe("infinite.h5")


def test_whatever_is_not_ours_is_exit_3_and_one_line(folder, say):
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("text\n" * 200)
    (folder / "short").write_bytes(b"\x89minipc\nclouds")
    (folder / "hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "foreign").mkdir()
    (folder / "foreign/run.json").write_text('{"name": "somebody else"}')
    (folder / "deep").mkdir()
    (folder / "deep/run.json").write_text("[" * 100000)
    (folder / "odd").mkdir()
    (folder / "odd/run.json").mkdir()
    (folder / "plan").mkdir()
    os.mkfifo(folder / "plan/plan.json")
    hdf5.write_hdf5("new-kind.h5", "hologram", 1, lambda file: hdf5.write_meta(file, {}))
    hdf5.write_hdf5("version.h5", "clouds", 9, lambda file: hdf5.write_meta(file, {}))
    hdf5.write_hdf5("hollow.h5", "model", 1, lambda file: hdf5.write_meta(file, {}))
    for name, told in {
        "none": "No such file",
        "empty": "is empty",
        "text": "not a minipc file",
        "short": "damaged",
        "hdf5": "is HDF5, but not made by minipc",
        "folder": "neither run.json nor plan.json",
        "pipe": "found a pipe",
        "foreign": "not of a run of ours",
        "deep": "run.json",
        "odd": "found a folder",
        "plan": "found a pipe",
        "new-kind.h5": "'hologram' file",
        "version.h5": "newer format version 9",
        "hollow.h5": "misses",
    }.items():
        code, out, err = say("info", name)
        assert (code, out) == (3, "") and told in err and name in err and err.count("\n") == 1, (
            name,
            err,
        )


def test_the_folder_of_a_study_is_told_as_such(whole_way, folder, say):
    os.makedirs("study")
    shutil.copytree("run", "study/labels-0")
    code, out, err = say("info", "study")
    assert (code, out) == (3, "") and "name a run in it, such as study/labels-0" in err
    assert "minipc report study" in err


def half(out):
    """Begin a recording of PLAN and commit three of its six shards; return the Store."""
    store = Store(out, PLAN, "clouds.h5")
    for view, first in ((0, 0), (0, 4), (1, 8)):
        shard(store, view, first)
    return store


def test_an_unfinished_recording_says_which_part_of_it_is_there(folder, say):
    half("r.h5")
    (folder / "r.h5.parts/view-00000-row-00000000.h5.bad").write_text("set aside earlier")
    before = snapshot(folder)
    for path in ("r.h5.parts", "r.h5.parts/", "r.h5.parts/plan.json"):
        code, out, err = say("info", path)
        assert code == 0 and "3 of 6 shards are there, intact" in out and "0.h5.bad" in out, err
    values = json.loads(say("info", "r.h5.parts", "--json")[1])
    assert (values["shards"], values["present"], values["intact"]) == (6, 3, True)
    assert values["run_id"] == PLAN.recording_id and values["other_files"] == [
        "view-00000-row-00000000.h5.bad"
    ]
    assert snapshot(folder) == before


def test_views_that_a_record_holds_already_are_not_missed_in_its_extension(folder):
    record("r.h5")
    more = with_fields(PLAN, views=4)
    shard(Store("r.h5", more), 3, 0, more)
    described = describe("r.h5.parts")
    assert [described[name] for name in ("finished_views", "shards", "present")] == [2, 6, 1]
    assert any("holds the first 2 views" in line for line in of_info(described))


def test_one_shard_is_described_by_the_plan_beside_it(folder, say):
    half("r.h5")
    code, out, _ = say("info", shard_path("r.h5", 1, 8))
    assert code == 0 and "rows 8 to 9 of view 1" in out and "intact" in out
    values = json.loads(say("info", shard_path("r.h5", 0, 4), "--json")[1])
    assert (values["kind"], values["view"], values["first"], values["rows"]) == ("shard", 0, 4, 4)
    shutil.copy(shard_path("r.h5", 0, 4), "elsewhere.h5")
    assert say("info", "elsewhere.h5")[0] == 3  # no plan
    write_plan("plan.json", PLAN)
    code, _, err = say("info", "elsewhere.h5")
    assert code == 3 and "is no shard of the plan.json beside it" in err


def test_a_bad_shard_is_told_and_left_where_it_is(folder, say):
    half("r.h5")
    flip(folder / shard_path("r.h5", 0, 4))
    before = snapshot(folder)
    code, out, err = say("info", "r.h5.parts")
    assert (code, out) == (3, "") and err.count("\n") == 1
    assert "row-00000004.h5: is damaged" in err and "1 shards are bad and 2 intact" in err
    assert say("info", shard_path("r.h5", 0, 4))[0] == 3
    shutil.copy(shard_path("r.h5", 0, 0), shard_path("r.h5", 1, 0))  # whole, but of another place
    assert "view is 0, expected 1" in say("info", shard_path("r.h5", 1, 0))[2]
    os.unlink(shard_path("r.h5", 1, 0))
    os.utime("r.h5.parts", ns=(0, before["r.h5.parts"][1]))
    assert snapshot(folder) == before


def test_a_damaged_plan_is_told_and_left_where_it_is(folder, say):
    half("r.h5")
    plan = folder / "r.h5.parts/plan.json"
    plan.write_bytes(plan.read_bytes().replace(b'"seed":7', b'"seed":8'))
    before = snapshot(folder)
    code, _, err = say("info", "r.h5.parts")
    assert code == 3 and "plan.json: is damaged" in err and snapshot(folder) == before
    plan.write_bytes(canonical_json({"plan": {}, "run_id": ""}))
    assert say("info", "r.h5.parts")[0] == 3


def test_every_kind_of_file_has_its_description():
    from minipc.report.describe import OF_KIND

    assert set(OF_KIND) == set(KINDS)


def test_a_run_folder_that_does_not_fit_together_is_not_described_as_if_it_did(
    whole_way, folder, say
):
    (folder / "run/model.h5").unlink()
    code, out, _ = say("info", "run")
    assert (
        code == 0
        and "run/model.h5: is missing; minipc train --resume --out run writes it again" in out
    )
    settings = json.loads((folder / "run/run.json").read_text())
    (folder / "run/run.json").write_text(json.dumps(settings | {"name": "other"}))
    code, out, err = say("info", "run")
    assert (code, out) == (
        3,
        "",
    ) and "checkpoint.h5 belongs to another run than run.json beside it" in err
