"""Measure a model on a test split: what `minipc eval` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import default_threads
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import check_same_kind
from minipc.distil.evaluate import metrics, predict, vote
from minipc.models.file import on_module, read_model
from minipc.models.model import net
from minipc.runs.folder import model_path
from minipc.verbs.find import find_data, read_model_for

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


def evaluate(
    model: str,
    data: str | None = None,
    *,
    votes: int = 0,
    teacher: str | None = None,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
) -> dict[str, Any]:
    """Evaluate the model in a file or run folder on the test split of data; return values for JSON.

    data None: the file that the model was trained on.  votes: if above 0, vote over that many fixed
    views too; teacher: a model whose arg-max is compared.  Raises DataError if model, data and
    teacher do not fit together.
    """
    path = model_path(model)
    read = read_model(path)
    trained = read.trained
    data, splits = find_data(
        data, trained.get("data_file"), path, points_hash=trained.get("points_hash")
    )
    test, threads = splits.test, threads or default_threads(xp)
    check_same_kind(test.described, read.described, data, path)
    on_device = on_module(read, xp)
    logits = predict(on_device, test.points, xp, threads, engine)
    plain = metrics(test.labels, logits)
    size = net(read.config).count(read.config, test.points.shape[1])
    values = {
        "model": path,
        "data": data,
        "clouds": len(test),
        **plain._asdict(),
        "parameters": size.parameters,
        "macs_per_cloud": size.macs,
        "class_accuracy": {
            name: float(plain.confusion[i, i] / plain.confusion[i].sum())
            for i, name in enumerate(test.class_names)
            if plain.confusion[i].sum()
        },
        "confusion": plain.confusion.tolist(),
    }
    if votes:
        voted = metrics(
            test.labels, vote(on_device, test.points, votes, AugmentConfig(), xp, threads, engine)
        )
        values["voted"] = {"votes": votes, **voted._asdict(), "confusion": voted.confusion.tolist()}
    if teacher is not None:
        teacher_path, its = read_model_for(test, data, teacher)
        theirs = predict(on_module(its, xp), test.points, xp, threads, engine)
        values["teacher"] = teacher_path
        values["teacher_agreement"] = float((theirs.argmax(axis=1) == logits.argmax(axis=1)).mean())
    return values
