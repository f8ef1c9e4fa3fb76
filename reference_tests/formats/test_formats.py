"""Trees of files, HDF5 files and arrays of users: what they become, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from minipc.data.clouds import Clouds, read_clouds
from minipc.data.readers.packed import Cloud, Listing, Request, collect
from minipc.data.readers.point_files import read_prepared
from minipc.data.readers.source import read_source
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
    """A tree of all formats, 20 to 40 points; in {split} every fifth file is for the test."""
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            split = "test" if number % 5 == 4 else "train"
            suffix = SUFFIXES[number % 5]
            path = layout.format(name=name, number=number, suffix=suffix, split=split)
            write(root / path, 100 * label + number, 20 + (number * 7) % 21)
    return str(root)


def test_a_tree_of_classes_becomes_splits_in_the_order_of_names(tmp_path):
    found = read_source(mixed_tree(tmp_path / "set"), 30)
    train, test = found.splits
    assert train.class_names == CLASSES and (train.up_axis, train.normalisation) == (
        "unknown",
        "unit_sphere",
    )
    assert (len(train), len(test)) == (24, 6) and np.bincount(test.labels).tolist() == [2, 2, 2]
    assert train.points.shape == (24, 30, 3) and found.moved == 30
    counts = [20 + (number * 7) % 21 for number in range(10)] * 3
    assert found.sampled == sum(count > 30 for count in counts)
    assert found.padded == sum(count < 30 for count in counts)
    assert found.split == "20 % of each class drawn for the test, by seed 0"
    assert train.source.startswith("folder set, by minipc")


@pytest.mark.parametrize(
    "layout", ["{name}/{split}/{number}{suffix}", "{split}/{name}/{number}{suffix}"]
)
def test_a_split_of_the_source_is_kept(tmp_path, layout):
    found = read_source(mixed_tree(tmp_path, layout), 25)
    assert found.split == "as the source has it"
    assert (len(found.splits.train), len(found.splits.test)) == (24, 6)
    wanted, _, _ = read_prepared(
        str(tmp_path / layout.format(name="bowl", split="test", number=4, suffix=".csv")),
        "unit_sphere",
        25,
    )
    np.testing.assert_array_equal(found.splits.test.points[0], wanted)


def test_neither_the_order_of_listing_nor_hidden_files_change_anything(tmp_path, monkeypatch):
    folder = mixed_tree(tmp_path / "set")
    first = read_source(folder, 25).splits
    (tmp_path / "set/.DS_Store").write_bytes(b"\0")
    (tmp_path / "set/mug/.hidden").write_bytes(b"\0")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path), reverse=True))
    again = read_source(folder, 25).splits
    for one, other in zip(first, again, strict=True):
        assert (one.points_hash, one.labels_hash) == (other.points_hash, other.labels_hash)


def test_a_cloud_more_elsewhere_does_not_change_which_points_are_taken(tmp_path):
    folder = mixed_tree(tmp_path / "set", "{name}/{split}/{number}{suffix}")
    before = read_source(folder, 22).splits.train
    write(tmp_path / "set/vase/train/99.npy", 5, 40)
    after = read_source(folder, 22).splits.train
    np.testing.assert_array_equal(after.points[: len(before)], before.points)


def test_progress_is_told_for_every_file(tmp_path):
    told = []
    read_source(
        mixed_tree(tmp_path), 10, progress=lambda done, total, text: told.append((done, total))
    )
    assert told == [(done, 30) for done in range(1, 31)]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda root: (root / "mug/mesh.step").write_text("OFF"),
            r"mug/mesh.step: unknown suffix '.step'",
        ),
        (
            lambda root: (root / "notes.md").write_text("my notes"),
            r"notes.md: lies beside the folders of classes and is none; move it away",
        ),
        (
            lambda root: (root / "mug.xyz").write_text("0 0 1\n"),
            r"mug.xyz: lies beside .* or into the folder of its class",
        ),
        (lambda root: (root / "spoon").mkdir(), "class spoon has no training cloud"),
        (lambda root: write(root / "mug/train/1.xyz", 0), "class mug holds train or test and also"),
        (
            lambda root: write(root / "spoon/train/1.xyz", 0),
            "some classes have train and test folders, some not",
        ),
        (lambda root: (root / "mug/0.npy").write_bytes(b""), "mug/0.npy: is empty"),
        (
            lambda root: (root / "mug/more").mkdir(),
            "mug/more: is a folder where a cloud is expected; expected class/file",
        ),
        (
            lambda root: [shutil.rmtree(root / name) for name in ("mug", "vase")],
            "at least 2 class names, got 1",
        ),
        (
            lambda root: [shutil.rmtree(root / name) for name in CLASSES],
            "is empty; expected class/file",
        ),
    ],
)
def test_a_tree_that_is_not_whole_is_refused_and_nothing_is_skipped(tmp_path, spoil, message):
    mixed_tree(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        read_source(str(tmp_path), 10)


def test_a_folder_of_clouds_without_classes_is_refused(tmp_path):
    write(tmp_path / "1.npy", 0)
    with pytest.raises(
        DataError, match="holds 1.npy and no folder of a class; expected class/file"
    ):
        read_source(str(tmp_path), 10)
    mixed_tree(tmp_path / "set", "{split}/{name}/{number}{suffix}")
    write(tmp_path / "set/train/1.npy", 0)
    with pytest.raises(DataError, match="train/1.npy: lies beside the folders of classes"):
        read_source(str(tmp_path / "set"), 10)


@pytest.mark.parametrize(
    "layout", ["{name}/{split}/{number}{suffix}", "{split}/{name}/{number}{suffix}"]
)
def test_a_third_split_of_a_tree_is_joined_or_left_out_as_it_is_said(tmp_path, layout):
    """Thirty clouds in train and test, and one of each class in val."""
    folder = mixed_tree(tmp_path, layout)
    for seed, name in enumerate(CLASSES):
        write(
            tmp_path / layout.format(name=name, split="val", number=50, suffix=".npy"), 500 + seed
        )
    with pytest.raises(
        UsageError, match="has a third split, val, beside train and test; pass --val-split train"
    ):
        read_source(folder, 30)
    told = {"train": "val joined to the training clouds", "leave-out": "val left out"}
    for val_split, train in (("train", 27), ("leave-out", 24)):
        found = read_source(folder, 30, val_split=val_split, normalisation="none")
        assert (len(found.splits.train), len(found.splits.test)) == (train, 6)
        assert found.split == f"as the source has it, {told[val_split]}"
        points = {one.tobytes() for one in found.splits.train.points}
        assert [cloud(500 + seed).tobytes() in points for seed in range(3)] == [train == 27] * 3


def test_a_tree_of_train_and_val_alone_is_refused_and_train_can_be_a_class(tmp_path):
    for name in ("train", "val"):
        for number in range(5):
            write(tmp_path / "set" / name / f"{number}.npy", number)
    with pytest.raises(DataError, match="holds train, val, expected train and test; name both so"):
        read_source(str(tmp_path / "set"), 10)
    (tmp_path / "set/val").rename(tmp_path / "set/bus")
    assert read_source(str(tmp_path / "set"), 10).splits.train.class_names == ("bus", "train")


@pytest.mark.parametrize("second", ["cafe\u0301", "other"])
def test_class_folders_that_differ_only_by_unicode_form_are_refused(tmp_path, second):
    for name in ("caf\u00e9", second):
        for number in range(5):
            write(tmp_path / name / f"{number}.npy", number)
    if second == "other":
        assert read_source(str(tmp_path), 10).splits.train.class_names == ("caf\u00e9", "other")
    else:
        with pytest.raises(
            DataError,
            match=r"'cafe\\u0301' and 'caf\\xe9' are one name in two Unicode forms; rename",
        ):
            read_source(str(tmp_path), 10)


def test_class_names_are_kept_in_one_unicode_form():
    clouds = Clouds.from_arrays(POINTS, LABELS, ["cafe\u0301", "b", "c"])
    assert clouds.class_names == ("caf\u00e9", "b", "c")
    with pytest.raises(DataError, match="one name in two Unicode forms"):
        Clouds.from_arrays(POINTS, LABELS, ["cafe\u0301", "caf\u00e9", "c"])


def test_a_class_of_one_cloud_is_for_training(tmp_path):
    mixed_tree(tmp_path)
    write(tmp_path / "spoon/only.npy", 1)
    splits = read_source(str(tmp_path), 10).splits
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


@pytest.mark.parametrize(
    "names", [("points", "labels"), ("data", "label"), ("X", "y"), ("Points", "LABELS")]
)
def test_a_single_file_is_read_under_common_names(tmp_path, names):
    points, labels = names
    path = hdf5(tmp_path / "a.h5", **{points: POINTS, labels: LABELS[:, None], "mask": np.zeros(3)})
    found = read_source(path, 30, normalisation="none", up_axis="z")
    train, test = found.splits
    assert (
        (len(train), len(test)) == (9, 3)
        and train.class_names == ("0", "1", "2")
        and train.up_axis == "z"
    )
    rows = [int(np.flatnonzero((one == POINTS).all(axis=(1, 2)))[0]) for one in train.points]
    np.testing.assert_array_equal(LABELS[rows], train.labels)


@pytest.mark.parametrize(
    "members",
    [
        dict(points=POINTS, labels=LABELS, split=np.array([0] * 8 + [1] * 4)),
        dict(points=POINTS, labels=LABELS, split=["train"] * 8 + ["test"] * 4),
        dict(
            train__points=POINTS[:8],
            train__labels=LABELS[:8],
            test__points=POINTS[8:],
            test__labels=LABELS[8:],
        ),
        dict(X_train=POINTS[:8], y_train=LABELS[:8], X_test=POINTS[8:], y_test=LABELS[8:]),
        dict(
            train_data=POINTS[:8],
            train_label=LABELS[:8],
            test_data=POINTS[8:],
            test_label=LABELS[8:],
        ),
    ],
)
def test_a_split_in_the_file_is_kept_in_its_order(tmp_path, members):
    path = hdf5(tmp_path / "a.h5", **members, class_names=["mug", "bowl", "vase"])
    found = read_source(path, 30, normalisation="none")
    np.testing.assert_array_equal(found.splits.train.points, POINTS[:8])
    np.testing.assert_array_equal(found.splits.test.points, POINTS[8:])
    np.testing.assert_array_equal(found.splits.test.labels, LABELS[8:])
    assert (
        found.splits.train.class_names == ("mug", "bowl", "vase")
        and found.split == "as the source has it"
    )


THREE = {
    "groups": dict(
        train__data=POINTS[:6],
        train__label=LABELS[:6],
        test__data=POINTS[6:9],
        test__label=LABELS[6:9],
        val__data=POINTS[9:],
        val__label=LABELS[9:],
    ),
    "suffixes": dict(
        X_train=POINTS[:6],
        y_train=LABELS[:6],
        X_test=POINTS[6:9],
        y_test=LABELS[6:9],
        X_valid=POINTS[9:],
        y_valid=LABELS[9:],
    ),
    "prefixes": dict(
        train_points=POINTS[:6],
        train_labels=LABELS[:6],
        test_points=POINTS[6:9],
        test_labels=LABELS[6:9],
        validation_points=POINTS[9:],
        validation_labels=LABELS[9:],
    ),
    "a word of their own": dict(
        X_train=POINTS[:6],
        y_train=LABELS[:6],
        X_test=POINTS[6:9],
        y_test=LABELS[6:9],
        holdout__points=POINTS[9:],
        holdout__labels=LABELS[9:],
    ),
    "split": dict(points=POINTS, labels=LABELS, split=["train"] * 6 + ["test"] * 3 + ["val"] * 3),
}


@pytest.mark.parametrize("members", THREE.values(), ids=THREE)
def test_a_third_split_in_the_file_is_joined_or_left_out_as_it_is_said(tmp_path, members):
    path = hdf5(tmp_path / "a.h5", **members)
    with pytest.raises(
        UsageError, match="has a third split, .*, beside train and test; pass --val-split train"
    ):
        read_source(path, 30)
    for val_split, train in (("train", np.r_[0:6, 9:12]), ("leave-out", np.r_[0:6])):
        found = read_source(path, 30, normalisation="none", val_split=val_split)
        np.testing.assert_array_equal(found.splits.train.points, POINTS[train])
        np.testing.assert_array_equal(found.splits.train.labels, LABELS[train])
        np.testing.assert_array_equal(found.splits.test.points, POINTS[6:9])
        assert ("joined" in found.split, "left out" in found.split) == (
            val_split == "train",
            val_split == "leave-out",
        )


def test_a_third_split_beside_clouds_without_a_split_is_asked_about_too(tmp_path):
    path = hdf5(
        tmp_path / "a.h5",
        points=POINTS[:9],
        labels=LABELS[:9],
        val__points=POINTS[9:],
        val__labels=LABELS[9:],
    )
    with pytest.raises(UsageError, match="has a third split, val"):
        read_source(path, 30)
    assert len(read_source(path, 30, val_split="leave-out", test_fraction=0.3).splits.train) == 6
    assert len(read_source(path, 30, val_split="train", test_fraction=0.3).splits.train) == 9


def test_what_is_no_third_split_is_none(tmp_path):
    """Statistics under such names, and an option that has no use."""
    path = hdf5(
        tmp_path / "a.h5",
        points=POINTS,
        labels=LABELS,
        x_mean=np.zeros(3),
        y_mean=1.0,
        stats__x=np.zeros((2, 3)),
        stats__y=np.zeros(2),
    )
    assert len(read_source(path, 30).splits.train) == 9
    for val_split, message in (
        ("train", "has no third split, so --val-split has no use"),
        ("test", "expected train"),
    ):
        with pytest.raises(UsageError, match=message):
            read_source(path, 30, val_split=val_split)
    with pytest.raises(DataError, match="expected points"):
        read_source(hdf5(tmp_path / "b.h5", points=POINTS, labels=LABELS, X_val=POINTS), 30)


@pytest.mark.parametrize("kind", ["text", "bytes"])
@pytest.mark.parametrize("where", ["/", "labels", "train", "train/label"])
def test_class_names_in_an_attribute_are_read(tmp_path, where, kind):
    names = ["mug", "bowl", "vas\u00e9"]
    members = dict(points=POINTS, labels=LABELS) if where in ("/", "labels") else THREE["groups"]
    path = hdf5(
        tmp_path / "a.h5", **{name: values for name, values in members.items() if "val" not in name}
    )
    with h5py.File(path, "a") as file:
        file[where].attrs["Class_Names"] = (
            names if kind == "text" else np.array([name.encode() for name in names])
        )
    assert read_source(path, 30).splits.train.class_names == tuple(names)


@pytest.mark.parametrize("form", ["{}/class_names", "class_names_{}", "{}_classes"])
def test_class_names_beside_each_split_are_read_and_must_be_the_same(tmp_path, form):
    members = {name: values for name, values in THREE["groups"].items() if "val" not in name}
    same, other = ["mug", "bowl", "vase"], ["vase", "bowl", "mug"]
    for names, file in ((same, "same.h5"), (other, "other.h5")):
        lists = {form.format("train"): same, form.format("test"): names}
        hdf5(tmp_path / file, **members, **{name: list(of) for name, of in lists.items()})
    assert read_source(str(tmp_path / "same.h5"), 30).splits.test.class_names == tuple(same)
    with pytest.raises(DataError, match="class names differ between"):
        read_source(str(tmp_path / "other.h5"), 30)


def test_class_names_in_another_encoding_are_told_as_such(tmp_path):
    names = np.array(["mug", "bowl", "vas\u00e9".encode("latin-1")], "S8")
    path = hdf5(tmp_path / "a.h5", points=POINTS, labels=LABELS, class_names=names)
    with pytest.raises(DataError, match="class_names: is no UTF-8"):
        read_source(path, 30)


@pytest.mark.parametrize("value", [np.nan, -2.0, 2.0**63])
def test_a_label_that_is_no_class_is_named_as_it_is(tmp_path, value):
    labels = np.array(LABELS, np.float64)
    labels[1] = value
    path = hdf5(tmp_path / "a.h5", points=POINTS, labels=labels)
    with pytest.raises(DataError, match=f"whole numbers.*got {re.escape(str(value))}"):
        read_source(path, 30)


@pytest.mark.parametrize(
    "value, message",
    [
        (
            "mug,bowl,vase",
            r"attribute classes: expected text, one name a class, up to 1024, got \(\) object",
        ),
        ([1, 2, 3], "attribute classes: expected text"),
        (
            ["mug", "bowl", "cup"],
            "class names differ between class_names and attribute classes of /; remove all but one",
        ),
    ],
)
def test_class_names_in_an_attribute_that_are_none_or_others_are_refused(tmp_path, value, message):
    path = hdf5(
        tmp_path / "a.h5", points=POINTS, labels=LABELS, class_names=["mug", "bowl", "vase"]
    )
    with h5py.File(path, "a") as file:
        file.attrs["classes"] = value
    with pytest.raises(DataError, match=message):
        read_source(path, 30)


def test_labels_that_begin_at_1_are_refused_with_what_to_do(tmp_path):
    """With names and without; of two clouds of class 0 alone nothing is wrong."""
    for members in (
        dict(),
        dict(class_names=["mug", "bowl", "vase"]),
        dict(class_names=["a", "mug", "bowl", "vase"]),
    ):
        path = hdf5(
            tmp_path / "a.h5",
            points=POINTS,
            labels=(LABELS + 1)[:, None].astype(np.uint8),
            **members,
        )
        with pytest.raises(DataError, match="1.*expected .*0.*; subtract 1"):
            read_source(path, 30)


def test_far_clouds_of_a_data_set_are_centred_before_they_are_rounded(tmp_path):
    """float64, and integers with a scale, at coordinates where a step of float32 is half a unit."""
    wanted = read_source(
        hdf5(tmp_path / "near.h5", points=POINTS.astype(np.float64), labels=LABELS), 30
    ).splits
    moved = POINTS.astype(np.float64) + [500000, 5400000, 300]
    found = read_source(hdf5(tmp_path / "far.h5", points=moved, labels=LABELS), 30).splits
    np.testing.assert_allclose(
        found.train.points, wanted.train.points, atol=2e-7
    )  # 1e-9 in a radius of 2, and float32
    path = hdf5(
        tmp_path / "whole.h5",
        points=np.rint(moved * 2**16).astype(np.int64),
        labels=LABELS,
        scale=2.0**-16,
    )
    found = read_source(path, 30).splits
    np.testing.assert_allclose(
        found.train.points, wanted.train.points, atol=2**-16
    )  # steps of 2^-16, radius above 2
    clouds = Clouds.from_arrays(moved, LABELS, ["a", "b", "c"])
    alone = Clouds.from_arrays(list(moved), LABELS, ["a", "b", "c"], num_points=30)
    np.testing.assert_array_equal(alone.points, clouds.points)
    np.testing.assert_allclose(clouds.points[0], wanted.train.points[0], atol=2e-7)
    with pytest.raises(DataError, match="cloud 0: steps of float32 are 0.5 at coordinates of 5.4e"):
        read_source(str(tmp_path / "far.h5"), 30, normalisation="none")
    with pytest.raises(DataError, match="cloud 0: steps of float32 are 0.5"):
        Clouds.from_arrays(moved, LABELS, ["a", "b", "c"], normalise=False)


def test_a_file_that_is_open_for_writing_is_not_called_damaged(tmp_path):
    """By libhdf5's lock while it is written, and by a mark in the file afterwards."""
    path = str(tmp_path / "a.h5")
    for version, ending in (("earliest", "file.close()"), ("latest", "os._exit(1)")):
        hold = (
            f"import h5py, os, sys\nfile = h5py.File({path!r}, 'w', "
            f"libver={version!r})\nfile['points'] = [1.0]\n"
            f"file.flush(); print('open', flush=True); sys.stdin.read()\n{ending}"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout.readline() == b"open\n"
            with pytest.raises(
                DataError, match="a.h5: another program has it open for writing; close it there"
            ):
                read_source(path, 30)
            holder.stdin.close()
        with pytest.raises(
            DataError, match="expected points" if version == "earliest" else "for writing.*h5clear"
        ):
            read_source(path, 30)


@pytest.mark.parametrize("where", ["attribute", "dataset"])
def test_int16_points_are_read_with_their_scale(tmp_path, where):
    stored = np.rint(POINTS * 4096).astype(np.int16)
    path = hdf5(tmp_path / "a.h5", points=stored, labels=LABELS)
    with h5py.File(path, "a") as file:
        if where == "attribute":
            file["points"].attrs["scale"] = 2.0**-12
        else:
            file["scale"] = 2.0**-12
    found = read_source(path, 30, normalisation="none").splits
    together = np.concatenate([found.train.points, found.test.points])
    wanted = stored.astype(np.float32) / 4096
    assert {one.tobytes() for one in together} == {one.tobytes() for one in wanted}


def test_other_counts_are_sampled_and_padded_as_in_a_tree(tmp_path):
    path = hdf5(tmp_path / "a.h5", points=POINTS, labels=LABELS, split=[0] * 8 + [1] * 4)
    np.save(tmp_path / "first.npy", POINTS[0])
    for count, sampled, padded in ((20, 12, 0), (45, 0, 12), (30, 0, 0)):
        found = read_source(path, count)
        assert (found.sampled, found.padded, found.moved) == (sampled, padded, 12)
        wanted, _, _ = read_prepared(str(tmp_path / "first.npy"), "unit_sphere", count)
        np.testing.assert_array_equal(found.splits.train.points[0], wanted)


@pytest.mark.parametrize(
    "members, message",
    [
        (
            dict(vertices=POINTS, labels=LABELS),
            r"expected points \(or data, X\) and labels.*rename them",
        ),
        (dict(points=POINTS), "expected points"),
        (dict(points=POINTS, data=POINTS, labels=LABELS), "found data, points; remove others"),
        (
            dict(points=POINTS[:0], labels=LABELS[:0]),
            r"points: expected \(N, P, 3\) .*got \(0, 30, 3\)",
        ),
        (dict(points=POINTS[0], labels=LABELS), r"points: expected \(N, P, 3\) float or integer"),
        (dict(points=POINTS.transpose(0, 2, 1), labels=LABELS), r"points: expected \(N, P, 3\)"),
        (
            dict(points=POINTS.astype(np.int16), labels=LABELS),
            "one positive number is expected as its attribute scale",
        ),
        (
            dict(points=POINTS, labels=LABELS[:5]),
            r"labels: expected \(12,\) labels of points, .*got \(5,\)",
        ),
        (dict(points=POINTS, labels=LABELS + 0.5), "labels: expected whole numbers, got 0.5"),
        (
            dict(points=POINTS, labels=LABELS - 1),
            "labels: expected whole numbers from 0, got -1; number the classes",
        ),
        (dict(points=POINTS, labels=LABELS * 10**6), "has a label 2000000, but 12 clouds"),
        (dict(points=POINTS, labels=LABELS, class_names=["a", "b"]), "labels from 0 to 1"),
        (
            dict(points=POINTS, labels=LABELS, class_names=["a", "b", "a"]),
            r"\['a'\] more than once",
        ),
        (
            dict(points=POINTS, labels=LABELS, class_names=[1, 2, 3]),
            "expected text, one name a class",
        ),
        (
            dict(points=POINTS, labels=LABELS, split=[0, 1]),
            "split: expected 12 times train or test",
        ),
        (
            dict(points=POINTS, labels=LABELS, split=[2] * 12),
            "split: expected 12 times train or test, or 0 or 1; found 2",
        ),
        (dict(X_train=POINTS, y_train=LABELS), "expected points"),
        (
            dict(points=np.where(POINTS > 2.5, np.nan, POINTS), labels=LABELS),
            "expected finite float32 coordinates",
        ),
    ],
)
def test_a_single_file_that_is_no_data_set_is_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        read_source(hdf5(tmp_path / "a.h5", **members), 30)


def test_members_that_lie_elsewhere_are_not_followed(tmp_path):
    hdf5(tmp_path / "secret.h5", points=POINTS, labels=LABELS)
    path = hdf5(tmp_path / "a.h5", labels=LABELS)
    with h5py.File(path, "a") as file:
        file["points"] = h5py.ExternalLink("secret.h5", "points")
    with pytest.raises(DataError, match="expected a data set 'points'"):
        read_source(path, 30)
    (tmp_path / "raw").write_bytes(POINTS.tobytes())
    with h5py.File(path, "w") as file:
        file["labels"] = LABELS
        file.create_dataset(
            "points", POINTS.shape, "f4", external=[(str(tmp_path / "raw"), 0, POINTS.nbytes)]
        )
    with pytest.raises(DataError, match="points declares"):
        read_source(path, 30)


def test_a_file_that_declares_what_it_does_not_hold_is_refused(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file["labels"] = LABELS
        file.create_dataset(
            "points", (10**7, 10**5, 3), "f4", chunks=(1, 1000, 3), compression="gzip"
        )
    assert (tmp_path / "bomb.h5").stat().st_size < 10_000
    with pytest.raises(DataError, match="points declares 12000000000000 bytes"):
        read_source(str(tmp_path / "bomb.h5"), 30)


def test_what_is_packed_already_is_said_so(say, data):
    os.mkfifo("pipe.h5")
    with pytest.raises(DataError, match="clouds.h5: is packed already: use it as it is"):
        read_source(data, 10)
    with pytest.raises(DataError, match="pipe.h5: expected a file, found a pipe"):
        read_source("pipe.h5", 10)


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
    clouds = Clouds.from_arrays(
        points, LABELS.astype(np.uint8), ["a", "b", "c"], up_axis="y", normalise=False
    )
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


def test_labels_in_a_column_are_labels():
    clouds = Clouds.from_arrays(POINTS, LABELS[:, None], ["a", "b", "c"])
    np.testing.assert_array_equal(clouds.labels, LABELS)


@pytest.mark.parametrize(
    "names", [{"a", "b", "c"}, frozenset("abc"), {"a": 0, "b": 1, "c": 2}, "abc"]
)
def test_class_names_without_the_order_of_the_labels_are_refused(names):
    with pytest.raises(
        DataError, match=f"expected a list in the order of the labels, got {type(names).__name__}"
    ):
        Clouds.from_arrays(POINTS, LABELS, names)
    assert Clouds.from_arrays(POINTS, LABELS, np.array(["a", "b", "c"])).class_names == (
        "a",
        "b",
        "c",
    )


@pytest.mark.parametrize(
    "points, labels, message",
    [
        ([], [], "expected at least one cloud"),
        (POINTS[:, :, :2], LABELS, "cloud 0: points: expected shape"),
        (
            [POINTS[0], POINTS[1][:, :2]],
            [0, 1],
            r"cloud 1: points: expected shape \(\*, 3\), got \(30, 2\)",
        ),
        ([POINTS[0], np.zeros((0, 3))], [0, 1], "cloud 1: expected at least one point"),
        (POINTS.astype(complex), LABELS, "expected real numbers, found complex128"),
        (np.full((2, 4, 3), np.inf), [0, 1], "cloud 0, point 0: expected finite"),
        (POINTS, LABELS + 0.5, "labels: expected whole numbers, got 0.5"),
        (POINTS, [str(label) for label in LABELS], "labels: expected whole numbers, got <U1"),
        (POINTS, LABELS[:3], r"labels: expected shape \(12\), got \(3,\)"),
        (POINTS, LABELS + 2, "expected labels from 0 to 2"),
        (
            POINTS,
            LABELS + 1,
            r"count from 1 to 3, expected from 0 to 2 \(3 class names\); subtract 1 from all "
            r"labels",
        ),
        (
            POINTS,
            np.eye(3)[LABELS],
            r"labels: expected \(N,\) whole numbers, got \(12, 3\); of one-hot rows take argmax",
        ),
    ],
)
def test_arrays_that_are_no_clouds_are_refused(points, labels, message):
    with pytest.raises(DataError, match=message):
        Clouds.from_arrays(points, labels, ["a", "b", "c"])


# The command line


def test_pack_says_what_it_did_and_a_dry_run_writes_nothing(folder, say):
    mixed_tree(folder / "set")
    code, dry, _ = say(
        "data", "pack", "set", "-o", "out.h5", "--num-points", 30, "--dry-run", "--json"
    )
    assert code == 0 and os.listdir() == ["set"]
    code, out, _ = say(
        "data", "pack", "set", "-o", "out.h5", "--num-points", 30, "--up-axis", "z", "--json"
    )
    values = json.loads(out)
    assert json.loads(dry) | {"dry_run": False, "up_axis": "z"} == values
    assert (values["normalised"], values["train"], values["test"]) == (30, 24, 6)
    assert values["sampled"] + values["padded"] <= 30 and read_clouds("out.h5").train.up_axis == "z"
    code, out, _ = say("data", "info", "out.h5")
    assert code == 0 and "made from folder set, by minipc" in out
    code, out, _ = say(
        "data", "pack", "set", "-o", "plain.h5", "--num-points", 30, "--normalisation", "none"
    )
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
    for bad, message in (
        (np.nan, "cloud 300: point 7: expected finite"),
        (None, "cloud 300: expected at least 2"),
    ):
        spoilt = many.copy()
        spoilt[300, 7] = bad if bad else 0
        spoilt[300] = spoilt[300] if bad else 1
        path = hdf5(tmp_path / "a.h5", points=spoilt, labels=np.arange(360) % 3)
        for count in (30, 20):
            with pytest.raises(DataError, match=f"points: {message}"):
                read_source(path, count)


@pytest.mark.parametrize(("there", "found"), [(5, "found 5"), (7, "found more")])
def test_a_reader_that_yields_another_number_of_clouds_than_it_says_is_refused(there, found):
    """Rows that nobody filled would be clouds of whatever the memory held."""
    clouds = (Cloud(POINTS[i % 12], i % 3, None, f"cloud {i}") for i in range(there))
    listing = Listing(6, clouds, ("a", "b", "c"), False, "a test")
    with pytest.raises(DataError, match=f"source: expected 6 clouds, {found}: it changed while"):
        collect("source", listing, Request(30))


def test_a_source_of_nothing_but_a_third_split_leaves_no_clouds(tmp_path):
    words = np.array([b"val"] * len(LABELS))
    path = hdf5(tmp_path / "a.h5", points=POINTS, labels=LABELS, split=words)
    with pytest.raises(DataError, match="holds no training and no test clouds"):
        read_source(path, 30, val_split="leave-out")
