"""What the pages say runs: code blocks, commands, links, the file table, the examples."""

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from minipc.cli.main import minipc

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Return every `minipc ...` line of the sh blocks of a page, without its comment."""
    lines = "".join(blocks(text, "sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("minipc")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    for code in blocks(page.read_text(), "python"):
        exec(compile(code, str(page), "exec"), {})


def test_the_tour_has_about_twenty_lines():
    (tour,) = blocks(README, "python")
    assert 15 <= len([line for line in tour.splitlines() if line.strip()]) <= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_and_their_options_exist(page):
    for _, *words in commands(page.read_text()):
        command, context = minipc, click.Context(minipc)
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name, *words = words
            found = command.get_command(context, name)
            assert found is not None, name
            command = found
        command.make_context(command.name, list(words))  # raises for an unknown option or a missing value


def test_the_readme_shows_the_six_commands():
    assert [command[1] for command in commands(README)] == ["record", "train", "data", "train", "record", "train"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_names_every_module_in_the_order_of_the_house():
    from test_house import ORDER

    named = [name.replace("/", ".") for name in re.findall(r"^\| `minipc/([a-z0-9_/]+)\.py`", README, re.MULTILINE)]
    assert named == [name for name in ORDER if not name.startswith(("cli.", "__main__"))]


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= targets, page


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert len(example.read_text().splitlines()) <= 80
