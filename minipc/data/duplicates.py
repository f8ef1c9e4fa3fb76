"""Clouds that are there twice: the same points, or two samples of one surface.

Clouds with the same points, in any order, have equal digests.  Two samples of one surface share no
point, but lie as close to each other as the points of each lie together.  So we compare the mean
distance to the nearest point of the other cloud with the mean distance within each cloud: about 1
for two samples, more for two surfaces.  Each cloud is centred and scaled by its own points; these
differ from sample to sample by as much as the points are apart, so one cloud is first moved and
scaled onto the other.  Not turned: a cloud turned by a few degrees counts as another one.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minipc.data.prepare import fit_points
from minipc.progress import quiet

MOST, FEWEST = 1024, 64  # distinct points that are compared of a cloud; below, chance decides
CANDIDATES = 24  # training clouds that are compared with each test cloud
# Ratio of distances up to which two clouds are near duplicates.  In 1,234 clouds of ModelNet40
# that were parted at random into two of 512 points it was 1.01 in the median, and at most 1.10 in
# 98 %.
LIMIT = 1.10
SCREENED = 128  # points of the first, coarse comparison
COARSE = 1.3  # its limit: the mean of 128 distances varies by 5 % (they by half their mean)
QUANTILES = (np.arange(12) + 0.5) / 12  # of a signature
AT_ONCE = 2**20  # points, or distances of signatures, in memory at a time


class Near(NamedTuple):
    """A test cloud and the training cloud that it nearly is."""

    test: int
    train: int
    ratio: float  # mean distance to the other cloud, of that within the clouds


def digests(clouds: np.ndarray) -> list[bytes]:
    """Return a digest of each of clouds (N, P, 3), the same for the same points in any order."""
    return [hashlib.sha256(_sorted(points).tobytes()).digest() for points in clouds]


def near_duplicates(
    train: np.ndarray, test: np.ndarray, progress: Callable[..., Any] = quiet
) -> tuple[list[Near], int]:
    """Return a Near for each test cloud that nearly is a training cloud; and how many we compared.

    train (N, P, 3), test (M, P, 3) float32.  Of each test cloud the CANDIDATES training clouds with
    the most similar signature are compared, in this order, until one is near.  Clouds of fewer
    than FEWEST distinct points are not compared.
    """
    found, compared = [], 0
    spacings: dict[int, float] = {}  # of the training clouds that were needed
    of_train = signatures(train)
    for first, nearest in _candidates(of_train, signatures(test)):
        for i, candidates in enumerate(nearest, first):
            progress(i + 1, len(test), "comparing clouds")
            cloud = _Sample.of(test[i])
            if cloud is None:
                continue
            compared += 1
            for j in candidates.tolist():
                ratio = _ratio(cloud, train[j], spacings, j)
                if ratio <= LIMIT:
                    found.append(Near(i, j, ratio))
                    break
    return found, compared


def ratio_of(a: np.ndarray, b: np.ndarray) -> float:
    """Return the ratio of distances of two clouds (P, 3) and (Q, 3); infinity if far above LIMIT.

    With fewer than FEWEST distinct points it is infinity too.
    """
    cloud = _Sample.of(a)
    return np.inf if cloud is None else _ratio(cloud, b, {}, 0)


def signatures(clouds: np.ndarray) -> np.ndarray:
    """Return (N, D) float32 of clouds (N, P, 3): what differs little between two samples.

    Quantiles of the distances to the centre and of each coordinate, and the mixed second moments;
    in units of the root mean square distance, which varies less than the farthest point.
    """
    points = clouds.shape[1]
    at = (QUANTILES * points).astype(int)
    parts = []
    step = max(AT_ONCE // points, 1)
    for first in range(0, len(clouds), step):
        block, _, _ = _centred(clouds[first : first + step])  # (n, P, 3)
        radii = np.sort(np.sqrt((block**2).sum(axis=2)), axis=1)[:, at]
        along = np.sort(block, axis=1)[:, at].reshape(len(block), -1)
        moments = np.swapaxes(block, 1, 2) @ block / points  # (n, 3, 3)
        mixed = 2 * moments[:, [0, 0, 1], [1, 2, 2]]
        parts.append(np.concatenate([radii, along, mixed], axis=1).astype(np.float32))
    return np.concatenate(parts)


class _Sample(NamedTuple):
    """A cloud that others are compared with."""

    points: np.ndarray  # (n, 3) float64, distinct, centred, root mean square distance 1
    tree: Any  # scipy.spatial.cKDTree of them
    spacing: float  # mean distance of a point to its nearest neighbour

    @classmethod
    def of(cls, cloud: np.ndarray) -> "_Sample | None":
        """Return the sample of a cloud (P, 3), None for too few distinct points."""
        from scipy.spatial import cKDTree  # late: the readers of data do not wait for SciPy

        points = _sorted(cloud)
        apart = np.ones(len(points), bool)
        apart[1:] = (points[1:] != points[:-1]).any(axis=1)
        if apart.sum() < FEWEST:
            return None
        # sorted points are in an order of space: a prefix would be a part of the surface
        points, _, _ = _centred(fit_points(points[apart], min(MOST, int(apart.sum())))[None])
        tree = cKDTree(points[0])
        return cls(points[0], tree, float(tree.query(points[0], k=2)[0][:, 1].mean()))


def _ratio(cloud: _Sample, other: np.ndarray, spacings: dict[int, float], key: int) -> float:
    """Return the ratio of distances of a sample and another cloud (Q, 3).

    spacings[key] keeps the spacing of the other one, which takes longer than a coarse look.
    """
    from scipy.spatial import cKDTree

    few, _, _ = _centred(fit_points(other, min(SCREENED, len(other)))[None])
    few, _ = _moved(cloud, few[0], steps=2)
    if cloud.tree.query(few)[0].mean() > COARSE * cloud.spacing:
        return np.inf
    sample = _Sample.of(other)
    if sample is None:
        return np.inf
    moved, scale = _moved(cloud, sample.points, steps=4)
    there = cloud.tree.query(moved)[0].mean()
    back = cKDTree(moved).query(cloud.points)[0].mean()
    return float((there + back) / (cloud.spacing + scale * sample.spacing))


def _moved(cloud: _Sample, points: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """Return points (n, 3) shifted and scaled onto a sample, and by what they were scaled.

    Each step fits shift and scale to the nearest points by least squares, and goes twice as far:
    points that are nearest now lie nearer than those which belong together.
    """
    total = 1.0
    for _ in range(steps):
        nearest = cloud.points[cloud.tree.query(points)[1]]
        centre, target = points.mean(axis=0), nearest.mean(axis=0)
        spread = points - centre
        size = float((spread**2).sum()) or 1.0  # all in one place: nothing to scale
        scale = 2 * float((spread * (nearest - target)).sum()) / size - 1
        points = scale * spread + centre + 2 * (target - centre)
        total *= scale
    return points, total


def _centred(clouds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clouds (N, P, 3) in float64 with mean 0 and root mean square distance 1."""
    exact = clouds.astype(np.float64)
    centre = exact.mean(axis=1, keepdims=True)
    exact -= centre
    size = np.sqrt((exact**2).sum(axis=2).mean(axis=1))[:, None, None]
    return exact / np.where(size > 0, size, 1), centre, size


def _sorted(points: np.ndarray) -> np.ndarray:
    """Return points (P, 3) in lexical order, without negative zeros."""
    return points[np.lexsort(points.T)] + np.float32(0)


def _candidates(train: np.ndarray, test: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first, rows (n, CANDIDATES) of train, the most similar first) for blocks of test."""
    count = min(CANDIDATES, len(train))
    squares = (train**2).sum(axis=1)
    step = max(AT_ONCE // len(train), 1)
    for first in range(0, len(test), step):
        apart = squares - 2 * (test[first : first + step] @ train.T)
        rows = np.argpartition(apart, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(apart, rows, axis=1).argsort(axis=1, kind="stable")
        yield first, np.take_along_axis(rows, order, axis=1)
