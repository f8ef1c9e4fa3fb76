"""What the report of runs shows, gathered: runs, their arms and studies, records, a map."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from minipc.runs import predictions as counted

if TYPE_CHECKING:
    from minipc.data.clouds import Clouds
    from minipc.record.plan import Plan
    from minipc.runs.config import RunConfig
    from minipc.runs.predictions import Predictions


class RunFacts(NamedTuple):
    """What one run folder says."""

    name: str  # shown for it
    folder: str
    config: RunConfig
    rows: list  # one dict of numbers for each epoch, as in metrics.jsonl
    predictions: Predictions | None  # of the last epoch
    trained: dict  # of model.h5; empty without one
    parameters: int
    macs: int | None  # None: the number of points is not known


class RecordFacts(NamedTuple):
    """What the record of a run says."""

    file: str
    plan: Plan
    bytes: int
    max_kl: float  # by rounding logits
    data_file: str | None
    carries: dict | None  # {split: clouds} in it
    teacher_accuracy: float | None  # on the labelled clouds of the first view
    provenance: list  # [{"rows", "made_with"}]


class BoundMap(NamedTuple):
    """Where the raw loss of an arm is bounded below: the map over b and T, and the arm's point."""

    rows: str  # which rows
    shares: dict  # {(b, T): share of rows without a lower bound}, the arm's point among them
    safe_b: float  # largest b at the arm's T for which every row is bounded


class Arm(NamedTuple):
    """Runs that differ in the seed alone, and what lies beside them."""

    name: str
    runs: list[RunFacts]
    test: Clouds | None  # the test split, if the data file was found
    source: str  # where its clouds come from, "" if not known
    record: RecordFacts | None
    bound: BoundMap | None

    @property
    def config(self) -> RunConfig:
        """The settings of the first run."""
        return self.runs[0].config

    @property
    def predictions(self) -> Predictions | None:
        """Those of all runs, or None."""
        each = [run.predictions for run in self.runs if run.predictions]
        return counted.joined(each) if each else None


class Study(NamedTuple):
    """Runs that were compared."""

    name: str
    values: dict | None  # what runs.compare.compare returns, or None
    why_not: str  # the reason, if there are none


class Subject(NamedTuple):
    """All that one report shows."""

    title: str
    arms: list[Arm]
    studies: list[Study]
    missing: list[str]  # sentences
