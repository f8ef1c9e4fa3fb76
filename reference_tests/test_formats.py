"""Trees of files, single HDF5 files and arrays of users: what becomes of them, and what is refused."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

from minipc.data.clouds import Clouds, read_clouds
from minipc.data.formats import read_source, read_tree
from minipc.data.foreign_hdf5 import read_single_hdf5
from minipc.data.point_files import read_prepared
from minipc.errors import DataError, UsageError

CLASSES = ("bowl", "mug", "vase")


def cloud(seed, points=30):
    return np.random.default_rng(seed).standard_normal((points, 3)).astype(np.float32)


def write(path, seed, points=30):
    """Write one cloud in the format that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = cloud(seed, points)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, points=values)
    else:
        np.savetxt(path, values, delimiter="," if path.suffix == ".csv" else " ")


SUFFIXES = (".npy", ".npz", ".xyz", ".txt", ".csv")


def mixed_tree(root, layout="{name}/{number}{suffix}", per_class=10):
    """A tree of all formats, point counts 20 to 40; layout may name {split}: every fifth is for the test."""
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            split = "test" if number % 5 == 4 else "train"
            suffix = SUFFIXES[number % 5]
            path = layout.format(name=name, number=number, suffix=suffix, split=split)
            write(root / path, 100 * label + number, 20 + (number * 7) % 21)
    return str(root)


def test_a_tree_of_classes_becomes_splits_in_the_order_of_names(tmp_path):
    found = read_tree(mixed_tree(tmp_path / "set"), 30)
    train, test = found.splits
    assert train.class_names == CLASSES and (train.up_axis, train.normalisation) == ("unknown", "unit_sphere")
    assert (len(train), len(test)) == (24, 6) and np.bincount(test.labels).tolist() == [2, 2, 2]
    assert train.points.shape == (24, 30, 3) and found.moved == 30
    counts = [20 + (number * 7) % 21 for number in range(10)] * 3
    assert found.sampled == sum(count > 30 for count in counts)
    assert found.padded == sum(count < 30 for count in counts)
    assert found.split == "20 % of each class drawn for the test, by seed 0"
    assert train.source.startswith("folder set, by minipc")


@pytest.mark.parametrize("layout", ["{name}/{split}/{number}{suffix}", "{split}/{name}/{number}{suffix}"])
def test_a_split_of_the_source_is_kept(tmp_path, layout):
    found = read_tree(mixed_tree(tmp_path, layout), 25)
    assert found.split == "as the source has it"
    assert (len(found.splits.train), len(found.splits.test)) == (24, 6)
    wanted, _, _ = read_prepared(str(tmp_path / layout.format(name="bowl", split="test", number=4, suffix=".csv")),
                                 "unit_sphere", 25)
    np.testing.assert_array_equal(found.splits.test.points[0], wanted)


def test_neither_the_order_of_listing_nor_hidden_files_change_anything(tmp_path, monkeypatch):
    folder = mixed_tree(tmp_path / "set")
    first = read_tree(folder, 25).splits
    (tmp_path / "set/.DS_Store").write_bytes(b"\0")
    (tmp_path / "set/mug/.hidden").write_bytes(b"\0")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path), reverse=True))
    again = read_tree(folder, 25).splits
    for one, other in zip(first, again):
        assert (one.points_hash, one.labels_hash) == (other.points_hash, other.labels_hash)


def test_a_cloud_more_elsewhere_does_not_change_which_points_are_taken(tmp_path):
    folder = mixed_tree(tmp_path / "set", "{name}/{split}/{number}{suffix}")
    before = read_tree(folder, 22).splits.train
    write(tmp_path / "set/vase/train/99.npy", 5, 40)
    after = read_tree(folder, 22).splits.train
    np.testing.assert_array_equal(after.points[: len(before)], before.points)


def test_progress_is_told_for_every_file(tmp_path):
    told = []
    read_tree(mixed_tree(tmp_path), 10, progress=lambda done, total, text: told.append((done, total)))
    assert told == [(done, 30) for done in range(1, 31)]


@pytest.mark.parametrize("spoil, message", [
    (lambda root: (root / "mug/mesh.off").write_text("OFF"), r"mug/mesh.off: unknown suffix '.off'"),
    (lambda root: (root / "notes.md").write_text("my notes"), r"notes.md"),
    (lambda root: (root / "spoon").mkdir(), "class spoon has no training cloud"),
    (lambda root: write(root / "mug/train/1.xyz", 0), "class mug holds train or test and also"),
    (lambda root: write(root / "spoon/train/1.xyz", 0), "some classes have train and test folders, some not"),
    (lambda root: (root / "mug/0.npy").write_bytes(b""), "mug/0.npy: is empty"),
    (lambda root: (root / "mug/more").mkdir(), "mug/more: is a folder where a cloud is expected; expected class/file"),
    (lambda root: [shutil.rmtree(root / name) for name in ("mug", "vase")], "at least 2 class names, got 1"),
    (lambda root: [shutil.rmtree(root / name) for name in CLASSES], "is empty; expected class/file"),
])
def test_a_tree_that_is_not_whole_is_refused_and_nothing_is_skipped(tmp_path, spoil, message):
    mixed_tree(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        read_source(str(tmp_path), 10)


def test_a_class_of_one_cloud_is_for_training(tmp_path):
    mixed_tree(tmp_path)
    write(tmp_path / "spoon/only.npy", 1)
    splits = read_tree(str(tmp_path), 10).splits
    assert np.bincount(splits.train.labels).tolist() == [8, 8, 1, 8]
    assert np.bincount(splits.test.labels, minlength=4).tolist() == [2, 2, 0, 2]


# One HDF5 file

POINTS = np.stack([cloud(seed) for seed in range(12)])
LABELS = np.arange(12) % 3


def hdf5(path, **members):
    with h5py.File(path, "w") as file:
        for name, values in members.items():
            file[name.replace("__", "/")] = values
    return str(path)


@pytest.mark.parametrize("names", [("points", "labels"), ("data", "label"), ("X", "y"), ("Points", "LABELS")])
def test_a_single_file_is_read_under_common_names(tmp_path, names):
    points, labels = names
    path = hdf5(tmp_path / "a.h5", **{points: POINTS, labels: LABELS[:, None], "mask": np.zeros(3)})
    found = read_source(path, 30, normalisation="none", up_axis="z")
    train, test = found.splits
    assert (len(train), len(test)) == (9, 3) and train.class_names == ("0", "1", "2") and train.up_axis == "z"
    rows = [int(np.flatnonzero((POINTS == one).all(axis=(1, 2)))[0]) for one in train.points]
    np.testing.assert_array_equal(LABELS[rows], train.labels)


@pytest.mark.parametrize("members", [
    dict(points=POINTS, labels=LABELS, split=np.array([0] * 8 + [1] * 4)),
    dict(points=POINTS, labels=LABELS, split=["train"] * 8 + ["test"] * 4),
    dict(train__points=POINTS[:8], train__labels=LABELS[:8], test__points=POINTS[8:], test__labels=LABELS[8:]),
    dict(X_train=POINTS[:8], y_train=LABELS[:8], X_test=POINTS[8:], y_test=LABELS[8:]),
    dict(train_data=POINTS[:8], train_label=LABELS[:8], test_data=POINTS[8:], test_label=LABELS[8:]),
])
def test_a_split_in_the_file_is_kept_in_its_order(tmp_path, members):
    path = hdf5(tmp_path / "a.h5", **members, class_names=["mug", "bowl", "vase"])
    found = read_single_hdf5(path, 30, normalisation="none")
    np.testing.assert_array_equal(found.splits.train.points, POINTS[:8])
    np.testing.assert_array_equal(found.splits.test.points, POINTS[8:])
    np.testing.assert_array_equal(found.splits.test.labels, LABELS[8:])
    assert found.splits.train.class_names == ("mug", "bowl", "vase") and found.split == "as the source has it"


@pytest.mark.parametrize("where", ["attribute", "dataset"])
def test_int16_points_are_read_with_their_scale(tmp_path, where):
    stored = np.rint(POINTS * 4096).astype(np.int16)
    path = hdf5(tmp_path / "a.h5", points=stored, labels=LABELS)
    with h5py.File(path, "a") as file:
        if where == "attribute":
            file["points"].attrs["scale"] = 2.0**-12
        else:
            file["scale"] = 2.0**-12
    found = read_single_hdf5(path, 30, normalisation="none").splits
    together = np.concatenate([found.train.points, found.test.points])
    wanted = stored.astype(np.float32) / 4096
    assert {one.tobytes() for one in together} == {one.tobytes() for one in wanted}


def test_other_counts_are_sampled_and_padded_as_in_a_tree(tmp_path):
    path = hdf5(tmp_path / "a.h5", points=POINTS, labels=LABELS, split=[0] * 8 + [1] * 4)
    np.save(tmp_path / "first.npy", POINTS[0])
    for count, sampled, padded in ((20, 12, 0), (45, 0, 12), (30, 0, 0)):
        found = read_single_hdf5(path, count)
        assert (found.sampled, found.padded, found.moved) == (sampled, padded, 12)
        wanted, _, _ = read_prepared(str(tmp_path / "first.npy"), "unit_sphere", count)
        np.testing.assert_array_equal(found.splits.train.points[0], wanted)


@pytest.mark.parametrize("members, message", [
    (dict(vertices=POINTS, labels=LABELS), r"expected points \(or data, X\) and labels.*rename them"),
    (dict(points=POINTS), "expected points"),
    (dict(points=POINTS, data=POINTS, labels=LABELS), "found data, points; remove others"),
    (dict(points=POINTS[:0], labels=LABELS[:0]), r"points: expected \(N, P, 3\) .*got \(0, 30, 3\)"),
    (dict(points=POINTS[0], labels=LABELS), r"points: expected \(N, P, 3\) float or integer"),
    (dict(points=POINTS.transpose(0, 2, 1), labels=LABELS), r"points: expected \(N, P, 3\)"),
    (dict(points=POINTS.astype(np.int16), labels=LABELS), "one positive number is expected as its attribute scale"),
    (dict(points=POINTS, labels=LABELS[:5]), r"labels: expected \(12,\) labels of points, got \(5,\)"),
    (dict(points=POINTS, labels=LABELS + 0.5), "labels: expected whole numbers, got 0.5"),
    (dict(points=POINTS, labels=LABELS - 1), "labels: expected whole numbers from 0, got -1; number the classes"),
    (dict(points=POINTS, labels=LABELS * 10**6), "has a label 2000000, but 12 clouds"),
    (dict(points=POINTS, labels=LABELS, class_names=["a", "b"]), "labels from 0 to 1"),
    (dict(points=POINTS, labels=LABELS, class_names=["a", "b", "a"]), r"\['a'\] more than once"),
    (dict(points=POINTS, labels=LABELS, class_names=[1, 2, 3]), "expected text, one name a class"),
    (dict(points=POINTS, labels=LABELS, split=[0, 1]), "split: expected 12 times train or test"),
    (dict(points=POINTS, labels=LABELS, split=[2] * 12), "split: expected 12 times train or test, or 0 or 1; found 2"),
    (dict(X_train=POINTS, y_train=LABELS), "expected points"),
    (dict(points=np.where(POINTS > 2.5, np.nan, POINTS), labels=LABELS), "expected finite float32 coordinates"),
])
def test_a_single_file_that_is_no_data_set_is_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        read_source(hdf5(tmp_path / "a.h5", **members), 30)


def test_members_that_lie_elsewhere_are_not_followed(tmp_path):
    hdf5(tmp_path / "secret.h5", points=POINTS, labels=LABELS)
    path = hdf5(tmp_path / "a.h5", labels=LABELS)
    with h5py.File(path, "a") as file:
        file["points"] = h5py.ExternalLink("secret.h5", "points")
    with pytest.raises(DataError, match="expected a data set 'points'"):
        read_single_hdf5(path, 30)
    (tmp_path / "raw").write_bytes(POINTS.tobytes())
    with h5py.File(path, "w") as file:
        file["labels"] = LABELS
        file.create_dataset("points", POINTS.shape, "f4", external=[(str(tmp_path / "raw"), 0, POINTS.nbytes)])
    with pytest.raises(DataError, match="points declares"):
        read_single_hdf5(path, 30)


def test_a_file_that_declares_what_it_does_not_hold_is_refused(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file["labels"] = LABELS
        file.create_dataset("points", (10**7, 10**5, 3), "f4", chunks=(1, 1000, 3), compression="gzip")
    assert (tmp_path / "bomb.h5").stat().st_size < 10_000
    with pytest.raises(DataError, match="points declares 12000000000000 bytes"):
        read_single_hdf5(str(tmp_path / "bomb.h5"), 30)


def test_what_is_packed_already_is_said_so(say, data):
    os.mkfifo("pipe.h5")
    for read in (read_source, read_single_hdf5):
        with pytest.raises(DataError, match="clouds.h5: is packed already: use it as it is"):
            read(data, 10)
        with pytest.raises(DataError, match="pipe.h5: expected a file, found a pipe"):
            read("pipe.h5", 10)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_test_fraction_that_leaves_no_split_is_refused(tmp_path, fraction):
    with pytest.raises(UsageError, match="test fraction: expected a number between 0 and 1"):
        read_source(mixed_tree(tmp_path), 10, test_fraction=fraction)


def test_a_test_fraction_beside_a_split_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has a split of its own"):
        read_source(mixed_tree(tmp_path, "{split}/{name}/{number}{suffix}"), 10, test_fraction=0.5)


# Arrays from Python

@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_arrays_of_any_real_dtype_become_clouds(dtype):
    points = np.rint(100 * POINTS).astype(dtype)
    clouds = Clouds.from_arrays(points, LABELS.astype(np.uint8), ["a", "b", "c"], up_axis="y", normalise=False)
    np.testing.assert_array_equal(clouds.points, points.astype(np.float32), strict=True)
    assert clouds.labels.dtype == np.int64 and clouds.class_names == ("a", "b", "c")
    assert (clouds.up_axis, clouds.normalisation) == ("y", "none")


def test_clouds_of_different_sizes_need_a_number_of_points():
    some = [cloud(seed, 20 + seed) for seed in range(6)]
    with pytest.raises(DataError, match="clouds have from 20 to 25 points; pass num_points"):
        Clouds.from_arrays(some, [0, 1] * 3, ["a", "b"])
    clouds = Clouds.from_arrays(some, [0, 1] * 3, ["a", "b"], num_points=23)
    assert clouds.points.shape == (6, 23, 3) and clouds.normalisation == "unit_sphere"
    alone = Clouds.from_arrays([some[5]] * 2, [0, 1], ["a", "b"], num_points=23)
    np.testing.assert_array_equal(alone.points[0], clouds.points[5])


@pytest.mark.parametrize("points, labels, message", [
    ([], [], "expected at least one cloud"),
    (POINTS[:, :, :2], LABELS, "cloud 0: points: expected shape"),
    ([POINTS[0], POINTS[1][:, :2]], [0, 1], r"cloud 1: points: expected shape \(\*, 3\), got \(30, 2\)"),
    ([POINTS[0], np.zeros((0, 3))], [0, 1], "cloud 1: expected at least one point"),
    (POINTS.astype(complex), LABELS, "expected real numbers, found complex128"),
    (np.full((2, 4, 3), np.inf), [0, 1], "cloud 0, point 0: expected finite"),
    (POINTS, LABELS + 0.5, "labels: expected whole numbers, got 0.5"),
    (POINTS, [str(label) for label in LABELS], "labels: expected whole numbers, got <U1"),
    (POINTS, LABELS[:3], r"labels: expected shape \(12\), got \(3,\)"),
    (POINTS, LABELS + 1, "expected labels from 0 to 2"),
])
def test_arrays_that_are_no_clouds_are_refused(points, labels, message):
    with pytest.raises(DataError, match=message):
        Clouds.from_arrays(points, labels, ["a", "b", "c"])


# The command line

def test_pack_says_what_it_did_and_a_dry_run_writes_nothing(folder, say):
    mixed_tree(folder / "set")
    code, dry, _ = say("data", "pack", "set", "-o", "out.h5", "--num-points", 30, "--dry-run", "--json")
    assert code == 0 and os.listdir() == ["set"]
    code, out, _ = say("data", "pack", "set", "-o", "out.h5", "--num-points", 30, "--up-axis", "z", "--json")
    values = json.loads(out)
    assert json.loads(dry) | {"dry_run": False, "up_axis": "z"} == values
    assert (values["normalised"], values["train"], values["test"]) == (30, 24, 6)
    assert values["sampled"] + values["padded"] <= 30 and read_clouds("out.h5").train.up_axis == "z"
    code, out, _ = say("data", "info", "out.h5")
    assert code == 0 and "made from folder set, by minipc" in out
    code, out, _ = say("data", "pack", "set", "-o", "plain.h5", "--num-points", 30, "--normalisation", "none")
    assert code == 0 and "no cloud was normalised" in out and "split: 20 % of each class" in out


def test_an_existing_target_is_refused_before_anything_is_read(folder, say):
    (folder / "out.h5").write_text("mine")
    code, _, err = say("data", "pack", "nowhere", "-o", "out.h5")
    assert code == 2 and "exists already" in err


def test_test_clouds_that_are_training_clouds_are_counted_and_told(folder, say):
    for name in CLASSES:
        for number in range(10):
            write(folder / "set" / name / f"{number}.npy", 0)  # one and the same cloud everywhere
    code, out, _ = say("data", "pack", "set", "-o", "out.h5", "--num-points", 30)
    assert code == 0 and "note: 6 test clouds are also training clouds, bit for bit" in out
    mixed_tree(folder / "other")
    assert "note:" not in say("data", "pack", "other", "-o", "other.h5", "--num-points", 30)[1]


def test_a_bad_cloud_in_a_single_file_is_named_by_its_number(tmp_path):
    many = np.concatenate([POINTS] * 30)
    for bad, message in ((np.nan, "cloud 300: point 7: expected finite"), (None, "cloud 300: expected at least 2")):
        spoilt = many.copy()
        spoilt[300, 7] = bad if bad else 0
        spoilt[300] = spoilt[300] if bad else 1
        path = hdf5(tmp_path / "a.h5", points=spoilt, labels=np.arange(360) % 3)
        for count in (30, 20):
            with pytest.raises(DataError, match=f"points: {message}"):
                read_single_hdf5(path, count)
