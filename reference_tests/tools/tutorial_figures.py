"""The figures of the lessons, from our own code: needs matplotlib (extra `docs`).

    python -m reference_tests.tools.tutorial_figures docs/tutorial/figures

The numbers come from functions of their own, which a test asks.
"""

import sys
from pathlib import Path

import numpy as np

from minipc.data import augment
from minipc.data.shapes import make_shapes
from minipc.nn import groups, ops
from minipc.nn.losses import LossConfig, margins
from reference_tests.tools.figures import TILT, TURN

A, T = 0.9, 4.0  # of chapter 4
H = 10.0 ** np.arange(-1, -11, -0.5)  # steps of chapter 2


def cloud(family, points=128):
    """Return the first built-in cloud (P, 3) of a family."""
    made = make_shapes(0, 2, 0, points)
    return made.train_points[made.train_labels == made.class_names.index(family)][0]


def winners(channels):
    """Return the points of chapter 1 that win at least one of some channels, by index."""
    W = np.random.default_rng(0).standard_normal((3, channels))
    x = cloud("chair")[None].astype(np.float64)
    y, _ = ops.linear_forward(x, W)
    _, cache = ops.point_max_forward(ops.relu_forward(y)[0])
    return np.unique(cache.first)


def steps():
    """Return {name: relative errors of the slope of y = x / |x|, one for each of H}."""
    rng = np.random.default_rng(0)
    x, dy, u = rng.standard_normal((3, 5, 3))
    u /= np.linalg.norm(u)

    def loss(x, dy):
        return (x / np.sqrt((x * x).sum(axis=1, keepdims=True)) * dy).sum()

    length = np.sqrt((x * x).sum(axis=1, keepdims=True))
    y = x / length
    slope = ((dy - y * (y * dy).sum(axis=1, keepdims=True)) / length * u).sum()

    def errors(dtype, claimed):
        one, of, along = (array.astype(dtype) for array in (x, dy, u))
        found = []
        for h in H.astype(dtype):
            difference = loss(one + h * along, of) - loss(one - h * along, of)
            found.append(abs(float(difference) / (2 * float(h)) - claimed) / abs(claimed))
        return np.array(found)

    return {
        "float64": errors(np.float64, slope),
        "float64, 1 % wrong": errors(np.float64, 1.01 * slope),
        "float32": errors(np.float32, slope),
    }


def views(family="aeroplane", count=4):
    """Return the cloud of a family and some views of it, each (P, 3)."""
    stored = cloud(family)
    drawn = [augment.draw(0, view, 0, 1, augment.AugmentConfig()) for view in range(count)]
    return [stored, *(augment.apply(stored[None], params)[0] for params in drawn)]


def margin_bars():
    """Return {b: margins (4,)} of the row of chapter 4."""
    y, v, u = np.array([[1.0, 0, 0, 0]]), np.array([[6.0, 1, 0, -6]]), np.array([[3.0, 1, 0, 2]])
    p, r = (np.exp(ops.log_softmax_forward(z / T)[0]) for z in (v, u))
    return {
        b: margins(y, p, r, np.array([[b]]), LossConfig(A, b, T, 0.0, "none"))[0]
        for b in (0.0, 0.1, 0.2)
    }


def moments():
    """Return points (P, 2), their covariance (2, 2), and a unit direction w (2,)."""
    points = cloud("lamp")[:, [0, 2]].astype(np.float64)
    return points, np.cov(points.T, bias=True), np.array([0.5, np.sqrt(0.75)])


def cover(most=64):
    """Return (counts, farthest, random): the largest distance of a point from its next centre."""
    points = cloud("chair", 512)
    chosen = groups.farthest_points(points[None], most)[0]
    drawn = np.random.default_rng(0).permutation(len(points))[:most]

    def largest(centres):
        distance = np.linalg.norm(points[:, None] - points[centres], axis=2)
        return np.minimum.accumulate(distance, axis=1).max(axis=0)

    return np.arange(1, most + 1), largest(chosen), largest(drawn)


def draw(folder):
    """Write the figures into a folder."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "minipc",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot

    def figure(columns, width, height):
        return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")

    def save(drawing, name):
        drawing.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None})
        pyplot.close(drawing)

    _draw_winners(figure, save)
    _draw_steps(figure, save)
    _draw_views(figure, save)
    _draw_margins(figure, save)
    _draw_moments(figure, save)
    _draw_cover(figure, save)


def _seen(points):
    """Return points (P, 3) as they are seen, (P, 2): turned, and tilted towards the eye."""
    turn, tilt = np.deg2rad(TURN), np.deg2rad(TILT)
    across = np.array([np.cos(turn), np.sin(turn), 0])
    up = np.array([-np.sin(tilt) * np.sin(turn), np.sin(tilt) * np.cos(turn), np.cos(tilt)])
    return np.stack([points @ across, points @ up], axis=1)


def _draw_winners(figure, save):
    drawing, panels = figure(2, 6.4, 3.0)
    points = _seen(cloud("chair"))
    for panel, channels in zip(panels, (8, 64), strict=True):
        won = winners(channels)
        panel.plot(*points.T, ".", color="0.7", markersize=4)
        panel.plot(*points[won].T, "o", color="tab:blue", markersize=6)
        panel.set_title(f"{channels} channels: {len(won)} points win", fontsize=9)
        panel.set_aspect("equal")
        panel.set_axis_off()
    save(drawing, "winners")


def _draw_steps(figure, save):
    drawing, plot = figure(1, 6.4, 3.2)
    styles = ("o-", "s--", "^:")
    for (name, errors), style in zip(steps().items(), styles, strict=True):
        plot.loglog(H, np.maximum(errors, 1e-13), style, label=name, markersize=4)
    plot.set(xlabel="h", ylabel="relative error of the slope", ylim=(1e-13, 10))
    plot.invert_xaxis()
    drawing.legend(loc="outside right center", frameon=False)
    save(drawing, "steps")


def _draw_views(figure, save):
    drawing, panels = figure(5, 7.6, 1.7)
    for number, (panel, points) in enumerate(zip(panels, views(), strict=True)):
        panel.plot(*_seen(points).T, ".", color="tab:blue" if number else "0.4", markersize=2.5)
        panel.plot(*_seen(np.zeros((1, 3))).T, "+", color="black", markersize=7)
        panel.set_title(f"view {number - 1}" if number else "stored", fontsize=9)
        panel.set(xlim=(-1.2, 1.2), ylim=(-0.9, 0.9), xticks=[], yticks=[], aspect="equal")
    drawing.supxlabel("+ is the origin", fontsize=8)
    save(drawing, "views")


def _draw_margins(figure, save):
    drawing, panels = figure(3, 6.4, 2.6)
    for panel, (b, M) in zip(panels, margin_bars().items(), strict=True):
        for i, value in enumerate(M):
            style = {"color": "tab:red", "hatch": "////"} if value < 0 else {"color": "tab:blue"}
            panel.bar(i, value, edgecolor="black", linewidth=0.6, **style)
            panel.annotate(
                f"{value:.3f}",
                (i, value),
                (0, 3 if value >= 0 else -10),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
        panel.axhline(0, color="black", linewidth=0.8)
        bound = "a lower bound" if M.min() >= 0 else "no lower bound"
        panel.set_title(f"b = {b:g}: {bound}", fontsize=9)
        panel.set(xlabel="class i", xticks=range(4), ylim=(-0.45, 2.8))
    panels[0].set_ylabel("margin M_i")
    save(drawing, "margins")


def _draw_moments(figure, save):
    drawing, plot = figure(1, 5.0, 3.2)
    points, C, w = moments()
    mu, sigma = points.mean(axis=0), np.sqrt(w @ C @ w)
    angle = np.linspace(0, 2 * np.pi, 100)
    ellipse = mu + np.stack([np.cos(angle), np.sin(angle)], axis=1) @ np.linalg.cholesky(C).T
    plot.plot(*points.T, ".", color="0.6", markersize=4, label="rows x_r")
    plot.plot(*ellipse.T, "-", color="tab:blue", label="covariance C")
    ends = np.stack([mu - sigma * w, mu + sigma * w])
    plot.plot(*np.stack([mu, mu + w]).T, ":", color="black", linewidth=1, label="direction w")
    plot.plot(*ends.T, "|-", color="tab:red", linewidth=2, label="± sigma: root of w · C w")
    plot.plot(*mu, "k+", markersize=9, label="mean mu")
    plot.set_aspect("equal")
    plot.set_axis_off()
    drawing.legend(loc="outside right center", frameon=False)
    save(drawing, "moments")


def _draw_cover(figure, save):
    drawing, plot = figure(1, 6.4, 2.8)
    counts, farthest, random = cover()
    plot.plot(counts, random, "--", color="tab:orange", label="random points")
    plot.plot(counts, farthest, "-", color="tab:blue", label="farthest points")
    plot.set(xlabel="centres m", ylabel="largest distance\nfrom a centre", ylim=(0, None))
    drawing.legend(loc="outside right center", frameon=False)
    save(drawing, "cover")


if __name__ == "__main__":
    draw(sys.argv[1])
