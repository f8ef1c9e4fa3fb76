"""Train the runs of a study and compare them: what `minipc compare` does.

A run of a study is an ordinary run folder, made and resumed by verbs/train.py; this module decides
which runs there are, starts them as processes, and writes what runs/compare.py finds.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.backend import load, worker_threads
from minipc.errors import DataError, MinipcError, UsageError
from minipc.progress import quiet
from minipc.record.parallel.processes import run_workers, use_device
from minipc.report.compare import pages
from minipc.runs import compare as statistics
from minipc.runs.compare import Outcome, check_fair, differences_of, read_outcome
from minipc.runs.config import OWN_SEED, RunConfig, read_config
from minipc.storage import files
from minipc.storage.places import check_new_run, check_parent
from minipc.verbs import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType
    from typing import Any


class Job(NamedTuple):
    """One run of a study."""

    folder: str
    asked: dict  # arguments of verbs.train.train, from model to views
    config: RunConfig  # what its run.json says, but for the provenance


def study(
    arms: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    out: str,
    *,
    at_a_time: int | None = None,
    threads: int = 1,
    xp: ModuleType = np,
    say: Callable[[str], None] = quiet,
    progress: Callable[[int, int, str], None] = quiet,
) -> dict[str, Any]:
    """Train every arm with every seed into out/ARM-SEED, and return what compare_runs() returns.

    arms: {name: arguments of verbs.train.train, from model to init}; one is on labels alone, and
    {seed} in an init is the seed of the run.
    at_a_time: runs at the same time, None: the devices, or the CPUs of this process; threads: of
    each run.  What is there already goes on where it stopped.  Everything is checked before the
    first run starts.

    Raises UsageError for arms that cannot be compared and for folders of other runs, DataError for
    files that do not belong together, MinipcError if a run did not finish.
    """
    check_parent(out)
    reporting: dict[str, Any] = dict(say=say, progress=progress)
    jobs = _jobs(arms, seeds, out, xp, reporting)
    _make(out)
    open_jobs = [job for job in jobs if not _finished(job)]
    total, done = sum(job.config.training.epochs for job in jobs), len(jobs) - len(open_jobs)
    devices = 0 if xp is np else xp.cuda.runtime.getDeviceCount()
    at_a_time = min(at_a_time or devices or worker_threads(np), len(open_jobs))
    speed = f", {at_a_time} at a time" if open_jobs else ""
    say(f"{out}: {len(jobs)} runs, {done} finished{speed}")
    work = [(job.folder, job.asked) for job in open_jobs]
    if work:
        run_workers(
            partial(_train, work, devices, threads),
            len(work),
            say=say,
            progress=lambda: progress(sum(map(_epochs_done, jobs)), total, "training"),
            at_a_time=at_a_time,
            names=[folder for folder, _ in work],
            left="its finished epochs are kept",
        )
    missing = [job.folder for job in jobs if not _finished(job)]
    if missing:
        raise MinipcError(
            f"{out}: {len(missing)} of {len(jobs)} runs did not finish ({', '.join(missing)}); "
            "finished epochs are kept: the same command again goes on"
        )
    outcomes = [read_outcome(job.folder) for job in jobs]
    count = len(seeds)
    grouped = {arm: outcomes[i * count : (i + 1) * count] for i, arm in enumerate(arms)}
    return _compared(grouped, out)


def compare_runs(runs: Sequence[str], out: str | None = None) -> dict[str, Any]:
    """Compare finished runs, and return the values for JSON; arms are runs that differ in the seed.

    out: folder for compare.md, .csv, .json and .svg; None: nothing is written.  Raises DataError
    for a run that is not finished, UsageError for runs that cannot be compared.
    """
    if out is not None:
        check_parent(out)
    values = [read_outcome(os.path.normpath(run)) for run in runs]
    return _compared(statistics.arms_of(values), out)


def _compared(arms: dict[str, list[Outcome]], out: str | None) -> dict[str, Any]:
    """Compare arms and write the files into out; return the values."""
    values = statistics.compare(arms)
    if out is None:
        return values
    _make(out)
    made = pages(values, out)
    made[os.path.join(out, "compare.json")] = json.dumps(values, indent=2, allow_nan=False) + "\n"
    for path, text in made.items():
        files.commit(path, text.encode())
    return values | {"files": list(made)}


def _make(out: str) -> None:
    """Make the folder of a study if it is not there.  Raises DataError."""
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as reason:
        raise DataError(
            f"{out}: the folder cannot be made ({reason.strerror}); choose another --out"
        ) from reason


def _jobs(
    arms: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    out: str,
    xp: ModuleType,
    reporting: dict[str, Any],
) -> list[Job]:
    """Return the runs of a study, arm by arm, all checked; their groups are made once, here."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds: expected different integers, at least one, got {list(seeds)}")
    statistics.reference_of({arm: bool(asked.get("labels_only")) for arm, asked in arms.items()})
    if len(arms) < 2:
        raise UsageError("arms: expected at least one beside that on labels alone; add another")
    jobs: list[Job] = []
    runs: dict[str, dict[int, tuple[RunConfig, int]]] = {}
    for arm, asked in arms.items():
        runs[arm] = {}
        for seed, job, views_seed in _of_arm(arm, asked, seeds, out, xp, reporting):
            jobs.append(job)
            runs[arm][seed] = job.config, seed if job.config.record is None else views_seed
    check_fair(runs)
    for number, arm in enumerate(arms):
        for other in list(arms)[:number]:
            if not any(differences_of(runs[arm][s][0], runs[other][s][0]) for s in seeds):
                raise UsageError(
                    f"arm {arm}: is the same training as arm {other}; change a setting or leave "
                    "one out"
                )
    for job in jobs:
        _check_folder(job)
    return jobs


def _of_arm(
    arm: str,
    asked: dict[str, Any],
    seeds: Sequence[int],
    out: str,
    xp: ModuleType,
    reporting: dict[str, Any],
) -> Iterator[tuple[int, Job, int]]:
    """Yield (seed, Job, seed of the views of its record) of the runs of one arm."""
    config = None
    for seed in seeds:
        mine = asked | {"config": replace(asked["config"], seed=seed)}  # refuses what is no seed
        try:
            if config is None or OWN_SEED in (asked.get("init") or ""):
                config, views_seed, labelled = train.forecast(out=out, xp=xp, **mine, **reporting)
        except (UsageError, DataError) as reason:
            raise type(reason)(f"arm {arm}: {reason}") from reason
        if not labelled:
            raise DataError(
                f"arm {arm}: no test cloud is labelled, so runs cannot be compared; hold out "
                "labelled clouds: minipc data hold-out"
            )
        own = replace(config, training=mine["config"])
        yield seed, Job(os.path.join(out, f"{arm}-{seed}"), mine, own), views_seed


def _check_folder(job: Job) -> None:
    """Raise UsageError if the folder of a run is taken, or holds another run."""
    if not os.path.exists(os.path.join(job.folder, "run.json")):
        check_new_run(job.folder)
        return
    there = read_config(job.folder)
    other = differences_of(there, job.config)
    if there.training.seed != job.config.training.seed:
        other.append("training.seed")
    if there.init and job.config.init and there.init.model_id != job.config.init.model_id:
        other.append("init.model_id")
    if other:
        raise UsageError(
            f"{job.folder}: was begun with other settings than the study has now (other "
            f"{', '.join(other)}); name another --out, or take back the change"
        )


def _finished(job: Job) -> bool:
    """Return whether a run has all its epochs and all its files."""
    try:
        read_outcome(job.folder)
    except DataError:  # going on with it mends files that a kill left behind
        return False
    return True


def _epochs_done(job: Job) -> int:
    """Return how many epochs of a run are finished, for the progress."""
    try:
        with open(os.path.join(job.folder, "metrics.jsonl"), "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def _train(
    work: list[tuple[str, dict[str, Any]]], devices: int, threads: int, number: int, count: int
) -> None:
    """Train or go on with one run in its own process; devices: how many CUDA devices there are."""
    folder, asked = work[number]
    if devices:
        use_device(number, devices)
    running: dict[str, Any] = dict(xp=load("cupy" if devices else "numpy"), threads=threads)
    if os.path.exists(os.path.join(folder, "run.json")):
        named: dict[str, Any] = {
            name: asked.get(name) for name in ("data", "record", "self_record")
        }
        train.resume(folder, **named, **running)
    else:
        train.train(out=folder, **asked, **running)
