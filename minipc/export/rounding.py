"""How far two float32 programs of one network differ: standard deviations of rounding errors.

Each of the n roundings of a sum is wrong by at most u = 2^-24 of the partial sum there.  Taken as
independent (Higham & Mary 2019, SIAM J. Sci. Comput. 41, A2815), their variances add.  The order of
the terms is not known, and a partial sum is taken to be a walk to y in steps a x, of mean square
below y^2 + sum (a x)^2.  The error of the input passes through A as variances do, ReLU and a
maximum enlarge none.  The bound that assumes nothing, n u |A| |x| through |A|, is thousands of
times larger than what is ever seen, and would let mistakes pass.
"""

from typing import NamedTuple

import numpy as np

from minipc.export.folding import Map, Network, taken, walk

U = 2.0**-24  # unit roundoff of float32
# Roundings of a folded weight: ours has one, the model's own engines at most six (variance + eps,
# root, quotient, product with the weight; its product with the mean; the sum with beta).
OF_WEIGHTS = 6
DEVIATIONS = 4  # of roundings taken at their largest; what is seen stays below a tenth of it


class Rounded(NamedTuple):
    """Values with the variance of their errors, and the size of what was added up to them."""

    x: np.ndarray  # float64
    variance: np.ndarray
    terms: np.ndarray  # at least |x|: sizes before a difference was taken


def allowed(network: Network, points: np.ndarray, groups: tuple) -> np.ndarray:
    """Return by how much the logits (B, K) of two float32 programs may differ, float64.

    points (B, N, 3), groups as in walk().
    """
    return DEVIATIONS * np.sqrt(2 * walk(network, points, groups, _Errors()).variance)


class _Errors:
    def positions(self, points: np.ndarray) -> Rounded:
        exact = points.astype(np.float64)
        return Rounded(exact, np.zeros_like(exact), abs(exact))

    def take(self, x: Rounded, members: np.ndarray) -> Rounded:
        return Rounded(*(taken(each, members) for each in x))

    def minus(self, x: Rounded, centres: Rounded) -> Rounded:
        """The model's engines multiply positions, less that of point 0, and subtract then."""
        offset = x.x - centres.x[:, :, None]
        far = np.broadcast_to(4 * x.terms.max(axis=(1, 2), keepdims=True), offset.shape)
        return Rounded(offset, 3 * (U * far) ** 2, far)

    def beside(self, x: Rounded, y: Rounded) -> Rounded:
        pairs = zip(x, y, strict=True)
        return Rounded(*(np.concatenate(pair, axis=-1) for pair in pairs))

    def layer(self, each: Map, x: Rounded) -> Rounded:
        y = self.logits(each, x)
        positive = np.maximum(y.x, 0)
        return Rounded(positive, y.variance, positive)

    def largest(self, x: Rounded) -> Rounded:
        return Rounded(*(each.max(axis=-2) for each in x))

    def mean(self, x: Rounded) -> Rounded:
        mean = x.x.mean(axis=-2)
        return Rounded(mean, x.variance.mean(axis=-2) + x.x.shape[-2] * (U * mean) ** 2, mean)

    def residual(self, each: Map, x: Rounded) -> Rounded:
        y = self.layer(each, x)
        total = y.x + x.x
        return Rounded(total, y.variance + x.variance + (U * total) ** 2, total)

    def logits(self, each: Map, x: Rounded) -> Rounded:
        A, c = each.A.astype(np.float64), each.c.astype(np.float64)
        y = x.x @ A + c
        walks = x.terms**2 @ A**2 + each.terms**2 + y**2
        rounded = (len(A) + 1 + OF_WEIGHTS**2) * U**2 * walks
        return Rounded(y, x.variance @ A**2 + rounded, abs(y))
