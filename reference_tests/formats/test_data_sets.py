"""Data sets in the folders that they come in: read as they should be, and each refusal."""

import json
from functools import partial

import h5py
import numpy as np
import pytest

from minipc.data.clouds import SEVERAL, hold_out, read_clouds, write_clouds
from minipc.data.readers.source import read_source as with_limits
from minipc.distil.train import TrainConfig, drawn_views, train
from minipc.errors import DataError, UsageError
from minipc.models.pointnet import sizes
from minipc.nn.losses import LossConfig

POINTS = 32
# in this process: tests of its own are about the one with limits
read_source = partial(with_limits, limits=False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ScanObjectNN


def write_scan(folder, rng, variant="objectdataset", mask=True, count=30):
    """Write both files of a variant; half of the points are background, at x = 5."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("training", "test"):
        data = rng.standard_normal((count, 2 * POINTS, 3)).astype(np.float32)
        data[:, ::2, 0] += 5
        with h5py.File(folder / f"{name}_{variant}.h5", "w") as file:
            file["data"], file["label"] = data, np.arange(count, dtype=np.int64) % 15
            if mask:
                file["mask"] = np.where(np.arange(2 * POINTS) % 2, 7, -1) * np.ones((count, 1), int)
    return str(folder)


def test_scanobjectnn_has_its_official_split_and_class_names(tmp_path, rng):
    packed = with_limits(write_scan(tmp_path / "main_split", rng), POINTS)
    train, test = packed.splits
    assert (len(train), len(test), train.up_axis) == (30, 30, "y")
    assert train.class_names[0] == "bag" and train.class_names[14] == "toilet"
    assert train.class_names[4] == "chair" and len(train.class_names) == 15
    np.testing.assert_array_equal(test.labels, np.arange(30) % 15)


@pytest.mark.parametrize("where", ["main_split", "main_split_nobg"])
def test_the_folder_above_that_of_a_split_will_do_if_there_is_one(where, tmp_path, rng):
    inner = write_scan(tmp_path / where, rng)
    whole, part = read_source(str(tmp_path), POINTS), read_source(inner, POINTS)
    np.testing.assert_array_equal(whole.splits.train.points, part.splits.train.points)
    assert where in whole.splits.train.source


def test_the_background_is_kept_unless_it_shall_be_dropped_before_normalisation(tmp_path, rng):
    folder = write_scan(tmp_path / "main_split", rng)
    kept = read_source(folder, 2 * POINTS).splits.train.points
    dropped = read_source(folder, POINTS, background="drop").splits.train
    with h5py.File(tmp_path / "main_split/training_objectdataset.h5") as file:
        data = file["data"][:]
    exact = data.astype(np.float64)
    for expected, found in ((exact, kept), (exact[:, 1::2], dropped.points)):
        expected = expected - expected.mean(axis=1, keepdims=True)
        expected /= np.linalg.norm(expected, axis=2).max(axis=1)[:, None, None]
        # one rounding to float32, of numbers up to 1
        np.testing.assert_allclose(found, expected, atol=1e-7)
    assert "without background" in dropped.source


def test_among_several_variants_the_user_must_choose(tmp_path, rng):
    for variant in ("objectdataset", "objectdataset_augmented25rot"):
        folder = write_scan(tmp_path / "main_split", rng, variant)
    with pytest.raises(UsageError, match="objectdataset, objectdataset_augmented25rot"):
        read_source(folder, POINTS)
    with pytest.raises(UsageError, match="no variant 'objectdataset_augmentedrot'"):
        read_source(folder, POINTS, variant="objectdataset_augmentedrot")
    packed = read_source(folder, POINTS, variant="objectdataset")
    assert SEVERAL not in packed.splits.train.source
    write_scan(tmp_path / "main_split_nobg", rng)
    with pytest.raises(UsageError, match="main_split and main_split_nobg"):
        read_source(str(tmp_path), POINTS)


def test_no_split_is_drawn_from_clouds_of_which_several_are_of_one_object(tmp_path, rng):
    """Neither from the packed file nor from what hold_out or a record makes of its clouds."""
    folder = write_scan(tmp_path / "main_split", rng, "objectdataset_augmentedrot_scale75")
    splits = read_source(folder, POINTS).splits
    write_clouds(tmp_path / "packed.h5", splits)
    splits = read_clouds(tmp_path / "packed.h5")
    with pytest.raises(UsageError, match="same objects on both sides"):
        hold_out(splits, 0.2)
    config = TrainConfig(epochs=1, batch_size=8, val_fraction=0.2)
    views = drawn_views(splits.train, 0, None)
    with pytest.raises(UsageError, match="same objects on both sides"):
        next(train(splits, sizes("6:6", 15), LossConfig(kd_weight=0), config, views))


def test_no_split_is_drawn_from_one_half_of_augmented_clouds_either(tmp_path, rng):
    """A file alone has no split of its own; of clouds that are there once one may be drawn."""
    folder = tmp_path / "main_split"
    write_scan(folder, rng, "objectdataset_augmented25_norot")
    with pytest.raises(UsageError, match="several clouds of one object.* the same objects on both"):
        read_source(str(folder / "training_objectdataset_augmented25_norot.h5"), POINTS)
    write_scan(folder, rng)
    half = read_source(str(folder / "training_objectdataset.h5"), POINTS)
    assert len(half.splits.test) == 15


def test_splits_are_drawn_from_clouds_of_one_object_each(tmp_path, rng):
    splits = read_source(write_scan(tmp_path / "main_split", rng), POINTS).splits
    assert len(hold_out(splits, 0.5).test) == 15


def _without_other(folder):
    (folder / "test_objectdataset.h5").unlink()


def _changed(name, change):
    def damage(folder):
        with h5py.File(folder / "test_objectdataset.h5", "r+") as file:
            values = change(file[name][:])
            del file[name]
            if values is not None:
                file[name] = values

    return damage


@pytest.mark.parametrize(
    "damage, background, says",
    [
        (_without_other, None, "test_objectdataset.h5: missing"),
        (_changed("data", lambda data: None), None, "expected a data set 'data'"),
        (_changed("data", lambda data: data[:, :, :2]), None, "expected \\(N, P, 3\\) float"),
        (_changed("label", lambda label: label[:-1]), None, "label: expected \\(30,\\)"),
        (_changed("label", lambda label: label + 1), None, "expected 0 to 14, found 15"),
        (_changed("mask", lambda mask: None), "drop", "has no mask"),
        (_changed("mask", lambda mask: mask[:, 1:]), "drop", "mask: expected \\(30, 64\\)"),
        (_changed("mask", lambda mask: -np.ones_like(mask)), "drop", "cloud 0: is all background"),
    ],
)
def test_a_scanobjectnn_that_is_none_is_refused_with_the_cause(
    damage, background, says, tmp_path, rng
):
    folder = write_scan(tmp_path / "main_split", rng)
    damage(tmp_path / "main_split")
    with pytest.raises(DataError, match=says):
        read_source(folder, POINTS, background=background)


@pytest.mark.parametrize("option", [{"test_fraction": 0.2}, {"val_split": "train"}])
def test_an_official_split_leaves_nothing_to_choose(option, tmp_path, rng):
    for folder in (write_scan(tmp_path / "main_split", rng), write_texts(tmp_path / "texts", rng)):
        with pytest.raises(UsageError, match="has no use; leave it out"):
            read_source(folder, POINTS, **option)


@pytest.mark.parametrize("option", [{"variant": "x"}, {"background": "drop"}])
def test_options_of_one_data_set_are_refused_for_others(option, vessels):
    with pytest.raises(UsageError, match="has no use; leave it out"):
        read_source(str(vessels), POINTS, **option)


# ModelNet40 as texts


def write_texts(folder, rng, name="modelnet40", points=2 * POINTS):
    """Write four clouds of two classes, one of them with an underscore in its name."""
    folder.mkdir(exist_ok=True)
    lists = {"train": [], "test": []}
    for of_class in ("airplane", "night_stand"):
        (folder / of_class).mkdir(exist_ok=True)
        for number, split in ((1, "train"), (2, "train"), (103, "test")):
            cloud = f"{of_class}_{number:04d}"
            np.savetxt(
                folder / of_class / f"{cloud}.txt",
                rng.standard_normal((points, 6)),
                delimiter=",",
                fmt="%.6f",
            )
            lists[split].append(cloud)
    for split, clouds in lists.items():
        (folder / f"{name}_{split}.txt").write_text("\n".join(clouds))
    (folder / f"{name}_shape_names.txt").write_text("airplane\nnight_stand\n")
    return str(folder)


def test_modelnet_as_texts_is_split_by_its_lists_and_keeps_the_first_points(tmp_path, rng):
    packed = read_source(write_texts(tmp_path / "texts", rng), POINTS)
    train, test = packed.splits
    assert (len(train), len(test), train.up_axis) == (4, 2, "y")
    assert train.class_names == ("airplane", "night_stand")
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1])
    whole = np.loadtxt(tmp_path / "texts/night_stand/night_stand_0103.txt", delimiter=",")[:, :3]
    whole -= whole.mean(axis=0)
    whole /= np.linalg.norm(whole, axis=1).max()
    np.testing.assert_allclose(test.points[1], whole[:POINTS], atol=1e-7)  # rounded once
    assert packed.split == "as the source has it"
    assert test.files == ("airplane/airplane_0103.txt", "night_stand/night_stand_0103.txt")


def test_lists_of_two_data_sets_in_one_folder_are_chosen_between(tmp_path, rng):
    folder = write_texts(tmp_path / "texts", rng)
    (tmp_path / "texts/modelnet10_shape_names.txt").write_text("night_stand\nairplane\n")
    for split, clouds in (
        ("train", ["night_stand_0001", "airplane_0001"]),
        ("test", ["night_stand_0103"]),
    ):
        (tmp_path / f"texts/modelnet10_{split}.txt").write_text("\r\n".join(clouds))
    with pytest.raises(UsageError, match="modelnet10, modelnet40"):
        read_source(folder, POINTS)
    packed = read_source(folder, POINTS, variant="modelnet10")
    assert (len(packed.splits.train), len(packed.splits.test)) == (2, 1)
    assert packed.splits.train.class_names == ("night_stand", "airplane")
    assert packed.split == "as the source has it, 3 files in none of its lists left out"


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("train", "airplane_0001\nairplane_0007\nnight_stand_0001", "airplane_0007.txt: missing"),
        ("train", "airplane_0001\nairplane_0001", "is also in modelnet40_train.txt"),
        ("test", "airplane_0001", "airplane_0001 is also in modelnet40_train.txt"),
        ("test", "aeroplane_0001", "expected a class and a number"),
        ("test", "../airplane_0001", "expected a class and a number"),
        ("test", "airplane_0001/../x", "expected a class and a number"),
        ("test", "", "empty"),
    ],
)
def test_a_list_that_does_not_fit_its_folder_is_refused(name, text, says, tmp_path, rng):
    folder = write_texts(tmp_path / "texts", rng)
    (tmp_path / f"texts/modelnet40_{name}.txt").write_text(text)
    with pytest.raises(DataError, match=says):
        read_source(folder, POINTS)


def test_a_text_with_fewer_points_than_asked_for_is_named(tmp_path, rng):
    folder = write_texts(tmp_path / "texts", rng)
    with pytest.raises(DataError, match="airplane_0001.txt: holds 64 points, fewer than the 65"):
        read_source(folder, 2 * POINTS + 1)


# ShapeNet part


def write_parts(folder, rng):
    """Write clouds of two categories, with a third split."""
    (folder / "train_test_split").mkdir(parents=True)
    offsets = {"Airplane": "02691156", "Bag": "02773838"}
    (folder / "synsetoffset2category.txt").write_text(
        "".join(f"{name}\t{offset}\n" for name, offset in offsets.items())
    )
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        names = []
        for offset in offsets.values():
            (folder / offset).mkdir(exist_ok=True)
            for number in range(count):
                np.savetxt(folder / offset / f"{split}{number}.txt", rng.standard_normal((40, 7)))
                names.append(f"shape_data/{offset}/{split}{number}")
        place = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        place.write_text(json.dumps(names))
    return str(folder)


def test_shapenet_part_is_classified_by_category_and_asks_about_its_third_split(tmp_path, rng):
    folder = write_parts(tmp_path / "parts", rng)
    with pytest.raises(UsageError, match="--val-split train"):
        read_source(folder, POINTS)
    for val_split, count in (("train", 8), ("leave-out", 6)):
        train, test = read_source(folder, POINTS, val_split=val_split).splits
        assert (len(train), len(test), train.class_names) == (count, 4, ("Airplane", "Bag"))
        np.testing.assert_array_equal(test.labels, [0, 0, 1, 1])
        assert test.files[3] == "02773838/test1.txt"


@pytest.mark.parametrize(
    "names, says",
    [
        (["shape_data/02691156/none"], "none.txt: missing"),
        (["shape_data/02691156/train0"], "twice"),
        (["shape_data/1/a"], "expected shape_data/CATEGORY/ID"),
        (["shape_data/02691156/../02691156/test0"], "expected shape_data/CATEGORY/ID"),
        ({"a": 1}, "expected a list of names"),
    ],
)
def test_a_list_of_shapenet_part_that_does_not_fit_is_refused(names, says, tmp_path, rng):
    folder = write_parts(tmp_path / "parts", rng)
    place = tmp_path / "parts/train_test_split/shuffled_test_file_list.json"
    place.write_text(json.dumps(names))
    with pytest.raises(DataError, match=says):
        read_source(folder, POINTS, val_split="train")
