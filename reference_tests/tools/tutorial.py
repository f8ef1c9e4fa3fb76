"""The lessons of docs/tutorial: their cells, a run of them, and the notebooks made from them.

    python -m reference_tests.tools.tutorial

runs every chapter with the model answers, writes what is printed into the pages, and writes the
notebooks.  A chapter is text and blocks: `python` runs, `text` right behind it is what it prints.
The first line of a block may say that it belongs to an exercise: "# exercise 2.1: your answer"
(to be filled in) or "# exercise 2.1: grade".  answers.md holds a block for each to be filled in.
"""

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
CHAPTERS = sorted(TUTORIAL.glob("[0-9]_*.md"))
NOTEBOOKS = {  # chapter: its notebook
    path: path.with_suffix(".ipynb") for path in CHAPTERS if path.name[0] in "245"
}
LECTURERS = TUTORIAL / "lecturers.md"


class Cell(NamedTuple):
    """A block of a page, or the text between two blocks."""

    kind: str  # "prose", or the language of the block
    source: str  # without the fences
    exercise: str  # its number, "" where it belongs to none
    part: str  # "your answer" or "grade"


def cells(page: str) -> list[Cell]:
    """Return the Cells of a page, whose source and fences together are the page."""
    parts = re.split(r"^```(\w+)\n(.*?)^```\n", page, flags=re.MULTILINE | re.DOTALL)
    found = []
    for number, part in enumerate(parts):
        if number % 3 == 0 and part.strip():
            found.append(Cell("prose", part, "", ""))
        elif number % 3 == 2:
            first = re.match(r"# exercise (\d\.\d): (your answer|grade)$", part, re.MULTILINE)
            found.append(Cell(parts[number - 1], part, *(first.groups() if first else ("", ""))))
    return found


def answers() -> dict[str, str]:
    """Return {exercise: code} of answers.md."""
    page = (TUTORIAL / "answers.md").read_text()
    return {cell.exercise: cell.source for cell in cells(page) if cell.kind == "python"}


class Ran(NamedTuple):
    """One python block that was run."""

    cell: Cell
    printed: str
    raised: Exception | None  # of a grade; any other block must run


def run(
    python: list[Cell], filled: dict[str, str], place: str, namespace: dict[str, Any] | None = None
) -> Iterator[Ran]:
    """Yield a Ran for each python Cell, run one after the other in one namespace in a folder.

    filled: {exercise: code} to take in place of the blocks that are to be filled in.
    """
    namespace = {"__name__": "lesson"} if namespace is None else namespace
    for number, cell in enumerate(python, 1):
        source = cell.source
        if cell.part == "your answer":
            source = filled.get(cell.exercise, source)
        printed, raised = io.StringIO(), None
        with contextlib.chdir(place), contextlib.redirect_stdout(printed):
            try:
                exec(compile(source, f"block {number}", "exec"), namespace)
            except Exception as reason:
                if cell.part != "grade":
                    raise
                raised = reason
        yield Ran(cell, printed.getvalue(), raised)


def python_of(page: str) -> list[Cell]:
    """Return the python Cells of a page."""
    return [cell for cell in cells(page) if cell.kind == "python"]


def with_outputs(page: str, place: str) -> str:
    """Return a page whose `text` blocks behind python hold what the model answers print."""
    printed = [ran.printed for ran in run(python_of(page), answers(), place)]
    made: list[str] = []
    for cell in cells(page):
        source = cell.source
        if cell.kind == "python":
            output = printed.pop(0)
        elif cell.kind == "text":
            source = output
        made.append(source if cell.kind == "prose" else f"```{cell.kind}\n{source}```\n")
    return "".join(made)


def notebook(page: str) -> str:
    """Return the notebook (nbformat 4.5, outputs empty) of a chapter."""
    made: list[dict[str, Any]] = []
    prose = ""

    def close() -> None:
        nonlocal prose
        if prose.strip():
            add({"cell_type": "markdown", "metadata": {}}, prose)
        prose = ""

    def add(cell: dict[str, Any], source: str) -> None:
        lines = source.strip("\n").splitlines(keepends=True)
        made.append(cell | {"id": f"cell-{len(made) + 1}", "source": lines})

    for cell in cells(page):
        if cell.kind == "prose":
            prose += cell.source
        elif cell.kind == "python":
            close()
            empty = {"execution_count": None, "outputs": []}
            add({"cell_type": "code", "metadata": {}} | empty, cell.source)
        elif cell.kind != "text":  # what is printed is for the reader to see
            prose += f"```{cell.kind}\n{cell.source}```\n"
    close()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    for path in (*CHAPTERS, LECTURERS):
        with tempfile.TemporaryDirectory() as place:
            path.write_text(with_outputs(path.read_text(), os.fspath(place)))
    for path, made in NOTEBOOKS.items():
        made.write_text(notebook(path.read_text()))


if __name__ == "__main__":
    main()
