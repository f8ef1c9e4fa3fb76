"""A negative weight with and without a lower bound: one row, its margins, and its loss.

Theorem 2.1 of docs/math.md: the raw loss has a lower bound if and only if every margin
M_i = (1-a) y_i + T (a p_i - b r_i) is at least zero.  y is the label, p the teacher's softmax and r
the earlier self's at temperature T.  The last column shows the same loss with the guard.
"""

import numpy as np

from minipc.audit.teacher import largest_safe_b
from minipc.nn.losses import LossConfig, loss_forward, margins
from minipc.nn.ops import log_softmax_forward

A, T = 0.9, 4.0
LABEL = np.array([[1.0, 0, 0, 0]])
TEACHER = np.array([[6.0, 1, 0, -6]])
EARLIER = np.array([[3.0, 1, 0, 2]])  # gave class 3 far more than the teacher does


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the softmax of logits z (B, K)."""
    return np.exp(log_softmax_forward(z)[0])


def loss(z: np.ndarray, b: float, guard: str) -> float:
    """Return the total loss of one row, z (1, K)."""
    return float(
        loss_forward(z, LABEL, TEACHER, EARLIER, np.ones(1), LossConfig(A, b, T, 0.0, guard))[
            0
        ].total
    )


def main() -> None:
    p, r = softmax(TEACHER / T), softmax(EARLIER / T)
    safe = float(largest_safe_b(LABEL, p, r, LossConfig(A, 0.0, T))[0])
    print(
        f"teacher p {np.round(p[0], 3)}, earlier self r {np.round(r[0], 3)}: b up to {safe:.3f} is "
        "safe here"
    )
    for b in (0.9 * safe, 0.2):
        M = margins(LABEL, p, r, b, LossConfig(A, b, T, 0.0, "none"))[0]
        verdict = "bounded" if M.min() >= 0 else f"NOT bounded along class {M.argmin()}"
        print(f"b = {b:.3f}: margins {np.round(M, 3)}, {verdict}")
    print("walk z = (2, 1, 0, -t):")
    print(
        f"{'t':>8} {f'raw, b = {0.9 * safe:.3f}':>14} {'raw, b = 0.2':>14} {'guarded, b = 0.2':>17}"
    )
    for t in (0.0, 10.0, 100.0, 1000.0, 10000.0):
        z = np.array([[2.0, 1, 0, -t]])
        print(
            f"{t:8g} {loss(z, 0.9 * safe, 'none'):14.2f} {loss(z, 0.2, 'none'):14.2f} "
            f"{loss(z, 0.2, 'clip'):17.2f}"
        )
    print(
        "The column b = 0.2, raw falls for ever while nothing is learnt: a falling loss is no "
        "evidence."
    )


if __name__ == "__main__":
    main()
