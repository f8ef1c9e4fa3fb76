"""Pages and pictures of clouds: what stands in the file, and what a browser makes of it."""

import base64
import os
import re
import unicodedata

import numpy as np
import pytest

from minipc.data.shapes import make_shapes
from minipc.errors import DataError, UsageError
from minipc.report import braille, clouds, page
from reference_tests.tools.browser import Browser

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'


def whole_page(points, **settings):
    figures = [clouds.cloud_figure(each, "name\nmore", "a cloud", **settings) for each in points]
    body = f'{clouds.HINT}<div class="clouds">{"".join(figures)}</div>'
    return page.page("clouds", body, styles=clouds.STYLE, scripts=clouds.SCRIPT)


def stored(text):
    """Return the arrays (P, 3) int16 that a page holds."""
    return [
        np.frombuffer(base64.b64decode(data), "<i2").reshape(-1, 3)
        for data in re.findall(r'data-points="([^"]*)"', text)
    ]


# the file


def test_equal_clouds_give_equal_pages_and_a_page_names_no_other_place():
    points = make_shapes(0, 1, 0, 64).train_points
    text = whole_page(points)
    assert text == whole_page(points.copy())
    bare = re.sub(r'data-points="[^"]*"', "", text)
    assert not re.search(r"https?:|//\w|@import|url\(|\bsrc=|\bhref=(?!\"data:,)", bare)
    assert "default-src 'none'" in text


def test_hostile_text_stays_text():
    figure = clouds.cloud_figure(np.eye(3), HOSTILE, HOSTILE)
    text = page.page(HOSTILE, figure, maker=HOSTILE)
    assert "<img" not in text and text.count("<script") == 0 and 'alert(1)"' not in text
    page.page("\udcff.xyz", "").encode()  # a name of other bytes than UTF-8


@pytest.mark.parametrize("up_axis", ["x", "y", "z", "unknown"])
def test_a_page_holds_the_points_to_half_a_step_with_their_up_axis_last(up_axis):
    rng = np.random.default_rng(0)
    points = 5e5 + rng.random((50, 3)) * [1, 2, 3]
    (steps,) = stored(clouds.cloud_figure(points, "", "", up_axis=up_axis))
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.linalg.norm(points - middle, axis=1).max()
    order = {"x": (1, 2, 0), "y": (2, 0, 1)}.get(up_axis, (0, 1, 2))
    assert np.linalg.det(np.eye(3)[list(order)]) == 1  # turned, not mirrored
    back = middle[list(order)] + steps / clouds.GRID * radius
    # half a step, and the rounding of float64 at 5e5: 6e-11
    assert abs(back - points[:, order]).max() <= radius / clouds.GRID / 2 + 1e-10
    assert np.linalg.norm(steps.astype(float), axis=1).max() <= clouds.GRID + 1  # rounded thrice


def test_clouds_of_one_frame_keep_their_sizes_and_places():
    points = np.random.default_rng(0).random((30, 3)) - 0.5
    frame = np.concatenate([points, 2 * points, points + [0, 0, 3]])
    small, large, high = (
        clouds.quantised(each, "z", frame).astype(int)
        for each in (points, 2 * points, points + [0, 0, 3])
    )
    middle = clouds.quantised(np.zeros((1, 3)), "z", frame).astype(int)
    assert abs((large - middle) - 2 * (small - middle)).max() <= 2  # each rounded by half a step
    assert abs(np.diff(high - small, axis=0)).max() <= 1 and (high - small)[:, 2].min() > 10_000
    assert (clouds.quantised(np.ones((4, 3))) == 0).all()  # of one point only


def test_a_page_is_replaced_by_its_own_maker_and_by_nobody_else(folder):
    mine, other = (page.page("t", "", maker=maker) for maker in ("minipc a", "minipc b"))
    assert page.write_page("a.html", mine, "minipc a") == len((folder / "a.html").read_bytes())
    page.write_page("a.html", mine + "<!-- again -->", "minipc a")
    assert (folder / "a.html").read_text().endswith("again -->")
    (folder / "notes.html").write_text("<!DOCTYPE html>\n<p>mine")
    os.mkfifo(folder / "pipe.html")
    os.symlink("notes.html", folder / "link.html")
    for path in ("a.html", "notes.html", "pipe.html", "link.html", "."):
        with pytest.raises(UsageError, match="exists already"):
            page.write_page(path, other, "minipc b")
    with pytest.raises(DataError, match="no/where.html"):
        page.write_page("no/where.html", other, "minipc b")
    assert (folder / "notes.html").read_text().endswith("mine")


# the terminal

# where Unicode says that the dots of a letter of braille are, by their numbers
PLACES = {1: (0, 0), 2: (1, 0), 3: (2, 0), 4: (0, 1), 5: (1, 1), 6: (2, 1), 7: (3, 0), 8: (3, 1)}


def dots_of(lines):
    """Return the dots (row, column) in lines of braille, by the names of the letters."""
    dots = set()
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            numbers = unicodedata.name(letter).removeprefix("BRAILLE PATTERN DOTS-")
            for number in "" if letter == " " else numbers:
                down, right = PLACES[int(number)]
                dots.add((4 * row + down, 2 * column + right))
    return dots


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
@pytest.mark.parametrize("columns, rows", [(18, 9), (4, 7), (40, 3)])
def test_a_picture_has_a_dot_where_a_point_is_seen_and_no_other(up_axis, columns, rows):
    """By definition, point by point: turned about the up axis, tipped, scaled to the dots."""
    points = np.random.default_rng(1).normal(size=(40, 3)) * [1, 2, 0.5]
    lines = braille.picture(points, columns, rows, up_axis)
    assert [len(line) for line in lines] == [columns] * rows
    turn = np.array(
        [
            [np.cos(clouds.YAW), -np.sin(clouds.YAW), 0],
            [np.sin(clouds.YAW), np.cos(clouds.YAW), 0],
            [0, 0, 1],
        ]
    )
    tip = np.array(
        [
            [1, 0, 0],
            [0, np.cos(clouds.PITCH), -np.sin(clouds.PITCH)],
            [0, np.sin(clouds.PITCH), np.cos(clouds.PITCH)],
        ]
    )
    upright = {"x": [1, 2, 0], "y": [2, 0, 1], "z": [0, 1, 2]}[up_axis]
    seen = [(tip @ turn @ point[upright])[[0, 2]] for point in points]
    left, bottom = np.min(seen, axis=0)
    right, top = np.max(seen, axis=0)
    wide, high = 2 * columns - 1, 4 * rows - 1
    step = min(wide / (right - left), high / (top - bottom))
    wanted = set()
    for x, y in seen:
        column = (x - (left + right) / 2) * step + wide / 2
        row = high - ((y - (bottom + top) / 2) * step + high / 2)
        # a half is rounded to even: upwards from below, so the row may be either
        wanted.add((high - round(high - row), round(column)))
    assert dots_of(lines) == wanted


def test_a_cloud_of_one_point_is_a_dot_and_points_outside_a_frame_are_left_out():
    assert len(dots_of(braille.picture(np.ones((5, 3)), 6, 3))) == 1
    frame = np.array([[-1, -1, -1], [1, 1, 1.0]])
    assert dots_of(braille.picture(np.full((1, 3), 9.0), 6, 3, frame=frame)) == set()
    inside = dots_of(braille.picture(frame / 2, 18, 9, frame=frame))
    assert inside < dots_of(braille.picture(np.linspace(-1, 1, 999)[:, None] * [1, 1, 1], 18, 9))


def test_pictures_stand_beside_each_other_as_far_as_they_fit():
    drawn = [([f"{number}" * 6] * 2, [name]) for number, name in enumerate(("a", "bcdefgh", "c"))]
    assert braille.side_by_side(drawn, 14) == [
        "000000  111111",
        "000000  111111",
        "a       bcdef\N{HORIZONTAL ELLIPSIS}",
        "",
        "222222",
        "222222",
        "c",
    ]
    assert len(braille.side_by_side(drawn, 1)) == 11  # narrower than a picture: one by one


def test_captions_are_cut_by_the_cells_of_their_letters():
    dots = "\N{HORIZONTAL ELLIPSIS}"
    assert braille.fitted("chair", 7) == "chair  "
    assert braille.fitted("a-long-name", 7) == f"a-long{dots}"
    assert braille.fitted("folder/1.xyz", 7, at_end=True) == f"{dots}/1.xyz"
    assert braille.fitted("\u6905\u5b50", 5) == "\u6905\u5b50 "  # two cells each
    assert braille.fitted("\u6905\u5b50", 3) == f"\u6905{dots}"
    assert braille.fitted("e\u0301", 3) == "e\u0301  "  # one cell together


# the browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages") / "clouds.html"
    place.write_text(whole_page(make_shapes(0, 1, 0, 128).train_points[:4]))
    return place


FIRST = "document.querySelector('canvas')"
INK = f"""(() => {{ const canvas = {FIRST};
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let [count, tone] = [0, 0];
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) {{ count++; tone += data[i]; }}
  return [canvas.width, canvas.clientWidth, count, tone / count]; }})()"""


@pytest.mark.parametrize("width, scale", [(1100, 1), (390, 2)])
def test_a_page_opens_from_a_file_without_fault_and_fits_its_window(browser, path, width, scale):
    browser.open(path, width, 844, scale)
    assert browser.faults() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    canvas, shown, ink, tone = browser.value(INK)
    assert canvas == round(scale * shown) and shown > 120  # as sharp as the screen
    assert ink > 50 and tone < 100  # dark on light
    browser.open(path, width, 844, scale, dark=True)
    assert browser.value(INK)[3] > 150  # light on dark


def test_what_a_page_must_not_do_is_noticed(browser, tmp_path):
    for body in (
        "<script>console.log('x')</script>",
        "<script>nothing.at.all()</script>",
        '<img src="other.png">',
        "<script>fetch('https://example.invalid/')</script>",
    ):
        (tmp_path / "bad.html").write_text(page.page("bad", body))
        browser.open(tmp_path / "bad.html")
        assert browser.faults(), body


def test_a_cloud_turns_by_the_arrow_keys_and_by_the_mouse_and_turns_back(browser, path):
    browser.open(path)
    drawn = f"{FIRST}.toDataURL()"
    first = browser.value(drawn)
    browser.key("Tab")
    assert browser.value(f"document.activeElement === {FIRST}")
    seen = {first}
    for key in ("ArrowLeft", "ArrowDown"):
        browser.key(key)
        seen.add(browser.value(drawn))
    assert len(seen) == 3 and browser.value("scrollY") == 0
    browser.key("ArrowRight")
    browser.key("ArrowUp")
    assert browser.value(drawn) in seen  # almost the first: angles are added in another order
    browser.key("Home")
    assert browser.value(drawn) == first
    x, y = browser.value(f"(r => [r.x + 50, r.y + 50])({FIRST}.getBoundingClientRect())")
    browser.drag(x, y, 30, 10)
    assert browser.value(drawn) not in seen
    assert browser.faults() == []


def test_who_asks_for_no_motion_sees_none(browser, path):
    """The picture after one frame is the last one; else it is on its way."""
    steps = f"""new Promise(done => {{ const seen = []; {FIRST}.focus();
      {FIRST}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft'}}));
      (function look() {{ seen.push({FIRST}.toDataURL());
        seen.length < 30 ? requestAnimationFrame(look) : done(new Set(seen).size); }})(); }})"""
    browser.open(path, still=True)
    assert browser.value(steps) == 2  # before and after
    browser.open(path, still=False)
    assert browser.value(steps) > 4


def test_a_page_that_is_dark_on_the_screen_is_printed_dark_on_white(browser, path):
    browser.open(path, dark=True)
    browser.value("dispatchEvent(new Event('beforeprint'))")
    assert browser.value(INK)[3] < 20
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value(INK)[3] > 150
    browser.media(dark=True, kind="print")
    colours = "[document.documentElement, document.querySelector('h1')].map(getComputedStyle)"
    back, ink = browser.value(f"{colours}.map((s, i) => i ? s.color : s.backgroundColor)")
    assert back == "rgb(255, 255, 255)" and ink == "rgb(28, 29, 33)"


def test_points_are_drawn_where_perspective_puts_them(browser, tmp_path):
    """Four points, seen from a camera at four radii; each must have ink, and nothing else."""
    points = np.array([[1, 0, 0], [-0.2, 0.9, 0], [0, -0.5, -0.8], [0.1, 0.1, 0.95]])
    frame = np.array([[-1, 0, 0], [1, 0, 0.0]])  # middle at the origin, radius 1
    (tmp_path / "four.html").write_text(whole_page([points], frame=frame))
    browser.open(tmp_path / "four.html")
    side, marks = browser.value(f"""(() => {{ const canvas = {FIRST}, marks = [];
      const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      for (let i = 3; i < data.length; i += 4)
        if (data[i]) marks.push([(i >> 2) % canvas.width, Math.floor((i >> 2) / canvas.width)]);
      return [canvas.width, marks]; }})()""")
    x, y, z = points.T
    away = np.sin(clouds.YAW) * x + np.cos(clouds.YAW) * y
    right = np.cos(clouds.YAW) * x - np.sin(clouds.YAW) * y
    up = np.cos(clouds.PITCH) * z + np.sin(clouds.PITCH) * away
    depth = np.cos(clouds.PITCH) * away - np.sin(clouds.PITCH) * z
    near = 4 / (4 + depth)
    at = side / 2 + 0.45 * side * np.stack([near * right, -near * up], axis=1)
    marks = np.array(marks) + 0.5  # the middle of a pixel
    distance = np.linalg.norm(marks[:, None] - at[None], axis=2)
    radius = 0.012 * side * near**2 + 1  # an edge is softened over a pixel
    assert (distance <= radius).any(axis=0).all() and (distance <= radius).any(axis=1).all()
    nearest = distance.argmin(axis=1)
    assert [(nearest == i).sum() for i in depth.argsort()] == sorted(
        [(nearest == i).sum() for i in range(4)], reverse=True
    )  # the nearer, the larger
