"""Clouds that were chosen, for people: as a page, in a terminal, and as lines.

All three are made from the values that `minipc data show --json` prints, and from the points.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from minipc.report import braille, clouds
from minipc.report.lines.text import printable
from minipc.report.page import page

if TYPE_CHECKING:
    from collections.abc import Sequence

# the maker of its pages, which they name
MAKER = "minipc data show"
SPLITS = {"train": "training", "test": "test"}
SIZES = ((1, 36), (3, 24))  # up to so many pictures in a terminal, so many columns each
MANY = 18  # columns of each of more pictures: four beside each other in 80

OF_VIEWS = (
    "below a view stand the teacher's answer to it, and the scale and shift of its points along x, "
    "y and z"
)

Values = dict[str, Any]  # of verbs.show.show


def of_data_show(values: Values, pictures: list[str] | None = None) -> list[str]:
    """Return what is shown, a line for each cloud or the pictures instead, and what comes next."""
    said = [
        ": ".join(heading(values)),
        *absent(values),
        *(_listed(values) if pictures is None else pictures),
    ]
    if values["out"] is not None:
        return [*said, f"written: {printable(values['out'])}, {values['bytes']:,} bytes"]
    return [*said, "next: the same command with --out clouds.html makes a page where they turn"]


def _listed(values: Values) -> list[str]:
    """Return a line for each cloud, below the heading of its group."""
    titles = [[title, *about] for title, about in map(captions, values["shown"])]
    width, lines = max(len(title) for title, *_ in titles), []
    for name, members in _groups(values):
        lines += [name] if name else []
        for title, *about in (titles[i] for i in members):
            lines.append(f"  {title:{width}}  {', '.join(about)}".rstrip())
    return lines


def heading(values: Values) -> tuple[str, str]:
    """Return the name of what is shown, and how much of it."""
    shown, up = values["shown"], f"up axis {values['up_axis']}"
    path = printable(values["files"][0])
    if values["kind"] == "files":
        return path if len(shown) == 1 else f"{len(shown)} files", up
    if values["kind"] == "record":
        views = sum(one["view"] is not None for one in shown)
        what = f"{_clouds(len(shown) - views, 'training')} in {views} replayed views"
    else:
        what = f"{len(shown)} of {_clouds(values['clouds'], SPLITS[values['split']])}"
    return path, f"{what}, {_points(shown[0])} each, {up}"


def _clouds(number: int, split: str) -> str:
    return f"{number} {split} cloud{'s' * (number != 1)}"


def absent(values: Values) -> list[str]:
    """Return a line for the classes that have no cloud to show."""
    names = values["absent"]
    return [f"no {SPLITS[values['split']]} cloud of: {', '.join(names)}"] if names else []


def captions(one: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the title of one shown cloud and the lines below it."""
    if one["view"] is not None:
        best = one["teacher"]
        about = [f"{best['class']} {100 * best['probability']:.1f} %"]
        about += [
            f"{name} {' '.join(f'{x:.2f}' for x in one[name])}" for name in ("scale", "shift")
        ]
        return f"view {one['view']}", about
    if one["file"] is not None:
        best = one["predicted"]
        said = [f"{best['class']} {100 * best['probability']:.1f} %"] if best else []
        return printable(one["file"]), [*said, _points(one)]
    if one["stored"]:
        return "as stored", []
    label = "no label" if one["class"] is None else one["class"]
    return label, [f"{one['split']} cloud {one['cloud']}"]


def _points(one: dict[str, Any]) -> str:
    few = "" if one["points"] == one["of_points"] else f" of {one['of_points']}"
    return f"{one['points']}{few} points"


def alternative(one: dict[str, Any], up_axis: str) -> str:
    """Return one shown cloud in words, for those who do not see it."""
    title, about = captions(one)
    sides = " by ".join(f"{side:.2f}" for side in one["extent"])
    said = ", ".join([title, *about])
    return f"Cloud of {_points(one)}: {said}; {sides} along x, y and z, up axis {up_axis}"


def page_of(values: Values, points: Sequence[np.ndarray]) -> str:
    """Return the page of the values of show() and of the points, (P, 3) each, in their order."""
    up, parts = values["up_axis"], []
    for name, members in _groups(values):
        frame, figures = _frame(values, points, members), []
        for i in members:
            title, about = captions(values["shown"][i])
            text, said = "\n".join([title, *about]), alternative(values["shown"][i], up)
            figures.append(clouds.cloud_figure(points[i], text, said, up_axis=up, frame=frame))
        parts += [f"<h2>{escape(name)}</h2>"] if name else []
        parts += ['<div class="clouds">', *figures, "</div>"]
    title, told = heading(values)
    lines = [told, *absent(values)]
    lines += [f"made from {values['source']}"] if values["source"] else []
    lines += [OF_VIEWS] if values["kind"] == "record" else []
    above = [f"<p>{escape(line[0].upper() + line[1:])}.</p>" for line in lines]
    return page(
        title,
        "\n".join([*above, clouds.HINT, *parts]),
        styles=clouds.STYLE,
        scripts=clouds.SCRIPT,
        maker=MAKER,
    )


def pictures_of(values: Values, points: Sequence[np.ndarray], width: int) -> list[str]:
    """Return the same in letters of braille, in lines of at most `width` cells."""
    up, lines = values["up_axis"], []
    columns = next((size for most, size in SIZES if len(points) <= most), MANY)
    columns = max(4, min(columns, width))
    for name, members in _groups(values):
        frame, drawn = _frame(values, points, members), []
        for i in members:
            title, about = captions(values["shown"][i])
            picture = braille.picture(points[i], columns, columns // 2, up, frame)
            at_end = values["kind"] == "files"  # the end of a path tells more than its start
            drawn.append((picture, [braille.fitted(title, columns, at_end), *about[:1]]))
        lines += [*([name] if name else []), *braille.side_by_side(drawn, width), ""]
    return lines


def _groups(values: Values) -> list[tuple[str, list[int]]]:
    """Return (heading, indices into shown): a group for each cloud of a record, else one group."""
    if values["kind"] != "record":
        return [("", list(range(len(values["shown"]))))]
    groups: dict[int, list[int]] = {}
    for i, one in enumerate(values["shown"]):
        groups.setdefault(one["cloud"], []).append(i)
    labels = (values["shown"][members[0]]["class"] or "no label" for members in groups.values())
    return [
        (f"training cloud {cloud}: {label}", members)
        for (cloud, members), label in zip(groups.items(), labels, strict=True)
    ]


def _frame(values: Values, points: Sequence[np.ndarray], members: list[int]) -> np.ndarray | None:
    """Return what the pictures of a group must all hold: of a record its cloud in every view."""
    if values["kind"] != "record":
        return None
    return np.concatenate([points[i] for i in members])
