"""Compute minipc/vectors/loss.json to 30 digits from the definitions alone, by mpmath.

    python -m reference_tests.tools.make_vectors minipc/vectors/loss.json

Nothing of minipc is imported, so that a mistake would have to be made twice.  Inputs are multiples
of 1/8: exact in every binary format, so that no case depends on how a number was read.
"""

import json
import random
import sys

from mpmath import exp, log, mp, mpf, nstr

DIGITS = 30
FLOOR = mpf("0.05")  # delta of the guard

mp.dps = 50


def softmax(logits, T):
    """Return softmax(logits / T) and its logarithm."""
    largest = max(logits)
    log_sum = log(sum(exp((z - largest) / T) for z in logits))
    logs = [(z - largest) / T - log_sum for z in logits]
    return [exp(value) for value in logs], logs


def told(value):
    """Return a number, or a list of numbers, as strings of 30 digits."""
    return [told(one) for one in value] if isinstance(value, list) else nstr(value, DIGITS)


def case(name, z, v, u, label, a, b, T, smoothing):
    """Return one case: what goes in, and every number by the definitions (L3) to (L8)."""
    K = len(z)
    z, v, u = ([mpf(x) / 8 for x in row] for row in (z, v, u))
    a, b, T, e = (mpf(x) for x in (a, b, T, smoothing))
    y = [(1 - e) * (k == label) + e / K for k in range(K)]
    (s1, log_s1), (sT, log_sT) = softmax(z, mpf(1)), softmax(z, T)
    (p, log_p), (r, log_r) = softmax(v, T), softmax(u, T)
    labels = -sum(y[k] * log_s1[k] for k in range(K))
    distillation = T**2 * sum(p[k] * (log_p[k] - log_sT[k]) for k in range(K))
    self_distillation = T**2 * sum(r[k] * (log_r[k] - log_sT[k]) for k in range(K))
    of_labels = [(1 - a) * (s1[k] - y[k]) for k in range(K)]
    gradient = [of_labels[k] + T * (a * (sT[k] - p[k]) - b * (sT[k] - r[k])) for k in range(K)]
    guarded = [max(a * p[k] - b * r[k], FLOOR * a * p[k]) for k in range(K)]
    total = sum(guarded)
    return {
        "name": name,
        "z": told(z),
        "v": told(v),
        "u": told(u),
        "label": label,
        "y": told(y),
        "a": told(a),
        "b": told(b),
        "T": told(T),
        "smoothing": told(e),
        "labels": told(labels),
        "distillation": told(distillation),
        "self_distillation": told(self_distillation),
        "loss": told((1 - a) * labels + a * distillation - b * self_distillation),
        "gradient": told(gradient),
        "margins": told([(1 - a) * y[k] + T * (a * p[k] - b * r[k]) for k in range(K)]),
        "guarded_weights": told(guarded),
        "guarded_loss": told(
            (1 - a) * labels - T**2 * sum(guarded[k] * log_sT[k] for k in range(K))
        ),
        "guarded_gradient": told(
            [of_labels[k] + T * (total * sT[k] - guarded[k]) for k in range(K)]
        ),
    }


def cases():
    """Return the list of cases: conventions and edges by hand, then random ones."""
    z, v, u = [8, -4, 0, 13], [20, 3, -6, 1], [5, 6, -2, 0]
    far = [8000, -8000, 0, 4000]
    found = [
        case("labels alone", z, v, u, 2, "0", "0", "1", "0"),
        case("labels alone, smoothed", z, v, u, 2, "0", "0", "1", "0.2"),
        case("distillation alone, T 1", z, v, u, 0, "1", "0", "1", "0"),
        case(
            "distillation alone, T 4: T^2 in the loss, T in the gradient",
            z,
            v,
            u,
            0,
            "1",
            "0",
            "4",
            "0",
        ),
        case("labels and distillation", z, v, u, 1, "0.9", "0", "4", "0.1"),
        case("negative self term", z, v, u, 1, "0.9", "0.2", "4", "0.1"),
        case("negative self term, T 1", z, v, u, 1, "0.5", "0.2", "1", "0"),
        case("more is subtracted than added", z, v, u, 1, "0.5", "0.75", "2", "0"),
        case("self term without a teacher", z, v, u, 3, "0", "0.5", "2", "0.1"),
        case("u = z: the self term has no gradient", z, v, z, 3, "0.75", "0.25", "2.5", "0.1"),
        case("u = v: distillation with weight a - b", z, v, v, 3, "0.75", "0.25", "2.5", "0.1"),
        case("z = v: no gradient of distillation", v, v, u, 3, "0.75", "0.25", "2.5", "0.1"),
        case("all equal logits", [0] * 4, [0] * 4, [0] * 4, 0, "0.9", "0.2", "4", "0"),
        case(
            "a shift of all logits changes nothing",
            [x + 800 for x in z],
            v,
            u,
            1,
            "0.9",
            "0.2",
            "4",
            "0.1",
        ),
        case("logits a thousand apart", far, v, u, 0, "0.9", "0.2", "4", "0.1"),
        case("a teacher that is sure", z, far, u, 0, "0.9", "0.2", "4", "0.1"),
        case(
            "teacher and earlier self a thousand apart, T 1", z, far, far, 2, "0.9", "0.2", "1", "0"
        ),
        case(
            "an earlier self that is sure: unbounded without the guard",
            z,
            v,
            far,
            0,
            "0.9",
            "0.2",
            "4",
            "0.1",
        ),
        case(
            "unbounded, on its way down",
            [0, 0, 0, -800],
            [48, 8, 0, -48],
            [24, 8, 0, 16],
            0,
            "0.9",
            "0.2",
            "4",
            "0",
        ),
        case("guard raises one class", z, v, [5, 6, 12, 0], 1, "0.9", "0.4", "1", "0"),
        case(
            "guard raises all but the label",
            [0] * 4,
            [80, 0, 0, 0],
            [0] * 4,
            0,
            "1",
            "0.4",
            "1",
            "0",
        ),
        case("largest b that the guard takes here", z, v, u, 1, "1", "0.499", "2", "0"),
        case("two classes", [8, -8], [24, 0], [3, 5], 1, "0.5", "0.2", "2", "0"),
        case("two classes, smoothed", [8, -8], [24, 0], [3, 5], 1, "0.5", "0.2", "2", "0.1"),
        case("T just above 1", z, v, u, 1, "0.5", "0.2", "1.125", "0"),
        case("T 20: nearly a squared difference of logits", z, v, u, 1, "1", "0", "20", "0"),
        case("T 20, negative", z, v, u, 1, "0.9", "0.2", "20", "0.1"),
    ]
    draw = random.Random(2409_02020)
    for number in range(22):
        K = (3, 5, 10, 40)[number % 4]
        rows = [[round(8 * draw.gauss(0, spread)) for _ in range(K)] for spread in (1.5, 3, 2)]
        a, b = ("0.9", "0.2") if number % 3 else ("0.5", "0.2")
        T, e = ("1", "2", "4", "8")[number // 2 % 4], ("0", "0.1", "0.25")[number % 3]
        found.append(
            case(f"random {number + 1}: K {K}, T {T}", *rows, draw.randrange(K), a, b, T, e)
        )
    return found


def document():
    """Return the text of the file."""
    about = (
        "The three-term loss of minipc, row by row: equations (L3) to (L8) of docs/math.md, "
        "computed with 50 digits "
        "and rounded to 30. Logits are multiples of 1/8. gradient and guarded_gradient are of one "
        "row, in z."
    )
    lines = ",\n".join(json.dumps(one) for one in cases())
    return (
        f'{{"about": {json.dumps(about)}, "version": 1, "guard_floor": "0.05", "cases": '
        f"[\n{lines}\n]}}\n"
    )


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        file.write(document())
