"""Files of every format version, written once and kept for ever: every later minipc reads them.

They are never written again.  A new version gets files of its own beside these.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig, draw
from minipc.data.clouds import Clouds, Splits, read_clouds, write_clouds
from minipc.data.groups_file import Groups, indices_of, make_groups, read_groups, write_groups
from minipc.distil.evaluate import predict
from minipc.models import pointnet2
from minipc.models.checkpoint import GROUPS, Checkpoint, read_checkpoint, write_checkpoint
from minipc.models.file import Model, model_id, read_model, write_model
from minipc.models.model import sizes
from minipc.models.pointnet import ModelConfig, initial_stats, param_specs
from minipc.record.reader import RecordReader
from minipc.record.recorder import compute_shard, record
from minipc.record.recording import Recording
from minipc.record.store import Store
from minipc.storage import hdf5
from minipc.storage.files import sha256_arrays

GOLDEN = Path(__file__).parent / "golden"


def dyadic(*shape):
    """Return float32 values that every machine computes alike: multiples of 1/64, in no order."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 % 101 - 50) / 64).astype(np.float32).reshape(shape)


def golden_splits(source="", named=False):
    def clouds(n, split):
        names = [f"{split}/{i}.xyz" for i in range(n - 1)] + [f"{split}/\udcff\n.xyz"]
        return Clouds(
            dyadic(n, 4, 3),
            np.arange(n) % 3,
            ("bed", "bowl", "desk"),
            "z",
            "none",
            source,
            tuple(names) if named else (),
        )

    return Splits(clouds(5, "train"), clouds(3, "test"))


def golden_model():
    config = ModelConfig((4,), (3,), 3, dropout=0.25)
    params = {name: dyadic(*spec.shape) for name, spec in param_specs(config).items()}
    stats = {name: 1 + dyadic(*value.shape) for name, value in initial_stats(config).items()}
    return Model(
        config, params, stats, golden_splits().train.described, {"epochs": 2, "of_epochs": 2}
    )


def golden_local_model():
    """A tiny PointNet++: point-wise layers, two scales, a ball, a residual layer, the mean."""
    config = replace(
        pointnet2.sizes("3,3/2:4+,2/2:3-4/0.5x3:3,5+mean:4", 3), dropout=0.25, momentum=0.25
    )
    specs, stats = pointnet2.param_specs(config), pointnet2.initial_stats(config)
    return Model(
        config,
        {name: (not name.endswith("W")) + dyadic(*spec.shape) for name, spec in specs.items()},
        {name: 1 + dyadic(*value.shape) for name, value in stats.items()},
        golden_splits().train.described,
        {"epochs": 2, "of_epochs": 2},
    )


def first_point(points):
    """A teacher that answers with the first point's coordinates."""
    return points[:, 0, :]


def golden_record(path, carry=False, named=False):
    """Write the record of first_point over two views, with its clouds or without."""
    splits = golden_splits(named=named)
    return record(
        Recording(
            splits.train,
            "first-point",
            path,
            2,
            seed=7,
            data_file="clouds-1.h5",
            with_clouds=splits if carry else None,
            force=True,
        ),
        first_point,
    )


def golden_shard(folder):
    """Write the shard of view 1 of the same recording."""
    with RecordReader(str(GOLDEN / "record-1.h5")) as reader:
        plan = reader.plan
    store = Store(str(folder / "shard.h5"), plan)
    *arrays, kl = compute_shard(
        golden_splits().train, first_point, plan, AugmentConfig(), 1, 0, 5, np, 1
    )
    store.commit_shard(1, 0, *arrays, {"numpy": "golden", "max_kl": kl})
    os.rename(folder / "shard.h5.parts" / SHARD, folder / "shard-1.h5")
    store.parts.abandon()


SHARD = "view-00001-row-00000000.h5"


def golden_checkpoint():
    model = golden_model()
    moments = {
        f"{moment}.{name}": value / 2 for moment in "mv" for name, value in model.params.items()
    }
    visited = {
        "logits": dyadic(5, 3).astype(np.float16),
        "visited": np.array([1, 1, 0, 1, 1], np.uint8),
    }
    return Checkpoint(
        "0123456789abcdef" * 4,
        [{"epoch": 1, "total": 1.5}],
        3,
        model.params,
        model.stats,
        moments,
        visited,
    )


def golden_groups():
    """Groups of two levels, one with balls, made of the golden training clouds."""
    clouds, config = golden_splits().train, sizes("3/2:4,2/0.75x3:4/1.5x2:4,4", 3)
    indices = indices_of(config, 4)
    return Groups(clouds.points_hash, len(clouds), indices, make_groups(config, clouds.points))


def write_all(folder):
    """Write the golden files of the current versions into an empty folder; used once a version."""
    write_clouds(str(folder / "clouds-2.h5"), golden_splits("golden points"))
    write_clouds(str(folder / "clouds-3.h5"), golden_splits("golden points", named=True))
    write_model(str(folder / "model-2.h5"), golden_model())
    write_model(str(folder / "model-2-pointnet2.h5"), golden_local_model())
    write_checkpoint(str(folder / "checkpoint-1.h5"), golden_checkpoint())
    write_groups(str(folder / "groups-1.h5"), golden_groups())
    golden_record(str(folder / "record-1.h5"))
    golden_record(str(folder / "record-2.h5"), carry=True)
    golden_record(str(folder / "record-3.h5"), carry=True, named=True)
    golden_shard(folder)


def test_a_checkpoint_of_version_1_is_read():
    wanted, found = golden_checkpoint(), read_checkpoint(str(GOLDEN / "checkpoint-1.h5"))
    assert found[:3] == wanted[:3]
    for group in GROUPS:
        mine, read = getattr(wanted, group), getattr(found, group)
        assert set(mine) == set(read)
        for name, value in mine.items():
            np.testing.assert_array_equal(read[name], value, strict=True)


def test_groups_of_version_1_are_read_and_are_those_that_are_made_today():
    wanted, found = golden_groups(), read_groups(str(GOLDEN / "groups-1.h5"))
    assert found[:3] == wanted[:3]
    for mine, read in zip(wanted.arrays, found.arrays, strict=True):
        np.testing.assert_array_equal(read, mine, strict=True)


@pytest.mark.parametrize("version, source", [(1, ""), (2, "golden points"), (3, "golden points")])
def test_clouds_of_every_version_are_read(version, source):
    for wanted, found in zip(
        golden_splits(named=version > 2),
        read_clouds(str(GOLDEN / f"clouds-{version}.h5")),
        strict=True,
    ):
        assert found.source == source and found.files == wanted.files
        np.testing.assert_array_equal(found.points, wanted.points)
        np.testing.assert_array_equal(found.labels, wanted.labels)
        assert found.described == wanted.described
        assert (found.points_hash, found.labels_hash) == (wanted.points_hash, wanted.labels_hash)


MODEL_IDS = {
    "model-1": (golden_model, "a71d576c4a2144513b431cb682e9c668eda3aeee9d25a26c21c7bc0d2dad015f"),
    "model-2": (golden_model, "a71d576c4a2144513b431cb682e9c668eda3aeee9d25a26c21c7bc0d2dad015f"),
    "model-2-pointnet2": (
        golden_local_model,
        "7fd5c34b88fae0f17852b3e5eff4fdd036b4c599d8590df3fcd01910ca483f3b",
    ),
}


LOGITS = [  # of the golden PointNet++
    [0.1093464, 0.8602712, 1.2202909],
    [0.1122725, 0.8273056, 1.3152163],
    [0.1427962, 0.8084310, 1.3798764],
    [0.0998589, 0.8588531, 1.2307993],
    [0.0763076, 0.8396578, 1.2831405],
]
GROUPS_HASH = "c2e21c96258b6ef9bd1c1830ed2ec750b03c31ccf0682537c9db35540d2e41ee"


@pytest.mark.parametrize("name", MODEL_IDS)
def test_a_model_of_every_version_and_architecture_is_read_and_keeps_its_id(name):
    make, identity = MODEL_IDS[name]
    wanted, found = make(), read_model(str(GOLDEN / f"{name}.h5"))
    assert (found.config, found.described, found.trained) == (
        wanted.config,
        wanted.described,
        wanted.trained,
    )
    for name, value in (wanted.params | wanted.stats).items():
        np.testing.assert_array_equal((found.params | found.stats)[name], value)
    assert model_id(found) == model_id(wanted) == identity


def test_groups_and_logits_of_the_golden_pointnet2_are_those_of_its_first_day():
    """A record of it replays only if a cloud keeps its groups for ever."""
    model = read_model(str(GOLDEN / "model-2-pointnet2.h5"))
    logits = predict(model, golden_splits().train.points, np, 1)
    # Float32, 10 layers of sums of at most 10 terms: any kernel of BLAS is nearer than this.
    np.testing.assert_allclose(logits, LOGITS, rtol=0, atol=1e-5)
    # coordinates of few values: many distances are equal
    other = pointnet2.sizes("16/8:4,5/0.5x6:4/3:4,4", 3)
    groups = pointnet2.prepare(other, dyadic(3, 40, 3))
    assert sha256_arrays(*(group.astype(np.uint32) for group in groups)) == GROUPS_HASH


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_record_of_every_version_is_read_and_keeps_its_run_id(version):
    clouds = golden_splits().train
    with RecordReader(str(GOLDEN / f"record-{version}.h5")) as reader:
        reader.check_belongs(clouds)
        assert (reader.views, reader.plan.teacher_id, reader.meta["data_file"]) == (
            2,
            "first-point",
            "clouds-1.h5",
        )
        assert reader.plan.recording_id == (
            "4212ed7a9f970634448299703080dd95a21c66342780f34abeb5a3a58f9f0f6f"
        )
        for view in range(2):
            scale, shift, logits = reader.view(view)
            params = draw(7, view, 0, 5, AugmentConfig())
            np.testing.assert_array_equal(scale, params.scale)
            np.testing.assert_array_equal(shift, params.shift)
            applied = (clouds.points[:, 0] * scale + shift).astype(np.float16)
            np.testing.assert_array_equal(logits, applied)


def test_the_clouds_in_a_record_of_version_3_have_the_names_of_their_files():
    with RecordReader(str(GOLDEN / "record-3.h5")) as reader:
        for found, wanted in zip(reader.clouds(), golden_splits(named=True), strict=True):
            assert found.files == wanted.files and found.files[-1].endswith("\udcff\n.xyz")
            assert found.points.tobytes() == wanted.points.tobytes()


def test_the_clouds_in_a_record_of_version_2_are_read():
    with RecordReader(str(GOLDEN / "record-1.h5")) as reader:
        assert reader.clouds() is None
    with RecordReader(str(GOLDEN / "record-2.h5")) as reader:
        assert reader.meta["clouds"] == {"dtype": "int16", "exponent": -15, "source": None}
        for found, wanted in zip(reader.clouds(), golden_splits(), strict=True):
            assert (
                found.points.tobytes() == wanted.points.tobytes()
                and found.described == wanted.described
            )
            np.testing.assert_array_equal(found.labels, wanted.labels)


def test_a_shard_of_version_1_counts_in_a_recording_that_continues_today(tmp_path):
    (tmp_path / "record.h5.parts").mkdir()
    shutil.copy(GOLDEN / "shard-1.h5", tmp_path / "record.h5.parts" / SHARD)
    assert golden_record(str(tmp_path / "record.h5")).resumed_shards == 1
    with (
        RecordReader(str(tmp_path / "record.h5")) as new,
        RecordReader(str(GOLDEN / "record-1.h5")) as old,
    ):
        assert (
            new.plan == old.plan
            and {"made_with": {"numpy": "golden"}, "rows": 5} in new.meta["provenance"]
        )
        for view in range(2):
            for one, other in zip(new.view(view), old.view(view), strict=True):
                np.testing.assert_array_equal(one, other)


def test_what_is_written_today_equals_the_golden_files_in_all_but_provenance(tmp_path):
    write_all(tmp_path)
    newest = [
        ("clouds", 2),
        ("clouds", 3),
        ("model", 2),
        ("shard", 1),
        ("checkpoint", 1),
        ("groups", 1),
    ]
    files = [(f"{kind}-{version}.h5", kind, version) for kind, version in newest]
    for name, kind, version in (*files, ("model-2-pointnet2.h5", "model", 2)):
        with (
            hdf5.open_hdf5(str(tmp_path / name), kind, version) as new,
            hdf5.open_hdf5(str(GOLDEN / name), kind, version) as old,
        ):
            assert content(new) == content(old)
    for name in ("record-1.h5", "record-2.h5", "record-3.h5"):
        with (
            hdf5.open_hdf5(str(tmp_path / name), "record", 3) as new,
            hdf5.open_hdf5(str(GOLDEN / name), "record", 3) as old,
        ):
            assert content(new) | {"meta": 0} == content(old) | {"meta": 0}
            metas = [hdf5.read_meta(file, name) | {"provenance": 0} for file in (new, old)]
            assert metas[0] == metas[1]


def content(file):
    """Return {name: (dtype, bytes)} of every dataset in a file."""
    names = []
    file.visit(names.append)
    datasets = {name: file[name] for name in names if hasattr(file[name], "dtype")}
    return {name: (dataset.dtype.str, dataset[()].tobytes()) for name, dataset in datasets.items()}
