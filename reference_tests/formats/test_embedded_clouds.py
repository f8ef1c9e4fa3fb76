"""Clouds in a record: lossless, verified, kept, and enough to train from."""

import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipc.data.clouds import Clouds, Splits, write_clouds
from minipc.errors import DataError
from minipc.progress import quiet
from minipc.record import embedded
from minipc.record.reader import RecordReader
from minipc.record.recorder import record
from minipc.record.recording import Recording
from minipc.storage import files, hdf5
from minipc.verbs.find import read_data
from reference_tests.formats.test_files import killed_at

GRID = 2.0**-14


def clouds_of(points):
    points = np.asarray(points, np.float32)
    return Clouds(points, np.arange(len(points)) % 3, ("bed", "bowl", "desk"), "z", "none")


def on_grid(seed=0, n=70, m=40, p=12, q=9):
    """Splits on multiples of 2^-14 up to 1, the test clouds of another number of points."""
    rng = np.random.default_rng(seed)
    train, test = (rng.integers(-(2**14), 2**14, shape) * GRID for shape in ((n, p, 3), (m, q, 3)))
    train[0, 0, 0] = -1
    return Splits(clouds_of(train), clouds_of(test))


def off_grid(splits):
    """The same splits with one coordinate of the test split one ulp off the grid."""
    points = splits.test.points.copy()
    points[0, 0, 0] = np.nextafter(np.float32(0.75), np.float32(1))
    return Splits(splits.train, replace(splits.test, points=points))


def teacher(points):
    """Logits that are the first point's coordinates."""
    return points[:, 0, :]


def write(out, splits, views=2, carry=True, logits_of=teacher, say=quiet, **more):
    return record(
        Recording(
            splits.train,
            "first-point",
            str(out),
            views,
            force=True,
            with_clouds=splits if carry else None,
            **more,
        ),
        logits_of,
        say=say,
    )


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.points.dtype == np.float32 and one.points.tobytes() == other.points.tobytes()
        assert (one.points_hash, one.labels_hash) == (other.points_hash, other.labels_hash)
        assert one.described == other.described


@pytest.fixture
def splits():
    return on_grid()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "record.h5"


# Storage


def test_clouds_on_a_grid_come_back_from_int16_bit_for_bit(out, splits):
    done = write(out, splits)
    assert (done.clouds_as, done.clouds_bytes) == (
        "int16",
        2 * 3 * (70 * 12 + 40 * 9) + 8 * (70 + 40),
    )
    with RecordReader(str(out)) as reader:
        assert reader.meta["clouds"] == {"dtype": "int16", "exponent": -14, "source": None}
        assert_same(reader.clouds(), splits)
        scale, shift, logits = reader.view(1)  # the rows are as without clouds
        np.testing.assert_array_equal(
            logits, (splits.train.points[:, 0] * scale + shift).astype(np.float16)
        )


def test_one_ulp_off_the_grid_keeps_float32(out, splits):
    splits = off_grid(splits)
    assert write(out, splits).clouds_as == "float32"
    with RecordReader(str(out)) as reader:
        assert reader.meta["clouds"]["exponent"] is None
        assert_same(reader.clouds(), splits)


@pytest.mark.parametrize(
    "largest, exponent",
    [
        (1.0, -14),
        (32767 * 2.0**-15, -15),
        (32769 * 2.0**-15, None),
        (16385 * 2.0**-14, -14),
        (0.25, -16),
        (32767.0, 0),
        (32768.0, 1),
        (2.0**-149, -163),
        (2.0**127, 113),
        (0.0, -15),
    ],
)
def test_the_grid_is_the_finest_whose_largest_point_fits(largest, exponent):
    points = np.zeros((3, 1, 3), np.float32)
    points[1, 0, 2] = -largest if largest else 0
    assert (
        embedded.encode(Splits(clouds_of(points), clouds_of(points))).meta["exponent"] == exponent
    )


def test_both_splits_have_one_exponent_that_of_the_larger(splits):
    far = Splits(splits.train, replace(splits.test, points=splits.test.points * 4))
    assert (
        embedded.encode(far).meta["dtype"] == "float32"
    )  # 2^-14 in train, 4 in test: more than 16 bits
    coarse = Splits(clouds_of(np.ones((3, 1, 3)) * 0.5), clouds_of(np.ones((3, 1, 3)) * 64))
    assert embedded.encode(coarse).meta == {"dtype": "int16", "exponent": -8, "source": None}


@pytest.mark.parametrize("value", [-0.0, 1e-40, 1 / 3])
def test_what_int16_would_change_in_any_bit_stays_float32(value, splits):
    points = splits.train.points.copy()
    points[3, 2, 1] = value
    changed = Splits(replace(splits.train, points=points), splits.test)
    assert embedded.encode(changed).meta["dtype"] == "float32"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_any_clouds_come_back_bit_for_bit(values):
    splits = Splits(*(clouds_of(np.array(values).reshape(1, 1, 3)) for _ in range(2)))
    meta, arrays = embedded.encode(splits)
    for name, clouds in zip(Splits._fields, splits, strict=True):
        stored = arrays[f"clouds/{name}/points"]
        found = (
            stored
            if meta["exponent"] is None
            else np.ldexp(stored.astype(np.float32), meta["exponent"])
        )
        assert found.tobytes() == clouds.points.tobytes()


def header_version(path):
    return int.from_bytes(path.read_bytes()[24:28], "little")


def test_a_record_with_clouds_has_version_2_the_same_run_and_the_same_rows(tmp_path, splits):
    one, two = tmp_path / "1.h5", tmp_path / "2.h5"
    without, with_them = write(one, splits, carry=False), write(two, splits)
    assert (header_version(one), header_version(two)) == (1, 2)
    assert without.run_id == with_them.run_id and (without.clouds_as, without.clouds_bytes) == (
        None,
        0,
    )
    with RecordReader(one) as a, RecordReader(two) as b:
        assert (
            a.plan == b.plan
            and {**b.meta, "clouds": 0} == {**a.meta, "clouds": 0}
            and not a.stored_clouds
        )
        for name, stored in a.rows.items():
            assert stored.read().tobytes() == b.rows[name].read().tobytes()
    with RecordReader(str(one)) as reader:
        assert reader.clouds() is None


def test_embedded_clouds_open_with_plain_h5py(out, splits):
    write(out, splits)
    with h5py.File(out, "r") as file:
        assert {
            name: (file[f"clouds/{name}/points"].dtype, file[f"clouds/{name}/points"].shape)
            for name in file["clouds"]
        } == {"train": (np.int16, (70, 12, 3)), "test": (np.int16, (40, 9, 3))}


# Adding and keeping


@pytest.mark.parametrize("change", [lambda splits: splits, off_grid])
def test_clouds_and_views_added_in_any_order_give_the_same_bytes(tmp_path, splits, change):
    splits, whole = change(splits), tmp_path / "whole.h5"
    write(whole, splits, views=3)
    for number, steps in enumerate(
        [
            [(3, False), (3, True)],
            [(1, True), (3, False)],
            [(1, True), (3, True)],
            [(1, False), (2, True), (3, False)],
            [(3, True), (1, False)],
            [(3, True), (3, True)],
        ]
    ):
        out = tmp_path / f"{number}.h5"
        for views, carry in steps:
            done = write(out, splits, views, carry)
        assert out.read_bytes() == whole.read_bytes(), steps
        assert done.views == 3 and done.clouds_as
    assert not any(path.name.endswith(".parts") for path in tmp_path.iterdir())


def test_adding_clouds_to_a_finished_record_calls_no_teacher(out, splits):
    write(out, splits, carry=False)
    calls, said = [], []
    done = write(out, splits, logits_of=calls.append, say=said.append)
    assert not calls and done.clouds_per_second == 0 and done.clouds_as == "int16"
    assert said == [f"{out}: all 2 views are recorded already; writing the file"]


def test_a_finished_record_with_clouds_is_left_as_it_is(out, splits):
    write(out, splits)
    before = out.stat()
    write(out, splits)
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_killed_at_any_step_adding_clouds_leaves_the_old_record_or_the_new_one(
    tmp_path, splits, monkeypatch
):
    monkeypatch.setattr(
        os, "fsync", lambda fd: None
    )  # no power is cut here; killed_at counts them all the same
    old, whole = tmp_path / "old.h5", tmp_path / "whole.h5"
    write(old, splits, carry=False)
    write(whole, splits)
    before, after = old.read_bytes(), whole.read_bytes()
    shutil.copy(old, tmp_path / "count.h5")
    with killed_at(None) as count:
        write(tmp_path / "count.h5", splits)
    assert count.steps > 10
    for step in range(1, count.steps + 1):
        out = tmp_path / str(step) / "record.h5"
        out.parent.mkdir()
        shutil.copy(old, out)
        with killed_at(step, torn=True):
            write(out, splits)
        assert out.read_bytes() in (before, after)
        write(out, splits)
        assert out.read_bytes() == after and os.listdir(out.parent) == ["record.h5"]


# Refusals


def test_clouds_that_are_not_the_recorded_ones_are_not_embedded(out, splits):
    other = on_grid(seed=1)
    with pytest.raises(
        DataError,
        match="the training clouds to carry: are not those that are recorded: points_hash",
    ):
        record(
            Recording(splits.train, "t", str(out), 1, with_clouds=Splits(other.train, splits.test)),
            teacher,
        )
    turned = replace(splits.test, up_axis="y")
    with pytest.raises(DataError, match="the test split: up axis is y"):
        record(
            Recording(splits.train, "t", str(out), 1, with_clouds=Splits(splits.train, turned)),
            teacher,
        )
    assert os.listdir(out.parent) == []


def test_other_test_clouds_than_those_in_the_record_are_refused(out, splits):
    write(out, splits)
    before = out.read_bytes()
    with pytest.raises(DataError, match="carries other test clouds .*leave out --with-clouds"):
        write(out, Splits(splits.train, on_grid(seed=1).test))
    assert out.read_bytes() == before


def rewrite(out, change):
    """Commit the record in out again after change(arrays, meta), with a right digest."""
    with RecordReader(out) as found:
        arrays = {name: each.read() for name, each in {**found.rows, **found.stored_clouds}.items()}
        meta = found.meta
    arrays, meta = change(arrays, meta)

    def fill(file):
        hdf5.write_meta(file, meta)
        for name, array in arrays.items():
            file[name] = array

    hdf5.write_hdf5(out, "record", 2, fill)


def other_points(arrays, meta):
    points = arrays["clouds/train/points"].copy()
    points[0, 0, 0] ^= 1
    return {**arrays, "clouds/train/points": points}, meta


def other_labels(arrays, meta):
    return {**arrays, "clouds/train/labels": arrays["clouds/train/labels"][::-1].copy()}, meta


def other_exponent(arrays, meta):
    return arrays, {**meta, "clouds": {**meta["clouds"], "exponent": -13}}


@pytest.mark.parametrize(
    "change, named",
    [
        (other_points, "points_hash"),
        (other_labels, "labels_hash"),
        (other_exponent, "points_hash"),
    ],
)
def test_embedded_clouds_that_are_not_those_of_the_plan_are_refused(out, splits, change, named):
    write(out, splits)
    rewrite(out, change)
    with RecordReader(str(out)) as reader:
        reader.view(0)
        with pytest.raises(
            DataError, match=f"clouds/train: are not those that are recorded: {named}"
        ):
            reader.clouds()


def without(*names):
    return lambda arrays, meta: (
        {name: array for name, array in arrays.items() if name not in names},
        meta,
    )


def changed(name, change):
    return lambda arrays, meta: ({**arrays, name: change(arrays[name])}, meta)


def claimed(**more):
    return lambda arrays, meta: (arrays, {**meta, "clouds": {**meta["clouds"], **more}})


@pytest.mark.parametrize(
    "change, message",
    [
        (without("clouds/test/labels"), "misses"),
        (without("clouds/test/points", "clouds/test/labels"), "misses"),
        (lambda arrays, meta: ({**arrays, "clouds/more": np.zeros(3)}, meta), "foreign"),
        (
            lambda arrays, meta: (arrays, {name: meta[name] for name in meta if name != "clouds"}),
            "foreign",
        ),
        (
            changed("clouds/train/points", lambda x: x[:69]),
            "axis N of clouds/train/points is 69, but it is 70",
        ),
        (
            changed("clouds/test/labels", lambda x: x[:39]),
            "axis M of clouds/test/labels is 39, but it is 40",
        ),
        (changed("clouds/test/points", lambda x: x[..., :2]), "axis D"),
        (
            changed("clouds/test/points", lambda x: x.astype(np.float32)),
            "expected int16, found float32",
        ),
        (
            changed("clouds/test/labels", lambda x: x.astype(np.int32)),
            "expected int64, found int32",
        ),
        (claimed(exponent=None), "clouds as 'int16'"),
        (claimed(exponent=True), "clouds as"),
        (claimed(exponent=-300), "clouds as"),
        (claimed(dtype="int8"), "clouds as"),
        (claimed(more=1), "unknown"),
        (claimed(dtype="float32", exponent=None), "expected float32, found int16"),
    ],
)
def test_a_hostile_record_with_clouds_and_a_right_digest_is_refused(out, splits, change, message):
    write(out, splits)
    rewrite(out, change)
    with pytest.raises(DataError, match=message):
        RecordReader(str(out))


def test_clouds_that_no_network_could_learn_from_are_refused_when_read(out, splits):
    write(out, splits)
    rewrite(out, changed("clouds/test/labels", lambda x: x + 9))
    with (
        RecordReader(str(out)) as reader,
        pytest.raises(DataError, match="clouds/test: .*labels from 0 to 2"),
    ):
        reader.clouds()


# One file to carry


def test_a_record_with_clouds_is_data_when_the_data_file_is_gone(tmp_path, splits):
    data, out = str(tmp_path / "clouds.h5"), tmp_path / "record.h5"
    write_clouds(data, splits)
    write(out, splits, data_file="clouds.h5")
    assert_same(read_data(data), splits)
    os.unlink(data)
    assert_same(read_data(str(out)), splits)


def test_a_record_without_clouds_is_no_data_and_says_the_remedy(out, splits):
    write(out, splits, carry=False)
    with pytest.raises(DataError, match="is a record without clouds; .* --with-clouds") as caught:
        read_data(str(out))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_no_data(out):
    hdf5.write_hdf5(out, "model", 1, lambda file: hdf5.write_meta(file, {}))
    assert files.kind_of(out) == "model"
    with pytest.raises(DataError, match="is a minipc model file, but a clouds file is wanted"):
        read_data(str(out))
