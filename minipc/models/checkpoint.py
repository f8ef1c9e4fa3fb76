"""Write and read the state of a training run after an epoch: all that the next epoch needs.

Random streams are drawn by name, seed, epoch and step (streams.py), so their position is the
number of epochs done; the rest is arrays.  This module does not know what the arrays mean.
"""

from os import PathLike
from typing import NamedTuple

import h5py
import numpy as np

from minipc.errors import DataError
from minipc.storage import files, hdf5

KIND, VERSION = "checkpoint", 1
GROUPS = ("params", "stats", "optimiser", "self_target")
AVERAGE = "average"  # a group of runs that average weights alone: the others' files have none
# weights and moments; float16 history; which clouds were visited; a moving average of weights
DTYPES = ("<f4", "<f2", "|u1", "<f8")


class Checkpoint(NamedTuple):
    """A run after len(rows) epochs; arrays on the host."""

    run_id: str  # SHA-256 of run.json: a checkpoint continues this run and no other
    rows: list  # the numbers of each epoch, as in metrics.jsonl
    steps: int  # optimiser steps done
    params: dict  # {name: float32 array}
    stats: dict
    optimiser: dict  # {"m.name": array, ...}: moments or velocity
    self_target: dict  # what SelfTarget.state() returned
    average: dict = {}  # averaged weights: what Epoch.average holds, empty without them


def write_checkpoint(path: str | PathLike, checkpoint: Checkpoint) -> None:
    """Commit checkpoint to path, atomically.  Raises the errors of files.commit."""
    arrays = {group: getattr(checkpoint, group) for group in GROUPS}
    if checkpoint.average:
        arrays[AVERAGE] = checkpoint.average
    layout = {
        group: {
            name: [value.dtype.newbyteorder("<").str, list(value.shape)]
            for name, value in members.items()
        }
        for group, members in arrays.items()
    }

    def fill(file: h5py.File) -> None:
        hdf5.write_meta(
            file,
            {
                "run_id": checkpoint.run_id,
                "steps": checkpoint.steps,
                "arrays": layout,
                "columns": list(checkpoint.rows[0]),
                "rows": [list(row.values()) for row in checkpoint.rows],
            },
        )
        for group, members in arrays.items():
            file.create_group(group)
            for name, value in sorted(members.items()):
                file[group].create_dataset(name, data=value, dtype=layout[group][name][0])

    hdf5.write_hdf5(path, KIND, VERSION, fill)


def read_checkpoint(path: str | PathLike) -> Checkpoint:
    """Return the Checkpoint in path.  Raises DataError for a missing, damaged or foreign file."""
    with hdf5.open_hdf5(path, KIND, VERSION) as file:
        groups = (*GROUPS, AVERAGE) if AVERAGE in file else GROUPS
        hdf5.check_members(file, {"meta", *groups}, path)
        meta = hdf5.read_meta(file, path)
        files.check_keys(meta, {"run_id", "columns", "rows", "steps", "arrays"}, path)
        files.check_keys(meta["arrays"], groups, path)
        columns, rows = meta["columns"], meta["rows"]
        if not (
            type(meta["steps"]) is int
            and isinstance(rows, list)
            and rows
            and isinstance(columns, list)
            and all(isinstance(row, list) and len(row) == len(columns) for row in rows)
        ):
            raise DataError(f"{path}: its metadata contradicts itself; train again")
        read: dict[str, dict[str, np.ndarray]] = {}
        for group, layout in meta["arrays"].items():
            hdf5.check_members(file[group], set(layout), path)
            read[group] = {}
            for name, (dtype, shape) in layout.items():
                if dtype not in DTYPES:
                    raise DataError(
                        f"{path}: {group}/{name}: expected one of {DTYPES}, found {dtype}; "
                        "train again"
                    )
                read[group][name] = hdf5.read_array(
                    file[group], name, np.dtype(dtype), tuple(shape), path
                )
    return Checkpoint(
        meta["run_id"],
        [dict(zip(columns, row, strict=True)) for row in rows],
        meta["steps"],
        **read,
    )
