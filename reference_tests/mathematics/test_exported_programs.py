"""Exported programs compute what minipc computes: C in float32 and int8, ONNX, safetensors."""

import ctypes
import json
import shutil
import subprocess

import numpy as np
import pytest

from minipc.data.prepare import normalised
from minipc.distil.evaluate import predict
from minipc.errors import DataError
from minipc.export import c_program, compiled, int8, onnx_graph, safetensors_file
from minipc.export.described import described
from minipc.export.folding import Float32, folded, walk
from minipc.export.rounding import allowed
from minipc.export.state_dict import state_dict
from minipc.models.file import new_model
from minipc.models.model import net, sizes

CC = compiled.compiler()
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler, cc")
NAMES = ('quo"te', "back\\slash", "tri??/graph", "Gefäß 花", "*/ comment")
MODELS = {  # every part of both architectures: text, points of a cloud
    "tiny": ("tiny", 64),
    "no head": ("6", 7),
    "dropout": ("8-5:4-3@0.3", 9),
    "single layers": ("8-8,32/8by16:8+,16/4by8:12+,8/4by2:8,16+mean:8", 64),
    "scales and balls": ("16/0.5x8:6-8/0.9x16:4-4,8/0.9x8:8/0.4x20:5-6+,12-16", 40),
    "more members than points": ("16/40:6,8+mean", 20),
}


def model_of(text, seed=0):
    """Return a model whose norms have gains, offsets and statistics of their own."""
    about = {"class_names": NAMES, "up_axis": "z", "normalisation": "unit_sphere"}
    model = new_model(sizes(text, len(NAMES)), about, seed)
    rng = np.random.default_rng(seed)

    def moved(name, value):
        some = value + 0.3 * rng.standard_normal(value.shape)
        some = abs(some) + 0.1 if name.endswith(".var") else some
        return some.astype(np.float32)

    params = {k: v if k.endswith(".W") else moved(k, v) for k, v in model.params.items()}
    stats = {name: moved(name, value) for name, value in model.stats.items()}
    return model._replace(params=params, stats=stats)


def clouds_of(points, count=6):
    """Return clouds (count, points, 3); of one all points but four lie where its first lies."""
    rng = np.random.default_rng(1)
    clouds = rng.standard_normal((count, points, 3)).astype(np.float32)
    clouds /= np.linalg.norm(clouds, axis=2).max(axis=1)[:, None, None]
    clouds[1, 4:] = clouds[1, 0]
    return clouds


class Case:
    """A model, its network, clouds and their groups, and what minipc says of them."""

    def __init__(self, text, points, seed=0):
        self.model = model_of(text, seed)
        self.points = clouds_of(points)
        self.groups = net(self.model.config).prepare(self.model.config, self.points)
        self.network, self.about = folded(self.model), described(self.model)
        self.about = self.about._replace(points=points)
        self.logits = predict(self.model, self.points, np, 1)
        self.allowed = allowed(self.network, self.points, self.groups)

    def whole(self, **changed):
        largest = {}
        int8.see(self.network, self.points, self.groups, largest)
        return int8.quantised(self.network, largest | changed)

    def simulated(self, whole, points=None):
        points = self.points if points is None else points
        return int8.simulated(self.network, whole, points, self.groups)

    def program(self, whole=None):
        if whole:
            return c_program.program(
                self.network, self.about, self.points[:2], self.simulated(whole)[:2], 0.0, whole
            )
        most = float(self.allowed[:2].max())
        return c_program.program(self.network, self.about, self.points[:2], self.logits[:2], most)

    def run(self, points=None, whole=None):
        points = self.points if points is None else points
        files, dtype = self.program(whole).files, np.int32 if whole else np.float32
        with compiled.compiled(
            CC, files, len(NAMES), dtype, points.shape[1], fast=False
        ) as program:
            return program.classify(points)


@pytest.fixture(params=MODELS)
def case(request):
    return Case(*MODELS[request.param])


class InOrder(Float32):
    """Each sum added in the order of the inputs, each step rounded: what the C program does."""

    def logits(self, each, x):
        y = np.broadcast_to(each.c, (*x.shape[:-1], len(each.c))).copy()
        for i, row in enumerate(each.A):
            y += row * x[..., i : i + 1]
        return y

    def mean(self, x):
        total = np.zeros_like(x[..., 0, :])
        for n in range(x.shape[-2]):
            total += x[..., n, :]
        return total / np.float32(x.shape[-2])


def test_the_folded_network_is_the_model(case):
    logits = walk(case.network, case.points, case.groups, Float32())
    assert (abs(logits - case.logits) <= case.allowed).all()
    # A wrong weight would show: little is allowed, and a tenth of it is used.
    assert abs(logits - case.logits).max() < 0.1 * case.allowed.max()
    assert case.allowed.max() < 3e-4 * abs(case.logits).max()


@needs_cc
def test_the_float_program_adds_in_order_to_the_bit_and_is_the_model_up_to_rounding(case):
    answers = case.run()
    with np.errstate(all="raise"):
        oracle = walk(case.network, case.points, case.groups, InOrder())
    np.testing.assert_array_equal(answers.logits, oracle)
    assert (abs(answers.logits - case.logits) <= case.allowed).all()
    np.testing.assert_array_equal(answers.classes, case.logits.argmax(axis=1))


@needs_cc
def test_the_int8_program_is_the_simulation_to_the_bit(case):
    whole = case.whole()
    points, expected = case.points, case.simulated(whole)
    if not case.groups:  # beyond every scale too: positions and activations are cut off
        points = np.concatenate([points, 100 * points])
        expected = np.concatenate([expected, case.simulated(whole, 100 * case.points)])
    answers = case.run(points, whole)
    np.testing.assert_array_equal(answers.logits, expected)
    np.testing.assert_array_equal(answers.classes, expected.argmax(axis=1))


def test_int8_is_near_the_model(case):
    """Eight bits of every activation: a few percent of the logits, not more."""
    whole = case.whole()
    logits = case.simulated(whole) * whole.logit
    assert abs(logits - case.logits).max() < 0.1 * abs(case.logits).max()


EXTREME = {
    "dead layer": {"shared1": 0.0},
    "huge scale": {"shared0": 1e30},
    "tiny scale": {"shared0": 1e-30, "head0": 1e-38},
    "positions all zero": {"positions": 0.0},
    "tiny positions": {"positions": 1e-40},
}


@needs_cc
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_scales_are_computed_as_defined(name):
    case = Case("8-6:4", 10)
    whole = case.whole(**EXTREME[name])
    np.testing.assert_array_equal(case.run(whole=whole).logits, case.simulated(whole))


@needs_cc
def test_channels_without_weights_and_dead_layers_are_computed_as_defined():
    case = Case("8-6:4", 10)
    model = case.model
    model.params["shared0.gamma"][2] = 0  # a channel of nothing but its offset
    model.params["shared1.gamma"][:], model.params["shared1.beta"][:] = 0, -1  # nothing survives
    case.network, case.logits = folded(model), predict(model, case.points, np, 1)
    whole = case.whole()
    assert not case.whole().maps["shared0"].w[:, 2].any()
    np.testing.assert_array_equal(case.run(whole=whole).logits, case.simulated(whole))
    most = allowed(case.network, case.points, ())
    assert (abs(case.run().logits - case.logits) <= most).all()


@pytest.mark.parametrize("scales", [{}, *EXTREME.values()])
def test_no_sum_leaves_32_bits_and_no_total_63(scales):
    """The largest inputs that a layer can have, in Python's integers."""
    for text, points in [("8-6:4", 10), MODELS["single layers"]]:
        case = Case(text, points)
        known = {name: value for name, value in scales.items() if text == "8-6:4"}
        for each in case.whole(**known).maps.values():
            reads_positions = each.split == 3 and each.name not in ("out", "head0")
            first = 2 * int8.POSITIONS if reads_positions else int8.LARGEST
            parts = [(each.w[: each.split], first), (each.w[each.split :], int8.LARGEST)]
            total = [abs(int(b)) for b in each.bias]
            for (w, most), factors in zip(parts, each.factors, strict=False):
                for o, factor in enumerate(factors):
                    a = sum(abs(int(v)) for v in w[:, o]) * most
                    assert a < 2**31
                    total[o] += a * int(factor)
            assert max(total) < 2**63
            assert (each.shift >= 1).all() and (each.shift <= int8.MOST_SHIFT).all()


@pytest.mark.parametrize("text", ["tiny", "student", "local-tiny"])
def test_buffers_are_what_the_headers_say_and_a_pointnets_do_not_depend_on_the_points(text):
    for points in (1024, 100_000):
        model = model_of(text)
        about = described(model)._replace(points=points)
        for feature in (False, True):
            fields = c_program._state(folded(model), about, feature)
            size = sum(field.bytes for field in fields)
            if text == "tiny":
                assert size == (264 if feature else 648)  # below 1 kB, whatever the points


def built(case, folder, whole=None, **flags):
    """Write and make a program with sanitizers, every warning an error; return the folder."""
    for name, text in case.program(whole).files.items():
        (folder / name).write_text(text, "ascii")
    flags = "-O1 -g -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    done = subprocess.run([make, "-C", folder, f"CFLAGS={flags}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return folder


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@needs_cc
@pytest.mark.parametrize(
    "name, whole", [("tiny", False), ("scales and balls", False), ("single layers", True)]
)
def test_the_programs_prove_themselves_under_sanitizers(name, whole, tmp_path):
    case = Case(*MODELS[name])
    in_whole = case.whole() if whole else None
    folder = built(case, tmp_path, in_whole)
    done = run(folder / "selftest")
    assert done.returncode == 0, done.stderr
    assert "same class 2 of 2" in done.stdout
    cloud = tmp_path / "cloud.xyz"
    np.savetxt(cloud, case.points[0])
    answer = run(folder / "classify", cloud)
    logits = case.simulated(in_whole) if whole else case.logits
    assert answer.stdout == f"{cloud}: {NAMES[logits[0].argmax()]}\n", answer.stderr


@needs_cc
def test_a_self_test_may_have_more_points_than_the_clouds_of_the_training(tmp_path):
    case = Case(*MODELS["more members than points"])
    case.about = case.about._replace(points=16)
    assert run(built(case, tmp_path) / "selftest").returncode == 0


@needs_cc
def test_a_self_test_fails_where_the_program_computes_something_else(tmp_path):
    case = Case("6", 7)
    case.logits = case.logits + np.float32(0.01)
    assert run(built(case, tmp_path) / "selftest").returncode == 1


@needs_cc
def test_classify_reads_texts_of_any_line_and_refuses_what_is_no_cloud(tmp_path):
    case = Case("6", 7)
    folder, rng = built(case, tmp_path), np.random.default_rng(3)
    points = 5 + rng.standard_normal((5, 3))  # fewer than 7, repeated; not normalised
    prepared = normalised(points[None], "unit_sphere")[0][0][np.arange(7) % 5]
    name = NAMES[predict(case.model, prepared[None], np, 1)[0].argmax()]
    lines = [" ".join(map(repr, row)) for row in points.tolist()]
    good = {
        "plain": "\n".join(lines),
        "windows": "\r\n".join(lines) + "\r\n",
        "old mac": "\r".join(lines),
        "commas": "\n".join(line.replace(" ", ", ") for line in lines),
        "semicolons": "\n".join(line.replace(" ", ";") + ";" for line in lines),
        "more columns": "\n".join(line + " 255" * 100_000 for line in lines),
        "comments": "# x y z\n\n" + "\n".join(line + " # " + "a" * 99999 for line in lines),
        "blanks": "\n".join(" " * 70_000 + line for line in lines),
        "named": "# Fields: x y z r\n" + "\n".join(line + " 1" for line in lines),
    }
    bad = {
        "word": ("1 2 3\n1 two 3\n", "line 2: expected a finite number"),
        "nan": ("1 2 nan\n", "line 1: expected a finite number"),
        "short": ("1 2 3\n\n1 2\n", "line 3: expected x y z"),
        "empty column": ("1,,2,3\n", "line 1: a column is empty"),
        "long": ("1 2 " + "0" * 999 + "3\n", "line 1: a word is too long"),
        "zero byte": ("1 2\0 3\n", "line 1: expected a finite number"),
        "nothing": ("\n# none\n", "holds no points"),
        "one point": ("1 2 3\n1 2 3\n", "no radius"),
        "large": ("1 2 3\n-1e308 2 3\n1.5e308 5 6\n", "too large for float"),
        "decimal commas": ("0,5;0,25;1,5\n0,75;1,5;2,5\n", "x y z need decimal points"),
        "commas and blanks": ("0,5 0,25 1,5\n0,75 1,5 2,5\n", "x y z need decimal points"),
        "column of indices": ("0,0.5,0.25,1.5\n1,0.5,1.5,2.5\n", "x y z need decimal points"),
        "numbered columns": ("0,1,2\n0.5,1.5,2.5\n", "line 1: expected a point"),
        "other columns": ("# i x y z\n.5 1.5 2.5 3.5\n", "line 1: the comment names other"),
        "turned columns": ("1 2 3 #Fields: z y x\n", "line 1: the comment names other"),
        "more columns later": ("1.5 2.5 3.5\n1 2 3 4\n", "line 2: expected as many columns"),
    }
    for text in good.values():
        (tmp_path / "cloud").write_bytes(text.encode())
        done = run(folder / "classify", tmp_path / "cloud")
        assert done.stdout == f"{tmp_path / 'cloud'}: {name}\n" and not done.stderr
    for text, said in bad.values():
        (tmp_path / "cloud").write_bytes(text.encode())
        done = run(folder / "classify", tmp_path / "cloud", tmp_path / "cloud")
        assert done.returncode == 1 and said in done.stderr and not done.stdout
    subprocess.run(["make", "-C", folder, "clean", "all", "CFLAGS=-DMINIPC_RAW=float"], check=True)
    (tmp_path / "cloud").write_text(good["plain"])
    assert run(folder / "classify", tmp_path / "cloud").stdout == f"{tmp_path / 'cloud'}: {name}\n"
    missing = run(folder / "classify", tmp_path / "none")
    assert missing.returncode == 1 and "No such file" in missing.stderr
    assert run(folder / "classify").returncode == 2


@needs_cc
def test_a_program_that_could_not_tell_what_is_not_finite_is_not_compiled(tmp_path):
    for name, text in Case("6", 7).program().files.items():
        (tmp_path / name).write_text(text, "ascii")
    for flag in ("-ffast-math", "-Ofast", "-ffinite-math-only"):
        done = run("cc", flag, "-c", tmp_path / "model.c", "-o", tmp_path / "model.o")
        assert done.returncode and "compile without -ffast-math" in done.stderr


@needs_cc
def test_raw_points_are_normalised_as_minipc_does_it():
    """Sums in float64, in another order: the last bit of a float32 may be another one."""
    case, rng = Case("6", 7), np.random.default_rng(5)
    near = case.points[0].astype(np.float64)
    near -= near.mean(axis=0)
    near /= np.linalg.norm(near, axis=1).max()
    clouds = {
        "far away": rng.standard_normal((500, 3)) + [5e6, -3e5, 0],
        "large": 1e30 * rng.standard_normal((50, 3)),
        "as it is": 1.0002 * near,
        "turned into floats alone": near.astype(np.float32).astype(np.float64),
    }
    with compiled.compiled(
        CC, case.program().files, len(NAMES), np.float32, 7, fast=False
    ) as program:
        normalise = program.library.minipc_normalise

        def by_c(raw):
            points = np.empty(raw.shape, np.float32)
            at = (array.ctypes.data_as(ctypes.c_void_p) for array in (raw, points))
            code = normalise(next(at), ctypes.c_size_t(len(raw)), next(at))
            return code, points

        for raw in clouds.values():
            code, points = by_c(raw)
            expected, changed = normalised(raw[None], "unit_sphere")
            assert code == 0
            np.testing.assert_array_max_ulp(points, expected[0], 1)
            if not changed[0]:
                np.testing.assert_array_equal(points, raw.astype(np.float32))
        for bad in (np.ones((5, 3)), np.full((5, 3), np.nan), np.empty((0, 3))):
            assert by_c(bad)[0] == -1


@needs_cc
@pytest.mark.parametrize("name", ["no head", "more members than points"])
def test_points_that_are_not_finite_too_few_or_too_many_are_refused(name):
    case = Case(*MODELS[name])
    points = case.points.copy()
    points[0, 3, 1], points[2, 0, 2] = np.nan, np.inf
    classes = case.run(points).classes
    assert (classes[[0, 2]] == -1).all() and (classes[[1, 3, 4, 5]] >= 0).all()
    assert (case.run(case.points[:, :0]).classes == -1).all()
    if case.groups:
        assert (case.run(case.points[:, :15]).classes == -1).all()


def test_the_same_model_gives_the_same_bytes(case):
    again = Case.__new__(Case)
    again.__dict__ = {**case.__dict__, "network": folded(case.model)}
    assert again.program().files == case.program().files
    assert again.program(again.whole()).files == case.program(case.whole()).files
    content = safetensors_file.content(case.model, case.about)
    assert content == safetensors_file.content(case.model, case.about)


def test_a_float_is_written_so_that_c_reads_it_back():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 2000, np.uint32).view(np.float32)
    values = np.append(values[np.isfinite(values)], np.float32([0, -0.0, 1, 1e20, 1e-45]))
    for value in values:
        text = c_program._number(value)
        assert text.endswith("f") and ("." in text or "e" in text)
        assert np.float32(text[:-1]) == value


def test_weights_that_are_not_finite_are_refused():
    model = model_of("6")
    model.stats["shared0.var"][:] = -1
    with pytest.raises(DataError, match="layer shared0"):
        folded(model)


@pytest.mark.parametrize(
    "words",
    [
        {"up_axis": "*/ int evil; /*"},
        {"normalisation": ["none"]},
        {"class_names": [1, 2, 3, 4, 5]},
        {"class_names": ["a", "b", "c", "d", "\n#define evil"]},
        {"points": "16 /* evil"},
        {"points": 10**9},
    ],
    ids=str,
)
def test_words_of_a_strangers_model_never_become_source_code(words):
    model = model_of("6")
    told = {name: value for name, value in words.items() if name != "points"}
    trained = {name: value for name, value in words.items() if name == "points"}
    with pytest.raises(DataError, match="train the model again"):
        described(model._replace(described=model.described | told, trained=trained))


def test_a_layer_of_too_many_inputs_for_sums_of_32_bits_is_refused():
    wide = folded(model_of("6"))
    out = wide.out._replace(A=np.ones((int8.MOST_INPUTS + 1, 5), np.float32))
    with pytest.raises(DataError, match="without --int8"):
        int8._whole(out, [(len(out.A), 1.0)], 1.0)


def test_the_onnx_graph_is_the_model_for_any_number_of_clouds_and_points(case):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    proto = onnx_graph.model(case.network, case.about)
    assert [each.version for each in proto.opset_import] == [onnx_graph.OPSET]
    told = {each.key: each.value for each in proto.metadata_props}
    assert json.loads(told["class_names"]) == list(NAMES) and told["up_axis"] == "z"
    content = proto.SerializeToString()
    assert onnx_graph.model(case.network, case.about).SerializeToString() == content
    run = onnx_graph.session(content, 1)
    assert (abs(run(case.points) - case.logits) <= case.allowed).all()
    one = run(case.points[2:3])
    assert (abs(one - case.logits[2]) <= case.allowed[2]).all()
    more = clouds_of(case.points.shape[1] + 13)
    groups = net(case.model.config).prepare(case.model.config, more)
    expected = predict(case.model, more, np, 1)
    assert (abs(run(more) - expected) <= allowed(case.network, more, groups)).all()
    for bad in (np.nan, np.inf, -np.inf):
        some = case.points.copy()
        some[1, -1, 2] = bad
        logits = run(some)
        assert np.isnan(logits[1]).all()
        np.testing.assert_array_equal(logits[[0, 2]], run(case.points)[[0, 2]])
    levels = case.network.levels
    if levels and levels[0].centres > 1:
        assert np.isnan(run(case.points[:, : levels[0].centres - 1])).all()


def test_safetensors_hold_every_array_under_the_names_of_pytorch(case):
    numpy = pytest.importorskip("safetensors.numpy")
    read = numpy.load(safetensors_file.content(case.model, case.about))
    expected = state_dict(case.model)
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    params = sum(value.size for value in case.model.params.values())
    stats = sum(value.size for value in case.model.stats.values())
    counted = [v for k, v in read.items() if not k.endswith("num_batches_tracked")]
    assert sum(value.size for value in counted) == params + stats


def test_the_names_are_those_of_published_code():
    found = state_dict(model_of("8-6:4"))
    assert found["feat.conv1.weight"].shape == (8, 3, 1) and found["fc1.weight"].shape == (4, 6)
    assert {"feat.bn2.running_var", "bn1.weight", "fc2.bias"} < found.keys()
    model = model_of(MODELS["scales and balls"][0])
    found = state_dict(model)
    assert found["sa1.conv_blocks.1.0.weight"].shape == (4, 3, 1, 1)
    W = model.params["level1.scale1.0.W"]  # (3 + 12, 5): features come first there
    weight = found["sa2.conv_blocks.1.0.weight"][..., 0, 0]
    np.testing.assert_array_equal(weight, np.concatenate([W[3:], W[:3]]).T)
    assert found["sa3.mlp_convs.1.weight"].shape == (16, 12, 1, 1)
    assert "sa2.residual_bn.weight" in found
    assert "entry.mlp_convs.0.weight" in state_dict(model_of("8,4/4:8,8"))
