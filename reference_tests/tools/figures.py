"""The figures of the pages, from our own loss and groups: needs matplotlib (extra `figures`).

    python -m reference_tests.tools.figures docs/figures

The numbers come from functions of their own, which a test asks.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minipc.audit.bound import example_rows, unbounded_shares
from minipc.data.augment import AugmentConfig
from minipc.data.augment import draw as draw_views
from minipc.data.shapes import make_shapes
from minipc.distil.self_target import Ema, SecondRecord, Snapshot
from minipc.models.pointnet2 import prepare, sizes
from minipc.nn.losses import LossConfig, loss_backward, loss_forward
from minipc.nn.ops import linear_backward, linear_forward

STEPS, EVERY, RATE = 4000, 20, 0.5  # of the toy; snapshots every 20 steps
A, B, T = 0.9, 0.2, 2.5
TURN, TILT = 25, 55  # of the view on the cloud, degrees


def walk():
    """Return t and {name: loss at z = (2, 1, 0, -t)} of the row of docs/math.md."""
    t = np.linspace(0, 400, 201)
    z = np.stack([np.full_like(t, 2), np.full_like(t, 1), np.zeros_like(t), -t], axis=1)
    y, v, u = np.array([[1.0, 0, 0, 0]]), np.array([[6.0, 1, 0, -6]]), np.array([[3.0, 1, 0, 2]])
    curves = {}
    for name, b, guard in (
        ("b = 0", 0.0, "none"),
        ("b = 0.095, raw", 0.095, "none"),
        ("b = 0.2, raw", 0.2, "none"),
        ("b = 0.2, guarded", 0.2, "clip"),
    ):
        config = LossConfig(0.9, b, 4.0, 0.0, guard)
        total = np.array(
            [float(loss_forward(row[None], y, v, u, np.ones(1), config)[0].total) for row in z]
        )
        curves[name] = total - total[0]
    return t, curves


def bounded():
    """Return {(b, T): share of rows without a lower bound}: the map that `minipc loss` prints."""
    config = LossConfig()
    return unbounded_shares(example_rows(40), config.kd_weight, config.label_smoothing)


class OtherView(Snapshot):
    """History where every cloud has two views, one after the other: u is the other view's."""

    def target(self, rows, points):
        u, has = super().target(rows, points)
        return u.reshape(-1, 2, u.shape[1])[:, ::-1].reshape(u.shape), has


def toy():
    """Return {kind: distances} of a linear student from the end of distillation alone.

    Eight clouds of two views each, five features, four classes; the student cannot match its
    teacher exactly.  All start near the end of distillation alone and go on with a self target of
    kind "snapshot", "ema", "history" or "record", subtracted with b = 0.2, no guard.
    """
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((8, 5)), 2, axis=0) + 0.3 * rng.standard_normal((16, 5))
    v = 2 * np.repeat(rng.standard_normal((8, 4)), 2, axis=0)
    y, rows = np.eye(4)[v.argmax(axis=1)], np.arange(len(x))

    def forward(params, points):
        return linear_forward(points, params["W"])[0]

    def gradient(W, u, b):
        z, cache = linear_forward(x, W)
        loss = LossConfig(A, b, T, 0.0, "none")
        return linear_backward(
            loss_backward(loss_forward(z, y, v, u, np.ones(len(x)), loss)[1]), cache
        )[1]

    fixed = np.zeros((5, 4))
    for _ in range(STEPS):
        fixed = fixed - RATE * gradient(fixed, v, 0.0)
    away = rng.standard_normal(fixed.shape)
    start = fixed + 0.3 * (
        away - away.mean(axis=1, keepdims=True)
    )  # what all logits share changes nothing
    targets = {
        "snapshot": Snapshot(forward),
        "ema": Ema(forward, 0.99),
        "history": OtherView(forward),
        "record": SecondRecord(lambda epoch: x @ (0.5 * fixed)),
    }
    distances = {kind: [] for kind in targets}
    for kind, target in targets.items():
        target.epoch_starts(0, np)
        W = start
        for step in range(STEPS):
            if kind == "ema":
                target.stepped(rows, None, {"W": W})
            elif kind == "history" or kind == "snapshot" and step % EVERY == 0:
                target.epoch_ended(-1, {"W": W})
            if step % EVERY == 0:
                distances[kind].append(float(np.linalg.norm(W - fixed)))
            W = W - RATE * gradient(W, target.target(rows, x)[0], B)
    return distances


class Shown(NamedTuple):
    """One level of the figure of groups: what its groups read, and one of them."""

    points: np.ndarray  # (N, 3), of which the level reads
    centres: np.ndarray  # (M,) indices of points
    group: np.ndarray  # (k,) indices of points


def groups(family="aeroplane", levels=(64, 16), members=12, number=7):
    """Return Shown of each level for a built-in cloud of 512 points, and group `number` of each.

    The first M' of M centres are the centres of M', so that group has one centre on all levels.
    """
    made = make_shapes(0, 1, 0, 512)
    points = made.train_points[made.class_names.index(family)]
    text = ",".join(f"{count}/{members}:8" for count in levels)
    arrays = iter(prepare(sizes(f"{text},8:8", 2), points[None]))
    shown = []
    for centres, of_members in zip(arrays, arrays, strict=True):
        shown.append(Shown(points, centres[0], of_members[0, number]))
        points = points[centres[0]]
    return shown


def _draw_groups(pyplot, folder):
    """One panel a level: the cloud, what the level reads, its centres, one group."""
    drawing, panels = pyplot.subplots(1, 2, figsize=(7.6, 3.3), layout="constrained")
    levels = groups()
    cloud, first = levels[0].points, levels[0].points[levels[0].centres]
    for number, (panel, level) in enumerate(zip(panels, levels, strict=True), 1):

        def show(points, label, style, panel=panel, **marks):
            panel.plot(*flat(points), style, label=label, **marks)

        members, centre = level.points[level.group], level.points[level.group[0]]
        for member in members:
            show(np.stack([centre, member]), None, "-", color="tab:red", linewidth=0.9)
        show(cloud, "the cloud: points of level 1", ".", color="0.78", markersize=3)
        show(first, "centres of level 1: points of level 2", "o", color="tab:blue", markersize=4)
        if number == 2:
            at = level.points[level.centres]
            show(at, "centres of level 2", "s", color="tab:orange", markersize=5.5)
        ring = dict(
            markersize=5 + 2 * number, markerfacecolor="none", color="tab:red", markeredgewidth=1
        )
        show(members, "one group: its members", "o", **ring)
        show(centre[None], "its centre, the same on both levels", "*", color="black", markersize=9)
        groups_of, of = f"{len(level.centres)} groups of {len(members)} from the", len(level.points)
        panel.set_title(
            f"level {number}: {groups_of} {of} {'points' if number == 1 else 'centres of level 1'}",
            fontsize=9,
        )
        panel.set_aspect("equal")
        panel.set_axis_off()
    drawing.legend(
        *panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    drawing.savefig(Path(folder, "groups.svg"), metadata={"Date": None})
    pyplot.close(drawing)


def flat(points):
    """Return points (N, 3) as the viewer of a figure sees them: across (N,), up (N,)."""
    turn, tilt = np.deg2rad(TURN), np.deg2rad(TILT)
    across = np.array([np.cos(turn), np.sin(turn), 0])
    up = np.array([-np.sin(tilt) * np.sin(turn), np.sin(tilt) * np.cos(turn), np.cos(tilt)])
    return points @ across, points @ up


def _dots(points, x, y, size, kind="dot"):
    """Return SVG of a cloud around (x, y), its unit sphere of radius `size`."""
    across, up = flat(points)
    at = "".join(
        f"M{x + size * a:.1f} {y - size * u:.1f}h0" for a, u in zip(across, up, strict=True)
    )
    return f'<path class="{kind}" d="{at}"/>'


STYLE = """
text { font: 13px sans-serif; fill: #1f2933; text-anchor: middle }
.small { font-size: 11px; fill: #52606d }
.left { text-anchor: start }
.name { font-weight: bold }
.card { fill: #ffffff }
.box { fill: #e8eef6; stroke: #34557f; stroke-width: 1.5 }
.file { fill: #fdf3dc; stroke: #8a6100; stroke-width: 1.5 }
.dot, .grey { stroke: #34557f; stroke-width: 2.2; stroke-linecap: round }
.grey { stroke: #7b8794 }
.arrow { fill: none; stroke: #1f2933; stroke-width: 1.5; marker-end: url(#head) }
.between { stroke: #9aa5b1; stroke-width: 1.5; stroke-dasharray: 6 5 }
"""
HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 8 4 0 8Z" fill="#1f2933"/></marker>'
)


def svg(width, height, title, parts):
    """Return a whole SVG on a white card."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img"><title>{title}</title>'
        f"<style>{STYLE}</style><defs>{HEAD}</defs>"
        f'<rect class="card" width="{width}" height="{height}" rx="10"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _text(x, y, text, kind=""):
    return f'<text x="{x}" y="{y}" class="{kind}">{text}</text>'


def _arrow(*corners):
    return f'<path class="arrow" d="M{" L".join(f"{x} {y}" for x, y in corners)}"/>'


def _box(x, y, width, height, lines, kind="box"):
    """Return SVG of a rounded box around (x, y) with lines, the first one its name."""
    first = y + 5 - 8 * (len(lines) - 1)
    return (
        f'<rect class="{kind}" x="{x - width / 2}" y="{y - height / 2}" width="{width}" '
        f'height="{height}" rx="7"/>'
        + "".join(
            _text(x, first + 16 * i, line, "small" if i else "name") for i, line in enumerate(lines)
        )
    )


def way(family="aeroplane", points=160):
    """Return the SVG of the way from a cloud to a student: record once, replay elsewhere."""
    made = make_shapes(0, 1, 0, points)
    cloud = made.train_points[made.class_names.index(family)]
    views = draw_views(0, 0, 0, 3, AugmentConfig())
    top, below, parts = 90, 285, []
    for row in (top, below):
        for number, at in enumerate((225, 290, 355)):
            moved = cloud * views.scale[number] + 0.5 * views.shift[number]
            parts.append(_dots(0.75 * moved, at, row, 42))
    middle = (top + below) / 2
    parts += [
        _dots(cloud, 75, middle, 52, "grey"),
        _text(75, middle + 62, "a training cloud"),
        _arrow((110, middle - 25), (150, top), (185, top)),
        _arrow((110, middle + 25), (150, below), (185, below)),
        _text(290, top - 50, "views: scale and shift drawn at random", "small"),
        _text(290, below + 58, "the same views, bit for bit", "small"),
        _arrow((402, top), (440, top)),
        _box(505, top, 125, 60, ["teacher", "runs once"]),
        _arrow((568, top), (643, top)),
        _text(606, top - 10, "logits", "small"),
        _box(
            720, top, 150, 76, ["record.h5", "6 numbers of the view", "and K logits a row"], "file"
        ),
        f'<path class="between" d="M170 {middle} H840"/>',
        _text(175, middle - 8, "once", "small left"),
        _text(175, middle + 17, "later, elsewhere, as often as you like", "small left"),
        _arrow((720, top + 38), (720, below - 46)),
        _arrow((402, below), (440, below)),
        _box(505, below, 125, 60, ["tiny student", "learns"]),
        _box(720, below, 150, 90, ["loss", "+ labels", "+ distillation", "- earlier self"]),
        _arrow((568, below - 10), (643, below - 10)),
        _arrow((643, below + 14), (570, below + 14)),
        _text(606, below - 18, "logits", "small"),
        _text(606, below + 32, "gradient", "small"),
    ]
    return svg(860, 365, "A teacher is recorded once; a student replays the record", parts)


def families():
    """Return the SVG of one cloud of each built-in family."""
    made = make_shapes(0, 1, 0, 300)
    parts, wide = [], 125
    for number, (name, cloud) in enumerate(zip(made.class_names, made.train_points, strict=True)):
        x, y = wide * (number % 7) + wide / 2, 65 + 140 * (number // 7)
        parts += [_dots(cloud, x, y, 52), _text(x, y + 70, name, "small")]
    return svg(7 * wide, 285, "One cloud of each of the thirteen built-in families", parts)


def draw(folder):
    """Write the figures into a folder."""
    Path(folder, "way.svg").write_text(way())
    Path(folder, "shapes.svg").write_text(families())
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "minipc",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot

    def figure(name, xlabel, ylabel, curves, **axes):
        drawing, plot = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
        for label, x, y, style in curves:
            plot.plot(x, y, style, label=label)
        plot.set(xlabel=xlabel, ylabel=ylabel, **axes)
        drawing.legend(loc="outside right center", frameon=False)
        drawing.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None})
        pyplot.close(drawing)

    t, curves = walk()
    styles = ("-", "--", "-", "-.")
    figure(
        "walk",
        "t, along z = (2, 1, 0, -t)",
        "loss - loss at t = 0",
        [
            (name, t, curve, style)
            for (name, curve), style in zip(curves.items(), styles, strict=True)
        ],
    )
    shares = bounded()
    temperatures = sorted({T for _, T in shares})
    figure(
        "bounded",
        "temperature T",
        "rows without a lower bound, %",
        [
            (f"b = {b:g}", temperatures, [100 * shares[b, T] for T in temperatures], "o-")
            for b in (0.02, 0.1, 0.2, 0.5)
        ],
    )
    steps = np.arange(0, STEPS, EVERY)
    figure(
        "self_targets",
        "step",
        "distance from where distillation alone ends",
        [
            (kind, steps, distances, style)
            for (kind, distances), style in zip(toy().items(), styles, strict=True)
        ],
        yscale="log",
    )
    _draw_groups(pyplot, folder)


if __name__ == "__main__":
    draw(sys.argv[1])
