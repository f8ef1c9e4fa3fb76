"""The audit: a line for each operation, loss term, earlier self, model, optimiser and the replay.

A line passes if every gradient agrees with central differences, every Taylor rest falls as h^2, and
every fact holds.  float64 decides; the error of the same gradients in float32 is shown beside it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from minipc.audit import facts, neighbours, problems, rules, weights
from minipc.audit.facts import Fact, FactMaker
from minipc.audit.problems import Problem, ProblemMaker
from minipc.errors import DataError, check_shape
from minipc.nn.gradcheck import GradientReport, central_difference, taylor_rates
from minipc.nn.losses import LossConfig
from minipc.progress import quiet
from minipc.streams import stream

# Steps of the central differences.  The best one counts: a wrong gradient is wrong at every step.
STEPS = (1e-4, 1e-5, 1e-6)
TOLERANCE = 1e-6  # of a relative error in float64
TAYLOR = 1e-4  # first step of the Taylor rests
RATE = 1.8  # least order of the Taylor rest; 2 is right, 1 is a wrong gradient
DIRECTIONS = 2  # for each array
SEED = 0


class Line(NamedTuple):
    """What one line of the audit checks."""

    name: str
    problems: ProblemMaker | None = None
    facts: tuple[FactMaker, ...] = ()


class Check(NamedTuple):
    """The result of one line."""

    name: str
    gradients: int  # number of gradients: each is of one array in one case, along one direction
    largest: float | None  # relative error of a gradient in float64; None without gradients
    median: float | None
    # Least order of a Taylor rest; None without gradients, or where every rest is rounding.
    rate: float | None
    float32: float | None  # largest relative error of the gradients computed in float32
    facts: int
    deviation: float | None  # largest relative deviation of a fact; None without facts
    passed: bool
    worst: str  # what failed first; if nothing failed, what has the largest error

    @property
    def error(self) -> float | None:
        """The largest gradient error; without gradients, the largest deviation of a fact."""
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
    Line("averaged weights", None, (weights.averages, weights.pooled_moments)),
    Line(
        "networks inside a wider one",
        weights.inside_a_wider_one,
        (weights.slices, weights.widths),
    ),
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


def audit(progress: Callable[[int, int, str], None] = quiet) -> list[Check]:
    """Return the list of Checks of all LINES."""
    checks = []
    for number, line in enumerate(LINES):
        progress(number, len(LINES), line.name)
        checks.append(check(line))
    progress(len(LINES), len(LINES), "audit")
    return checks


def first_failure() -> Check | None:
    """Return the Check of the first line that does not pass, or None."""
    return next((result for result in map(check, LINES) if not result.passed), None)


def check(line: Line, seed: int = SEED) -> Check:
    """Return the Check of a line.  An exception from the engine is a failure of the line."""
    compared: list[Compared] = []
    held: list[Fact] = []
    failed: list[str] = []
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
    errors = [_nan_is_infinite(one.error) for one in compared]
    deviations = [_nan_is_infinite(fact.error) for fact in held]
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


def _nan_is_infinite(error: float) -> float:
    """Return error, or infinity for NaN: max() must find it, and NaN compares with nothing."""
    return error if error == error else np.inf


class Compared(NamedTuple):
    """One gradient along one direction."""

    what: str
    error: float  # at the best of STEPS
    rate: float  # least order of the Taylor rest; infinite where the rest is rounding
    float32: float  # error of the gradient computed in float32


def _gradients(exact: Problem, single: Problem, rng: Generator, case: str) -> Iterator[Compared]:
    """Yield a Compared for each array and direction of a Problem and its twin in float32.

    Raises DataError where a gradient is missing, or its shape or dtype is not that of its array.
    """
    gradients, rounded = exact.gradients(exact.inputs), single.gradients(single.inputs)
    for problem, grads in ((exact, gradients), (single, rounded)):
        if grads.keys() != problem.inputs.keys():
            raise DataError(f"gradients of {sorted(grads)} for inputs {sorted(problem.inputs)}")
        for name, value in problem.inputs.items():
            grad = grads[name]
            check_shape(f"gradient of {name}{case}", grad, value.shape)
            if grad.dtype != value.dtype:
                raise DataError(
                    f"gradient of {name}{case}: expected {value.dtype}, got {grad.dtype}"
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


def _direction(gradient: np.ndarray, rng: Generator) -> np.ndarray:
    """Return a random unit vector that is not nearly orthogonal to the gradient."""
    least = 0.1 * np.linalg.norm(gradient) / np.sqrt(gradient.size)
    for _ in range(20):
        direction = rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        if abs((gradient * direction).sum()) >= least:
            break
    return direction


def _in_one(problem: Problem, name: str, value: Any) -> float:
    """Return the value of a Problem with one of its arrays replaced."""
    return problem.value(problem.inputs | {name: value})
