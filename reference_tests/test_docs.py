"""What the pages say runs: code blocks, commands, links, the file table, the examples."""

import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import click
import numpy as np
import pytest

from minipc.cli.main import minipc
from minipc.record.reader import RecordReader

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


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {"read_record.py": [ROOT / "reference_tests" / "golden" / "record-2.h5"]}  # the others need none


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    if "import torch" in example.read_text():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, at import; ours stay errors
            pytest.importorskip("torch", reason=f"torch is not installed: {example.name} was not run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *map(str, ARGUMENTS.get(example.name, []))])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert len(example.read_text().splitlines()) <= 80


@pytest.mark.parametrize("version", [1, 2])
def test_a_record_read_without_minipc_is_the_same(version):
    path = str(ROOT / "reference_tests" / "golden" / f"record-{version}.h5")
    meta, clouds, *views = runpy.run_path(str(ROOT / "examples" / "read_record.py"))["read_record"](path)
    with RecordReader(path) as reader:
        assert meta == reader.meta and len(views) == reader.views
        for number, view in enumerate(views):
            for found, wanted in zip(view, reader.view(number), strict=True):
                assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()
        splits = reader.clouds()
    assert bool(clouds) == bool(splits) == (version == 2)
    for name, (points, labels) in clouds.items():
        wanted = getattr(splits, name)
        assert points.dtype == np.float32 and points.tobytes() == wanted.points.tobytes()
        assert labels.tobytes() == wanted.labels.tobytes()


def test_a_damaged_or_foreign_file_is_refused_without_minipc(tmp_path):
    check = runpy.run_path(str(ROOT / "examples" / "read_record.py"))["check"]
    whole = (ROOT / "reference_tests" / "golden" / "record-2.h5").read_bytes()
    changes = [whole[:size] for size in range(0, len(whole), 97)] + [whole + b"0"]
    changes += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 13)]
    for changed in changes:
        (tmp_path / "record.h5").write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged, or no record"):
            check(tmp_path / "record.h5")
    with pytest.raises(ValueError, match="no record"):
        check(ROOT / "reference_tests" / "golden" / "clouds-1.h5")


def test_the_reader_without_minipc_fits_a_page_and_says_how_to_call_it(monkeypatch, capsys):
    path = ROOT / "examples" / "read_record.py"
    text = path.read_text()
    assert len(text.splitlines()) <= 40 and not re.search(r"^\s*(import|from) (minipc|numpy)", text, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2 and "usage: read_record.py" in capsys.readouterr().err
