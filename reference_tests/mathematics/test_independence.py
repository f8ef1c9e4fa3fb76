"""A cloud's logits are the same bits in any company, whatever the kernel of BLAS.

`make test-kernels` runs this file under every kernel that the processor can run.
"""

import numpy as np
import pytest

from minipc.backend import blas_kernel
from minipc.data.augment import AugmentConfig, Params, apply
from minipc.data.clouds import Clouds
from minipc.distil import evaluate
from minipc.distil.evaluate import predict, vote
from minipc.errors import DataError
from minipc.models.file import new_model, on_module
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from minipc.models.pointnet import forward_eval
from minipc.nn import exact
from minipc.nn.engine import ENGINES
from minipc.nn.fast import workspace
from minipc.record.reader import RecordReader
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording
from reference_tests.tools.fake_device import map_arrays

MODELS = {"tiny": 40, "student": 40, "teacher": 40, "5-7-130:33-9": 3, "6:": 2}  # sizes: classes
POINTS = (1, 7, 64, 257)  # of a cloud
NEIGHBOURHOODS = {  # size: classes, points of a cloud
    "1/3:5,6": (3, 1),
    "5,7/4by8:9+,5/3by2:8+,12+mean:7": (3, 7),
    "32/0.5x8by2:6-9/1.5x16:8-12,8/5by2:24-9,12-33:10": (40, 64),
    "16,64/24by32:32+,32/24by16:48+,16/16by8:48+,96+mean:48": (40, 257),
    "128/0.5x32:8-8-32,32/1.0x16:16-32,32-64:32": (40, 200),  # centres some at a time
}


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


def some_inputs(model, clouds, points):
    """Return Inputs with the groups of the model."""
    x = some_points(clouds, points)
    return Inputs(x, net(model.config).prepare(model.config, x))


def at(inputs, places):
    """Return the Inputs of some clouds."""
    return map_arrays(lambda array: array[places], inputs)


def some_points(clouds, points):
    return np.random.default_rng(points).standard_normal((clouds, points, 3)).astype(np.float32)


def assert_alone(model, inputs, engine):
    """Raise unless each cloud's logits are the same bits alone and at every place among many."""
    logits_of = net(model.config).evaluator(model.params, model.stats, model.config, engine)
    number = len(inputs.points)
    alone = np.concatenate([logits_of(at(inputs, slice(i, i + 1))) for i in range(number)])
    assert len({row.tobytes() for row in alone}) > number / 2  # else equal bits would prove nothing
    for count in (2, 3, 5, 31, 32, 33, 64, 100):
        np.testing.assert_array_equal(logits_of(at(inputs, slice(count))), alone[:count])
    for places in (np.arange(number)[::-1], np.random.default_rng(2).permutation(number)):
        np.testing.assert_array_equal(logits_of(at(inputs, places)), alone[places])
    points = np.ascontiguousarray(inputs.points.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_array_equal(logits_of(inputs._replace(points=points)), alone)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", MODELS)
@pytest.mark.parametrize("points", POINTS)
def test_a_clouds_logits_are_the_same_bits_alone_and_at_every_place_among_1_to_100(
    text, points, engine
):
    model = trained(text, MODELS[text])
    assert_alone(model, some_inputs(model, 100, points), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", NEIGHBOURHOODS)
def test_with_neighbourhoods_a_clouds_logits_are_the_same_bits_in_any_company(text, engine):
    """A division of a cloud's centres must not depend on its company, nor that of the clouds."""
    classes, points = NEIGHBOURHOODS[text]
    model = trained(text, classes)
    assert_alone(model, some_inputs(model, 100 if points < 100 else 33, points), engine)


def test_products_in_fours_leave_each_cloud_alone_too(monkeypatch):
    """As the kernels that multiply small matrices without copying would; here any kernel."""
    monkeypatch.setattr(workspace, "SMALL_MATRIX_KERNELS", (blas_kernel(),))
    assert workspace.Workspace().group == 4
    for text in ("tiny", "teacher", "32/0.5x8by2:6-9/1.5x16:8-12,8/5by2:24-9,12-33:10"):
        model = trained(text, 40)
        assert_alone(model, some_inputs(model, 100, 64), "fused")


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


@pytest.mark.parametrize("together", [32, 64, 4096])
def test_predictions_on_a_device_are_those_of_each_cloud_alone(device, monkeypatch, together):
    monkeypatch.setattr(evaluate, "TOGETHER", together)
    model, x = on_module(trained("tiny", 5), device), some_points(70, 50)
    predicted = predict(model, x, device, 1)
    assert len(predicted) == 70
    for each in (0, 31, 32, 63, 64, 69):
        some = slice(each, each + 1)
        np.testing.assert_array_equal(predict(model, x[some], device, 1), predicted[some])


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
