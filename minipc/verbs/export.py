"""Write a model for other programs, and check the result here: what `minipc export` does."""

from __future__ import annotations

import os
import secrets
import shutil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.backend import ordered_map, worker_threads
from minipc.data.clouds import check_same_kind
from minipc.data.groups_file import kept_groups
from minipc.distil.evaluate import metrics, predict
from minipc.errors import CheckFailed, UsageError
from minipc.export import c_program, compiled, int8, onnx_graph, safetensors_file
from minipc.export.described import described
from minipc.export.folding import folded
from minipc.export.rounding import allowed
from minipc.models.file import read_model
from minipc.models.model import net
from minipc.progress import quiet
from minipc.runs.folder import model_path
from minipc.storage import files
from minipc.storage.places import check_new_file, check_parent, is_free_folder
from minipc.verbs.find import find_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minipc.data.clouds import Clouds
    from minipc.export.described import Described
    from minipc.export.folding import Network
    from minipc.export.int8 import WholeNetwork

    Progress = Callable[[int, int, str], None]

EMBEDDED = 4  # clouds in a self-test
CALIBRATED = 256  # training clouds at most that give the scales of int8
TOGETHER = 4  # clouds computed at once: the rows of all neighbourhoods are kept
TIMED = 5  # times that each embedded cloud is classified for the time of one


class Checking(NamedTuple):
    """Test clouds and what the model says of them."""

    points: np.ndarray  # (B, N, 3) float32
    groups: tuple
    labels: np.ndarray  # (B,)
    logits: np.ndarray  # (B, K) float32


def export(
    model: str,
    *,
    onnx: str | None = None,
    safetensors: str | None = None,
    c: str | None = None,
    whole: bool = False,
    data: str | None = None,
    sample: int | None = None,
    check: bool = True,
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Write the model in a file or run folder as one of three forms; return values for JSON.

    onnx, safetensors: a file; c: a folder, in whole numbers of 8 bits if whole is set.  Exactly one
    of them.  data: whose test clouds check the form, and whose training clouds give the scales of
    whole numbers; None: the file that the model was trained on.  sample: test clouds to check with,
    None: all.  check: compile and run the form here.  say and progress as in progress.py.
    The same model and data give the same bytes.  Raises UsageError for a place that is taken,
    DataError for files that do not fit together, CheckFailed where the form computes something
    else than the model: then nothing is written.
    """
    if sum(place is not None for place in (onnx, safetensors, c)) != 1:
        raise UsageError("export: name one of --onnx FILE, --safetensors FILE and --c FOLDER")
    if whole and c is None:
        raise UsageError("--int8 has no use without --c FOLDER; add it")
    out: Any = onnx or safetensors or c
    path = model_path(model)
    read = read_model(path)
    about = described(read)
    _check_place(out, folder=c is not None)
    values: dict[str, Any] = {"model": path, "title": about.title, "out": out}
    if safetensors:
        content = safetensors_file.content(read, about)
        files.commit(out, content)
        return values | {"form": "safetensors", "bytes": len(content)}
    network = folded(read)
    graph = onnx_graph.model(network, about).SerializeToString() if onnx else b""
    trained = read.trained
    data, splits = find_data(
        data, trained.get("data_file"), path, points_hash=trained.get("points_hash")
    )
    check_same_kind(splits.test.described, read.described, data, path)
    threads = worker_threads(np, threads)
    test = splits.test
    some = evenly(len(test), sample or len(test))
    groups = kept_groups(read.config, test, data, threads=threads, say=say, progress=progress)
    points, groups = test.points[some], tuple(group[some] for group in groups)
    logits = predict(read, points, np, threads, groups=groups)
    checking = Checking(points, groups, test.labels[some], logits)
    values |= {"data": data, "clouds": len(points), **_accuracy("accuracy", checking, logits)}
    if onnx:
        values |= {"form": "onnx", "opset": onnx_graph.OPSET, "bytes": len(graph)}
        values |= _run_onnx(graph, network, checking, check, threads, progress)
        files.commit(out, graph)
        return values
    numbers = whole_of(network, read.config, splits.train, threads, progress) if whole else None
    made, values_of_c = _c_program(network, about, checking, numbers, check, threads, progress)
    _commit_folder(out, made.files)
    if whole:
        values_of_c["calibrated_on"] = min(CALIBRATED, len(splits.train))
    return values | values_of_c


def _check_place(out: str, folder: bool) -> None:
    if not folder:
        return check_new_file(out)
    if not is_free_folder(out):
        raise UsageError(f"{out}: exists already; name another folder or remove it")
    check_parent(out.rstrip(os.sep))


def evenly(count: int, wanted: int) -> np.ndarray:
    """Return at most `wanted` indices below count, evenly spaced."""
    wanted = min(count, wanted)
    return np.arange(wanted) * count // wanted


def whole_of(
    network: Network, config: Any, train: Clouds, threads: int, progress: Progress
) -> WholeNetwork:
    """Return a network in whole numbers, its scales from CALIBRATED training clouds at most."""
    points = train.points[evenly(len(train), CALIBRATED)]
    largest: dict[str, float] = {}

    def see(first: int) -> dict[str, float]:
        some = points[first : first + TOGETHER]
        seen: dict[str, float] = {}
        int8.see(network, some, net(config).prepare(config, some), seen)
        return seen

    firsts = range(0, len(points), TOGETHER)
    for first, seen in zip(firsts, ordered_map(see, firsts, threads), strict=True):
        largest = {name: max(value, largest.get(name, 0.0)) for name, value in seen.items()}
        progress(min(first + TOGETHER, len(points)), len(points), "scales")
    return int8.quantised(network, largest)


def _blocks(
    compute: Callable[[slice], Any], clouds: int, threads: int, progress: Progress, what: str
) -> list:
    firsts, results = range(0, clouds, TOGETHER), []
    slices = [slice(first, first + TOGETHER) for first in firsts]
    for done, result in enumerate(ordered_map(compute, slices, threads), 1):
        results.append(result)
        progress(min(done * TOGETHER, clouds), clouds, what)
    return results


def simulated(
    network: Network, numbers: WholeNetwork, checking: Checking, threads: int, progress: Progress
) -> np.ndarray:
    """Return the logits (B, K) int32 of a program in whole numbers."""

    def compute(some: slice) -> np.ndarray:
        groups = tuple(group[some] for group in checking.groups)
        return int8.simulated(network, numbers, checking.points[some], groups)

    return np.concatenate(
        _blocks(compute, len(checking.points), threads, progress, "whole numbers")
    )


def _c_program(
    network: Network,
    about: Described,
    checking: Checking,
    numbers: WholeNetwork | None,
    check: bool,
    threads: int,
    progress: Progress,
) -> tuple[c_program.Program, dict[str, Any]]:
    """Return a program and its values.  Raises CheckFailed where it computes something else."""
    expected = (
        simulated(network, numbers, checking, threads, progress) if numbers else checking.logits
    )
    embedded = evenly(len(expected), EMBEDDED)
    most = 0.0 if numbers else float(_allowed(network, checking, embedded).max())
    made = c_program.program(
        network, about, checking.points[embedded], expected[embedded], most, numbers
    )
    values: dict[str, Any] = {
        "form": "c",
        "numbers": "int8" if numbers else "float32",
        "files": sorted(made.files),
        "weights_bytes": made.weights,
        "buffer_bytes": made.buffers,
    }
    logits, unit = expected, numbers.logit if numbers else 1.0
    cc = compiled.compiler() if check else None
    if cc:
        shape = len(about.class_names), expected.dtype, checking.points.shape[1]
        with compiled.compiled(cc, made.files, *shape) as program:
            answers = _blocks(
                lambda some: program.classify(checking.points[some]),
                len(checking.points),
                threads,
                progress,
                "C program",
            )
            timed = [program.classify(checking.points[embedded]).seconds for _ in range(TIMED)]
        logits = np.concatenate([answer.logits for answer in answers])
        classes = np.concatenate([answer.classes for answer in answers])
        _check(network, checking, expected, logits, classes, exact=numbers is not None)
        values |= {
            "buffer_bytes": program.buffers,
            "code_and_weights_bytes": program.code,
            "milliseconds": 1e3 * float(np.median(timed)),
        }
    values["checked_with"] = "cc" if cc else None
    difference = abs(logits * unit - checking.logits.astype(np.float64))
    same = logits.argmax(axis=1) == checking.logits.argmax(axis=1)
    if cc or numbers:
        values |= {
            "largest_difference": float(difference.max()),
            "same_class": int(same.sum()),
            **_accuracy("exported_accuracy", checking, logits),
        }
    if not numbers:
        values["allowed"] = most
    return made, values


def _run_onnx(
    content: bytes,
    network: Network,
    checking: Checking,
    check: bool,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run a graph over the test clouds; return its values.  Raises CheckFailed."""
    run = onnx_graph.session(content, 1) if check else None
    if run is None:
        return {"checked_with": None}
    logits = np.concatenate(
        _blocks(
            lambda some: run(checking.points[some]),
            len(checking.points),
            threads,
            progress,
            "onnxruntime",
        )
    )
    _check(network, checking, checking.logits, logits, logits.argmax(axis=1), exact=False)
    same = logits.argmax(axis=1) == checking.logits.argmax(axis=1)
    return {
        "checked_with": "onnxruntime",
        "largest_difference": float(abs(logits - checking.logits).max()),
        "allowed": float(_allowed(network, checking, evenly(len(logits), EMBEDDED)).max()),
        "same_class": int(same.sum()),
        **_accuracy("exported_accuracy", checking, logits),
    }


def _allowed(network: Network, checking: Checking, clouds: np.ndarray) -> np.ndarray:
    """Return by how much the logits (C, K) of these clouds may differ."""
    return np.concatenate(
        [
            allowed(network, checking.points[[i]], tuple(group[[i]] for group in checking.groups))
            for i in clouds
        ]
    )


def _check(
    network: Network,
    checking: Checking,
    expected: np.ndarray,
    logits: np.ndarray,
    classes: np.ndarray,
    exact: bool,
) -> None:
    """Raise CheckFailed unless logits are those expected, at the cloud that is farthest off."""
    difference = abs(logits - expected.astype(np.float64)).max(axis=1)
    worst = int(np.where(np.isfinite(difference), difference, np.inf).argmax())
    most = 0.0 if exact else _allowed(network, checking, np.array([worst])).max()
    if not difference[worst] <= most or (classes != logits.argmax(axis=1)).any():
        raise CheckFailed(
            f"export: at test cloud {worst} of those checked a logit differs by "
            f"{difference[worst]:.3g}, more than {most:.3g}; nothing was written: please report it"
        )


def _accuracy(name: str, checking: Checking, logits: np.ndarray) -> dict[str, float]:
    """Return the accuracy under a name; nothing where no test cloud is labelled."""
    labelled = (checking.labels >= 0).any()
    return {name: metrics(checking.labels, logits).accuracy} if labelled else {}


def _commit_folder(path: str, contents: dict[str, str]) -> None:
    """Make a folder with these files, all or nothing.  Raises the errors of files.commit."""
    place = os.path.abspath(path)
    temporary = os.path.join(
        os.path.dirname(place), f".{os.path.basename(place)}.{secrets.token_hex(8)}.tmp"
    )
    try:
        os.mkdir(temporary)
        for name, text in contents.items():
            files.commit(os.path.join(temporary, name), text.encode("ascii"), swept=True)
        os.rename(temporary, place)
        files.sync_folder(os.path.dirname(place))
    except OSError as reason:
        raise files.write_error(f"{path}: could not be written", reason) from reason
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
