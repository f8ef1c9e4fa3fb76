"""What the pages say runs: code blocks, commands, links, the file table, the examples."""

import os
import re
import runpy
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from conftest import STRETCH

from minipc.audit import checks, mutants
from minipc.cli.compare import read_study
from minipc.cli.main import main, minipc
from minipc.data import shapes
from minipc.distil.train import TrainConfig
from minipc.models import pointnet, pointnet2
from minipc.record.reader import RecordReader
from minipc.verbs import demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Return every line of the sh blocks of a page as words, without comments; a \\ joins lines."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def of_minipc(text):
    return [words[1:] for words in commands(text) if words[0] == "minipc"]


@pytest.fixture
def place(vessels, tmp_path, monkeypatch):
    """A folder with small stand-ins of all that the pages name: seconds, not hours.

    Models are small, and the audit has its first lines and three mutants: test_audit.py has all.
    """
    monkeypatch.setitem(pointnet.NAMED_SIZES, "teacher", ((16, 32), (16,), 0.0))
    monkeypatch.setitem(pointnet.NAMED_SIZES, "student", ((8, 16), (8,), 0.0))
    monkeypatch.setitem(pointnet.NAMED_SIZES, "tiny", ((8, 16), (8,), 0.0))
    for name in ("local-teacher", "local-student"):
        monkeypatch.setitem(pointnet2.NAMED_SIZES, name, ("4,16/4by2:4+,4+mean:4", 0.0))
    names = [line.name for line in checks.LINES]
    until = names.index("loss: conformance vectors") + 1
    monkeypatch.setattr(checks, "LINES", checks.LINES[:until])
    few = ("softmax-minus-target", "no-mean-term", "sign-of-b")
    monkeypatch.setattr(mutants, "MUTANTS", {name: mutants.MUTANTS[name] for name in few})
    monkeypatch.setattr(TrainConfig, "epochs", 10)  # where a command does not say
    monkeypatch.setattr(
        shapes,
        "make_shapes",
        partial(shapes.make_shapes, train_per_class=8, test_per_class=2, points=32),
    )
    monkeypatch.setattr(demo, "TEACHER_TRAINING", TrainConfig(epochs=40, lr=1e-2, warmup_steps=10))
    rng = np.random.default_rng(0)
    names = tuple(STRETCH)

    def cloud(name, points):
        return (rng.standard_normal((points, 3)) * STRETCH[name]).astype(np.float32)

    for folder in ("modelnet40_ply_hdf5_2048", "modelnet40_hdf5_1024"):
        os.mkdir(folder)
        Path(folder, "shape_names.txt").write_text("".join(f"{name}\n" for name in names))
        for split, count in (("train", 50), ("test", 5)):
            points = [cloud(name, 1024) for name in names for _ in range(count)]
            with h5py.File(f"{folder}/ply_data_{split}0.h5", "w") as file:
                file["data"], file["label"] = (
                    np.array(points),
                    np.repeat(np.arange(3, dtype=np.uint8), count)[:, None],
                )
            Path(folder, f"{split}_files.txt").write_text(f"data/ply_data_{split}0.h5\n")
    return tmp_path


def execute(words, monkeypatch):
    """Run one command of a page as a shell would; only what is listed here may stand in one."""
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        if words[0] == "minipc":
            with pytest.raises(SystemExit) as end:
                main(words[1:])
            assert end.value.code == 0, words
        elif words[0] == "python":
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        elif words[:2] == ["pip", "install"]:  # what CI does; here: the extras that are named exist
            extras = re.findall(
                r"[a-z]+\d+", "".join(re.findall(r"\[(.*?)\]", " ".join(words[2:])))
            )
            assert all(f"\n{extra} =" in (ROOT / "setup.cfg").read_text() for extra in extras), (
                words
            )
        else:
            assert words[0] == "make" or words[0] == "eval", (
                words
            )  # targets and completion have tests of their own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_every_python_block_of_a_page_runs_in_its_order(
    page, place, monkeypatch, request
):
    """The commands are typed as they stand, with small data and small models behind the names.

    A block of Python whose first line is `# NAME.py` is a file of that name, which later ones use.
    """
    text = page.read_text()
    if "import torch" in "".join(blocks(text, "python")):
        request.getfixturevalue("torch")  # skips without it
        monkeypatch.syspath_prepend(place)
    for settings in blocks(text, "toml"):
        (place / "settings.toml").write_text(settings)
    for language, block in re.findall(
        r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        for words in commands(f"```sh\n{block}```\n") if language == "sh" else []:
            execute(words, monkeypatch)
        if name := re.match(r"# (\w+\.py)\n", block):
            (place / name[1]).write_text(block)
        elif language == "python":
            exec(compile(block, str(page), "exec"), {"__name__": "__main__"})


# Blocks of text, by their first line, and why nobody runs them.  Options in them are known ones.
NOT_RUN = {
    "dask scheduler --host 10.0.0.1": "needs machines; test_scheduler.py records on a cluster",
    "minipc data pack modelnet40_hdf5_1024 -o modelnet40.h5": "hours of training, as measured",
    "minipc train modelnet40.h5 --labels-only --model pointnet2/8 --epochs 40 --lr 3e-3 "
    "--threads 1 --out pointnet2-8": "hours of training, as measured",
    "python -m reference_tests.tools.speed_augmented": "a benchmark, minutes",
    "python -m reference_tests.tools.scale": "gigabytes of disk, as measured",
    "python3 -m venv /tmp/minipc-wheel": "needs a network; make dist looks into both",
    'git tag -a v0.1.0 -m "minipc 0.1.0"': "a release, by hand",
    "minipc record vessels.h5 --teacher teacher --workers 4 --backend cupy": "needs devices; "
    "test_workers.py records by workers",
    "vessels/": "a drawing of folders; test_formats.py reads such trees",
    "minipc eval --logits theirs.npy vessels.h5": "another program's; test_eval_logits.py has some",
    "make -C tiny-c": "needs cc and make; test_export.py does it",
    '#include "model.h"': "C; test_export.py compiles it",
    "minipc export tiny --onnx tiny.onnx": "needs the extra onnx; test_export.py does it",
    "minipc compare study.toml --at-a-time 2": "nine trainings; test_compare.py trains a study",
    'record_module(published_pointnet("best_model.pth"), "clouds.h5", "record.h5", views=20)': (
        "needs a checkpoint; test_torch_models.py makes one of random weights"
    ),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs_or_is_named_with_the_reason(page):
    text = page.read_text()
    fences = re.findall(r"^([ >]*)(`{3,}|~~~)(.*)$", text, re.MULTILINE)
    assert {(before, mark) for before, mark, _ in fences} <= {("", "```")}
    assert {kind for _, _, kind in fences[::2]} <= {"sh", "python", "toml", "text"}
    assert {kind for _, _, kind in fences[1::2]} <= {""} and len(fences) % 2 == 0
    for block in blocks(text, "text"):
        assert block.splitlines()[0] in NOT_RUN, block
        for words in commands(f"```sh\n{block}```\n"):
            if words[0] == "minipc":
                verb = minipc.get_command(click.Context(minipc), words[1])
                verb.make_context(words[1], words[2:])  # raises for an unknown option


def test_no_reason_is_left_of_a_block_that_is_gone():
    found = {block.splitlines()[0] for page in PAGES for block in blocks(page.read_text(), "text")}
    assert set(NOT_RUN) == found


def test_the_study_of_the_page_can_be_read(tmp_path):
    (study,) = (
        block
        for block in blocks((ROOT / "docs" / "using.md").read_text(), "toml")
        if block.startswith("# study.toml\n")
    )
    (tmp_path / "study.toml").write_text(study)
    arms, seeds = read_study(str(tmp_path / "study.toml"))
    assert set(arms) == {"labels", "distilled", "negative"} and len(seeds) == 3


def test_a_command_that_fails_or_is_unknown_is_noticed(place, monkeypatch):
    for words in (
        ["minipc", "data", "info", "none.h5"],
        ["curl", "x"],
        ["pip", "install", ".[gpu99]"],
    ):
        with pytest.raises(AssertionError):
            execute(words, monkeypatch)


def test_the_tour_has_about_twenty_lines():
    (tour,) = blocks(README, "python")
    assert 15 <= len([line for line in tour.splitlines() if line.strip()]) <= 25


def test_the_readme_shows_the_six_commands():
    assert [command[0] for command in of_minipc(README)][:6] == [
        "record",
        "train",
        "data",
        "train",
        "record",
        "train",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_list_of_files_names_every_module_in_the_order_of_the_house():
    from reference_tests.tools.test_house import ORDER

    listed = (ROOT / "docs/reading.md").read_text()
    named = [
        name.replace("/", ".")
        for name in re.findall(r"^\| (?:[*+o] )?`minipc/([a-z0-9_/]+)\.py`", listed, re.MULTILINE)
    ]
    assert named == [name for name in ORDER if not name.startswith(("cli.", "__main__"))]


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= targets, page


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {
    "read_record.py": [ROOT / "reference_tests" / "formats" / "golden" / "record-2.h5"]
}  # the others need none


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    if "import torch" in example.read_text():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, at import; ours stay errors
            pytest.importorskip(
                "torch", reason=f"torch is not installed: {example.name} was not run"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *map(str, ARGUMENTS.get(example.name, []))])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert len(example.read_text().splitlines()) <= 80


@pytest.mark.parametrize("version", [1, 2])
def test_a_record_read_without_minipc_is_the_same(version):
    path = str(ROOT / "reference_tests" / "formats" / "golden" / f"record-{version}.h5")
    meta, clouds, *views = runpy.run_path(str(ROOT / "examples" / "read_record.py"))["read_record"](
        path
    )
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
    whole = (ROOT / "reference_tests" / "formats" / "golden" / "record-2.h5").read_bytes()
    changes = [whole[:size] for size in range(0, len(whole), 97)] + [whole + b"0"]
    changes += [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 13)
    ]
    for changed in changes:
        (tmp_path / "record.h5").write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged, or no record"):
            check(tmp_path / "record.h5")
    with pytest.raises(ValueError, match="no record"):
        check(ROOT / "reference_tests" / "formats" / "golden" / "clouds-1.h5")


def test_the_reader_without_minipc_fits_a_page_and_says_how_to_call_it(monkeypatch, capsys):
    path = ROOT / "examples" / "read_record.py"
    text = path.read_text()
    assert len(text.splitlines()) <= 42 and not re.search(
        r"^\s*(import|from) (minipc|numpy)", text, re.MULTILINE
    )
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2 and "usage: read_record.py" in capsys.readouterr().err
