"""Clouds, their file, and readers for what users have."""

import os
import shutil

import h5py
import numpy as np
import pytest

from minipc.data.clouds import (
    UNLABELLED,
    Clouds,
    Splits,
    check_same_kind,
    hold_out,
    read_clouds,
    write_clouds,
)
from minipc.data.prepare import unit_sphere
from minipc.data.readers.source import read_source
from minipc.errors import DataError, UsageError

NAMES = ("bed", "bowl", "desk")


def some_clouds(n=7, p=5, seed=0, **changes):
    rng = np.random.default_rng(seed)
    values = dict(
        points=rng.standard_normal((n, p, 3)).astype(np.float32),
        labels=np.arange(n) % 3,
        class_names=NAMES,
        up_axis="z",
        normalisation="none",
    )
    return Clouds(**(values | changes))


def with_value(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


def test_clouds_come_back_from_their_file_bit_for_bit(tmp_path):
    splits = Splits(some_clouds(), some_clouds(4, seed=1))
    path = str(tmp_path / "clouds.h5")
    write_clouds(path, splits)
    back = read_clouds(path)
    for wrote, read in zip(splits, back, strict=True):
        np.testing.assert_array_equal(wrote.points, read.points)
        np.testing.assert_array_equal(wrote.labels, read.labels)
        assert wrote.described == read.described
        assert (wrote.points_hash, wrote.labels_hash) == (read.points_hash, read.labels_hash)
        assert read.points.dtype == np.float32 and read.labels.dtype == np.int64


def test_a_clouds_file_opens_with_plain_h5py(tmp_path):
    path = str(tmp_path / "clouds.h5")
    splits = Splits(some_clouds(), some_clouds(4, seed=1))
    write_clouds(path, splits)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["test/points"][()], splits.test.points)


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "clouds.h5"
    write_clouds(str(path), Splits(some_clouds(), some_clouds()))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already.*another"):
        write_clouds(str(path), Splits(some_clouds(seed=3), some_clouds()))
    assert path.read_bytes() == before


def test_the_hash_tells_one_changed_bit_and_another_shape():
    clouds = some_clouds()
    nudged = some_clouds(
        points=with_value(clouds.points, (3, 2, 1), np.nextafter(clouds.points[3, 2, 1], 9))
    )
    assert clouds.points_hash != nudged.points_hash
    same = some_clouds(points=np.asfortranarray(clouds.points))
    assert clouds.points_hash == same.points_hash
    regrouped = some_clouds(n=5, points=clouds.points.reshape(5, 7, 3))
    assert clouds.points_hash != regrouped.points_hash


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"points": np.zeros((7, 5, 2), np.float32)},
            r"points: expected shape \(\*, \*, 3\), got \(7, 5, 2\)",
        ),
        ({"points": np.zeros((7, 5, 3))}, "expected float32 points"),
        (
            {"points": np.zeros((0, 5, 3), np.float32), "labels": np.zeros(0, np.int64)},
            "at least one cloud",
        ),
        ({"points": np.zeros((7, 0, 3), np.float32)}, "at least one cloud of one point"),
        (
            {"points": with_value(np.zeros((7, 5, 3), np.float32), (4, 1, 0), np.nan)},
            "cloud 4 holds NaN",
        ),
        (
            {"points": with_value(np.zeros((7, 5, 3), np.float32), (2, 1, 0), np.inf)},
            "cloud 2 holds NaN or infinite",
        ),
        ({"labels": np.zeros(6, np.int64)}, r"labels: expected shape \(7\), got \(6,\)"),
        ({"labels": np.full(7, 3)}, r"labels from 0 to 2 \(3 class names\), got 3 to 3"),
        ({"labels": np.full(7, -2)}, "got -2 to -2"),
        ({"class_names": ("bed", "bowl", "bed")}, r"\['bed'\] more than once; rename them"),
        (
            {"class_names": ("bed",), "labels": np.zeros(7, np.int64)},
            "at least 2 class names, got 1; add another class",
        ),
        ({"up_axis": "up"}, "up axis x, y, z, unknown, got 'up'"),
        ({"normalisation": "cube"}, "normalisation unit_sphere or none"),
    ],
)
def test_clouds_that_no_network_could_learn_from_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        some_clouds(**changes)


def test_splits_of_different_classes_do_not_go_into_one_file(tmp_path):
    with pytest.raises(
        DataError, match="the test split: up axis is y, but the training split has z"
    ):
        write_clouds(str(tmp_path / "c.h5"), Splits(some_clouds(), some_clouds(up_axis="y")))
    assert os.listdir(tmp_path) == []


def test_class_names_in_another_order_are_refused():
    other = some_clouds(class_names=("bowl", "bed", "desk"))
    with pytest.raises(
        DataError, match="class names is .*'bowl', 'bed'.*but model.h5 has .*'bed', 'bowl'"
    ):
        check_same_kind(other.described, some_clouds().described, "other.h5", "model.h5")


def test_unit_sphere_centres_scales_and_is_idempotent_bit_for_bit():
    points = some_clouds(20, 30).points * 7 + 4
    inside, changed = unit_sphere(points)
    assert changed.all()
    # a mean of 30 float32 values of size one, each rounded by 6e-8
    np.testing.assert_allclose(inside.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(inside, axis=2).max(axis=1), 1, rtol=1e-6)
    again, changed = unit_sphere(inside)
    assert not changed.any()
    np.testing.assert_array_equal(again, inside)


def test_a_cloud_of_one_repeated_point_goes_to_the_origin():
    inside, _ = unit_sphere(np.full((1, 4, 3), 5, np.float32))
    np.testing.assert_array_equal(inside, 0)


@pytest.fixture
def modelnet(tmp_path):
    """A folder in the customary layout: two training files, foreign prefixes, a unit sphere."""
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, number in (("ply_data_train0", 4), ("ply_data_train1", 3), ("ply_data_test0", 5)):
        points, _ = unit_sphere(rng.standard_normal((number, 40, 3)).astype(np.float32))
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("data", data=points, compression="gzip")
            file.create_dataset(
                "label", data=rng.integers(0, 3, (number, 1)).astype(np.uint8), compression="gzip"
            )
            file.create_dataset("faceId", data=np.zeros(3))
    (folder / "train_files.txt").write_text(
        "data/modelnet40_ply_hdf5_2048/ply_data_train1.h5\ndata/modelnet40_ply_hdf5_2048/ply_data_train0.h5\n\n"
    )
    (folder / "test_files.txt").write_text("elsewhere/ply_data_test0.h5\n")
    (folder / "shape_names.txt").write_text("bed\nbowl\ndesk\n")
    return folder


def test_the_modelnet_folder_is_read_in_the_order_of_its_lists_by_base_names(modelnet):
    found = read_source(str(modelnet), 16)
    splits, changed = found.splits, found.moved
    assert (found.sampled, found.padded, found.split) == (0, 0, "as the source has it")
    assert (len(splits.train), len(splits.test), changed) == (7, 5, 0)
    assert splits.train.class_names == NAMES and splits.train.up_axis == "y"
    with h5py.File(modelnet / "ply_data_train1.h5") as file:
        np.testing.assert_array_equal(splits.train.points[:3], file["data"][:, :16])
        np.testing.assert_array_equal(splits.train.labels[:3], file["label"][:, 0])


def test_clouds_outside_the_unit_sphere_are_moved_and_counted(modelnet):
    with h5py.File(modelnet / "ply_data_test0.h5", "r+") as file:
        file["data"][1] = file["data"][1] * 3 + 1
    found = read_source(str(modelnet), 40)
    splits = found.splits
    assert found.moved == 1
    assert np.linalg.norm(splits.test.points, axis=2).max() == pytest.approx(1, rel=1e-3)


def a_folder_in_place_of(path):
    os.remove(path)
    path.mkdir()


def cut_in_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


DAMAGES = {  # to a file of the folder
    "a list is missing": ("test_files.txt", os.remove),
    "a list is empty": ("train_files.txt", lambda path: path.write_text("\n")),
    "a list is binary": ("train_files.txt", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "a listed file is missing": ("ply_data_train0.h5", os.remove),
    "a listed file is a folder": ("ply_data_train0.h5", a_folder_in_place_of),
    "a listed file is truncated": ("ply_data_train0.h5", cut_in_half),
}
WRONG_ARRAYS = {  # what ply_data_train0.h5 holds instead, from its data and label
    "data is missing": lambda data, label: {"points": data, "label": label},
    "data is two-dimensional": lambda data, label: {"data": data[:, 0], "label": label},
    "data is integer": lambda data, label: {"data": data.astype(np.int32), "label": label},
    "data lies in another file": lambda data, label: {
        "data": h5py.ExternalLink("ply_data_train1.h5", "/data"),
        "label": label,
    },
    "data is NaN": lambda data, label: {"data": data * np.nan, "label": label},
    "labels are fewer": lambda data, label: {"data": data, "label": label[:-1]},
    "a label is out of range": lambda data, label: {"data": data, "label": label + 3},
}


def damage(folder, change):
    if change in DAMAGES:
        name, do = DAMAGES[change]
        return do(folder / name)
    with h5py.File(folder / "ply_data_train0.h5", "r+") as file:
        data, label = file["data"][()], file["label"][()]
        del file["data"], file["label"]
        for name, value in WRONG_ARRAYS[change](data, label).items():
            file[name] = value


@pytest.mark.parametrize(
    "change, message",
    [
        ("a list is missing", "test_files.txt: missing; expected"),
        ("a list is empty", "train_files.txt: empty; expected one name a line"),
        ("a list is binary", "train_files.txt: cannot be read as text"),
        ("a listed file is missing", "ply_data_train0.h5: missing, though the list file names it"),
        ("a listed file is a folder", "ply_data_train0.h5: expected a regular HDF5 file"),
        ("a listed file is truncated", "ply_data_train0.h5: cannot be read as HDF5"),
        ("data is missing", "expected a data set 'data'; found .*'points'"),
        ("data is two-dimensional", r"data: expected \(N, P, 3\) float, got \(4, 3\)"),
        ("data is integer", "got .* int32"),
        ("data lies in another file", "expected a data set 'data'"),
        (
            "data is NaN",
            "ply_data_train0.h5: data: cloud 0: point 0: expected finite float32 coordinates, "
            "found nan",
        ),
        ("labels are fewer", r"label: expected \(4, 1\) integer, got \(3, 1\)"),
        ("a label is out of range", r"labels from 0 to 2 \(3 class names\)"),
    ],
)
def test_a_damaged_modelnet_folder_is_refused_with_the_reason(modelnet, change, message):
    damage(modelnet, change)
    with pytest.raises(DataError, match=message) as caught:
        read_source(str(modelnet), 16)
    assert "\n" not in str(caught.value)


def test_list_files_written_on_windows_are_read(modelnet):
    """With a byte order mark, backslashes, a drive and the line ends of Windows."""
    wanted = read_source(str(modelnet), 16).splits
    (modelnet / "shape_names.txt").write_bytes(b"\xef\xbb\xbfbed\r\nbowl\r\ndesk\r\n")
    (modelnet / "train_files.txt").write_bytes(
        b"\xef\xbb\xbfdata\\modelnet40\\ply_data_train1.h5\r\nC:ply_data_train0.h5\r\n"
    )
    found = read_source(str(modelnet), 16).splits
    assert found.train.class_names == NAMES and found.train.points_hash == wanted.train.points_hash


def test_a_part_that_is_listed_twice_is_refused(modelnet):
    (modelnet / "train_files.txt").write_text(
        "a/ply_data_train0.h5\nply_data_train1.h5\nb/ply_data_train0.h5\n"
    )
    with pytest.raises(
        DataError, match="train_files.txt: names ply_data_train0.h5 again .*; leave one line"
    ):
        read_source(str(modelnet), 16)


def test_a_class_without_clouds_in_a_modelnet_folder_is_refused(modelnet):
    (modelnet / "shape_names.txt").write_text("bed\nbowl\ndesk\nlamp\n")
    with pytest.raises(
        DataError, match="class lamp has no training cloud; add one, or remove the class and number"
    ):
        read_source(str(modelnet), 16)


def test_a_validation_list_in_a_modelnet_folder_is_a_third_split(modelnet):
    (modelnet / "ply_data_train1.h5").rename(modelnet / "ply_data_val0.h5")
    (modelnet / "train_files.txt").write_text("ply_data_train0.h5\n")
    (modelnet / "val_files.txt").write_text("ply_data_val0.h5\n")
    with pytest.raises(
        UsageError, match="has a third split, val, beside train and test; pass --val-split"
    ):
        read_source(str(modelnet), 16)
    splits = read_source(str(modelnet), 16, val_split="train").splits
    assert (len(splits.train), len(splits.test)) == (7, 5)
    with h5py.File(modelnet / "ply_data_val0.h5") as file:
        np.testing.assert_array_equal(splits.train.points[4:], file["data"][:, :16])
    with h5py.File(modelnet / "ply_data_train0.h5", "r+") as file:
        file["label"][:3, 0] = [0, 1, 2]
    assert len(read_source(str(modelnet), 16, val_split="leave-out").splits.train) == 4
    (modelnet / "val_files.txt").write_text("ply_data_train0.h5\n")
    with pytest.raises(DataError, match="val_files.txt: names ply_data_train0.h5 again"):
        read_source(str(modelnet), 16, val_split="train")


def test_float64_points_of_a_modelnet_folder_are_centred_before_they_are_rounded(modelnet):
    wanted = read_source(str(modelnet), 40).splits.test.points
    with h5py.File(modelnet / "ply_data_test0.h5", "r+") as file:
        data = 0.01 * file["data"][()].astype(np.float64) + [500000, 5400000, 300]
        del file["data"]
        file["data"] = data
    # 1e-9 at 5.4e6 in a radius of 0.01, and float32; the unit sphere of the source is one to 1e-6
    np.testing.assert_allclose(read_source(str(modelnet), 40).splits.test.points, wanted, atol=2e-6)


def test_more_points_than_there_are_names_the_number_to_pass(modelnet):
    with pytest.raises(
        DataError,
        match="holds 40 points a cloud, fewer than the 64 asked for; pass --num-points 40",
    ):
        read_source(str(modelnet), 64)
    with pytest.raises(UsageError, match="num points: expected 1 to 10000000"):
        read_source(str(modelnet), 0)


def test_reading_changes_nothing_in_the_folder(modelnet):
    copy = shutil.copytree(modelnet, modelnet.parent / "copy")
    read_source(str(modelnet), 8)
    for name in os.listdir(copy):
        assert (copy / name).read_bytes() == (modelnet / name).read_bytes()


def test_clouds_cannot_be_changed_under_their_hash():
    points = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32)
    clouds = Clouds(points, np.arange(4) % 2, ("a", "b"), "z", "none")
    for array in (clouds.points, clouds.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    points[0] = 1  # what the caller gave stays the caller's


def test_parts_of_modelnet40_in_no_list_are_told(modelnet):
    shutil.copy(modelnet / "ply_data_train0.h5", modelnet / "ply_data_train7.h5")
    packed = read_source(str(modelnet), 8)
    assert packed.split.endswith("1 files in none of its lists left out")
    (modelnet / "ply_data_train7.h5").unlink()
    assert "left out" not in read_source(str(modelnet), 8).split


def test_held_out_clouds_are_training_clouds_once_each_and_never_test_clouds():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 8, 3)).astype(np.float32)
    labels = np.repeat([0, 1, UNLABELLED], 20)
    train = Clouds.from_arrays(points[:50], labels[:50], ("a", "b"), up_axis="z", source="mine")
    test = Clouds.from_arrays(points[50:], labels[:10], ("a", "b"), up_axis="z")
    splits = hold_out(Splits(train, test), 0.25, seed=3)

    place = {cloud.tobytes(): row for row, cloud in enumerate(train.points)}
    rows = [[place[cloud.tobytes()] for cloud in part.points] for part in splits]
    assert sorted(rows[0] + rows[1]) == list(range(50))
    for part, found in zip(splits, rows, strict=True):
        np.testing.assert_array_equal(part.labels, train.labels[found])
        assert part.described == train.described and "mine" in part.source
    assert np.bincount(splits.test.labels).tolist() == [5, 5]  # none without a label

    again, other = (hold_out(Splits(train, test), 0.25, seed) for seed in (3, 4))
    np.testing.assert_array_equal(again.test.points, splits.test.points)
    assert not np.array_equal(other.test.points, splits.test.points)


def test_nothing_is_held_out_where_no_class_has_two_labelled_clouds():
    points = np.random.default_rng(0).normal(size=(4, 8, 3))
    clouds = Clouds.from_arrays(points, [0, 1, -1, -1], ("a", "b"))
    with pytest.raises(DataError, match="no class has 2 labelled training clouds"):
        hold_out(Splits(clouds, clouds), 0.2)
    for fraction in (0.0, 1.0, np.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            hold_out(Splits(clouds, clouds), fraction)
