"""How fast a model is on this machine, beside its exported forms: what `minipc bench` does."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np

from minipc.backend import BLOCK, to_host, worker_threads
from minipc.data.clouds import check_same_kind
from minipc.distil.evaluate import predict
from minipc.errors import BackendError, DataError, MinipcError
from minipc.export import c_program, compiled, onnx_graph
from minipc.export.described import described
from minipc.export.folding import folded
from minipc.models.file import on_module, read_model
from minipc.models.inputs import Inputs
from minipc.models.model import net
from minipc.progress import quiet
from minipc.provenance import provenance
from minipc.runs.folder import model_path
from minipc.streams import stream
from minipc.verbs.export import whole_of
from minipc.verbs.find import find_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from minipc.data.clouds import Splits
    from minipc.export.described import Described
    from minipc.export.folding import Network
    from minipc.export.int8 import WholeNetwork
    from minipc.models.file import Model

FORMS = 5
LEAST = 5  # calls measured, however long they take


def bench(
    model: str,
    data: str | None = None,
    *,
    seconds: float = 2.0,
    xp: ModuleType = np,
    engine: str = "fused",
    threads: int | None = None,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> dict[str, Any]:
    """Measure the model in a file or run folder; return values for JSON.

    data: a clouds file whose test clouds are classified and whose training clouds give the scales
    of int8; None: the file that the model was trained on, or a drawn cloud where it is not at hand.
    seconds: of measuring, for each form and number of clouds.  A time holds all that a cloud needs,
    the search of its neighbours too, but not reading and normalising it.
    Raises DataError if model and data do not fit together.
    """
    path = model_path(model)
    read = read_model(path)
    config, about = read.config, described(read)
    threads = worker_threads(xp, threads)
    data, splits = _data(path, read, data, say)
    points = splits.test.points if splits else _drawn(about.points)
    points = np.ascontiguousarray(np.resize(points, (BLOCK, *points.shape[1:])))
    on_device, count = on_module(read, xp), net(config).count(config, points.shape[1])
    made_with, watch = provenance(xp), _Watch(points, seconds, progress)
    logits_of = net(config).evaluator(on_device.params, on_device.stats, config, engine)

    def predicted(some: np.ndarray) -> np.ndarray:
        return predict(on_device, some, xp, threads, engine)

    def evaluated(some: np.ndarray) -> np.ndarray:
        groups = tuple(map(xp.asarray, net(config).prepare(config, some)))
        return to_host(logits_of(Inputs(xp.asarray(some), groups)))

    watch.measure("minipc predict", predicted, peak_bytes=_peak(predicted, points))
    watch.measure("minipc evaluator", evaluated, peak_bytes=_peak(evaluated, points))
    network = folded(read)
    missing = _onnx(network, about, watch, threads)
    whole = whole_of(network, config, splits.train, threads, quiet) if splits else None
    missing += _c(network, about, watch, whole)
    progress(FORMS, FORMS, "measured")
    return {
        "model": path,
        "title": about.title,
        "data": data,
        "points": points.shape[1],
        "parameters": count.parameters,
        "macs_per_cloud": count.macs,
        "threads": threads,
        "blas": made_with["blas"],
        "kernel": made_with["kernel"],
        "engine": engine,
        "block": BLOCK,
        "forms": watch.forms,
        "missing": missing,
    }


def _data(
    path: str, model: Model, data: str | None, say: Callable[[str], None]
) -> tuple[str | None, Splits | None]:
    """Return the data given, or that of the training; none where these are not at hand."""
    trained = model.trained
    try:
        found, splits = find_data(
            data, trained.get("data_file"), path, points_hash=trained.get("points_hash")
        )
    except DataError:
        if data is not None:
            raise
        say(f"{path}: its data are not at hand; a cloud is drawn, and int8 left out: pass DATA")
        return None, None
    check_same_kind(splits.test.described, model.described, found, path)
    return found, splits


class _Watch:
    """Measures forms one after the other, each on one cloud and on all of points (BLOCK, N, 3)."""

    def __init__(
        self, points: np.ndarray, seconds: float, progress: Callable[[int, int, str], None]
    ) -> None:
        self.points, self.seconds, self.progress = points, seconds, progress
        self.forms: list[dict[str, Any]] = []

    def measure(self, name: str, function: Callable[[np.ndarray], Any], **more: Any) -> None:
        self.progress(len(self.forms), FORMS, f"measuring {name}")
        alone = 1e3 * self._times(function, self.points[:1])
        together = float(np.median(self._times(function, self.points)))
        self.forms.append(
            {
                "form": name,
                "milliseconds": float(np.median(alone)),
                "milliseconds_95": float(np.percentile(alone, 95)),
                "calls": len(alone),
                "clouds_per_second": len(self.points) / together,
                **more,
            }
        )

    def _times(self, function: Callable[[np.ndarray], Any], points: np.ndarray) -> np.ndarray:
        """Return the seconds of each call, after one that is not counted."""
        function(points)
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < LEAST or time.perf_counter() < end:
            start = time.perf_counter()
            function(points)
            times.append(time.perf_counter() - start)
        return np.array(times)


def _onnx(network: Network, about: Described, watch: _Watch, threads: int) -> list[str]:
    """Measure the graph; return why not, if so."""
    try:
        content = onnx_graph.model(network, about).SerializeToString()
        run = onnx_graph.session(content, threads)
    except BackendError:
        run = None
    if run is None:
        return ["ONNX needs onnx and onnxruntime: pip install -e '.[onnx]'"]
    watch.measure("ONNX", run, bytes=len(content))
    return []


def _c(network: Network, about: Described, watch: _Watch, whole: WholeNetwork | None) -> list[str]:
    """Measure the C programs; return why not, if so."""
    cc = compiled.compiler()
    if cc is None:
        return ["C needs the compiler cc"]
    for name, numbers in (("C float32", None), ("C int8", whole))[: 2 if whole else 1]:
        classes, dtype = len(about.class_names), np.int32 if numbers else np.float32
        none = np.zeros((1, classes), dtype)
        made = c_program.program(network, about, watch.points[:1], none, 0.0, numbers)
        points = watch.points.shape[1]
        try:
            with compiled.compiled(cc, made.files, classes, dtype, points) as program:
                size = program.code or made.weights
                watch.measure(name, program.classify, bytes=size, peak_bytes=program.buffers)
        except MinipcError as reason:
            return [f"C: {str(reason).rpartition(';')[0]}"]  # its remedy is of `minipc export`
    return [] if whole else ["C int8 needs training clouds: pass DATA"]


def _drawn(count: int) -> np.ndarray:
    """Return one cloud (1, count, 3) in the unit sphere."""
    points = stream(0, "bench").standard_normal((1, count, 3)).astype(np.float32)
    return points / np.linalg.norm(points, axis=2).max()


def _peak(function: Callable[[np.ndarray], Any], points: np.ndarray) -> int:
    """Return the most bytes of arrays that a call holds at once (on the host)."""
    tracemalloc.start()
    try:
        function(points)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
