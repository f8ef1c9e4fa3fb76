"""The audit: a line for each operation, loss term, earlier self, model, optimiser and the replay.

A line passes if every gradient agrees with central differences, every Taylor rest falls as h^2, and
every fact holds.  float64 decides; what float32 makes of the same gradients is shown beside it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from minipc.audit import facts, problems, rules
from minipc.errors import DataError
from minipc.nn.gradcheck import GradientReport, central_difference, taylor_rates
from minipc.nn.losses import LossConfig
from minipc.streams import stream

STEPS = (1e-4, 1e-5, 1e-6)  # of the central differences; the best counts: a wrong gradient is wrong at all
TOLERANCE = 1e-6  # of a relative error in float64
TAYLOR = 1e-4  # first step of the Taylor rests
RATE = 1.8  # least order of the Taylor rest; 2 is right, 1 is a wrong gradient
DIRECTIONS = 2  # for each array
SEED = 0


class Line(NamedTuple):
    """What one line of the audit looks at."""

    name: str
    problems: Callable | None = None  # (rng, dtype) -> list of Problem
    facts: tuple = ()  # of rng -> list of Fact


class Check(NamedTuple):
    """What came out of one line."""

    name: str
    compared: int  # gradients along a direction, and facts
    largest: float  # relative error in float64
    median: float
    rate: float | None  # least order of a Taylor rest; None where every rest is rounding, or without gradients
    float32: float | None  # largest relative error of the gradients computed in float32
    passed: bool
    worst: str  # what the largest error is of, or what failed


THREE_TERMS = LossConfig(0.9, 0.3, 2.5, 0.1, "none")
GUARDED = LossConfig(0.9, 0.3, 2.5, 0.1, "clip")

LINES = (
    Line("linear", problems.linear, (facts.linear,)),
    Line("bias", problems.bias, (facts.bias,)),
    Line("batch norm, training", problems.batch_norm, (facts.batch_norm,)),
    Line("batch norm, evaluation", problems.batch_norm_eval, (facts.batch_norm_eval,)),
    Line("ReLU", problems.relu, (facts.relu,)),
    Line("maximum over points", problems.point_max, (facts.point_max,)),
    Line("dropout", problems.dropout, (facts.dropout,)),
    Line("log-softmax", problems.log_softmax, (facts.log_softmax,)),
    Line("soft cross-entropy", problems.soft_cross_entropy, (facts.soft_cross_entropy,)),
    Line("fused layers", problems.fused_layers),
    Line("loss: labels", problems.loss(problems.LABELS), (facts.loss(problems.LABELS), facts.labels)),
    Line("loss: distillation", problems.loss(problems.DISTILLATION), (facts.loss(problems.DISTILLATION),)),
    Line("loss: negative self term", problems.loss(problems.NEGATIVE), (facts.loss(problems.NEGATIVE), facts.negative)),
    Line("loss: guard", problems.loss(problems.GUARDED), (facts.loss(problems.GUARDED), facts.guard)),
    Line("loss: conformance vectors", None, (facts.conformance,)),
    Line("self target: snapshot", problems.against_earlier_self("snapshot"), (rules.snapshot,)),
    Line("self target: ema", problems.against_earlier_self("ema"), (rules.ema,)),
    Line("self target: history", problems.against_earlier_self("history"), (rules.history,)),
    Line("self target: record", problems.against_earlier_self("record"), (rules.second_record,)),
    Line("small PointNet, fused", problems.small_step("fused", THREE_TERMS)),
    Line("small PointNet, textbook", problems.small_step("textbook", THREE_TERMS)),
    Line("AdamW", None, (rules.adamw,)),
    Line("SGD and clipping", None, (rules.sgd,)),
    Line("augmentation replay", None, (rules.replay,)),
    Line("teacher, fused", problems.whole_step("teacher", "fused", GUARDED), (rules.engines("teacher"),)),
    Line("teacher, textbook", problems.whole_step("teacher", "textbook", GUARDED)),
    Line("student, fused", problems.whole_step("student", "fused", THREE_TERMS), (rules.engines("student"),)),
    Line("student, textbook", problems.whole_step("student", "textbook", THREE_TERMS)),
)


def audit(progress=lambda done, total, text: None):
    """Return the list of Checks of all LINES."""
    checks = []
    for number, line in enumerate(LINES):
        progress(number, len(LINES), line.name)
        checks.append(_check(line, SEED))
    progress(len(LINES), len(LINES), "audit")
    return checks


def first_failure():
    """Return the Check of the first line that does not pass, or None."""
    return next((check for check in (_check(line, SEED) for line in LINES) if not check.passed), None)


def _check(line, seed):
    """Return the Check of a line."""
    errors, rates, rough, failed = {}, [], [], []
    if line.problems:
        in_both = (line.problems(stream(seed, "audit", 0), dtype) for dtype in (np.float64, np.float32))
        for number, (exact, single) in enumerate(zip(*in_both, strict=True), start=1):
            for report, rate, error32 in _gradients(exact, single, stream(seed, "audit", 1)):
                what = f"gradient of {report.name}, case {number}"
                error = report.error if report.error == report.error else np.inf  # NaN compares with nothing
                errors[what] = max(errors.get(what, 0.0), error)
                rates.append(rate)
                rough.append(error32)
                if not rate >= RATE:
                    failed.append(f"{what}: Taylor rate {rate:.2f}")
    failed = [name for name, error in errors.items() if error > TOLERANCE] + failed
    for fact in (fact for make in line.facts for fact in make(stream(seed, "audit", 2))):
        errors[fact.what] = max(errors.get(fact.what, 0.0), fact.error)
        if fact.error > fact.allowed:
            failed.append(fact.what)
    rates = [rate for rate in rates if rate < np.inf]
    return Check(
        line.name, len(errors), max(errors.values()), float(np.median(list(errors.values()))),
        min(rates, default=None), max(rough, default=None), not failed,
        failed[0] if failed else max(errors, key=errors.get),
    )


def _gradients(exact, single, rng):
    """Yield for each array and direction: GradientReport at the best step, least Taylor rate, error in float32."""
    gradients = exact.gradients(exact.inputs)
    gradients32 = {name: g.astype(np.float64) for name, g in single.gradients(single.inputs).items()}
    largest = max(float(np.linalg.norm(g)) for g in gradients.values())
    if gradients.keys() != exact.inputs.keys():
        raise DataError(f"audit: gradients of {sorted(gradients)} for inputs {sorted(exact.inputs)}")
    for name, value in exact.inputs.items():
        for _ in range(DIRECTIONS):
            direction = rng.standard_normal(value.shape)
            direction /= np.linalg.norm(direction)
            along, along32 = (float((g[name] * direction).sum()) for g in (gradients, gradients32))
            best = min(
                (GradientReport(name, along, central_difference(exact.value, exact.inputs, name, direction, h), largest)
                 for h in STEPS), key=lambda report: report.error,
            )
            function = partial(_in_one, exact, name)
            rates = taylor_rates(function, value, gradients[name], direction, steps=2, first=TAYLOR)
            yield best, float(np.nanmin([*rates, np.inf])), best._replace(analytic=along32).error


def _in_one(problem, name, value):
    """Return the value of a Problem with one array in place of its own."""
    return problem.value(problem.inputs | {name: value})
