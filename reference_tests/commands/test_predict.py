"""minipc predict: the class of single files, prepared as packing prepares them."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minipc.data.clouds import read_clouds
from minipc.data.prepare import turned
from minipc.data.readers import standard_input
from minipc.data.readers.point_files import read_prepared
from minipc.distil import evaluate
from minipc.errors import DataError
from minipc.models.file import read_model, write_model
from minipc.verbs.predict import predict
from reference_tests.commands.test_cli import QUICK


@pytest.fixture
def trained(vessels, say):
    """vessels.h5 and a run on it; the model has never seen the files of the test split."""
    assert (
        say("data", "pack", "vessels", "-o", "vessels.h5", "--num-points", 32, "--up-axis", "z")[0]
        == 0
    )
    assert say("train", "vessels.h5", "--labels-only", *QUICK)[0] == 0


def test_a_file_is_predicted_as_the_packed_cloud_is(trained, vessels, say):
    paths = sorted(str(path.relative_to(vessels.parent)) for path in vessels.rglob("*.xyz"))
    code, out, err = say("predict", "run", *paths, "--json")
    assert code == 0, err
    values = json.loads(out)
    assert (values["model"], values["points"], len(values["predictions"])) == (
        "run/model.h5",
        32,
        240,
    )
    splits, model = read_clouds("vessels.h5"), read_model("run/model.h5")
    packed = {}
    for clouds in splits:
        for points, logits in zip(
            clouds.points, evaluate.predict(model, clouds.points, np, 1), strict=True
        ):
            packed[points.tobytes()] = splits.train.class_names[logits.argmax()]
    for one in values["predictions"]:
        points, _, _ = read_prepared(one["file"], "unit_sphere", 32)
        assert one["class"] == packed[points.tobytes()]  # the very points that were packed
    right = np.mean([one["class"] == one["file"].split(os.sep)[1] for one in values["predictions"]])
    assert right > 0.6  # four epochs; chance is one third


def test_a_prediction_does_not_depend_on_what_is_predicted_with_it(trained, say):
    paths = [f"vessels/mug/{number:03d}.xyz" for number in range(1, 41)]
    together = predict("run", paths, xp=np, threads=2)["predictions"]
    assert [one["file"] for one in together] == paths
    for path, one in list(zip(paths, together, strict=True))[::13]:
        assert predict("run", [path], xp=np)["predictions"] == [one]


def test_top_lists_classes_by_their_probability(trained, say):
    values = predict("run", ["vessels/bowl/001.xyz"], top=3, xp=np)["predictions"][0]
    assert {best["class"] for best in values["top"]} == {"bowl", "mug", "vase"}
    p = [best["probability"] for best in values["top"]]
    assert p == sorted(p, reverse=True) and sum(p) == pytest.approx(1)
    assert (values["class"], values["probability"]) == (values["top"][0]["class"], p[0])
    code, out, err = say("predict", "run", "vessels/bowl/001.xyz", "--top", 2)
    assert code == 0 and out.startswith("vessels/bowl/001.xyz  ") and out.count(" %") == 2
    assert "expects up axis z" in err
    assert say("predict", "run", "vessels/bowl/001.xyz", "--up-axis", "z")[2] == ""


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".txt", ".csv"])
def test_every_format_of_the_same_cloud_gives_the_same_answer(trained, folder, suffix):
    points = np.loadtxt("vessels/vase/002.xyz")
    path = f"cloud{suffix}"
    if suffix == ".npy":
        np.save(path, points)
    elif suffix == ".npz":
        np.savez(path, points)
    else:
        np.savetxt(
            path, points, delimiter="," if suffix == ".csv" else " ", fmt="%.17g"
        )  # all digits of a float64
    one, other = predict("run", ["vessels/vase/002.xyz", path], xp=np)["predictions"]
    assert one["probability"] == other["probability"]


def test_the_cloud_is_normalised_exactly_if_the_model_was_trained_so(trained, folder):
    points = np.loadtxt("vessels/mug/003.xyz")
    np.save("moved.npy", 40 * points + [7, 8, 9])
    model = read_model("run/model.h5")
    write_model("plain.h5", model._replace(described=model.described | {"normalisation": "none"}))
    one, moved = predict("run", ["vessels/mug/003.xyz", "moved.npy"], xp=np)["predictions"]
    assert moved["probability"] == pytest.approx(
        one["probability"], abs=0.2
    )  # another draw of the points
    one, moved = predict("plain.h5", ["vessels/mug/003.xyz", "moved.npy"], xp=np)["predictions"]
    assert abs(moved["probability"] - one["probability"]) > 1e-6 or moved["class"] != one["class"]


def test_a_cloud_far_from_the_origin_is_predicted_as_it_is_at_the_origin(trained, folder):
    """Five decimals both times; all points are taken, as a subset depends on the numbers."""
    points = 0.02 * np.loadtxt("vessels/mug/003.xyz")
    count = len(points)
    np.savetxt("near.xyz", points, fmt="%.5f")
    np.savetxt("far.xyz", np.loadtxt("near.xyz") + [500000, 5400000, 300], fmt="%.5f")
    near, far = predict("run", ["near.xyz", "far.xyz"], num_points=count, top=3, xp=np)[
        "predictions"
    ]
    assert far["class"] == near["class"]
    assert far["probability"] == pytest.approx(
        near["probability"], abs=1e-5
    )  # points moved by 1e-7 of the radius


def test_points_come_from_the_option_then_from_the_model_then_from_custom(trained, folder):
    path = "vessels/mug/001.xyz"
    assert predict("run", [path], xp=np)["points"] == 32
    assert predict("run", [path], num_points=7, xp=np)["points"] == 7
    model = read_model("run/model.h5")
    write_model("old.h5", model._replace(trained={}))
    assert predict("old.h5", [path], xp=np)["points"] == 1024


def test_the_others_are_predicted_after_a_bad_file_and_the_end_is_3(trained, folder, say):
    (folder / "bad.xyz").write_text("1 2\n")
    good = ["vessels/mug/001.xyz", "vessels/mug/002.xyz"]
    names = [good[0], "bad.xyz", "none.xyz", good[1]]
    code, out, err = say("predict", "run", *names, "--quiet")
    assert code == 3 and [line.split()[0] for line in out.splitlines()] == good
    first, second = err.splitlines()
    assert first.startswith("minipc: bad.xyz: line 1") and second.startswith("minipc: none.xyz:")
    code, out, _ = say("predict", "run", *names, "--json")
    values = json.loads(out)
    assert code == 3 and [line.split(":")[0] for line in values["failed"]] == [
        "bad.xyz",
        "none.xyz",
    ]
    assert values["predictions"] == predict("run", good)["predictions"]
    code, out, err = say("predict", "run", "bad.xyz")
    assert (code, out, err.count("\n")) == (3, "", 1)


def test_from_python_a_bad_file_raises(trained, folder):
    with pytest.raises(DataError, match="none.xyz"):
        predict("run", ["vessels/mug/001.xyz", "none.xyz"])


def test_a_folder_stands_for_the_clouds_in_it_and_below(trained, folder, say):
    paths = [
        f"vessels/{name}/{i:03d}.xyz" for name in ("bowl", "mug", "vase") for i in range(1, 81)
    ]
    (folder / "vessels/README.md").write_text("about them")
    (folder / "vessels/mug/.hidden.xyz").write_text("1 2")
    code, out, err = say("predict", "run", "vessels", "--json")
    assert code == 0 and json.loads(out)["predictions"] == predict("run", paths)["predictions"]
    assert "left out, as no cloud by the suffix: vessels/README.md" in err
    os.mkdir("nothing")
    code, out, err = say("predict", "run", "nothing", "vessels/mug", "--quiet")
    assert code == 3 and out.count("\n") == 80 and "nothing: holds no cloud" in err


def test_without_a_model_the_last_run_is_taken_and_named(trained, say):
    assert say("train", "vessels.h5", "--labels-only", *QUICK)[0] == 0
    named = {}
    for run in ("run", "run-2"):
        named[run] = json.loads(say("predict", run, "vessels/mug/001.xyz", "--json")[1])
    code, out, err = say("predict", "vessels/mug/001.xyz", "--json")
    assert code == 0 and json.loads(out) == named["run-2"] and "run-2: the last run here" in err
    code, out, err = say("eval", "--json")
    assert (code, json.loads(out)["model"]) == (0, "run-2/model.h5") and "run-2: the last" in err
    assert say("eval", "vessels.h5", "--json")[1] == out
    code, told, err = say("info", "--json")
    assert (code, json.loads(told)["file"]) == (0, "run-2") and "run-2: the last run here" in err
    code, told, err = say("report", "--json")
    assert (code, json.loads(told)["report"]) == (0, "run-2/report.html") and "run-2" in err
    os.mkdir("run-3")  # no run
    assert "run-2: the last run here" in say("info")[2]
    os.rename("run", "elsewhere")  # the names no longer follow one another, as for --resume
    assert say("info")[0] == 2
    code, _, err = say("report")
    assert code == 2 and "there is no run here; name RUN" in err
    os.mkdir("study")
    os.rename("elsewhere", "study/labels-0")
    code, told, err = say("report")
    assert code == 0 and "study: the study here" in err and "study/report.html" in told


AXES = [(up, wanted) for up in "xyz" for wanted in "xyz" if up != wanted]


@pytest.mark.parametrize("up, wanted", AXES)
def test_a_turn_is_the_quarter_turn_about_the_third_axis_that_brings_up_to_up(up, wanted):
    unit = dict(zip("xyz", np.eye(3), strict=True))
    (third,) = set("xyz") - {up, wanted}
    e_up, e_wanted = unit[up], unit[wanted]
    assert (turned(e_up, up, wanted) == e_wanted).all()
    assert (turned(e_wanted, up, wanted) == -e_up).all()
    assert (turned(unit[third], up, wanted) == unit[third]).all()
    matrix = turned(np.eye(3), up, wanted).T  # its columns are where the unit vectors go
    assert np.linalg.det(matrix) == 1 and (matrix @ matrix.T == np.eye(3)).all()
    axis = np.cross(e_up, e_wanted)
    cross = np.array([np.cross(axis, e) for e in np.eye(3)]).T
    # Rodrigues' formula at 90 degrees about e_up x e_wanted
    assert (matrix == np.outer(axis, axis) + cross).all()
    points = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    before = points.copy()
    assert (turned(turned(points, up, wanted), wanted, up) == points).all()
    assert (turned(points, up, wanted) == points @ matrix.T.astype(np.float32)).all()
    assert (points == before).all() and turned(points, up, up) is points
    assert turned(points, up, wanted).dtype == np.float32


def test_y_up_becomes_z_up_as_everybody_does_it():
    assert turned(np.array([1.0, 2.0, 3.0]), "y", "z").tolist() == [1, -3, 2]


def test_the_page_on_conventions_shows_every_turn_as_it_is():
    text = (Path(__file__).parents[2] / "docs/conventions.md").read_text()
    shown = re.findall(r"rom (\w) to (\w):?(?: \(x, y, z\) becomes)? \((.*?)\)", text)
    assert sorted((up, wanted) for up, wanted, _ in shown) == sorted(AXES)
    for up, wanted, triple in shown:
        values = turned(np.array([1, 2, 3]), up, wanted)
        names = [f"{'-' * (value < 0)}{' xyz'[abs(value)]}" for value in values.tolist()]
        assert triple == ", ".join(names), (up, wanted)


def test_a_turned_cloud_is_predicted_as_the_file_of_its_turned_points(trained, folder, say):
    """Also the subset of points is theirs: 40 points, of which the model takes 32."""
    points = np.loadtxt("vessels/mug/001.xyz")
    points[::3, 1] = 0  # a zero has no sign
    np.savetxt("y-up.xyz", points, fmt="%.5f")
    turned_by_hand = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1) + 0.0
    np.savetxt("z-up.xyz", turned_by_hand, fmt="%.5f")
    code, out, err = say("predict", "run", "y-up.xyz", "--turn", "y", "--top", 3, "--json")
    values = json.loads(out)
    assert code == 0 and values["turned"] == ["y", "z"]
    assert err.count("\n") == 1 and "the clouds were turned from y" in err
    (wanted,) = predict("run", ["z-up.xyz"], top=3)["predictions"]
    assert values["predictions"][0]["top"] == wanted["top"]
    assert predict("run", ["y-up.xyz"], top=3)["predictions"][0]["top"] != wanted["top"]
    same = say("predict", "run", "z-up.xyz", "--turn", "z", "--top", 3, "--json")
    assert json.loads(same[1])["predictions"] == [wanted] and "nothing to turn" in same[2]


def test_the_note_on_the_up_axis_is_one_for_all_files_and_none_once_it_is_known(trained, say):
    assert say("predict", "run", "vessels")[2].count("expects up axis z") == 1
    assert say("predict", "run", "vessels", "--up-axis", "z")[2] == ""


def test_the_device_answers_as_the_host_does(trained, fake_cupy):
    host, device = (
        predict("run", ["vessels/mug/001.xyz"], xp=xp)["predictions"][0] for xp in (np, fake_cupy)
    )
    assert device["class"] == host["class"]
    assert device["probability"] == pytest.approx(
        host["probability"], abs=1e-6
    )  # float32 logits of size one


def test_a_file_name_that_is_no_text_is_no_hindrance(trained, say):
    name = os.fsdecode(b"\xff.xyz")
    os.rename("vessels/mug/001.xyz", name)
    code, out, err = say("predict", "run", name, "--quiet")
    assert code == 0 and out.strip().isprintable(), err
    code, out, err = say("predict", "run", name, "--quiet", "--json")
    assert code == 0 and json.loads(out)["predictions"][0]["file"] == name, err


class Terminal(io.BytesIO):
    def isatty(self):
        return True


@pytest.fixture
def send(monkeypatch):
    """Put bytes on standard input."""

    def into(content, stream=io.BytesIO):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream(content)))

    return into


def npz_of(points):
    file = io.BytesIO()
    np.savez(file, points)
    return file.getvalue()


def npy_of(points):
    file = io.BytesIO()
    np.save(file, points)
    return file.getvalue()


def test_standard_input_is_predicted_as_the_file_of_its_bytes(trained, say, send):
    path = "vessels/mug/001.xyz"
    (wanted,) = predict("run", [path], top=2)["predictions"]
    text, points = Path(path).read_bytes(), np.loadtxt(path)
    commas = text.replace(b" ", b",")
    for content in (text, commas, text.replace(b"\n", b"\r\n"), npy_of(points), npz_of(points)):
        send(content)
        code, out, err = say("predict", "run", "-", "--top", 2, "--json", "-q")
        assert code == 0, err
        assert json.loads(out)["predictions"] == [wanted | {"file": "-"}]
    send(text)
    code, out, err = say("predict", "-", "vessels/mug/002.xyz", "--up-axis", "z")
    assert code == 0 and err == "run: the last run here\n"
    assert [line.split()[0] for line in out.splitlines()] == ["-", "vessels/mug/002.xyz"]


def test_standard_input_is_prepared_and_drawn_as_a_file_is(trained, say, send):
    text = Path("vessels/mug/001.xyz").read_bytes()
    told = {}
    for name in ("vessels/mug/001.xyz", "-"):
        send(text)
        words = ("--num-points", 7, "--turn", "y", "--show", "-q")
        code, out, err = say("predict", "run", name, *words)
        assert code == 0, err
        told[name] = out.replace(name, "NAME").split()
    assert told["-"] == told["vessels/mug/001.xyz"] and any("\u28ff" >= c > "\u2800" for c in out)


def test_the_form_of_standard_input_can_be_named(trained, say, send):
    points = np.loadtxt("vessels/mug/001.xyz")
    send(npy_of(points))
    assert say("predict", "run", "-", "--format", "npy", "-q")[0] == 0
    send(npy_of(points))
    code, out, err = say("predict", "run", "-", "--format", "xyz", "-q")
    assert (code, out) == (3, "") and "standard input: cannot be read as text" in err
    send(npy_of(points))
    code, out, err = say("predict", "run", "-", "--format", "stl2", "-q")
    assert (code, out) == (2, "") and "--format: expected one of npy, npz, xyz" in err


@pytest.mark.parametrize(
    "content, named",
    [
        (b"", "standard input: is empty"),
        (b"\n\n", "standard input: holds no points"),
        (b"1 2 3\n4 nan 6\n", "standard input: line 2: column 2"),
        (b"\x93NUMPY\x01\x00", "standard input: is damaged"),
        (b"\xff\xfe1 2 3\n", "standard input: cannot be read as text"),
    ],
)
def test_what_is_no_cloud_on_standard_input_is_one_line_and_3(content, named, trained, say, send):
    send(content)
    code, out, err = say("predict", "run", "-", "-q")
    assert (code, out) == (3, "") and named in err and err.count("\n") == 1
    assert "minipc-" not in err  # the temporary file is nobody's business


def test_too_much_on_standard_input_is_refused_before_all_of_it_is_kept(trained, monkeypatch):
    class Endless(io.RawIOBase):
        parts = 0

        def read(self, size=-1):
            self.parts += 1
            return bytes(size)

    monkeypatch.setattr(standard_input, "LARGEST", 5 << 20)
    stream = Endless()
    with pytest.raises(DataError, match="more than 5242880 bytes"), standard_input.kept(stream):
        pass
    assert stream.parts <= 7  # of a MiB


def test_standard_input_of_several_parts_is_whole(folder):
    content = np.random.default_rng(0).bytes((2 << 20) + 5)
    for size in (1, 1 << 20, 2 << 20, len(content)):
        with standard_input.kept(io.BytesIO(content[:size])) as path:
            assert Path(path).read_bytes() == content[:size]
        assert not os.path.exists(os.path.dirname(path))


def test_a_terminal_is_told_what_is_waited_for(trained, say, send):
    text = Path("vessels/mug/001.xyz").read_bytes()
    send(text, Terminal)
    assert "type x y z, a point on each line" in say("predict", "run", "-")[2]
    send(text)
    assert "type x y z" not in say("predict", "run", "-")[2]


def test_a_closed_standard_input_is_told(trained, say, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = say("predict", "run", "-", "-q")
    assert (code, out) == (3, "") and "standard input: is closed" in err and err.count("\n") == 1


def test_a_pipe_into_the_command_is_read(trained, folder):
    with open("vessels/mug/001.xyz", "rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "minipc", "predict", "run", "-", "--json", "-q"],
            stdin=file,
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
    found = json.loads(done.stdout)["predictions"]
    (wanted,) = predict("run", ["vessels/mug/001.xyz"])["predictions"]
    assert found == [wanted | {"file": "-"}]
