"""minipc export and minipc bench: what they write and say, and what they refuse."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_three_classes

from minipc.cli.main import main
from minipc.errors import MinipcError
from minipc.export import c_program, compiled, onnx_graph
from minipc.export.described import described
from minipc.export.folding import folded
from minipc.models.file import new_model, read_model
from minipc.models.model import sizes

needs_cc = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler, cc")
NEAR = "8/4:6,6"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with clouds.h5 and two runs: tiny/, near/."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_three_classes("clouds.h5")
        for name, model in (("tiny", "tiny"), ("near", NEAR)):
            command = f"train clouds.h5 --labels-only -q --no-report --epochs 2 --model {model}"
            with pytest.raises(SystemExit) as end:
                main([*command.split(), "--out", name])
            assert end.value.code == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch, tmp_path):
    """A folder to write in; the data and the runs of trained are there by link."""
    monkeypatch.chdir(tmp_path)
    for path in trained.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def names(folder):
    return {path.name for path in folder.iterdir()}


@needs_cc
@pytest.mark.parametrize("model", ["tiny", "near"])
@pytest.mark.parametrize("numbers", ["float32", "int8"])
def test_a_c_program_is_checked_on_every_test_cloud_and_its_size_and_time_are_told(
    here, say, model, numbers
):
    whole = ["--int8"] * (numbers == "int8")
    code, out, err = say("export", model, "--c", "program", *whole, "--json")
    assert code == 0, err
    values = json.loads(out)
    assert values["clouds"] == 33 and values["checked_with"] == "cc"
    assert values["milliseconds"] > 0 and values["weights_bytes"] > 100
    if numbers == "float32":
        assert values["same_class"] == 33
        assert values["largest_difference"] <= values["allowed"] < 1e-3
        assert values["exported_accuracy"] == values["accuracy"]
    else:
        assert values["calibrated_on"] == 96 and 0 <= values["exported_accuracy"] <= 1
    if values["code_and_weights_bytes"]:
        assert values["code_and_weights_bytes"] > values["weights_bytes"]
    assert names(here / "program") == set(values["files"])
    assert not any(name.endswith(".tmp") for name in names(here))
    code, out, err = say("export", model, "--c", "again", *whole, "--sample", "5")
    assert code == 0 and "on 5 test clouds" in out and "next: make -C again" in out
    for name in ("model.c", "model.h"):
        assert (here / "again" / name).read_bytes() == (here / "program" / name).read_bytes()


@needs_cc
def test_the_whole_way_from_a_run_to_a_class(here, say):
    code, out, _ = say("export", "tiny", "--c", "board")
    assert code == 0
    subprocess.run(["make", "-s", "-C", "board"], check=True)
    assert subprocess.run(["board/selftest"], capture_output=True).returncode == 0
    cloud = np.random.default_rng(0).standard_normal((16, 3)) * [1, 1, 0.1]
    np.savetxt("flat.xyz", cloud)
    code, out, _ = say("predict", "tiny", "flat.xyz", "--json")
    (said,) = json.loads(out)["predictions"]
    done = subprocess.run(["board/classify", "flat.xyz"], capture_output=True, text=True)
    assert done.stdout == f"flat.xyz: {said['class']}\n"


PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@needs_cc
def test_the_program_of_the_page_compiles(here, say):
    (code,) = re.findall(r'^```text\n(#include "model.h".*?)^```', PAGE.read_text(), re.M | re.S)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    for model in ("tiny", "near"):
        assert say("export", model, "--c", model + "-c", "--no-check")[0] == 0
        Path(model + "-c", "mine.c").write_text(code)
        command = [compiled.compiler(), *strict, "-c", "mine.c", "-o", "mine.o"]
        subprocess.run(command, check=True, cwd=model + "-c")
        if shutil.which("c++"):  # as boards' own tools compile
            command = ["c++", "-Wall", "-Werror", "-x", "c++", "-c", "mine.c", "-o", "mine.o"]
            subprocess.run(command, check=True, cwd=model + "-c")


def test_the_bytes_of_the_page_are_those_of_the_programs():
    for name, *told in re.findall(
        r"^\| `(\S+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE.read_text(), re.M
    ):
        about = {"class_names": list(map(str, range(40))), "up_axis": "z", "normalisation": "none"}
        model = new_model(sizes(name, 40), about, 0)
        network, about = folded(model), described(model)
        two_parts = {network.last[0].name} if network.levels else set()
        two_parts |= {(network.head or [network.out])[0].name} if network.mean else set()
        for number, level in enumerate(network.levels):
            if number or network.entry:
                two_parts |= {scale.maps[0].name for scale in level.scales}
        whole = sum(
            each.A.size + each.c.size * (4 * (1 + (each.name in two_parts)) + 8 + 1)
            for each in network.maps
        )
        real = 4 * sum(each.A.size + each.c.size for each in network.maps)
        buffers = (sum(f.bytes for f in c_program._state(network, about, w)) for w in (False, True))
        found = [real, next(buffers), whole, next(buffers)]
        assert [int(one.replace(",", "")) for one in told] == found, name


def test_without_a_compiler_the_program_is_written_and_the_command_says_so(here, say, monkeypatch):
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    code, out, _ = say("export", "tiny", "--c", "program")
    assert code == 0 and "not run here: no cc" in out and "same class" not in out
    code, out, _ = say("export", "tiny", "--c", "whole", "--int8")
    assert code == 0 and "not run here" in out and "computed as the program would" in out
    code, out, _ = say("export", "tiny", "--c", "third", "--no-check")
    assert code == 0 and (here / "third/model.c").exists()


@needs_cc
@pytest.mark.parametrize("whole", [[], ["--int8"]])
def test_a_program_that_computes_something_else_is_not_written(here, say, monkeypatch, whole):
    part = c_program._part
    wrong = {"pooled.c": ("y[o] > s->largest[o]", "y[o] < s->largest[o]")}
    monkeypatch.setattr(
        c_program, "_part", lambda name: part(name).replace(*wrong.get(name, ("", "")))
    )
    code, _, err = say("export", "tiny", "--c", "program", *whole)
    assert code == 4 and "nothing was written" in err
    assert names(here) == {"clouds.h5", "tiny", "near"} | {
        name for name in names(here) if name.startswith("groups-")
    }


@needs_cc
def test_a_program_that_does_not_compile_is_told_in_one_line(here, say, monkeypatch):
    part = c_program._part
    monkeypatch.setattr(c_program, "_part", lambda name: "int" + part(name))
    code, _, err = say("export", "tiny", "--c", "program")
    assert code == 1 and "does not compile" in err and len(err.splitlines()) == 1
    code, out, _ = say("bench", "tiny", "--seconds", "0")
    assert code == 0 and "not measured: C: " in out and "does not compile" in out


def test_a_compiler_for_another_machine_is_told_in_one_line(here, say, monkeypatch):
    other = here / "cc"
    other.write_text(f"#!{sys.executable}\nopen('model.so', 'w').write('no library')\n")
    other.chmod(0o755)
    monkeypatch.setattr(compiled, "compiler", lambda: str(other))
    code, _, err = say("export", "tiny", "--c", "program")
    assert code == 1 and "cannot be loaded here" in err and len(err.splitlines()) == 1
    assert say("export", "tiny", "--c", "program", "--no-check")[0] == 0


def test_onnx_is_checked_by_onnxruntime(here, say):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for model in ("tiny", "near"):
        code, out, err = say("export", model, "--onnx", f"{model}.onnx", "--json")
        assert code == 0, err
        values = json.loads(out)
        assert values["checked_with"] == "onnxruntime" and values["same_class"] == 33
        assert values["bytes"] == Path(f"{model}.onnx").stat().st_size


def test_a_missing_package_is_one_line_with_the_remedy(here, say, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    code, _, err = say("export", "tiny", "--onnx", "tiny.onnx")
    assert code == 5 and "pip install -e '.[onnx]'" in err and len(err.splitlines()) == 1
    assert not Path("tiny.onnx").exists()


def test_without_onnxruntime_the_graph_is_written_and_the_command_says_so(here, say, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_graph, "session", lambda content, threads: None)
    code, out, _ = say("export", "tiny", "--onnx", "tiny.onnx")
    assert code == 0 and "not run here: no onnxruntime" in out


def test_safetensors_need_no_data(trained, say, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.h5").write_bytes((trained / "tiny/model.h5").read_bytes())
    code, out, _ = say("export", "model.h5", "--safetensors", "tiny.safetensors")
    assert code == 0 and "safetensors file" in out
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = numpy.load_file("tiny.safetensors")
    model = read_model("model.h5")
    np.testing.assert_array_equal(arrays["feat.conv2.weight"][..., 0], model.params["shared1.W"].T)
    code, _, err = say("export", "model.h5", "--c", "program")
    assert code == 3 and "pass DATA" in err


def test_a_run_that_fails_while_the_folder_is_written_leaves_nothing(here, say, monkeypatch):
    from minipc.storage import files

    def full(path, *_, **__):
        raise MinipcError(f"{path}: disk full")

    monkeypatch.setattr(files, "commit", full)
    before = names(here)
    code, _, err = say("export", "tiny", "--c", "program", "--no-check")
    assert code == 1 and "disk full" in err and names(here) == before


def test_bench_tells_one_cloud_and_many_beside_the_forms_at_hand(here, say):
    code, out, err = say("bench", "near", "--seconds", "0", "--json")
    assert code == 0, err
    values = json.loads(out)
    found = [one["form"] for one in values["forms"]]
    assert found[:2] == ["minipc predict", "minipc evaluator"]
    if compiled.compiler():
        assert found[-2:] == ["C float32", "C int8"]
    for one in values["forms"]:
        assert 0 < one["milliseconds"] <= one["milliseconds_95"] and one["clouds_per_second"] > 0
    size = sum(value.size for value in read_model("near/model.h5").params.values())
    assert values["parameters"] == size and values["block"] == 32
    code, out, _ = say("bench", "tiny", "clouds.h5", "--seconds", "0")
    assert code == 0 and "M multiply-adds a cloud of 16 points" in out and "BLAS" in out


def test_bench_without_the_data_draws_a_cloud_and_says_so(trained, say, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.h5").write_bytes((trained / "tiny/model.h5").read_bytes())
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    code, out, err = say("bench", "model.h5", "--seconds", "0")
    assert code == 0 and "a cloud is drawn" in err and "not measured: C needs" in out
