"""The stored vectors are what the independent script computes, and catch wrong losses."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from minipc.audit import mutants, vectors
from minipc.errors import UsageError
from reference_tests.tools import make_vectors


def test_the_stored_vectors_are_those_of_the_independent_script():
    stored = files("minipc").joinpath("vectors", "loss.json").read_text()
    assert stored == make_vectors.document()


def test_the_script_uses_nothing_of_minipc():
    source = Path(make_vectors.__file__).read_text()
    assert "import minipc" not in source and "from minipc" not in source and "numpy" not in source


def test_there_are_at_least_forty_cases_to_thirty_digits_of_every_number():
    stored = json.loads(files("minipc").joinpath("vectors", "loss.json").read_text())["cases"]
    assert len(stored) >= 40 and len({case["name"] for case in stored}) == len(stored)
    assert all(set(case) == set(vectors.Case._fields) for case in stored)
    digits = max(
        len(case["loss"].lstrip("-0.").replace(".", "").partition("e")[0]) for case in stored
    )
    assert digits == 30
    for case in stored:  # inputs are exact in float64, and in float32
        for name in ("z", "v", "u"):
            assert all(float(np.float32(float(text))) == float(text) for text in case[name])


def test_the_cases_reach_every_edge():
    cases = vectors.cases()
    guarded = [case for case in cases if 0 < case.b < case.a / 2]
    raised = [
        case
        for case in guarded
        if (
            case.guarded_weights
            > case.a * _softmax(case.v / case.T) - case.b * _softmax(case.u / case.T) + 1e-15
        ).any()
    ]
    assert raised and len(raised) < len(guarded)
    assert any(case.margins.min() < 0 for case in cases) and any(
        case.margins.min() > 0 < case.b for case in cases
    )
    assert (
        {case.smoothing > 0 for case in cases}
        == {case.b > case.a for case in cases}
        == {True, False}
    )
    assert {len(case.z) for case in cases} >= {2, 40} and min(case.T for case in cases) == 1


def _softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def test_our_loss_conforms():
    assert vectors.check()[0][2] <= vectors.TOLERANCE
    names = {name for _, name, _ in vectors.check()}
    assert names == set(vectors.Case._fields[5:]) - {"a", "b", "T", "smoothing"}


@pytest.mark.parametrize(
    "name",
    [
        "no-temperature-squared",
        "temperature-squared-in-the-gradient",
        "softmax-minus-target",
        "swapped-divergence",
        "sign-of-b",
        "guard-without-floor",
        "smoothing-over-wrong-classes",
        "softmax-without-shift",
    ],
)
def test_a_wrong_loss_does_not_conform(name):
    with mutants.broken(mutants.MUTANTS[name]):
        assert not vectors.check()[0][2] <= 1e-6


def test_another_shape_and_nan_do_not_conform():
    assert vectors.deviation([1.0], [1.0, 2.0]) == vectors.deviation([np.nan], [1.0]) == np.inf
    assert vectors.deviation([1e3 + 1e-9], [1e3]) == pytest.approx(1e-12, rel=1e-3)


def test_the_command_holds_every_number(say):
    code, out, _ = say("audit", "--vectors")
    assert code == 0 and f"{len(vectors.cases())} cases, 4" in out and "1e-12 is allowed" in out
    code, out, _ = say("audit", "--vectors", "--json")
    told = json.loads(out)
    assert told["passed"] and "failed" not in told and told["cases"] == len(vectors.cases())
    with mutants.broken(mutants.MUTANTS["sign-of-b"]):
        code, _, err = say("audit", "--vectors")
    assert code == 4 and err.count("\n") == 1 and "is off by" in err


def test_a_number_that_no_case_has_is_refused():
    with pytest.raises(UsageError, match="got 'total'"):
        vectors.check(lambda case: {"total": 0.0})
