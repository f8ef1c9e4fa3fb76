"""Measure a model, or the logits of one, on a test split: what `minipc eval` does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import worker_threads
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import UNLABELLED, check_same_kind
from minipc.data.groups_file import kept_groups
from minipc.distil.evaluate import Metrics, metrics, predict, vote
from minipc.errors import DataError, UsageError, escaped
from minipc.models.file import on_module, read_model
from minipc.models.model import net
from minipc.progress import quiet
from minipc.record.contract import trial
from minipc.runs.compare import mcnemar_exact
from minipc.runs.config import read_config
from minipc.runs.folder import MOST_TEXT, model_path
from minipc.runs.logits_file import read_logits
from minipc.runs.predictions import FIELDS, NAMED, parsed
from minipc.storage import files
from minipc.verbs.find import find_data, read_model_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.data.clouds import Clouds
    from minipc.models.file import Model


def evaluate(
    model: str,
    data: str | None = None,
    *,
    votes: int = 0,
    teacher: str | None = None,
    against: str | None = None,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> dict[str, Any]:
    """Evaluate the model in a file or run folder on the test split of data; return values for JSON.

    data None: the file that the model was trained on.  votes: if above 0, vote over that many fixed
    views too; teacher: a model whose arg-max is compared; against: the same of another program's
    logits in a file (runs.logits_file), of a predictions.csv, or of that in a run folder.  say and
    progress as in progress.py.
    Accuracies, likelihood and calibration are those of the labelled test clouds, None if there are
    none.  Raises DataError if model, data and what is compared do not fit together.
    """
    path = model_path(model)
    read = read_model(path)
    trained = read.trained
    data, splits = find_data(
        data,
        trained.get("data_file"),
        path,
        points_hash=trained.get("points_hash"),
        test_hash=None if data else _measured_on(path),
    )
    test = splits.test
    check_same_kind(test.described, read.described, data, path)
    other = _others(test, data, against, say)  # read first: a computation may take minutes
    machine: Any = dict(xp=xp, engine=engine, threads=threads, say=say, progress=progress)
    logits, on_device, groups = _logits(read, test, data, **machine)
    size = net(read.config).count(read.config, test.points.shape[1])
    values = {
        "model": path,
        "data": data,
        **_of_test(test, logits),
        "parameters": size.parameters,
        "macs_per_cloud": size.macs,
    }
    if votes:
        threads = worker_threads(xp, threads)
        views = vote(on_device, test.points, votes, AugmentConfig(), xp, threads, engine, groups)
        values["voted"] = {"votes": votes, **_measured(test, views)}
    return values | _compared(test, data, logits, teacher, other, machine)


def evaluate_logits(
    logits: str,
    data: str | None = None,
    *,
    probabilities: bool = False,
    teacher: str | None = None,
    against: str | None = None,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> dict[str, Any]:
    """Evaluate what another program's model says of the test split of data; return values for JSON.

    logits: a file with a row for each test cloud in its order (runs.logits_file); probabilities: it
    holds these.  data None: the file that the teacher was trained on.  All else as in evaluate().
    Raises UsageError if there is neither data nor a teacher, DataError for what does not fit.
    """
    if data is None and teacher is None:
        raise UsageError(
            "--logits needs the labels of the test clouds; name DATA: minipc eval --logits "
            f"{logits} DATA"
        )
    near, trained = "", {}
    if data is None and teacher is not None:
        near = model_path(teacher)
        trained = read_model(near).trained
    data, splits = find_data(
        data,
        trained.get("data_file"),
        near,
        points_hash=trained.get("points_hash"),
        test_hash=None if data else _measured_on(near),
    )
    test = splits.test
    said = read_logits(logits, test, data, probabilities, say)
    other = _others(test, data, against, say)
    known = test.labels != UNLABELLED
    labels, of_known = test.labels[known], said[known]
    if len(labels):
        share = float(np.bincount(labels).max() / len(labels))
        if not trial(labels, of_known, share).passed:
            say(
                f"{logits}: no better than chance; are its rows in the order of the test clouds of "
                f"{data}, and its columns in that of the classes?"
            )
        impossible = int(np.isneginf(of_known[np.arange(len(labels)), labels]).sum())
        if impossible:
            say(
                f"{logits}: {impossible} clouds have probability 0 at their label, so the negative "
                "log-likelihood is infinite"
            )
    machine: Any = dict(xp=xp, engine=engine, threads=threads, say=say, progress=progress)
    values = {"logits": logits, "data": data, **_of_test(test, said)}
    return values | _compared(test, data, said, teacher, other, machine)


def _logits(
    read: Model,
    test: Clouds,
    data: str,
    *,
    xp: ModuleType,
    engine: str,
    threads: int | None,
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None],
) -> tuple[np.ndarray, Model, tuple]:
    """Return the logits (N, K) of a model, the model on its module, the groups of the clouds."""
    groups = kept_groups(read.config, test, data, threads=threads, say=say, progress=progress)
    on_device = on_module(read, xp)
    threads = worker_threads(xp, threads)
    return predict(on_device, test.points, xp, threads, engine, groups), on_device, groups


def _of_test(test: Clouds, logits: np.ndarray) -> dict[str, Any]:
    """Return what logits (N, K) say of the test split, for JSON."""
    plain = _measured(test, logits)
    return {
        "clouds": len(test),
        **plain,
        "class_names": list(test.class_names),
        "class_accuracy": {
            name: row[i] / sum(row)
            for i, (name, row) in enumerate(zip(test.class_names, plain["confusion"], strict=True))
            if sum(row)
        },
    }


def _measured_on(model: str) -> str | None:
    """Return the hash of the test points of the run in whose folder a model lies, or None."""
    folder = os.path.dirname(model)
    if not os.path.exists(os.path.join(folder, "run.json")):
        return None
    return read_config(folder).clouds["test_points"]


def _others(
    test: Clouds, data: str, path: str | None, say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Return {path: the classes (N,) that it names} of what --against names; {} for None.

    path: a file of logits, a predictions.csv, or a run folder, for the one in it.
    """
    if path is None:
        return {}
    if os.path.isdir(path):
        path = os.path.join(path, "predictions.csv")
    if not _is_predictions(path):
        return {path: read_logits(path, test, data, None, say).argmax(axis=1)}
    found = parsed(files.read_bytes(path, MOST_TEXT), test.class_names, path)
    folder = os.path.dirname(path)
    same = np.array_equal(found.labels, test.labels)
    named = bool(found.files and test.files)
    if same and named:
        same = list(found.files) == [escaped(name) for name in test.files]
    of_run = os.path.exists(os.path.join(folder, "run.json"))
    if same and of_run:  # clouds of equal labels, too
        same = read_config(folder).clouds["test_points"] == test.points_hash
    if same and not named and not of_run:
        say(
            f"{path}: taken in the order of the test clouds of {data}: it names no files, and no "
            "run.json lies beside it"
        )
    if not same:
        raise DataError(
            f"{path}: its {len(found.labels)} clouds and their labels are not the {len(test)} test "
            f"clouds of {data}; name the data that the run was trained on"
        )
    return {path: found.said}


def _is_predictions(path: str) -> bool:
    """Return whether a file begins as a predictions.csv does."""
    if not path.endswith(".csv") or files.kind_of(path):  # raises where there is no file
        return False
    with open(path, "rb") as file:
        first = file.readline(200).strip().decode("utf-8", "replace")
    return first in (",".join(FIELDS), ",".join(NAMED))


def _compared(
    test: Clouds,
    data: str,
    logits: np.ndarray,
    teacher: str | None,
    others: dict[str, np.ndarray],
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Return how often a teacher and others name the class that logits (N, K) name, for JSON."""
    said, values = logits.argmax(axis=1), {}
    if teacher is not None:
        path, its = read_model_for(test, data, teacher)
        theirs = _logits(its, test, data, **machine)[0].argmax(axis=1)
        others = {path: theirs, **others}
        values = {"teacher": path, "teacher_agreement": float((theirs == said).mean())}
    if others:
        values["compared"] = [_pair(test, path, said, its) for path, its in others.items()]
    return values


def _pair(test: Clouds, path: str, said: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Return the comparison of two models by the classes (N,) that they name.

    gained and lost count the labelled clouds that one of them alone has right: the first, the
    second; mcnemar is the p of these counts.
    """
    known = test.labels != UNLABELLED
    right, other = (each[known] == test.labels[known] for each in (said, theirs))
    gained, lost = int((right & ~other).sum()), int((other & ~right).sum())
    return {
        "with": path,
        "agreement": float((said == theirs).mean()),
        "gained": gained,
        "lost": lost,
        "mcnemar": mcnemar_exact(gained, lost) if known.any() else None,
    }


def _measured(test: Clouds, logits: np.ndarray) -> dict[str, Any]:
    """Return the Metrics of logits (N, K) for JSON; None and counts of 0 where none is labelled."""
    if test.labelled:
        values = metrics(test.labels, logits)
        return {**values._asdict(), "confusion": values.confusion.tolist()}
    classes = len(test.class_names)
    none = dict.fromkeys(Metrics._fields)
    return {**none, "labelled": 0, "confusion": [[0] * classes for _ in range(classes)]}
