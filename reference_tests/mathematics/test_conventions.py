"""Every conversion of a weight is tested on gradients, against the library's formula."""

import json

import numpy as np
import pytest

from minipc.audit import bound, conventions
from minipc.errors import UsageError
from minipc.nn.losses import LossConfig, loss_backward, loss_forward

STEP = 1e-6


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def kl(z, v, T):
    """T^2 is not in it; summed over classes, one number a row."""
    log_s, log_p = log_softmax(z / T), log_softmax(v / T)
    return (np.exp(log_p) * (log_p - log_s)).sum(axis=1)


def cross_entropy(z, labels):
    return -log_softmax(z)[np.arange(len(z)), labels].mean()


THEIRS = {  # each as its library writes it
    "repdistiller": lambda z, v, labels, w, T: (
        (1 - w) * cross_entropy(z, labels) + w * kl(z, v, T).sum() * T**2 / len(z)
    ),
    "torchdistill": lambda z, v, labels, w, T: (
        w * cross_entropy(z, labels) + (1 - w) * T**2 * kl(z, v, T).mean()
    ),
    "mmrazor": lambda z, v, labels, w, T: cross_entropy(z, labels) + w * T**2 * kl(z, v, T).mean(),
    "deit": lambda z, v, labels, w, T: (
        (1 - w) * cross_entropy(z, labels) + w * kl(z, v, T).sum() * T * T / z.size
    ),
    "plain": lambda z, v, labels, w, T: (1 - w) * cross_entropy(z, labels) + w * kl(z, v, T).mean(),
}


def gradient(f, z):
    """Return df/dz by central differences."""
    found = np.zeros_like(z)
    for place in np.ndindex(*z.shape):
        moved = np.zeros_like(z)
        moved[place] = STEP
        found[place] = (f(z + moved) - f(z - moved)) / (2 * STEP)
    return found


def ours(z, v, labels, a, T):
    y = np.eye(z.shape[1])[labels]
    return loss_backward(loss_forward(z, y, v, None, None, LossConfig(a, 0.0, T))[1])


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    z, v = 2 * rng.standard_normal((2, 4, 7))
    return z, v, rng.integers(0, 7, 4)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
def test_our_gradient_is_theirs_at_the_translated_weight(name, T, weight, rows):
    z, v, labels = rows
    theirs = gradient(lambda z: THEIRS[name](z, v, labels, weight, T), z)
    a, times = conventions.from_theirs(name, weight, T, z.shape[1])
    np.testing.assert_allclose(times * ours(z, v, labels, a, T), theirs, atol=1e-8)
    back, again = conventions.to_theirs(name, a, T, z.shape[1])
    assert back == pytest.approx(weight, rel=1e-12) and again * times == pytest.approx(1, rel=1e-12)


def test_the_squared_difference_of_kd_lib_is_no_kl_at_any_weight(rows):
    z, v, _ = rows
    T, softmax = 4.0, lambda logits: np.exp(log_softmax(logits))
    squared = gradient(lambda z: T**2 * ((softmax(z / T) - softmax(v / T)) ** 2).mean(), z).ravel()
    divergence = gradient(lambda z: T**2 * kl(z, v, T).mean(), z).ravel()
    cosine = squared @ divergence / np.linalg.norm(squared) / np.linalg.norm(divergence)
    assert cosine < 0.99 and "no KL" in conventions.KD_LIB


def test_every_convention_is_tested_and_weights_that_cannot_be_are_refused():
    assert conventions.CONVENTIONS.keys() == THEIRS.keys()
    with pytest.raises(UsageError, match="expected repdistiller, torchdistill"):
        conventions.to_theirs("other", 0.5, 1.0, 10)
    for name, weight in (("deit", 1.5), ("mmrazor", -1.0)):
        with pytest.raises(UsageError, match="negative"):
            conventions.from_theirs(name, weight, 4.0, 10)
    assert (
        conventions.to_theirs("mmrazor", 1.0, 4.0, 10).weight == np.inf
    )  # beside labels of weight 1


# The command


def test_loss_prints_the_formula_with_its_numbers(say):
    code, out, _ = say("loss", "--self-weight", 0.2)
    assert code == 0
    verdict, _, first, second, third = out.splitlines()[:5]
    assert verdict.startswith("Bounded below by the guard; without it, not in ")
    assert first == (
        "loss = 0.1 CE(y, s_1) + 0.9 T^2 KL(p || s_T) - 0.2 T^2 KL(r || s_T), T = 2, "
        "KL summed over classes, batch mean, guard clip"
    )
    assert second.startswith("gradient = 0.1 (s_1 - y) + 2 ((sum q') s_T - q')")
    assert "q' = max(0.9 p - 0.2 r, 0.045 p)" in third and "The first two terms elsewhere" in out
    code, out, _ = say(
        "loss", "--kd-weight", 0.9, "--temperature", 4, "--self-weight", 0.2, "--guard", "none"
    )
    assert "gradient = 0.1 (s_1 - y) + 3.6 (s_T - p) - 0.8 (s_T - r)" in out


@pytest.mark.parametrize(
    "weights, bounded, verdict",
    [
        ((), True, "Bounded below: nothing is subtracted."),
        (("--self-weight", 0.2), True, "Bounded below by the guard; without it, not in "),
        (("--self-weight", 0.2, "--guard", "none"), False, "NOT bounded below: in "),
        (
            ("--self-weight", 0.01, "--temperature", 8, "--guard", "none"),
            True,
            "Bounded below in all of the rows",
        ),
        (("--from", "deit=0.5"), True, "Bounded below: nothing is subtracted."),
    ],
)
def test_loss_says_first_whether_it_is_bounded(say, weights, bounded, verdict):
    _, out, _ = say("loss", *weights)
    assert out.startswith(verdict)
    _, told, _ = say("loss", *weights, "--json")
    assert json.loads(told)["bounded"] is bounded


def test_loss_json_translates_and_maps(say):
    code, out, _ = say("loss", "--kd-weight", 0.9, "--temperature", 4, "--json", "--classes", 40)
    told = json.loads(out)
    assert code == 0 and told["bounded"] is True and told["classes"] == 40
    assert told["elsewhere"]["deit"]["weight"] == pytest.approx(36 / 36.1)  # a K / (1 - a + a K)
    assert told["elsewhere"]["torchdistill"]["weight"] == pytest.approx(0.1)
    shares = {(row["b"], row["T"]): row["unbounded_share"] for row in told["map"]}
    assert shares[0.1, 1.0] == 1 and shares[0.1, 8.0] == 0  # the example of docs/math.md
    assert 0.002 < shares[0.1, 4.0] < 0.01
    code, out, _ = say("loss", "--kd-weight", 1, "--json")
    none = {name for name, row in json.loads(out)["elsewhere"].items() if row["weight"] is None}
    assert none == {
        "mmrazor",
        "torchdistill",
    }  # which weigh labels with nothing, or mean something else then


def test_the_target_of_the_worst_row_is_where_the_gradient_of_the_loss_in_use_vanishes():
    rows = bound.example_rows(10, 50)
    for config in (
        LossConfig(0.6, 0.2, 1.0, 0.1, "clip"),
        LossConfig(0.6, 0.001, 1.0, 0.1, "none"),
    ):
        worst = bound.worst_row(rows, config)
        z, one = np.log(worst.target)[None], slice(worst.row, worst.row + 1)
        _, cache = loss_forward(z, worst.y[None], rows.v[one], rows.u[one], np.ones(1), config)
        assert np.abs(loss_backward(cache)).max() < 1e-15 and worst.target.min() > 0
    soft = bound.worst_row(rows, LossConfig(1.0, 0.2, 3.0, 0.0, "clip"))
    z = 3 * np.log(soft.soft_target)[None]
    one = slice(soft.row, soft.row + 1)
    _, cache = loss_forward(
        z, soft.y[None], rows.v[one], rows.u[one], np.ones(1), LossConfig(1.0, 0.2, 3.0, 0.0)
    )
    assert np.abs(loss_backward(cache)).max() < 1e-15 and soft.target is None


def test_loss_takes_a_weight_from_elsewhere(say):
    code, out, _ = say("loss", "--from", "deit=0.5", "--temperature", 4)
    assert (
        say("loss", "--from", "repdistiller=0.95", "--self-weight", 0.46)[0] == 0
    )  # a is 0.95, not the default
    assert code == 0 and out.splitlines()[2] == (
        "deit 0.5 at T = 4, K = 40 is a = 0.0243902; their loss is 0.5125 x ours"
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (("--from", "deit"), "expected NAME=WEIGHT"),
        (("--from", "deit=nan"), "finite"),
        (("--from", "deit=0.5", "--kd-weight", "0.5"), "leave one out"),
        (("--from", "other=1"), "expected repdistiller"),
        (("--self-weight", "0.45"), "b < a / 2"),
        (("--self-record", "r.h5"), "--self-record has no use without --record"),
        (("--record", "r.h5", "--classes", "3"), "--classes: the record says how many"),
        (("--classes", "1"), "1"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(say, words, says):
    code, out, err = say("loss", *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err
