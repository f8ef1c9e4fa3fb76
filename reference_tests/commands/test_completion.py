"""Completion in shells, by the protocol between click's script for the shell and the command."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from minipc.cli.completion import classes

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "zsh", "fish")


def run(instruction, code="from minipc.__main__ import main; main()", **variables):
    """Run the command as a shell does for completion; return what it prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MINIPC_")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment | {"_MINIPC_COMPLETE": instruction} | variables,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def completions(shell, words, **variables):
    """Return [(type, value)] for the last of words, which may be empty."""
    place = words.split(" ")[-1] if shell == "fish" else str(len(words.split(" ")) - 1)
    out = run(f"{shell}_complete", COMP_WORDS=words, COMP_CWORD=place, **variables).splitlines()
    if shell == "zsh":
        # three lines each; where nothing fits there is one empty line
        return list(zip(out[::3], out[1::3], strict=False))
    return [tuple(line.split("\t")[0].split(",", 1)) for line in out if line]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "words, wanted",
    [
        ("minipc tr", [("plain", "train")]),
        ("minipc data p", [("plain", "pack")]),
        ("minipc train --kd", [("plain", "--kd-weight")]),
        ("minipc train --guard c", [("plain", "clip")]),
        ("minipc data pack --num", [("plain", "--num-points")]),
        ("minipc predict x.xyz --turn ", [("plain", axis) for axis in "xyz"]),
        ("minipc nothing x", []),
    ],
)
def test_verbs_options_and_choices_are_completed(shell, words, wanted):
    assert completions(shell, words) == wanted


@pytest.mark.parametrize(
    "words, wanted",
    [
        ("minipc train --model te", ["teacher"]),
        ("minipc train --model local-", ["local-teacher", "local-student", "local-tiny"]),
        ("minipc audit --inject sign-of-", ["sign-of-b"]),
        ("minipc audit --inject al", ["all"]),
        ("minipc loss --from de", ["deit="]),
    ],
)
def test_names_of_models_mutants_and_libraries_are_completed(words, wanted):
    assert completions("bash", words) == [("plain", value) for value in wanted]


def test_classes_of_the_data_files_named_before_are_completed(data, folder):
    (folder / "text.h5").write_text("no data")
    context = click.Context(click.Command("show"))
    context.params = {"files": ("none.h5", "text.h5", data), "out": None, "count": 3}
    assert classes(context, None, "") == ["flat", "long", "round"]
    assert classes(context, None, "ro") == ["round"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "words",
    [
        "minipc info sha",
        "minipc record da",
        "minipc record x.h5 --teacher te",
        "minipc train --config c",
        "minipc train --record r",
        "minipc eval m",
        "minipc data pack s",
        "minipc data make --out o",
    ],
)
def test_file_names_are_left_to_the_shell(shell, words):
    assert completions(shell, words) == [("file", words.split()[-1])]


def test_all_verbs_are_offered():
    from minipc.cli.main import VERBS

    assert [name for _, name in completions("bash", "minipc ")] == list(VERBS)


@pytest.mark.parametrize(
    "shell, says",
    [
        ("bash", "complete -o nosort"),
        ("zsh", "#compdef minipc"),
        ("fish", "complete "),
    ],
)
def test_the_script_for_a_shell_is_printed(shell, says):
    script = run(f"{shell}_source")
    assert says in script and f"_MINIPC_COMPLETE={shell}_complete" in script


def test_completion_loads_no_numerical_library():
    code = (
        "import sys\nfrom minipc.__main__ import main\ntry:\n    main()\n"
        "finally:\n    print(*{'numpy', 'scipy', 'h5py'} & set(sys.modules), 'loaded')"
    )
    out = run("bash_complete", code, COMP_WORDS="minipc train --ba", COMP_CWORD="2")
    assert out.split() == ["plain,--batch-size", "plain,--backend", "loaded"]


def test_completion_needs_no_config_file():
    assert completions("bash", "minipc train --kd", MINIPC_CONFIG="none.toml", MINIPC_EPOCHS="many")
