"""One shard of a recording: its name, its commit, and how it is read and checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from minipc.errors import CheckFailed, DataError, UsageError
from minipc.record.fields import check_arrays, check_kl, open_fields, shard_fields
from minipc.record.plan import FORMAT
from minipc.storage import files, hdf5

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minipc.record.plan import Plan

SHARD_META = {"run_id", "view", "first", "rows", "provenance", "max_kl"}


def shard_name(view: int, first: int) -> str:
    """Return the name of a shard in OUT.parts."""
    return f"view-{view:05d}-row-{first:08d}.h5"


def read_shard(
    path: str, plan: Plan, view: int, first: int, stop: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (meta, {field name: array}) of one shard, verified by its plan.  Raises DataError."""
    fields = shard_fields(plan.logits)
    with hdf5.open_hdf5(path, "shard", FORMAT, cap=1 << 31) as file:
        datasets = open_fields(file, fields, {**plan.sizes, "N": stop - first}, path)
        meta = hdf5.read_meta(file, path)
        files.check_keys(meta, SHARD_META, path)
        check_kl(meta["max_kl"], path)
        expected = {"run_id": plan.recording_id, "view": view, "first": first, "rows": stop - first}
        for key, value in expected.items():
            if meta[key] != value:
                raise DataError(f"{path}: {key} is {meta[key]}, expected {value}")
        if not isinstance(meta["provenance"], dict):
            raise DataError(f"{path}: provenance is no mapping")
        return meta, {name: hdf5.read_dataset(dataset, path) for name, dataset in datasets.items()}


def commit_shard(
    parts: str,
    plan: Plan,
    view: int,
    first: int,
    scale: np.ndarray,
    shift: np.ndarray,
    logits: np.ndarray,
    provenance: dict[str, Any],
    *,
    prepare: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Write one shard durably into the folder parts; return its meta.

    The shard holds rows first, first + 1, ... of a view: scale, shift (R, 3) float32, logits (R, K)
    of the plan's dtype.  provenance: versions, BLAS, device, and max_kl, the largest KL of rounding
    the logits.  Calls prepare() before it writes.  If two recorders commit the same shard, the
    first one stays.

    Raises UsageError for a shard that is not in the plan, DataError for arrays of another shape or
    dtype, CheckFailed if another recorder committed other rows with the same build, MinipcError as
    files.commit.
    """
    path = os.path.join(parts, shard_name(view, first))
    if not (0 <= view < plan.views and 0 <= first < plan.clouds) or first % plan.rows_per_shard:
        raise UsageError(f"{parts}: no shard of the plan begins at view {view}, row {first}")
    stop = min(first + plan.rows_per_shard, plan.clouds)
    made_with = dict(provenance)
    meta = {
        "run_id": plan.recording_id,
        "view": view,
        "first": first,
        "rows": stop - first,
        "max_kl": check_kl(made_with.pop("max_kl", 0.0), path),
        "provenance": made_with,
    }
    arrays = {"augment/scale": scale, "augment/shift": shift, "logits": logits}
    fields = shard_fields(plan.logits)
    check_arrays(arrays, fields, {**plan.sizes, "N": stop - first}, f"{path}: view {view}")

    def fill(file: Any) -> None:
        hdf5.write_meta(file, meta)
        for field in fields:
            dtype = np.dtype(field.dtype).newbyteorder("<")
            file.create_dataset(field.name, data=arrays[field.name], dtype=dtype)

    prepare()
    existing = _committed(path, plan, view, first, stop)
    if existing is None:
        hdf5.write_hdf5(path, "shard", FORMAT, fill, swept=True)  # Store.begin has swept
        return meta
    same = all(np.array_equal(existing[1][name], array) for name, array in arrays.items())
    if not same and existing[0]["provenance"] == made_with:
        raise CheckFailed(
            f"{path}: another recorder computed other rows with the same build: the teacher does "
            "not repeat itself; look for what is random in it"
        )
    return existing[0]


def _committed(
    path: str, plan: Plan, view: int, first: int, stop: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return the result of read_shard, or None if the shard is missing or bad."""
    try:
        return read_shard(path, plan, view, first, stop) if os.path.lexists(path) else None
    except DataError:
        return None
