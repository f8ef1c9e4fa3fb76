"""One operation by hand: a layer, its backward, and a test that the two agree.

y = x W, and the loss is L = sum of dy * y for a dy of our choice, so dy is the gradient of L with
respect to y.  A difference quotient tests the gradient of W without calculus.
"""

import numpy as np

from minipc.nn.ops import linear_backward, linear_forward


def main() -> None:
    rng = np.random.default_rng(0)
    x, W, dy = rng.standard_normal((5, 3)), rng.standard_normal((3, 4)), rng.standard_normal((5, 4))

    y, cache = linear_forward(x, W)  # (M1): y = x W; the cache holds what the backward reads
    dx, dW = linear_backward(dy, cache)  # (M2): dx = dy W^T, dW = x^T dy
    print("forward", y.shape, " gradients", dx.shape, dW.shape)

    direction = rng.standard_normal(W.shape)  # not ones: errors could cancel in the sum
    direction /= np.linalg.norm(direction)

    def loss(W):
        return (linear_forward(x, W)[0] * dy).sum()

    print("along one direction of W, the backward says", (dW * direction).sum())
    for h in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9):
        numeric = (loss(W + h * direction) - loss(W - h * direction)) / (2 * h)
        print(f"difference quotient, h = {h:g}: off by {abs(numeric - (dW * direction).sum()):.1e}")
    print("A linear function has no curvature: only rounding is left, and it grows as h shrinks.")


if __name__ == "__main__":
    main()
