"""Built-in procedural shapes: fourteen families of everyday objects, as labelled point clouds.

A first data set that needs no download.  It is not a benchmark of anything real: the families
share their parts on purpose (a plate on legs, a turned body, a handle), so that telling them apart
takes many small feature detectors, and a wider network is visibly better than a narrow one.
Neither labels nor coordinates carry noise: what differs within a family is its parameters.

A family is a function of a generator that returns a soup of triangles (F, 3, 3) float64 in a unit
of its own, z up, each object facing +x or -x.  A cloud is sampled from it uniformly by area, then
turned by a uniform angle about the up axis and normalised to the unit sphere: there is no
canonical heading and no scale.
"""

from typing import NamedTuple

import numpy as np

from minipc.errors import UsageError
from minipc.streams import check_seed, stream

UP_AXIS = "z"
YAW = 15.0


class Shapes(NamedTuple):
    """Both splits, ordered by class and then by index within the class."""

    train_points: np.ndarray  # (K * train_per_class, P, 3) float32, centroid 0, largest radius 1
    train_labels: np.ndarray  # (K * train_per_class,) int64, indices into class_names
    test_points: np.ndarray  # (K * test_per_class, P, 3) float32
    test_labels: np.ndarray  # (K * test_per_class,) int64
    class_names: tuple  # K strings


def make_shapes(seed=0, train_per_class=100, test_per_class=50, points=256):
    """Return Shapes with this many clouds of each family and points P in each cloud.

    Every cloud has a stream of its own, named by family, split and index, so that it is the same
    however many others are asked for.  The object does not depend on points; its sample does.
    Raises UsageError for counts below zero, fewer than one point and a seed that is not one.
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
    return Shapes(*train, *test, tuple(name for name, _ in FAMILIES))


def _split(seed, split, per_class, points):
    """Return points (K * per_class, P, 3) float32 and labels (K * per_class,) int64."""
    clouds = np.empty((len(FAMILIES), per_class, points, 3), np.float32)
    for label, (name, family) in enumerate(FAMILIES):
        for index in range(per_class):
            rng = stream(seed, f"shapes {name} {split}", index)
            clouds[label, index] = _cloud(family, rng, points)
    labels = np.repeat(np.arange(len(FAMILIES), dtype=np.int64), per_class)
    return clouds.reshape(-1, points, 3), labels


def _cloud(family, rng, points):
    """Return one normalised cloud (P, 3) float64 of a new member of the family.

    A cloud of a single point is the origin: it has no radius to normalise.
    """
    triangles = family(rng)
    turn = np.pi / 2 * rng.integers(4) + rng.uniform(-1, 1) * np.deg2rad(YAW)
    cloud = _sample(triangles, rng, points)
    c, s = np.cos(turn), np.sin(turn)
    cloud = cloud @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    cloud -= cloud.mean(axis=0)
    radius = np.sqrt((cloud * cloud).sum(axis=1).max())
    return cloud / radius if radius > 0 else cloud


def _sample(triangles, rng, points):
    """Return points (P, 3) spread uniformly by area over triangles (F, 3, 3)."""
    corner = triangles[:, 0]
    edges = triangles[:, 1:] - triangles[:, :1]  # (F, 2, 3)
    (ux, uy, uz), (vx, vy, vz) = edges.transpose(1, 2, 0)
    area = np.sqrt((uy * vz - uz * vy) ** 2 + (uz * vx - ux * vz) ** 2 + (ux * vy - uy * vx) ** 2)
    upto = np.cumsum(area)
    which, a, b = rng.random((3, points))
    face = np.searchsorted(upto, which * upto[-1], side="right").clip(max=len(area) - 1)
    outside = a + b > 1  # the other half of the parallelogram: reflect it onto the triangle
    a, b = np.where(outside, 1 - a, a), np.where(outside, 1 - b, b)
    return corner[face] + a[:, None] * edges[face, 0] + b[:, None] * edges[face, 1]


# Parts, each a soup of triangles (F, 3, 3).

_CUBE = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_CUBE_QUADS = np.array(  # corners of each face in the order of _CUBE, going round
    [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]
)
_CUBE_FACES = np.concatenate([_CUBE_QUADS[:, [0, 1, 2]], _CUBE_QUADS[:, [0, 2, 3]]])  # (12, 3)


def _box(centre, size, lean=0.0):
    """A closed box with edges along the axes; its top is moved by lean along x."""
    corners = _CUBE * size + centre
    corners[:, 0] += lean * (_CUBE[:, 2] + 0.5)
    return corners[_CUBE_FACES]


def _surface(grid):
    """Triangles between the neighbours of a grid of points (m, n, 3)."""
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    faces = np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)])
    return faces.reshape(-1, 3, 3)


def _circle(sides):
    """cos and sin of sides + 1 equal angles, the last being the first: two arrays (sides + 1,)."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    return np.cos(angle), np.sin(angle)


def _turned(profile, sides=16, at=(0.0, 0.0, 0.0)):
    """A surface of revolution about z: profile is a list of (radius, height)."""
    radius, height = np.array(profile, float).T
    c, s = _circle(sides)
    grid = np.stack(np.broadcast_arrays(radius[:, None] * c, radius[:, None] * s, height[:, None]), 2)
    return _surface(grid + at)


def _tube(path, radius, sides=6):
    """An open tube of this radius along a planar path (m, 3)."""
    path = np.array(path, float)
    tangent = np.gradient(path, axis=0)
    across = np.cross(tangent, np.eye(3)[np.ptp(path, axis=0).argmin()])
    across /= np.sqrt((across**2).sum(axis=1, keepdims=True))
    along = np.cross(tangent / np.sqrt((tangent**2).sum(axis=1, keepdims=True)), across)
    c, s = _circle(sides)
    ring = c[None, :, None] * across[:, None] + s[None, :, None] * along[:, None]
    return _surface(path[:, None] + radius * ring)


def _legs(x, y, height, thick, splay=0.0):
    """Four square legs under the corners (+-x, +-y), from the floor up to height."""
    return [
        np.where(
            (foot := _box((i * x, j * y, height / 2), (thick, thick, height)))[..., 2:] > 0,
            foot,
            foot + np.array([i * splay, j * splay, 0]),
        )
        for i in (-1, 1)
        for j in (-1, 1)
    ]


def _handle(low, high, reach, radius):
    """A D-shaped handle in the x-z plane between (x, z) low and high, bulging by reach along x."""
    t = np.linspace(0, 1, 9)[:, None]
    chord = (1 - t) * np.array(low) + t * np.array(high)
    chord[:, :1] += reach * np.sin(np.pi * t) ** 0.7
    return _tube(np.insert(chord, 1, 0.0, axis=1), radius)


# Families.  Those that could be mistaken for one another draw from the same ranges on purpose.


def _raised_plate(rng, depth, length, height):
    """A plate on four square legs, as (parts, half depth x, half length y, leg inset dict)."""
    u = rng.uniform
    thick, leg, inset, splay = u(0.03, 0.08), u(0.035, 0.08), u(0.03, 0.1), u(0.0, 0.08)
    x, y = depth / 2 - inset, length / 2 - inset
    parts = [_box((0, 0, height + thick / 2), (depth, length, thick))]
    return parts + _legs(x, y, height, leg, splay), x, y


def _armchair(rng):
    """A chair with two arms, each a rail on a post."""
    u = rng.uniform
    parts, x, y, height, back = _chair_parts(rng)
    rise, post, rail = back * u(0.35, 0.6), u(0.2, 1.0) * x, u(0.05, 0.09)
    for side in (-1, 1):
        parts.append(_box((0, side * y, height + rise), (2 * x, rail, 0.04)))
        parts.append(_box((post, side * y, height + rise / 2), (0.05, 0.05, rise)))
    return np.concatenate(parts)


def _chair(rng):
    """A seat on four legs and a back, a panel or rails between posts."""
    return np.concatenate(_chair_parts(rng)[0])


def _chair_parts(rng):
    """Parts of a chair, half depth and half width between its posts, heights of seat and back."""
    u = rng.uniform
    depth, width, height = u(0.45, 0.7), u(0.45, 0.8), u(0.35, 0.7)
    parts, x, y = _raised_plate(rng, depth, width, height)
    back = u(0.35, 0.7)
    parts += _back(rng, -x, y, height, back)
    return parts, x, y, height, back


def _back(rng, x, y, height, back):
    """A backrest at x between the posts at +-y: a panel, or two or three rails."""
    u = rng.uniform
    lean = -u(0.0, 0.15)
    if u() < 0.4:
        return [_box((x, 0, height + back / 2), (0.04, 2 * y, back), lean)]
    posts = [_box((x, side * y, height + back / 2), (0.05, 0.05, back), lean) for side in (-1, 1)]
    levels = np.linspace(u(0.3, 0.6), u(0.85, 1.0), int(rng.integers(2, 4)))
    rail = u(0.05, 0.12)
    return posts + [_box((x + lean * t, 0, height + back * t), (0.03, 2 * y, rail)) for t in levels]


def _bench(rng):
    """A long seat on legs or end panels with a bar between them; a back on some."""
    u = rng.uniform
    depth, length, height = u(0.4, 0.7), u(0.9, 1.8), u(0.35, 0.7)
    parts, x, y = _raised_plate(rng, depth, length, height)
    if u() < 0.4:
        parts[1:] = [_box((0, s * y, height / 2), (2 * x, 0.06, height)) for s in (-1, 1)]
    bar = height * u(0.1, 0.8)
    parts.append(_box((0, 0, bar), (0.05, 2 * y, u(0.03, 0.06))))
    parts += [_box((0, s * y, bar), (2 * x, 0.04, 0.04)) for s in (-1, 1)]
    if u() < 0.5:
        parts += _back(rng, -x, y, height, u(0.3, 0.5))
    return np.concatenate(parts)


def _desk(rng):
    """A plate on four legs with drawers under one end."""
    u = rng.uniform
    depth, length, height = u(0.5, 0.9), u(0.7, 1.6), u(0.45, 0.85)
    parts, x, y = _raised_plate(rng, depth, length, height)
    block, drop = length * u(0.2, 0.4), height * u(0.25, 0.95)
    parts.append(_box((0, y - block / 2, height - drop / 2), (2 * x, block, drop)))
    return np.concatenate(parts)


def _bookcase(rng):
    """Two side panels, three to six shelves between them; a back panel on some."""
    u = rng.uniform
    depth, width, height = u(0.4, 0.8), u(0.7, 1.2), u(0.7, 1.4)
    parts = [_box((0, side * width / 2, height / 2), (depth, 0.05, height)) for side in (-1, 1)]
    for level in np.linspace(u(0.02, 0.15), 1, int(rng.integers(3, 6))):
        parts.append(_box((0, 0, level * height), (depth, width, 0.04)))
    if u() < 0.5:
        parts.append(_box((-depth / 2, 0, height / 2), (0.02, width, height)))
    return np.concatenate(parts)


def _wardrobe(rng):
    """A closed cupboard on short legs, with a cornice."""
    u = rng.uniform
    depth, width, height, low = u(0.4, 0.8), u(0.7, 1.2), u(0.7, 1.4), u(0.05, 0.2)
    parts = [_box((0, 0, low + height / 2), (depth, width, height))]
    parts.append(_box((0, 0, low + height), (depth + 0.1, width + 0.1, 0.06)))
    return np.concatenate(parts + _legs(depth / 2 - 0.05, width / 2 - 0.05, low, u(0.05, 0.1)))


def _rack(rng):
    """Two or three more plates between the legs of a table."""
    u = rng.uniform
    depth, length, height = u(0.4, 0.8), u(0.5, 1.2), u(0.5, 1.2)
    parts, x, y = _raised_plate(rng, depth, length, height)
    for level in np.linspace(u(0.1, 0.4), 1, int(rng.integers(2, 5)))[:-1]:
        parts.append(_box((0, 0, level * height), (2 * x, 2 * y, 0.04)))
    return np.concatenate(parts)


def _stool(rng):
    """A round or square seat on four legs joined by four bars."""
    u = rng.uniform
    depth, length, height = u(0.4, 0.7), u(0.4, 0.9), u(0.45, 0.85)
    parts, x, y = _raised_plate(rng, depth, length, height)
    if u() < 0.5:
        parts[0] = _turned([(0, height), (depth * 0.6, height), (depth * 0.6, height + 0.05), (0, height + 0.05)])
    bar, thick = height * u(0.1, 0.7), u(0.03, 0.05)
    for side in (-1, 1):
        parts.append(_box((side * x, 0, bar), (thick, 2 * y, thick)))
        parts.append(_box((0, side * y, bar), (2 * x, thick, thick)))
    return np.concatenate(parts)


def _table(rng):
    """A round or rectangular plate on four legs, with nothing between them."""
    u = rng.uniform
    depth, length, height = u(0.5, 0.9), u(0.5, 1.6), u(0.45, 0.85)
    parts, x, y = _raised_plate(rng, depth, length, height)
    if u() < 0.4:
        r = np.hypot(x, y)
        parts[0] = _turned([(0, height), (r, height), (r, height + 0.05), (0, height + 0.05)])
    return np.concatenate(parts)


def _bed(rng):
    """A mattress on short legs, a headboard at one end, a footboard on some; pillows."""
    u = rng.uniform
    length, width, low, thick = u(1.5, 2.1), u(0.8, 1.7), u(0.05, 0.35), u(0.15, 0.35)
    top = low + thick
    parts = [_box((0, 0, low + thick / 2), (length, width, thick))]
    parts += _legs(length / 2 - 0.1, width / 2 - 0.1, low, u(0.06, 0.12))
    head, board = u(0.2, 0.7), u(0.05, 0.15)
    parts.append(_box((-length / 2, 0, (top + head) / 2), (board, width, top + head), -u(0, 0.1)))
    if u() < 0.5:
        foot = top + u(0.05, 0.35)
        parts.append(_box((length / 2, 0, foot / 2), (board, width, foot)))
    for side in (-1, 1):
        pillow = (-length / 2 + 0.3, side * width / 4, top + 0.06)
        parts.append(_box(pillow, (0.35, width * 0.35, 0.1)))
    return np.concatenate(parts)


def _sofa(rng):
    """A deep seat with a back along one side and an arm at each end, on short feet."""
    u = rng.uniform
    depth, length, low, thick = u(0.7, 1.3), u(1.2, 2.1), u(0.05, 0.3), u(0.15, 0.35)
    top = low + thick
    parts = [_box((0, 0, low + thick / 2), (depth, length, thick))]
    parts += _legs(depth / 2 - 0.08, length / 2 - 0.08, low, u(0.05, 0.1))
    back, arm, board = u(0.3, 0.6), u(0.18, 0.34), u(0.08, 0.2)
    parts.append(_box((-depth / 2, 0, (top + back) / 2), (board, length, top + back), -u(0, 0.1)))
    for side in (-1, 1):
        parts.append(_box((0, side * length / 2, (top + arm) / 2), (depth, board, top + arm)))
    return np.concatenate(parts)


def _vessel(rng, rim):
    """A turned body open at the top: (triangles, radius at a relative height, height)."""
    u = rng.uniform
    height = u(0.8, 1.5)
    z = np.array([0, u(0.25, 0.5), u(0.7, 0.85), 1])
    r = np.array([u(0.2, 0.4), u(0.32, 0.5), u(0.2, 0.36), rim])
    t = np.linspace(0, 1, 12)
    ease = np.interp(t, z, np.arange(4))
    part = ease - np.floor(ease)
    blend = np.floor(ease) + part * part * (3 - 2 * part)
    radius = np.interp(blend, np.arange(4), r)
    body = _turned([(0, 0), *zip(radius, t * height)])
    return body, lambda at: np.interp(at, t, radius), height


def _vase(rng):
    """A turned body with an open rim."""
    return _vessel(rng, rng.uniform(0.2, 0.42))[0]


def _teapot(rng):
    """A closed turned body with a lid and its knob, a handle and a spout opposite to it."""
    u = rng.uniform
    body, radius, height = _vessel(rng, u(0.2, 0.36))
    n = radius(1)
    lid = _turned([(n, height), (n * 0.4, height + 0.08), (0.05, height + 0.15), (0, height + 0.17)])
    low, high = u(0.2, 0.45), u(0.75, 0.98)
    handle = _handle((radius(low), low * height), (radius(high), high * height), u(0.2, 0.4), u(0.03, 0.05))
    foot, reach = u(0.2, 0.4), u(0.15, 0.35)
    path = [(-radius(foot), 0, foot * height), (-radius(foot) - reach * 0.6, 0, (foot + 0.25) * height), (-radius(foot) - reach, 0, (foot + 0.5) * height)]
    return np.concatenate([body, lid, handle, _tube(path, u(0.04, 0.07))])


def _cup_body(rng):
    u = rng.uniform
    r, height, taper = u(0.35, 0.5), u(0.6, 1.2), u(0.6, 1.0)
    t = np.linspace(0, 1, 6)
    radius = r * (taper + (1 - taper) * t ** u(0.4, 1.5))
    return _turned([(0, 0), *zip(radius, t * height)]), lambda at: np.interp(at, t, radius), height


def _mug(rng):
    """An open cup, straight or tapered, with one handle."""
    u = rng.uniform
    body, radius, height = _cup_body(rng)
    low, high = u(0.15, 0.4), u(0.65, 0.92)
    return np.concatenate(
        [body, _handle((radius(low), low * height), (radius(high), high * height), u(0.2, 0.4), u(0.03, 0.05))]
    )


FAMILIES = (  # (class name, family): the label is the index
    ("armchair", _armchair),
    ("bed", _bed),
    ("bench", _bench),
    ("bookcase", _bookcase),
    ("chair", _chair),
    ("desk", _desk),
    ("mug", _mug),
    ("rack", _rack),
    ("sofa", _sofa),
    ("stool", _stool),
    ("table", _table),
    ("teapot", _teapot),
    ("vase", _vase),
    ("wardrobe", _wardrobe),
)
