"""A run on disk: run.json (everything needed to repeat it), checkpoint, metrics, models.

The checkpoint is the truth of a run: it is committed first, and metrics and models follow from it,
so that a kill between two files costs nothing.  A folder belongs to one run and one process.
"""

import csv
import fcntl
import hashlib
import io
import json
import os

from minipc import files
from minipc.checkpoint import read_checkpoint, write_checkpoint
from minipc.errors import DataError, MinipcError, UsageError
from minipc.model_file import write_model


def free_name(base, *suffixes):
    """Return base, base-2, base-3, ...: the first that does not exist, nor with any of suffixes."""
    name, number = base, 1
    while any(os.path.lexists(name + suffix) for suffix in ("", *suffixes)):
        number += 1
        name = f"{base}-{number}"
    return name


def last_name(base, *suffixes):
    """Return the last of base, base-2, base-3, ... that exists, itself or with a suffix; or None."""
    last, name, number = None, base, 1
    while any(os.path.lexists(name + suffix) for suffix in ("", *suffixes)):
        last, number = name, number + 1
        name = f"{base}-{number}"
    return last


def model_path(path):
    """Return the model file of path, which is one or is a run folder."""
    return os.path.join(path, "model.h5") if os.path.isdir(path) else path


def refuse_existing(path):
    """Raise UsageError where path exists: a run never goes into another one's folder."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already; continue it with --resume, or choose another --out")


def read_run(path):
    """Return what run.json of a run folder says.  Raises DataError."""
    place = os.path.join(path, "run.json")
    try:
        with open(place, "rb") as file:
            return files.parse_json(file.read(1 << 24), place)
    except OSError as reason:
        raise DataError(f"{place}: cannot be read ({reason.strerror}); name the folder of a run") from reason


class RunFolder:
    """The files of one training run, locked while it is open."""

    def __init__(self, path, described=None):
        """Make the folder and commit run.json (described: JSON), or without it open an existing run.

        Raises UsageError where path exists (or is at work in another process), DataError where it
        cannot be made or is no run.
        """
        self.path, self.new = path, described is not None
        if self.new:
            refuse_existing(path)
            try:
                os.mkdir(path)
            except OSError as reason:
                raise DataError(
                    f"{path}: the run folder cannot be made: {reason.strerror}; choose another --out"
                ) from reason
            try:
                files.commit(self.file("run.json"), (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
            except MinipcError:
                os.rmdir(path)
                raise
        self.described = described if self.new else read_run(path)
        self.run = hashlib.sha256(files.canonical_json(self.described)).hexdigest()
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(f"{path}: another process is training in it; wait for it, or stop it") from None
        except OSError:
            pass  # a file system without locks

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        os.close(self._lock)

    def file(self, name):
        """Return the path of one file of the run."""
        return os.path.join(self.path, name)

    def checkpoint(self):
        """Return the Checkpoint to go on from, or None before the first.  Raises DataError."""
        path = self.file("checkpoint.h5")
        if not os.path.lexists(path):
            return None
        found = read_checkpoint(path)
        if found.run != self.run:
            raise DataError(f"{path}: belongs to another run than run.json beside it; restore either, or train again")
        return found

    def epoch_ended(self, checkpoint, model, best):
        """Commit one epoch's Checkpoint and what follows from it; best: it is the best one so far."""
        write_checkpoint(self.file("checkpoint.h5"), checkpoint)
        self.follow(checkpoint.rows, model, best)

    def follow(self, rows, model, best):
        """Commit metrics, the last model and, if best, the best one: rows {name: number} of all epochs."""
        files.commit(self.file("metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._write_csv("metrics.csv", [list(rows[0]), *(row.values() for row in rows)])
        write_model(self.file("model.h5"), model)
        if best:
            write_model(self.file("best.h5"), model)

    def ended(self, class_names, labels, probabilities):
        """Commit predictions.csv: one line a test cloud, of the last model.

        labels (N,) indices into class_names, probabilities (N, K).
        """
        lines = [["cloud", "label", "predicted", "right", "probability"]]
        for cloud, (label, row) in enumerate(zip(labels, probabilities)):
            best = int(row.argmax())
            lines.append([cloud, class_names[label], class_names[best], int(best == label), f"{row[best]:.6f}"])
        self._write_csv("predictions.csv", lines)

    def _write_csv(self, name, lines):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(lines)
        files.commit(self.file(name), text.getvalue().encode())
