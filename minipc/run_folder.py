"""A run on disk: run.json (everything needed to repeat it), metrics, the last model.

A folder belongs to one run: an existing one is refused, so nothing is ever overwritten.
"""

import csv
import json
import os

from minipc import files
from minipc.errors import DataError, UsageError
from minipc.model_file import write_model


def free_name(base):
    """Return base, base-2, base-3, ...: the first that does not exist."""
    name, number = base, 1
    while os.path.lexists(name):
        number += 1
        name = f"{base}-{number}"
    return name


def model_path(path):
    """Return the model file of path, which is one or is a run folder."""
    return os.path.join(path, "model.h5") if os.path.isdir(path) else path


class RunFolder:
    """The files of one training run.  Raises UsageError if path exists, DataError if it cannot be made."""

    def __init__(self, path, described):
        """Make the folder and commit run.json; described is JSON: command, data, configs, versions."""
        self.path = path
        try:
            os.mkdir(path)
        except FileExistsError:
            raise UsageError(f"{path}: exists already; choose another --out or remove it") from None
        except OSError as reason:
            raise DataError(
                f"{path}: the run folder cannot be made: {reason.strerror}; choose another --out"
            ) from reason
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        files.commit(self.file("run.json"), text.encode())

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
