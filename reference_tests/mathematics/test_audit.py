"""The audit passes the right engine and catches mutants, and one percent of any gradient."""

import json
from contextlib import ExitStack
from types import FunctionType
from unittest import mock

import numpy as np
import pytest

from minipc.audit import checks, facts, mutants
from minipc.audit.problems import Problem
from minipc.data import augment
from minipc.distil import statistics
from minipc.models import pointnet, pointnet2
from minipc.nn import exact, groups, local, losses, ops, optim, widening
from minipc.nn.fast import fused, local_eval, pointwise, products
from minipc.nn.fast import local as fast_local
from minipc.streams import stream

LARGE = "teacher", "student", "small PointNet++", "PointNet++ of"
SMALL = tuple(line for line in checks.LINES if not line.name.startswith(LARGE))


FEW = "linear", "batch norm, training", "ReLU", "soft cross-entropy", "loss: negative self term"


@pytest.fixture
def quick(monkeypatch):
    """A few lines of the audit: for the command, which shows what `found` holds whole."""
    lines = tuple(line for line in checks.LINES if line.name in FEW)
    monkeypatch.setattr(checks, "LINES", lines)
    return lines


@pytest.fixture(scope="module")
def found():
    """The Checks of the whole audit."""
    return checks.audit()


def test_every_check_holds_for_the_engine_as_it_is(found):
    assert len(found) == len(checks.LINES) >= 28
    assert [check.name for check in found if not check.passed] == []
    differentiated = [check for check in found if check.gradients]
    assert len(differentiated) >= 20 and all(
        check.median <= check.largest <= 1e-6 for check in differentiated
    )
    assert all(
        check.deviation is not None and check.deviation < 1e-4
        for check in found
        if not check.gradients
    )


MODULES = (
    ops,
    exact,
    losses,
    groups,
    local,
    fused,
    fast_local,
    local_eval,
    pointwise,
    optim,
    pointnet,
    pointnet2,
    augment,
    statistics,
    widening,
)


def test_the_audit_calls_every_public_function_of_the_mathematics():
    """A new function without a line of its own is noticed."""
    functions = [
        (module, name)
        for module in MODULES
        for name, function in vars(module).items()
        if isinstance(function, FunctionType)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    ]
    assert len(functions) >= 40
    with ExitStack() as stack:
        spies = {
            (module, name): stack.enter_context(
                mock.patch.object(module, name, wraps=getattr(module, name))
            )
            for module, name in functions
        }
        for line in SMALL:
            if line.problems:
                for problem in line.problems(stream(0, "audit", 0), np.float64):
                    problem.gradients(problem.inputs)
            for make in line.facts:
                make(stream(0, "audit", 2))
    # what these say is no mathematics
    assert {name for (_, name), spy in spies.items() if not spy.called} <= {
        "count",
        "formula",
        "grouping",
        "sizes",
        "check_engine",
        "prepare",
        "title",
        "dropout_width",
    }


def test_float32_cannot_decide_what_float64_decides(found):
    by_name = {check.name: check for check in found}
    for name in ("fused layers", "small PointNet, fused", "teacher, textbook"):
        assert by_name[name].float32 > 10 * by_name[name].largest


CAUGHT_BY = {  # the line of the audit that is there for a mutant
    "no-temperature-squared": "loss: distillation",
    "temperature-squared-in-the-gradient": "loss: distillation",
    "softmax-minus-target": "soft cross-entropy",
    "swapped-divergence": "loss: labels",
    "sign-of-b": "loss: negative self term",
    "self-term-everywhere": "loss: labels",
    "guard-without-floor": "loss: guard",
    "smoothing-over-wrong-classes": "loss: labels",
    "smoothing-without-a-label": "loss: labels",
    "softmax-without-shift": "log-softmax",
    "unbiased-normalisation": "batch norm, training",
    "biased-tracking": "batch norm, training",
    "swapped-momentum": "batch norm, training",
    "no-mean-term": "batch norm, training",
    "slope-at-zero": "ReLU",
    "last-of-ties": "maximum over points",
    "dropout-in-the-forward-only": "dropout",
    "mean-for-sum": "bias",
    "winners-without-sign": "fused layers",
    "no-constant-row": "fused layers",
    "moments-of-a-sample": "fused layers",
    "no-relu-backward": "fused layers",
    "fused-multiply-add": "augmentation",
    "self-target-of-the-same-step": "self target: snapshot",
    "swapped-decay": "self target: ema",
    "history-of-the-neighbour": "self target: history",
    "decay-on-biases": "AdamW",
    "no-bias-correction": "AdamW",
    "another-eps": "small PointNet, fused",
    "evaluation-with-another-eps": "small PointNet, fused",
    "dropout-forgotten": "small PointNet, fused",
    "statistics-forgotten": "small PointNet, fused",
    "lost-where-gamma-is-zero": "student, fused",
    "first-block-only": "fused layers",
    "first-channels-only": "fused layers",
    "sums-go-on": "fused layers",
    "one-buffer-for-two-layers": "fused layers",
    "no-schedule": "learning rate",
    "every-view-the-first": "augmentation",
    "one-scale-for-all-axes": "augmentation",
    "another-view-replayed": "record and replay",
    "clipping-each-array": "SGD and clipping",
    "grouped-on-the-augmented-cloud": "PointNet++ by definition",
    "gather-assigns": "gather",
    "centre-not-subtracted": "offsets",
    "winner-of-the-wrong-group": "fused levels",
    "moments-without-the-counts": "fused levels",
    "average-with-its-start": "averaged weights",
    "epochs-kept-without-copies": "averaged weights",
    "variances-averaged": "averaged weights",
    "leading-of-the-whole": "networks inside a wider one",
    "gradients-assigned": "networks inside a wider one",
    "one-draw-for-all-layers": "networks inside a wider one",
}


def test_every_mutant_has_a_line_that_catches_it():
    assert list(CAUGHT_BY) == list(mutants.MUTANTS)


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_every_mutant_is_caught_and_leaves_nothing_behind(name):
    mutant = mutants.MUTANTS[name]
    before = [getattr(owner, attribute) for owner, attribute, _ in mutant.breaks]
    with mutants.broken(mutant):
        assert all(
            getattr(owner, attribute) is not old
            for (owner, attribute, _), old in zip(mutant.breaks, before, strict=True)
        )
        (line,) = (line for line in checks.LINES if line.name == CAUGHT_BY[name])
        found = checks.check(line)
    assert not found.passed
    # It breaks the mathematics, not a call.  (A winner never looked for is any number.)
    assert "raised" not in found.worst or "raised IndexError" in found.worst
    assert [getattr(owner, attribute) for owner, attribute, _ in mutant.breaks] == before


def test_a_mutant_is_taken_away_after_an_error_too():
    right = losses.divergence
    with (
        pytest.raises(ZeroDivisionError),
        mutants.broken(mutants.MUTANTS["no-temperature-squared"]),
    ):
        assert losses.divergence is not right
        raise ZeroDivisionError
    assert losses.divergence is right


GRADIENTS = {  # what each backward returns, in order
    (ops, "linear_backward"): ("dx", "dW"),
    (ops, "bias_backward"): ("dx", "db"),
    (ops, "batch_norm_backward"): ("dx", "dgamma", "dbeta"),
    (ops, "batch_norm_eval_backward"): ("dx", "dgamma", "dbeta"),
    (ops, "relu_backward"): ("dx",),
    (ops, "point_max_backward"): ("dx",),
    (ops, "dropout_backward"): ("dx",),
    (ops, "log_softmax_backward"): ("dz",),
    (losses, "soft_cross_entropy_backward"): ("dz",),
    (losses, "loss_backward"): ("dz",),
    (products, "linear_backward"): ("dx", "dW"),
    (fused, "shared_backward"): ("dx", "dW", "dgamma", "dbeta"),
    (fused, "pooled_backward"): ("dx", "dW", "dgamma", "dbeta"),
    (fused, "input_gradient"): ("dpoints",),
    (local, "gather_backward"): ("df",),
    (local, "max_and_mean_backward"): ("dx",),
    (pointwise, "pointwise_backward"): ("dx", "dW", "dgamma", "dbeta"),
    (fast_local, "level_backward"): ("df", "dW", "dgamma", "dbeta"),
    (fast_local, "expand_backward"): ("df", "dW", "dgamma", "dbeta"),
    (fast_local, "group_pool_backward"): ("dx", "dW", "dgamma", "dbeta"),
}


UNMULTIPLIED = fused.Gradient, fast_local.GroupGradient


def one_percent_more(right, place):
    """Return the backward with one of its gradients 1 % too large."""

    def wrong(*arguments):
        result = right(*arguments)
        parts = (
            list(result)
            if isinstance(result, tuple) and not isinstance(result, UNMULTIPLIED)
            else [result]
        )
        part = parts[place]
        if isinstance(part, fused.Gradient):  # not multiplied out: the factors are
            parts[place] = part._replace(
                coefficients=part.coefficients * 1.01, g=None if part.g is None else part.g * 1.01
            )
        elif isinstance(part, fast_local.GroupGradient):
            parts[place] = part._replace(K=part.K * 1.01, g=part.g * 1.01)
        elif part is not None:  # a first layer has no gradient of its input
            parts[place] = part * 1.01
        return tuple(parts) if len(parts) > 1 else parts[0]

    return wrong


def test_the_table_of_gradients_is_complete():
    backwards = {
        (module, name)
        for module in (ops, losses, products, fused, local, fast_local, pointwise)
        for name, function in vars(module).items()
        if (name.endswith("_backward") or name == "input_gradient")
        and getattr(function, "__module__", "") == module.__name__
    }
    assert backwards == set(GRADIENTS)


@pytest.mark.parametrize(
    "module, name, place",
    [
        pytest.param(
            module, name, place, id=f"{module.__name__.rpartition('.')[2]}.{name}: {gradient}"
        )
        for (module, name), gradients in GRADIENTS.items()
        for place, gradient in enumerate(gradients)
    ],
)
def test_one_percent_of_any_single_gradient_is_caught(module, name, place):
    with mock.patch.object(module, name, one_percent_more(getattr(module, name), place)):
        caught = checks.first_failure()
    assert caught is not None and max(caught.largest or 0, caught.deviation or 0) > 1e-3


@pytest.mark.parametrize("part", ["K", "g", "At"])
@pytest.mark.parametrize("name", ["shared_backward", "pooled_backward"])
def test_one_percent_of_any_factor_of_an_unmultiplied_gradient_is_caught(name, part, monkeypatch):
    fused_lines = tuple(line for line in SMALL if "fused" in line.name)  # the others call no such
    monkeypatch.setattr(checks, "LINES", fused_lines)
    right = getattr(fused, name)

    def wrong(*arguments):
        dx, *others = right(*arguments)
        factor = getattr(dx, part)
        return dx if factor is None else dx._replace(**{part: 1.01 * factor}), *others

    with mock.patch.object(fused, name, wrong):
        caught = checks.first_failure()
    assert (caught is None) == (name == "shared_backward" and part != "K")  # it has no other factor


def check_of(value, gradients, inputs):
    """Return the Check of one Problem."""
    line = checks.Line(
        "made up",
        lambda rng, dtype: [
            Problem({name: array.astype(dtype) for name, array in inputs.items()}, value, gradients)
        ],
    )
    return checks.check(line, 0)


def test_a_missing_gradient_or_one_of_another_shape_or_dtype_fails():
    x = {"x": np.arange(1.0, 4.0), "y": np.ones(3)}

    def value(a):
        return float((a["x"] ** 2).sum() + a["y"].sum())

    right = {"x": lambda a: 2 * a["x"], "y": lambda a: np.ones_like(a["y"])}
    assert check_of(value, lambda a: {name: g(a) for name, g in right.items()}, x).passed
    for wrong, says in (
        (lambda a: {"x": right["x"](a)}, "gradients of ['x'] for inputs ['x', 'y']"),
        (
            lambda a: {"x": right["x"](a)[None], "y": right["y"](a)},
            "expected shape (3), got (1, 3)",
        ),
        (
            lambda a: {"x": right["x"](a).astype(np.float64), "y": right["y"](a)},
            "expected float32, got float64",
        ),
        (lambda a: {"x": a["z"]}, "raised KeyError"),
    ):
        found = check_of(value, wrong, x)
        assert not found.passed and says in found.worst


def test_a_gradient_that_is_nan_or_of_a_wrong_curvature_fails():
    x = {"x": np.arange(1.0, 4.0)}
    right = check_of(lambda a: float((a["x"] ** 3).sum()), lambda a: {"x": 3 * a["x"] ** 2}, x)
    assert right.passed and right.rate == pytest.approx(2, abs=0.01)
    for wrong in (lambda a: {"x": a["x"] * np.nan}, lambda a: {"x": 3 * a["x"] ** 2 + 0.01}):
        assert not check_of(lambda a: float((a["x"] ** 3).sum()), wrong, x).passed


def test_facts_are_strict():
    assert facts.near("", [1.0, 2.0], [1.0, 2.0]).error == 0
    assert facts.near("", [1.0, np.nan], [1.0, 2.0]).error == np.inf
    assert facts.near("", [1.0], [1.0, 2.0]).error == np.inf
    assert (
        facts.near("", np.zeros(2), np.zeros(2)).error
        == 0
        < facts.near("", [1.0], [2.0], size=4).error
        == 0.25
    )
    line = checks.Line(
        "made up", None, (lambda rng: [facts.Fact("not a number", float("nan"), 1.0)],)
    )
    assert not checks.check(line, 0).passed
    assert (
        facts.same("", [1.0, 1 + 2e-16], [1.0, 1.0]).error > 0 == facts.same("", [1.0], [1.0]).error
    )
    assert facts.same("", [np.nan], [1.0]).error == np.inf
    assert facts.holds("", False).error == np.inf > facts.holds("", True).error == 0


# The command


def test_audit_prints_a_line_a_check_and_ends_with_zero(say, quick):
    code, out, err = say("audit")
    assert code == 0 and f"{len(quick)} of {len(quick)} checks hold" in out, err
    for line in quick:
        assert any(row.startswith(line.name) and row.endswith("ok") for row in out.splitlines())


def test_audit_json_holds_the_promised_keys(say, quick):
    code, out, _ = say("audit", "--json", "--quiet")
    told = json.loads(out)
    assert code == 0 and told["passed"] is True and len(told["checks"]) == len(quick)
    assert all({"name", "relative_error", "passed"} <= check.keys() for check in told["checks"])
    assert all(0 <= check["relative_error"] <= 1e-6 for check in told["checks"])
    assert say("audit", "--json", "--quiet")[1] == out  # the same numbers, whoever asks again


def test_an_injected_mutant_ends_in_exit_4_naming_the_check_that_caught_it(say, quick):
    code, out, err = say("audit", "--inject", "softmax-minus-target", "--quiet")
    assert code == 4 and err.count("\n") == 1
    assert err.startswith(
        "minipc: mutant softmax-minus-target: caught by soft cross-entropy (gradient of z"
    )
    assert "soft cross-entropy" in out and "FAILED" in out
    code, out, err = say("audit", "--inject", "sign-of-b", "--quiet", "--json")
    assert code == 4 and json.loads(out)["passed"] is False and "failed" in json.loads(out)


def test_all_mutants_are_injected_and_a_survivor_is_a_failure(say, quick, monkeypatch):
    few = {name: mutants.MUTANTS[name] for name in ("no-mean-term", "slope-at-zero")}
    monkeypatch.setattr(mutants, "MUTANTS", few)
    code, out, _ = say("audit", "--inject", "all", "--quiet")
    assert code == 0 and "2 of 2 mutants caught" in out
    harmless = mutants.Mutant("nothing", ((ops, "relu_forward", lambda right: lambda x: right(x)),))
    monkeypatch.setattr(mutants, "MUTANTS", few | {"harmless": harmless})
    code, out, err = say("audit", "--inject", "all", "--quiet")
    assert code == 4 and "mutants survived: harmless" in err and "2 of 3 mutants caught" in out
    code, _, err = say("audit", "--inject", "harmless", "--quiet")
    assert code == 1 and "mutant harmless: survived" in err


def test_list_names_every_mutant(say):
    code, out, _ = say("audit", "--list")
    assert code == 0 and len(mutants.MUTANTS) >= 15
    assert [line.split()[0] for line in out.splitlines()] == list(mutants.MUTANTS)


@pytest.mark.parametrize(
    "words, says",
    [
        (("--inject", "sign-of-c"), "did you mean sign-of-b?"),
        (("--inject", ""), "unknown mutant ''"),
        (("--inject", "all", "--vectors"), "do not go together"),
        (("--kd-weight", "0.5"), "--kd-weight has no use without --record"),
        (("clouds.h5",), "DATA has no use without --record"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(say, words, says):
    code, out, err = say("audit", *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err
