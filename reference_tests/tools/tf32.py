"""What TF32 would do to recorded logits, on any CPU: operands rounded as it rounds them.

A card that computes products in TF32 keeps 10 of the 23 bits behind the point of each operand and
adds up in float32.  Here the fast engine's products before the head are computed so (the head's
sums are exact on every device), and the logits are held against those of float32, beside what
storing logits as float16 changes, and what the other engine does.

python -m reference_tests.tools.tf32 MODEL DATA [CLOUDS]
"""

import sys
from contextlib import ExitStack
from functools import partial
from unittest import mock

import numpy as np
from scipy.special import log_softmax

from minipc.distil.evaluate import predict
from minipc.models.file import read_model
from minipc.nn.fast import fused, local_eval, pointwise
from minipc.verbs.find import read_data

DROPPED = 13  # bits of float32 that TF32 has not


def rounded(x):
    """Return x float32 with the bits of TF32, the nearest; ties go away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half, kept = np.uint32(1 << (DROPPED - 1)), np.uint32(2**32 - 2**DROPPED)
    return ((bits + half) & kept).view(np.float32)


def _of_rounded(product, a, b, *rest):
    return product(rounded(a), rounded(b), *rest)


def changes(exact, other):
    """Return the largest change of a logit over its row's largest, the largest KL, other classes.

    exact, other (N, K); KL(softmax(exact) || softmax(other)).
    """
    p, q = (log_softmax(z.astype(np.float64), axis=1) for z in (exact, other))
    change = np.abs(other - exact) / np.abs(exact).max(axis=1, keepdims=True)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    return change.max(), kl.max(), int((exact.argmax(axis=1) != other.argmax(axis=1)).sum())


def main(model, data, count="400"):
    model, points = read_model(model), read_data(data).train.points
    points = points[:: -(-len(points) // int(count))]
    exact = predict(model, points, np, 1)
    with ExitStack() as patched:
        for module in (fused, local_eval, pointwise):
            for name in {"product", "matrix_product"} & vars(module).keys():
                of_rounded = partial(_of_rounded, getattr(module, name))
                patched.enter_context(mock.patch.object(module, name, of_rounded))
        as_tf32 = predict(model, points, np, 1)
    for name, logits in (
        ("TF32", as_tf32),
        ("stored as float16", exact.astype(np.float16).astype(np.float32)),
        ("the textbook engine", predict(model, points, np, 1, "textbook")),
    ):
        change, kl, other = changes(exact, logits)
        print(
            f"{name}: largest change {change:.1e} of the row's largest logit, largest KL "
            f"{kl:.1e}, {other} of {len(points)} other classes"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
