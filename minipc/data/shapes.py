"""Built-in procedural shapes: thirteen families of everyday objects, as labelled point clouds.

A first data set that needs no download, but not a benchmark of anything real.  Families share
parts and proportions on purpose (plates on legs, boxes with boards, turned vessels).  To tell them
apart takes many small feature detectors, so a wide network does better than a narrow one.  Neither
labels nor coordinates carry noise; members of a family differ in parameters.

A family is a function of a generator that returns a list of parts, each a soup of triangles
(F, 3, 3) float64, z up, in any unit of length; furniture faces +x.  A cloud is sampled from all
its parts uniformly by area, turned about the up axis to within 15 degrees of one of four headings
(as furniture stands along walls) and normalised to the unit sphere.  This is not a mesh library:
parts may cross, and surfaces inside an object are sampled like those outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from minipc.data.clouds import Clouds, Splits, made_from
from minipc.errors import UsageError
from minipc.streams import check_seed, stream

UP_AXIS = "z"
YAW = 15.0  # degrees, largest turn away from the nearest of the four headings


class Shapes(NamedTuple):
    """Both splits, ordered by class and then by index within the class."""

    train_points: np.ndarray  # (K * train_per_class, P, 3) float32, centroid 0, largest radius 1
    train_labels: np.ndarray  # (K * train_per_class,) int64, indices into class_names
    test_points: np.ndarray  # (K * test_per_class, P, 3) float32
    test_labels: np.ndarray  # (K * test_per_class,) int64
    class_names: tuple[str, ...]  # K


def make_shapes(
    seed: int = 0, train_per_class: int = 100, test_per_class: int = 50, points: int = 256
) -> Shapes:
    """Return Shapes with this many clouds of each family in each split, of P = points points each.

    Each cloud has its own stream, named by family, split and index, so it does not depend on the
    number of clouds.  The object does not depend on points; its sample does.  Raises UsageError
    for negative counts, fewer than one point and an invalid seed.
    """
    check_seed(seed)
    for name, value, least in (
        ("train_per_class", train_per_class, 0),
        ("test_per_class", test_per_class, 0),
        ("points", points, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name}: expected an integer of at least {least}, got {value!r}")
    train = _split(seed, "train", train_per_class, points)
    test = _split(seed, "test", test_per_class, points)
    return Shapes(*train, *test, class_names=tuple(name for name, _ in FAMILIES))


def built_in_shapes(seed: int = 0) -> Splits:
    """Return the built-in shapes as Splits, as `minipc data make` writes them."""
    made = make_shapes(seed)
    common: dict[str, Any] = dict(
        class_names=made.class_names,
        up_axis=UP_AXIS,
        normalisation="unit_sphere",
        source=made_from(f"built-in shapes, seed {seed}"),
    )
    return Splits(
        Clouds(made.train_points, made.train_labels, **common),
        Clouds(made.test_points, made.test_labels, **common),
    )


def _split(seed: int, split: str, per_class: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points (K * per_class, P, 3) float32 and labels (K * per_class,) int64."""
    clouds = np.empty((len(FAMILIES), per_class, points, 3), np.float32)
    for label, (name, family) in enumerate(FAMILIES):
        for index in range(per_class):
            rng = stream(seed, f"shapes {name} {split}", index)
            clouds[label, index] = _cloud(family, rng, points)
    labels = np.repeat(np.arange(len(FAMILIES), dtype=np.int64), per_class)
    return clouds.reshape(-1, points, 3), labels


def _cloud(
    family: Callable[[Generator], list[np.ndarray]], rng: Generator, points: int
) -> np.ndarray:
    """Return one normalised cloud (P, 3) float64 of a new member of the family.

    A cloud of a single point is the origin: it has no radius to normalise.
    """
    triangles = np.concatenate(family(rng))
    turn = np.pi / 2 * rng.integers(4) + rng.uniform(-1, 1) * np.deg2rad(YAW)
    cloud = _sample(triangles, rng, points)  # drawn last: its length shifts nothing else
    c, s = np.cos(turn), np.sin(turn)
    cloud = cloud @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    cloud -= cloud.mean(axis=0)
    radius = np.sqrt((cloud * cloud).sum(axis=1).max())
    return cloud / radius if radius > 0 else cloud


def _sample(triangles: np.ndarray, rng: Generator, points: int) -> np.ndarray:
    """Return points (P, 3) spread uniformly by area over triangles (F, 3, 3)."""
    edges = triangles[:, 1:] - triangles[:, :1]  # (F, 2, 3)
    (ux, uy, uz), (vx, vy, vz) = edges.transpose(1, 2, 0)  # np.cross is several times slower
    area = np.sqrt((uy * vz - uz * vy) ** 2 + (uz * vx - ux * vz) ** 2 + (ux * vy - uy * vx) ** 2)
    upto = np.cumsum(area)
    which, a, b = rng.random((3, points))
    face = np.searchsorted(upto, which * upto[-1], side="right").clip(max=len(area) - 1)
    outside = a + b > 1  # the other half of the parallelogram: reflect it onto the triangle
    a, b = np.where(outside, 1 - a, a), np.where(outside, 1 - b, b)
    return triangles[face, 0] + a[:, None] * edges[face, 0] + b[:, None] * edges[face, 1]


# Parts.  Each is a soup of triangles (F, 3, 3), or a list of soups.

Vector = tuple[float, float, float]

_CUBE = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_CUBE_QUADS = np.array(  # the corners of each face as rows of _CUBE, going round
    [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]
)
_CUBE_FACES = np.concatenate([_CUBE_QUADS[:, [0, 1, 2]], _CUBE_QUADS[:, [0, 2, 3]]])  # (12, 3)


def _box(centre: Vector, size: Vector, lean: float = 0.0) -> np.ndarray:
    """A closed box with edges along the axes; lean moves its top along x."""
    corners = _CUBE * size + centre
    corners[:, 0] += lean * (_CUBE[:, 2] + 0.5)
    return corners[_CUBE_FACES]


def _surface(grid: np.ndarray) -> np.ndarray:
    """The triangles between neighbours in a grid of points (m, n, 3)."""
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    faces = np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)])
    return faces.reshape(-1, 3, 3)


def _circle(sides: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, (sides + 1,) each, of equal steps around a circle; the last is the first."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    return np.cos(angle), np.sin(angle)


def _turned(profile: list[tuple[float, float]]) -> np.ndarray:
    """A surface of revolution about z; profile is a list of (radius, height)."""
    radius, height = np.array(profile, float).T[:, :, None]
    c, s = _circle(16)
    return _surface(np.stack(np.broadcast_arrays(radius * c, radius * s, height), axis=2))


def _disc(radius: float, low: float, thick: float) -> np.ndarray:
    """A round plate from height low up to low + thick."""
    return _turned([(0, low), (radius, low), (radius, low + thick), (0, low + thick)])


def _tube(x: np.ndarray, z: np.ndarray, radius: float) -> np.ndarray:
    """An open tube of this radius along a path (x, z) in the plane y = 0."""
    path = np.stack([x, np.zeros_like(x), z], axis=1)
    tangent = np.gradient(path, axis=0)
    tangent /= np.sqrt((tangent**2).sum(axis=1, keepdims=True))
    normal = tangent[:, [2, 1, 0]] * [-1, 0, 1]
    c, s = _circle(6)
    ring = c[:, None] * normal[:, None] + s[:, None] * np.array([0.0, -1.0, 0.0])
    return _surface(path[:, None] + radius * ring)


def _legs(x: float, y: float, height: float, thick: float, splay: float = 0.0) -> list[np.ndarray]:
    """Four square legs, a list, from the corners (+-x, +-y) at height down to the floor.

    The foot of each stands splay further out along x and along y.
    """
    leg = _box((0, 0, height / 2), (thick, thick, height))
    out = splay * (leg[..., 2] <= 0)
    legs = []
    for i in (-1, 1):
        for j in (-1, 1):
            legs.append(leg + [i * x, j * y, 0])
            legs[-1][..., 0] += i * out
            legs[-1][..., 1] += j * out
    return legs


def _raised_plate(
    rng: Generator, depth: float, length: float, height: float
) -> tuple[list[np.ndarray], float, float]:
    """A plate on four legs, a list with the plate first; x and y of the legs at the plate."""
    u = rng.uniform
    thick, leg, inset, splay = u(0.03, 0.08), u(0.035, 0.08), u(0.03, 0.1), u(0.0, 0.08)
    x, y = depth / 2 - inset, length / 2 - inset
    plate = _box((0, 0, height + thick / 2), (depth, length, thick))
    return [plate, *_legs(x, y, height, leg, splay)], x, y


def _back(rng: Generator, x: float, y: float, height: float, back: float) -> list[np.ndarray]:
    """A backrest between posts (x, +-y), a list: a panel, or two or three rails.

    It starts at height, rises by back and leans away from the seat.
    """
    u = rng.uniform
    lean, z = -u(0.0, 0.15), height + back / 2
    if u() < 0.4:
        return [_box((x, 0, z), (0.04, 2 * y, back), lean)]
    posts = [_box((x, side * y, z), (0.05, 0.05, back), lean) for side in (-1, 1)]
    levels = np.linspace(u(0.3, 0.6), u(0.85, 1.0), int(rng.integers(2, 4)))
    rail = u(0.05, 0.12)
    return posts + [_box((x + lean * t, 0, height + back * t), (0.03, 2 * y, rail)) for t in levels]


def _handle(rng: Generator, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    """A D-shaped handle in the half plane x > 0 between two places (x, z)."""
    reach, thick = rng.uniform(0.25, 0.45), rng.uniform(0.04, 0.06)
    t = np.linspace(0, 1, 9)
    x, z = np.outer(low, 1 - t) + np.outer(high, t)
    return _tube(x + reach * np.sin(np.pi * t).clip(min=0) ** 0.7, z, thick)


def _wing(root: Vector, chord: float, sweep: float, span: np.ndarray) -> np.ndarray:
    """A swept plate from root (3,), its middle, along span (3,) to a narrower tip."""
    edge = np.array([[chord / 2, 0, 0], [-chord / 2, 0, 0]])
    tip = root + span - np.array([sweep, 0, 0])
    return _surface(np.stack([root + edge, tip + 0.6 * edge]))


# Families, by name.  Those that look alike draw from overlapping ranges on purpose.


def _aeroplane(rng: Generator) -> list[np.ndarray]:
    """A fuselage along x with tapered ends, two swept wings, a tail plane and a fin."""
    u = rng.uniform
    length, r = u(1.4, 2.0), u(0.08, 0.16)
    t = np.array([0, 0.05, 0.15, 0.5, 0.75, 1])
    radii = r * np.array([0, 0.6, 1, 1, 0.8, 0.2])
    body = _turned(list(zip(radii, -length * t, strict=True)))[..., [2, 1, 0]]  # along x
    parts = [body + [length / 2, 0, 0]]
    span, chord, at = u(0.5, 1.0), u(0.2, 0.4), u(-0.1, 0.2)
    sweep, tail = u(0.0, 0.5), -0.45 * length
    for side in (-1, 1):
        parts.append(_wing((at, 0, u(-0.5, 0.5) * r), chord, sweep, side * np.array([0, span, 0])))
        parts.append(
            _wing((tail, 0, 0), 0.6 * chord, 0.5 * sweep, side * np.array([0, 0.4 * span, 0]))
        )
    return [*parts, _wing((tail, 0, 0), 0.6 * chord, 0.3, np.array([0, 0, u(0.25, 0.5)]))]


def _bed(rng: Generator) -> list[np.ndarray]:
    """A mattress on short legs, a headboard, a footboard on some, two pillows."""
    u = rng.uniform
    length, width, low, thick = u(1.5, 2.1), u(0.8, 1.7), u(0.05, 0.35), u(0.15, 0.35)
    top = low + thick
    parts = [_box((0, 0, low + thick / 2), (length, width, thick))]
    parts += _legs(length / 2 - 0.1, width / 2 - 0.1, low, u(0.06, 0.12))
    head, board = top + u(0.2, 0.7), u(0.05, 0.15)
    parts.append(_box((-length / 2, 0, head / 2), (board, width, head), -u(0, 0.1)))
    if u() < 0.5:
        foot = top + u(0.05, 0.35)
        parts.append(_box((length / 2, 0, foot / 2), (board, width, foot)))
    for side in (-1, 1):
        at = (0.3 - length / 2, side * width / 4, top + 0.07)
        parts.append(_box(at, (0.4, 0.38 * width, 0.14)))
    return parts


def _bench(rng: Generator) -> list[np.ndarray]:
    """A long seat on four legs or two end panels, with an H of bars below; a back on some."""
    u = rng.uniform
    depth, length, height = u(0.4, 0.7), u(0.9, 1.8), u(0.35, 0.7)
    parts, x, y = _raised_plate(rng, depth, length, height)
    if u() < 0.4:
        parts[1:] = [_box((0, side * y, height / 2), (2 * x, 0.06, height)) for side in (-1, 1)]
    bar = height * u(0.1, 0.8)
    parts.append(_box((0, 0, bar), (0.05, 2 * y, u(0.03, 0.06))))
    parts += [_box((0, side * y, bar), (2 * x, 0.04, 0.04)) for side in (-1, 1)]
    if u() < 0.5:
        parts += _back(rng, -x, y, height, u(0.3, 0.5))
    return parts


def _bottle(rng: Generator) -> list[np.ndarray]:
    """A closed turned body with a shoulder, a neck and a cap."""
    u = rng.uniform
    r, height, neck = u(0.18, 0.4), u(0.9, 1.5), u(0.06, 0.14)
    shoulder, low = height * u(0.45, 0.7), height * u(0.72, 0.85)
    base, waist = r * u(0.7, 1.1), r * u(0.8, 1.1)
    profile = [
        (0, 0),
        (base, 0),
        (waist, shoulder / 2),
        (r, shoulder),
        (neck, low),
        (neck, height),
        (0, height),
    ]
    return [_turned(profile)]


def _bowl(rng: Generator) -> list[np.ndarray]:
    """An open turned vessel, flat or deep, on a foot or not; a mug without a handle."""
    u = rng.uniform
    rim, height, foot = u(0.35, 0.55), u(0.25, 1.0), u(0.3, 0.95)
    t = np.linspace(0, 1, 8)
    wall = rim * (foot + (1 - foot) * t ** u(0.3, 1.2))
    parts = [_turned([(0, 0), *zip(wall, height * t, strict=True)])]
    if u() < 0.3:
        parts.append(_turned([(wall[0] * 0.7, 0), (wall[0] * 0.7, -0.08)]))
    return parts


def _chair(rng: Generator) -> list[np.ndarray]:
    """A seat on four legs with a back."""
    u = rng.uniform
    depth, width, height = u(0.45, 0.7), u(0.45, 0.8), u(0.35, 0.7)
    parts, x, y = _raised_plate(rng, depth, width, height)
    return parts + _back(rng, -x, y, height, u(0.35, 0.7))


def _desk(rng: Generator) -> list[np.ndarray]:
    """A plate on four legs with a block of drawers under one end."""
    u = rng.uniform
    depth, length, height = u(0.5, 0.9), u(0.7, 1.6), u(0.45, 0.85)
    parts, x, y = _raised_plate(rng, depth, length, height)
    block, drop = length * u(0.2, 0.4), height * u(0.25, 0.95)
    parts.append(_box((0, y - block / 2, height - drop / 2), (2 * x, block, drop)))
    return parts


def _lamp(rng: Generator) -> list[np.ndarray]:
    """A round base, a pole, straight or bent, and an open shade, or a ball."""
    u = rng.uniform
    height, wide = u(0.9, 1.6), u(0.2, 0.35)
    bend = u(0.0, 0.4) if u() < 0.5 else 0.0
    t = np.linspace(0, 1, 6)
    parts = [_disc(wide, 0, u(0.03, 0.08)), _tube(bend * t**2, height * t, u(0.015, 0.03))]
    low, shade = u(0.15, 0.3), u(0.2, 0.4)
    if u() < 0.6:
        head = _turned([(shade, -low), (shade * u(0.3, 0.8), 0.1)])
    else:
        angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
        head = _turned(list(zip(low * np.cos(angle), low * np.sin(angle), strict=True)))
    return [*parts, head + [bend, 0, height]]


def _mug(rng: Generator) -> list[np.ndarray]:
    """An open cup, straight or tapered, with one handle."""
    u = rng.uniform
    rim, height, foot = u(0.35, 0.5), u(0.5, 1.2), u(0.6, 1.0)
    t = np.linspace(0, 1, 6)
    wall, z = rim * (foot + (1 - foot) * t ** u(0.4, 1.5)), height * t
    ends = [(np.interp(at, t, wall), height * at) for at in (u(0.15, 0.4), u(0.65, 0.92))]
    return [_turned([(0, 0), *zip(wall, z, strict=True)]), _handle(rng, *ends)]


def _sofa(rng: Generator) -> list[np.ndarray]:
    """A deep seat on short legs, a back along one side and an arm at each end."""
    u = rng.uniform
    depth, length, low, thick = u(0.7, 1.3), u(1.2, 2.1), u(0.05, 0.3), u(0.15, 0.35)
    parts = [_box((0, 0, low + thick / 2), (depth, length, thick))]
    parts += _legs(depth / 2 - 0.08, length / 2 - 0.08, low, u(0.05, 0.1))
    back, arm, board = low + thick + u(0.3, 0.6), low + thick + u(0.25, 0.4), u(0.1, 0.22)
    parts.append(_box((-depth / 2, 0, back / 2), (board, length, back), -u(0, 0.1)))
    for side in (-1, 1):
        parts.append(_box((0, side * length / 2, arm / 2), (depth, board, arm)))
    return parts


def _stairs(rng: Generator) -> list[np.ndarray]:
    """Three to seven steps rising along x, closed below or open between two beams."""
    u = rng.uniform
    steps, run, rise, width = int(rng.integers(3, 8)), u(0.2, 0.3), u(0.1, 0.22), u(0.5, 1.0)
    closed, parts = u() < 0.6, []
    for i in range(1, steps + 1):
        thick = i * rise if closed else 0.04
        parts.append(_box((i * run, 0, i * rise - thick / 2), (run, width, thick)))
    if not closed:
        height, lean = steps * rise, steps * run - run
        for side in (-1, 1):
            parts.append(_box((run, side * width / 2, height / 2), (0.12, 0.04, height), lean))
    return parts


def _stool(rng: Generator) -> list[np.ndarray]:
    """A round or rectangular seat on four legs joined by four bars."""
    u = rng.uniform
    depth, length, height = u(0.4, 0.7), u(0.4, 0.9), u(0.45, 0.85)
    parts, x, y = _raised_plate(rng, depth, length, height)
    if u() < 0.5:
        parts[0] = _disc(0.6 * depth, height, 0.05)
    bar, thick = height * u(0.1, 0.7), u(0.03, 0.05)
    for side in (-1, 1):
        parts.append(_box((side * x, 0, bar), (thick, 2 * y, thick)))
        parts.append(_box((0, side * y, bar), (2 * x, thick, thick)))
    return parts


def _table(rng: Generator) -> list[np.ndarray]:
    """A round or rectangular plate on four legs, with nothing between them."""
    u = rng.uniform
    depth, length, height = u(0.5, 0.9), u(0.5, 1.6), u(0.45, 0.85)
    parts, x, y = _raised_plate(rng, depth, length, height)
    if u() < 0.4:
        parts[0] = _disc(np.hypot(x, y), height, 0.05)
    return parts


FAMILIES = (  # (class name, family): the label is the index
    ("aeroplane", _aeroplane),
    ("bed", _bed),
    ("bench", _bench),
    ("bottle", _bottle),
    ("bowl", _bowl),
    ("chair", _chair),
    ("desk", _desk),
    ("lamp", _lamp),
    ("mug", _mug),
    ("sofa", _sofa),
    ("stairs", _stairs),
    ("stool", _stool),
    ("table", _table),
)
