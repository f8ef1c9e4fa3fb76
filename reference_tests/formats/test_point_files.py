"""One cloud from a file of a user, and how it becomes the cloud that a network sees."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipc.data.prepare import fit_points, float_points, normalised, prepare
from minipc.data.readers.point_files import read_points, read_prepared
from minipc.errors import DataError

POINTS = np.array([[0, 0, 1], [1.5, -2, 3e-3], [4, 5, 6]], np.float32)


def saved(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.xyz", "0 0 1\n1.5 -2 3e-3\n4 5 6\n"),
        ("a.XYZ", "0 0 1\n1.5 -2 3e-3\n4 5 6"),
        ("a.txt", "# a comment\n\n0 0   1 # the first\n 1.5 -2 3e-3\n4 5 6 #ff0000\n"),
        ("a.txt", "0\t0\t1\t\t9\n1.5\t-2\t3e-3\tred\t9\n4\t5\t 6\t\t\n"),
        ("a.xyz", "//X Y Z R G B\n0 0 1 255 0 0\n1.5 -2 3e-3 1 2 3\n4 5 6 1 2 3\n"),
        ("a.xyz", "//X Y Z Scalar field\n3\n0 0 1 255\n1.5 -2 3e-3 1\n4 5 6 1\n"),
        ("a.pts", "3\n0 0 1 -1500 10 10 10\n1.5 -2 3e-3 -1500 10 10 10\n4 5 6 -1500 10 10 10\n"),
        ("a.txt", "# a comment\n# id z y x\n1 1 0 0\n2 3e-3 -2 1.5\n3 6 5 4\n"),
        ("a.txt", "# columns: z y x\n1 0 0\n3e-3 -2 1.5\n6 5 4\n"),
        ("a.csv", ",x,y,z\n0,0,0,1\n1,1.5,-2,3e-3\n2,4,5,6\n"),
        ("a.csv", "x,y,z\n0,0,1,\n1.5,-2,3e-3,\n4,5,6,\n"),
        ("a.csv", "x;y;z;note\n0;0;1;\n1.5;-2;3e-3;\n4;5;6;\n"),
        ("a.txt", "0,0,1,0.1,0.2,0.3\n1.5,-2,3e-3,0.1,0.2,0.3\n4,5,6,0.1,0.2,0.3\n"),
        ("a.csv", "\ufeffx,y,z\n0,0,1\n1.5,-2,3e-3\n4,5,6\n"),
        ("a.csv", 'id, "Z", X, Y\n7, 1, 0, 0\n8, 3e-3, 1.5, -2\n9, 6, 4, 5\n'),
        ("a.csv", "0, 0, 1\r\n1.5, -2, 3e-3\r\n4, 5, 6\r\n"),
    ],
)
def test_text_in_its_usual_spellings_is_the_same_cloud(tmp_path, name, text):
    found = read_points(saved(tmp_path / name, text))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.astype(np.float32), POINTS)


@pytest.mark.parametrize(
    "text",
    [
        "0;0;1\n1,5;-2;3e-3\n4;5;6\n",
        "0,0;0;1,000\n1,5;-2;3E-03\n4;5;6\n",
        "0\t0\t1\n1,5\t-2\t0,003\n4\t5\t6\n",
        "x;y;z;note\n0;0;1;a.b,c\n1,5;-2;3e-3;0.5\n4;5;6;\n",
    ],
)
def test_decimals_may_have_commas_between_semicolons_and_tabs(tmp_path, text):
    found = read_points(saved(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(found.astype(np.float32), POINTS)


def test_the_mark_of_decimals_is_one_in_all_parts_of_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr("minipc.data.readers.text_points.PART", 100)
    whole, commas, points = "1;2;3\n" * 50, "1,5;2;3\n" * 50, "1.5;2;3\n" * 50
    assert len(read_points(saved(tmp_path / "a.csv", whole + commas + whole + commas))) == 200
    for text, line in ((whole + commas + points, 101), (points + whole + commas, 101)):
        with pytest.raises(DataError, match=f"line {line}: column 1: expected one mark of dec"):
            read_points(saved(tmp_path / "a.csv", text))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "f2"])
@pytest.mark.parametrize("columns", [3, 6])
def test_arrays_of_any_real_dtype_are_the_same_cloud(tmp_path, dtype, columns):
    wide = np.ones((3, columns), dtype)
    wide[:, :3] = POINTS
    wanted = wide[:, :3].astype(np.float64 if dtype == "f8" else np.float32)
    np.save(tmp_path / "a.npy", wide)
    np.savez(tmp_path / "one.npz", anything=wide)
    np.savez_compressed(tmp_path / "many.npz", points=np.asfortranarray(wide), labels=np.arange(3))
    for name in ("a.npy", "one.npz", "many.npz"):
        np.testing.assert_array_equal(read_points(str(tmp_path / name)), wanted, strict=True)


def test_integers_are_coordinates_too(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2, 3], [4, 5, -6]], np.int16))
    assert read_points(str(tmp_path / "a.npy")).tolist() == [[1, 2, 3], [4, 5, -6]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty; put one cloud into it"),
        ("\n# nothing\n", "holds no points"),
        ("x,y,z\n", "holds no points after its header"),
        ("0 1\n1 2\n", "line 1: expected 3 numbers with blanks between them, found '0 1'"),
        (
            "0 0 1\n1 2\n3 4 5\n",
            "line 2: expected 3 fields with blanks between them, as in line 1, found 2 in '1 2'",
        ),
        (
            "0 0 1\n\n# a comment\n1 2 three\n",
            "line 4: column 3: expected a number, found 'three' in '1 2 three'",
        ),
        (
            "0,0,1\n1;2;3\n",
            "line 2: expected 3 fields with commas between them, .* found 1 in '1;2;3'",
        ),
        (
            "0 0 1\n1 2 nan\n",
            "line 2: column 3: expected a finite float32 number, found 'nan' in '1 2 nan'",
        ),
        ("0 0 1\n1 2 -inf\n", "line 2: column 3: expected a finite"),
        ("0 0 1\n1 2 1e39\n", "line 2: column 3: expected a finite"),
        ("0 0 1\n1 2 1_000\n", "line 2: column 3: expected a number, found '1_000'"),
        (
            "a,b,c\n0,0,1\n",
            "line 1: column 1: expected a number, found 'a' in 'a,b,c'; repair it, or name the "
            "columns x",
        ),
        # fields that are missing, empty or too many
        (
            "t\tx\ty\tz\n1\t0.1\t0.2\t0.3\n2\t\t0.5\t0.6\n",
            "line 3: column 2: .* found an empty field in .*; fill it",
        ),
        ("0.1\t0.2\t0.3\n\t\t\n", "line 2: column 1: expected a number, found an empty field"),
        (
            "0.1,0.2,0.3,1\n0.4,0.5,,1\n",
            "line 2: column 3: expected a number, found an empty field",
        ),
        (
            "0.1 0.2 0.3 1 2 3\n0.5 0.6 1 2 3\n",
            "line 2: expected 6 fields .*found 5 in .*; complete the line, or remove",
        ),
        ("0.1 0.2 0.3 0 0 1\n0.7 0.8 0", "line 2: expected 6 fields .*found 3"),
        ("0.1 0.2 0.3\n0.4 0.5 0.6 0.7 0.8 0.9\n", "line 2: expected 3 fields .*found 6"),
        (
            "0.1,0.2,0.3,\n0.4,0.5,0.6\n",
            "line 2: expected 3 fields with commas between them and at the end",
        ),
        ("0.1,0.2,0.3,\n0.4,9,0.5,0.6\n", "line 2: expected 3 fields .*found 4"),
        (
            "0.1 0.2 0.3\n0.4\t\t0.5 0.6\n",
            "line 2: expected blanks between numbers, as in line 1, found tabs",
        ),
        # numbers as other programs write them
        (
            "1 2 3\n4 5 -1.#IND\n",
            "line 2: column 3: expected a finite float32 number, found '-1.#IND'",
        ),
        (
            "1 2 3\n4 1.#QNAN00 5\n",
            "line 2: column 2: expected a finite float32 number, found '1.#QNAN00'",
        ),
        (
            "1 2 3\n1.#INF 2 5\n",
            "line 2: column 1: expected a finite float32 number, found '1.#INF'",
        ),
        (
            "1 2 3\n4 5 -nan(ind)\n",
            r"line 2: column 3: expected a finite float32 number, found '-nan\(ind\)'",
        ),
        ("1 2 3#a\n4 5 6\n", "line 1: column 3: expected a number, found '3#a'"),
        (
            "0,1;0,2;0,3\n0.4;0,5;0,6\n",
            "line 1: column 1: expected one mark of decimals .*found points and commas, here '0,1'",
        ),
        ("1.234,5;2;3\n", "line 1: column 1: expected one mark of decimals .*thousands without"),
        ("1;2;3\n1,234,5;2;3\n", "line 2: column 1: expected a number, found '1,234,5'"),
        (
            "1,25,2,5,3,0\n2,25,3,5,3,0\n",
            "line 1: has 6 whole numbers between commas, which may be decimal ones, .* or name the",
        ),
        ("1,25,2,5,3\n2,25,3,05,3\n", "line 2: has 5 whole numbers between commas, which may be"),
        ("1,5,2,5,3,0,17\n2,5,3,00,3,1,9\n", "line 2: has 7 whole numbers between commas"),
        ("\uff11 2 3\n4 5 6\n", "line 1: column 1: expected a number, found"),
        (
            "0,1 0,2 0,3\n0,4 0,5 0,6\n",
            "line 1: has commas beside blanks, which may be decimal ones, .* with a point",
        ),
        (
            "0,1, 0,2, 0,3\n0,4, 0,5, 0,6\n",
            "line 1: has commas with and without a blank behind them, .* with a point",
        ),
        # headers
        (
            "0,1,2\n0.1,0.2,0.3\n",
            "line 1: expected a point, found '0,1,2', which numbers the columns; remove the line",
        ),
        (
            "0 1 2 3\n10 20 30 40\n",
            "line 1: expected a point, found '0 1 2 3', which numbers the columns",
        ),
        (",0,1,2\n0,0.1,0.2,0.3\n", "line 1: column 1: expected a number, found an empty field"),
        (
            "0,.1,.2,.3\n1,.1,.2,.4\n2,.5,.1,.3\n",
            r"column 1 counts the lines, expected x; .*\(pandas: index=False\)",
        ),
        (
            "id x y z\n0 0 1\n",
            "line 1: names 4 columns, x, y and z among them, but line 2 has 3; give every column "
            "one",
        ),
        ("# id x y z\n0 0 1\n", "line 1: names 4 columns, x, y and z among them, but line 2 has 3"),
        ("x y z x y z\n0 0 1 2 3 4\n", "line 1: column 1: expected a number, found 'x'"),
        (
            "3\n0 0 1\n1 2 3\n",
            "line 1: says 3 points, found 2; the file is cut, or holds several clouds",
        ),
        ("2\n0 0 1\n1 2 3\n2\n0 0 1\n1 2 3\n", "line 4: expected 3 fields .*found 1 in '2'"),
        ("2\n\nC 0 0 1\nH 1 2 3\n", "line 3: column 1: expected a number, found 'C'"),
        ("7\n", "holds no points after its header"),
        # a transposed cloud, and no lines at all
        (
            "0.5 " * 40 + "\n" + "0.25 " * 40,
            "line 1: expected x, y and z and at most 16 columns, found 40",
        ),
        ("0 0 1 " * 20000, "line 1: has more than 65536 characters; save one point a line"),
        ("0 0 1\n1 2 3\n" + "4 5 6 " * 20000, "line 3: has more than 65536 characters"),
    ],
)
def test_a_text_that_is_no_cloud_is_refused_with_its_line(tmp_path, text, message):
    path = saved(tmp_path / "cloud.csv", text)
    with pytest.raises(DataError, match=f"cloud.csv: {message}") as raised:
        read_points(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            np.zeros((4, 2)),
            r"expected one cloud, \(P, 3\).*found \(4, 2\) float64; save one cloud a file",
        ),
        (np.zeros((3, 40)), r"found \(3, 40\)"),  # a transposed cloud is no cloud of three points
        (np.zeros((2, 4, 3)), r"found \(2, 4, 3\)"),
        (np.zeros(3), r"found \(3,\)"),
        (np.zeros((0, 3)), "holds no points"),
        (np.zeros((4, 3), complex), "found .* complex128"),
        (np.array([["1", "2", "3"]]), "found .* <U1"),
        (
            np.array([[0, 0, 1], [0, np.nan, 2.0]]),
            "point 1: expected finite float32 coordinates, found 0.0, nan, 2.0",
        ),
        (np.array([[0, 0, 1e300]]), "point 0: expected finite float32"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_an_array_that_is_no_cloud_is_refused_with_what_it_is(tmp_path, kind, values, message):
    path = tmp_path / f"cloud.{kind}"
    (np.save if kind == "npy" else np.savez)(path, values)
    with pytest.raises(DataError, match=f"cloud.{kind}: .*{message}"):
        read_points(str(path))


class Bomb:
    """What a pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_pickle_is_never_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (np.save if kind == "npy" else np.savez)(f"bad.{kind}", np.array([[Bomb(), 1, 2]], object))
    with pytest.raises(DataError, match="damaged or no plain array .*save it again"):
        read_points(f"bad.{kind}")
    assert os.listdir() == [f"bad.{kind}"]


def test_an_archive_that_unpacks_to_more_than_a_cloud_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("minipc.data.readers.point_files.LARGEST", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", points=np.zeros((1 << 17, 3), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 13
    with pytest.raises(
        DataError, match=r"points.npy unpacks to \d+ bytes, expected at most 1048576"
    ):
        read_points(str(tmp_path / "bomb.npz"))


def test_what_an_array_file_promises_but_does_not_hold_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((100, 3)))
    whole = path.read_bytes()
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(100, 3)", b"(10**13, 3)".ljust(8))[:500])
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="a.npy: "):
            read_points(str(path))
    with pytest.raises(DataError, match="huge.npy: is damaged or no plain array"):
        read_points(str(tmp_path / "huge.npy"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="text.npz: is damaged or no plain array"):
        read_points(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 3)), b=np.zeros((2, 3)))
    with pytest.raises(DataError, match="expected an array named points, or one array"):
        read_points(str(tmp_path / "two.npz"))


def test_a_path_that_is_no_such_file_is_refused_and_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.xyz")
    (tmp_path / "folder.xyz").mkdir()
    (tmp_path / "part.step").write_text("ISO-10303-21;\n")
    for name, message in (
        ("none.xyz", "No such file"),
        ("folder.xyz", "found a folder"),
        ("pipe.xyz", "found a pipe"),
        (
            "part.step",
            "unknown suffix '.step', expected .npy, .npz, .xyz, .* .las or .laz; convert it",
        ),
    ):
        with pytest.raises(DataError, match=message):
            read_points(str(tmp_path / name))


def test_more_points_are_sampled_fewer_are_repeated_and_neither_depends_on_anything_else():
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((50, 3)).astype(np.float32)
    fewer = fit_points(cloud, 20)
    rows = [int(np.flatnonzero((cloud == point).all(axis=1))[0]) for point in fewer]
    assert rows == sorted(set(rows)) and rows != list(
        range(20)
    )  # no point twice, stored order, not the first
    np.testing.assert_array_equal(fewer, fit_points(cloud.copy(), 20))
    more = fit_points(cloud, 120)
    np.testing.assert_array_equal(more, np.concatenate([cloud, cloud, cloud[:20]]))
    np.testing.assert_array_equal(more.max(axis=0), cloud.max(axis=0))
    np.testing.assert_array_equal(fit_points(cloud, 50), cloud)
    other = cloud.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(9))
    assert not np.array_equal(fit_points(other, 20)[1:], fewer[1:])  # another cloud, another draw


def test_the_points_that_are_taken_of_a_cloud_are_frozen():
    """A model packed with one version must be fed the same points by the next."""
    cloud = (np.arange(60) * 37 % 101 / 64).astype(np.float32).reshape(20, 3)
    np.testing.assert_array_equal(fit_points(cloud, 6), cloud[[2, 4, 7, 12, 13, 18]])


def test_the_order_of_an_array_in_memory_changes_no_bit(tmp_path):
    cloud = (7 + 3 * np.random.default_rng(0).standard_normal((1000, 3))).astype(np.float32)
    paths = []
    for name, array in (("c", cloud), ("f", np.asfortranarray(cloud))):
        np.save(tmp_path / f"{name}.npy", array)
        np.savez(tmp_path / f"{name}.npz", array)
        paths += [str(tmp_path / f"{name}.npy"), str(tmp_path / f"{name}.npz")]
    assert len({read_prepared(path, "unit_sphere", 100)[0].tobytes() for path in paths}) == 1
    assert type(read_points(paths[0])) is np.ndarray  # no map of a file that may change


def test_an_archive_with_a_flipped_bit_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", points=np.random.default_rng(0).standard_normal((100, 3)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[1000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="a.npz: is damaged"):
        read_points(str(tmp_path / "a.npz"))


@given(st.integers(1, 40), st.integers(1, 90))
def test_fitting_takes_only_points_of_the_cloud_as_evenly_as_can_be(stored, count):
    cloud = np.arange(3 * stored, dtype=np.float32).reshape(stored, 3)
    fitted = fit_points(cloud, count)
    assert fitted.shape == (count, 3)
    times = np.bincount((fitted[:, 0] / 3).astype(int), minlength=stored)
    assert times.max() - times.min() <= 1


def test_preparing_normalises_the_whole_cloud_and_then_takes_points():
    rng = np.random.default_rng(1)
    cloud = (10 + 7 * rng.standard_normal((60, 3))).astype(np.float32)
    whole, _ = normalised(cloud[None], "unit_sphere")
    ready, changed = prepare(cloud, "unit_sphere", 30)
    assert changed and ready.shape == (30, 3)
    assert {tuple(point) for point in ready} <= {tuple(point) for point in whole[0]}
    plain, changed = prepare(cloud, "none", 30)
    assert not changed and {tuple(point) for point in plain} <= {tuple(point) for point in cloud}
    radius = np.linalg.norm(whole[0], axis=1).max()
    assert (
        abs(radius - 1) < 1e-6 and np.abs(whole[0].mean(axis=0)).max() < 1e-6
    )  # float32 of values up to 1


def test_one_repeated_point_has_no_radius_and_is_refused(tmp_path):
    path = saved(tmp_path / "one.xyz", "1 2 3\n1 2 3\n")
    with pytest.raises(
        DataError, match=r"one.xyz: expected at least 2 distinct points, found one \(2 times\)"
    ):
        read_prepared(path, "unit_sphere", 4)
    points, changed, stored = read_prepared(path, "none", 4)
    assert points.tolist() == [[1, 2, 3]] * 4 and (changed, stored) == (False, 2)


def test_whole_numbers_that_begin_with_0_1_2_are_points(tmp_path):
    assert read_points(saved(tmp_path / "a.xyz", "0 1 2\n10 20 30\n")).tolist() == [
        [0, 1, 2],
        [10, 20, 30],
    ]


def test_many_columns_are_read_where_a_header_names_them(tmp_path):
    names = " ".join(f"f{i}" for i in range(40))
    lines = "\n".join(f"{' '.join(['7'] * 40)} {i} 2 3" for i in range(5))
    assert read_points(saved(tmp_path / "a.txt", f"{names} x y z\n{lines}\n"))[:, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_text_that_is_read_in_parts_gives_all_its_points_and_the_right_line(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("minipc.data.readers.text_points.PART", 100)
    values = np.arange(3000).reshape(1000, 3) / 8
    lines = [" ".join(map(str, point)) for point in values.tolist()]
    lines[500:500] = ["", "# a comment"]
    for end in ("", "\n", "\n\n"):
        found = read_points(saved(tmp_path / "a.xyz", "\n".join(lines) + end))
        np.testing.assert_array_equal(found, values, strict=True)
    lines[900] = "1 2 x"
    with pytest.raises(DataError, match="a.xyz: line 901: column 3: expected a number, found 'x'"):
        read_points(saved(tmp_path / "a.xyz", "\n".join(lines)))


def test_the_points_are_not_looked_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("minipc.data.readers.text_points.PART", 1000)
    assert len(read_points(saved(tmp_path / "a.xyz", "\n" * 990 + "1 2 3\n4 5 6\n"))) == 2
    with pytest.raises(
        DataError, match="a.xyz: holds no point in its first 1001 lines; remove what is above"
    ):
        read_points(saved(tmp_path / "a.xyz", "\n" * 1001 + "1 2 3\n"))


# Far from the origin


def far_and_near(points=60, side=0.02):
    """A small cloud with five decimals, as float64, and the same moved to coordinates of a map."""
    near = np.round(side * np.random.default_rng(0).standard_normal((points, 3)), 5)
    return near, np.round(near + [500000, 5400000, 300], 5)


@pytest.mark.parametrize("suffix", ["xyz", "csv", "npy", "npz"])
def test_a_small_cloud_far_from_the_origin_is_the_cloud_that_it_is_at_the_origin(tmp_path, suffix):
    """float64 holds coordinates of 5e6 to 1e-9, 5e-8 of the radius; float32 only to 0.5."""
    ready = []
    for name, values in zip(("near", "far"), far_and_near(), strict=True):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "npy":
            np.save(path, values)
        elif suffix == "npz":
            np.savez(path, values)
        else:
            np.savetxt(path, values, fmt="%.5f", delimiter="," if suffix == "csv" else " ")
        ready.append(read_prepared(str(path), "unit_sphere", 90)[0])
    np.testing.assert_allclose(ready[1], ready[0], atol=2e-7)  # and a last bit of float32 at 1


def test_float32_points_keep_the_bits_that_they_had():
    """Centred and scaled in float64, rounded once; here the arithmetic is written out."""
    cloud = (7 + 3 * np.random.default_rng(0).standard_normal((50, 3))).astype(np.float32)
    centred = cloud.astype(np.float64) - cloud.astype(np.float64).mean(axis=0)
    wanted = (centred / np.linalg.norm(centred, axis=1).max()).astype(np.float32)
    for values in (cloud, cloud.astype(np.float64)):
        found, _ = prepare(float_points(values), "unit_sphere", 50)
        np.testing.assert_array_equal(found, wanted, strict=True)
    again, changed = prepare(float_points(wanted.astype(np.float64)), "unit_sphere", 50)
    assert not changed and again.tobytes() == wanted.tobytes()


def test_the_same_points_are_taken_of_a_cloud_in_float32_and_in_float64():
    cloud = np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32)
    np.testing.assert_array_equal(fit_points(cloud.astype(np.float64), 20), fit_points(cloud, 20))


def test_a_cloud_that_stays_where_it_is_must_be_near_enough_for_float32(tmp_path):
    near, far = far_and_near()
    path = saved(
        tmp_path / "far.xyz", "\n".join(" ".join(map(repr, point)) for point in far.tolist())
    )
    with pytest.raises(
        DataError,
        match="far.xyz: steps of float32 are 0.5 at coordinates of 5.4e.06, more than 0.001 "
        "of the cloud's largest side, .* normalise to unit_sphere, or subtract an",
    ):
        read_prepared(path, "none", 60)
    np.testing.assert_array_equal(
        prepare(near, "none", 60)[0], near.astype(np.float32), strict=True
    )
    # The threshold: steps of 2^-20 between 8 and 16, a side of 1024 of them against one of 992.
    for side, refused in ((1024, False), (992, True)):
        edge = np.array([[8, 8, 8], [8 + side / 2**20, 8, 8]])
        if refused:
            with pytest.raises(DataError, match="steps of float32"):
                prepare(edge, "none", 2)
        else:
            prepare(edge, "none", 2)


@pytest.mark.parametrize("normalisation", ["unit_sphere", "none"])
def test_a_cloud_that_was_saved_too_far_from_the_origin_for_its_type_is_refused(
    tmp_path, normalisation
):
    np.save(tmp_path / "a.npy", far_and_near()[1].astype(np.float32))
    with pytest.raises(
        DataError, match="a.npy: steps of float32 are 0.5 .*its shape was lost where it was saved"
    ):
        read_prepared(str(tmp_path / "a.npy"), normalisation, 60)
    with pytest.raises(
        DataError, match="cloud 1: steps of float64 are 2e.03 at coordinates of 1e.19"
    ):
        float_points(np.array([np.eye(3), np.eye(3) * 1e4 + 1e19]))


def test_points_that_float32_does_not_hold_are_named():
    with pytest.raises(
        DataError, match="cloud 1, point 2: expected finite float32 coordinates, found 1.0, 2.0, 1e"
    ):
        values = np.ones((2, 4, 3))
        values[1, 2] = [1, 2, 1e39]
        float_points(values)
