"""The audit: a line for each operation, loss term, earlier self, model, optimiser and the replay.

A line passes if every gradient agrees with central differences, every Taylor rest falls as h^2, and
every fact holds.  float64 decides; what float32 makes of the same gradients is shown beside it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from minipc.audit import facts, neighbours, problems, rules
from minipc.errors import DataError, check_shape
from minipc.nn.gradcheck import GradientReport, central_difference, taylor_rates
from minipc.nn.losses import LossConfig
from minipc.streams import stream

STEPS = (
    1e-4,
    1e-5,
    1e-6,
)  # of the central differences; the best counts: a wrong gradient is wrong at all
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
    gradients: int  # along a direction, of one array in one case
    largest: (
        float | None
    )  # relative error of a gradient in float64; None where nothing is differentiated
    median: float | None
    rate: (
        float | None
    )  # least order of a Taylor rest; None where every rest is rounding, or without gradients
    float32: float | None  # largest relative error of the gradients computed in float32
    facts: int
    deviation: float | None  # largest of a fact, relative; None without facts
    passed: bool
    worst: str  # what failed, else what the largest error is of

    @property
    def error(self):
        """The largest gradient error, or the largest deviation where nothing is differentiated."""
        return self.deviation if self.largest is None else self.largest


THREE_TERMS = LossConfig(0.9, 0.3, 2.5, 0.1, "none")
GUARDED = LossConfig(0.9, 0.3, 2.5, 0.1, "clip")
SEVERAL = "16/0.8x9:8-8-16,6/2x12:16-16-32,32-64-128:64-32"
SINGLE = "16,16/7:32+,8/6:48+,4/5:48+,96+mean:48"

LINES = (
    Line("linear", problems.linear, (facts.linear,)),
    Line("head in evaluation", None, (facts.exact_product,)),
    Line("bias", problems.bias, (facts.bias,)),
    Line("batch norm, training", problems.batch_norm, (facts.batch_norm,)),
    Line("batch norm, evaluation", problems.batch_norm_eval, (facts.batch_norm_eval,)),
    Line("ReLU", problems.relu, (facts.relu,)),
    Line("maximum over points", problems.point_max, (facts.point_max,)),
    Line("groups", None, (neighbours.groups_by_definition,)),
    Line("offsets", None, (neighbours.offsets,)),
    Line("gather", neighbours.gather, (neighbours.gather_facts,)),
    Line("maximum and mean", neighbours.max_and_mean, (neighbours.max_and_mean_facts,)),
    Line("dropout", problems.dropout, (facts.dropout,)),
    Line("log-softmax", problems.log_softmax, (facts.log_softmax,)),
    Line("soft cross-entropy", problems.soft_cross_entropy, (facts.soft_cross_entropy,)),
    Line("fused levels", neighbours.fused_levels, (neighbours.levels_agree, neighbours.moments)),
    Line("fused layers", problems.fused_layers, (rules.divided_work,)),
    Line(
        "loss: labels", problems.loss(problems.LABELS), (facts.loss(problems.LABELS), facts.labels)
    ),
    Line(
        "loss: distillation",
        problems.loss(problems.DISTILLATION),
        (facts.loss(problems.DISTILLATION),),
    ),
    Line(
        "loss: negative self term",
        problems.loss(problems.NEGATIVE),
        (facts.loss(problems.NEGATIVE), facts.negative),
    ),
    Line(
        "loss: guard", problems.loss(problems.GUARDED), (facts.loss(problems.GUARDED), facts.guard)
    ),
    Line("loss: conformance vectors", None, (facts.conformance,)),
    Line("self target: snapshot", problems.against_earlier_self("snapshot"), (rules.snapshot,)),
    Line("self target: ema", problems.against_earlier_self("ema"), (rules.ema,)),
    Line("self target: history", problems.against_earlier_self("history"), (rules.history,)),
    Line("self target: record", problems.against_earlier_self("record"), (rules.second_record,)),
    Line(
        "small PointNet, fused", problems.small_step("fused", THREE_TERMS), (rules.model("fused"),)
    ),
    Line(
        "small PointNet, textbook",
        problems.small_step("textbook", THREE_TERMS),
        (rules.model("textbook"),),
    ),
    Line("AdamW", None, (rules.adamw,)),
    Line("SGD and clipping", None, (rules.sgd,)),
    Line("learning rate", None, (rules.schedule,)),
    Line("augmentation", None, (rules.augmentation,)),
    Line("record and replay", None, (rules.replay,)),
    Line(
        "PointNet++ by definition", None, (neighbours.model("fused"), neighbours.model("textbook"))
    ),
    Line("record of a PointNet++", None, (neighbours.replay,)),
    Line("small PointNet++, fused", neighbours.small_step("fused", THREE_TERMS)),
    Line("small PointNet++, textbook", neighbours.small_step("textbook", THREE_TERMS)),
    Line(
        "teacher, fused",
        problems.whole_step("teacher", "fused", GUARDED),
        (rules.engines("teacher"),),
    ),
    Line("teacher, textbook", problems.whole_step("teacher", "textbook", GUARDED)),
    Line(
        "student, fused",
        problems.whole_step("student", "fused", THREE_TERMS),
        (rules.engines("student"),),
    ),
    Line("student, textbook", problems.whole_step("student", "textbook", THREE_TERMS)),
    # The widths of pointnet2/8 and of local-student, with fewer centres.
    Line("PointNet++ of several layers", None, (neighbours.engines(SEVERAL),)),
    Line("PointNet++ of single layers", None, (neighbours.engines(SINGLE),)),
)


def audit(progress=lambda done, total, text: None):
    """Return the list of Checks of all LINES."""
    checks = []
    for number, line in enumerate(LINES):
        progress(number, len(LINES), line.name)
        checks.append(check(line))
    progress(len(LINES), len(LINES), "audit")
    return checks


def first_failure():
    """Return the Check of the first line that does not pass, or None."""
    return next((found for found in map(check, LINES) if not found.passed), None)


def check(line, seed=SEED):
    """Return the Check of a line.  Whatever the engine raises is a failure of the line."""
    compared, held, failed = [], [], []
    try:
        if line.problems:
            in_both = (
                line.problems(stream(seed, "audit", 0), dtype) for dtype in (np.float64, np.float32)
            )
            for number, (exact, single) in enumerate(zip(*in_both, strict=True), start=1):
                compared += _gradients(exact, single, stream(seed, "audit", 1), f", case {number}")
        held += [fact for make in line.facts for fact in make(stream(seed, "audit", 2))]
    except Exception as reason:
        failed.append(f"raised {type(reason).__name__}: {reason}")
    failed += [f"gradient of {one.what}" for one in compared if not one.error <= TOLERANCE]
    failed += [
        f"Taylor rate {one.rate:.2f} of {one.what}" for one in compared if not one.rate >= RATE
    ]
    failed += [fact.what for fact in held if not fact.error <= fact.allowed]
    errors = [
        one.error if one.error == one.error else np.inf for one in compared
    ]  # NaN compares with nothing
    deviations = [fact.error if fact.error == fact.error else np.inf for fact in held]
    rates = [one.rate for one in compared if one.rate < np.inf]
    named = [f"gradient of {one.what}" for one in compared] or [fact.what for fact in held] or [""]
    return Check(
        line.name,
        len(errors),
        max(errors, default=None),
        float(np.median(errors)) if errors else None,
        min(rates, default=None),
        max((one.float32 for one in compared), default=None),
        len(held),
        max(deviations, default=None),
        not failed,
        failed[0] if failed else named[int(np.argmax(errors or deviations))],
    )


class Compared(NamedTuple):
    """One gradient along one direction."""

    what: str
    error: float  # at the best of STEPS
    rate: float  # least order of the Taylor rest; infinite where it is rounding
    float32: float  # error of the gradient computed in float32


def _gradients(exact, single, rng, case):
    """Yield a Compared for each array and direction of a Problem and its twin in float32.

    Raises DataError where a gradient is missing, or has not the shape and dtype of its array.
    """
    gradients, rounded = exact.gradients(exact.inputs), single.gradients(single.inputs)
    for problem, found in ((exact, gradients), (single, rounded)):
        if found.keys() != problem.inputs.keys():
            raise DataError(f"gradients of {sorted(found)} for inputs {sorted(problem.inputs)}")
        for name, value in problem.inputs.items():
            check_shape(f"gradient of {name}{case}", found[name], value.shape)
            if found[name].dtype != value.dtype:
                raise DataError(
                    f"gradient of {name}{case}: expected {value.dtype}, got {found[name].dtype}"
                )
    largest = max(float(np.linalg.norm(g)) for g in gradients.values())
    for name, value in exact.inputs.items():
        for _ in range(DIRECTIONS):
            direction = _direction(gradients[name], rng)
            along, along32 = (
                float((g[name].astype(np.float64) * direction).sum()) for g in (gradients, rounded)
            )
            best = min(
                (
                    GradientReport(
                        name,
                        along,
                        central_difference(exact.value, exact.inputs, name, direction, h),
                        largest,
                    )
                    for h in STEPS
                ),
                key=lambda report: report.error,
            )
            function = partial(_in_one, exact, name)
            rates = taylor_rates(function, value, gradients[name], direction, steps=2, first=TAYLOR)
            rate = min((rate for rate in rates if rate == rate), default=np.inf)
            yield Compared(name + case, best.error, rate, best._replace(analytic=along32).error)


def _direction(gradient, rng):
    """Return a random unit vector that is not nearly orthogonal to the gradient."""
    least = 0.1 * np.linalg.norm(gradient) / np.sqrt(gradient.size)
    for _ in range(20):
        direction = rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        if abs((gradient * direction).sum()) >= least:
            break
    return direction


def _in_one(problem, name, value):
    """Return the value of a Problem with one array in place of its own."""
    return problem.value(problem.inputs | {name: value})
