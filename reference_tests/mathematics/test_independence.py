"""A cloud's logits are the same bits in any company, whatever the kernel of BLAS.

`make test-kernels` runs this file under every kernel that the processor can run.
"""

import numpy as np
import pytest

from minipc.backend import blas_kernel
from minipc.data.augment import AugmentConfig, Params, apply
from minipc.data.clouds import Clouds
from minipc.distil.evaluate import predict, vote
from minipc.errors import DataError
from minipc.models.file import new_model
from minipc.models.pointnet import evaluator, forward_eval, sizes
from minipc.nn import exact
from minipc.nn.engine import ENGINES
from minipc.nn.fast import workspace
from minipc.record.reader import RecordReader
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording

MODELS = {"tiny": 40, "student": 40, "teacher": 40, "5-7-130:33-9": 3, "6:": 2}  # sizes: classes
POINTS = (1, 7, 64, 257)  # of a cloud


def trained(text, classes):
    """Return a model whose statistics, gains and offsets are not those of a new one."""
    model = new_model(sizes(text, classes), {"class_names": [str(k) for k in range(classes)]}, 0)
    rng = np.random.default_rng(1)
    params = {
        name: value
        if name.endswith(".W")
        else value + 0.3 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in model.params.items()
    }
    stats = {
        name: abs(value + 0.3 * rng.standard_normal(value.shape).astype(np.float32))
        + np.float32(0.1)
        for name, value in model.stats.items()
    }
    return model._replace(params=params, stats=stats)


def some_points(clouds, points):
    return np.random.default_rng(points).standard_normal((clouds, points, 3)).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", MODELS)
@pytest.mark.parametrize("points", POINTS)
def test_a_clouds_logits_are_the_same_bits_alone_and_at_every_place_among_1_to_100(
    text, points, engine
):
    model, x = trained(text, MODELS[text]), some_points(100, points)
    logits_of = evaluator(model.params, model.stats, model.config, engine)
    alone = np.concatenate([logits_of(cloud[None]) for cloud in x])
    assert len({row.tobytes() for row in alone}) > 50  # else equal bits would prove nothing
    for count in (2, 3, 5, 31, 32, 33, 64, 100):
        np.testing.assert_array_equal(logits_of(x[:count]), alone[:count])
    for places in (np.arange(100)[::-1], np.random.default_rng(2).permutation(100)):
        np.testing.assert_array_equal(logits_of(x[places]), alone[places])
    in_another_order_of_memory = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_array_equal(logits_of(in_another_order_of_memory), alone)


def test_products_in_fours_leave_each_cloud_alone_too(monkeypatch):
    """As the kernels that multiply small matrices without copying would; here any kernel."""
    monkeypatch.setattr(workspace, "SMALL_MATRIX_KERNELS", (blas_kernel(),))
    assert workspace.Workspace().group == 4
    for text in ("tiny", "teacher"):
        test_a_clouds_logits_are_the_same_bits_alone_and_at_every_place_among_1_to_100(
            text, 64, "fused"
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_predictions_and_votes_are_those_of_each_cloud_alone(threads, engine):
    model, x = trained("tiny", 40), some_points(100, 50)
    predicted = predict(model, x, np, threads, engine)
    voted = vote(model, x, 3, AugmentConfig(), np, threads, engine)
    for each in (0, 1, 31, 32, 70, 99):
        some = slice(each, each + 1)
        np.testing.assert_array_equal(predict(model, x[some], np, 1, engine), predicted[some])
        np.testing.assert_array_equal(
            forward_eval(model.params, model.stats, x[some], model.config, engine), predicted[some]
        )
    np.testing.assert_array_equal(
        vote(model, x[:37], 3, AugmentConfig(), np, 1, engine), voted[:37]
    )
    np.testing.assert_array_equal(vote(model, x[:1], 3, AugmentConfig(), np, 1, engine), voted[:1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_recorded_logits_are_those_of_each_replayed_cloud_alone(tmp_path, threads, engine):
    model, x = trained("teacher", 40), some_points(70, 30)
    labels = np.arange(70) % 40
    clouds = Clouds(x, labels, tuple(f"class {k}" for k in range(40)), "z", "none")
    out = str(tmp_path / "record.h5")
    record(
        Recording(
            clouds,
            "a teacher",
            out,
            2,
            logits="float32",
            threads=threads,
            engine=engine,
            force=True,
        ),
        model_teacher(model, engine),
    )
    with RecordReader(out) as reader:
        for view in range(2):
            scale, shift, logits = reader.view(view)
            replayed = apply(x, Params(scale, shift))
            alone = [
                forward_eval(model.params, model.stats, cloud[None], model.config, engine)
                for cloud in replayed
            ]
            np.testing.assert_array_equal(logits, np.concatenate(alone))


# the product that the head is computed by


@pytest.mark.parametrize("dtype, digits", [(np.float32, 2.0**-23), (np.float64, 2.0**-52)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (32, 64, 40), (100, 1024, 33)])
def test_an_exact_product_is_the_product_rounded_once_or_twice(dtype, digits, shape):
    """Against the sums in long double; `digits` is one rounding of the result's largest entry."""
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((rows, inner)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(dtype)
    W = (rng.standard_normal((inner, columns)) * 10.0 ** rng.integers(-3, 4, columns)).astype(dtype)
    found = exact.product(x, exact.factor(W))
    wanted = x.astype(np.longdouble) @ W.astype(np.longdouble)
    assert found.dtype == dtype and found.shape == (rows, columns)
    scale = abs(x).max(axis=1, keepdims=True).astype(np.longdouble) * abs(W).max(axis=0)
    assert (abs(found - wanted) <= digits * np.maximum(abs(wanted), scale)).all()


def test_the_sums_of_an_exact_product_are_exact_at_their_largest():
    """All entries are largest, so that sums come near 2^53: any order gives one result."""
    for inner in (1, 2, 63, 64, 1024, 5000):
        for dtype in (np.float32, np.float64):
            rng = np.random.default_rng(inner)
            x = (1 - rng.random((3, inner)) * 2.0**-10).astype(dtype)
            W = (1 - rng.random((inner, 4)) * 2.0**-10).astype(dtype)
            right = exact.factor(W)
            n, _ = exact._whole_numbers(x, 1, len(right.stacks), right.bits)
            largest = sum(abs(part).max() for part in n) * abs(right.stacks[-1]).max() * inner
            assert largest <= 2.0**53
            order = rng.permutation(inner)
            again = exact.product(
                np.ascontiguousarray(x[:, order]), exact.factor(np.ascontiguousarray(W[order]))
            )
            np.testing.assert_array_equal(exact.product(x, right), again)


def test_rows_of_zeros_and_rows_that_are_not_finite_stay_what_they_are_and_leave_the_others_alone():
    W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
    alone = exact.product(x[3:], exact.factor(W))
    x[0], x[1, 0], x[2, 1] = 0, np.nan, np.inf
    with np.errstate(invalid="ignore"):
        y = exact.product(x, exact.factor(W))
    assert (y[0] == 0).all() and not np.isfinite(y[1:3]).any()
    np.testing.assert_array_equal(y[3:], alone)


def test_an_exact_product_of_shapes_that_do_not_fit_is_refused():
    with pytest.raises(DataError, match=r"x: expected shape \(\*, 4\), got \(2, 3\)"):
        exact.product(np.ones((2, 3), np.float32), exact.factor(np.ones((4, 3), np.float32)))
