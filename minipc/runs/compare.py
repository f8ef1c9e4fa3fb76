"""Statistics of finished runs: arms, each with the same seeds, against the arm on labels alone.

What is compared is the model after the last epoch, never the best one.  The test split chooses
nothing here; it is opened once a run, when everything has been chosen.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.errors import DataError, UsageError
from minipc.models.file import read_model
from minipc.runs.config import OWN_SEED, RunConfig, read_config
from minipc.runs.folder import MOST_TEXT, model_path, run_id_of
from minipc.runs.predictions import parsed
from minipc.storage import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CONFIDENCE = 0.95  # of every interval
RULE = (
    "The last epoch decides, never the best; the test split chooses nothing. Best epochs are "
    "chosen on the test split and flatter: they are shown for other people's tables only."
)


class Outcome(NamedTuple):
    """What one finished run did on the test split."""

    folder: str
    config: RunConfig
    views_seed: int  # of the views that it saw
    right: np.ndarray  # (n,) bool: which test clouds the last model classifies rightly
    mean_class_accuracy: float  # of the last epoch
    best_epoch: float  # the best test accuracy of any epoch: it flatters


def read_outcome(folder: str) -> Outcome:
    """Return the Outcome of a run folder.

    Which clouds are right stands in predictions.csv, which a run writes after its last epoch; it is
    held against the accuracies of that epoch.  Raises DataError for a run that is not finished, and
    for files that do not belong together.
    """
    config = read_config(folder)
    place = os.path.join(folder, "metrics.jsonl")
    remedy = f"go on with it: minipc train --resume --out {folder}"
    if not os.path.exists(place):
        raise DataError(f"{folder}: has finished no epoch; {remedy}")
    rows = [
        files.parse_json(line, place) for line in files.read_bytes(place, MOST_TEXT).splitlines()
    ]
    if len(rows) != config.training.epochs:
        raise DataError(
            f"{folder}: {len(rows)} of its {config.training.epochs} epochs are done; {remedy}"
        )
    trained = read_model(model_path(folder)).trained
    try:
        last, views_seed = rows[-1], int(trained["views_seed"])
        told = float(last["test_accuracy"]), float(last["test_mean_class_accuracy"])
        best = max(float(row["test_accuracy"]) for row in rows)
    except (KeyError, TypeError, ValueError) as reason:
        raise DataError(
            f"{folder}: metrics.jsonl or model.h5 misses {reason}; {remedy}"
        ) from reason
    right, labels = _predictions(folder, config, remedy)
    found = float(right.mean()), mean_class_accuracy(right, labels)
    # a cloud more or less is at least one in ten million, and rounding is far below it
    if trained.get("epochs") != len(rows) or max(abs(np.subtract(found, told))) > 1e-9:
        raise DataError(
            f"{folder}: model.h5 or predictions.csv is of another epoch than the last line of "
            f"metrics.jsonl; {remedy}"
        )
    return Outcome(folder, config, views_seed, right, told[1], best)


def _predictions(folder: str, config: RunConfig, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which labelled test clouds are right (n,) bool, and their labels (n,)."""
    place = os.path.join(folder, "predictions.csv")
    if not os.path.exists(place):
        raise DataError(f"{place}: is not there; {remedy}")
    found = parsed(files.read_bytes(place, MOST_TEXT), config.clouds["class_names"], place)
    if not found.known.any():
        raise DataError(f"{place}: no test cloud is labelled, so runs cannot be compared by it")
    labels = found.labels[found.known]
    return found.said[found.known] == labels, labels


def mean_class_accuracy(right: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over classes of the share right; right (n,) bool, labels (n,) any."""
    return float(np.mean([right[labels == name].mean() for name in np.unique(labels)]))


# Which runs are compared


def settings_of_run(config: RunConfig) -> dict[str, Any]:
    """Return all of a RunConfig that changes what is computed, but for its seed, as plain JSON.

    The model that a run began from is named by its contents, or, where its name has the seed in it,
    by that name: each seed of an arm then began from another.
    """
    described = asdict(config)
    if config.init is not None:
        own = OWN_SEED in config.init.file
        described["init"] = config.init.file if own else config.init.model_id
    for hint in ("provenance", "data", "name"):
        del described[hint]
    for record in ("record", "self_record"):
        if described[record]:
            del described[record]["file"]
    described["training"] = {**described["training"], "seed": None}
    return described


def differences_of(one: RunConfig, other: RunConfig) -> list[str]:
    """Return the names of the settings in which two RunConfigs differ, but for the seed."""
    mine, its = (_flat(settings_of_run(config)) for config in (one, other))
    return sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"section.name": value as one JSON text} of nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = files.canonical_json(value)
    return flat


def arms_of(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return {arm: its Outcomes} of runs whose settings differ only in the seed within an arm.

    An arm is named after its folders, without the seed at their end: kd-0 and kd-1 are kd.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        key = run_id_of(settings_of_run(outcome.config))
        groups.setdefault(key, []).append(outcome)
    firsts = [group[0] for group in groups.values()]
    folders = [os.path.normpath(first.folder) for first in firsts]
    paths = [
        folder.removesuffix(f"-{first.config.training.seed}")
        for folder, first in zip(folders, firsts, strict=True)
    ]
    names = distinct([os.path.basename(path) for path in paths], paths, folders)
    return dict(zip(names, groups.values(), strict=True))


def distinct(*choices: list[str]) -> list[str]:
    """Return the first list of names in which none occurs twice; the last has none."""
    return next(names for names in choices if len(set(names)) == len(names))


def reference_of(labels_only: dict[str, bool]) -> str:
    """Return the arm that the others are compared with; labels_only: {arm: on labels alone}.

    Raises UsageError unless one arm is on labels alone, or one of several is named labels.
    """
    found = [name for name, alone in labels_only.items() if alone]
    if len(found) == 1:
        return found[0]
    if "labels" in found:
        return "labels"
    if found:
        raise UsageError(
            f"compare: {', '.join(found)} are on labels alone, and none of them is named labels; "
            "name one so, or leave the others out"
        )
    raise UsageError(
        "compare: no run is on labels alone, so there is nothing to compare with; add one, made "
        "with: minipc train --labels-only --record FILE"
    )


def check_fair(runs: dict[str, dict[int, tuple[RunConfig, int]]]) -> None:
    """Raise UsageError unless all arms have the same seeds, and all runs of a seed the same input.

    runs: {arm: {seed: (RunConfig, seed of its views)}}.  The same input is: clouds, views, epochs,
    batch size and clouds held out; then every step of two runs has the same replayed batch.
    """
    first, *others = runs
    for arm in others:
        if runs[arm].keys() != runs[first].keys():
            raise UsageError(
                f"compare: {first} has seeds {_listed(runs[first])}, {arm} has "
                f"{_listed(runs[arm])}; every arm needs the same seeds"
            )
        for seed, mine in runs[first].items():
            inputs, theirs = _inputs(*mine), _inputs(*runs[arm][seed])
            for name, value in inputs.items():
                if theirs[name] != value:
                    said = f"{value} and {theirs[name]}" if name != "clouds" else "other hashes"
                    raise UsageError(
                        f"compare: {first} and {arm} differ in {name} with seed {seed} ({said}), "
                        "so their difference would not be that of the arms; train them alike"
                    )


def _inputs(config: RunConfig, views_seed: int) -> dict[str, Any]:
    """Return {name for people: value} of what all arms of a seed must have in common."""
    training = config.training
    views = "drawn anew each epoch" if config.views is None else "%d:%d" % config.views
    return {
        "clouds": config.clouds,
        "views": views,
        "seed of the views": views_seed,
        "augmentation": config.augment,
        "batch size": training.batch_size,
        "epochs": training.epochs,
        "clouds held out": training.val_fraction,
    }


def _listed(seeds: Any) -> str:
    return ", ".join(map(str, sorted(seeds)))


# Statistics, pure functions


class Difference(NamedTuple):
    """How many points of accuracy an arm is above the reference, paired by seed and by cloud."""

    per_seed: list[float]  # accuracy minus the reference's, in the order of the seeds
    mean: float
    interval: tuple[float, float] | None  # None: one seed, or all differences are the same
    split_error: float  # standard error of the mean from the test clouds alone
    gained: int  # pairs (seed, cloud) that only this arm has right
    lost: int  # ... that only the reference has right
    mcnemar: float  # two-sided exact p of gained against lost
    verdict: str | None  # above, below, or cannot be told from zero; None without an interval


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the confidence interval of the mean of two values or more, by Student's t."""
    from scipy.stats import t  # imported late: it takes longer than all that is computed here

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / sqrt(len(values))
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided p of McNemar's exact test: a fair coin for each discordant pair."""
    from scipy.stats import binomtest  # late, as above

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_error(right: np.ndarray, other: np.ndarray) -> float:
    """Return the standard error of the mean of right - other over clouds.

    right, other (seeds, n) bool.  Clouds are the sample: the seeds of a cloud are averaged first.
    """
    of_clouds = (right.astype(np.float64) - other).mean(axis=0)
    return float(np.std(of_clouds) / sqrt(len(of_clouds)))


def difference(right: np.ndarray, other: np.ndarray) -> Difference:
    """Return the Difference of two arms; right, other (seeds, n) bool, rows in the same order."""
    clouds = right.shape[1]
    counts = right.sum(axis=1) - other.sum(axis=1)  # integers, so equal ones are equal
    interval, verdict = None, None
    if len(set(counts.tolist())) > 1:
        low, high = interval = t_interval(counts / clouds)
        verdict = "above" if low > 0 else "below" if high < 0 else "cannot be told from zero"
    gained, lost = int((right & ~other).sum()), int((other & ~right).sum())
    return Difference(
        [float(count) / clouds for count in counts],
        float(counts.mean()) / clouds,
        interval,
        paired_error(right, other),
        gained,
        lost,
        mcnemar_exact(gained, lost),
        verdict,
    )


def sentence(arm: str, reference: str, found: Difference) -> str:
    """Return a Difference in words."""
    points = 100 * found.mean
    way = "above" if points >= 0 else "below"
    far = f"{arm} is {abs(points):.2f} points {way} {reference}"
    if not any(found.per_seed):
        far = f"{arm} has the accuracy of {reference} with every seed"
    if found.interval is not None:
        low, high = (100 * end for end in found.interval)
        says = {"above": "above zero", "below": "below zero"}.get(str(found.verdict), found.verdict)
        return f"{far}, {100 * CONFIDENCE:.0f} % interval [{low:+.2f}, {high:+.2f}]: {says}"
    why = (
        "one seed, so no interval"
        if len(found.per_seed) == 1
        else "the same difference with every seed, so no interval"
    )
    return (
        f"{far}; {why}: the standard error from the test clouds alone is "
        f"{100 * found.split_error:.2f} points, and says nothing of other seeds"
    )


def compare(arms: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Return the values of `minipc compare --json` for arms of finished runs.

    Shares are from 0 to 1.  Raises UsageError if there is no arm to compare with or the arms cannot
    be compared (check_fair).
    """
    for name, outcomes in arms.items():
        seeds = [outcome.config.training.seed for outcome in outcomes]
        for seed in seeds:
            if seeds.count(seed) > 1:
                twice = [o.folder for o in outcomes if o.config.training.seed == seed]
                raise UsageError(
                    f"compare: {' and '.join(twice)} are the same run ({name}, seed {seed}); name "
                    "one of them"
                )
    if len(arms) < 2:
        raise UsageError(
            "compare: expected runs of at least two arms, one of them on labels alone, found "
            f"{', '.join(arms) or 'none'}; name more runs"
        )
    reference = reference_of({name: each[0].config.labels_only for name, each in arms.items()})
    check_fair(
        {
            name: {o.config.training.seed: (o.config, o.views_seed) for o in outcomes}
            for name, outcomes in arms.items()
        }
    )
    counts = {len(o.right): o.folder for outcomes in arms.values() for o in outcomes}
    if len(counts) > 1:
        said = ", ".join(f"{count} in {folder}" for count, folder in counts.items())
        raise DataError(
            f"compare: predictions.csv has different numbers of clouds ({said}); write it again "
            "with: minipc train --resume --out RUN"
        )
    names = [reference, *(name for name in arms if name != reference)]
    ordered = {name: sorted(arms[name], key=lambda o: o.config.training.seed) for name in names}
    right = {name: np.array([o.right for o in ordered[name]]) for name in names}
    first = ordered[reference][0].config
    return {
        "reference": reference,
        "seeds": [o.config.training.seed for o in ordered[reference]],
        "epochs": first.training.epochs,
        "test_clouds": right[reference].shape[1],
        "confidence": CONFIDENCE,
        "rule": RULE,
        "arms": [
            _arm(name, ordered[name], right[name], reference, right[reference]) for name in names
        ],
    }


def _arm(
    name: str, outcomes: list[Outcome], right: np.ndarray, reference: str, other: np.ndarray
) -> dict[str, Any]:
    """Return the values of one arm; right and other (seeds, n) bool."""
    accuracies = [float(row.mean()) for row in right]
    classes = [outcome.mean_class_accuracy for outcome in outcomes]
    best = [outcome.best_epoch for outcome in outcomes]
    values: dict[str, Any] = {
        "arm": name,
        "model": outcomes[0].config.name,
        "labels_only": outcomes[0].config.labels_only,
        "runs": [outcome.folder for outcome in outcomes],
        "accuracy": _spread(accuracies),
        "mean_class_accuracy": _spread(classes),
        "best_epoch_on_test_flatters": _spread(best),
        "difference": None,
    }
    if name != reference:
        found = difference(right, other)
        values["difference"] = found._asdict() | {"sentence": sentence(name, reference, found)}
    return values


def _spread(values: list[float]) -> dict[str, Any]:
    """Return values, their mean, and their standard deviation (divisor n - 1; None of one)."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"per_seed": values, "mean": float(np.mean(values)), "sd": sd}
