"""Recording any teacher, and training from the record by exact replay."""

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig, Params, apply, draw
from minipc.data.clouds import Clouds, Splits
from minipc.distil.train import TrainConfig, recorded_views, train
from minipc.errors import DataError, UsageError
from minipc.models.file import model_id, new_model, on_module
from minipc.models.pointnet import ModelConfig, forward_eval
from minipc.nn.losses import LossConfig
from minipc.record import recorder
from minipc.record.reader import RecordReader
from minipc.record.recorder import compute_shard, model_teacher, record
from minipc.record.recording import Recording
from minipc.record.store import Store

MODEL = ModelConfig((8, 16), (8,), 3)


def some_clouds(n=70, p=12, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, p, 3)).astype(np.float32)
    return Clouds(points, np.arange(n) % 3, ("bed", "bowl", "desk"), "z", "none")


def oracle(clouds):
    """A teacher that is always right: it knows each cloud by its order of coordinates alone.

    Any callable is a teacher; this one answers from the ranks of the x coordinates, which scale
    and shift do not change.
    """
    ranks = {
        points[:, 0].argsort().tobytes(): label
        for points, label in zip(clouds.points, clouds.labels, strict=True)
    }

    def logits_of(points):
        labels = [ranks[cloud[:, 0].argsort().tobytes()] for cloud in points]
        return 5 * np.eye(3, dtype=np.float32)[labels] + points[:, 0, :] / 7

    return logits_of


@pytest.fixture
def clouds():
    return some_clouds()


def test_a_record_holds_what_the_teacher_said_of_exactly_the_replayed_points(tmp_path, clouds):
    model = new_model(MODEL, clouds.described, 0)
    out = str(tmp_path / "record.h5")
    done = record(
        Recording(clouds, model_id(model), out, 3, seed=8, logits="float32", force=True),
        model_teacher(model),
    )
    with RecordReader(out) as reader:
        assert (reader.views, reader.plan.teacher_id, reader.plan.recording_id) == (
            3,
            model_id(model),
            done.run_id,
        )
        for view in range(3):
            scale, shift, logits = reader.view(view)
            params = draw(8, view, 0, 70, AugmentConfig())
            np.testing.assert_array_equal(scale, params.scale)
            np.testing.assert_array_equal(shift, params.shift)
            again = forward_eval(
                model.params, model.stats, apply(clouds.points, Params(scale, shift)), MODEL
            )
            # another batch size: float32 sums of at most 16 terms in another order
            np.testing.assert_allclose(logits, again, rtol=1e-5, atol=1e-6)


def test_the_result_says_what_is_in_the_record(tmp_path, clouds):
    out = str(tmp_path / "record.h5")
    done = record(Recording(clouds, "oracle", out, 2, data_file="clouds.h5"), oracle(clouds))
    assert (done.clouds, done.views, done.classes, done.bytes_per_view) == (70, 2, 3, 24 + 2 * 3)
    assert done.teacher_accuracy == 1
    assert 0 < done.max_kl_of_rounding < 1e-5  # float16 keeps 11 bits of logits below 8: 4e-3 each
    assert done.bytes == (tmp_path / "record.h5").stat().st_size >= 70 * 2 * 30
    assert done.clouds_per_second > 0 and done.resumed_shards == 0
    with RecordReader(out) as reader:
        assert reader.meta["data_file"] == "clouds.h5"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.h5"]


def test_a_finished_record_is_left_as_it_is(tmp_path, clouds):
    out = tmp_path / "record.h5"
    record(Recording(clouds, "oracle", str(out), 2), oracle(clouds))
    before, calls = out.read_bytes(), []
    again = record(Recording(clouds, "oracle", str(out), 2), calls.append)
    assert out.read_bytes() == before and calls == []
    assert (again.clouds_per_second, again.resumed_shards) == (0, 2)


def test_threads_and_order_of_work_do_not_change_a_byte(tmp_path, clouds):
    model = new_model(MODEL, clouds.described, 0)
    files = []
    for threads in (1, 2, 3):
        out = tmp_path / f"{threads}.h5"
        record(
            Recording(clouds, "t", str(out), 2, force=True, threads=threads),
            model_teacher(model),
        )
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


def test_an_interrupted_recording_continues_and_equals_an_undisturbed_one(tmp_path, clouds):
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    teacher = oracle(clouds)
    record(Recording(clouds, "oracle", str(whole), 4), teacher)
    calls = []

    def interrupted(points):
        calls.append(1)
        if (
            len(calls) > 3 + 3 + 3 + 1
        ):  # tried, the trial and one view of three blocks each, then into the next
            raise KeyboardInterrupt
        return teacher(points)

    with pytest.raises(KeyboardInterrupt):
        record(Recording(clouds, "oracle", str(broken), 4), interrupted)
    assert not broken.exists()
    done = record(Recording(clouds, "oracle", str(broken), 4), teacher)
    assert done.resumed_shards == 1
    assert broken.read_bytes() == whole.read_bytes()


def test_a_kill_between_the_last_shard_and_the_merge_loses_nothing(tmp_path, clouds, monkeypatch):
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    record(Recording(clouds, "oracle", str(whole), 2), oracle(clouds))

    def killed(store, progress=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "finalise", killed)
        record(Recording(clouds, "oracle", str(broken), 2), oracle(clouds))
    assert not broken.exists()
    # the teacher is not needed any more
    done = record(Recording(clouds, "oracle", str(broken), 2), None)
    assert done.resumed_shards == 2 and broken.read_bytes() == whole.read_bytes()


def test_fewer_views_than_a_finished_record_has_keep_them_all(tmp_path, clouds):
    out = tmp_path / "record.h5"
    record(Recording(clouds, "oracle", str(out), 3), oracle(clouds))
    before = out.read_bytes()
    assert record(Recording(clouds, "oracle", str(out), 1), None).views == 3
    assert out.read_bytes() == before


def test_more_views_are_added_to_a_finished_record(tmp_path, clouds):
    whole, grown = tmp_path / "whole.h5", tmp_path / "grown.h5"
    record(Recording(clouds, "oracle", str(whole), 5), oracle(clouds))
    record(Recording(clouds, "oracle", str(grown), 2), oracle(clouds))
    done = record(Recording(clouds, "oracle", str(grown), 5), oracle(clouds))
    assert (done.views, done.resumed_shards) == (5, 2)
    assert grown.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(seed=1), "seed"),
        (dict(teacher_id="other"), "teacher"),
        (dict(logits="float32"), "logits"),
        (dict(augment=AugmentConfig(shift_max=0.1)), "augment"),
        (dict(clouds=some_clouds(seed=4)), "points"),
    ],
)
def test_another_recording_in_the_same_place_is_refused_and_nothing_is_lost(
    tmp_path, clouds, change, named
):
    out = tmp_path / "record.h5"
    settings = dict(clouds=clouds, teacher_id="oracle", out=str(out), views=2)
    record(Recording(**settings), oracle(clouds))
    before = out.read_bytes()
    with pytest.raises((DataError, UsageError), match=named) as caught:
        record(
            Recording(**(settings | change), force=True),
            lambda points: np.zeros((32, 3), np.float32),
        )
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == before


def test_a_teacher_near_chance_is_refused_before_the_first_shard_unless_forced(tmp_path, clouds):
    out = str(tmp_path / "record.h5")

    def guess(points):
        return points[:, 0].copy()

    with pytest.raises(DataError, match="no better than chance.*--force"):
        record(Recording(clouds, "guess", out, 2), guess)
    assert list(tmp_path.iterdir()) == []
    record(Recording(clouds, "guess", out, 2, force=True), guess)


@pytest.mark.parametrize(
    "logits, message",
    [
        (np.full((32, 3), np.nan, np.float32), "logits of view 0 are not finite"),
        (
            np.full((32, 3), 1e5, np.float32),
            "a logit of 1e.05 in view 0 does not fit float16; use --logits float32",
        ),
        (np.zeros((32, 4), np.float32), r"expected logits of shape \(32, 3\), .*, got \(32, 4\)"),
        (np.zeros((31, 3), np.float32), r"expected logits of shape \(32, 3\), .*, got \(31, 3\)"),
    ],
)
def test_logits_that_cannot_be_stored_are_refused(tmp_path, clouds, logits, message):
    with pytest.raises(DataError, match=message):
        record(
            Recording(clouds, "bad", str(tmp_path / "record.h5"), 2, force=True),
            lambda points: logits,
        )
    assert not (tmp_path / "record.h5").exists()


def test_large_logits_fit_float32(tmp_path, clouds):
    out = str(tmp_path / "record.h5")
    record(
        Recording(clouds, "sharp", out, 1, logits="float32"),
        lambda points: 1e4 * oracle(clouds)(points),
    )
    with RecordReader(out) as reader:
        assert reader.view(0)[2].dtype == np.float32 and reader.meta["max_kl_of_rounding"] == 0


def test_the_forecast_of_a_device_leaves_out_its_first_block(
    tmp_path, clouds, fake_cupy, monkeypatch
):
    """There the first block compiles kernels, which the others find."""
    rows = []

    def shard(*arguments, **settings):
        rows.append(arguments[6])
        return compute_shard(*arguments, **settings)

    monkeypatch.setattr(recorder, "compute_shard", shard)
    model, out = new_model(MODEL, clouds.described, 0), str(tmp_path / "record.h5")
    asked = Recording(clouds, "t", out, 1, force=True, xp=fake_cupy)
    record(asked, model_teacher(on_module(model, fake_cupy)))
    assert rows == [32, 70, 70]  # untimed, timed, and the one of the record


def test_recording_runs_on_the_device_and_gives_the_same_rows(tmp_path, clouds, device):
    model = new_model(MODEL, clouds.described, 0)
    host, there = str(tmp_path / "host.h5"), str(tmp_path / "device.h5")
    record(Recording(clouds, "t", host, 2, force=True), model_teacher(model))
    record(
        Recording(clouds, "t", there, 2, force=True, xp=device),
        model_teacher(on_module(model, device)),
    )
    with RecordReader(host) as one, RecordReader(there) as other:
        assert one.plan == other.plan
        for view in range(2):
            (*params, logits), (*others, answers) = one.view(view), other.view(view)
            for a, b in zip(params, others, strict=True):
                np.testing.assert_array_equal(a, b)
            # a fake device computes on the host; a real one sums in another order: one step of
            # float16
            tolerance = 0 if hasattr(device, "fake") else 2**-9
            np.testing.assert_allclose(answers, logits, rtol=tolerance, atol=tolerance)


def test_a_student_trained_from_a_record_sees_the_views_in_turn(tmp_path, clouds):
    out = str(tmp_path / "record.h5")
    record(Recording(clouds, "oracle", out, 2), oracle(clouds))
    with RecordReader(out) as reader:
        views = recorded_views(reader)
        for epoch, view in ((0, 0), (1, 1), (2, 0), (5, 1)):
            params, logits = views(epoch)
            np.testing.assert_array_equal(params.scale, reader.view(view)[0])
            np.testing.assert_array_equal(logits, reader.view(view)[2])
        assert recorded_views(reader, labels_only=True)(3)[1] is None
        *_, last = train(
            Splits(clouds, some_clouds(40, seed=2)),
            MODEL,
            LossConfig(1.0),
            TrainConfig(epochs=8, lr=1e-2),
            views,
        )
    assert last.rows[-1]["distillation"] < last.rows[0]["distillation"]


def test_a_record_of_other_data_is_refused(tmp_path, clouds):
    out = str(tmp_path / "record.h5")
    record(Recording(clouds, "oracle", out, 1), oracle(clouds))
    with RecordReader(out) as reader:
        other = some_clouds(seed=9)
        with pytest.raises(DataError, match="was made from other data"):
            reader.check_belongs(other)
        with pytest.raises(UsageError, match="view"):
            reader.view(1)
