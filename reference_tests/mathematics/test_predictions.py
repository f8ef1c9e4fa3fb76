"""What is counted from predictions.csv, against its definitions, and what is refused."""

import numpy as np
import pytest

from minipc.distil.evaluate import ECE_BINS, metrics
from minipc.errors import DataError
from minipc.runs.folder import RunFolder
from minipc.runs.predictions import (
    Predictions,
    class_accuracy,
    confusion,
    confusions,
    joined,
    parsed,
    reliability,
    surest_errors,
)

NAMES = ("flat", "long", "round", "none has it")
EXACT = {"rel": 1e-12, "abs": 1e-15}  # sums of a few hundred float64


def drawn(seed, n=300):
    """Return logits (n, 4), labels (n,) with some -1 and none of class 3, and their Predictions."""
    rng = np.random.default_rng(seed)
    logits, labels = 2 * rng.standard_normal((n, 4)), rng.integers(-1, 3, n)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits, labels, Predictions(labels, p.argmax(axis=1), p.max(axis=1))


def test_the_confusion_matrix_counts_pairs_of_labelled_clouds():
    _, labels, found = drawn(0)
    matrix = confusion(found, 4)
    for true in range(4):
        for said in range(4):
            pairs = [1 for i, j in zip(labels, found.said, strict=True) if (i, j) == (true, said)]
            assert matrix[true, said] == len(pairs)
    assert matrix.sum() == (labels >= 0).sum() < len(labels)


def test_confusion_and_calibration_are_those_of_an_evaluation_of_the_logits():
    for seed in range(5):
        logits, labels, found = drawn(seed)
        wanted = metrics(labels, logits)
        assert np.array_equal(confusion(found, 4), wanted.confusion)
        assert reliability(found).ece == pytest.approx(wanted.ece, **EXACT)


def test_a_class_without_a_cloud_has_no_accuracy():
    accuracies = class_accuracy(np.array([[3, 1], [0, 0]]))
    assert accuracies[0] == 0.75 and np.isnan(accuracies[1])


def test_the_most_frequent_confusions_come_first_and_equal_ones_in_the_order_of_rows():
    matrix = np.array([[9, 2, 0], [5, 9, 2], [0, 1, 9]])
    assert confusions(matrix, 3) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert confusions(matrix, 9)[3:] == [(2, 1, 1)]
    assert confusions(np.diag([4, 4]), 5) == []


def test_bins_are_open_on_the_left_and_hold_means():
    found = Predictions(
        np.array([0, 0, 1, -1, 1]), np.array([0, 1, 1, 1, 1]), np.array([0.5, 0.6, 1.0, 0.9, 0.0])
    )
    bins = reliability(found, 2)  # 0.5 belongs to the first, and so does 0
    assert bins.clouds.tolist() == [2, 2]
    assert bins.confidence == pytest.approx([0.25, 0.8], **EXACT)
    assert bins.accuracy.tolist() == [1.0, 0.5]
    assert bins.ece == pytest.approx((2 * 0.75 + 2 * 0.3) / 4, **EXACT)


def test_an_empty_bin_says_nothing_and_costs_nothing():
    bins = reliability(Predictions(np.array([0]), np.array([0]), np.array([1.0])))
    assert len(bins.clouds) == ECE_BINS and np.isnan(bins.accuracy[:-1]).all() and bins.ece == 0


def test_no_label_at_all_cannot_be_calibrated():
    with pytest.raises(DataError, match="no cloud has a label"):
        reliability(Predictions(np.array([-1]), np.array([0]), np.array([1.0])))


def test_the_surest_errors_are_wrong_labelled_and_in_order():
    found = Predictions(
        np.array([0, 1, -1, 2, 0, 1]),
        np.array([1, 1, 2, 0, 2, 0]),
        np.array([0.5, 0.99, 0.98, 0.9, 0.5, 0.9]),
    )
    # 1 is right and 2 has no label; equal ones by their number
    assert surest_errors(found, 9, 6).tolist() == [3, 5, 0, 4]
    assert surest_errors(found, 2, 6).tolist() == [3, 5]


def test_a_cloud_that_several_models_have_wrong_is_named_once_by_the_surest():
    labels = np.array([0, 1, 1])
    one = Predictions(labels, np.array([1, 0, 1]), np.array([0.6, 0.9, 1.0]))
    two = Predictions(labels, np.array([1, 0, 0]), np.array([0.7, 0.8, 0.5]))
    assert surest_errors(joined([one, two]), 9, 3).tolist() == [1, 3, 5]


def test_several_models_are_counted_together():
    one, other = drawn(1)[2], drawn(2)[2]
    both = joined([one, other])
    assert np.array_equal(confusion(both, 4), confusion(one, 4) + confusion(other, 4))


def test_what_a_run_writes_is_what_is_read(tmp_path):
    logits, labels, found = drawn(3)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    with RunFolder(str(tmp_path / "run"), {}) as folder:
        folder.ended(NAMES, labels, p)
    data = (tmp_path / "run/predictions.csv").read_bytes()
    read = parsed(data, NAMES, "predictions.csv")
    assert np.array_equal(read.labels, labels) and np.array_equal(read.said, found.said)
    # the file has six digits
    assert np.abs(read.probability - found.probability).max() <= 0.5e-6 + 1e-12


GOOD = "cloud,label,predicted,right,probability\n0,flat,flat,1,0.9\n1,,long,,0.5\n"


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (GOOD, ""),
        (GOOD, GOOD.partition("\n")[0] + "\n"),
        ("cloud,label", "label,cloud"),
        ("flat,flat", "flat,mug"),
        ("flat,flat,1", "flat,flat,0"),
        ("flat,flat,1", "flat,long,1"),
        ("long,,0.5", "long,1,0.5"),
        ("0.9", "1.1"),
        ("0.9", "nan"),
        ("0.9", "sure"),
        ("0,flat", "1,flat"),
        (",0.5\n", "\n"),
        ("long", '"long'),
    ],
)
def test_a_file_that_no_run_wrote_is_refused(there, instead):
    assert len(parsed(GOOD.encode(), NAMES, "x").said) == 2 and there in GOOD
    with pytest.raises(DataError, match=r"^run/predictions.csv: "):
        parsed(GOOD.replace(there, instead).encode(), NAMES, "run/predictions.csv")
