"""The page docs/play computes what minipc computes, and opens from a disk without a network.

Its JavaScript runs in node and in Chromium, as scripts of a page, where these are installed; else
the tests that need them are skipped.
"""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from minipc.audit import vectors
from minipc.audit.teacher import largest_safe_b
from minipc.data.augment import AugmentConfig, Params, apply
from minipc.data.clouds import Clouds, Splits
from minipc.data.shapes import FAMILIES, make_shapes
from minipc.errors import UsageError
from minipc.models.file import new_model
from minipc.models.pointnet import forward_eval, sizes
from minipc.nn.losses import LossConfig, formula, loss_forward, margins
from minipc.nn.ops import log_softmax_forward
from reference_tests.tools import play

PLAY = Path(__file__).parents[2] / "docs" / "play"
NUMBERS = vectors.Case._fields[10:]  # what a loss computes, in the order of the vectors

# The scripts of a page share their names, and know nothing of other pages.
RUN = """
const vm = require("vm");
const { pages, code, given } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answers = pages.map((scripts) => {
    const page = vm.createContext({ atob, given });
    for (const script of scripts) vm.runInContext(script, page);
    return vm.runInContext(`JSON.stringify((${code})(given))`, page);
});
console.log(`[${answers}]`);
"""


def script(name):
    return (PLAY / name).read_text()


@pytest.fixture
def node():
    """Return run(code, given, *pages): what code, a function in JavaScript, makes of given.

    A page is a list of scripts; the answer is a list with an entry for each page.
    """
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed: the JavaScript of docs/play was not run")

    def run(code, given, *pages):
        asked = json.dumps({"pages": pages, "code": code, "given": given})
        done = subprocess.run([program, "-e", RUN], input=asked, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def value_of(name):
    """Return what weights.js or clouds.js holds."""
    text = script(name)
    return json.loads(text[text.index(" = ") + 3 :].rstrip().removesuffix(";"))


def array(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


# The loss.


def row_of(case):
    row = {name: getattr(case, name) for name in ("label", "a", "b", "T", "smoothing")}
    return row | {name: getattr(case, name).tolist() for name in ("z", "v", "u")}


def worst_deviations(node, *sources):
    """Return the largest deviation of each text of loss.js from the conformance vectors."""
    cases = vectors.cases()
    given = [row_of(case) for case in cases]
    answers = node("(rows) => rows.map(lossOfRow)", given, *([source] for source in sources))
    return [
        max(
            vectors.deviation(np.array(row[name], np.float64), getattr(case, name))
            for case, row in zip(cases, rows, strict=True)
            for name in ("y", *NUMBERS)
        )
        for rows in answers
    ]


def test_the_loss_of_the_page_conforms_to_every_vector(node):
    # The tolerance of docs/conformance.md: doubles round by 1e-16, T^2 = 400 and sums of 40 classes
    # make of it up to 1e-13; a wrong formula is off by far more (the next test).
    assert worst_deviations(node, script("loss.js"))[0] <= vectors.TOLERANCE
    assert NUMBERS[0] == "labels" and NUMBERS[-1] == "guarded_gradient" and len(NUMBERS) == 9


def replaced(source, right, wrong):
    assert source.count(right) == 1, right
    return source.replace(right, wrong)


def test_a_wrong_loss_of_the_page_does_not_conform(node):
    wrong = {
        "return T ** 2 * sumOf(logP": "return sumOf(logP",
        "total * Math.exp(logS[k]) - weight": "Math.exp(logS[k]) - weight",
        "- b * selfDistillation": "+ b * selfDistillation",
        "GUARD_FLOOR * a * p[k]": "0",
        "smoothing / classes": "smoothing / (classes - 1)",
        "T * (a * p[i] - b * r[i])": "(a * p[i] - b * r[i])",
        "+ T * soft[k]": "+ T * T * soft[k]",
        "logSoftmax(u, T)": "logSoftmax(u, 1)",
    }
    source = script("loss.js")
    sources = [replaced(source, *change) for change in wrong.items()]
    for change, deviation in zip(wrong, worst_deviations(node, *sources), strict=True):
        assert deviation > 1e-6, change


ROW = {"z": [2.0, 1, 0, 0], "v": [6.0, 1, 0, -6], "u": [3.0, 1, 0, 2], "label": 0}
SETTINGS = [(0.5, 0, 1, 0), (0.5, 0.2, 1, 0), (0.9, 0.1, 4, 0), (0.9, 0.2, 4, 0.1), (0, 0, 2, 0.2)]


def of_row(a, b, T, smoothing, guard="none"):
    """Return (y, v, u) of ROW, one row each, and the LossConfig."""
    v, u = np.array([ROW["v"]]), np.array([ROW["u"]])
    y = (1 - smoothing) * np.eye(4)[[ROW["label"]]] + smoothing / 4
    return y, v, u, LossConfig(a, b, T, smoothing, guard)


def asked(a, b, T, smoothing):
    return ROW | {"a": a, "b": b, "T": T, "smoothing": smoothing}


def test_both_curves_of_the_walk_are_the_totals_that_minipc_reports(node):
    rows = [asked(*settings) for settings in SETTINGS]
    code = "(rows) => rows.map((row) => walk(row, 3, 100, 4))"
    (walks,) = node(code, rows, [script("loss.js")])
    for settings, points in zip(SETTINGS, walks, strict=True):
        assert [point["t"] for point in points] == [0, 25, 50, 75, 100]
        for point in points:
            z = np.array([ROW["z"]]) - point["t"] * np.eye(4)[[3]]
            for name, guard in (("raw", "none"), ("guarded", "clip")):
                y, v, u, config = of_row(*settings, guard)
                total = loss_forward(z, y, v, u, np.ones(1), config)[0].total
                # both are doubles of the size of T^2 t: the order of adding is another
                assert point[name] == pytest.approx(float(total), rel=1e-12, abs=1e-12)


def test_the_largest_safe_b_and_the_formula_are_those_of_minipc(node):
    code = """(rows) => rows.map((row) => {
        const { y, p, r } = lossOfRow(row);
        return [largestSafeB(y, p, r, row.a, row.T), formula(row, "clip")];
    })"""
    (told,) = node(code, [asked(*settings) for settings in SETTINGS], [script("loss.js")])
    for settings, (safe, text) in zip(SETTINGS, told, strict=True):
        y, v, u, config = of_row(*settings, "clip")
        p, r = (np.exp(log_softmax_forward(x / config.temperature)[0]) for x in (v, u))
        assert safe == pytest.approx(float(largest_safe_b(y, p, r, config)[0]), rel=1e-12)
        assert text == formula(config)


def test_the_page_allows_the_guard_where_minipc_does(node):
    pairs = [(a, b) for a in (0, 0.3, 0.5, 1) for b in (0, 0.1, 0.15, 0.25, 0.5, 0.6)]
    code = "(pairs) => pairs.map((pair) => guardAllows(...pair))"
    (allowed,) = node(code, pairs, [script("loss.js")])
    for (a, b), yes in zip(pairs, allowed, strict=True):
        if yes:
            LossConfig(a, b, 1.0, 0.0, "clip")
        else:
            with pytest.raises(UsageError, match="guard"):
                LossConfig(a, b, 1.0, 0.0, "clip")


# The student.


def numpy_logits(layers, shared, points):
    """Return logits (B, K) in float64 of [(W, b)] and points (B, N, 3)."""
    x = points.astype(np.float64)
    for number, (W, b) in enumerate(layers):
        x = x @ W.astype(np.float64) + b
        if number < len(layers) - 1:
            x = np.maximum(x, 0)
        if number == shared - 1:
            x = x.max(axis=1)
    return x


LOGITS = """(clouds) => {
    const layers = layersOf(STUDENT);
    return clouds.map((cloud) => {
        const { logits, winners } = logitsOf(cloud, layers, STUDENT.shared);
        return { logits, winners: Array.from(winners) };
    });
}"""


def student_logits(node, points, *pages):
    """Return the logits (B, K) that each page, a list of scripts, gives points (B, N, 3)."""
    pages = pages or ([script("pointnet.js"), script("weights.js")],)
    return [
        np.array([each["logits"] for each in told]) for told in node(LOGITS, flat(points), *pages)
    ]


def flat(points):
    return points.reshape(len(points), -1).tolist()


def of_the_page():
    """Return points (B, N, 3) float32 and labels (B,) of clouds.js."""
    clouds = value_of("clouds.js")
    points = np.stack([array(each["points"], "<i2", -1, 3) / play.UNITS for each in clouds])
    return points.astype(np.float32), np.array([each["label"] for each in clouds])


def stored_layers(student):
    return [
        (array(each["W"], "<f4", each["inputs"], each["outputs"]), array(each["b"], "<f4", -1))
        for each in student["layers"]
    ]


def test_the_logits_of_the_page_are_those_of_numpy(node):
    points, _ = of_the_page()
    scale, shift = np.full((len(points), 3), 1.4), np.full((len(points), 3), -0.15)
    views = apply(points, Params(scale.astype(np.float32), shift.astype(np.float32)))
    clouds = np.concatenate([points, views])
    student = value_of("weights.js")
    (found,) = student_logits(node, clouds)
    wanted = numpy_logits(stored_layers(student), student["shared"], clouds)
    # Both add doubles of the same products in another order: sums of at most 64 terms, six layers
    # deep, are then within some 1e-14 of their size.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    np.testing.assert_array_equal(found.argmax(axis=1), wanted.argmax(axis=1))


def test_a_wrong_forward_is_far_from_numpy(node):
    points = of_the_page()[0][:4]
    student, source = value_of("weights.js"), script("pointnet.js")
    wanted = numpy_logits(stored_layers(student), student["shared"], points)
    wrong = {
        "W[i * outputs + o]": "W[o * inputs + i]",
        "x[c] > pooled[c]": "x[c] > pooled[c] && n < 200",
        "number < head.length - 1": "true",
        "Float64Array.from(b)": "new Float64Array(outputs)",
    }
    pages = [[replaced(source, *each), script("weights.js")] for each in wrong.items()]
    for change, found in zip(wrong, student_logits(node, points, *pages), strict=True):
        far = np.abs(found - wanted).max()
        assert not far <= 1e-3, change


def test_batch_norm_is_folded_without_a_change(node, tmp_path):
    """A model with statistics, gains and offsets of its own."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((5, 40, 3)).astype(np.float32)
    clouds = Clouds(points, np.arange(5) % 3, ("a", "b", "c"), "z", "none")
    model = new_model(sizes("8-16:6", 3), clouds.described, seed=0)
    for name in model.params:
        if not name.endswith(".W"):
            model.params[name][:] = rng.uniform(0.5, 1.5, model.params[name].shape)
    for name in model.stats:
        model.stats[name][:] = rng.uniform(0.2, 2.0, model.stats[name].shape)
    play.write(model, Splits(clouds, clouds), tmp_path)
    page = [script("pointnet.js"), (tmp_path / "weights.js").read_text()]
    (found,) = student_logits(node, points, page)
    params, stats = (
        {name: value.astype(np.float64) for name, value in part.items()}
        for part in (model.params, model.stats)
    )
    wanted = forward_eval(params, stats, points.astype(np.float64), model.config, "textbook")
    # Folded weights are rounded to float32, each by 6e-8; four layers of at most 16 terms.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_page_says_of_test_clouds_what_minipc_said_when_the_student_was_stored(node):
    student, each = value_of("weights.js"), 3
    made = make_shapes(0, 0, each)
    said = array(student["said"], "u1", len(FAMILIES), -1)
    (found,) = student_logits(node, made.test_points)
    np.testing.assert_array_equal(found.argmax(axis=1), said[:, :each].ravel())
    right = 100 * (said == np.arange(len(FAMILIES))[:, None]).mean()
    assert f"right for {right:.1f} % of the {said.size} test clouds" in student["about"]
    assert tuple(student["classes"]) == made.class_names


def test_the_clouds_of_the_page_are_the_first_of_the_test_split():
    points, labels = of_the_page()
    made = make_shapes(0, 0, play.OF_EACH_CLASS)
    np.testing.assert_array_equal(labels, made.test_labels)
    # int16 rounds by half a unit; float32 by far less
    assert np.abs(points - made.test_points).max() <= 0.5001 / play.UNITS


def test_the_points_that_count_alone_give_the_same_logits(node):
    points, _ = of_the_page()
    page = [script("pointnet.js"), script("weights.js")]
    (told,) = node(LOGITS, flat(points), page)
    kept = [
        cloud[sorted({n for n in each["winners"] if n >= 0})].ravel().tolist()
        for cloud, each in zip(points, told, strict=True)
    ]
    assert max(len(cloud) for cloud in kept) < 0.5 * points[0].size
    (again,) = node(LOGITS, kept, page)
    assert [each["logits"] for each in again] == [each["logits"] for each in told]


def test_scale_and_shift_of_the_page_have_the_bits_of_a_view_and_a_turn_is_a_rotation(node):
    points, _ = of_the_page()
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.3, 2.5, 3), rng.uniform(-1, 1, 3)
    code = """({ points, scale, shift }) => [
        Array.from(augmented(Float64Array.from(points), scale, shift)),
        Array.from(turned(Float64Array.from(points), 0.5, 0.2)),
    ]"""
    given = {"points": points[0].ravel().tolist(), "scale": list(scale), "shift": list(shift)}
    moved, turned = (
        np.array(each).reshape(-1, 3) for each in node(code, given, [script("pointnet.js")])[0]
    )
    wanted = apply(points[:1], Params(np.float32(scale[None]), np.float32(shift[None])))[0]
    np.testing.assert_array_equal(moved, wanted.astype(np.float64))
    c, s, d, e = np.cos(0.5), np.sin(0.5), np.cos(0.2), np.sin(0.2)
    yaw = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, d, -e], [0, e, d]])
    # rounded once to float32, of numbers of at most 1
    np.testing.assert_allclose(turned, points[0] @ (tilt @ yaw).T.astype(float), rtol=0, atol=1e-7)


def test_the_ranges_that_the_page_calls_training_are_those_of_a_recording():
    student, config = value_of("weights.js"), AugmentConfig()
    assert student["scale"] == [config.scale_low, config.scale_high]
    assert student["shift"] == [-config.shift_max, config.shift_max]


# The page.


def test_the_page_is_small_and_names_nothing_but_its_own_files():
    files = {path.name: path.read_text() for path in PLAY.iterdir()}
    assert max(len(files[name]) for name in ("weights.js", "clouds.js")) <= 60_000
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', files["index.html"])) - {"data:,"}
    assert all((PLAY / name).exists() for name in named)
    assert {name for name in named if not name.startswith("../")} == set(files) - {"index.html"}
    for name, text in files.items():
        reaches = r"https?:|\bfetch\b|XMLHttpRequest|\bimport\b|WebSocket|sendBeacon|url\("
        assert not re.search(reaches, text), name


HEAD = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(event.message ?? event.target.outerHTML), true);
for (const kind of ["error", "warn"]) console[kind] = (...words) => wrong.push(words.join(" "));
</script>"""
DRIVER = Path(__file__).with_name("play_driver.js").read_text()
FRAMES = """<!DOCTYPE html><body><script>
addEventListener("message", ({ data }) => {
  const result = document.createElement("pre");
  result.textContent = `told:${btoa(encodeURIComponent(data))}:`;
  document.body.append(result);
});
for (const [page, width] of PAGES) {
  const frame = document.createElement("iframe");
  Object.assign(frame, { src: page, width, height: 900 });
  document.body.append(frame);
}
</script>"""
WIDTHS = (390, 1200)  # of a phone and of a desk
# What no page may do; the last page does it all, so that we see that it would be noticed.
PLANTED = """<script src="http://127.0.0.1:9/planted.js"></script>
<script>console.error("planted"); planted();</script>
<div style="width: 3000px">wide</div><input id="planted"></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """What copies of the page answer in headless Chromium when they are used, by width.

    Under "planted": a copy with faults.  Each is a frame of one window, because a window of
    Chromium has a least width.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed: docs/play was not opened")
    folder = tmp_path_factory.mktemp("play")
    text = script("index.html").replace("<head>", f"<head>{HEAD}")
    text = text.replace("</body>", f"<script>{DRIVER}</script></body>")
    frames = [(f"{width}/play/index.html", width) for width in WIDTHS]
    for name in (*WIDTHS, "planted"):
        shutil.copytree(PLAY, folder / str(name) / "play")
        (folder / str(name) / "play" / "index.html").write_text(
            text.replace("<header>", f"{PLANTED}<header>") if name == "planted" else text
        )
    frames.append(("planted/play/index.html", 400))
    page = folder / "frames.html"
    page.write_text(FRAMES.replace("PAGES", json.dumps(frames)))
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync dump-dom"
    flags += " disable-background-networking disable-component-update virtual-time-budget=5000"
    done = subprocess.run(
        [program, *(f"--{flag}" for flag in flags.split())]
        + [f"--user-data-dir={folder / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    answers = {}
    for encoded in re.findall(r"told:([\w+/=]+):", done.stdout):
        told = json.loads(unquote(base64.b64decode(encoded).decode()))
        name = Path(told["page"]).parts[-3]
        answers[name if name == "planted" else int(name)] = told
    assert set(answers) == {*WIDTHS, "planted"}, done.stderr
    return answers


@pytest.fixture(params=WIDTHS)
def told(request, pages):
    return pages[request.param] | {"asked": request.param}


def test_the_page_opens_from_a_disk_without_an_error_or_a_request(told):
    assert told["width"] == told["asked"]
    assert told["wrong"] == [] and told["resources"] == []  # resources: all that is no file


def test_faults_of_a_page_are_noticed(pages):
    told = pages["planted"]
    assert any("planted.js" in each for each in told["wrong"])
    assert any("planted is not defined" in each for each in told["wrong"])
    assert "planted" in told["wrong"] and told["overflow"] > 0
    assert told["resources"] == ["http://127.0.0.1:9/planted.js"]
    assert len(told["unnamed"]) == 1 and "planted" in told["unnamed"][0]


def test_nothing_is_wider_than_the_window_and_every_control_has_a_name(told):
    assert told["overflow"] <= 0
    assert told["unnamed"] == []


def test_each_preset_shows_the_margins_of_minipc_and_marks_those_below_zero_twice(told):
    assert len(told["presets"]) == 5
    for preset, shown in told["presets"].items():
        settings = [float(value) for value in preset.split()]
        y, v, u, config = of_row(*settings, "clip")
        p, r = (np.exp(log_softmax_forward(x / config.temperature)[0]) for x in (v, u))
        M = margins(y, p, r, settings[1], config)[0]
        for value, text, hatched in zip(M, shown["margins"], shown["hatched"], strict=True):
            number = float(text.split()[0].replace("\N{MINUS SIGN}", "-"))
            # three decimals, or two digits of what is smaller
            assert abs(number - value) <= max(0.00051, 0.06 * abs(value)) and number != 0
            assert ("✗" in text and "below zero" in text) == bool(hatched) == (value < 0)
        assert shown["verdict"].startswith("✗ No lower bound." if M.min() < 0 else "✓ Bounded")
        assert shown["formula"] == formula(config)
        assert shown["pressed"] == 1
        assert shown["lines"] == (2 if settings[1] else 1)


def test_where_the_guard_is_refused_and_where_the_selves_agree_the_page_says_so(told):
    text, guarded_lines = told["refused"]
    assert "needs b < a / 2" in text and guarded_lines == 0
    assert told["agreeing"].startswith("✓") and told["again"].startswith("✗")


def test_keys_drags_and_sliders_move_the_cloud_and_the_answer(told):
    stored, (turned, redrawn, shares) = told["stored"], told["turned"]
    assert turned == "45°" and redrawn and shares != stored
    assert told["unseen"] == stored  # the picture turns, what the student sees does not
    assert told["upright"] == ["0°", True, stored]
    assert told["dragged"] == ["29°", "11°"]  # 50 and 20 pixels of 0.01 radians
    assert told["moved"] == [["2.50", "outside"], ["\N{MINUS SIGN}1.00", "outside"], ["1.00", ""]]
    assert told["movedShares"] != stored and told["back"] == stored
    assert told["marked"] and told["drawnOutside"] == 0
    assert told["next"] == "chair 2"
    answer = r"[✓✗] (Right|Wrong)\. The student says \w+\. It is a chair\."
    assert re.fullmatch(answer, told["said"])
