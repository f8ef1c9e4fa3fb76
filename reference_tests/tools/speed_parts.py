"""Where the time of a training step goes: products, other work, waiting, one thread alone."""

import time
from collections import defaultdict
from contextlib import ExitStack
from statistics import median
from unittest import mock

from minipc.nn.fast import fused, local, pointwise, workspace
from reference_tests.tools.speed_workers import ours

STEPS = 50


class TimedWorkspace(workspace.Workspace):
    """A Workspace that notes how long its threads are needed and how long they work."""

    def __init__(self, xp, threads, notes):
        super().__init__(xp, threads)
        self.notes = notes

    def map(self, function, items):
        def timed(item):
            begun = time.perf_counter()
            result = function(item)
            self.notes["work"].append(time.perf_counter() - begun)
            return result

        begun = time.perf_counter()
        result = super().map(timed, items)
        self.notes["mapped"].append(time.perf_counter() - begun)
        return result


def timed_product(function, notes):
    """Return product() or inner_product() noting its seconds and its floating-point operations."""

    def timed(a, z, *rest):
        begun = time.perf_counter()
        result = function(a, z, *rest)
        notes["products"].append(time.perf_counter() - begun)
        clouds, inner, points = z.shape
        rows = a.shape[-2]
        notes["operations"].append(2 * rows * inner * clouds * points)
        return result

    return timed


def timed_moments(function, notes):
    """Return second_moments() noting its time; BLAS computes half of such a product."""
    timed = timed_product(lambda _, z, work: function(z, work), notes)
    return lambda z, work: timed(z, z, work)


def parts(size, task, threads):
    """Return {part: median milliseconds of a step}, and "operations" of its products.

    task: clouds and points of a batch.  "products" and "around" are divided among the threads,
    "waiting" is what they need to begin and to wait for the last, "alone" what one thread does
    alone.
    """
    notes = defaultdict(list)
    with (
        mock.patch.object(
            workspace, "Workspace", lambda xp, threads: TimedWorkspace(xp, threads, notes)
        ),
        mock.patch.object(fused, "product", timed_product(fused.product, notes)),
        mock.patch.object(fused, "inner_product", timed_product(fused.inner_product, notes)),
        mock.patch.object(fused, "second_moments", timed_moments(fused.second_moments, notes)),
    ):
        step = ours({"task": "step", "size": size, "threads": threads, **task})
        found = defaultdict(list)
        for number in range(2 * STEPS):
            notes.clear()
            begun = time.perf_counter()
            step()
            whole = time.perf_counter() - begun
            if number < STEPS:  # the first half warms up
                continue
            work, products, mapped = (sum(notes[name]) for name in ("work", "products", "mapped"))
            found["step"].append(whole)
            found["products"].append(products / threads)
            found["around"].append((work - products) / threads)
            found["waiting"].append(mapped - work / threads)
            found["alone"].append(whole - mapped)
        return {name: 1000 * median(each) for name, each in found.items()} | {
            "operations": sum(notes["operations"])
        }


OF_LEVELS = {  # part of a step with levels: the functions that do it
    "products": (
        *[(fused, name) for name in ("product", "inner_product", "second_moments")],
        (local, "product"),
        (pointwise, "product"),
        (pointwise, "inner_product"),
    ),
    "gathers": ((local, "gathered"), (local, "columns_at")),
    "maxima": ((local, "first_maximum"),),
    "sums at points": ((local, "_reads"), (local, "_scatter_winners"), (local, "_scatter_rows")),
}


def level_parts(size, task):
    """Return {part: median milliseconds of a step on one thread} of a model with levels."""
    notes = defaultdict(float)

    def timed(part, function):
        def run(*arguments):
            begun = time.perf_counter()
            result = function(*arguments)
            notes[part] += time.perf_counter() - begun
            return result

        return run

    with ExitStack() as stack:
        for part, places in OF_LEVELS.items():
            for module, name in places:
                function = timed(part, getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, function))
        step = ours({"task": "step", "size": size, "threads": 1, **task})
        step()
        found = defaultdict(list)
        for _ in range(STEPS // 5):
            notes.clear()
            begun = time.perf_counter()
            step()
            whole = time.perf_counter() - begun
            for part, seconds in notes.items():
                found[part].append(seconds)
            found["other"].append(whole - sum(notes.values()))
            found["step"].append(whole)
    return {name: 1000 * median(each) for name, each in found.items()}
