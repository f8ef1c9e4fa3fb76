"""Predictions in fixed blocks, and every number that is said of a model."""

import numpy as np
import pytest
from scipy.special import softmax

from minipc.data.augment import AugmentConfig, apply, draw
from minipc.distil.evaluate import VOTE_SEED, metrics, predict, vote
from minipc.errors import MinipcError
from minipc.models.file import new_model
from minipc.models.pointnet import ModelConfig

CONFIG = ModelConfig((8, 8), (6,), 3)


@pytest.fixture(scope="module")
def model():
    described = {"class_names": ["a", "b", "c"], "up_axis": "z", "normalisation": "none"}
    return new_model(CONFIG, described, 0)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).standard_normal((70, 12, 3)).astype(np.float32)


def logits_for(predicted, classes):
    """Return logits whose arg-max is predicted."""
    return 5.0 * np.eye(classes)[predicted]


def test_predictions_do_not_depend_on_how_many_clouds_are_asked_for_or_on_threads(model, points):
    everything = predict(model, points, np, 1)
    assert everything.shape == (70, 3) and everything.dtype == np.float32
    for threads in (2, 3):
        np.testing.assert_array_equal(predict(model, points, np, threads), everything)
    for part in (1, 31, 33, 64):
        np.testing.assert_array_equal(predict(model, points[:part], np, 1), everything[:part])


def test_accuracies_come_from_the_confusion_matrix():
    labels = np.array([0, 0, 0, 0, 1, 1, 3])
    found = metrics(labels, logits_for([0, 0, 0, 1, 1, 0, 2], 4))
    assert found.accuracy == pytest.approx(4 / 7)
    assert found.mean_class_accuracy == pytest.approx(
        (3 / 4 + 1 / 2 + 0) / 3
    )  # class 2 never occurs
    assert found.confusion.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_the_negative_log_likelihood_is_that_of_the_label_in_nats():
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    found = metrics(np.array([0, 2]), np.log(p))
    assert found.nll == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2, rel=1e-14)
    assert metrics(np.array([1]), np.array([[1000.0, 0.0]])).nll == pytest.approx(
        1000
    )  # no overflow, no clipping


def test_the_calibration_error_is_the_sum_over_bins_typed_from_its_definition():
    rng = np.random.default_rng(3)
    logits = 3 * rng.standard_normal((500, 4))
    labels = rng.integers(0, 4, 500)
    p = softmax(logits, axis=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    wanted = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics(labels, logits).ece == pytest.approx(wanted, rel=1e-12)
    assert wanted > 0.1


def test_full_confidence_lies_in_the_last_bin_with_its_neighbours():
    logits = np.array([[1000.0, 0.0], [np.log(0.97), np.log(0.03)]])
    assert metrics(np.array([1, 0]), logits).ece == pytest.approx(abs((0 - 1) + (1 - 0.97)) / 2)


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error():
    p = np.tile([[0.75, 0.25]], (4, 1))
    assert metrics(np.array([0, 0, 0, 1]), np.log(p)).ece == pytest.approx(0, abs=1e-15)
    assert metrics(np.array([1, 1, 1, 1]), np.log(p)).ece == pytest.approx(0.75)


def test_logits_that_are_not_finite_are_an_error_and_no_metrics(model, points):
    broken = model._replace(params=model.params | {"out.b": np.full(3, np.inf, np.float32)})
    for value in (
        broken,
        model._replace(params=model.params | {"out.b": np.full(3, np.nan, np.float32)}),
    ):
        with pytest.raises(MinipcError, match="logits are no longer finite"):
            predict(value, points, np, 2)
    with pytest.raises(MinipcError, match="far larger than"):
        predict(model, np.full((2, 5, 3), 3e38, np.float32), np, 1)


def test_voting_is_the_mean_softmax_over_fixed_views(model, points):
    voted = vote(model, points, 3, AugmentConfig(), np, 1)
    views = [apply(points, draw(VOTE_SEED, view, 0, 70, AugmentConfig())) for view in range(3)]
    mean = np.mean(
        [softmax(predict(model, view, np, 1).astype(np.float64), axis=1) for view in views], axis=0
    )
    np.testing.assert_allclose(np.exp(voted), mean, rtol=1e-5)  # float32 log-softmax of one view
    np.testing.assert_array_equal(voted, vote(model, points, 3, AugmentConfig(), np, 2))
    assert not np.array_equal(voted.argmax(axis=1), predict(model, points, np, 1).argmax(axis=1))
