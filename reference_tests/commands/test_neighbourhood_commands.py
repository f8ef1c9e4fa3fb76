"""A PointNet++ through every command, and its groups: made once, kept, shared, never believed."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from contextlib import chdir
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import write_three_classes

from minipc.cli.main import main
from minipc.data import groups_file
from minipc.data.augment import AugmentConfig, Params, apply
from minipc.data.clouds import Splits, read_clouds, write_clouds
from minipc.data.groups_file import (
    Groups,
    groups_path,
    indices_of,
    kept_groups,
    make_groups,
    read_groups,
    write_groups,
)
from minipc.distil.evaluate import metrics, predict, vote
from minipc.distil.train import drawn_views, train
from minipc.errors import DataError
from minipc.models import pointnet2
from minipc.models.file import read_model
from minipc.models.inputs import Inputs
from minipc.models.model import sizes
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.parallel import scheduler
from minipc.record.reader import RecordReader
from minipc.record.recording import Recording
from minipc.settings import TrainConfig
from minipc.storage import files
from minipc.verbs.record import _clouds_and_model
from reference_tests.commands.test_cli import snapshot

ROOT = Path(__file__).parents[2]
SMALL = "6,8/4:6+,4/0.9x3:7/1.5x4:6,9+mean:5"  # of 16 points: 8 centres, then 4 with two balls
WIDER = "8/4:7-9,4/0.9x3:5/1.5x4:8,12"  # the same groups
OTHER = "8/4:6,4/0.9x3:7/1.6x4:6,9"  # other groups: one radius
CONFIG = sizes(SMALL, 3)
STEPS = ("--batch-size", 8, "--lr", 0.01, "--warmup-steps", 4, "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with clouds.h5, a PointNet++ teacher, its record.h5 of two views, and the groups."""
    folder = tmp_path_factory.mktemp("pointnet2")
    with chdir(folder):
        write_three_classes("clouds.h5")
        teach = ("--labels-only", "--model", SMALL, "--epochs", 3, *STEPS)
        teacher = ("--teacher", "teacher", "--views", 2, "--logits", "float32", "--force")
        for line in (
            ("train", "clouds.h5", *teach, "--out", "teacher"),
            ("record", "clouds.h5", *teacher, "--quiet"),
        ):
            with pytest.raises(SystemExit) as end:
                main([str(word) for word in line])
            assert end.value.code == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of that folder to stand in."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def ok(say):
    """Run a command that must succeed: its JSON object."""

    def run(*line):
        code, out, err = say(*line, "--json")
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    return run


@pytest.fixture
def grouped(monkeypatch):
    """The numbers of clouds that are grouped at once, one call after the other."""
    counts, prepare = [], pointnet2.prepare

    def counting(config, points):
        counts.append(len(points))
        return prepare(config, points)

    monkeypatch.setattr(pointnet2, "prepare", counting)
    return counts


def caches():
    """Return the names of the files of groups here."""
    return sorted(str(path) for path in Path().glob("**/groups-*"))


def cache_of(clouds, config=CONFIG):
    """Return the path of the groups of Clouds here."""
    indices = indices_of(config, clouds.points.shape[1])
    return groups_path("clouds.h5", clouds.points_hash, indices)


# every command


def test_a_stopped_training_goes_on_to_the_same_bytes(place, ok):
    whole = ("train", "clouds.h5", "--labels-only", "--model", SMALL, "--epochs", 3, *STEPS)
    ok(*whole, "--out", "parts", "--stop-after", 1)
    ok("train", "--resume", "--out", "parts", "--quiet")
    assert Path("parts/model.h5").read_bytes() == Path("teacher/model.h5").read_bytes()


def test_processes_and_shares_write_the_record_of_one_process(place, ok):
    asked = ("record", "clouds.h5", "--teacher", "teacher", "--views", 2, "--logits", "float32")
    asked += ("--force", "--quiet", "--threads", 2)
    ok(*asked, "--workers", 2, "--out", "two.h5")
    for share in ("0/2", "1/2"):
        ok(*asked, "--shards", share, "--out", "shares.h5")
    assert Path("two.h5").read_bytes() == Path("record.h5").read_bytes()
    assert Path("shares.h5").read_bytes() == Path("record.h5").read_bytes()


def test_a_record_is_verified_bit_for_bit(place, ok):
    found = ok("verify", "record.h5", "--teacher", "teacher", "--sample", "all", "--quiet")
    assert found["passed"] and found["bitwise"] and found["different"] == 0


def test_its_logits_are_those_of_groups_of_the_stored_clouds(place):
    points, model = read_clouds("clouds.h5").train.points, read_model("teacher/model.h5")
    groups = pointnet2.prepare(model.config, points)
    logits_of = pointnet2.evaluator(model.params, model.stats, model.config)
    with RecordReader("record.h5") as reader:
        for view in range(2):
            scale, shift, logits = reader.view(view)
            applied = apply(points, Params(scale, shift))
            np.testing.assert_array_equal(logits_of(Inputs(applied, groups)), logits)
            wrong = pointnet2.prepare(model.config, applied)  # neighbours of the augmented clouds
            assert (logits_of(Inputs(applied, wrong)) != logits).any()


@pytest.mark.parametrize("target", ["history", "ema"])
def test_a_pointnet_learns_from_its_record(place, ok, target):
    ours = ("--self-weight", 0.2, "--self-target", target)
    student = ("train", "--record", "record.h5", "--model", "6-8:6", "--epochs", 2, *STEPS)
    found = ok(*student, *ours, "--out", "student")
    assert found["parameters"] < 250 and 0 < found["teacher_agreement"] <= 1


def test_it_learns_from_the_record_of_a_pointnet(place, ok):
    teach = ("--labels-only", "--model", "6-8:6", "--epochs", 1, *STEPS)
    ok("train", "clouds.h5", *teach, "--out", "plain")
    asked = ("--teacher", "plain", "--views", 2, "--force", "--quiet")
    ok("record", "clouds.h5", *asked, "--out", "plain.h5")
    student = ("train", "--record", "plain.h5", "--model", SMALL, "--epochs", 2, *STEPS)
    student += ("--self-weight", 0.2)  # the earlier self reads the groups too
    found = ok(*student, "--out", "student")
    assert 0 < found["teacher_agreement"] <= 1
    ok(*student, "--out", "parts", "--stop-after", 1)
    ok("train", "--resume", "--out", "parts", "--quiet")
    assert Path("parts/model.h5").read_bytes() == Path("student/model.h5").read_bytes()


def test_evaluation_and_votes_read_groups_of_the_stored_clouds(place, ok):
    found = ok("eval", "teacher", "--votes", 3, "--teacher", "teacher", "--quiet")
    test, model = read_clouds("clouds.h5").test, read_model("teacher/model.h5")
    alone = metrics(test.labels, predict(model, test.points, np, 1))
    voted = metrics(test.labels, vote(model, test.points, 3, AugmentConfig(), np, 1))
    assert (found["nll"], found["voted"]["nll"]) == (alone.nll, voted.nll)
    assert found["teacher_agreement"] == 1
    assert ok("train", "--resume", "--out", "teacher", "--quiet")["test_nll"] == alone.nll


def test_a_cloud_in_a_file_is_grouped_on_the_fly_and_leaves_nothing(place, ok):
    test, model = read_clouds("clouds.h5").test, read_model("teacher/model.h5")
    np.save("cloud.npy", test.points[5])
    before = caches()
    found = ok("predict", "teacher", "cloud.npy", "--top", 3, "--quiet")["predictions"][0]["top"]
    logits = predict(model, test.points[5:6], np, 1)[0].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum()
    for each in found:  # softmax in another order of float64 operations: a few of 2^-52
        assert each["probability"] == pytest.approx(p[test.class_names.index(each["class"])], 1e-12)
    assert caches() == before


def test_the_textbook_engine_computes_the_same_losses(place, ok):
    one = ("train", "clouds.h5", "--labels-only", "--model", SMALL, "--epochs", 1)
    one += ("--batch-size", 48, "--lr", 1e-9, "--quiet")  # weights stay: forwards are compared
    losses = []
    for engine in ("fused", "textbook"):
        ok(*one, "--engine", engine, "--out", engine)
        losses.append(json.loads(Path(engine, "metrics.jsonl").read_text())["total"])
    # float32 of a few hundred additions and two variances each: far above 300 * 2^-24 = 2e-5
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found = [
        ok("eval", "teacher", "--engine", engine, "--quiet") for engine in ("fused", "textbook")
    ]
    assert found[0]["nll"] == pytest.approx(found[1]["nll"], rel=1e-4)


def test_info_tells_levels_and_groups_in_words(place, say, ok):
    code, out, _ = say("info", "teacher/model.h5")
    assert code == 0 and "PointNet++ 6,8/4:6+" in out
    for line in (
        "level0.centres: 8 centres, of 16 points, farthest points",
        "level0.scale0: 8 groups of 4, of 16 points, nearest",
        "level1.centres: 4 centres, of 8 points, the first",
        "level1.scale1: 4 groups of 4, of 8 points, nearest in radius 1.5",
    ):
        assert f"  {line}\n" in out
    path = cache_of(read_clouds("clouds.h5").train)
    code, out, _ = say("info", path)
    assert code == 0 and "groups file of" in out and "neighbours in 96 clouds" in out
    assert "level1.scale1: 4 groups of 4, of 8 points, nearest in radius 1.5\n" in out
    assert ok("info", path)["clouds"] == 96
    assert ok("info", "teacher")["files"]["checkpoint.h5"]["epochs"] == 3


# the cache


def test_the_groups_are_made_once_and_serve_every_command_and_models_of_other_widths(
    place, ok, grouped
):
    splits = read_clouds("clouds.h5")
    kept = caches()
    assert kept == sorted(cache_of(clouds) for clouds in splits)
    before = snapshot(place)
    ok("record", "clouds.h5", "--teacher", "teacher", "--force", "--quiet", "--out", "again.h5")
    ok("verify", "record.h5", "--teacher", "teacher", "--quiet")
    ok("eval", "teacher", "--votes", 2, "--quiet")
    ok("train", "--record", "record.h5", "--model", WIDER, "--epochs", 1, *STEPS, "--out", "wider")
    assert set(grouped) == {1}  # the first cloud, to compare
    assert caches() == kept and all(snapshot(place)[name] == before[name] for name in kept)
    ok("eval", "wider", "--quiet")
    ok("train", "clouds.h5", "--labels-only", "--model", OTHER, "--epochs", 1, *STEPS)
    assert len(caches()) == 4 and {64, 32, 33} <= set(grouped)


def test_what_is_absent_is_made_again_to_the_same_bytes(place, ok):
    before = {path: Path(path).read_bytes() for path in caches()}
    for path in before:
        os.unlink(path)
    ok("train", "--resume", "--out", "teacher", "--quiet")
    assert {path: Path(path).read_bytes() for path in caches()} == before


def test_groups_do_not_depend_on_threads_and_are_those_of_the_model(made):
    points = read_clouds(made / "clouds.h5").train.points
    told = []
    for threads in (1, 3):
        found = make_groups(CONFIG, points, threads, lambda *done: told.append(done))
        for mine, wanted in zip(found, pointnet2.prepare(CONFIG, points), strict=True):
            np.testing.assert_array_equal(mine, wanted, strict=True)
    assert told == 2 * [(64, 96, "groups"), (96, 96, "groups")]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def another_kind(path):
    shutil.copy("clouds.h5", path)


def foreign(path):
    path.write_text("not a file of ours\n" * 40)


def folder_there(path):
    path.unlink()
    path.mkdir()


def of_other_clouds(path):
    clouds = read_clouds("clouds.h5").train
    other = replace(clouds, points=clouds.points[::-1].copy())
    shutil.move(kept_file(other, CONFIG), path)


def of_other_settings(path):
    shutil.move(kept_file(read_clouds("clouds.h5").train, sizes(OTHER, 3)), path)


def kept_file(clouds, config):
    """Return the path of a file of groups that is made now."""
    kept_groups(config, clouds, "other/clouds.h5" if os.path.isdir("other") else "clouds.h5")
    return cache_of(clouds, config)


def rewritten(path, change):
    """Write a whole file of groups again with other arrays, which its digest cannot tell."""
    found = read_groups(path)
    arrays = [array.copy() for array in found.arrays]
    change(arrays)
    write_groups(path, found._replace(arrays=tuple(arrays)))


def outside(path):
    def change(arrays):
        arrays[1][95, 7, 3] = 16  # a cloud has 16 points

    rewritten(path, change)


def outside_a_level(path):
    def change(arrays):
        arrays[3][0, 0, 0] = 8  # a point of the cloud, but the level below has 8 centres

    rewritten(path, change)


def by_another_rule(path):
    def change(arrays):
        arrays[1][...] = np.roll(arrays[1], 1, axis=2)  # the farthest of the nearest first

    rewritten(path, change)


def of_fewer_clouds(path):
    found = read_groups(path)
    few = tuple(array[:95] for array in found.arrays)
    write_groups(path, Groups(found.points_hash, 95, found.indices, few))


SPOILT = {
    flip: "is damaged: its digest does not match",
    cut: "is damaged: it has",
    another_kind: "is a minipc clouds file, but a groups file is wanted",
    foreign: "is not a minipc file",
    folder_there: "expected a file, found a folder",
    of_other_clouds: "holds groups of other clouds or of another model",
    of_other_settings: "holds groups of other clouds or of another model",
    outside: "level0.scale0: expected indices below 16, found 16",
    outside_a_level: "level1.scale0: expected indices below 8, found 8",
    by_another_rule: "groups: are of other clouds or of another model",
    of_fewer_clouds: "holds groups of other clouds or of another model",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_file_is_refused_in_one_line_with_the_remedy_and_nothing_else_happens(
    place, say, spoil
):
    path = Path(cache_of(read_clouds("clouds.h5").train))
    spoil(path)
    before = snapshot(place)
    training = ("train", "clouds.h5", "--labels-only", "--model", SMALL, *STEPS, "--out", "new")
    asked = ("--teacher", "teacher", "--out", "new.h5", "--force", "--quiet")
    for line in (
        training,
        ("record", "clouds.h5", *asked),
        ("record", "clouds.h5", *asked, "--workers", 2),
        ("verify", "record.h5", "--teacher", "teacher", "--quiet"),
    ):
        code, out, err = say(*line)
        assert (code, out, err.count("\n")) == (3, "", 1), err
        assert err == f"minipc: {path}: {err.partition(': ')[2].partition(': ')[2]}"
        assert SPOILT[spoil] in err and err.endswith("; remove it, it is made again\n"), err
        assert snapshot(place) == before


def test_a_broken_description_is_refused(place):
    clouds = read_clouds("clouds.h5").train
    path = cache_of(clouds)
    found = read_groups(path)
    first, *rest = found.indices
    for wrong in (
        first._replace(dtype="float32"),
        first._replace(shape=(0,)),
        first._replace(shape="8"),
        first._replace(below=-1),
        first._replace(name=rest[0].name),
        first._replace(name="level0/centres"),
        first._replace(rule=None),
        first._replace(below=True),
    ):
        with pytest.MonkeyPatch.context() as patch:
            write = groups_file.write_arrays
            patch.setattr(
                groups_file,
                "write_arrays",
                lambda path, kind, version, meta, arrays, wrong=wrong, write=write: write(
                    path,
                    kind,
                    version,
                    meta | {"arrays": [each._asdict() for each in (wrong, *rest)]},
                    arrays,
                ),
            )
            write_groups(path, found)
        with pytest.raises(DataError, match=r"; (make it again|.*another program or version)"):
            read_groups(path)
        with pytest.raises(DataError, match="remove it, it is made again$"):
            kept_groups(CONFIG, clouds, "clouds.h5")


@pytest.mark.parametrize("reason", ["EROFS", "EACCES", "ENOSPC"])
def test_where_it_cannot_be_kept_the_command_goes_on_and_says_so(place, say, monkeypatch, reason):
    for path in caches():
        os.unlink(path)
    code = getattr(files.errno, reason)
    new = files._new_temporary

    def refuse(folder, base):
        if base.startswith("groups-"):
            raise OSError(code, os.strerror(code))
        return new(folder, base)

    monkeypatch.setattr(files, "_new_temporary", refuse)
    again = ("train", "clouds.h5", "--labels-only", "--model", SMALL, "--epochs", 3, *STEPS[:-1])
    code, _, err = say(*again, "--out", "again")
    assert code == 0 and caches() == []
    (line, _) = (line for line in err.splitlines() if line.startswith("groups-"))
    assert os.strerror(getattr(files.errno, reason)) in line and "goes on without it" in line
    assert Path("again/model.h5").read_bytes() == Path("teacher/model.h5").read_bytes()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "rename"])
def test_a_disk_that_fails_while_it_is_written_leaves_nothing(place, monkeypatch, call):
    clouds = read_clouds("clouds.h5").train
    os.unlink(cache_of(clouds))
    before, told = snapshot(place), []

    def full(*_):
        raise OSError(files.errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        found = kept_groups(CONFIG, clouds, place / "clouds.h5", say=told.append)
    assert told and "No space left" in told[0]
    assert snapshot(place) == before
    np.testing.assert_array_equal(found[1], pointnet2.prepare(CONFIG, clouds.points)[1])


AT_ONCE = """
import sys
from minipc.data.clouds import read_clouds
from minipc.data.groups_file import kept_groups
from minipc.models.model import sizes
clouds = read_clouds("clouds.h5").train
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    groups = kept_groups(sizes(sys.argv[1], 3), clouds, "clouds.h5")
    print(sum(int(group.sum()) for group in groups))
"""


def test_processes_that_start_at_once_do_not_damage_it(place):
    clouds = read_clouds("clouds.h5").train
    path = Path(cache_of(clouds))
    wanted, total = path.read_bytes(), sum(int(group.sum()) for group in read_groups(path).arrays)
    path.unlink()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, SMALL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0].split() for process in started]
    assert told == 3 * [20 * [str(total)]] and not any(each.returncode for each in started)
    assert path.read_bytes() == wanted and not list(place.glob(".*"))


def test_a_worker_of_a_scheduler_reads_what_is_kept(place, grouped):
    clouds = read_clouds("clouds.h5").train
    with RecordReader("record.h5") as reader:
        plan = reader.plan
    read = partial(_clouds_and_model, str(place / "clouds.h5"), str(place / "teacher"))
    _, model, groups = scheduler._read(read, plan)
    assert set(grouped) == {1} and model.config == CONFIG
    for mine, wanted in zip(groups, pointnet2.prepare(CONFIG, clouds.points), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_clouds_in_a_record_have_their_groups_beside_the_record(place, ok):
    asked = ("--teacher", "teacher", "--views", 1, "--force", "--with-clouds", "--quiet")
    Path("alone").mkdir()
    ok("record", "clouds.h5", *asked, "--out", "alone/record.h5")
    os.unlink("clouds.h5")
    train = ("train", "--record", "alone/record.h5", "--model", SMALL, "--epochs", 1, *STEPS)
    ok(*train, "--out", "student")
    kept = [path for path in caches() if path.startswith("alone/")]
    assert len(kept) == 2 and {os.path.basename(path) for path in kept} == {
        path for path in caches() if "/" not in path
    }
    assert ok("verify", "alone/record.h5", "--teacher", "teacher", "--quiet")["bitwise"]


def test_a_pointnet_and_a_dry_run_leave_no_groups(data, folder, ok, say):
    ok("train", data, "--labels-only", "--model", "6-8:6", "--epochs", 1, *STEPS, "--out", "run")
    ok("record", data, "--teacher", "run", "--force", "--quiet")
    ok("eval", "run", "--votes", 1, "--quiet")
    before = snapshot(folder)
    ok("train", data, "--labels-only", "--model", SMALL, "--dry-run", "--quiet")
    assert snapshot(folder) == before and caches() == []


def test_a_forecast_makes_no_groups(place, ok, grouped):
    for path in caches():
        os.unlink(path)
    before = snapshot(place)
    ok("record", "clouds.h5", "--teacher", "teacher", "--dry-run", "--out", "new.h5", "--quiet")
    assert snapshot(place) == before and grouped == []


def test_a_file_is_written_and_read_without_another_copy_in_memory(tmp_path):
    indices = indices_of(sizes("512/32:4,4", 3), 1024)
    arrays = tuple(np.zeros((256, *each.shape), each.dtype) for each in indices)
    groups, path = Groups("0" * 64, 256, indices, arrays), tmp_path / "groups.h5"
    size = sum(array.nbytes for array in arrays)
    tracemalloc.start()
    try:
        write_groups(path, groups)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        now = tracemalloc.get_traced_memory()[0]
        found = read_groups(path)
        read = tracemalloc.get_traced_memory()[1] - now
    finally:
        tracemalloc.stop()
    # two pieces of 1 MiB while they are hashed, and what libhdf5 lays out
    assert written < 2.5 * 2**20 and read < size + 2.5 * 2**20 and size > 8 * 2**20
    assert found.indices == indices


# groups that do not fit


@pytest.mark.parametrize("model", ["17/4:6,6", "pointnet2/8"])
def test_more_centres_than_points_end_in_one_line_and_leave_nothing(place, say, model):
    before = snapshot(place)
    training = ("train", "clouds.h5", "--labels-only", "--model", model, "--out", "new", *STEPS)
    for line in (
        training,
        (*training, "--dry-run"),
        ("train", "--record", "record.h5", "--model", model),
    ):
        code, out, err = say(*line)
        assert (code, out, err.count("\n")) == (3, "", 1) and "centres" in err, err
        assert "16 points; take clouds of more points, or a model with fewer centres" in err
        assert snapshot(place) == before


def test_a_model_does_not_read_clouds_of_fewer_points_than_its_centres(place, say):
    few = [replace(clouds, points=clouds.points[:, :7]) for clouds in read_clouds("clouds.h5")]
    write_clouds("few.h5", Splits(*few))
    np.save("cloud.npy", few[0].points[0])
    before = snapshot(place)
    for line in (
        ("record", "few.h5", "--teacher", "teacher", "--out", "new.h5"),
        ("record", "few.h5", "--teacher", "teacher", "--out", "new.h5", "--dry-run"),
        ("eval", "teacher", "few.h5"),
        ("predict", "teacher", "cloud.npy", "--num-points", 7, "--up-axis", "z"),
    ):
        code, out, err = say(*line)
        assert (code, out, err.count("\n")) == (3, "", 1), err
        assert "8 centres and a cloud has 7 points" in err and snapshot(place) == before


def test_groups_of_other_data_are_refused_from_python_too(place):
    splits = read_clouds("clouds.h5")
    groups = tuple(pointnet2.prepare(CONFIG, clouds.points) for clouds in splits)
    other = tuple(group[::-1] for group in groups[0])
    config, loss = TrainConfig(epochs=1, batch_size=8), LossConfig(**LABELS_ALONE)
    views = drawn_views(splits.train, 0, AugmentConfig())
    first = partial(train, splits, CONFIG, loss, config, views)
    wanted = next(first())
    found = next(first(groups=groups))
    np.testing.assert_array_equal(wanted.test_logits, found.test_logits)
    for wrong in ((other, groups[1]), (groups[1], groups[0]), ((), groups[1])):
        with pytest.raises(DataError, match="^groups: are of "):
            next(first(groups=wrong))
    model = read_model("teacher/model.h5")
    with pytest.raises(DataError, match="groups: are of 96 clouds, but there are 33"):
        predict(model, splits.test.points, np, 1, groups=groups[0])
    with pytest.raises(DataError, match="groups: are of 33 clouds, but there are 96"):
        Recording(splits.train, "id", "new.h5", 1, groups=groups[1]).open()
