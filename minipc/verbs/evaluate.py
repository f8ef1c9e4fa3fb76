"""Measure a model on a test split: what `minipc eval` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import worker_threads
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import check_same_kind
from minipc.data.groups_file import kept_groups
from minipc.distil.evaluate import Metrics, metrics, predict, vote
from minipc.models.file import on_module, read_model
from minipc.models.model import net
from minipc.progress import quiet
from minipc.runs.folder import model_path
from minipc.verbs.find import find_data, read_model_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.data.clouds import Clouds


def evaluate(
    model: str,
    data: str | None = None,
    *,
    votes: int = 0,
    teacher: str | None = None,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> dict[str, Any]:
    """Evaluate the model in a file or run folder on the test split of data; return values for JSON.

    data None: the file that the model was trained on.  votes: if above 0, vote over that many fixed
    views too; teacher: a model whose arg-max is compared.  say and progress as in progress.py.
    Accuracies, likelihood and calibration are those of the labelled test clouds, None if there are
    none.  Raises DataError if model, data and teacher do not fit together.
    """
    path = model_path(model)
    read = read_model(path)
    trained = read.trained
    data, splits = find_data(
        data, trained.get("data_file"), path, points_hash=trained.get("points_hash")
    )
    test = splits.test
    check_same_kind(test.described, read.described, data, path)
    making: dict[str, Any] = dict(threads=threads, say=say, progress=progress)
    groups, threads = kept_groups(read.config, test, data, **making), worker_threads(xp, threads)
    on_device = on_module(read, xp)
    logits = predict(on_device, test.points, xp, threads, engine, groups)
    plain = _measured(test, logits)
    size = net(read.config).count(read.config, test.points.shape[1])
    values = {
        "model": path,
        "data": data,
        "clouds": len(test),
        **plain,
        "parameters": size.parameters,
        "macs_per_cloud": size.macs,
        "class_names": list(test.class_names),
        "class_accuracy": {
            name: row[i] / sum(row)
            for i, (name, row) in enumerate(zip(test.class_names, plain["confusion"], strict=True))
            if sum(row)
        },
    }
    if votes:
        views = vote(on_device, test.points, votes, AugmentConfig(), xp, threads, engine, groups)
        values["voted"] = {"votes": votes, **_measured(test, views)}
    if teacher is not None:
        teacher_path, its = read_model_for(test, data, teacher)
        groups = kept_groups(its.config, test, data, **making)
        theirs = predict(on_module(its, xp), test.points, xp, threads, engine, groups)
        values["teacher"] = teacher_path
        values["teacher_agreement"] = float((theirs.argmax(axis=1) == logits.argmax(axis=1)).mean())
    return values


def _measured(test: Clouds, logits: np.ndarray) -> dict[str, Any]:
    """Return the Metrics of logits (N, K) for JSON; None and counts of 0 where none is labelled."""
    if test.labelled:
        values = metrics(test.labels, logits)
        return {**values._asdict(), "confusion": values.confusion.tolist()}
    classes = len(test.class_names)
    none = dict.fromkeys(Metrics._fields)
    return {**none, "labelled": 0, "confusion": [[0] * classes for _ in range(classes)]}
