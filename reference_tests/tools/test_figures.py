"""What the figures and the tables beside them show is what the code computes."""

import json
import re
import xml.etree.ElementTree as parse
from pathlib import Path

import numpy as np
import pytest

from minipc.data.shapes import make_shapes
from minipc.nn.losses import LossConfig, margins
from minipc.nn.ops import log_softmax_forward
from reference_tests.tools import figures, step_sweep
from reference_tests.tools.pages import numbers, table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "negative_weights.md").read_text()


def test_the_tables_on_steps_are_those_of_the_sweep():
    """Rounding differs between machines: within a factor of ten, the curve's shape exactly."""
    page = (DOCS / "gradient_checking.md").read_text()
    for row in step_sweep.tables().splitlines():
        if set(row) <= set("|-: "):
            continue
        name = row.split(" | ")[0]
        stored = next(line for line in page.splitlines() if line.split(" | ")[0] == name)
        found, wanted = (np.array(numbers(line.partition(" | ")[2])) for line in (row, stored))
        if "float" in name:
            assert (found < 10 * wanted).all() and (wanted < 10 * found).all(), row
        elif "direction an array" in name or "joint" in name:
            assert (abs(found - wanted) <= 5).all(), row
        else:
            assert row == stored


def test_float32_sees_no_error_of_one_percent_and_float64_does():
    assert (
        min(step_sweep.sweep(np.float32, "textbook"))
        > 0.01
        > 1e6 * min(step_sweep.sweep(np.float64, "fused"))
    )


def test_the_walk_falls_with_the_slope_of_the_negative_margin():
    t, curves = figures.walk()
    y, v, u = np.array([[1.0, 0, 0, 0]]), np.array([[6.0, 1, 0, -6]]), np.array([[3.0, 1, 0, 2]])
    p, r = (np.exp(log_softmax_forward(z / 4)[0]) for z in (v, u))
    rows = []
    for name, b in (("b = 0.095, raw", 0.095), ("b = 0.2, raw", 0.2)):
        slope = (curves[name][-1] - curves[name][-20]) / (t[-1] - t[-20])
        least = margins(y, p, r, b, LossConfig(0.9, b, 4.0, 0.0, "none")).min()
        assert slope == pytest.approx(least, rel=1e-3)
        assert (least > 0) == (b == 0.095)
        rows.append([f"{b:g}", f"{least:.3f}"])
    assert [row[:2] for row in table(PAGE, "When it has no lower bound")] == rows
    assert curves["b = 0.2, guarded"][-1] > curves["b = 0.2, guarded"][50]


def test_the_figure_of_bounded_rows_is_the_map_of_the_command_beside_it(capsys):
    from minipc.cli.main import main

    with pytest.raises(SystemExit):
        main(["loss", "--json"])
    printed = json.loads(capsys.readouterr().out)["map"]
    told = {(each["b"], each["T"]): each["unbounded_share"] for each in printed}
    assert figures.bounded() == told


def test_each_earlier_self_changes_what_the_page_says():
    ends = {kind: distances[-1] for kind, distances in figures.toy().items()}
    assert max(ends["snapshot"], ends["ema"]) < 1e-10
    stated = {row[0]: row[1] for row in table(PAGE, "Which earlier self, and what each changes")}
    assert stated == {kind: f"{distance:.2f}" for kind, distance in ends.items()}


def test_every_figure_is_there_and_shown():
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    shown = set(re.findall(r"[(/]figures/(\w+\.svg)\)", "".join(p.read_text() for p in pages)))
    assert shown == {path.name for path in (DOCS / "figures").iterdir()} and len(shown) == 6


def test_the_group_that_is_shown_has_one_centre_on_both_levels_and_sees_more_on_the_second():
    first, second = figures.groups()
    np.testing.assert_array_equal(second.points, first.points[first.centres])
    at = [level.points[level.group[0]] for level in (first, second)]  # the nearest: the centre
    np.testing.assert_array_equal(*at)
    reach = [
        np.linalg.norm(level.points[level.group] - at[0], axis=1).max() for level in (first, second)
    ]
    assert reach[1] > 1.5 * reach[0]  # the second level sees a larger part of the cloud


def test_the_figures_can_be_drawn_again(tmp_path):
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: the figures were not drawn again"
    )
    figures.draw(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text().count("<path") > 10 and (DOCS / "figures" / path.name).exists()


def test_the_drawings_of_the_front_page_are_whole_and_name_every_family():
    for name, text in (("way", figures.way()), ("shapes", figures.families())):
        drawn, stored = (
            parse.fromstring(each) for each in (text, (DOCS / f"figures/{name}.svg").read_text())
        )
        words = [[node.text for node in each.iter() if node.text] for each in (drawn, stored)]
        assert words[0] == words[1], "make figures draws them anew"
        dots = [node for node in drawn.iter() if node.get("class") in ("dot", "grey")]
        assert len(dots) == (7 if name == "way" else 13)
    assert set(make_shapes(0, 1, 0, 8).class_names) < {*words[1]}
