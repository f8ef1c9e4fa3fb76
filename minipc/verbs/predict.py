"""Classify single clouds in files, prepared as for training: what `minipc predict` does.

It imports little: importing what a recording needs takes longer than classifying one cloud.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import default_threads
from minipc.data.clouds import check_count
from minipc.data.readers.point_files import read_prepared
from minipc.distil import evaluate
from minipc.errors import DataError
from minipc.models.file import on_module, read_model
from minipc.nn.ops import log_softmax_forward
from minipc.runs.folder import model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

USUAL_POINTS = 1024  # of a cloud, if the model file does not say


def predict(
    model: str,
    paths: Sequence[str],
    *,
    top: int = 1,
    num_points: int | None = None,
    up_axis: str | None = None,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Predict the class of the cloud in each file; return values for JSON.

    model: a file or run folder.  Clouds are prepared as by `data pack`; num_points None: as many
    points as in training.  All files are read before anything is computed.  Raises DataError for a
    file that is not a cloud, and if up_axis (None: unknown) is not the model's.
    """
    path = model_path(model)
    read = read_model(path)
    described, names = read.described, read.described["class_names"]
    if up_axis not in (None, described["up_axis"]):
        raise DataError(
            f"{path}: was trained with up axis {described['up_axis']}, but the files have "
            f"{up_axis}; turn the clouds, or use another model"
        )
    count = check_count(
        read.trained.get("points", USUAL_POINTS) if num_points is None else num_points
    )
    points = np.stack([read_prepared(file, described["normalisation"], count)[0] for file in paths])
    if up_axis is None and described["up_axis"] != "unknown":
        say(f"{path}: expects up axis {described['up_axis']}; if the files have another, turn them")
    threads = threads or default_threads(xp)
    logits = evaluate.predict(on_module(read, xp), points, xp, threads, engine)
    log_p, _ = log_softmax_forward(logits.astype(np.float64))
    predictions = []
    for file, p in zip(paths, np.exp(log_p), strict=True):
        best = [
            {"class": names[k], "probability": float(p[k])}
            for k in np.argsort(-p, kind="stable")[:top]
        ]
        predictions.append({"file": file, **best[0], "top": best})
    return {
        "model": path,
        "points": count,
        "up_axis": described["up_axis"],
        "predictions": predictions,
    }
