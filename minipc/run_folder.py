"""A run on disk: run.json (everything needed to repeat it), metrics, the last model.

A folder belongs to one run: an existing one is refused, so nothing is ever overwritten.
"""

import csv
import json
import os

from minipc import files
from minipc.errors import DataError, MinipcError, UsageError
from minipc.model_file import write_model


def free_name(base, *suffixes):
    """Return base, base-2, base-3, ...: the first that does not exist, nor with any of suffixes."""
    name, number = base, 1
    while any(os.path.lexists(name + suffix) for suffix in ("", *suffixes)):
        number += 1
        name = f"{base}-{number}"
    return name


def model_path(path):
    """Return the model file of path, which is one or is a run folder."""
    return os.path.join(path, "model.h5") if os.path.isdir(path) else path


def refuse_existing(path):
    """Raise UsageError where path exists: a run never goes into another one's folder."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already; choose another --out or remove it")


class RunFolder:
    """The files of one training run.  Raises UsageError if path exists, DataError if it cannot be made."""

    def __init__(self, path, described):
        """Make the folder and commit run.json; described is JSON: data, configs, versions."""
        self.path = path
        refuse_existing(path)
        try:
            os.mkdir(path)
        except OSError as reason:
            raise DataError(
                f"{path}: the run folder cannot be made: {reason.strerror}; choose another --out"
            ) from reason
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        try:
            files.commit(self.file("run.json"), text.encode())
        except MinipcError:
            os.rmdir(path)
            raise

    def file(self, name):
        """Return the path of one file of the run."""
        return os.path.join(self.path, name)

    def epoch_ended(self, row, model):
        """Append one epoch's row {name: number} to metrics.jsonl and metrics.csv, and commit model.h5."""
        try:
            with open(self.file("metrics.jsonl"), "a", encoding="ascii") as file:
                file.write(json.dumps(row) + "\n")
            with open(self.file("metrics.csv"), "a", encoding="ascii", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as reason:
            raise DataError(
                f"{self.path}: metrics cannot be written: {reason.strerror}; free space or permissions"
            ) from reason
        write_model(self.file("model.h5"), model)
