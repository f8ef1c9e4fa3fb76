"""Clouds and meshes of other programs: read as they are, sampled fairly, refused with the cause."""

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minipc.data.readers import surface
from minipc.data.readers.pcd import unpack_lzf
from minipc.data.readers.point_files import SUFFIXES, read_points, read_prepared
from minipc.data.readers.surface import SAMPLES, Mesh, sampled, triangles_of
from minipc.errors import DataError, MinipcError
from reference_tests.formats import scans
from reference_tests.formats.scans import CLOUDS, MESHES, SQUARE, VERTICES, lines


def saved(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def refused(path, data, message):
    with pytest.raises(DataError, match=message) as raised:
        read_points(saved(path, data))
    said = str(raised.value)
    assert said.startswith(f"{path}: ") and "\n" not in said and said.isprintable()
    return said


# What is read


@pytest.mark.parametrize("name", CLOUDS)
def test_a_file_without_faces_is_the_cloud_of_its_points(tmp_path, name):
    found = read_points(saved(tmp_path / name, CLOUDS[name]))
    np.testing.assert_array_equal(found, VERTICES)


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_in_any_format_is_the_same_surface(tmp_path, name):
    """Every point lies on one of the four planes and within the tetrahedron."""
    points = read_points(saved(tmp_path / name, MESHES[name]))
    assert points.shape == (SAMPLES, 3)
    x, y, z = points.T / [[2], [4], [8]] - [[0], [0], [1 / 8]]  # now the unit tetrahedron
    walls = np.stack([x, y, z, 1 - x - y - z])
    assert walls.min() > -1e-12 and np.abs(walls).min(axis=0).max() < 1e-12  # rounding of float64


def test_formats_of_one_mesh_give_the_same_points(tmp_path):
    """Text and binary, with or without colours: the points depend on vertices and faces alone."""
    indexed = [name for name in MESHES if not name.endswith(".stl")]
    for names in (indexed, [name for name in MESHES if name.endswith(".stl")]):
        found = {read_points(saved(tmp_path / n, MESHES[n])).tobytes() for n in names}
        assert len(names) > 2 and len(found) == 1


def test_the_points_of_a_mesh_do_not_depend_on_its_name_or_on_other_files(tmp_path):
    first = read_prepared(saved(tmp_path / "a.off", MESHES["plain.off"]), "unit_sphere", 64)[0]
    read_points(saved(tmp_path / "b.stl", MESHES["text.stl"]))
    again = read_prepared(saved(tmp_path / "c.off", MESHES["plain.off"]), "unit_sphere", 64)[0]
    assert first.tobytes() == again.tobytes()
    moved = MESHES["plain.off"].replace(b"0 0 9", b"0 0 9.5")
    other = read_points(saved(tmp_path / "d.off", moved))
    inner = other[(other > [0, 0, 1]).all(axis=1)]  # zeros are the same in both
    assert len(inner) and not np.isin(inner, read_points(str(tmp_path / "a.off"))).any()


def test_the_points_that_are_drawn_on_a_mesh_are_frozen(tmp_path):
    """A model packed with one version must be fed the same points by the next."""
    points = read_points(saved(tmp_path / "a.off", MESHES["plain.off"]))
    # products of at most 2^-53 relative error each
    np.testing.assert_allclose(points[[0, 1, 9999]], FROZEN, rtol=1e-12)


FROZEN = [
    [0.14048742410223025, 1.5177931931463653, 5.402463917298348],
    [0.0, 1.2394461838006803, 5.058820027504611],
    [0.0, 1.5458224528081483, 3.696266785203663],
]


def test_every_format_is_tested_here():
    tested = {f".{name.split('.')[1]}" for name in (*CLOUDS, *MESHES)} | {".las", ".laz"}
    assert set(SUFFIXES) <= tested | {".npy", ".npz", ".xyz", ".csv"}


# Sampling


def test_points_fall_on_faces_by_area():
    """Chi square of 3 degrees of freedom is above 16.3 once in a thousand; the draw is fixed."""
    triangles = triangles_of(mesh_of(VERTICES, scans.FACES))
    points = sampled(np.array(VERTICES, float), triangles)
    areas = np.array([4, 8, 16, np.linalg.norm(np.cross([-2, 4, 0], [-2, 0, 8])) / 2])
    x, y, z = points.T / [[2], [4], [8]] - [[0], [0], [1 / 8]]
    counts = np.bincount(np.abs([z, y, x, 1 - x - y - z]).argmin(axis=0), minlength=4)
    wanted = SAMPLES * areas / areas.sum()
    assert ((counts - wanted) ** 2 / wanted).sum() < 16.3


def test_points_are_uniform_within_a_triangle():
    """Affine maps of a triangle keep uniformity: each quarter by the midpoints gets a fourth."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
    x, y, _ = sampled(corners, np.array([[0, 1, 2]])).T
    counts = np.array([(x > 0.5).sum(), (y > 0.5).sum(), (x + y < 0.5).sum()])
    counts = np.append(counts, SAMPLES - counts.sum())
    assert ((counts - SAMPLES / 4) ** 2 / (SAMPLES / 4)).sum() < 16.3


def mesh_of(vertices, faces):
    return Mesh(
        np.array(vertices, float),
        np.array([len(face) for face in faces]),
        np.array([i for face in faces for i in face]),
    )


def test_a_triangle_without_area_is_never_drawn():
    vertices = [*SQUARE, (5, 5, 5), (6, 6, 6), (7, 7, 7)]
    faces = [(4, 4, 4), (0, 1, 2), (4, 5, 6), (0, 2, 3), (6, 6, 0)]
    points = sampled(np.array(vertices, float), triangles_of(mesh_of(vertices, faces)))
    assert points.max() <= 2
    with pytest.raises(DataError, match="its faces have no area; save the mesh again"):
        sampled(np.array(vertices, float), np.array([[4, 4, 4], [4, 5, 6]]))


def area_of(vertices, triangles):
    a, b, c = np.moveaxis(np.array(vertices, float)[triangles], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


NOTCHED = [(0, 0, 0), (4, 0, 0), (4, 4, 0), (3, 1, 0)]  # corner 3 turns inwards


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize(
    "polygon, area",
    [
        (SQUARE, 1),
        (NOTCHED, 4),
        ([(0, 0, 0), (2, 0, 0), (3, 1, 0), (1, 3, 0), (0, 2, 0)], 6),
        ([(0, 0, 0), (4, 0, 0), (4, 4, 0), (0, 4, 0), (1, 2, 0)], 14),
        ([(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 2, 0), (0, 2, 0)], 4),  # three corners in a line
    ],
)
def test_a_flat_polygon_is_cut_into_triangles_of_its_area(polygon, area, turn):
    """Convex or seen whole from one of its corners, whichever corner is named first."""
    turn %= len(polygon)
    turned = polygon[turn:] + polygon[:turn]
    triangles = triangles_of(mesh_of(turned, [range(len(polygon))]))
    assert len(triangles) == len(polygon) - 2
    assert area_of(turned, triangles) == pytest.approx(area, rel=1e-12)  # of float64


@pytest.mark.parametrize("many", [1, 100_000])
def test_polygons_of_all_sizes_are_cut_in_one_mesh(many):
    faces = [(0, 1, 2, 3), (0, 1, 2), (0, 2, 3)] * many
    triangles = triangles_of(mesh_of(SQUARE, faces))
    assert len(triangles) == 4 * many
    assert area_of(SQUARE, triangles) == pytest.approx(2 * many)


@pytest.mark.parametrize(
    "polygon",
    [
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],  # crosses itself
        [(4, 0, 0), (0, 4, 0), (0.5, 3.9, 0), (0, 0, 0)],  # near a corner
        [(0, 0, 0), (1, 0, 0), (1, 1, 9), (0, 1, 0), (-1, 1, -9)],  # bent
        # a Z of two notches: no corner sees all others
        [(0, 0, 0), (4, 0, 0), (4, 1, 0), (1, 1, 0), (1, 3, 0), (4, 3, 0), (4, 4, 0), (0, 4, 0)],
    ],
)
def test_a_polygon_that_is_no_fan_is_refused_with_its_number(polygon):
    with pytest.raises(
        DataError, match=r"face 1 \(counted from 0\) has .* no fan of tri.*; triang"
    ):
        triangles_of(mesh_of(polygon, [(0, 1, 2), range(len(polygon))]))


def test_a_bent_quadrilateral_is_cut_along_its_better_diagonal():
    roof = [(0, 0, 0), (1, 0, 0.3), (1, 1, 0), (0, 1, 0.3)]
    both = [area_of(roof, t) for t in ([[0, 1, 2], [0, 2, 3]], [[1, 2, 3], [1, 3, 0]])]
    assert area_of(roof, triangles_of(mesh_of(roof, [range(4)]))) == pytest.approx(min(both))


@pytest.mark.parametrize("size", [4, 5])
def test_a_face_that_is_a_line_up_to_rounding_is_no_fault_of_a_mesh(size):
    """Turned and rounded, its triangles look any way; they hold next to no area."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        on_a_line = np.sort(rng.random((size, 1)), axis=0) * rng.standard_normal(3) + 10
        vertices = np.concatenate([on_a_line, VERTICES[:3]]).astype(np.float32)
        faces = [range(size), range(size, size + 3)]
        assert len(triangles_of(mesh_of(vertices, faces))) == size - 1


# What is refused

P = b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\n"
P += b"property float z\nend_header\n0 0 1\n1 2 3\n"
PCD = CLOUDS["text.pcd"]
HUGE = b"1000000000000"


@pytest.mark.parametrize(
    "name, data, message",
    [
        # truncated, and longer than they say
        ("a.ply", P[: P.index(b"end")], "its header does not end; copy it again"),
        ("a.ply", P.replace(b"element", b"format ascii 1.0\nelement"), "line 3: .* of a header"),
        ("a.ply", P[:-6], "says 2 times vertex, found 1; the file is cut"),
        ("a.ply", P + b"4 5 6\n", "expected its end after its elements, found line 10"),
        ("a.ply", MESHES["big.ply"][:-1], "says 4 times face, found 3"),
        ("a.ply", MESHES["big.ply"] + b"\0", "expected its end after .*, found 1 bytes"),
        ("a.ply", CLOUDS["big.ply"][:-1], "says 4 times vertex, found bytes for 3"),
        ("a.off", MESHES["plain.off"][:-8], "says 4 vertices and 4 faces, found 4 and 3"),
        ("a.off", MESHES["plain.off"] + b"3 0 1 2\n", "says 4 vertices and 4 faces, more follows"),
        ("a.stl", MESHES["binary.stl"][:-1], r"says 4 triangles at byte 80.* has 283 bytes"),
        ("a.stl", MESHES["text.stl"][:-40], "line 28: expected endloop, found 'e'"),
        ("a.stl", MESHES["text.stl"][:-23], "line 29: the file ends within a solid"),
        ("a.obj", MESHES["plain.obj"] + b"f 1 2 \\", "line 9: continues beyond the end"),
        ("a.pcd", PCD[:-14], "says 4 points, found 3; the file is cut"),
        ("a.pcd", CLOUDS["binary.pcd"][:-1], "says 4 points, found 91 bytes instead of 92"),
        ("a.pcd", CLOUDS["binary.pcd"] + b"\0", "says 4 points, found 93 bytes instead of 92"),
        ("a.pcd", CLOUDS["compressed.pcd"][:-1], "says 4 points, found 94 compressed bytes"),
        # counts that lie
        ("a.ply", P.replace(b"vertex 2", b"vertex " + HUGE), "says 1000000000000 times vertex"),
        ("a.ply", MESHES["big.ply"].replace(b"vertex 4", b"vertex " + HUGE), "found bytes for"),
        ("a.ply", MESHES["big.ply"].replace(b"face 4", b"face 4000000"), "says 4000000 times face"),
        ("a.ply", MESHES["big.ply"].replace(b"face 4", b"face -4"), "expected a line of a header"),
        ("a.off", b"OFF\n" + HUGE + b" 0 0\n0 0 1\n", "says 1000000000000 vertices"),
        ("a.off", b"OFF\n-1 0 0\n", "line 2: expected counts of vertices, faces and edges"),
        ("a.stl", MESHES["binary.stl"][:80] + b"\xff" * 204, "says 4294967295 triangles"),
        ("a.pcd", PCD.replace(b"POINTS 4", b"POINTS " + HUGE), "points in 2 rows of 2"),
        (
            "a.pcd",
            PCD.replace(b"POINTS 4", b"POINTS " + HUGE).replace(b"WIDTH 2", b"WIDTH 500000000000"),
            "says 1000000000000 points, found 4",
        ),
        ("a.pcd", CLOUDS["binary.pcd"].replace(b"1 1 3", b"1 1 60000"), "240[0-9]+$|instead of 24"),
        # words that are wrong
        ("a.ply", b"OFF\n", "line 1: expected ply, found 'OFF'"),
        ("a.ply", P.replace(b"ascii", b"binary_middle_endian"), "line 2: expected format ascii"),
        ("a.ply", P.replace(b"1.0", b"2.0"), "line 2: expected format ascii"),
        ("a.ply", P.replace(b"float z", b"half z"), "line 6: expected a property of a known type"),
        ("a.ply", P.replace(b"float z", b"float y"), "line 6: expected another name"),
        ("a.ply", P.replace(b"float z", b"float w"), "expected numbers, x, y and z"),
        ("a.ply", P.replace(b"float z", b"list uchar float z"), "vertex: expected numbers"),
        ("a.ply", P.replace(b"vertex 2", b"point 2"), "expected one element vertex .* found point"),
        ("a.ply", MESHES["text.ply"].replace(b"vertex_indices", b"corner"), "expected a list"),
        ("a.ply", MESHES["text.ply"].replace(b"face 4", b"tristrips 4"), "save it as points"),
        ("a.off", b"4OFF\n1 0 0\n1 2 3 4\n", "line 1: expected OFF, found '4OFF'"),
        ("a.off", b"OFF BINARY\n", "line 1: expected counts .* found 'OFF BINARY'"),
        ("a.off", b"OFF\n2\n", "line 2: expected counts of vertices, faces and edges, found '2'"),
        ("a.obj", b"v 0 0 1\ncurv 0 1 1 2\n", "line 2: expected v, f .* found 'curv'; save the"),
        ("a.obj", b"\x7fELF\x01", "line 1: expected v, f or another word of a mesh"),
        ("a.pcd", PCD.replace(b"DATA ascii", b"DATA text"), "expected DATA ascii, binary or"),
        ("a.pcd", PCD.replace(b"VERSION", b"VERSIOM"), "line 2: expected a line of a PCD header"),
        ("a.pcd", PCD.replace(b"WIDTH 2\n", b""), "its header has no WIDTH"),
        ("a.pcd", PCD.replace(b"rgb x", b"rgb u"), "expected fields x, y and z, .* found 'rgb u _"),
        ("a.pcd", PCD.replace(b"TYPE U F", b"TYPE U Q"), "each with its SIZE, TYPE and COUNT"),
        ("a.pcd", b"VERSION .7\n", "its header does not end with DATA"),
        # values
        ("a.ply", P.replace(b"1 2 3", b"1 nan 3"), "line 9: expected 3 finite numbers, found '1 n"),
        ("a.ply", P.replace(b"1 2 3", b"1 2"), "line 9: expected the 3 properties of a vertex"),
        ("a.ply", P.replace(b"1 2 3", b"1 2 3 4"), "line 9: expected the 3 properties of a vertex"),
        ("a.ply", P.replace(b"1 2 3", b"1 2 3_0"), "line 9: expected 3 finite numbers"),
        ("a.ply", P.replace(b"1 2 3", b"1 2 1e25"), "point 1: .* up to 1e.18, found 1e.25; check"),
        ("a.ply", P.replace(b"1 2 3", b"1 2 1e39"), "point 1: expected finite float32"),
        ("a.off", b"OFF\n2 0 0\n0 0 1\n1 inf 2\n", "line 4: expected 3 finite numbers"),
        ("a.off", b"OFF\n2 0 0\n0 0 1\n1 2\n", "line 4: expected a vertex of 3 numbers"),
        ("a.obj", b"v 0 0 1\nv 1 2\n", "line 2: expected 3 finite numbers, found '1 2'"),
        ("a.stl", MESHES["text.stl"].replace(b"9.0", b"nan"), "expected 3 finite numbers"),
        ("a.pcd", PCD.replace(b"0 1 2 3 0 9", b"nan 1 2 3 0 9"), "line 15: expected 3 finite"),
        ("a.pcd", PCD.replace(b"0 1 2 3 0 9", b"0 1 2 3 9"), "line 15: expected 7 numbers"),
        # nothing
        ("a.ply", b"", "is empty; put one cloud into it"),
        ("a.ply", P[:-12].replace(b"vertex 2", b"vertex 0"), "holds no points"),
        ("a.off", b"OFF\n0 0 0\n", "holds no points"),
        ("a.obj", b"# nothing\n", "holds no points"),
        ("a.stl", bytes(84), "holds no triangles"),
        ("a.stl", b"solid x\nendsolid x\n", "holds no triangles"),
        ("a.pcd", pcd_none := CLOUDS["binary.pcd"][:-92].replace(b"H 2", b"H 0")
            .replace(b"S 4", b"S 0"), "holds no points"),
        # faces
        ("a.off", b"OFF\n3 1 0\n0 0 1\n1 0 1\n0 1 1\n3 0 1 3\n", r"face 0 .* names vertex 3, exp"),
        ("a.off", b"OFF\n3 1 0\n0 0 1\n1 0 1\n0 1 1\n3 0 1 -1\n", r"face 0 .* names vertex -1"),
        ("a.off", b"OFF\n3 1 0\n0 0 1\n1 0 1\n0 1 1\n2 0 1\n", r"face 0 .* has 2 corners"),
        ("a.off", b"OFF\n3 1 0\n0 0 1\n1 0 1\n0 1 1\n4 0 1 2\n", "line 6: expected a face"),
        ("a.off", b"OFF\n3 1 0\n0 0 1\n1 0 1\n2 0 1\n3 0 1 2\n", "its faces have no area"),
        ("a.obj", b"v 0 0 1\nf 0 1 1\n", "line 2: names vertex 0, after 1 vertices"),
        ("a.obj", b"v 0 0 1\nf -2 1 1\n", "line 2: names vertex -2, after 1 vertices"),
        ("a.obj", b"v 0 0 1\nf 1 1 9\n", r"face 0 .* names vertex 8"),
        ("a.obj", b"v 0 0 1\nf a b c\n", "line 2: expected a vertex of a face, found 'a'"),
    ],
)  # fmt: skip
def test_a_scan_that_lies_is_refused_with_the_cause(tmp_path, name, data, message):
    refused(tmp_path / name, data, message)


@pytest.mark.parametrize("order, mark", [("little", ">"), ("big", "<")])
def test_the_wrong_byte_order_is_noticed(tmp_path, order, mark):
    """Swapped, one coordinate in four is too large; swapped corners are no vertices."""
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(f"{mark}f4")
    head = f"ply\nformat binary_{order}_endian 1.0\nelement vertex 50\n"
    head += "property float x\nproperty float y\nproperty float z\nend_header\n"
    refused(tmp_path / "a.ply", head.encode() + values.tobytes(), "check the byte order|float32")
    mesh = scans.ply(f"binary_{order}_endian", scans.ply_binary(mark))
    refused(tmp_path / "b.ply", mesh, "face 0")


def test_values_that_are_no_numbers_are_refused_in_binary_files(tmp_path):
    for value, message in ((np.nan, "finite"), (np.inf, "finite"), (1e25, "up to 1e.18")):
        bad = struct.pack("<f", value)
        for name, files in (("little.ply", CLOUDS), ("binary.pcd", CLOUDS), ("binary.stl", MESHES)):
            at = files[name].rindex(struct.pack("<f", 2))
            data = files[name][:at] + bad + files[name][at + 4 :]
            refused(tmp_path / name, data, f"point [1-9]: .*{message}")


def test_a_mesh_saved_too_far_from_the_origin_for_its_type_is_refused(tmp_path):
    """The same promise as for arrays: its shape was lost in float32."""
    corners = [500000.01, 5400000.02, 3, 500000.03, 5400000.01, 3, 500000.02, 5400000.05, 3.02]
    data = bytes(80) + struct.pack("<I", 1) + struct.pack("<12fH", 0, 0, 1, *corners, 0)
    refused(tmp_path / "far.stl", data, "steps of float32 are 0.5 .* shape was lost where it was s")


def test_a_mesh_far_from_the_origin_keeps_its_shape_in_float64(tmp_path):
    near = read_prepared(saved(tmp_path / "a.off", MESHES["plain.off"]), "unit_sphere", 9000)[0]
    far = [(x + 500000, y + 5400000, z) for x, y, z in VERTICES]
    text = f"OFF\n4 4 6\n{lines(far)}{lines((3, *f) for f in scans.FACES)}"
    points, _, count = read_prepared(saved(tmp_path / "b.off", text), "unit_sphere", 9000)
    assert count == SAMPLES
    # other draws of the same surface: means of 9000 points with deviations below 1
    np.testing.assert_allclose(points.mean(axis=0), near.mean(axis=0), atol=0.05)
    assert len(np.unique(points[:, 1])) > 7000  # a quarter lies in the plane y = 0; no steps


def test_corners_without_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(surface, "MOST_CORNERS", 11)
    for name in MESHES:
        refused(tmp_path / name, MESHES[name], "its faces have more than 11 corners; simplify")


# LZF


def test_lzf_copies_what_stands_before_even_over_itself():
    """Typed by its definition: literal 'ab', then 4 bytes from 2 back, 9 + 3 from 1 back."""
    data = bytes([1]) + b"ab" + bytes([2 << 5, 1]) + bytes([7 << 5, 3, 0])
    assert unpack_lzf(data, 18) == b"ababab" + b"b" * 12
    assert unpack_lzf(bytes([0]) + b"x" + bytes([7 << 5, 255, 0]), 265) == b"x" * 265


@pytest.mark.parametrize(
    "data, size",
    [
        (b"\x05abc", 6),  # a run beyond the end
        (b"\x00a\x20", 4),  # a copy without its distance
        (b"\x00a\xe0", 4),
        (b"\x00a\x20\x01", 4),  # from before the beginning
        (b"\x00a\x20\x00", 3),  # more than was said
        (b"\x00a\x20\x00", 5),  # less
        (b"", 1),
    ],
)
def test_lzf_that_is_damaged_is_refused(tmp_path, data, size):
    assert unpack_lzf(data, size) is None
    refused(tmp_path / "a.pcd", scans.pcd_compressed(data), "compressed bytes are damaged; copy")


def test_compressed_fields_with_copies_are_those_that_were_compressed(tmp_path):
    data = scans.pcd_fields()
    packed = bytes([3]) + data[:4] + bytes([7 << 5, 12 - 9, 3]) + scans.literal(data[16:])
    found = read_points(saved(tmp_path / "a.pcd", scans.pcd_compressed(packed)))
    np.testing.assert_array_equal(found, VERTICES)


# LAS


@pytest.fixture
def laspy():
    pytest.importorskip("lazrs")
    return pytest.importorskip("laspy")


def test_las_typed_by_hand_is_read_in_the_units_of_the_file(tmp_path, laspy):
    found = read_points(saved(tmp_path / "a.las", scans.las()))
    np.testing.assert_array_equal(found, VERTICES)
    far = [(x + 500000, y + 5400000, z) for x, y, z in VERTICES]
    data = scans.las(far, 0.01, (500000, 5400000, 0))
    points = read_points(saved(tmp_path / "b.las", data))
    # multiples of 0.01 rounded once, offsets of 5e6 added: steps of 1e-9
    np.testing.assert_allclose(points, far, atol=2e-9)
    near, shifted = (
        read_prepared(str(tmp_path / n), "unit_sphere", 4)[0] for n in ("a.las", "b.las")
    )
    np.testing.assert_allclose(shifted, near, atol=2e-7)  # and a last bit of float32 at 1


def test_las_and_laz_of_laspy_are_the_same_cloud(tmp_path, laspy):
    cloud = np.round(np.random.default_rng(0).standard_normal((300_000, 3)), 3)
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [0.001] * 3, [0, 0, 0]
    made = laspy.LasData(header)
    made.x, made.y, made.z = cloud.T
    for name in ("a.las", "a.laz"):
        made.write(str(tmp_path / name))
        found = read_points(str(tmp_path / name))
        np.testing.assert_allclose(found, cloud, atol=1e-12)  # a multiple of 0.001, rounded once


@pytest.mark.parametrize(
    "data, message",
    [
        (scans.las(number=5), "says 5 points|damaged"),
        (scans.las(number=2**32 - 1), "says 4294967295 points, expected at most"),
        (scans.las()[:-1], "damaged"),
        (scans.las()[:200], "is damaged or no LAS file"),
        (scans.las()[:-80], "damaged|says 4 points, found 0"),
        (scans.las([], number=0), "holds no points"),
        (scans.las(scale=float("inf"), points=[(0, 0, 0)]).replace(b"", b""), "finite"),
        (b"LASF", "is damaged or no LAS file"),
        (b"x y z\n" * 50, "is damaged or no LAS file"),
        (scans.las()[:100] + b"\x9b" * 4 + scans.las()[104:], "says 2610666395 records before"),
    ],
)
def test_las_that_lies_is_refused(tmp_path, laspy, data, message):
    refused(tmp_path / "a.las", data, message)


def test_without_laspy_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "laspy", None)
    with pytest.raises(MinipcError, match=r"a.las: reading .* pip install -e '.\[las\]'"):
        read_points(saved(tmp_path / "a.las", scans.las()))


# Other programs


def test_trimesh_reads_the_same_vertices_and_faces(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    for name, data in MESHES.items():
        mesh = trimesh.load(saved(tmp_path / name, data), process=False, force="mesh")
        assert mesh.area == pytest.approx(28 + 84**0.5 * 2, rel=1e-6), name  # float32 in STL
        assert sorted({tuple(point) for point in mesh.vertices.tolist()}) == sorted(VERTICES)


def test_files_that_trimesh_writes_are_read(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(subdivisions=2)
    for name in ("a.ply", "a.off", "a.obj", "a.stl"):
        ball.export(str(tmp_path / name))
        radius = np.linalg.norm(read_points(str(tmp_path / name)), axis=1)
        assert 0.95 < radius.min() < radius.max() < 1 + 1e-6  # chords of the unit sphere
    ball.export(str(tmp_path / "text.ply"), encoding="ascii")
    binary, text = (read_points(str(tmp_path / n)) for n in ("a.ply", "text.ply"))
    assert text.shape == binary.shape


# Whatever bytes


def mutated(data, edits):
    whole = bytearray(data)
    for at, kind, value in edits:
        at %= max(len(whole), 1)
        if kind == 0:
            whole[at : at + 1] = bytes([value])
        elif kind == 1:
            del whole[at : at + value]
        else:
            whole[at:at] = whole[at // 2 : at // 2 + value] if kind == 2 else bytes([value]) * 3
    return bytes(whole)


EDITS = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 3), st.integers(0, 255)), min_size=1, max_size=4
)


@pytest.mark.parametrize(
    "name, data",
    [(name, data) for files in (CLOUDS, MESHES) for name, data in files.items()],
)
@settings(max_examples=20, deadline=None)
@given(edits=EDITS)
@example(edits=[(0, 1, 255)])
def test_whatever_bytes_a_scan_holds_it_is_read_or_refused(tmp_path_factory, name, data, edits):
    check_read_or_refused(tmp_path_factory.getbasetemp() / f"fuzz-{name}", mutated(data, edits))


def check_read_or_refused(path, data):
    path.write_bytes(data)
    try:
        points = read_points(str(path))
    except DataError as reason:
        assert "\n" not in str(reason)
    else:
        assert points.ndim == 2 and points.shape[1] == 3 and len(points)
        assert np.isfinite(points).all()


@settings(max_examples=60, deadline=None)
@given(edits=EDITS)
def test_whatever_bytes_las_holds_it_is_read_or_refused(tmp_path_factory, edits):
    pytest.importorskip("laspy")
    path = tmp_path_factory.getbasetemp() / "fuzz.las"
    check_read_or_refused(path, mutated(scans.las(), edits))


def test_whatever_bytes_laz_holds_it_is_read_or_refused(tmp_path, laspy):
    """Each in a process of its own: the decoder aborts where a header asks for too much memory."""
    laspy.read(saved(tmp_path / "good.las", scans.las(VERTICES * 50))).write(tmp_path / "good.laz")
    whole = (tmp_path / "good.laz").read_bytes()
    at = int.from_bytes(whole[96:100], "little")  # the points, behind the place of their table
    table = int.from_bytes(whole[at : at + 8], "little")
    edits = [
        whole[:table] + b"\0\0\0\0" + b"\xff" * 4 + whole[table + 8 :],  # 2^32 pieces
        whole[:at] + b"\xff" * 7 + b"\x7f" + whole[at + 8 :],
        whole[: at + 40],
        whole[:300] + bytes(20) + whole[320:],
        whole[: at + 30] + b"\x55" * 9 + whole[at + 39 :],
    ]
    for data in edits:
        check_read_or_refused(tmp_path / "bad.laz", data)
    refused(tmp_path / "bad.laz", edits[0], "is damaged or no LAS file")
