"""A run on disk: run.json (everything needed to repeat it), checkpoint, metrics, models.

The checkpoint is committed first; metrics and models are made from it, so a kill between two files
loses nothing.  A folder belongs to one run and one process.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from contextlib import suppress
from itertools import count, takewhile
from typing import TYPE_CHECKING

from minipc.errors import DataError, MinipcError, UsageError, escaped
from minipc.models.checkpoint import read_checkpoint, write_checkpoint
from minipc.models.file import model_id as identity_of
from minipc.models.file import read_model, write_model
from minipc.storage import files, locks
from minipc.storage.places import check_new_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    import numpy as np

    from minipc.models.checkpoint import Checkpoint
    from minipc.models.file import Model

MOST_TEXT = 1 << 24  # largest size of run.json, in bytes
STUDY = "study"  # the folder of the bare commands


def _numbered(base: str) -> Iterator[str]:
    """Yield base, base-2, base-3, ..."""
    return (base if number == 1 else f"{base}-{number}" for number in count(1))


def free_name(base: str) -> str:
    """Return base, base-2, base-3, ...: the first that does not exist."""
    return next(name for name in _numbered(base) if not os.path.lexists(name))


def last_name(base: str, inside: str = "") -> str | None:
    """Return the last of base, base-2, base-3, ... that exists and has a file inside, or None."""
    names = list(takewhile(os.path.lexists, _numbered(base)))
    if inside:
        names = [name for name in names if os.path.lexists(os.path.join(name, inside))]
    return names[-1] if names else None


def last_run(wanted: str, or_study: bool = False) -> str:
    """Return the last of run, run-2, ... here that is a run; or_study: STUDY where there is none.

    Raises UsageError if there is none; wanted: what the user can name instead.
    """
    name = last_name("run", "run.json")
    if name is None and or_study and os.path.isdir(STUDY):
        name = STUDY
    if name is None:
        raise UsageError(f"there is no run here; name {wanted}, or train one: minipc train")
    return name


def runs_below(path: str) -> list[str]:
    """Return the run folders in a folder, such as that of a study, sorted.  Raises DataError."""
    try:
        names = sorted(os.listdir(path))
    except OSError as reason:
        raise DataError(
            f"{path}: cannot be read ({reason.strerror}); name the folder of a run or of a study"
        ) from reason
    inside = [os.path.join(path, name) for name in names]
    return [each for each in inside if os.path.exists(os.path.join(each, "run.json"))]


def model_path(path: str) -> str:
    """Return the model file of path, which is a model file or a run folder."""
    return os.path.join(path, "model.h5") if os.path.isdir(path) else path


def read_run(path: str) -> dict[str, Any]:
    """Return the content of run.json in a run folder.  Raises DataError."""
    place = os.path.join(path, "run.json")
    return files.parse_json(files.read_bytes(place, MOST_TEXT), place)


def run_id_of(described: dict[str, Any]) -> str:
    """Return the SHA-256 of the content of a run.json, as hexadecimal digits."""
    return hashlib.sha256(files.canonical_json(described)).hexdigest()


class RunFolder:
    """The files of one training run, locked while it is open."""

    def __init__(self, path: str, described: dict[str, Any] | None = None) -> None:
        """Make the folder and commit run.json (described: JSON), or open an existing run.

        Raises UsageError if path exists, or if another process is training in it; DataError if it
        cannot be made or is not a run; MinipcError on a system without locks.
        """
        locks.check_locks(path)
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        self.path, self.new = path, described is not None
        made = False
        if self.new:
            check_new_run(path)
            try:
                os.mkdir(path)
                made = True
                files.sync_folder(os.path.dirname(os.path.abspath(path)))
            except FileExistsError:
                pass
            except OSError as reason:
                raise DataError(
                    f"{path}: the run folder cannot be made: {reason.strerror}; choose another "
                    "--out"
                ) from reason
        elif not os.path.isdir(path):
            read_run(path)  # raises and says what is there instead
        self._lock, self._owner = self._take(), os.getpid()
        try:
            if self.new:
                check_new_run(path)  # again, now that nobody else can write into it
                files.commit(self.file("run.json"), text.encode())
            self.described = read_run(path)
        except MinipcError:
            os.close(self._lock)
            if made:
                with suppress(OSError):
                    os.rmdir(path)
            raise
        self.run_id = run_id_of(self.described)

    def _take(self) -> int:
        """Return a descriptor of the locked folder.  Raises UsageError, DataError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as reason:
            raise DataError(
                f"{self.path}: cannot be opened ({reason.strerror}); name the folder of a run"
            ) from reason
        try:
            locks.lock(fd, wait=False)
        except BlockingIOError:
            os.close(fd)
            raise UsageError(
                f"{self.path}: another process is training in it; wait for it, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        return fd

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *raised: object) -> None:
        if os.getpid() == self._owner:
            # unlock explicitly: a process forked meanwhile would keep the lock until it ends
            with suppress(OSError):
                locks.unlock(self._lock)
        os.close(self._lock)

    def file(self, name: str) -> str:
        """Return the path of one file of the run."""
        return os.path.join(self.path, name)

    def checkpoint(self) -> Checkpoint | None:
        """Return the Checkpoint to resume from, or None before the first.  Raises DataError."""
        path = self.file("checkpoint.h5")
        if not os.path.lexists(path):
            if os.path.lexists(self.file("model.h5")):  # written after the first checkpoint
                raise DataError(
                    f"{path}: is gone, so the run cannot go on; restore it, or start another run"
                )
            return None
        checkpoint = read_checkpoint(path)
        if checkpoint.run_id != self.run_id:
            raise DataError(
                f"{path}: belongs to another run than run.json beside it; restore either, or train "
                "again"
            )
        return checkpoint

    def begin_from(self, model: Model) -> None:
        """Commit the model that the run begins from: it resumes without the file it came from."""
        write_model(self.file("init.h5"), model)

    def beginning(self, model_id: str) -> Model:
        """Return the model that begin_from() wrote.  Raises DataError unless it has this id."""
        path = self.file("init.h5")
        model = read_model(path)
        if identity_of(model) != model_id:
            raise DataError(
                f"{path}: is not the model that run.json names; restore it, or start another run"
            )
        return model

    def abandon(self) -> None:
        """Remove a run that has not finished an epoch."""
        if set(os.listdir(self.path)) <= {"run.json", "init.h5"}:
            with suppress(OSError):
                with suppress(FileNotFoundError):
                    os.unlink(self.file("init.h5"))
                os.unlink(self.file("run.json"))
                os.rmdir(self.path)

    def epoch_ended(self, checkpoint: Checkpoint, model: Model, best: bool) -> None:
        """Commit one epoch's Checkpoint, metrics and models; best: the best epoch so far."""
        write_checkpoint(self.file("checkpoint.h5"), checkpoint)
        self.follow(checkpoint.rows, model, best)

    def follow(self, rows: list[dict[str, Any]], model: Model, best: bool) -> None:
        """Commit metrics and the last model, if best also as the best one; rows: of all epochs."""
        files.commit(
            self.file("metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode()
        )
        self._write_csv("metrics.csv", [list(rows[0]), *(row.values() for row in rows)])
        write_model(self.file("model.h5"), model)
        if best:
            write_model(self.file("best.h5"), model)

    def ended(
        self,
        class_names: Sequence[str],
        labels: np.ndarray,
        probabilities: np.ndarray,
        names: Sequence[str] = (),
    ) -> None:
        """Commit predictions.csv: one line for each test cloud, by the last model.

        labels (N,) indices into class_names, or -1 for none: the fields label and right are then
        empty.  probabilities (N, K).  names: of the N files of the clouds, or none; what cannot be
        printed in them is escaped.
        """
        lines: list[list[Any]] = [["cloud", "label", "predicted", "right", "probability"]]
        if names:
            lines[0].append("file")
        for cloud, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
            best, known = int(row.argmax()), label >= 0
            lines.append(
                [
                    cloud,
                    class_names[label] if known else "",
                    class_names[best],
                    int(best == label) if known else "",
                    f"{row[best]:.6f}",
                    *([escaped(names[cloud])] if names else []),
                ]
            )
        self._write_csv("predictions.csv", lines)

    def _write_csv(self, name: str, lines: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(lines)
        files.commit(self.file(name), text.getvalue().encode())
