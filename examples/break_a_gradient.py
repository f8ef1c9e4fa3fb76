"""Break a gradient, and see it caught: why the familiar s - q is wrong for this loss.

s = softmax(z) of the logits z, and q holds the weights of the classes.  s - q is the gradient of
soft cross-entropy if q sums to one, as labels and probabilities do: tests with such q pass.  With
a subtracted term, a p - b r (teacher p, earlier self r), q does not sum to one.
"""

from collections.abc import Callable

import numpy as np

from minipc.errors import CheckFailed
from minipc.nn.gradcheck import check_gradients, require
from minipc.nn.losses import (
    SoftCrossEntropyCache,
    soft_cross_entropy_backward,
    soft_cross_entropy_forward,
)


def familiar(dloss: np.ndarray, cache: SoftCrossEntropyCache) -> np.ndarray:
    """Return dz = dloss (s - q), the gradient of most texts; dloss (B,) -> dz (B, K)."""
    return dloss[:, None] * (cache.s - cache.q)


def verdict(q: np.ndarray, backward: Callable[..., np.ndarray]) -> str:
    """Return what a gradient check says about backward, for weights q (B, K)."""
    z = np.random.default_rng(1).standard_normal(q.shape)
    _, cache = soft_cross_entropy_forward(z, q)
    dz = backward(np.ones(len(q)), cache)

    def loss(arrays):
        return soft_cross_entropy_forward(arrays["z"], q)[0].sum()

    reports = check_gradients(loss, {"z": z}, {"z": dz}, np.random.default_rng(2))
    rows = f"rows of dz sum to {np.abs(dz.sum(axis=1)).max():.0e}"
    try:
        require(reports)
    except CheckFailed as reason:
        return f"WRONG ({reason}); {rows}"
    return f"right, to {reports[0].error:.0e}; {rows}"


def main() -> None:
    rng = np.random.default_rng(0)
    labels = np.eye(5)[rng.integers(0, 5, 4)]
    signed = 0.9 * rng.dirichlet(np.ones(5), 4) - 0.3 * rng.dirichlet(np.ones(5), 4)  # a p - b r
    for name, q in (("labels: q sums to 1", labels), ("a p - b r: q sums to 0.6", signed)):
        print(name)
        print("    s - q          ", verdict(q, familiar))
        print("    (sum q) s - q  ", verdict(q, soft_cross_entropy_backward))
    print("The whole engine, with this mistake in it: minipc audit --inject softmax-minus-target")


if __name__ == "__main__":
    main()
