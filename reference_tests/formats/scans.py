"""Small files of clouds and meshes as other programs write them, typed from the definitions.

Sources of the layouts: the PLY page of its author (Turk, 1994), Geomview's manual for OFF, the
appendix B1 of Wavefront's manual for OBJ, the STL pages of 3D Systems, the PCD page of the Point
Cloud Library, the LAS 1.2 specification of ASPRS.  Nothing here is written by a module of ours.
"""

import struct

# A tetrahedron with three right angles at (0, 0, 1): coordinates that float32 holds exactly.
VERTICES = [(0, 0, 1), (2, 0, 1), (0, 4, 1), (0, 0, 9)]
FACES = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
# the unit square in the plane z = 2, and a square with a notch, whose corner 3 is the notch
SQUARE = [(0, 0, 2), (1, 0, 2), (1, 1, 2), (0, 1, 2)]


def lines(rows):
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def ply(order, body, faces=True, more=""):
    """A header of the tetrahedron, x, y and z neither first nor in this order nor of one type."""
    face = "element face 4\nproperty uchar part\nproperty list uchar int vertex_indices\n"
    return (
        f"ply\nformat {order} 1.0\ncomment made by hand\nobj_info of nothing\n{more}"
        "element vertex 4\nproperty uchar red\nproperty double z\nproperty float x\n"
        f"property short y\nproperty float nx\n{face if faces else ''}end_header\n"
    ).encode() + body


def ply_binary(mark, faces=True):
    body = b"".join(struct.pack(f"{mark}Bdfhf", 7, z, x, y, 0.5) for x, y, z in VERTICES)
    if faces:
        body += b"".join(struct.pack(f"{mark}BB3i", 9, 3, *face) for face in FACES)
    return body


PLY_TEXT = lines((7, z, x, y, 0.5) for x, y, z in VERTICES)
PLY_FACES = lines((9, 3, *face) for face in FACES)
NORMALLY = "".join(f"v {x} {y} {z}\n" for x, y, z in VERTICES)


def stl_text():
    text = "solid made by hand\n"
    for face in FACES:
        text += "  facet normal 0 0 1\n    outer loop\n"
        text += "".join("      vertex %e %e %e\n" % VERTICES[i] for i in face)
        text += "    endloop\n  endfacet\n"
    return (text + "endsolid made by hand\n").encode()


def stl_binary(comment=b"made by hand"):
    body = b""
    for face in FACES:
        corners = [value for i in face for value in VERTICES[i]]
        body += struct.pack("<12fH", 0, 0, 1, *corners, 0x7FFF)
    return comment.ljust(80) + struct.pack("<I", len(FACES)) + body


def pcd(form, body, more=b""):
    return (
        b"# .PCD v.7 - Point Cloud Data file format\nVERSION .7\nFIELDS rgb x _ y z\n"
        b"SIZE 4 4 1 8 4\nTYPE U F U F F\nCOUNT 1 1 3 1 1\nWIDTH 2\nHEIGHT 2\n"
        b"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 4\n" + more + b"DATA " + form + b"\n" + body
    )


def pcd_fields():
    """The bytes of each field of all points, one after the other, as they are compressed."""
    axes = zip(*VERTICES, strict=True)
    columns = [struct.pack(f"<4{kind}", *values) for kind, values in zip("fdf", axes, strict=True)]
    return struct.pack("<4I", *[0xFF0000] * 4) + columns[0] + bytes(12) + columns[1] + columns[2]


def literal(data):
    """LZF that copies nothing: runs of at most 32 bytes, each behind its length minus 1."""
    runs = [data[i : i + 32] for i in range(0, len(data), 32)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def pcd_compressed(packed=None):
    data = pcd_fields()
    packed = literal(data) if packed is None else packed
    return pcd(b"binary_compressed", struct.pack("<2I", len(packed), len(data)) + packed)


PCD_ROWS = b"".join(struct.pack("<If3Bdf", 9, x, 1, 2, 3, y, z) for x, y, z in VERTICES)


def las(points=VERTICES, scale=0.5, offset=(0, 0, 0), number=None):
    """LAS 1.2, point format 0 (20 bytes); the coordinates are whole multiples of scale."""
    raw = [[round((v - o) / scale) for v, o in zip(point, offset, strict=True)] for point in points]
    number = len(points) if number is None else number
    head = b"LASF" + struct.pack("<HH16s", 0, 0, bytes(16)) + bytes([1, 2])
    head += b"by hand".ljust(32, b"\0") + b"by hand".ljust(32, b"\0")
    head += struct.pack("<HHHIIBHI", 1, 2020, 227, 227, 0, 0, 20, number)
    head += struct.pack("<5I", number, 0, 0, 0, 0)
    head += struct.pack("<6d", scale, scale, scale, *offset) + struct.pack("<6d", *[0] * 6)
    assert len(head) == 227
    return head + b"".join(struct.pack("<3iHBBbBH", *xyz, 5, 9, 2, 0, 0, 0) for xyz in raw)


MESHES = {
    "text.ply": ply("ascii", (PLY_TEXT + PLY_FACES).encode()),
    "little.ply": ply("binary_little_endian", ply_binary("<")),
    "big.ply": ply("binary_big_endian", ply_binary(">")),
    "returns.ply": ply("ascii", (PLY_TEXT + PLY_FACES).encode()).replace(b"\n", b"\r\n"),
    "plain.off": f"OFF\n4 4 6\n{lines(VERTICES)}{lines((3, *f) for f in FACES)}".encode(),
    "glued.off": f"OFF4 4 0\n{lines(VERTICES)}{lines((3, *f) for f in FACES)}".encode(),
    "colours.off": (
        "# a comment\nCOFF\n\n4 4 6 # counts\n"
        + lines((*v, 255, 0, 0, 255) for v in VERTICES)
        + lines((3, *f, 0.5, 0.5, 0.5) for f in FACES)
    ).encode(),
    "normals.off": (
        f"NOFF 4 4\n{lines((*v, 0, 0, 1) for v in VERTICES)}{lines((3, *f) for f in FACES)}"
    ).encode(),
    "plain.obj": (NORMALLY + lines(("f", *(i + 1 for i in f)) for f in FACES)).encode(),
    "customary.obj": (
        "# Blender\nmtllib a.mtl\no mug\nvt 0 0\nvn 0 0 1\n"
        + "".join(f"v {x} {y} {z} 0.5 0.5 0.5\n" for x, y, z in VERTICES)
        + "usemtl M\xfcnchen\ns off\n"
        + lines(("f", *(f"{i - 4}/1/1" for i in f)) for f in FACES).replace(" -", " \\\n -", 1)
    ).encode("latin-1"),
    "text.stl": stl_text(),
    "binary.stl": stl_binary(),
    "solid.stl": stl_binary(b"solid, and binary all the same"),
}
CLOUDS = {
    "text.ply": ply("ascii", PLY_TEXT.encode(), faces=False),
    "little.ply": ply("binary_little_endian", ply_binary("<", False), faces=False),
    "big.ply": ply("binary_big_endian", ply_binary(">", False), faces=False),
    "other.ply": ply(
        "ascii", f"1 2 3\n4 1 2 3 4\n{PLY_TEXT}".encode(), False,
        "element camera 1\nproperty int a\nproperty int b\nproperty int c\n"
        "element strip 1\nproperty list uchar float weights\n",
    ),
    "other-binary.ply": ply(
        "binary_big_endian", struct.pack(">3iB4f", 1, 2, 3, 4, 1, 2, 3, 4) + ply_binary(">", False),
        False,
        "element camera 1\nproperty int a\nproperty int b\nproperty int c\n"
        "element strip 1\nproperty list uchar float weights\n",
    ),
    "plain.off": f"OFF\n4 0 0\n{lines(VERTICES)}".encode(),
    "plain.obj": NORMALLY.encode(),
    "text.pcd": pcd(b"ascii", lines((9, x, 1, 2, 3, y, z) for x, y, z in VERTICES).encode()),
    "binary.pcd": pcd(b"binary", PCD_ROWS),
    "compressed.pcd": pcd_compressed(),
    "plain.asc": lines(VERTICES).encode(),
    "plain.xyzn": lines((*v, 0, 0, 1) for v in VERTICES).encode(),
    "counted.pts": b"4\n" + lines((*v, -1500, 9, 9, 9) for v in VERTICES).encode(),
    "semicolons.txt": b"0,0;0,0;1,0\n2;0;1\n0;4,0;1\n0;0;9\n",
}  # fmt: skip
