"""Classify single clouds in files, prepared as for training: what `minipc predict` does.

It imports little: importing what a recording needs takes longer than classifying one cloud.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import worker_threads
from minipc.data.clouds import check_count
from minipc.data.readers.point_files import point_files, read_prepared
from minipc.data.readers.standard_input import reading
from minipc.distil import evaluate
from minipc.errors import DataError, UsageError
from minipc.models.file import on_module, read_model
from minipc.nn.ops import log_softmax_forward
from minipc.progress import quiet
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
    turn: str | None = None,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
    failed: Callable[[DataError], None] | None = None,
    standard_input: str | None = None,
) -> dict[str, Any]:
    """Predict the class of the cloud in each file; return values for JSON.

    model: a file or run folder.  paths: of files, and of folders, for all cloud files in them and
    below.  Clouds are prepared as by `data pack`; num_points None: as many points as in training.
    up_axis: of the files, None: unknown; turn: the up axis of the files, "x", "y" or "z", from
    which the clouds are turned to the model's (data.prepare.turned), before all else.  All files
    are read before anything is computed.  standard_input: the file that the path "-" stands for
    (data.readers.standard_input).  failed(reason) receives each file or folder that is no
    cloud, and the others are predicted; None: the first raises.  say and progress as in
    progress.py.  Raises DataError for a file that is not a cloud, and for an up axis that is not
    the model's.
    """
    path = model_path(model)
    read = read_model(path)
    described, names = read.described, read.described["class_names"]
    turning = _turning(path, described["up_axis"], up_axis, turn)
    count = check_count(
        read.trained.get("points", USUAL_POINTS) if num_points is None else num_points
    )
    bad: list[DataError] = []

    def on_failure(reason: DataError) -> None:
        if failed is None:
            raise reason
        bad.append(reason)
        failed(reason)

    files, clouds = _found(paths, say, on_failure), {}
    for number, file in enumerate(files):
        try:
            with reading(file, standard_input) as place:
                clouds[number] = read_prepared(place, described["normalisation"], count, turning)[0]
        except DataError as reason:
            on_failure(reason)
        if len(files) > 1:
            progress(number + 1, len(files), "reading")
    predictions = []
    if clouds:
        _say_up_axis(path, described["up_axis"], up_axis, turning, say)
        threads = worker_threads(xp, threads)
        points = np.stack(list(clouds.values()))
        logits = evaluate.predict(on_module(read, xp), points, xp, threads, engine)
        log_p, _ = log_softmax_forward(logits.astype(np.float64))
        for number, p in zip(clouds, np.exp(log_p), strict=True):
            best = [
                {"class": names[k], "probability": float(p[k])}
                for k in np.argsort(-p, kind="stable")[:top]
            ]
            predictions.append({"file": files[number], **best[0], "top": best})
    return {
        "model": path,
        "points": count,
        "up_axis": described["up_axis"],
        "turned": list(turning) if turning else None,
        "predictions": predictions,
        "failed": [str(reason) for reason in bad],
    }


def _turning(
    path: str, wanted: str, up_axis: str | None, turn: str | None
) -> tuple[str, str] | None:
    """Return the up axis of the files and that of the model, if clouds are to be turned.

    Raises UsageError for options that contradict each other, DataError for axes that do not fit.
    """
    if turn is None:
        if up_axis not in (None, wanted):
            remedy = "use another model"
            if "unknown" not in (up_axis, wanted):
                remedy = f"turn the clouds by --turn {up_axis}, or {remedy}"
            raise DataError(
                f"{path}: was trained with up axis {wanted}, but the files have {up_axis}; {remedy}"
            )
        return None
    if up_axis not in (None, turn):
        raise UsageError(
            f"--turn {turn} says that the files have up axis {turn}, and --up-axis says {up_axis}; "
            "leave one out"
        )
    if wanted == "unknown":
        raise DataError(
            f"{path}: was trained with an unknown up axis, so nobody knows where to turn to; leave "
            "--turn out, or pack and train with --up-axis"
        )
    return turn, wanted


def _say_up_axis(
    path: str,
    wanted: str,
    up_axis: str | None,
    turning: tuple[str, str] | None,
    say: Callable[[str], None],
) -> None:
    """Say how the clouds were turned, or that nobody said whether they need it."""
    if turning:
        up, axis = turning
        say(
            f"{path}: expects up axis {axis}, as the files have it; nothing to turn"
            if up == axis
            else f"{path}: expects up axis {axis}; the clouds were turned from {up}"
        )
    elif up_axis is None and wanted != "unknown":
        say(
            f"{path}: expects up axis {wanted}; say --up-axis {wanted} if the files have it, or "
            "their own by --turn AXIS"
        )


def _found(
    paths: Sequence[str], say: Callable[[str], None], failed: Callable[[DataError], None]
) -> list[str]:
    """Return the files of paths, those in folders included; failed() receives bad folders."""
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        try:
            inside, others = point_files(path)
        except DataError as reason:
            failed(reason)
            continue
        files += inside
        if others:
            more = f" and {len(others) - 1} more" * (len(others) > 1)
            say(f"{path}: left out, as no cloud by the suffix: {others[0]}{more}")
    return files
