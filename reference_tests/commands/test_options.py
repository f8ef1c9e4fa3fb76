"""Options: a flag wins over the environment, that over a config file, that over the default."""

import itertools
import os
import stat
from contextlib import suppress

import click
import pytest

from minipc.cli.main import minipc
from minipc.cli.options import FILE, Verb, options_of, verbs_below

VERBS = verbs_below(minipc)
TRIED = [
    ("7", "8", "9"),
    ("0.25", "0.5", "0.75"),
    ("0:1", "0:2", "0:3"),
    ("0/2", "0/3", "1/3"),
]  # what options take
OPTIONS = [(verb, name) for verb in VERBS for name in options_of(VERBS[verb])]
# An option named as another verb's that means something else: it has a variable of its own.
OTHER_VARIABLE = {("eval", "--logits"): "MINIPC_LOGITS_FILE"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, folder):
    """Without the user's MINIPC_ variables, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("MINIPC_")]:
        monkeypatch.delenv(name)


def parsed(verb, *arguments):
    """Return the parameters of a verb after click and we have read a command line."""
    context = click.Context(minipc, info_name="minipc")
    *groups, name = verb.split(".")
    for group in groups:
        context = click.Context(
            context.command.get_command(context, group), info_name=group, parent=context
        )
    return VERBS[verb].make_context(name, list(arguments), parent=context).params


def needed(verb, but):
    """Return a command line with what the verb does not do without, but for one option."""
    words = [
        "x"
        for parameter in VERBS[verb].params
        if isinstance(parameter, click.Argument) and parameter.required
    ]
    for name, option in options_of(VERBS[verb]).items():
        if option.required and name != but:
            words += [f"--{name}", "x"]
    return words


def three_values(option):
    """Return [(as typed, as a verb gets it)] for the flag, the variable and the file."""
    if option.is_flag:
        return ("", True), ("0", False), ("true", True)
    choices = list(getattr(option.type, "choices", []))
    tried = [(choices[0], choices[1], choices[-1])] if choices else TRIED
    for texts in tried:
        with suppress(click.BadParameter):
            return [(text, option.type.convert(text, option, None)) for text in texts]
    raise AssertionError(f"{option.opts}: add values that this option takes to TRIED")


@pytest.mark.parametrize("verb, name", [pair for pair in OPTIONS if pair[1] != "config"])
def test_a_flag_wins_over_the_variable_that_over_the_file_that_over_the_default(
    verb, name, monkeypatch, folder
):
    option = options_of(VERBS[verb])[name]
    flag, variable, written = three_values(option)
    in_file = written[0] if option.is_flag else f'"{written[0]}"'
    for typed, exported, filed in itertools.product([True, False], repeat=3):
        words = needed(verb, name)
        if typed:
            words += [f"--{name}", *([] if option.is_flag else [flag[0]])]
        (folder / "c.toml").write_text(f"[{verb}]\n" + (f"{name} = {in_file}\n" if filed else ""))
        with monkeypatch.context() as patch:
            if exported:
                patch.setenv(option.envvar, variable[0])
            if not typed and not exported and not filed and option.required:
                with pytest.raises(click.MissingParameter):
                    parsed(verb, "--config", "c.toml", *words)
                continue
            value = parsed(verb, "--config", "c.toml", *words)[option.name]
        default = parsed(verb, *words)[option.name] if not typed and not option.required else None
        expected = (
            flag[1] if typed else variable[1] if exported else written[1] if filed else default
        )
        assert value == expected and type(value) is type(expected), (typed, exported, filed)


def test_every_option_of_every_verb_has_its_variable():
    for name, verb in VERBS.items():
        assert isinstance(verb, Verb), name
        assert {"quiet", "verbose", "json", "config"} <= set(options_of(verb)), name
        for parameter in verb.params:
            if isinstance(parameter, click.Option):
                long = [word for word in parameter.opts if word.startswith("--")]
                usual = "MINIPC_" + long[0][2:].upper().replace("-", "_")
                assert parameter.envvar == OTHER_VARIABLE.get((name, long[0]), usual)


def test_a_variable_means_the_same_in_every_verb():
    of_variable = {}
    for verb, name in OPTIONS:
        option = options_of(VERBS[verb])[name]
        if name not in ("seed", "views"):  # other things in other verbs
            of_variable.setdefault(option.envvar, set()).add((repr(option.type), option.is_flag))
    assert not [variable for variable, kinds in of_variable.items() if len(kinds) > 1]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_option_once_below_the_heading_of_its_group(verb, say):
    headings, group_of = [], {}
    for line in say(*verb.split("."), "--help")[1].splitlines():
        if line.endswith(":") and not line.startswith(" "):
            headings.append(line[:-1])
        elif headings and line.startswith("  -"):
            words = line[2:].split("  ")[0].split()  # "-o, --out FILE"
            (name,) = (word[2:] for word in words if word.startswith("--"))
            assert name not in group_of
            group_of[name] = headings[-1]
    assert group_of.pop("help") == headings[-1] == "Messages"
    assert group_of == {name: option.group for name, option in options_of(VERBS[verb]).items()}
    assert len(headings) == len(set(headings))


def test_the_help_of_a_number_shows_its_letter_and_not_its_type(say):
    for verb in VERBS:
        out = say(*verb.split("."), "--help")[1]
        assert not any(word in out for word in ("INTEGER", "FLOAT", "TEXT", "PATH")), verb


def test_an_option_of_several_verbs_has_one_type_and_one_group():
    of_name = {}
    for verb, name in OPTIONS:
        option = options_of(VERBS[verb])[name]
        other = name in ("seed", "views") or (verb, f"--{name}") in OTHER_VARIABLE
        if not other:  # than in other verbs
            of_name.setdefault(name, set()).add((repr(option.type), option.group, option.is_flag))
    assert not [name for name, kinds in of_name.items() if len(kinds) > 1]


def test_the_help_of_the_group_names_the_three_places(say):
    _, out, _ = say("--help")
    assert "MINIPC_EPOCHS" in out and "--config" in out
    assert "MINIPC_" not in say("train", "--help")[1]


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    for name in ("EPOCHS", "LR", "QUIET", "OUT", "BACKEND", "CONFIG"):
        monkeypatch.setenv(f"MINIPC_{name}", "")
    values = parsed("train")
    assert (values["epochs"], values["lr"], values["quiet"], values["backend"]) == (
        None,
        None,
        False,
        "auto",
    )


def test_the_config_file_can_be_named_by_its_variable(monkeypatch, folder):
    (folder / "c.toml").write_text("[train]\nepochs = 3\n")
    (folder / "d.toml").write_text("[train]\nepochs = 4\n")
    monkeypatch.setenv("MINIPC_CONFIG", "c.toml")
    assert parsed("train")["epochs"] == 3
    assert parsed("train", "--config", "d.toml")["epochs"] == 4


def test_help_and_completion_do_without_the_config_file(monkeypatch, say):
    monkeypatch.setenv("MINIPC_CONFIG", "none.toml")
    assert say("train", "--help")[0] == 0
    assert say("train")[0] == 3


@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("MINIPC_EPOCHS", "many", "train"),
        ("MINIPC_LR", "fast", "train"),
        ("MINIPC_GUARD", "maybe", "train"),
        ("MINIPC_QUIET", "perhaps", "train"),
        ("MINIPC_THREADS", "0", "record"),
        ("MINIPC_VIEWS", "0", "record"),  # click takes this one; the recorder does not
        ("MINIPC_SEED", "-1", "record"),
        ("MINIPC_QUIET", "1", "doctor -v"),
    ],
)
def test_a_wrong_value_of_a_variable_is_exit_2_and_the_message_names_it(
    variable, value, words, monkeypatch, say
):
    monkeypatch.setenv(variable, value)
    code, out, err = say(*words.split())
    assert (
        (code, out) == (2, "") and variable in err and err.splitlines()[-1].startswith("minipc: ")
    )


def test_a_variable_that_was_overruled_is_not_blamed(monkeypatch, say):
    monkeypatch.setenv("MINIPC_VIEWS", "0")
    code, _, err = say("record", "--views", -1)
    assert code == 2 and "MINIPC_VIEWS" not in err


CONFIGS = [
    (
        2,
        "[train]\nepohs = 3",
        "train",
        "c.toml: [train]: epohs: unknown option; did you mean epochs?",
    ),
    (2, "[train]\nkd_weight = 0.5", "train", "kd_weight: unknown option; did you mean kd-weight?"),
    (2, "[train]\nconfig = 'd.toml'", "train", "config: unknown option"),
    (
        2,
        "[train]\nepochs = 4.5",
        "train",
        "epochs in [train] of c.toml: '4.5' is not a valid integer",
    ),
    (2, "[train]\nepochs = 'x'", "train", "epochs in [train] of c.toml: 'x'"),
    (2, "[train]\nepochs = true", "train", "epochs: expected text or a number, found boolean True"),
    (2, "[train]\nepochs = [1, 2]", "train", "epochs: expected text or a number, found list"),
    (2, "[train]\nepochs = 1979-05-27", "train", "epochs: expected text or a number, found date"),
    (2, f"[train]\nepochs = 0x{'f' * 6000}", "train", "epochs: expected text or a number"),
    (2, '[train]\nout = "a\\u0000b"', "train", "out: expected text or a number"),
    (2, "[train]\nlabels-only = 1", "train", "labels-only: expected true or false, found number 1"),
    (
        2,
        "[train]\nlabels-only = 'yes'",
        "train",
        "labels-only: expected true or false, found text 'yes'",
    ),
    (2, "[train.epochs]\nx = 1", "train", "epochs: expected text or a number, found dict"),
    (2, "[train]\nself-weight = 0.5\nrecord = 'r'", "train", "self-weight in [train] of c.toml"),
    (2, "[trian]\nepochs = 4", "train", "c.toml: trian: unknown table; did you mean train?"),
    (2, "[trian]\nepochs = 4", "doctor", "trian"),
    (2, "[data.pakc]\nout = 'x'", "doctor", "did you mean data.pack?"),
    (2, "[data]\nout = 'x'", "doctor", "data.out: unknown key"),
    (2, "epochs = 4", "train", "c.toml: epochs: unknown key outside of tables"),
    (2, "train = 4", "train", "c.toml: train: expected a table, found number 4; write [train]"),
    (2, "data = 'x'", "train", "c.toml: data: expected a table"),
    (3, "[train", "train", "c.toml: cannot be read as TOML"),
    (3, "[train]\nepochs = 1\nepochs = 2", "train", "cannot be read as TOML"),
    (3, "x = " + "[" * 5000, "train", "cannot be read as TOML"),
    (3, "# " + "x" * (1 << 20), "train", "at most"),
]


@pytest.mark.parametrize("code, text, words, named", CONFIGS, ids=lambda value: str(value)[:20])
def test_every_mistake_in_a_config_file_is_one_line(code, text, words, named, folder, say):
    (folder / "c.toml").write_text(text)
    exit_code, out, err = say(*words.split(), "--config", "c.toml")
    assert (exit_code, out) == (code, ""), err
    assert named in err and err.count("\n") == 1 and len(err) < 600, err


@pytest.mark.parametrize(
    "name, named",
    [
        ("none.toml", "No such file"),
        ("folder", "found a folder"),
        ("pipe", "found a pipe"),
        ("latin.toml", "TOML"),
    ],
)
def test_a_config_file_that_is_none_is_exit_3_and_never_a_hang(name, named, folder, say):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "latin.toml").write_bytes(b"[train]\nout = '\xe9'\n")
    code, out, err = say("train", "--config", name)
    assert (code, out) == (3, "") and named in err and name in err and err.count("\n") == 1


def test_tables_of_other_verbs_are_theirs(folder, say):
    (folder / "c.toml").write_text(
        "[train]\nnonsense = [1]\n[data.pack]\nout = 3\n[doctor]\njson = true\n"
    )
    code, out, err = say("doctor", "--config", "c.toml")
    assert code == 0 and out.startswith("{"), err


def test_numbers_of_a_file_are_parsed_as_if_typed(folder):
    (folder / "c.toml").write_text(
        "[train]\nepochs = '4'\nlr = 1\nkd-weight = 1e-1\nmodel = '8-16:8'\n"
    )
    values = parsed("train", "--config", "c.toml")
    assert [values[name] for name in ("epochs", "lr", "kd_weight", "model")] == [
        4,
        1.0,
        0.1,
        "8-16:8",
    ]
    assert type(values["lr"]) is float


def test_a_variable_for_all_commands_does_not_contradict_labels_only(data, say, monkeypatch):
    monkeypatch.setenv("MINIPC_KD_WEIGHT", "0.5")
    code, _, err = say("train", data, "--labels-only", "--epochs", 1, "--model", "8:8", "--quiet")
    assert code == 0, err


def test_verbose_shows_the_traceback_of_an_expected_failure_beside_its_line(say):
    code, _, err = say("eval", "none.h5", "-v")
    assert code == 3 and "Traceback" in err and "FileNotFoundError" in err
    assert err.splitlines()[-1].startswith("minipc: none.h5: cannot be read")
    assert err.splitlines()[-1] == say("eval", "none.h5")[2].strip()


def test_quiet_and_verbose_together_are_exit_2(say):
    for verb in VERBS:
        code, out, err = say(*verb.split("."), *needed(verb, None), "-q", "-v")
        assert (code, out) == (2, "") and "contradict" in err and err.count("\n") == 1, verb


def test_details_are_for_verbose_alone(capsys):
    from minipc.cli.show import Console

    for quiet, verbose in ((False, False), (True, False), (False, True)):
        Console(quiet, verbose).detail(f"verbose {verbose}")
    assert capsys.readouterr().err == "verbose True\n"


def test_click_says_nothing_about_a_file(folder):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "closed").write_text("")
    (folder / "closed").chmod(0)
    for name in ("folder", "pipe", "closed", "none", "none/none", "-", "x" * 5000):
        assert FILE.convert(name, None, None) == name
    assert stat.S_IMODE((folder / "closed").stat().st_mode) == 0


@pytest.mark.parametrize(
    "words, meant", [("trian", "train"), ("data pakc", "pack"), ("train --epohs 3", "--epochs")]
)
def test_a_mistyped_word_is_answered_with_what_was_meant(words, meant, say):
    code, out, err = say(*words.split())
    assert (code, out) == (2, "") and meant in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("MINIPC_TEMPERATURE", "4", "audit --list"),
        ("MINIPC_RECORD", "r.h5", "audit --list"),
        ("MINIPC_KD_WEIGHT", "0.9", "loss --from deit=0.5"),
        ("MINIPC_NUM_POINTS", "64", "data check {data}"),
        ("MINIPC_SAMPLE", "64", "verify record.h5"),
    ],
)
def test_a_variable_for_other_commands_stops_none(name, value, words, data, say, monkeypatch):
    if "record.h5" in words:
        quick = ("--epochs", 1, "--model", "8:8", "--quiet")
        assert say("train", data, "--labels-only", "--out", "teacher", *quick)[0] == 0
        made = say("record", data, "--teacher", "teacher", "--views", 1, "--force", "--quiet")
        assert made[0] == 0
    monkeypatch.setenv(name, value)
    code, _, err = say(*words.format(data=data).split())
    assert code == 0, err
