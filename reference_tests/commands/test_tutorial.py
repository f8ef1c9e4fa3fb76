"""The lessons: every block runs and prints what the page says, every grade can pass and fail."""

import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from minipc.audit import checks, mutants, problems
from reference_tests.commands.test_docs import commands, execute
from reference_tests.tools import tutorial, tutorial_figures
from reference_tests.tools.pages import table, tables
from reference_tests.tools.tutorial import CHAPTERS, LECTURERS, NOTEBOOKS, TUTORIAL

ROOT = Path(__file__).parents[2]
PAGES = sorted(TUTORIAL.glob("*.md"))
ANSWERS = tutorial.answers()
EXERCISES = [f"{chapter}.{number}" for chapter in range(1, 6) for number in (1, 2)]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """Run every chapter once with the model answers: {path: (list of Ran, namespace)}."""
    ran = {}
    for path in (*CHAPTERS, LECTURERS):
        place, namespace = tmp_path_factory.mktemp(path.stem), {"__name__": "lesson"}
        python = tutorial.python_of(path.read_text())
        ran[path] = list(tutorial.run(python, ANSWERS, place, namespace)), namespace, place
    return ran


@pytest.mark.parametrize("path", (*CHAPTERS, LECTURERS), ids=lambda path: path.stem)
def test_a_lesson_prints_what_its_page_says_and_the_model_answers_pass(path, lessons):
    ran, found = lessons[path][0], []
    assert [one.raised for one in ran] == [None] * len(ran)
    for cell in tutorial.cells(path.read_text()):
        if cell.kind == "python":
            found.append("")
        elif cell.kind == "text":
            found[-1] += cell.source
    assert [one.printed for one in ran] == found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_commands_of_a_lesson_run_where_its_blocks_ran(path, lessons, monkeypatch):
    monkeypatch.chdir(lessons[path][2])
    for words in commands(path.read_text()):
        execute(words, monkeypatch)


def python_of_notebook(path):
    """Return the code cells of a notebook as Cells."""
    made = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in made if cell["cell_type"] == "code"]
    return tutorial.python_of("".join(f"```python\n{source}\n```\n" for source in sources))


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=lambda path: path.stem)
def test_a_notebook_with_the_model_answers_passes_and_as_given_stops_at_each_grade(path, tmp_path):
    python, graded = python_of_notebook(path), ["grade", "grade"]
    filled = list(tutorial.run(python, ANSWERS, tmp_path))
    assert [one.raised for one in filled] == [None] * len(filled)
    right = [one for one in filled if re.match(r"exercise \d\.\d: right", one.printed)]
    assert [one.cell.part for one in right] == graded
    given = list(tutorial.run(python, {}, tmp_path))
    stopped = [one for one in given if one.raised]
    assert [one.cell.part for one in stopped] == graded
    for one in stopped:
        assert f"exercise {one.cell.exercise}: fill in the block above" in str(one.raised)


def test_there_are_three_notebooks_and_each_is_what_its_page_makes():
    assert len(NOTEBOOKS) == 3 and set(NOTEBOOKS.values()) == set(TUTORIAL.glob("*.ipynb"))
    for page, path in NOTEBOOKS.items():
        assert path.read_text() == tutorial.notebook(page.read_text()), "run `make tutorial`"


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=lambda path: path.stem)
def test_a_notebook_has_the_form_of_nbformat_and_no_outputs(path):
    """The fields that the JSON schema of nbformat 4.5 requires, and no others."""
    made = json.loads(path.read_text())
    assert set(made) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in made["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    for cell in made["cells"]:
        common = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "markdown":
            assert set(cell) == common
        else:
            assert cell["cell_type"] == "code"
            assert set(cell) == common | {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    assert path.stat().st_size < 25_000


def defined(source):
    """Return what a block defines: lines of def, and names that get a value at the margin."""
    return re.findall(r"^(?:def .*|\w+(?= = ))", source, re.MULTILINE)


def test_every_chapter_has_two_exercises_and_every_exercise_a_grade_and_an_answer():
    found = [cell for path in CHAPTERS for cell in tutorial.python_of(path.read_text())]
    parts = [(cell.exercise, cell.part) for cell in found if cell.exercise]
    assert parts == [(name, part) for name in EXERCISES for part in ("your answer", "grade")]
    assert list(ANSWERS) == EXERCISES
    for cell in found:
        if cell.part == "your answer":
            assert defined(cell.source) == defined(ANSWERS[cell.exercise])
    # one block, one thought: none is longer than a screen
    assert max(len(cell.source.splitlines()) for cell in found) <= 40


WRONG = [  # exercise, what stands in the model answer, what somebody might write instead
    ("1.1", "+ 2 * fan_out", "+ 3 * fan_out"),  # a bias before batch norm
    ("1.1", "(points if number < len(shared) else 1)", "points"),
    ("1.2", "p.var(axis=(0, 1))", "p.var(axis=(0, 1), ddof=1)"),
    ("1.2", "p.mean(axis=(0, 1))", "p.mean(axis=1, keepdims=True)"),  # of each cloud
    ("1.2", "np.maximum(y, 0).max", "y.max"),
    ("2.1", "dy - dy.mean(axis=0)", "dy"),
    ("2.1", "dy.mean(axis=0)", "dy.mean()"),
    ("2.2", "for report in reports)", "for report in reports[:1])"),  # of x alone
    ("2.2", "< 1e-6", "< 1"),
    ("2.2", "rng.standard_normal((2, 6, 4))", "rng.random((2, 6, 4)) * [[[0]], [[1]]]"),
    ("2.2", '"other-eps"', '"no-mean-term"'),
    ("3.1", "points * scale[:, None, :]", "points.astype(float) * scale[:, None, :]"),
    (
        "3.1",
        "return scaled + shift[:, None, :]",
        "return (points.astype(float) * scale[:, None] + shift[:, None]).astype('f4')",
    ),
    ("3.1", "scaled + shift[:, None, :]", "(points + shift[:, None]) * scale[:, None]"),
    ("3.2", "T**2 * ", ""),
    ("3.2", "logits.max()", "0.0"),  # overflows
    ("3.2", "log_s, log_p = log_softmax(z / T), log_softmax(v / T)", "log_p, log_s = 0 * z, z"),
    ("3.2", "np.exp(log_p)", "np.exp(log_s)"),
    ("4.1", ".min()", ".max()"),
    ("4.1", "/ (T * r)", "/ r"),
    ("4.1", "(1 - a) * y + ", ""),
    ("4.2", "q.sum() * ", ""),  # the mutant softmax-minus-target
    ("4.2", "+ T * (", "+ T**2 * ("),  # the mutant temperature-squared-in-the-gradient
    ("4.2", "- b * softmax", "+ b * softmax"),  # the mutant sign-of-b
    ("5.1", "sum(axis=0) + eps", "sum(axis=0)"),
    ("5.1", "beta - mu @ A", "beta"),
    ("5.1", "gamma / sigma", "abs(gamma) / sigma"),
    ("5.2", "np.add.at(df, g, dy)", "df[g] = dy"),  # the mutant gather-assigns
    ("5.2", "np.add.at(df, g, dy)", "df[g] += dy"),
]


@pytest.mark.parametrize("exercise, right, wrong", WRONG)
def test_a_grade_notices_what_students_get_wrong(exercise, right, wrong, lessons):
    assert ANSWERS[exercise].count(right) >= 1
    path = CHAPTERS[int(exercise[0]) - 1]
    _, namespace, place = lessons[path]
    python = [cell for cell in tutorial.python_of(path.read_text()) if cell.exercise == exercise]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong answer may overflow
        *_, grade = tutorial.run(
            python, {exercise: ANSWERS[exercise].replace(right, wrong)}, place, dict(namespace)
        )
    assert grade.raised and "right" not in grade.printed


def test_every_exercise_has_a_wrong_answer_here():
    assert {exercise for exercise, _, _ in WRONG} == set(EXERCISES)


def test_the_lecturers_table_names_the_line_that_notices_each_mutant():
    from reference_tests.mathematics.test_audit import CAUGHT_BY

    rows = table(LECTURERS.read_text(), "What students get wrong")
    assert len(rows) == 10
    assert {row[2]: row[3] for row in rows} == {row[2]: CAUGHT_BY[row[2]] for row in rows}


@pytest.mark.parametrize(
    "name, problem",
    [
        ("sign-of-b", problems.loss(problems.NEGATIVE)),
        ("smoothing-over-wrong-classes", problems.loss(problems.LABELS)),
        ("another-eps", problems.small_step("textbook", checks.THREE_TERMS)),
    ],
)
def test_no_gradient_check_sees_the_mutants_that_the_lecturers_page_says_it_does_not(name, problem):
    assert f"`{name}`" in LECTURERS.read_text().split("change forward and backward alike")[1]
    with mutants.broken(mutants.find(name)):
        gradients_alone = checks.check(checks.Line(name, problem))
    assert gradients_alone.passed and gradients_alone.gradients


def test_the_times_of_the_chapters_are_those_of_the_lecturers_page():
    for path, row in zip(CHAPTERS, table(LECTURERS.read_text(), "Timing"), strict=True):
        (minutes,) = re.findall(r"^About (\d+) minutes", path.read_text(), re.MULTILINE)
        assert f"]({path.name})" in row[0]
        assert int(minutes) == sum(int(cell.removesuffix(" min")) for cell in row[1:3])


def test_a_lecturer_can_read_the_sections_of_chapter_4_aloud_in_under_four_minutes():
    """At 130 words a minute, a usual rate of speaking."""
    (path,) = TUTORIAL.glob("4_*.md")
    told, _ = path.read_text().split("## Exercises")
    _, _, sections = told.partition("## Three terms")
    prose = "".join(cell.source for cell in tutorial.cells(sections) if cell.kind == "prose")
    assert 0 < len(prose.split()) / 130 < 4


def test_each_mistake_of_the_exam_has_one_right_answer(lessons):
    *_, corrected = lessons[LECTURERS][0]
    namespace = lessons[LECTURERS][1]
    for line in corrected.printed.splitlines():
        name, _, found = line.partition(": ")
        assert found == str([namespace["of_the_lessons"][name]])
    assert len(corrected.printed.splitlines()) == len(namespace["of_the_lessons"])


TAG = re.compile(r"\(([A-Z]\d+)\)")


def test_every_tag_of_the_lessons_is_one_of_the_mathematics():
    known = {
        tag
        for name in ("math.md", "fast_engine.md")
        for tag in TAG.findall((ROOT / "docs" / name).read_text())
    }
    used = {tag for path in PAGES for tag in TAG.findall(path.read_text())}
    assert used <= known and len(used) > 10, used - known


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_defines_every_letter_of_its_equations(path):
    text = path.read_text()
    names = " ".join(row[0] for row in tables(text)[0])
    equations = re.findall(
        r"^ {4}\S.*", "".join(re.split(r"```\w*\n.*?```", text, flags=re.S)), re.M
    )
    letters = {
        letter
        for line in equations
        for letter in re.findall(r"(?<![^\W_δ])[a-zA-Z](?![a-zA-Z])", line)
    }
    assert letters <= set(re.findall(r"\b[a-zA-Z]", names)), letters
    assert "letter" in text and len(tables(text)[0]) >= 5


def slug(heading):
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_of_the_lessons_lead_to_files_and_to_headings(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\(([^)#\s]+)#?([^)\s]*)\)", text.replace("\n", " ")):
        path = page.parent / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}#{anchor}"


def test_every_page_is_linked_and_the_readme_leads_here():
    text = "".join(path.read_text() for path in PAGES)
    for path in (*PAGES, *NOTEBOOKS.values()):
        assert path.name == "README.md" or f"({path.name}" in text, path.name
    assert "(docs/tutorial/README.md)" in (ROOT / "README.md").read_text()
    assert re.search(r"^tutorial:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_figure_of_the_lessons_is_there_shown_and_small():
    text = "".join(path.read_text() for path in PAGES)
    shown = set(re.findall(r"\(figures/(\w+\.svg)\)", text.replace("\n", " ")))
    there = list((TUTORIAL / "figures").iterdir())
    assert shown == {path.name for path in there} and len(shown) == 6
    assert all(path.stat().st_size < 100_000 for path in there)


def test_the_figures_show_what_their_chapters_say():
    assert len(tutorial_figures.winners(8)) <= 8 < len(tutorial_figures.winners(64)) <= 64

    errors = tutorial_figures.steps()
    at = int(np.argmin(abs(tutorial_figures.H - 1e-5)))
    assert errors["float64"][at] < 1e-8 < 1e-2 / 2 < errors["float64, 1 % wrong"][at]
    assert errors["float32"][at] > 1e-3  # as large as what is to be seen, within a factor of ten

    stored, *views = tutorial_figures.views()
    assert len(views) == 4 and all(view.shape == stored.shape for view in views)

    least = {b: M.min() for b, M in tutorial_figures.margin_bars().items()}
    assert least[0.0] > least[0.1] > 0 > least[0.2]

    points, C, w = tutorial_figures.moments()
    assert w @ w == pytest.approx(1)
    assert (points @ w).std() == pytest.approx(np.sqrt(w @ C @ w))

    counts, farthest, random = tutorial_figures.cover()
    assert (farthest[counts >= 8] < random[counts >= 8]).all()


def test_the_figures_of_the_lessons_can_be_drawn_again(tmp_path):
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: the figures were not drawn again"
    )
    tutorial_figures.draw(tmp_path)
    drawn = sorted(os.listdir(tmp_path))
    assert drawn == sorted(os.listdir(TUTORIAL / "figures"))
    assert all((tmp_path / name).read_text().count("<path") > 10 for name in drawn)


def test_a_block_that_fails_is_noticed_and_not_taken_for_a_grade(tmp_path):
    page = "text\n\n```python\nprint(1)\n```\n```text\n1\n```\n\n```python\n1 / 0\n```\n"
    assert [cell.kind for cell in tutorial.cells(page)] == ["prose", "python", "text", "python"]
    with pytest.raises(ZeroDivisionError):
        list(tutorial.run(tutorial.python_of(page), {}, tmp_path))
