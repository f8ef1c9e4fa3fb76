"""The record store: a kill, a full disk or a bad file does not harm a recording."""

import errno
import fcntl
import io
import os
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipc.data.augment import ORDER
from minipc.errors import DataError, MinipcError, UsageError
from minipc.record.fields import record_fields
from minipc.record.plan import Plan
from minipc.record.reader import RecordReader
from minipc.record.store import Store
from minipc.record.writer import write_rows
from minipc.storage import files, hdf5
from minipc.storage.layout import Layout
from reference_tests.formats.test_files import killed_at

PLAN = Plan(
    clouds=10,
    classes=3,
    logits="float16",
    block=2,
    rows_per_shard=4,
    augment={"scale_low": 0.5, "order": ORDER},
    seed=7,
    points_hash="a" * 64,
    labels_hash="b" * 64,
    teacher_id="teacher",
    class_names=("bed", "bowl", "desk"),
    up_axis="z",
    normalisation="none",
    views=2,
)
MADE = {"numpy": "2.4", "device": "test"}


def rows(plan, view, first, stop):
    """What any recorder computes for these rows, and a KL."""
    rng = np.random.default_rng([plan.seed, view, first])
    scale, shift = rng.standard_normal((2, stop - first, 3), np.float32)
    logits = rng.standard_normal((stop - first, plan.classes)).astype(plan.logits)
    return scale, shift, logits, (1 + view) * 1e-6


def record(out, plan=PLAN, order=lambda shards: shards, made=MADE):
    """Record what is missing and finalise; return the Store."""
    store = Store(str(out), plan, "clouds.h5")
    for view, first, stop in order(store.missing()):
        *arrays, kl = rows(plan, view, first, stop)
        store.commit_shard(view, first, *arrays, {**made, "max_kl": kl})
    assert store.finalise() == []
    return store


def shard(store, view, first, plan=PLAN):
    *arrays, kl = rows(plan, view, first, min(first + plan.rows_per_shard, plan.clouds))
    store.commit_shard(view, first, *arrays, {**MADE, "max_kl": kl})


def shard_path(out, view, first):
    return f"{out}.parts/view-{view:05d}-row-{first:08d}.h5"


@pytest.fixture(autouse=True, scope="module")
def no_disk():
    """No test here cuts the power, so none waits for a disk; killed_at still counts fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture
def out(tmp_path):
    return tmp_path / "record.h5"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """{views: bytes of an uninterrupted recording of PLAN}."""
    found = {}
    for views in (1, 2, 3):
        path = tmp_path_factory.mktemp("golden") / "record.h5"
        record(path, replace(PLAN, views=views))
        found[views] = path.read_bytes()
    return found


# The plan


def test_a_plan_comes_back_from_json_and_its_identity_ignores_the_extent():
    text = files.canonical_json(PLAN.to_dict())
    assert Plan.from_dict(files.parse_json(text, "x"), "x") == PLAN
    assert (
        PLAN.recording_id
        == replace(PLAN, views=9).recording_id
        != replace(PLAN, seed=8).recording_id
    )
    assert PLAN.same_identity(replace(PLAN, views=9)) and not PLAN.same_identity(
        replace(PLAN, seed=8)
    )


def test_the_shards_of_a_plan_cover_every_row_once_in_order():
    assert list(PLAN.shards()) == [(v, *part) for v in (0, 1) for part in ((0, 4), (4, 8), (8, 10))]
    assert PLAN.rows == 20 and PLAN.bytes_per_view == 24 + 6
    assert replace(PLAN, logits="float32").bytes_per_view == 24 + 12


def test_every_field_of_the_identity_changes_the_run_id_and_is_told():
    changed = dict(
        clouds=11,
        classes=2,
        logits="float32",
        block=4,
        rows_per_shard=8,
        seed=0,
        augment={"order": ORDER, "scale_low": 1.0},
        points_hash="c",
        labels_hash="c",
        teacher_id="c",
        class_names=("x", "y", "z"),
        up_axis="y",
        normalisation="unit_sphere",
    )
    assert {*changed} == {*PLAN.identity} - {"format"}
    for name, value in changed.items():
        more = {"class_names": ("bed", "bowl")} if name == "classes" else {}
        other = replace(PLAN, **{name: value}, **more)
        assert other.recording_id != PLAN.recording_id and name in PLAN.differences(other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clouds": 0},
        {"views": True},
        {"seed": -1},
        {"logits": "float64"},
        {"rows_per_shard": 5},
        {"rows_per_shard": 8192},
        {"class_names": ("a",)},
        {"teacher_id": None},
        {"format": 2},
        {"block": 2.0},
    ],
)
def test_a_plan_that_cannot_be_recorded_is_refused(wrong):
    with pytest.raises(MinipcError):
        replace(PLAN, **wrong)
    with pytest.raises(DataError, match="^file: "):
        Plan.from_dict({**PLAN.to_dict(), **wrong}, "file")


def test_what_the_caller_changes_later_does_not_change_the_identity():
    augment = {"ranges": [1, 2]}
    plan = replace(PLAN, augment=augment)
    before = plan.recording_id
    augment["ranges"].append(3)
    assert replace(plan, views=3).recording_id == before


# Recording


def test_a_record_holds_every_row_under_its_view_and_cloud(out):
    store = record(out)
    assert os.listdir(out.parent) == ["record.h5"] and store.missing() == []
    with RecordReader(str(out)) as reader:
        assert (reader.plan, reader.views) == (PLAN, 2)
        for view in range(2):
            parts = [rows(PLAN, *part)[:3] for part in PLAN.shards() if part[0] == view]
            for found, wanted in zip(
                reader.view(view), map(np.concatenate, zip(*parts, strict=True)), strict=True
            ):
                assert found.dtype == wanted.dtype
                np.testing.assert_array_equal(found, wanted)
        assert reader.meta == {
            "plan": PLAN.to_dict(),
            "run_id": PLAN.recording_id,
            "data_file": "clouds.h5",
            "provenance": [{"made_with": MADE, "rows": 20}],
            "max_kl_of_rounding": 2e-6,
        }
        for view in (-1, 2):
            with pytest.raises(UsageError, match="expected 0 to 1"):
                reader.view(view)


def test_a_finished_record_opens_with_plain_h5py(out):
    record(out)
    with h5py.File(out, "r") as file:
        shapes = {field.name: file[field.name].shape for field in record_fields("float16")}
    assert shapes == {
        "augment/scale": (2, 10, 3),
        "augment/shift": (2, 10, 3),
        "logits": (2, 10, 3),
    }
    assert os.path.getsize(out) - PLAN.rows * PLAN.bytes_per_view < 3400
    assert abs(os.path.getsize(out) - PLAN.estimated_bytes) < 1000


def test_the_bytes_do_not_depend_on_the_order_of_the_shards_or_on_interruptions(out, golden):
    record(out, order=lambda shards: shards[::-1])
    assert out.read_bytes() == golden[2]
    out.unlink()
    for count in (1, 0, 2):
        store = Store(out, PLAN, "clouds.h5")
        for view, first, _ in store.missing()[-count:] if count else []:
            shard(store, view, first)
    assert len(store.missing()) == 3
    record(out)
    assert out.read_bytes() == golden[2]


def test_views_added_to_a_finished_record_equal_recording_them_all_at_once(out, golden):
    for views in (1, 2, 3):
        store = record(out, replace(PLAN, views=views))
        assert out.read_bytes() == golden[views] and store.plan.views == views


def test_fewer_views_than_a_finished_record_holds_keep_them_all(out, golden):
    record(out)
    store = record(out, replace(PLAN, views=1))
    assert store.plan.views == 2 and out.read_bytes() == golden[2]
    assert os.listdir(out.parent) == ["record.h5"]


def test_shards_beyond_the_views_asked_for_stay_and_are_used_later(out, golden):
    store = Store(out, replace(PLAN, views=3))
    shard(store, 2, 4)
    one = Store(out, replace(PLAN, views=1), "clouds.h5")
    for view, first, _ in one.missing():
        shard(one, view, first)
    assert one.finalise() == ["plan.json", "view-00002-row-00000004.h5"]
    assert out.read_bytes() == golden[1]
    assert (2, 4, 8) not in Store(out, replace(PLAN, views=3)).missing()
    record(out, replace(PLAN, views=3))
    assert out.read_bytes() == golden[3] and os.listdir(out.parent) == ["record.h5"]


def test_provenance_is_told_once_for_each_kind_of_machine(out):
    store = Store(out, PLAN)
    shard(store, 0, 0)
    record(out, made={"blas": "1.0"})
    with RecordReader(out) as found:
        assert found.meta["provenance"] == [
            {"made_with": {"blas": "1.0"}, "rows": 16},
            {"made_with": MADE, "rows": 4},
        ]


def test_a_record_that_is_not_complete_is_not_written(out):
    store = Store(out, PLAN)
    shard(store, 0, 0)
    with pytest.raises(DataError, match="5 of 6 shards are missing; run the same command again"):
        store.finalise()
    assert not out.exists() and len(Store(out, PLAN).missing()) == 5


@pytest.mark.parametrize(
    "name, change",
    [
        ("scale", lambda x: x[:3]),
        ("shift", lambda x: x[:, :2]),
        ("logits", lambda x: x.astype("f4")),
        ("scale", lambda x: x.astype("f8")),
        ("logits", lambda x: x * np.float16("nan")),
        ("shift", lambda x: x / np.float32(1e-45) * np.float32(1e38)),
        ("logits", lambda x: x.ravel()),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:divide:RuntimeWarning")
def test_arrays_that_are_no_shard_are_refused_and_named(out, name, change):
    store = Store(out, PLAN)
    arrays = dict(zip(("scale", "shift", "logits"), rows(PLAN, 0, 0, 4)[:3], strict=True))
    with pytest.raises(DataError, match=name):
        store.commit_shard(0, 0, **{**arrays, name: change(arrays[name])}, provenance=MADE)
    assert os.listdir(out.parent) == []


def test_a_wrong_axis_is_named_with_both_lengths(out):
    scale, shift, logits, _ = rows(PLAN, 0, 0, 4)
    with pytest.raises(DataError, match="axis N of augment/scale is 3, but it is 4 elsewhere"):
        Store(out, PLAN).commit_shard(0, 0, scale[:3], shift, logits, MADE)


@pytest.mark.parametrize("view, first", [(2, 0), (-1, 0), (0, 2), (0, 12), (0, -4)])
def test_a_shard_that_is_not_in_the_plan_is_refused(out, view, first):
    with pytest.raises(UsageError, match="no shard of the plan begins"):
        Store(out, PLAN).commit_shard(view, first, *rows(PLAN, 0, 0, 4)[:3], MADE)


@pytest.mark.parametrize("kl", [-1.0, float("nan"), float("inf"), "x", True])
def test_a_divergence_that_is_none_is_refused(out, kl):
    with pytest.raises(DataError, match="max_kl"):
        Store(out, PLAN).commit_shard(0, 0, *rows(PLAN, 0, 0, 4)[:3], {"max_kl": kl})


# Another recording in the same place


def test_another_identity_in_the_same_place_is_refused_before_and_after_finalising(out, golden):
    other = replace(PLAN, seed=8, augment={**PLAN.augment, "scale_low": 0.25})
    told = (
        "augment.scale_low is 0.5 there and 0.25 here; seed is 7 there and 8 here; choose another"
    )
    Store(out, PLAN).begin()
    for _ in range(2):
        with pytest.raises(DataError, match=told):
            Store(out, other)
        record(out)
    assert out.read_bytes() == golden[2]


def test_a_recorder_of_another_identity_that_began_together_is_stopped_at_its_next_shard(out):
    first = Store(out, PLAN)
    first.begin()
    shutil.rmtree(f"{out}.parts")
    Store(out, replace(PLAN, seed=8)).begin()
    with pytest.raises(DataError, match="holds another recording: seed is 8 there and 7 here"):
        shard(first, 0, 0)


def test_two_recorders_of_one_plan_do_not_harm_each_other(out, golden):
    slow, fast = Store(out, PLAN, "clouds.h5"), Store(out, PLAN, "clouds.h5")
    for view, first, _ in fast.missing():
        shard(fast, view, first)
        shard(slow, view, first)
    fast.finalise()
    shard(slow, 0, 0)  # the parts are gone
    assert slow.finalise() == [] and out.read_bytes() == golden[2]
    assert os.listdir(out.parent) == ["record.h5"]


def test_a_recorder_of_fewer_views_cannot_overwrite_a_longer_record(out, golden):
    short = Store(out, replace(PLAN, views=1), "clouds.h5")
    for view, first, _ in short.missing():
        shard(short, view, first)
    record(out, replace(PLAN, views=3))
    short.finalise()
    assert out.read_bytes() == golden[3]


def test_finalising_waits_for_another_that_is_at_it(out, golden):
    store = Store(out, PLAN, "clouds.h5")
    for view, first, _ in store.missing():
        shard(store, view, first)
    fd = os.open(f"{out}.parts", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    thread = threading.Thread(target=store.finalise)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not out.exists()
    os.close(fd)
    thread.join(120)  # in seconds, for a busy machine
    assert out.read_bytes() == golden[2]


# Damage


def test_lost_and_damaged_shards_are_set_aside_told_and_recorded_again(out, golden):
    store = Store(out, PLAN, "clouds.h5")
    for view, first, _ in store.missing():
        shard(store, view, first)
    os.unlink(shard_path(out, 0, 4))
    for damage in (lambda data: data[:-1], lambda data: data[:700] + b"?" + data[701:]):
        path = shard_path(out, 1, 0)
        with open(path, "rb") as file:
            good = file.read()
        with open(path, "wb") as file:
            file.write(damage(good))
        again = Store(out, PLAN, "clouds.h5")
        assert again.missing() == [(0, 4, 8), (1, 0, 4)] and os.path.exists(path)
        (line,) = again.begin()
        assert "is damaged" in line and not os.path.exists(path)
        shard(again, 1, 0)
    shard(again, 0, 4)
    name = os.path.basename(path)
    assert again.finalise() == [f"{name}.bad", f"{name}.bad-2"]
    assert out.read_bytes() == golden[2]


def test_a_shard_that_is_damaged_before_the_merge_stops_it(out):
    store = Store(out, PLAN)
    for view, first, _ in store.missing():
        shard(store, view, first)
    os.truncate(shard_path(out, 1, 8), 1000)
    with pytest.raises(DataError, match="1 of 6 shards are missing"):
        store.finalise()
    assert store.missing() == [(1, 8, 10)] and not out.exists()


def test_a_shard_of_another_place_or_plan_is_not_taken_for_this_one(out, tmp_path):
    store = Store(out, PLAN)
    other = Store(tmp_path / "other.h5", replace(PLAN, seed=8))
    shard(store, 0, 0)
    shard(other, 0, 0, replace(PLAN, seed=8))
    shutil.copy(shard_path(out, 0, 0), shard_path(out, 1, 0))
    shutil.copy(shard_path(tmp_path / "other.h5", 0, 0), shard_path(out, 0, 4))
    os.mkdir(shard_path(out, 0, 8))
    os.mkfifo(shard_path(out, 1, 4))
    bad = store.begin()
    assert [line.split(": ")[1].split()[0] for line in bad] == [
        "run_id",
        "expected",
        "view",
        "expected",
    ]
    assert len(store.missing()) == 5


def test_a_damaged_plan_is_set_aside_and_the_shards_still_count(out, golden):
    store = Store(out, PLAN, "clouds.h5")
    for view, first, _ in store.missing():
        shard(store, view, first)
    path = f"{out}.parts/plan.json"
    with open(path, "rb") as file:
        text = file.read()
    for damaged in (b"", text[:-1], text.replace(b'"seed":7', b'"seed":8')):
        with open(path, "wb") as file:
            file.write(damaged)
        again = Store(out, PLAN, "clouds.h5")
        assert len(again.begin()) == 1 and again.missing() == []
    assert again.finalise() == ["plan.json.bad", "plan.json.bad-2", "plan.json.bad-3"]
    assert out.read_bytes() == golden[2]


def test_every_truncation_and_bit_flips_of_a_shard_are_set_aside(out):
    store = Store(out, PLAN)
    shard(store, 0, 8)
    path = shard_path(out, 0, 8)
    with open(path, "rb") as file:
        whole = file.read()
    changes = [whole[:size] for size in range(0, len(whole), 31)]
    for at in range(0, len(whole), 11):
        changes.append(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
    for changed in changes:
        with open(path, "wb") as file:
            file.write(changed)
        with pytest.raises(DataError):
            store.parts.read(0, 8, 10)


def test_a_damaged_record_is_refused_by_recorder_and_reader_and_left_alone(out, golden):
    out.write_bytes(golden[2][:-1])
    for open_it in (RecordReader, lambda path: Store(path, PLAN)):
        with pytest.raises(DataError, match="is damaged: it has"):
            open_it(str(out))
    assert os.listdir(out.parent) == ["record.h5"]


def test_a_shard_is_no_record_and_a_missing_record_is_told(out):
    shard(Store(out, PLAN), 0, 0)
    with pytest.raises(DataError, match="is a minipc shard file, but a record file is wanted"):
        RecordReader(shard_path(out, 0, 0))
    with pytest.raises(DataError, match="cannot be read .No such file"):
        RecordReader(str(out))


def rewrite(out, values, meta):
    """Commit a self-consistent record of these arrays and this meta."""

    def fill(file):
        hdf5.write_meta(file, meta)
        for name, array in values.items():
            file[name] = array

    hdf5.write_hdf5(out, "record", 1, fill)


def test_a_hostile_record_with_a_right_digest_is_refused(out):
    record(out)
    with RecordReader(out) as found:
        good = {name: stored.read() for name, stored in found.rows.items()}
        meta = found.meta
    rewrite(out, good, meta)
    RecordReader(out).close()
    plan = meta["plan"]
    for change, why in [
        ({"run_id": "0" * 64}, "contradicts itself"),
        ({"data_file": "../../etc/passwd"}, "contradicts itself"),
        ({"data_file": 5}, "contradicts itself"),
        ({"provenance": []}, "contradicts itself"),
        ({"provenance": 3}, "misses"),
        ({"provenance": [{"rows": "20", "made_with": {}}]}, "contradicts itself"),
        ({"max_kl_of_rounding": "x"}, "max_kl"),
        ({"more": 1}, "unknown"),
        ({"plan": 3}, "misses"),
        ({"plan": {**plan, "seed": -1}}, "seed"),
        ({"plan": {**plan, "views": 10**9}}, "contradicts itself"),
        ({"plan": {**plan, "format": 2}}, "format 2"),
        ({"plan": {**plan, "augment": {}}}, "contradicts itself"),
    ]:
        rewrite(out, good, {**meta, **change})
        with pytest.raises(DataError, match=why):
            RecordReader(out)
    for name, array in [
        ("logits", good["logits"][:, :9]),
        ("logits", good["logits"].astype("f4")),
        ("augment/scale", good["augment/scale"][0]),
        ("augment/more", np.zeros(3)),
        ("more", np.zeros(3)),
    ]:
        rewrite(out, {**good, name: array}, meta)
        with pytest.raises(DataError):
            RecordReader(out)
    good["logits"][1, 3, 0] = np.inf
    rewrite(out, good, meta)
    with RecordReader(out) as reader:
        reader.view(0)
        with pytest.raises(DataError, match="logits holds NaN or infinite"):
            reader.view(1)


def test_a_record_belongs_to_its_data_alone(out):
    record(out)
    described = {"class_names": ["bed", "bowl", "desk"], "up_axis": "z", "normalisation": "none"}
    data = SimpleNamespace(points_hash="a" * 64, labels_hash="b" * 64, described=described)
    with RecordReader(out) as reader:
        reader.check_belongs(data)
        for change in (
            {"points_hash": "x"},
            {"labels_hash": "x"},
            {"described": {**described, "up_axis": "y"}},
            {"described": {**described, "class_names": ["bowl", "bed", "desk"]}},
        ):
            name = [*change.get("described", change)][-1] if "described" not in change else ""
            with pytest.raises(DataError, match=f"was made from other data: .*{name}"):
                reader.check_belongs(SimpleNamespace(**{**vars(data), **change}))


# Kills and full disks


@pytest.mark.parametrize("before", [0, 1])
def test_killed_at_any_step_a_recording_continues_to_the_same_bytes(tmp_path, before):
    """A recording from nothing, and one more view for a finished record of one."""
    small = replace(PLAN, clouds=6)  # two shards a view
    old, plan = replace(small, views=1), replace(small, views=before + 1)
    record(tmp_path / "old.h5", old)
    record(tmp_path / "whole.h5", plan)
    whole = (tmp_path / "whole.h5").read_bytes()
    shutil.copy(tmp_path / "old.h5", tmp_path / "count.h5") if before else None
    with killed_at(None) as count:
        record(tmp_path / "count.h5", plan)
    assert count.steps > 40
    for step in range(1, count.steps + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        out = folder / "record.h5"
        shutil.copy(tmp_path / "old.h5", out) if before else None
        with killed_at(step, torn=True):
            record(out, plan)
        parts = os.listdir(f"{out}.parts") if os.path.isdir(f"{out}.parts") else []
        held = sum(name.startswith("view") for name in parts)
        store = Store(out, plan, "clouds.h5")
        finished = out.exists() and out.read_bytes() == whole  # never half of it
        assert len(store.missing()) == (0 if finished else 2 - held)  # no committed shard is lost
        assert not store.parts.damaged
        record(out, plan)
        assert out.read_bytes() == whole and os.listdir(folder) == ["record.h5"]


@pytest.mark.parametrize("name", ["posix_fallocate", "pwrite", "fsync"])
def test_a_disk_that_fills_up_at_any_moment_loses_nothing(out, golden, monkeypatch, name):
    real = getattr(os, name)
    for allowed in range(0, 1000, 1 if name != "pwrite" else 3):
        left = allowed

        def full(*args):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            try:
                record(out)
                break
            except MinipcError as reason:
                assert "No space left on device" in str(reason) and "free some space" in str(reason)
        assert not any(
            entry.endswith(".tmp") for folder, _, names in os.walk(out.parent) for entry in names
        )
    assert allowed and out.read_bytes() == golden[2]


def test_without_fallocate_the_space_is_reserved_with_zeros(out, golden, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    record(out)
    assert out.read_bytes() == golden[2]


def test_no_row_can_be_left_unwritten(out):
    sizes = {"V": 2, "N": 10, "D": 3, "K": 3}
    names = ("augment/scale", "augment/shift", "logits")
    arrays = dict(zip(names, rows(PLAN, 0, 0, 10)[:3], strict=True))
    with pytest.raises(DataError, match="10 rows are missing"):
        write_rows(out, "record", 1, {}, record_fields("float16"), sizes, [(0, 0, arrays)])
    assert os.listdir(out.parent) == []


@given(
    st.lists(st.tuples(st.sampled_from("wr"), st.integers(0, 60), st.integers(0, 20)), max_size=12)
)
def test_the_layout_in_memory_is_a_file(operations):
    layout, plain = Layout(), io.BytesIO(bytes(100))
    for number, (what, at, length) in enumerate(operations):
        layout.seek(at)
        plain.seek(at)
        if what == "w":
            layout.write(bytes([number + 1]) * length)
            plain.write(bytes([number + 1]) * length)
        else:
            buffers = bytearray(length), bytearray(length)
            assert layout.readinto(buffers[0]) == plain.readinto(buffers[1]) == length
            assert buffers[0] == buffers[1]
        assert layout.tell() == plain.tell()


def test_a_record_whose_views_are_another_formula_is_refused_by_every_reader(tmp_path):
    other = replace(PLAN, augment={"scale_low": 0.5, "order": "points + shift, then * scale"})
    out = str(tmp_path / "other.h5")
    with pytest.raises(DataError, match=r"'points \+ shift, then \* scale'; this minipc draws"):
        record(out, other)
        RecordReader(out)
