"""What a teacher must be: one that is not is refused with a remedy and leaves nothing behind."""

import os
from functools import partial

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import binom, binomtest

from minipc.data.augment import Params, apply
from minipc.data.clouds import Clouds
from minipc.errors import DataError
from minipc.record import recording, verify
from minipc.record.contract import LEVEL, REPEATS, SUMS_TO_ONE, answer, check_chance, trial
from minipc.record.reader import RecordReader
from minipc.record.recorder import Share, record
from minipc.record.recording import Recording

COUNT = 70  # clouds: three blocks a view


def made(count=COUNT, seed=0):
    """Clouds of two kinds, the second one flat."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    points = rng.standard_normal((count, 24, 3)).astype(np.float32)
    points[labels == 1, :, 2] *= np.float32(0.05)
    return Clouds(points, labels, ("round", "flat"), "z", "none")


def good(points):
    """Right logits, from each cloud alone."""
    height = points[:, :, 2].std(axis=1) - np.float32(0.3)
    return 20 * np.stack([height, -height], axis=1)


class Rng:
    """A generator that goes on from call to call, as dropout that was left on does."""

    def __init__(self):
        self.rng = np.random.default_rng(1)

    def __call__(self, points):
        logits = good(points)
        return logits * (self.rng.random(logits.shape, np.float32) > 0.3)


class Tensor:
    """Stands for an array of another library that NumPy cannot read."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )


def normed(points):
    """A network with batch statistics."""
    logits = good(points)
    return (logits - logits.mean(axis=0)) / logits.std(axis=0)


BROKEN = {
    "nothing": (lambda points: None, "returned None; is a `return` missing"),
    "a pair": (
        lambda points: (good(points), None),
        "returned a tuple of 2; take the logits out of it",
    ),
    "a list": (lambda points: [good(points)], "returned a list of 1; take the logits out of it"),
    "a dict": (lambda points: {"logits": good(points)}, "returned a dict with logits; take"),
    "gradients": (
        lambda points: Tensor(),
        "returned a Tensor .*requires grad.*; return an array .*detach",
    ),
    "classes": (
        lambda points: good(points).argmax(axis=1),
        "dtype int64: classes or votes are no logits",
    ),
    "votes": (
        lambda points: (good(points) > 0).astype(np.int32),
        "dtype int32: classes or votes are no logits",
    ),
    "truth": (lambda points: good(points) > 0, "dtype bool: classes or votes are no logits"),
    "complex": (
        lambda points: good(points) + 0j,
        "dtype complex64: expected floating point numbers",
    ),
    "objects": (
        lambda points: good(points).astype(object),
        "dtype object: expected floating point numbers",
    ),
    "text": (lambda points: "logits", "returned a str of dtype <U6"),
    "a column more": (
        lambda points: np.pad(good(points), ((0, 0), (0, 1))),
        r"expected .*\(32, 2\).*got \(32, 3\)",
    ),
    "one cloud": (lambda points: good(points)[0], r"expected .*\(32, 2\).*got \(2,\)"),
    "an axis more": (
        lambda points: good(points)[:, :, None],
        r"expected .*\(32, 2\).*got \(32, 2, 1\)",
    ),
    "NaN": (lambda points: good(points) * np.float32("nan"), "logits of view 0 are not finite"),
    "dropout": (Rng(), "asked twice about the same clouds .* differ by .*model.eval()"),
    "batch statistics": (normed, "differ by .* with the clouds beside it: batch statistics"),
    "probabilities": (
        lambda points: softmax(good(points), axis=1),
        "returned probabilities .*return the logits",
    ),
    "half of 16 bits": (
        lambda points: softmax(good(points), axis=1).astype(np.float16),
        "returned probabilities",
    ),
    "one-hot": (lambda points: (good(points) > 0).astype(np.float32), "returned probabilities"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("way", ["alone", "share", "other workers"])
def test_a_broken_teacher_is_told_the_remedy_and_leaves_the_place_to_the_mended_one(
    name, way, tmp_path
):
    teacher, says = BROKEN[name]
    out, clouds = str(tmp_path / "record.h5"), made()
    settings = {
        "alone": ({}, {}),
        "share": ({"share": (1, 2)}, {}),
        "other workers": ({}, {"compute": lambda *_: pytest.fail("asked")}),
    }
    request, more = settings[way]
    with pytest.raises(DataError, match=says) as caught:
        record(Recording(clouds, "broken", out, 2, **request), teacher, **more)
    assert (
        str(caught.value).startswith("teacher: ")
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 400
    )
    assert os.listdir(tmp_path) == []
    assert record(Recording(clouds, "mended", out, 2), good).teacher_accuracy == 1


@pytest.mark.parametrize(
    "raised", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit]
)
@pytest.mark.parametrize(
    "call", [1, 2, 3, 4, 6, 7, 9], ids=lambda call: f"call-{call}"
)  # 7 to 9: the first shard
def test_whatever_a_teacher_raises_before_the_first_shard_leaves_the_place_free(
    raised, call, tmp_path
):
    calls = []

    def teacher(points):
        calls.append(1)
        if len(calls) == call:
            raise raised("the teacher's own words")
        return good(points)

    out = str(tmp_path / "record.h5")
    with pytest.raises(raised, match="the teacher's own words"):
        record(Recording(made(), "broken", out, 2), teacher)
    assert len(calls) == call and os.listdir(tmp_path) == []
    assert record(Recording(made(), "mended", out, 2), good).teacher_accuracy == 1


def test_what_was_computed_before_a_teacher_failed_is_kept_and_another_teacher_is_told_of_it(
    tmp_path,
):
    calls = []

    def teacher(points):
        calls.append(1)
        if len(calls) > 6 + 3 + 1:  # in the second shard
            raise RuntimeError("out of memory")
        return good(points)

    out = str(tmp_path / "record.h5")
    with pytest.raises(RuntimeError):
        record(Recording(made(), "one", out, 2), teacher)
    with pytest.raises(
        DataError, match="another recording: teacher_id is one there and two here; choose another"
    ):
        record(Recording(made(), "two", out, 2), good)
    assert record(Recording(made(), "one", out, 2), good).resumed_shards == 1


def test_a_place_that_cannot_be_written_is_told_before_the_teacher_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "access", lambda path, how: str(path) != str(tmp_path) or how != os.W_OK
    )  # root may all
    with pytest.raises(
        DataError,
        match="record.h5: cannot be written; name a file in a folder that you may write to",
    ):
        record(
            Recording(made(), "t", str(tmp_path / "record.h5"), 1),
            lambda points: pytest.fail("asked"),
        )


def test_nothing_is_written_while_a_teacher_is_tried(tmp_path):
    seen = []

    def teacher(points):
        seen.append(os.listdir(tmp_path))
        return good(points)

    record(Recording(made(), "t", str(tmp_path / "record.h5"), 1), teacher)
    assert seen[:6] == [[]] * 6 and seen[6] == [
        "record.h5.parts"
    ]  # three answers and the trial of three blocks


def test_a_teacher_may_differ_in_the_last_places_by_its_own_threads_and_not_by_more(tmp_path):
    """float32 sums in another order are off by 1e-7 of the largest logit: far below the limit."""
    assert REPEATS == verify.OTHER_BUILD  # what is recorded here must pass `minipc verify` there
    rng = np.random.default_rng(0)

    def shaking(by, points):
        logits = good(points)
        return logits + by * np.abs(logits).max(axis=1, keepdims=True) * rng.choice(
            [-1, 1], logits.shape
        )

    done = record(Recording(made(), "threads", str(tmp_path / "a.h5"), 1), partial(shaking, 1e-6))
    assert done.teacher_accuracy == 1
    with pytest.raises(DataError, match="asked twice"):
        record(Recording(made(), "noise", str(tmp_path / "b.h5"), 1), partial(shaking, 1e-3))


HONEST = {
    "float64": lambda points: good(points).astype(np.float64),
    "float16": lambda points: good(points).astype(np.float16),
    "log-probabilities": lambda points: log_softmax(good(points), axis=1),
    "no negative logit": lambda points: np.exp(good(points) / 5),
    "rows that sum to one": lambda points: good(points) + np.float32(0.5),
    "probabilities plus one": lambda points: 1 + softmax(good(points), axis=1),
    "the order of memory": lambda points: np.asfortranarray(good(points)),
    "not to be written to": lambda points: np.broadcast_to(good(points), (len(points), 2)),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_teacher_is_recorded_as_it_answers(name, tmp_path):
    out, clouds = str(tmp_path / "record.h5"), made()
    record(Recording(clouds, "honest", out, 1, logits="float32"), HONEST[name])
    with RecordReader(out) as reader:
        scale, shift, logits = reader.view(0)
    points = apply(clouds.points, Params(scale, shift))
    wanted = np.concatenate([HONEST[name](points[first : first + 32]) for first in (0, 32)])
    np.testing.assert_array_equal(logits[:64], wanted.astype(np.float32))


def test_a_teacher_may_write_over_its_answer_and_its_input(tmp_path):
    buffer = np.empty((32, 2), np.float32)

    def teacher(points):
        buffer[:] = good(points)
        points[:] = 0
        return buffer

    record(Recording(made(), "t", str(tmp_path / "a.h5"), 2), teacher)
    record(Recording(made(), "t", str(tmp_path / "b.h5"), 2), good)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_the_sum_of_float16_probabilities_is_within_the_bound():
    """Rounded to 11 bits twice: at most 2^-10 of one, and 2^-25 for each one that underflows."""
    rng = np.random.default_rng(0)
    for classes in (2, 40, 1000):
        p = softmax(6 * rng.standard_normal((2000, classes)), axis=1).astype(np.float16)
        assert np.abs(p.sum(axis=1, dtype=np.float64) - 1).max() < SUMS_TO_ONE


def test_a_torch_tensor_is_an_answer_unless_it_carries_gradients(torch):
    logits = torch.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(
        answer(logits, (2, 3)), np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    for wrong in (logits.requires_grad_(), logits.detach().bfloat16()):
        with pytest.raises(
            DataError,
            match=r"returned a Tensor that is no array of numbers .*logits.detach\(\).cpu",
        ):
            answer(wrong, (2, 3))


def of(right, number, classes=2):
    """Labels (number,) in turn and logits of which the first `right` are right."""
    labels = np.arange(number) % classes
    predicted = np.where(np.arange(number) < right, labels, (labels + 1) % classes)
    return labels, np.eye(classes)[predicted]


@pytest.mark.parametrize("number, classes", [(8, 2), (9, 3), (40, 2), (120, 40), (512, 10)])
def test_right_answers_are_held_against_the_exact_tail_of_the_binomial_distribution(
    number, classes
):
    needed = trial(*of(0, number, classes), 1 / classes).needed
    for right in range(number + 1):
        p = binomtest(right, number, 1 / classes, alternative="greater").pvalue
        assert (right >= needed) == (p <= LEVEL), right


def test_a_bad_teacher_of_so_few_clouds_that_one_test_can_never_pass_is_refused_by_the_other():
    """Of eight clouds no mean class accuracy tells a teacher from a guess; eight right do."""
    found = trial(*of(4, 8), 0.5)
    assert found.class_needed is None and found.needed == 8
    with pytest.raises(DataError, match=r"4 of 8 .*: no better than chance \(8 right needed\)"):
        check_chance(found, False, print)


def test_eight_of_eight_of_two_classes_are_better_than_chance():
    """2^-8 = 0.0039: a guesser does that once in 256 tries."""
    found = trial(*of(8, 8), 0.5)
    assert found.needed == 8 and found.passed and not found.undecidable
    assert not trial(*of(7, 8), 0.5).passed  # 9 in 256


def test_no_refusal_asks_for_what_cannot_be():
    for number in range(1, 60):
        for classes in (2, 3, 10):
            for share in (1 / classes, 0.8, 0.97, 1.0):
                found = trial(*of(0, number, classes), share)
                assert found.needed is None or found.needed <= number
                assert found.class_needed is None or 0 < found.class_needed <= 1
                assert trial(*of(number, number, classes), share).passed, (number, classes, share)
                assert found.passed == found.undecidable


def test_a_teacher_of_unbalanced_data_that_finds_the_rare_class_is_better_than_chance():
    """95 of 100 are of one class: naming it always is 95 % right, and 50 % by class."""
    labels = np.repeat([0, 1], [475, 25])
    predicted = labels.copy()
    predicted[:28], predicted[-2:] = 1, 0
    found = trial(labels, np.eye(2)[predicted], 0.95)
    assert found.correct == 470 and found.class_accuracy == pytest.approx((447 / 475 + 23 / 25) / 2)
    assert (
        found.correct < found.needed and found.class_accuracy > found.class_needed and found.passed
    )
    always = trial(labels, np.eye(2)[0 * labels], 0.95)
    assert always.class_accuracy == 0.5 and not always.passed


@pytest.mark.parametrize("counts", [(50, 50), (95, 5), (20, 20, 20, 20), (60, 30, 8, 2)])
@pytest.mark.parametrize("guess", ["label shares", "even", "largest"])
def test_guessers_pass_no_more_often_than_is_said(counts, guess):
    """Of 20,000 guessers at most 1 in 100 passes either test, and 4 standard errors of that."""
    rng, classes, labels = (
        np.random.default_rng(5),
        len(counts),
        np.repeat(np.arange(len(counts)), counts),
    )
    share, tries = max(counts) / sum(counts), 20_000
    q = {
        "label shares": np.array(counts) / sum(counts),
        "even": np.full(classes, 1 / classes),
        "largest": np.eye(classes)[0],
    }[guess]
    needs = trial(labels, np.eye(classes)[labels], share)
    right = np.stack(
        [rng.binomial(count, each, tries) for count, each in zip(counts, q, strict=True)], axis=1
    )
    passed = np.zeros(tries, bool)
    if needs.needed is not None:
        passed |= right.sum(axis=1) >= needs.needed
    if needs.class_needed is not None:
        passed |= (right / np.array(counts)).mean(axis=1) >= needs.class_needed
    bound = 2 * LEVEL
    assert passed.mean() <= bound + 4 * np.sqrt(bound * (1 - bound) / tries)


def test_a_teacher_that_too_few_clouds_can_judge_is_recorded_and_that_is_said(tmp_path):
    """Four clouds: even all of them right happen to a guesser once in 16 tries."""
    said, clouds = [], made(4)
    assert binom.sf(3, 4, 0.5) == 1 / 16 > LEVEL
    record(Recording(clouds, "t", str(tmp_path / "few.h5"), 1), good, say=said.append)
    assert "teacher: 4 of 4 training clouds right; so few cannot tell it from a guess" in said


def test_a_refusal_says_what_would_do(tmp_path):
    clouds = made()
    with pytest.raises(
        DataError,
        match=(
            r"35 of 70 training clouds right, mean class accuracy 50.0 %: no better than chance "
            r"\(47 right or 69.5 % by "
            "class needed\\); check that it was trained on this data, or pass --force"
        ),
    ):
        record(
            Recording(clouds, "flat", str(tmp_path / "record.h5"), 1),
            lambda points: 0 * good(points),
        )
    assert binom.sf(46, 70, 0.5) <= LEVEL < binom.sf(45, 70, 0.5)
    assert os.listdir(tmp_path) == []
    record(
        Recording(clouds, "flat", str(tmp_path / "record.h5"), 1, force=True),
        lambda points: 0 * good(points),
    )


def test_a_share_that_is_there_needs_no_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MOST_ROWS", 32)
    out = str(tmp_path / "record.h5")
    assert isinstance(record(Recording(made(), "t", out, 1, share=(0, 2)), good), Share)
    assert isinstance(record(Recording(made(), "t", out, 1, share=(0, 2)), None), Share)
    assert record(Recording(made(), "t", out, 1), good).views == 1
