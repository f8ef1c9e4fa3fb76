"""One table of settings: what follows from it, and that nothing out of its bounds gets through.

docs/settings.md shows it, and the other options.  After a change of an option write the page anew:
MINIPC_WRITE_SETTINGS=1 python -m pytest reference_tests/commands/test_settings.py
"""

import os
from math import inf, nan
from pathlib import Path

import pytest

from minipc.cli.main import minipc
from minipc.cli.options import options_of, verbs_below
from minipc.errors import UsageError
from minipc.nn.engine import ENGINES
from minipc.settings import (
    LossConfig,
    RecordConfig,
    SelfConfig,
    TrainConfig,
    chosen,
    option_names,
    settings_of,
    take,
)
from minipc.streams import check_seed

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
VERBS = verbs_below(minipc)
KINDS = {  # with the verbs that take their settings
    LossConfig: ("train", "loss", "audit"),
    SelfConfig: ("train",),
    TrainConfig: ("train",),
    RecordConfig: ("record",),
}
ALSO = {"engine": ("record", "verify", "eval", "predict", "bench")}
WITHOUT = {("audit", "guard")}  # it looks at the loss without the guard
OTHER = {("audit", "self_weight"): 0.2}  # a default of its own
EACH = [(kind, each) for kind in KINDS for each in settings_of(kind).values()]
HEAD = """# Settings

Every option of every verb, with its variable and its key in a file of settings. The first tables
hold the settings that change what is computed; each is a field of a dataclass in
`minipc/settings.py`. The last table holds the other options: they name files, or say how to run.
This page is made from the options themselves.
"""


def verbs_of(each, verbs):
    """Return the verbs that take a setting, from those of its dataclass."""
    return [verb for verb in verbs if (verb, each.option) not in WITHOUT] + [
        *ALSO.get(each.option, ())
    ]


EDGES = {  # of each setting that is a number: values that pass, values that do not
    (LossConfig, "kd_weight"): ([0, 1], [-1e-9, 1 + 1e-9]),
    (LossConfig, "self_weight"): ([0, 1e300], [-1e-9]),
    (LossConfig, "temperature"): ([1, 1e6], [1 - 1e-9, 1e6 + 1e-3]),
    (LossConfig, "label_smoothing"): ([0, 1 - 1e-9], [-1e-9, 1]),
    (SelfConfig, "every"): ([1, 1000], [0]),
    (SelfConfig, "decay"): ([0, 1 - 1e-9], [-1e-9, 1]),
    (TrainConfig, "val_fraction"): ([0, 1 - 1e-9], [-1e-9, 1]),
    (TrainConfig, "labels_per_class"): ([0, 10**6], [-1]),
    (TrainConfig, "epochs"): ([1, 10**6], [0]),
    (TrainConfig, "batch_size"): ([2, 1024], [0, 1]),
    (TrainConfig, "lr"): ([1e-300, 100], [0.0, -1e-9]),
    (TrainConfig, "weight_decay"): ([0, 1], [-1e-9]),
    (TrainConfig, "warmup_steps"): ([0, 10**6], [-1]),
    (TrainConfig, "clip_norm"): ([0, 100], [-1e-9]),
    (TrainConfig, "average_decay"): ([0, 1 - 1e-9], [-1e-9, 1]),
    (TrainConfig, "average_epochs"): ([1, 1000], [0, 1001]),
    (TrainConfig, "augment_width"): ([1, 16], [1 - 1e-9, 16 + 1e-9]),
    (TrainConfig, "augment_steps"): ([1, 64], [0, 65]),
    (TrainConfig, "augment_share"): ([1e-9, 1], [0, 1 + 1e-9]),
    (TrainConfig, "seed"): ([0, 2**64 - 1], [-1, 2**64]),
    (RecordConfig, "views"): ([1, 100_000], [0, 100_001]),
    (RecordConfig, "seed"): ([0, 2**64 - 1], [-1, 2**64]),
}


def test_every_number_has_its_edges_tried():
    assert set(EDGES) == {(kind, each.name) for kind, each in EACH if each.kind in (int, float)}


@pytest.mark.parametrize("kind, name", EDGES, ids=lambda value: getattr(value, "__name__", value))
def test_the_last_value_within_a_bound_passes_and_one_beyond_it_is_refused(kind, name):
    within, beyond = EDGES[kind, name]
    free = {"guard": "none"} if kind is LossConfig else {}  # it bounds b by a
    for value in within:
        assert getattr(kind(**{name: value}, **free), name) == value
    for value in beyond:
        with pytest.raises(UsageError, match=f"^{settings_of(kind)[name].label}: .*, got "):
            kind(**{name: value}, **free)


def test_a_refused_value_is_told_with_the_values_that_are_allowed():
    for wrong, said in [
        (lambda: LossConfig(kd_weight=2), "kd weight: expected a from 0 to 1, got 2"),
        (lambda: TrainConfig(batch_size=0), "batch size: expected a positive integer, got 0"),
        (lambda: TrainConfig(warmup_steps=2.5), "warmup steps: expected an integer >= 0, got 2.5"),
        (lambda: TrainConfig(optimiser="adam"), "optimiser: expected adamw or sgd, got 'adam'"),
        (lambda: SelfConfig(every="2"), "self every: expected at least 1 epoch, got '2'"),
        (lambda: RecordConfig(views=0), "views: expected 1 to 100000, got 0"),
        (lambda: RecordConfig(with_clouds=1), "with clouds: expected true or false, got 1"),
    ]:
        with pytest.raises(UsageError) as refused:
            wrong()
        assert str(refused.value) == said


@pytest.mark.parametrize("wrong", [nan, inf, -inf, None, "text", "1", 0.5, [], (1,)], ids=repr)
@pytest.mark.parametrize("kind, each", EACH, ids=lambda value: getattr(value, "name", None))
def test_what_is_no_value_of_a_setting_is_refused_in_one_line(kind, each, wrong):
    if wrong == 0.5 and each.kind is float:
        return  # is one
    with pytest.raises(UsageError, match=f"^{each.label}: expected ") as refused:
        kind(**{each.name: wrong})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind, each", EACH, ids=lambda value: getattr(value, "name", None))
def test_every_setting_has_a_group_and_people_are_told_its_values_and_meaning(kind, each):
    assert each.group and each.values and (each.help or each.more)
    assert each.kind in (int, float, str, bool) and type(each.default) is each.kind
    each.check(each.default)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_an_option_of_its_verbs_with_its_default(kind):
    for each in settings_of(kind).values():
        for verb in verbs_of(each, KINDS[kind]):
            option = options_of(VERBS[verb])[each.option.replace("_", "-")]
            default = None if each.unless_given else each.default
            assert option.default == OTHER.get((verb, option.name), default)
            assert (option.help or "").startswith(each.help)


def test_no_two_settings_of_a_verb_have_the_same_option():
    names = [name for kind in KINDS if "train" in KINDS[kind] for name in option_names(kind)]
    assert len(names) == len(set(names))


def test_settings_are_taken_from_options_by_their_names_and_none_leaves_the_default():
    given = {"kd_weight": 0.75, "self_target": "ema", "ema_decay": 0.5, "epochs": None, "out": "x"}
    loss, training, earlier = take(given, LossConfig, TrainConfig, SelfConfig)
    assert (loss, training) == (LossConfig(kd_weight=0.75), TrainConfig())
    assert earlier == SelfConfig(kind="ema", decay=0.5)
    assert chosen(given, SelfConfig) == {"kind": "ema", "decay": 0.5}


def test_seeds_and_engines_are_those_of_the_table():
    assert set(settings_of(TrainConfig)["engine"].choices) == set(ENGINES)
    check_seed(2**64 - 1)
    with pytest.raises(UsageError, match=r"^seed: expected an integer from 0 to 2\^64 - 1, got -1"):
        check_seed(-1)


def default_of(each, verbs):
    """Return the default for people, with that of a verb which has another one."""
    said = each.unless_given or ("off" if each.kind is bool else each.default)
    others = [verb for verb in verbs if (verb, each.option) in OTHER]
    return "; ".join([f"{said}", *(f"{OTHER[verb, each.option]} for `{verb}`" for verb in others)])


def three_places(name, variable=None):
    """Return the cells of an option, its variable and its key; --config is no key of a file."""
    key = "" if name == "config" else f"`{name}`"
    usual = f"MINIPC_{name.replace('-', '_').upper()}"
    return [f"`--{name}`", f"`{variable or usual}`", key]


def escaped(text):
    return text.replace("<", r"\<").replace(">", r"\>").replace("|", r"\|")


def as_typed(verb):
    return f"`{verb.replace('.', ' ')}`"


def other_options():
    """Return {(name, variable, default, values, meaning): verbs} of all that are no settings."""
    settings = {
        (verb, each.option.replace("_", "-"))
        for kind, verbs in KINDS.items()
        for each in settings_of(kind).values()
        for verb in verbs_of(each, verbs)
    }
    rows = {}
    for verb, command in VERBS.items():
        for name, option in options_of(command).items():
            if (verb, name) not in settings:
                meaning, _, words = option.help.partition("  [default: ")
                default = words.rstrip("]") or plain_default(option)
                row = (name, option.envvar, default, values(option), meaning)
                rows.setdefault(row, []).append(verb)
    return rows


def plain_default(option):
    if option.required:
        return "required"
    default = option.to_info_dict()["default"]
    return "off" if option.is_flag else "" if default is None else str(default)


def values(option):
    """Return the values of an option for people."""
    if option.is_flag:
        return "true or false"
    if choices := getattr(option.type, "choices", ()):
        return (" or " if len(choices) == 2 else ", ").join(choices)
    low, high = (getattr(option.type, end, None) for end in ("min", "max"))
    if low is not None:
        return f"at least {low}" if high is None else f"{low} to {high}"
    return f"`{option.metavar or option.type.name}`"


def test_every_option_of_every_verb_is_on_the_page():
    for verb, command in VERBS.items():
        for name in options_of(command):
            rows = [line for line in PAGE.read_text().splitlines() if f"| `--{name}` |" in line]
            assert any(as_typed(verb) in row or "| every verb |" in row for row in rows), (
                verb,
                name,
            )


def page():
    lines = [HEAD]
    for kind, verbs in KINDS.items():
        lines += [
            f"## {kind.__name__}\n\n{' '.join(kind.__doc__.split())}\n",
            "| option | variable | key | verbs | default | values | meaning | field |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for each in settings_of(kind).values():
            of = verbs_of(each, verbs)
            cells = [
                *three_places(each.option.replace("_", "-")),
                ", ".join(f"`{verb}`" for verb in of),
                default_of(each, of),
                escaped(each.values),
                f"{each.help} {each.more}".strip(),
                f"`{each.name}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "## Other options\n",
        "| option | variable | key | verbs | default | values | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, variable, default, allowed, meaning), verbs in sorted(other_options().items()):
        of = "every verb" if len(verbs) == len(VERBS) else ", ".join(map(as_typed, verbs))
        cells = [*three_places(name, variable), of, default, escaped(allowed), escaped(meaning)]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    return "\n".join(lines)


def test_the_page_shows_the_table():
    if os.environ.get("MINIPC_WRITE_SETTINGS"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "the head of this file says how to write the page anew"
