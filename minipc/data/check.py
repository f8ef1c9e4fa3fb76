"""What is suspicious in a data set: clouds that are there twice, flat clouds, rare classes.

Nothing here is an error for a reader: each finding is a fact about the clouds, and whether it
matters is for people to say.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minipc.data.clouds import UNLABELLED, Clouds, Splits
from minipc.data.duplicates import FEWEST, LIMIT, digests, near_duplicates
from minipc.data.prepare import COARSEST
from minipc.progress import quiet

SHAPES = ("point", "line", "plane")  # of a cloud of rank 0, 1 and 2
FEW = 2  # a cloud with less than 1 / FEW of its points distinct repeats most of them
AT_ONCE = 2**20  # points in memory at a time, in float64


def check(splits: Splits, progress: Callable[..., Any] = quiet) -> dict[str, Any]:
    """Return what is suspicious in both splits, a dict for JSON; clouds by index in their split.

    exact: groups of clouds with the same points in any order; near: test clouds that nearly are
    training clouds, as duplicates.near_duplicates says; degenerate: clouds that are a point, a
    line or a plane, up to COARSEST of their largest extent; repeats: clouds most of whose points
    occur more than once; balance: largest and smallest class of each split, and classes without a
    cloud.  findings: how many groups of equal clouds, degenerate clouds and missing classes; near
    is a matter of degree, and no part of it.
    """
    exact = _exact(splits)
    across = [group for group in exact if group["train"] and group["test"]]
    known = {i for group in across for i in group["test"]}
    pairs, compared = near_duplicates(splits.train.points, splits.test.points, progress)
    near = [
        {**pair._asdict(), "same_class": _same(splits, pair.train, pair.test)}
        for pair in pairs
        if pair.test not in known  # those are told already
    ]
    degenerate, repeats = _shapes(splits)
    balance = {name: _balance(each) for name, each in _named(splits)}
    missing = sum(len(each["missing"]) for each in balance.values())
    return {
        "exact": exact,
        "test_clouds_in_training": len(known),
        "near": near,
        "near_limit": LIMIT,
        "compared": compared,
        "not_compared": len(splits.test) - compared,
        "fewest_points": FEWEST,
        "degenerate": degenerate,
        "repeats": repeats,
        "balance": balance,
        "findings": len(exact) + len(degenerate) + missing,
    }


def _named(splits: Splits) -> list[tuple[str, Clouds]]:
    return list(zip(Splits._fields, splits, strict=True))


def _same(splits: Splits, train: int, test: int) -> bool | None:
    """Return whether two clouds have one label; None if either has none."""
    labels = int(splits.train.labels[train]), int(splits.test.labels[test])
    return None if UNLABELLED in labels else labels[0] == labels[1]


def _exact(splits: Splits) -> list[dict[str, Any]]:
    """Return the groups of equal clouds: {train: rows, test: rows, labels: names}."""
    groups: dict[bytes, dict[str, list[int]]] = {}
    for name, clouds in _named(splits):
        for i, digest in enumerate(digests(clouds.points)):
            groups.setdefault(digest, {each: [] for each in Splits._fields})[name].append(i)
    found: list[dict[str, Any]] = []
    for group in groups.values():
        if sum(map(len, group.values())) > 1:
            labels = {int(clouds.labels[i]) for name, clouds in _named(splits) for i in group[name]}
            names = [splits.train.class_names[label] for label in sorted(labels - {UNLABELLED})]
            found.append({**group, "labels": names})
    return found


def _shapes(splits: Splits) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the clouds of rank below 3, and those with few distinct points."""
    degenerate: list[dict[str, Any]] = []
    repeats: list[dict[str, Any]] = []
    for name, clouds in _named(splits):
        step = max(AT_ONCE // clouds.points.shape[1], 1)
        for first in range(0, len(clouds), step):
            block = clouds.points[first : first + step]
            for i, rank in enumerate(_ranks(block), first):
                if rank < len(SHAPES):
                    degenerate.append({"split": name, "cloud": i, "is": SHAPES[rank]})
            for i, points in enumerate(block, first):
                distinct = len({point.tobytes() for point in points + np.float32(0)})
                if FEW * distinct < len(points):
                    repeats.append({"split": name, "cloud": i, "distinct": distinct})
    return degenerate, repeats


def _ranks(clouds: np.ndarray) -> list[int]:
    """Return in how many directions each of clouds (N, P, 3) extends, 0 to 3.

    An extent is the root mean square along a principal axis.  One below COARSEST of the largest is
    none, and so is one below the rounding of float32 at the distance of the origin.
    """
    exact = clouds.astype(np.float64)
    far = np.abs(exact).max(axis=(1, 2))  # (N,)
    exact -= exact.mean(axis=1, keepdims=True)
    extents = np.linalg.svd(exact, compute_uv=False) / np.sqrt(clouds.shape[1])  # (N, <= 3)
    least = np.maximum(COARSEST * extents[:, 0], np.finfo(np.float32).eps * far)
    return (extents > least[:, None]).sum(axis=1).tolist()


def _balance(clouds: Clouds) -> dict[str, Any]:
    """Return the largest and the smallest class of a split, and those without a cloud in it."""
    names: Sequence[str] = clouds.class_names
    counts = np.bincount(clouds.labels[clouds.labels != UNLABELLED], minlength=len(names))
    there = np.flatnonzero(counts)
    most, least = (
        (int(there[counts[there].argmax()]), int(there[counts[there].argmin()]))
        if len(there)
        else (None, None)
    )
    return {
        "largest": None if most is None else [names[most], int(counts[most])],
        "smallest": None if least is None else [names[least], int(counts[least])],
        "missing": [name for name, count in zip(names, counts, strict=True) if not count],
    }
