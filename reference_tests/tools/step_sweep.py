"""How large a step, and how many directions: the tables of docs/gradient_checking.md.

    python -m reference_tests.tools.step_sweep

Prints them as they stand there; a test computes them again and compares.
"""

import numpy as np

from minipc.audit.problems import small_step
from minipc.nn.gradcheck import GradientReport, central_difference
from minipc.nn.losses import LossConfig
from minipc.streams import stream

STEPS = tuple(10.0**-power for power in range(1, 10))
DRAWS = 200
TOLERANCES = (1e-3, 1e-6)
THREE_TERMS = LossConfig(0.9, 0.3, 2.5, 0.1, "none")
SUSPECT = "head0.beta"  # made wrong by one percent


def problem(dtype, engine="fused"):
    """Return the audit's small PointNet with the three-term loss, away from kinks."""
    return small_step(engine, THREE_TERMS)(stream(0, "audit", 0), dtype)[0]


def sweep(dtype, engine):
    """Return the largest relative error over all arrays, for each of STEPS."""
    checked = problem(dtype, engine)
    exact = problem(np.float64, engine)
    gradients = exact.gradients(exact.inputs)
    largest = max(float(np.linalg.norm(g)) for g in gradients.values())
    worst = []
    for step in STEPS:
        rng, errors = stream(0, "audit", 1), []
        for name, value in checked.inputs.items():
            direction = rng.standard_normal(value.shape)
            direction /= np.linalg.norm(direction)
            numeric = central_difference(
                checked.value, checked.inputs, name, direction.astype(dtype), dtype(step)
            )
            errors.append(
                GradientReport(
                    name, float((gradients[name] * direction).sum()), numeric, largest
                ).error
            )
        worst.append(max(errors))
    return worst


def accepted(joint):
    """Return how many of DRAWS checks accept a gradient of SUSPECT that is 1 % too large.

    One number for each of TOLERANCES.  joint: one unit direction through all arrays at once; else
    one in each array.
    """
    checked = problem(np.float64)
    wrong = checked.gradients(checked.inputs)
    wrong[SUSPECT] = 1.01 * wrong[SUSPECT]
    counts = np.zeros(len(TOLERANCES), int)
    for draw in range(DRAWS):
        rng = stream(0, "audit", 4, draw)
        directions = {
            name: rng.standard_normal(value.shape) for name, value in checked.inputs.items()
        }
        if joint:
            length = np.sqrt(sum((d * d).sum() for d in directions.values()))
            steps = [{name: d / length for name, d in directions.items()}]
        else:
            steps = [{name: d / np.linalg.norm(d)} for name, d in directions.items()]
        worst = 0.0
        for step in steps:
            worst = max(worst, _error(checked, wrong, step))
            if worst > max(TOLERANCES):
                break
        counts += worst <= np.array(TOLERANCES)
    return counts


def _error(checked, gradients, directions, h=1e-5):
    analytic = sum(float((gradients[name] * d).sum()) for name, d in directions.items())
    plus, minus = (
        checked.value(
            checked.inputs
            | {name: checked.inputs[name] + sign * h * d for name, d in directions.items()}
        )
        for sign in (1, -1)
    )
    numeric = (plus - minus) / (2 * h)
    return abs(analytic - numeric) / max(abs(analytic), abs(numeric))


def tables():
    """Return both tables as Markdown."""
    heads = " | ".join(f"1e-{power}" for power in range(1, 10))
    rows = [f"| h along a unit direction | {heads} |", "| --- |" + " ---: |" * len(STEPS)]
    for name, dtype, engine in (
        ("fused, float64", np.float64, "fused"),
        ("textbook, float64", np.float64, "textbook"),
        ("textbook, float32", np.float32, "textbook"),
    ):
        rows.append(
            f"| {name} | " + " | ".join(f"{error:.0e}" for error in sweep(dtype, engine)) + " |"
        )
    rows += [
        "",
        "| accepted when | relative error up to 1e-3 | up to 1e-6 |",
        "| --- | ---: | ---: |",
    ]
    for name, joint in (("one joint direction", True), ("one direction an array", False)):
        rows.append(f"| {name} | " + " | ".join(f"{n} of {DRAWS}" for n in accepted(joint)) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(tables())
