"""The one table of settings: name, default, bounds, choices and meaning of each, once.

From a line here follow the field of a frozen dataclass and its check, the option of the command
line with its help, variable and key (cli/options.py), and the row in docs/settings.md.
Standard library only: --help does not wait for NumPy.
"""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, NamedTuple, get_type_hints

from minipc.errors import UsageError


class Setting(NamedTuple):
    """One setting; the arguments of setting() have these names and defaults."""

    name: str  # of the field, and the key in run.json
    kind: type  # int, float, str or bool
    default: Any
    option: str  # on the command line, with _ for -; the name if not given
    group: str  # its heading in --help
    help: str = ""  # in --help
    more: str = ""  # what docs/settings.md says beside it
    low: float = -inf  # smallest and ...
    high: float = inf  # ... largest value
    above: float = -inf  # every value is larger than this and ...
    below: float = inf  # ... smaller than this: infinity and NaN are never values
    choices: tuple[str, ...] = ()  # all values, of text
    expected: str = ""  # the bounds for people; follows from choices
    unless_given: str = ""  # the default in words; the option is then None if it is not given
    metavar: str = ""  # what --help shows for a number: its letter in the formula, or a word

    @property
    def values(self) -> str:
        """Return what values are allowed, for people."""
        if self.kind is bool:
            return "true or false"
        between = " or " if len(self.choices) == 2 else ", "
        return self.expected or between.join(self.choices)

    @property
    def label(self) -> str:
        """Return the name that messages use."""
        return self.option.replace("_", " ")

    def check(self, value: Any) -> None:
        """Raise UsageError unless value is allowed."""
        if not self._admits(value):
            raise UsageError(f"{self.label}: expected {self.values}, got {value!r}")

    def _admits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind in (int, bool) and not isinstance(value, self.kind):
            return False
        try:
            return bool(self.low <= value <= self.high and self.above < value < self.below)
        except TypeError:  # text, or None
            return False


def setting(default: Any, **about: Any) -> Any:
    """Return the field of a dataclass that is a setting; about: the rest of a Setting by name."""
    return field(default=default, metadata=about)


def settings_of(kind: type) -> dict[str, Setting]:
    """Return {field name: Setting} of a dataclass whose fields are settings."""
    table, kinds = {}, get_type_hints(kind)
    for each in fields(kind):
        about: dict[str, Any] = {"option": each.name} | dict(each.metadata)
        table[each.name] = Setting(each.name, kinds[each.name], each.default, **about)
    return table


def option_names(kind: type) -> tuple[str, ...]:
    """Return the names of the options of a dataclass, in order, with _ for -."""
    return tuple(each.option for each in settings_of(kind).values())


def check(config: Any) -> None:
    """Raise UsageError for the first field of a dataclass of settings that is not allowed."""
    for name, each in settings_of(type(config)).items():
        value = getattr(config, name)
        if getattr(value, "shape", None) == ():  # a number of NumPy: files hold those of Python
            value = value.item()
            object.__setattr__(config, name, value)
        each.check(value)


def chosen(given: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return {field: value} of the options that belong to kind; given: {option: value or None}."""
    return {
        name: given[each.option]
        for name, each in settings_of(kind).items()
        if given.get(each.option) is not None
    }


def take(given: dict[str, Any], *kinds: type) -> list[Any]:
    """Return one dataclass of each kind, made from given: {option: value or None}."""
    return [kind(**chosen(given, kind)) for kind in kinds]


SEED: dict[str, Any] = {  # the key width of Philox4x64
    "metavar": "S",
    "low": 0,
    "below": 2**64,
    "expected": "an integer from 0 to 2^64 - 1",
}


@dataclass(frozen=True)
class LossConfig:
    """Weights of the three terms; T^2 KL summed over classes and averaged over the batch.

    The defaults are those with which a record was seen to pay (docs/results.md, the second study).
    """

    kd_weight: float = setting(
        0.9,
        group="Loss",
        metavar="A",
        help="a: share of distillation.",
        more="1 - a is the share of the labels.",
        low=0,
        high=1,
        expected="a from 0 to 1",
    )
    self_weight: float = setting(
        0.0,
        group="Loss",
        metavar="B",
        help="b: subtracted self-distillation.",
        more="With the guard it must be less than a / 2.",
        low=0,
        expected="b >= 0 (it is subtracted)",
    )
    temperature: float = setting(
        2.0,
        group="Loss",
        metavar="T",
        help="T of both divergences.",
        low=1,
        high=1e6,  # T^2 must stay far from what float32 holds
        expected="1 <= T <= 1e6",
    )
    label_smoothing: float = setting(
        0.0,
        group="Loss",
        metavar="E",
        help="e of the label term.",
        more="y = (1 - e) onehot + e / K.",
        low=0,
        below=1,
        expected="0 <= e < 1",
    )
    guard: str = setting(
        "clip",
        group="Loss",
        help="Keeps the negative weight bounded.",
        more="clip: (L8), bounded and convex; none: the raw (L5).",
        choices=("clip", "none"),
    )

    def __post_init__(self) -> None:
        check(self)
        a, b = self.kd_weight, self.self_weight
        if self.guard == "clip" and b > 0 and not b < a / 2:
            raise UsageError(
                f"self weight: the guard needs b < a / 2 = {a / 2:g}, got b = {b:g}; "
                "lower --self-weight, raise --kd-weight, or audit the raw loss with --guard none"
            )


@dataclass(frozen=True)
class SelfConfig:
    """Which earlier self, and how early."""

    kind: str = setting(
        "snapshot",
        option="self_target",
        group="Earlier self",
        help="What the earlier self is.",
        more="snapshot: the student at the end of an epoch; ema: a moving average of its weights; "
        "history: its logits at its last visit to the cloud; record: a second record.",
        choices=("snapshot", "ema", "history", "record"),
    )
    every: int = setting(
        1,
        option="self_every",
        group="Earlier self",
        metavar="N",
        help="Epochs between snapshots.",
        low=1,
        expected="at least 1 epoch",
    )
    decay: float = setting(
        0.99,
        option="ema_decay",
        group="Earlier self",
        metavar="M",
        help="m of the moving average, per step.",
        low=0,
        below=1,
        expected="0 <= m < 1",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, from which seed."""

    val_fraction: float = setting(
        0.0,
        group="Epochs",
        metavar="F",
        help="Share of the training clouds held out to choose best.h5 by.",
        more="Of each class.",
        low=0,
        below=1,
        expected="0 <= f < 1",
    )
    labels_per_class: int = setting(
        0,
        group="Epochs",
        metavar="N",
        help="Labels kept of each class, at random; the others are forgotten.",
        more="0 keeps all. Clouds held out for validation keep theirs.",
        low=0,
        expected="an integer >= 0",
        unless_given="all; 5 without arguments",
    )
    epochs: int = setting(
        60,
        group="Epochs",
        metavar="N",
        help="Passes over the training clouds.",
        low=1,
        expected="a positive integer",
        unless_given="60; 40 without arguments",
    )
    batch_size: int = setting(
        32,
        group="Steps",
        metavar="N",
        help="Clouds in a step, at least 2.",
        more="The last incomplete batch of an epoch is dropped.",
        low=1,
        expected="a positive integer",
    )
    lr: float = setting(
        1e-2,
        group="Steps",
        metavar="RATE",
        help="Largest learning rate.",
        more="After the warm-up.",
        above=0,
        expected="a positive number",
        unless_given="1e-2; 1e-3 for teacher",
    )
    weight_decay: float = setting(
        1e-2,
        group="Steps",
        metavar="W",
        help="On the weights of linear layers alone.",
        low=0,
        expected="a value >= 0",
    )
    warmup_steps: int = setting(
        200,
        group="Steps",
        metavar="N",
        help="Steps over which the learning rate rises.",
        more="It rises linearly, then falls to zero as a cosine.",
        low=0,
        expected="an integer >= 0",
    )
    optimiser: str = setting(
        "adamw", group="Steps", help="sgd has momentum 0.9.", choices=("adamw", "sgd")
    )
    clip_norm: float = setting(
        0.0,
        group="Steps",
        metavar="NORM",
        help="Largest gradient norm.",
        more="The joint 2-norm of all gradients.",
        low=0,
        expected="a value >= 0",
        unless_given="no clipping",
    )
    seed: int = setting(
        0, group="Steps", help="Of the first weights, the shuffles and dropout.", **SEED
    )
    average: str = setting(
        "none",
        group="Averaging",
        help="Which weights are measured and kept as the model.",
        more="none: the live ones; ema: their moving average over steps; last: their mean at the "
        "ends of the last epochs. Training goes on from the live ones.",
        choices=("none", "ema", "last"),
    )
    average_decay: float = setting(
        0.999,
        group="Averaging",
        metavar="M",
        help="m of ema, per step.",
        more="The bias of its start is divided out.",
        low=0,
        below=1,
        expected="0 <= m < 1",
    )
    average_epochs: int = setting(
        10,
        group="Averaging",
        metavar="N",
        help="Epochs of last.",
        more="Each is a copy of the weights in the checkpoint.",
        low=1,
        high=1000,
        expected="1 to 1000 epochs",
    )
    augment_width: float = setting(
        1.0,
        group="Network augmentation",
        metavar="R",
        help="r: the widest network has r times the model's widths.",
        more="In each step one of the wider networks, of which the model is a part, learns too.",
        low=1,
        high=16,
        expected="1 (none) to 16",
        unless_given="no augmentation",
    )
    augment_steps: int = setting(
        2,
        group="Network augmentation",
        metavar="N",
        help="Widths a layer may have beside its own.",
        more="Evenly spaced up to r times.",
        low=1,
        high=64,
        expected="1 to 64",
    )
    augment_every: str = setting(
        "step",
        group="Network augmentation",
        help="When widths are drawn.",
        choices=("step", "epoch"),
    )
    augment_share: float = setting(
        0.5,
        group="Network augmentation",
        metavar="F",
        help="Share of the epochs with it, the first ones.",
        above=0,
        high=1,
        expected="0 < f <= 1",
    )
    engine: str = setting(
        "fused",
        group="Machine",
        help="textbook: the same operation by operation, slower.",
        more="They round differently.",
        choices=("fused", "textbook"),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size < 2:
            raise UsageError("batch size: batch norm in the head needs at least 2 clouds, got 1")

    def augments(self, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, trains a widened network beside the model."""
        return self.augment_width > 1 and epoch < self.augment_share * self.epochs

    def last_epoch(self, stop_after: int | None, done: int = 0) -> int:
        """Return the epoch to stop after: all of them for None.  Raises UsageError.

        done: epochs that are done already.
        """
        if stop_after is None:
            return self.epochs
        if not 1 <= stop_after <= self.epochs:
            raise UsageError(f"stop after: expected 1 to {self.epochs} epochs, got {stop_after}")
        if stop_after < done:
            raise UsageError(
                f"stop after: {done} epochs are done already, got {stop_after}; leave it out"
            )
        return stop_after

    def steps_per_epoch(self, clouds: int) -> int:
        """Return the whole batches in this many clouds; UsageError where there is none."""
        if clouds < self.batch_size:
            raise UsageError(
                f"batch size: {self.batch_size} is more than the {clouds} training clouds; lower it"
            )
        return clouds // self.batch_size


@dataclass(frozen=True)
class RecordConfig:
    """How many views, drawn from which seed, stored how."""

    views: int = setting(
        10,
        group="Recording",
        metavar="N",
        help="Augmented views of each cloud.",
        low=1,
        high=100_000,  # as many as the names of shards have digits for
        expected="1 to 100000",
    )
    seed: int = setting(0, group="Recording", help="Seed of the views.", **SEED)
    logits: str = setting(
        "float16",
        group="Recording",
        help="How logits are stored.",
        choices=("float16", "float32"),
    )
    with_clouds: bool = setting(
        False,
        group="Recording",
        help="Embed training and test clouds: one file trains a student.",
    )

    def __post_init__(self) -> None:
        check(self)
