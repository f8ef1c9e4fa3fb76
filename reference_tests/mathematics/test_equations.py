"""docs/math.md and the code say the same: tags as sets, stated numbers by computing them again.

A number is not copied here: it is computed again and compared with the cell of a table in the page,
so that neither can change alone, and the words around a table are free.
"""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from minipc import errors
from minipc.data.augment import AugmentConfig, apply, draw
from minipc.models import model, pointnet2
from minipc.models.pointnet import NAMED_SIZES
from minipc.nn.losses import (
    GUARD_FLOOR,
    LossConfig,
    guarded,
    loss_backward,
    loss_forward,
    margins,
    smooth_labels,
    soft_cross_entropy_backward,
    soft_cross_entropy_forward,
)
from minipc.nn.ops import batch_norm_forward, log_softmax_backward, log_softmax_forward
from minipc.nn.optim import adamw_start, adamw_step, sgd_start, sgd_step, warmup_cosine
from reference_tests.tools.pages import table, tables

ROOT = Path(__file__).parents[2]
PACKAGE, DOCS = ROOT / "minipc", ROOT / "docs"
PAGES = ("math.md", "fast_engine.md")

TAG = re.compile(r"\(([A-Z]\d+)\)")
EQUATION = re.compile(r"^ {4,}\S.*\s\(([A-Z]\d+)\)$", re.MULTILINE)  # indented, the tag at its end

K, T = 40, 4.0


def page_text(*names):
    """Return the pages that exist, one after the other."""
    return "\n".join((DOCS / name).read_text() for name in names if (DOCS / name).exists())


MATH = page_text("math.md")
CONVENTIONS = page_text("conventions.md")
FAST = page_text("fast_engine.md")


def cited(package):
    """Return the tags in the Python files of package."""
    return {tag for path in package.rglob("*.py") for tag in TAG.findall(path.read_text())}


def tag_faults(package, text):
    """Return one line for every tag that the code and the text do not share, or defined twice."""
    equations = Counter(EQUATION.findall(text))
    code, prose = cited(package), set(TAG.findall(text))
    return [
        *(f"({tag}) is cited by the code and no equation" for tag in sorted(code - set(equations))),
        *(f"({tag}) is an equation that no code cites" for tag in sorted(set(equations) - code)),
        *(f"({tag}) is mentioned and no equation" for tag in sorted(prose - set(equations))),
        *(f"({tag}) numbers {n} equations" for tag, n in sorted(equations.items()) if n > 1),
    ]


def softmax(z):
    return np.exp(log_softmax_forward(z)[0])


# Tags


def test_every_tag_is_an_equation_of_the_page_and_every_equation_is_cited():
    assert len(cited(PACKAGE)) >= 30  # the pattern still finds what it is for
    assert tag_faults(PACKAGE, page_text(*PAGES)) == []


def disorder(text):
    """Return the tags of a page that stand behind a higher one of their letter, or twice."""
    last, wrong = {}, []
    for tag in EQUATION.findall(text):
        if int(tag[1:]) <= last.get(tag[0], 0):
            wrong.append(tag)
        last[tag[0]] = max(int(tag[1:]), last.get(tag[0], 0))
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_the_tags_of_a_page_are_in_order(page):
    assert disorder(page_text(page)) == []


def test_a_tag_out_of_order_or_twice_is_found():
    lines = [f"    y = x   ({tag})\n" for tag in ("M1", "L1", "M3", "M2", "L1", "M4")]
    assert disorder("".join(lines)) == ["M2", "L1"]


# Letters

FORMULAS = re.compile(r"^ {4,}\S.*$", re.MULTILINE)
LETTER = r"(?<![^\W\d_])[^\W\d_](?![^\W\d_])"  # one alone, or with a subscript
KNOWN = set("EOπ")  # the mean over a draw and "of the order", said where they stand; the number


def undefined_letters(text, defined=""):
    """Return the letters of the formulas of a page that neither its words nor `defined` have."""
    words = set(re.findall(LETTER, FORMULAS.sub("", text))) | set(re.findall(LETTER, defined))
    return set(re.findall(LETTER, " ".join(FORMULAS.findall(text)))) - words


@pytest.mark.parametrize(
    "page", ["math.md", "fast_engine.md", "negative_weights.md", "gradient_checking.md"]
)
def test_a_page_has_words_for_every_letter_of_its_formulas(page):
    text = page_text(page)
    linked = CONVENTIONS if "(conventions.md)" in text else ""
    assert undefined_letters(text, linked) - KNOWN == set()


def test_a_letter_without_words_is_found():
    text = "Let w be the weights.\n\n    y = w x_i + T^2\n\nHere y is the output.\n"
    assert undefined_letters(text) == {"x", "i", "T"}
    assert undefined_letters(text, "| T | temperature |") == {"x", "i"}


@pytest.fixture
def planted(tmp_path):
    """Return a package that cites Q1 and Q2, in a folder below its top as well."""
    (tmp_path / "nn").mkdir()
    (tmp_path / "a.py").write_text('"""y = x.  (Q1)"""\n')
    (tmp_path / "nn" / "b.py").write_text("# delta of (Q2)\n")
    return tmp_path


@pytest.mark.parametrize(
    "text, fault",
    [
        ("    y = x   (Q1)\n    y = 2 x   (Q2)\n", None),
        ("    y = x   (Q1)\n", "(Q2) is cited by the code and no equation"),
        ("    y = x   (Q1)\nIn prose (Q2) is no equation.\n", "(Q2) is cited by the code and no"),
        ("    y = x   (Q1)\n    y = 2 x   (Q2)\n    z = 0   (Q3)\n", "(Q3) is an equation that no"),
        ("    y = x   (Q1)\n    y = 2 x   (Q2)\nsee (Q4)\n", "(Q4) is mentioned and no equation"),
        ("    y = x   (Q1)\n    y = 2 x   (Q2)\n    y = 3 x   (Q2)\n", "(Q2) numbers 2 equations"),
    ],
)
def test_a_planted_fault_of_the_tags_is_found(planted, text, fault):
    faults = tag_faults(planted, text)
    if fault is None:
        assert faults == []
    else:
        assert [line for line in faults if line.startswith(fault)]


def test_a_tag_taken_out_of_the_real_page_is_missed():
    without = MATH.replace("(M13)", "")
    assert without != MATH
    assert "(M13) is cited by the code and no equation" in tag_faults(PACKAGE, without)


def test_the_theorem_that_the_code_cites_has_a_proof_in_the_page():
    assert "theorem 2.1" in (PACKAGE / "nn" / "losses.py").read_text()
    assert MATH.count("**Theorem 2.1**") == 1
    assert MATH.index("**Theorem 2.1**") < MATH.index("*Proof.*") < MATH.index("QED")


# What a weight means


def peer_gradients(z, v):
    """Return {normalisation: logit gradient (B, K)} of weight 1 at temperature T."""
    batch = len(z)
    _, cache = soft_cross_entropy_forward(z / T, softmax(v / T))
    each = np.full(batch, 1 / batch)
    log_s, log_softmax = log_softmax_forward(z / T)
    s = np.exp(log_s)
    d_s = 2 * T**2 * (s - softmax(v / T)) / z.size  # of T^2 times the mean squared error
    return {
        "no factor": soft_cross_entropy_backward(each, cache) / T,
        "mean over entries": soft_cross_entropy_backward(T**2 * each / K, cache) / T,
        "squared error": log_softmax_backward(d_s * s, log_softmax) / T,
    }


def our_gradient(z, v):
    y = np.full_like(z, 1 / K)
    config = LossConfig(kd_weight=1.0, temperature=T, guard="none")
    return loss_backward(loss_forward(z, y, v, None, None, config)[1])


def test_the_factors_between_conventions_are_those_of_the_table():
    z, v = np.random.default_rng(0).standard_normal((2, 64, K))
    ours, peers = our_gradient(z, v), peer_gradients(z, v)
    of_math, of_conventions = table(MATH, "What a weight means"), table(CONVENTIONS, "Loss", 1)
    for row, (name, reason) in enumerate((("no factor", "T^2"), ("mean over entries", "K")), 1):
        ratio = ours / peers[name]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)  # one number for all entries
        assert of_math[row][2:] == [f"1 / {reason}", f"1/{ratio[0, 0]:.0f}"]
        assert of_conventions[row][1:] == [f"w / {reason}", f"w / {ratio[0, 0]:.0f}"]


def test_the_factor_of_the_squared_error_depends_on_the_logits_as_stated():
    rows = []
    for sd in (0.001, 1, 2, 2.4, 3):
        z, v = sd * np.random.default_rng(0).standard_normal((2, 2000, K))
        ours, theirs = our_gradient(z, v), peer_gradients(z, v)["squared error"]
        each = np.linalg.norm(theirs, axis=1) / np.linalg.norm(ours, axis=1)
        assert each.max() <= 1 / K
        rows.append([f"{sd:g}", f"1/{np.linalg.norm(ours) / np.linalg.norm(theirs):.0f}"])
    assert rows[0][1] == f"1/{K**2 // 2}"  # 2 / K^2 where all probabilities are nearly equal
    assert table(MATH, "What a weight means", 1) == rows


def test_the_squared_error_gradient_used_above_is_right():
    z, v = np.random.default_rng(1).standard_normal((2, 3, K))
    u = np.random.default_rng(2).standard_normal(z.shape)

    def value(z):
        return T**2 * ((softmax(z / T) - softmax(v / T)) ** 2).mean()

    numeric = (value(z + 1e-5 * u) - value(z - 1e-5 * u)) / 2e-5
    assert (peer_gradients(z, v)["squared error"] * u).sum() == pytest.approx(numeric, rel=1e-6)


def test_the_two_conventions_of_label_smoothing_convert_as_stated():
    other = 0.2  # 1 - e' for the true class, e' / (K - 1) for each wrong one
    y = smooth_labels(np.array([3]), K, other * K / (K - 1), np.float64)[0]
    expected = np.full(K, other / (K - 1))
    expected[3] = 1 - other
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert "e = e' K / (K - 1)" in MATH and "e = e' K / (K - 1)" in CONVENTIONS


def test_a_cross_entropy_plus_w_kd_converts_as_stated():
    w = 3.0
    z, v, y = np.random.default_rng(0).standard_normal((3, 5, K))
    y = softmax(y)
    a = w / (1 + w)
    ours = loss_backward(loss_forward(z, y, v, None, None, LossConfig(a, temperature=T))[1])
    theirs = ((softmax(z) - y) + w * T * (softmax(z / T) - softmax(v / T))) / len(z)
    np.testing.assert_allclose((1 + w) * ours, theirs, atol=1e-14)
    assert "a = w / (1 + w)" in MATH and "a = w / (1 + w)" in CONVENTIONS


# Theorem 2.1, its examples and the bounds


def test_the_share_of_rows_without_a_bound_is_as_stated():
    rng, rows = np.random.default_rng(0), 20_000
    v, u = rng.normal(0, 1.5, (rows, K)), rng.normal(0, 1.5, (rows, K))
    v[:, 0], u[:, 0] = 12, 8
    y = smooth_labels(np.zeros(rows, int), K, 0.0, np.float64)
    shares = []
    for temperature in (1, 2, 3, 4, 8):
        config = LossConfig(0.9, 0.1, float(temperature), 0.0, "none")
        terms, _ = loss_forward(np.zeros_like(v), y, v, u, np.ones(rows), config)
        shares.append([f"{temperature}", f"{100 * terms.unbounded:.1f} %"])
    assert table(MATH, "When is the loss bounded below?") == shares


def stated_numbers():
    """Return the numbers that the page gives at a = 0.9, b = 0.2, T = 4, as it spells them."""
    return [row[1] for row in table(MATH, "Numbers at a = 0.9, b = 0.2, T = 4")]


def example(t, guard):
    """Return LossTerms and margins of the row of the page, the last logit at -t."""
    z, v, u = np.array([[[2, 1, 0, -t]], [[6, 1, 0, -6]], [[3, 1, 0, 2]]], float)
    y = smooth_labels(np.array([0]), 4, 0.0, np.float64)
    config = LossConfig(0.9, 0.2, T, 0.0, guard)
    M = margins(y, softmax(v / T), softmax(u / T), np.array([[0.2]]), config)
    return loss_forward(z, y, v, u, np.ones(1), config)[0], M


def test_the_falling_loss_falls_as_stated_and_the_guarded_one_does_not():
    rows = []
    for t in (0, 10, 100, 1000, 10000):
        raw, held = example(t, "none")[0].total, example(t, "clip")[0].total
        rows.append([f"{t}", f"{raw:.2f}", f"{held:.2f}"])
        assert held >= raw
    assert table(MATH, "When is the loss bounded below?", 1) == rows
    M = example(0, "none")[1]
    assert M.argmin() == 3
    slope = (example(20000, "none")[0].total - example(10000, "none")[0].total) / 10000
    assert slope == pytest.approx(M.min(), rel=1e-9)
    assert stated_numbers()[2:4] == [f"{M.min():.3f}", f"{-1 / slope:.1f}"]


def test_the_gradient_bound_holds_is_sharp_and_has_the_stated_values():
    a, b = 0.9, 0.2
    simple, sharp = 2 * ((1 - a) + a * T + b * T), 2 * ((1 - a) + T * max(a, b))
    assert stated_numbers()[:2] == [f"{simple:.3g}", f"{sharp:.3g}"]
    rng, rows = np.random.default_rng(0), 4000
    z, v, u = rng.standard_normal((3, rows, 6)) * 10 ** rng.uniform(-1, 3, (3, rows, 1))
    y = smooth_labels(rng.integers(0, 6, rows), 6, 0.0, np.float64)
    z[0], v[0], u[0] = 1e4 * np.eye(6)[[1, 0, 2]]  # the extreme: three different certainties
    y[0] = np.eye(6)[0]
    for guard in ("none", "clip"):
        config = LossConfig(a, b, T, 0.0, guard)
        dz = rows * loss_backward(loss_forward(z, y, v, u, np.ones(rows), config)[1])
        norms = np.abs(dz).sum(axis=1)
        assert norms.max() <= sharp * (1 + 1e-12)
    raw = LossConfig(a, b, T, 0.0, "none")
    norm = np.abs(loss_backward(loss_forward(z[:1], y[:1], v[:1], u[:1], np.ones(1), raw)[1])).sum()
    assert norm == pytest.approx(sharp, rel=1e-9)


def test_the_bound_of_the_gradient_holds_for_more_self_weight_than_kd_weight():
    a, b, rows = 0.2, 0.9, 4000
    rng = np.random.default_rng(1)
    z, v, u = rng.standard_normal((3, rows, 6)) * 10 ** rng.uniform(-1, 3, (3, rows, 1))
    y = smooth_labels(rng.integers(0, 6, rows), 6, 0.0, np.float64)
    dz = rows * loss_backward(
        loss_forward(z, y, v, u, np.ones(rows), LossConfig(a, b, T, 0.0, "none"))[1]
    )
    assert np.abs(dz).sum(axis=1).max() <= 2 * ((1 - a) + T * b) * (1 + 1e-12)


def test_the_weights_of_the_guard_have_the_stated_floor_and_sum():
    (equation,) = re.findall(r"^ {4,}.* delta = (\S+) +\(L8\)$", MATH, re.MULTILINE)
    assert equation == f"{GUARD_FLOOR:g}"
    a, b = 0.9, 0.4
    v, u = np.random.default_rng(0).normal(0, 3, (2, 500, K))
    p, r = softmax(v), softmax(u)
    q = guarded(a * p, b * r)
    raised = (q > a * p - b * r).any(axis=1)
    assert raised.any()
    assert (q >= GUARD_FLOOR * (a * p)).all() and (q <= a * p).all()
    assert (q.sum(axis=1) >= a - b - 1e-12).all() and (q.sum(axis=1) <= a + 1e-12).all()


def test_without_self_weight_guard_and_no_guard_have_the_same_gradient_bit_for_bit():
    z, v, u = np.random.default_rng(0).normal(0, 3, (3, 8, K))
    y = smooth_labels(np.arange(8), K, 0.1, np.float64)
    found = [
        loss_forward(z, y, v, u, np.ones(8), LossConfig(0.9, 0.0, T, 0.1, guard))
        for guard in ("none", "clip")
    ]
    np.testing.assert_array_equal(*(loss_backward(cache) for _, cache in found))
    assert found[1][0].total.tobytes() == found[0][0].total.tobytes()


def test_at_a_large_temperature_the_divergence_is_the_squared_distance_over_2k():
    z, v = np.random.default_rng(0).standard_normal((2, 6, K))
    z, v = z - z.mean(axis=1, keepdims=True), v - v.mean(axis=1, keepdims=True)
    y, config = np.full_like(z, 1 / K), LossConfig(1.0, 0.0, 1e4, 0.0)
    terms, cache = loss_forward(z, y, v, None, None, config)
    limit = ((z - v) ** 2).sum(axis=1).mean() / (2 * K)
    assert terms.distillation == pytest.approx(limit, rel=1e-3)  # the next order is a few 1 / T
    np.testing.assert_allclose(6 * loss_backward(cache), (z - v) / K, atol=1e-4)


# The earlier self


def test_the_generations_of_a_held_snapshot_swing_by_the_stated_factor():
    a, b = 0.9, 0.2
    assert stated_numbers()[4] == f"{-b / (a - b):.2f}"
    y = smooth_labels(np.array([1]), 5, 0.1, np.float64)
    v = np.random.default_rng(0).standard_normal((1, 5))
    config = LossConfig(a, b, 1.0, 0.1, "none")
    c = (1 - a) * y + a * softmax(v)
    s = c + 0.02 * np.array([[1, -1, 0, 1, -1]])
    for _ in range(3):
        after = (c - b * s) / (1 - b)  # the page's optimum: the code's gradient must vanish there
        dz = loss_backward(loss_forward(np.log(after), y, v, np.log(s), np.ones(1), config)[1])
        np.testing.assert_allclose(dz, 0, atol=1e-15)
        np.testing.assert_allclose(after - c, -(b / (1 - b)) * (s - c), atol=1e-15)
        s = after


def history_term(W, x, b):
    """Return the mean gradient (I, K) of the self term over all pairs of views, logits x W."""
    views, classes = len(x), W.shape[1]
    w, other = (index.ravel() for index in np.indices((views, views)))
    z = x @ W
    y = np.full((views**2, classes), 1 / classes)

    def gradient(b):
        config = LossConfig(1.0, b, T, 0.0, "none")
        dz = loss_backward(
            loss_forward(z[w], y, np.zeros_like(y), z[other], np.ones(len(w)), config)[1]
        )
        return x[w].T @ dz

    return gradient(b) - gradient(0.0)


def test_history_pushes_as_derived_and_raises_the_variance_within_a_cloud():
    rng, b = np.random.default_rng(0), 0.1
    x = rng.standard_normal((6, 3))  # six views of one cloud, three features
    W = rng.standard_normal((3, 5))
    s = softmax(x @ W / T)
    covariance = (x - x.mean(axis=0)).T @ (s - s.mean(axis=0)) / len(x)  # Cov(J, s) for z = x W
    found = history_term(W, x, b)
    np.testing.assert_allclose(found, -b * T * covariance, atol=1e-14)
    assert np.abs(found).max() > 1e-3

    small = 1e-3 * W  # views close together: the second form holds to first order
    centred = (x - x.mean(axis=0)) @ small
    V = np.full(5, 1 / 5)
    V = np.diag(V) - np.outer(V, V)
    of_variance = 2 * (x - x.mean(axis=0)).T @ centred @ V / len(x)  # gradient of Var_V(z)
    pushed = history_term(small, x, b)
    np.testing.assert_allclose(pushed, -b / 2 * of_variance, rtol=2e-3, atol=1e-9)
    before, after = (x @ W).var(axis=0).sum(), (x @ (W - found)).var(axis=0).sum()
    assert after > before


# The fast engine


def test_the_page_of_the_fast_engine_counts_its_operations():
    for name, (shared, _, _) in NAMED_SIZES.items():
        *layers, (I_last, O_last) = pairwise((3, *shared))
        textbook = 3 * (sum(i * o for i, o in layers) + I_last * O_last)
        forward = sum(i * (i + 1) + i * o for i, o in (*layers, (I_last, O_last)))
        backward = sum((i + 1) * o for i, o in layers) + sum(i * (i + 1 + o) for i, o in layers[1:])
        pooled = I_last * (I_last + 1)
        row = [f"{textbook:,}", f"{forward + backward + pooled:,}"]
        assert [f"{name} {'-'.join(map(str, shared))}", *row] in sum(tables(FAST), [])


class Operations:
    """Multiply-adds for one cloud of a model with levels, counted by the rules of the page."""

    def __init__(self, config, points):
        self.textbook = self.forward = self.backward = self.evaluation = 0
        inner = False  # whether what a layer reads has a gradient
        for shape in weights_of(config, "entry"):
            self.every_row(points, shape, inner)
            inner = True
        for number, level in enumerate(config.parsed):
            for of_scale, (scale, _) in enumerate(level.scales):
                first, *rest = weights_of(config, f"level{number}.scale{of_scale}.")
                rows = level.centres * scale.members
                if inner:
                    self.before_the_gather(points, level.centres, rows, first)
                else:
                    self.every_row(rows, first, inner=False)
                for place, shape in enumerate(rest, 1):
                    pooled = place == len(rest)
                    self.every_row(rows, shape, winners=level.centres if pooled else rows)
            points, inner = level.centres, True
            for shape in weights_of(config, f"level{number}.residual"):
                self.every_row(points, shape)
        *shared, last = weights_of(config, "last")
        for shape in shared:
            self.every_row(points, shape)
        self.every_row(points, last, winners=points if config.mean else None)

    def every_row(self, rows, shape, inner=True, winners=0):
        """Section 6.  winners: rows of X^T D, 0: all; None: the pool of a cloud, (F6) and (F7)."""
        i, o = shape
        self.textbook += rows * i * o
        self.evaluation += rows * i * o
        self.forward += rows * (i * (i + 1) + i * o)
        if winners is None:
            self.backward += rows * i * (i + 1)
        else:
            self.backward += (winners or rows) * (i + 1) * o + inner * rows * i * (i + 1 + o)

    def before_the_gather(self, points, centres, rows, shape):
        i, o = shape
        c = i - 3
        self.textbook += rows * i * o
        self.evaluation += points * i * o + centres * 3 * o
        self.forward += points * ((i + 1) * (c + 1) + 18 + i * o) + centres * (9 + 3 * o)
        self.backward += points * ((i + 1) * o + c * (i + 1 + o)) + centres * 3 * o


def weights_of(config, prefix):
    """Return the shapes (I, O) of the layers whose names begin so."""
    return [
        spec.shape
        for name, spec in pointnet2.param_specs(config).items()
        if name.startswith(prefix) and name.endswith(".W")
    ]


def test_the_page_of_the_fast_engine_counts_the_operations_of_levels():
    rows = []
    for name in ("pointnet2/8", "pointnet2", "local-student", "local-teacher"):
        config = pointnet2.sizes(name, K)
        found = Operations(config, 1024)
        head = sum(i * o for prefix in ("head", "out") for i, o in weights_of(config, prefix))
        assert found.textbook + head == pointnet2.count(config, 1024).macs
        counts = found.textbook, 2 * found.textbook, found.forward, found.backward, found.evaluation
        rows.append([name, *(f"{round(count / 1000):,}" for count in counts)])
    assert table(FAST, "9. Neighbourhoods") == rows


def test_the_second_moment_about_the_shift_is_below_the_variance_given():
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((2, 50, 8)) + 3, rng.standard_normal((8, 6))
    gamma, beta = rng.standard_normal(6), 4 * rng.standard_normal(6)
    y, _, batch = batch_norm_forward(x @ W, gamma, beta, 1e-5)
    z = np.maximum(y, 0) - np.maximum(beta, 0)
    given = gamma**2 * batch.var / (batch.var + 1e-5)
    assert ((z**2).mean(axis=(0, 1)) <= given * (1 + 1e-12)).all()
    assert ((z**2).mean(axis=(0, 1)) > 0.05 * given).any()  # the bound says something


# Optimiser and augmentation


def test_the_first_step_of_adamw_is_the_stated_one_and_only_weights_decay():
    params = {"l.W": np.array([2.0, -3.0]), "l.beta": np.array([2.0, -3.0])}
    g = np.array([0.5, -1e-8])
    new, _ = adamw_step(params, dict.fromkeys(params, g), adamw_start(params), 0.1, 0.01)
    step = 0.1 * g / (np.abs(g) + 1e-8)
    np.testing.assert_allclose(new["l.beta"], params["l.beta"] - step, rtol=1e-9)
    np.testing.assert_allclose(new["l.W"], params["l.W"] * (1 - 0.1 * 0.01) - step, rtol=1e-9)


def test_momentum_lengthens_steps_and_the_schedule_meets_at_one_as_stated():
    params = {"b": np.zeros(1)}
    state = sgd_start(params)
    for _ in range(200):
        params, state = sgd_step(params, {"b": np.ones(1)}, state, 1.0, 0.0, momentum=0.9)
    assert state.velocity["b"][0] == pytest.approx(10)
    assert warmup_cosine(19, 100, 20) == warmup_cosine(20, 100, 20) == 1
    assert warmup_cosine(99, 100, 20) > 0 and warmup_cosine(100, 100, 20) == pytest.approx(0)


def test_one_rounding_instead_of_two_changes_the_stated_share_of_coordinates():
    points = np.random.default_rng(0).standard_normal((64, 1024, 3))
    points /= np.linalg.norm(points, axis=2).max(axis=1)[:, None, None]
    points = points.astype(np.float32)
    params = draw(0, 0, 0, 64, AugmentConfig())
    scale, shift = (value[:, None, :].astype(np.float64) for value in params)
    once = (points * scale + shift).astype(np.float32)  # the product of two float32 is exact here
    twice = apply(points, params)
    assert twice.dtype == np.float32
    share = (once != twice).mean()
    assert table(MATH, "4. Augmentation and exact replay")[0][1] == f"{10 * share:.0f}0 %"
    np.testing.assert_allclose(once, twice, atol=2e-7)


def test_draws_stay_between_the_float32_nearest_to_the_ends():
    config = AugmentConfig()
    scale, shift = draw(5, 1, 0, 5000, config)
    low, high, most = np.float32([config.scale_low, config.scale_high, config.shift_max])
    assert low <= scale.min() < low + 0.001 and high - 0.001 < scale.max() <= high
    assert -most <= shift.min() < -most + 0.001 and most - 0.001 < shift.max() <= most


# The page of conventions


def test_the_page_of_conventions_lists_every_error_class_with_its_code():
    kinds = [errors.MinipcError, *errors.MinipcError.__subclasses__()]
    assert len(kinds) >= 5
    listed = {row[1]: row[0] for row in table(CONVENTIONS, "Command line", 1) if row[1]}
    assert listed == {kind.__name__: str(kind.exit_code) for kind in kinds}


def test_the_page_of_conventions_lists_every_stream():
    call = re.compile(r'\b(?:stream\([\w.]+, |stratified\([^"()]*)f?"(\w+)')
    used = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "streams.py":
            used |= set(call.findall(path.read_text()))
    listed = {row[0] for row in table(CONVENTIONS, "Random streams")} - {"view words"}
    assert {"init", "shuffle"} <= used
    assert used == listed, used ^ listed


def test_the_page_of_conventions_states_the_sizes_of_the_models():
    rows, divided = [], ("pointnet2/8", "pointnet2-msg/8")
    for name in (*NAMED_SIZES, *pointnet2.NAMED_SIZES, *divided):
        config = model.sizes(name, K)
        size = model.net(config).count(config, 1024)
        rows.append([name, f"{size.parameters:,}", f"{size.macs:,}"])
    assert table(CONVENTIONS, "Training and evaluation", 1) == rows
