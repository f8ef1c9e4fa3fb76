"""PointNet++: sizes and texts, whole models against differences, and both engines against another.

TEXTS are models in which something differs: levels of one layer and of several, several scales,
balls, no features, residual layers, the mean beside the maximum, groups of one member.
"""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipc.audit.problems import KINK
from minipc.errors import DataError, UsageError
from minipc.models import pointnet2
from minipc.models.file import KIND, new_model, read_model, write_model
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes, track
from minipc.models.pointnet2 import ModelConfig, count, forward_train, param_specs, title
from minipc.nn import gradcheck, local, ops, optim
from minipc.nn.engine import ENGINES, Tape, backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.params import initialise
from minipc.provenance import provenance
from minipc.runs.config import RunConfig, read_config
from minipc.settings import LossConfig, TrainConfig
from minipc.storage import files, hdf5
from reference_tests.tools.accuracy import signed_params, statistics, worst
from reference_tests.tools.fake_device import assert_agrees, moved
from reference_tests.tools.memory import new_memory_of

QUICKLY = settings(max_examples=100, deadline=None, derandomize=True)
EPSILON = np.finfo(np.float64).eps
TEXTS = (
    "16/5:6,8",
    "4,16/5by8:6,6/4by2:5+,8:5",
    "4-5,16/5:6+,6/4:5+,7-6+mean:6",
    "16/5:6-7,6/4:5-8,8-7:5",
    "16/9:6-5-4/3:4/0.5x5:6+,6/3:8/0.9x4:4-6+,7+mean:6-5",
    "4,16/0.8x40:6,8/1.2x12:9-4/3:5,8",
    "4,16/1:6,8/1:5-4,6",
)


# sizes, by hand: 40 classes, 1,024 points


def layers(*widths):
    """Return the weights of the layers between widths, without norms."""
    return sum(i * o for i, o in zip(widths, widths[1:], strict=False))


SSG = [  # rows, widths
    (512 * 32, (3, 64, 64, 128)),
    (128 * 64, (3 + 128, 128, 128, 256)),
    (128, (3 + 256, 256, 512, 1024)),
    (1, (1024, 512, 256)),
]
MSG = [
    (512 * 16, (3, 32, 32, 64)),
    (512 * 32, (3, 64, 64, 128)),
    (512 * 128, (3, 64, 96, 128)),
    (128 * 32, (3 + 320, 64, 64, 128)),
    (128 * 64, (3 + 320, 128, 128, 256)),
    (128 * 128, (3 + 320, 128, 128, 256)),
    (128, (3 + 640, 256, 512, 1024)),
    (1, (1024, 512, 256)),
]
SSG_8 = [
    (512 * 32, (3, 8, 8, 16)),
    (128 * 64, (3 + 16, 16, 16, 32)),
    (128, (3 + 32, 32, 64, 128)),
    (1, (128, 64, 32)),
]
MSG_8 = [
    (512 * 16, (3, 4, 4, 8)),
    (512 * 32, (3, 8, 8, 16)),
    (512 * 128, (3, 8, 12, 16)),
    (128 * 32, (3 + 40, 8, 8, 16)),
    (128 * 64, (3 + 40, 16, 16, 32)),
    (128 * 128, (3 + 40, 16, 16, 32)),
    (128, (3 + 80, 32, 64, 128)),
    (1, (128, 64, 32)),
]
STUDENT = [
    (1024, (3, 16)),
    (512 * 24, (3 + 16, 32)),
    (512, (32, 32)),
    (128 * 24, (3 + 32, 48)),
    (128, (48, 48)),
    (32 * 16, (3 + 48, 48)),
    (32, (48, 48)),
    (32, (3 + 48, 96)),
    (1, (2 * 96, 48)),
]
TINY = [
    (1024, (3, 8)),
    (512 * 24, (3 + 8, 16)),
    (512, (16, 16)),
    (128 * 24, (3 + 16, 24)),
    (128, (24, 24)),
    (32 * 16, (3 + 24, 24)),
    (32, (24, 24)),
    (32, (3 + 24, 48)),
    (1, (2 * 48, 24)),
]


@pytest.mark.parametrize(
    "name, by_rows, parameters, with_biases",
    [
        ("pointnet2", SSG, 1_472_360, 1_475_688),
        ("pointnet2-msg", MSG, 1_742_856, 1_747_368),
        ("pointnet2/8", SSG_8, 25_040, 25_456),
        ("pointnet2-msg/8", MSG_8, 29_620, 30_184),
        ("local-student", STUDENT, 27_320, 27_736),
        ("local-tiny", TINY, 7_728, 7_936),
    ],
)
def test_counts_are_those_made_by_hand_and_with_biases_those_published(
    name, by_rows, parameters, with_biases
):
    """Published code has a bias in every layer, also where batch norm takes it out again."""
    normed = sum(sum(widths[1:]) for _, widths in by_rows)
    last = by_rows[-1][1][-1]
    by_hand = sum(layers(*widths) for _, widths in by_rows) + 2 * normed + last * 40 + 40
    assert by_hand == parameters and by_hand + normed == with_biases
    macs = sum(rows * layers(*widths) for rows, widths in by_rows)
    config = sizes(name, 40)
    assert count(config, 1024) == (parameters, macs + last * 40)
    params = initialise(param_specs(config), np.random.default_rng(0))
    assert sum(value.size for value in params.values()) == parameters


def test_offsets_are_the_first_channels_of_a_level_and_its_features_follow():
    """As published for one scale; with the features' weights zero only the offsets are seen."""
    config = sizes("4,8/3:5,6", 3)
    params, inputs, _ = problem(config, 3, 12)
    params["level0.scale0.0.W"][3:] = 0
    z, _, _ = forward_train(params, inputs, config, None, "textbook")
    other, _, _ = forward_train(
        params | {"entry0.beta": params["entry0.beta"] + 9}, inputs, config, None, "textbook"
    )
    np.testing.assert_array_equal(z, other)


@pytest.mark.parametrize("text", ["teacher", "16-8:4", "local-teacher", "pointnet2/8", TEXTS[0]])
def test_any_model_takes_a_rate_of_dropout_in_place_of_its_own(text):
    assert sizes(f"{text}@0.25", 4) == replace(sizes(text, 4), dropout=0.25)


@pytest.mark.parametrize("rate", ["", "x", "1", "-0.1", "nan", "0.3@0.3"])
def test_a_rate_of_dropout_that_is_none_is_refused(rate):
    with pytest.raises(UsageError, match="dropout"):
        sizes(f"tiny@{rate}", 4)


def test_a_divisor_divides_hidden_widths_alone_and_leaves_no_dropout():
    config = sizes("local-teacher/10", 7)
    assert title(config) == ("PointNet++ 4,512/24by32:9+,128/24by16:19+,32/16by8:19+,38+mean:19")
    assert (config.dropout, config.classes) == (0.0, 7)
    assert title(sizes("pointnet2/99", 7)) == (
        "PointNet++ 512/0.2x32:1-1-1,128/0.4x64:1-1-2,2-5-10:5-2"
    )
    assert sizes("pointnet2/1", 7) == replace(sizes("pointnet2", 7), dropout=0.0)


# texts


@st.composite
def configs(draw):
    """Any ModelConfig that a text can say."""
    width, widths = st.integers(1, 999), st.lists(st.integers(1, 999), min_size=1, max_size=3)

    def joined(numbers):
        return "-".join(map(str, numbers))

    def scale():
        radius = draw(st.one_of(st.none(), st.decimals("0.001", "99", places=3)))
        near = draw(width) if radius is None else f"{radius}x{draw(width)}"
        by = draw(st.sampled_from(["", "by2", "by1024"]))
        return f"{near}{by}:{joined(draw(widths))}"

    centres = sorted(draw(st.lists(width, min_size=1, max_size=3)), reverse=True)
    levels = [
        "/".join([str(each), *(scale() for _ in range(draw(st.integers(1, 3))))])
        + draw(st.sampled_from(["", "+"]))
        for each in centres
    ]
    return ModelConfig(
        tuple(draw(st.one_of(st.just([]), widths))),
        tuple(levels),
        tuple(draw(widths)),
        draw(st.booleans()),
        tuple(draw(st.one_of(st.just([]), widths))),
        draw(st.integers(2, 50)),
    )


@QUICKLY
@given(configs())
def test_every_config_is_printed_as_the_text_that_it_is_read_from(config):
    text = title(config).removeprefix("PointNet++ ")
    assert sizes(text, config.classes) == config
    assert count(config, 1024).parameters > 0


@pytest.mark.parametrize("engine", ["fused", "textbook"])
def test_a_factor_of_offsets_is_in_the_weights_to_the_bit(engine):
    """A power of two rounds nothing: so exported programs have it in their weights."""
    by, without = (sizes(f"4,16/5{by}:6-7/4:5+,6/4{by}:5,8", 3) for by in ("by16", ""))
    params, inputs, dlogits = problem(by, 3, 40, np.float32)
    rows = [name for name in params if re.fullmatch(r"level\d[.]scale0[.]0[.]W", name)]
    assert len(rows) == 2
    larger = {name: value.copy() for name, value in params.items()}
    for name in rows:
        larger[name][:3] *= 16
    found = [
        forward_train(given, inputs, config, None, engine)
        for given, config in ((params, by), (larger, without))
    ]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    grads, same = (backward(dlogits, tape)[0] for *_, tape in found)
    for name in rows:
        same[name][:3] *= 16
    for name, value in grads.items():
        np.testing.assert_array_equal(value, same[name], err_msg=name)
    assert (larger[rows[0]] != params[rows[0]]).any()


def test_a_text_by_hand_says_what_is_documented():
    config = sizes("16,512/24by16:32+,128/0.2x9:48-50/7by2:6,96+mean:48-4", 40)
    assert (config.entry, config.last, config.mean, config.head) == ((16,), (96,), True, (48, 4))
    first, second = config.parsed
    assert first == (512, (((24, 0.0), (32,)),), True, (16,))
    assert second == (128, (((9, 0.2), (48, 50)), ((7, 0.0), (6,))), False, (1, 2))


# what texts are made of, so that random ones come near to right ones
PIECES = st.sampled_from(
    [*"0123456789,/:-+x. ", "16", "by", "0.2", "+mean", "nan", "inf", "1e9", "_"]
)
WRONG = (
    "512/24:32",
    "512/24:32,",
    ",512/24:32,8",
    "512/24,8",
    "512/24:,8",
    "512/:32,8",
    "512/:,8",
    "512/0:32,8",
    "0/24:32,8",
    "512/24:0,8",
    "512/24:32++,8",
    "512/-24:32,8",
    "512/2.5:32,8",
    "512/x24:32,8",
    "512/0x24:32,8",
    "512/-1x24:32,8",
    "512/nanx24:32,8",
    "512/infx24:32,8",
    "512/1e-3x24:32,8",
    "512/24x:32,8",
    "512/24by:32,8",
    "512/24by0:32,8",
    "512/24by1:32,8",
    "512/24by3:32,8",
    "512/24by0.5:32,8",
    "512/24by16by2:32,8",
    "512/by16:32,8",
    "512/24:32,0",
    "512/24:32,8+max",
    "512/24:32,8:4:2",
    "512/24:32-,8",
    "5_1_2/24:32,8",
    " 512/24:32,8",
    "512/+24:32,8",
    "\uff15/24:32,8",
    "8,9,512/24:32,8",
    "512/24:32,8,256/24:32,8",
    "256/24:32,512/24:32,8",
    "16,8",
    "9999999/24:32,8",
    "512/24:" + "9" * 5000 + ",8",
    "pointnet2/",
    "pointnet2/0",
    "pointnet2/08",
    "pointnet2/100",
    "pointnet2/8/8",
    "pointnet2/x",
    "local-student/",
)


@pytest.mark.parametrize("text", WRONG)
def test_a_text_that_is_none_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="^model: expected ") as refused:
        sizes(text, 40)
    assert "\n" not in str(refused.value)


@QUICKLY
@given(st.one_of(st.text(), st.lists(PIECES, max_size=24).map("".join)))
def test_no_text_raises_anything_but_a_usage_error(text):
    for read in (sizes, pointnet2.sizes):
        try:
            config = read(text, 5)
        except UsageError as refused:
            assert len(str(refused).splitlines()) == 1
        else:
            assert net(config).count(config, 64).parameters > 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"levels": ()}, "at least one level"),
        ({"levels": ("512/24",)}, "expected levels such as .*got 512/24$"),
        ({"levels": (5,)}, "expected levels such as"),
        ({"levels": ("8/2:4", "9/2:4")}, r"fewer centres level by level, got \[8, 9\]"),
        ({"entry": (0,)}, "positive widths"),
        ({"last": ()}, "at least one last"),
        ({"head": (2.5,)}, "positive widths"),
        ({"mean": 1}, "mean true or false, got 1"),
        ({"classes": 1}, "at least 2 classes, got 1"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"eps": 0.0}, "eps > 0"),
        ({"momentum": 0.0}, "momentum"),
    ],
)
def test_models_that_cannot_be_are_refused(wrong, message):
    right = dict(entry=(), levels=("8/2:4",), last=(4,), mean=False, head=(4,), classes=3)
    ModelConfig(**right)
    with pytest.raises(UsageError, match=message):
        ModelConfig(**right | wrong)


# files


@pytest.mark.parametrize("text", ["pointnet2-msg/8", TEXTS[2], TEXTS[4]])
def test_a_config_and_its_weights_survive_a_model_file_of_version_2(text, tmp_path):
    described = {"class_names": ["a", "b", "c"], "up_axis": "z", "normalisation": "none"}
    model, path = new_model(sizes(text, 3), described, 5), tmp_path / "model.h5"
    write_model(path, model)
    found = read_model(path)
    assert found.config == model.config and type(found.config) is ModelConfig
    assert_agrees(np, (found.params, found.stats), (model.params, model.stats))
    with hdf5.open_hdf5(path, KIND, 2) as file:
        assert hdf5.read_meta(file, path)["architecture"] == "pointnet2"
    with pytest.raises(DataError, match="version 2"), hdf5.open_hdf5(path, KIND, 1):
        pass


def test_a_config_survives_run_json(tmp_path):
    config = sizes(TEXTS[4], 3)
    run = RunConfig(
        provenance=provenance(np),
        data="clouds.h5",
        clouds={},
        record=None,
        self_record=None,
        views=None,
        augment={},
        labels_only=True,
        name=TEXTS[4],
        architecture="pointnet2",
        model=config,
        loss=LossConfig(),
        self_target=None,
        training=TrainConfig(),
        init=None,
    )
    (tmp_path / "run.json").write_text(json.dumps(asdict(run)))
    assert read_config(str(tmp_path)).model == config


def test_a_config_of_a_file_that_no_text_says_is_refused_as_data():
    values = json.loads(json.dumps(asdict(sizes(TEXTS[0], 3))))
    assert files.from_dict(ModelConfig, values, "f") == sizes(TEXTS[0], 3)
    for levels in (["16/5"], "16/5:6", 7, None, [["16/5:6"]], [None]):
        with pytest.raises(DataError, match="^f: "):
            files.from_dict(ModelConfig, values | {"levels": levels}, "f")


# problems


def problem(config, clouds, points, dtype=np.float64, seed=0, change=lambda x: x):
    """Return params with gains of both signs and zero, Inputs and dlogits."""
    rng = np.random.default_rng(seed)
    params = signed_params(param_specs(config), rng)
    x = change(rng.standard_normal((clouds, points, 3)).astype(np.float32))
    inputs = Inputs(x.astype(dtype), pointnet2.prepare(config, x))
    dlogits = rng.standard_normal((clouds, config.classes)).astype(dtype)
    return {name: value.astype(dtype) for name, value in params.items()}, inputs, dlogits


def run(config, params, inputs, dlogits, engine="fused", work=None, mask=None):
    """Return logits, statistics and gradients of one engine, in arrays of their own."""
    z, batch, tape = forward_train(params, inputs, config, mask, engine, work)
    z = z.copy()
    grads, _ = backward(dlogits, tape)
    return z, batch, {name: grad.copy() for name, grad in grads.items()}


def nearest_kink(tape, params):
    """Return the distance to the nearest kink: of a ReLU from zero, of a pool's two largest."""
    nearest, y = np.inf, None
    for operation_backward, cache, names in operations(tape):
        if operation_backward is ops.batch_norm_backward:
            y = cache.gamma * cache.xhat + params[names[1]]
            nearest = min(nearest, np.abs(y[..., cache.gamma != 0]).min())
        elif operation_backward in (ops.point_max_backward, local.max_and_mean_backward):
            # A repeated member or point is not another one: equal values stay equal.
            two = np.sort(np.maximum(y, 0), axis=-2)
            gaps = np.diff(two, axis=-2)
            nearest = min(nearest, gaps[gaps > 1e-9].min(initial=np.inf))
    return nearest


def operations(tape):
    """Yield the Operations of a tape in the order of the forward, those of branches inside."""
    for operation in tape:
        branches = operation.cache[0] if type(operation.cache) is tuple else []
        for branch in [branches] if isinstance(branches, Tape) else branches:
            yield from operations(branch)
        yield operation


def smooth_problem(config, clouds, points, change=lambda x: x):
    """Return problem() off every kink, with channels positive here and there in every layer."""
    for seed in range(2000):
        params, inputs, dlogits = problem(config, clouds, points, seed=seed, change=change)
        for name in param_specs(config):
            if name.endswith(".gamma"):  # the maximum of gamma x has a kink at gamma = 0
                params[name] = np.sign(params[name] + 0.01) * (0.3 + np.abs(params[name]))
        _, _, tape = forward_train(params, inputs, config, None, "textbook")
        if nearest_kink(tape, params) > KINK:
            norms = [np.linalg.norm(grad) for grad in backward(dlogits, tape)[0].values()]
            if min(norms) > 1e-3 * max(norms):  # else differences cannot tell right from wrong
                return params, inputs, dlogits
    raise AssertionError("no draw is off every kink with a gradient in every parameter")


def repeated(x):
    """A cloud whose last third repeats its first points."""
    third = x.shape[1] // 3
    return np.concatenate([x[:, : x.shape[1] - third], x[:, :third]], axis=1)


# gradients of whole models


SMALL = (  # for differences: few rows, so that some draw lies off every kink
    "5/3:3,4",
    "3,5/3:4+,3/2:3,4+mean:3",
    "5/3:3-4/0.9x4:3,3/2:3-3/1.5x3:3+,4:3",
    "3,4/1:3,2/2:3-3,4",
)


@pytest.mark.parametrize("change", [lambda x: x, repeated], ids=["points", "repeated points"])
@pytest.mark.parametrize("text", SMALL)
def test_gradients_of_a_whole_model_are_central_differences_with_both_engines(text, change):
    config = sizes(text, 3)
    params, inputs, dlogits = smooth_problem(config, 4, 6, change)

    for engine in ENGINES:
        z, _, grads = run(config, params, inputs, dlogits, engine)

        def value(arrays, engine=engine):
            z, _, _ = forward_train(arrays, inputs, config, None, engine)
            return float((z * dlogits).sum())

        for each in gradcheck.check_gradients(value, params, grads, np.random.default_rng(0)):
            # A step of 1e-5 leaves 1e-10 of rounding; no gradient is below 1e-3 of the largest.
            size = max(abs(each.analytic), abs(each.numeric))
            assert abs(each.analytic - each.numeric) <= 1e-6 * size + 1e-9 * each.largest, each


# both engines


def assert_engines_agree(config, params, inputs, dlogits):
    """In float64 the fast engine is as near to long double as the textbook engine is.

    The reasons for ten times and for the floor are those of test_fused.py: both errors are noise,
    and each sum over all rows adds the random walk of its roundings.
    """
    found = [run(config, params, inputs, dlogits, engine) for engine in ENGINES]
    long = np.longdouble
    exact = run(
        config,
        {name: value.astype(long) for name, value in params.items()},
        Inputs(inputs.points.astype(long), inputs.groups),
        dlogits.astype(long),
        "textbook",
    )
    errors = [
        {
            "logits": worst({0: z}, {0: exact[0]}),
            "statistics": worst(statistics(batch), statistics(exact[1])),
            "gradients": worst(grads, exact[2]),
        }
        for z, batch, grads in found
    ]
    assert found[0][2].keys() == found[1][2].keys() == params.keys()
    rows = max(layer.rows for layer in exact[1].values())
    floor = (100 + np.sqrt(rows)) * EPSILON
    for name, error in errors[0].items():
        assert error <= 10 * errors[1][name] + floor, (name, error, errors[1][name])
    assert max(errors[0].values()) < 1e-10  # and that is little
    assert {name: layer.rows for name, layer in found[0][1].items()} == {
        name: layer.rows for name, layer in found[1][1].items()
    }


@pytest.mark.parametrize("change", [lambda x: x, repeated], ids=["points", "repeated points"])
@pytest.mark.parametrize("text", TEXTS)
def test_both_engines_agree_to_rounding(text, change):
    config = sizes(text, 5)
    assert_engines_agree(config, *problem(config, 5, 24, change=change))


@pytest.mark.parametrize("gain", [-1.0, 0.0])
@pytest.mark.parametrize("text", [TEXTS[2], TEXTS[4]])
def test_both_engines_agree_where_every_gain_is_negative_or_zero(text, gain):
    config = sizes(text, 5)
    params, inputs, dlogits = problem(config, 5, 24)
    for name, value in params.items():
        if name.endswith(".gamma"):
            params[name] = gain * np.abs(value)
        elif name.endswith(".beta") and not gain:
            params[name] = np.abs(value) + 0.1  # else nothing at all passes
    assert_engines_agree(config, params, inputs, dlogits)


@pytest.mark.parametrize("text", ["4,1/3:6,5", "1/3:6,5", "4,1/2:5-4/0.5x1:3+,1/1:6,4+mean"])
def test_both_engines_agree_on_clouds_of_one_point(text):
    config = sizes(text, 4)
    assert_engines_agree(config, *problem(config, 7, 1))


@pytest.mark.parametrize(
    "text", ["20/300:3,2/15:4,5", "4,20/300:3,2/15:4,5", "4,20/300:3-4,2/15:4,5"]
)
def test_both_engines_agree_where_a_rank_needs_more_than_a_byte(text):
    config = sizes(text, 3)
    assert_engines_agree(config, *problem(config, 2, 310))


def test_a_level_whose_rows_are_all_equal_agrees():
    """Groups of the centre alone have no offset: a layer without variance, its gain 1/sqrt(eps).

    Roundings are magnified by that gain, 316 times in each of two such layers.
    """
    config = sizes("8/1:5,6", 4)
    params, inputs, dlogits = problem(config, 5, 12)
    found = [run(config, params, inputs, dlogits, engine) for engine in ENGINES]
    assert not found[0][1]["level0.scale0.0"].var.any()
    assert worst(found[0][2], found[1][2]) <= 316**2 * 100 * EPSILON
    assert worst({0: found[0][0]}, {0: found[1][0]}) <= 316**2 * 100 * EPSILON


@pytest.mark.parametrize("block", [1, 2**10, 2**25])
@pytest.mark.parametrize("group", [None, 4])  # of rows of a product, as different BLAS want them
@pytest.mark.parametrize("text", [TEXTS[2], TEXTS[4]])
def test_no_division_into_blocks_changes_the_result_beyond_rounding(text, group, block):
    config = sizes(text, 5)
    params, inputs, dlogits = problem(config, 7, 24)
    work = Workspace()
    work.block = work.slice = block
    work.group = group
    z, _, grads = run(config, params, inputs, dlogits, "fused", work)
    z_t, _, grads_t = run(config, params, inputs, dlogits, "textbook")
    # hundreds of roundings of the largest, a few layers deep
    assert worst(grads, grads_t) <= 1e-12 and worst({0: z}, {0: z_t}) <= 1e-12


# float32


def errors_in_float32(text, change, features=1.0, draws=3):
    """Return the median errors (logits, statistics, gradients) of the fast engine and the textbook.

    features: a factor of the weights of the features of level 0.
    """
    config, errors = sizes(text, 10), []
    for seed in range(draws):
        params, inputs, dlogits = problem(config, 8, 256, np.float32, seed, change)
        for name, value in params.items():
            if name.endswith(".gamma") and name.startswith(("entry", "level0")):
                params[name] = np.abs(value) + np.float32(0.5)
        params["level0.scale0.0.W"][3:] *= np.float32(features)
        exact = run(
            config,
            {name: value.astype(float) for name, value in params.items()},
            Inputs(inputs.points.astype(float), inputs.groups),
            dlogits.astype(float),
            "textbook",
        )
        errors.append(
            [
                (
                    worst({0: z}, {0: exact[0]}),
                    worst(statistics(batch), statistics(exact[1])),
                    worst(grads, exact[2]),
                )
                for z, batch, grads in (
                    run(config, params, inputs, dlogits, engine) for engine in ENGINES
                )
            ]
        )
    # not the mean: one other winner of a maximum outweighs all roundings
    return np.median(errors, axis=0)


def moved_by(offset):
    return lambda x: x + np.float32(offset)


def spots(spread):
    """Return the change of a cloud into 32 spots of this size, a neighbourhood each."""

    def change(x):
        return x[:, np.arange(x.shape[1]) % 32] + np.float32(spread) * x

    return change


IN_FLOAT32 = ("8,64/16:16+,32/8:24+,32+mean:16", "64/16:8-16,32/8:16-24,32:16")


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
@pytest.mark.parametrize("text", IN_FLOAT32)
def test_float32_far_from_the_origin_is_at_least_as_accurate_as_the_textbook(text, offset):
    """Both engines in float32 against float64; a tenth of slack, since both errors are noise."""
    fast, textbook = errors_in_float32(text, moved_by(offset))
    assert (fast <= 1.1 * textbook).all(), (fast, textbook)
    assert fast.max() < 1e-5


@pytest.mark.parametrize("spread", [0.1, 1e-3])
@pytest.mark.parametrize("text", IN_FLOAT32)
def test_float32_of_small_neighbourhoods_is_as_accurate_as_the_textbook(text, spread):
    fast, textbook = errors_in_float32(text, spots(spread))
    assert (fast <= 1.1 * textbook).all(), (fast, textbook)
    assert fast.max() < 1e-5


@pytest.mark.parametrize("spread", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("text", ["8,64/8:16,32:16", "8,64/8:16-12,32:16"])
def test_float32_of_offsets_alone_loses_the_ratio_of_cloud_to_neighbourhood(text, spread):
    """Maps of positions are subtracted instead of positions, so digits of the cloud's size remain.

    Features that say next to nothing leave the batch norm only the offsets: their roundings of
    2^-23 of the cloud are magnified by cloud / neighbourhood.  Ten such, and the textbook's own.
    """
    fast, textbook = errors_in_float32(text, spots(spread), features=1e-4)
    assert (fast <= 10 * textbook + 10 * np.finfo(np.float32).eps / spread).all(), (fast, textbook)


# threads, buffers, memory


class Counted(Workspace):
    """A Workspace that knows how many pieces of work its threads had at most."""

    most = 0

    def map(self, function, items):
        self.most = max(self.most, len(items))
        return super().map(function, items)


def trained_steps(text, threads, dtype):
    config = sizes(text, 5)
    params, inputs, dlogits = problem(config, 15, 64, dtype)
    work = Counted(np, threads)
    work.block, work.slice = 2**14, 2**12
    state = optim.adamw_start(params)
    for _ in range(3):
        z, batch, tape = forward_train(params, inputs, config, None, "fused", work)
        grads, _ = backward(dlogits, tape)
        state = optim.adamw_in_place(params, grads, state, 1e-2, 1e-2, work)
    assert work.most >= 4  # several blocks for each thread
    return params | statistics(batch) | {"z": z}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "text",
    ["8,32/9:16+,8/4:24+,24+mean:8", "32/9:8-12-16/0.5x12:16,8/4:24/0.9x5:8-24,24-30:8"],
)
def test_any_number_of_threads_gives_the_same_bits(text, dtype):
    one, two, three = (trained_steps(text, threads, dtype) for threads in (1, 2, 3))
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key], err_msg=key)
        np.testing.assert_array_equal(value, three[key], err_msg=key)


@pytest.mark.parametrize("text", TEXTS)
def test_a_step_in_used_buffers_gives_the_same_bits(text):
    """Other clouds, of other groups and of another number, were in the buffers before."""
    config, work = sizes(text, 5), Workspace()
    params, inputs, dlogits = problem(config, 5, 24)
    alone = run(config, params, inputs, dlogits)
    for other, clouds in ((1, 5), (2, 4)):
        _, theirs, d = problem(config, clouds, 24, seed=other)
        run(config, params, theirs, d, "fused", work)
    for _ in range(2):
        assert_agrees(np, run(config, params, inputs, dlogits, "fused", work), alone)


def test_nothing_is_written_into_parameters_points_groups_and_the_gradient_from_above(engine):
    config = sizes(TEXTS[4], 5)
    given = problem(config, 5, 24)
    for array in (*given[0].values(), given[1].points, *given[1].groups, given[2]):
        array.setflags(write=False)
    run(config, *given, engine)


@pytest.mark.parametrize("text", TEXTS)
def test_a_tape_is_read_once_and_before_the_next_forward(text):
    config, work = sizes(text, 5), Workspace()
    params, inputs, dlogits = problem(config, 5, 24)
    _, _, tape = forward_train(params, inputs, config, work=work)
    backward(dlogits, tape)
    with pytest.raises(DataError, match="this tape was read already"):
        backward(dlogits, tape)
    _, _, tape = forward_train(params, inputs, config, work=work)
    forward_train(params, inputs, config, work=work)
    with pytest.raises(DataError, match="a later forward wrote over it"):
        backward(dlogits, tape)


@pytest.mark.parametrize(
    "text", ["8,256/12:16/24:24+,64/8:24/0.5x16:16-24,32:16", "256/16:8-8-16,64/16:24,24+mean:16"]
)
def test_a_step_after_the_first_takes_no_large_new_memory(text):
    """Forward, backward and AdamW of a batch of 32 x 512 points.

    What is new are indices and positions, and the winners of a block: no array of all rows, of
    which one channel of the first level alone has 0.4 MB.
    """
    config, work = sizes(text, 40), Workspace()
    params, inputs, dlogits = problem(config, 32, 512, np.float32)
    state = optim.adamw_start(params)

    def step(state):
        _, _, tape = forward_train(params, inputs, config, None, "fused", work)
        grads, _ = backward(dlogits, tape)
        return optim.adamw_in_place(params, grads, state, 1e-3, 1e-2, work)

    state = step(state)
    new = new_memory_of(lambda: step(state))
    assert new < 2.5e6, f"{new / 1e6:.2f} MB"


# statistics and evaluation


def test_statistics_are_those_of_all_rows_repeated_members_included(engine):
    """By NumPy's own mean and variance of rows made here."""
    config = sizes("4,16/0.8x9:6-5,3/4:5,8", 5)
    params, inputs, dlogits = problem(config, 5, 24)
    _, batch, _ = run(config, params, inputs, dlogits, engine)
    (centres, members, *_), x = inputs.groups, inputs.points
    assert (members[:, :, 1:] == members[:, :, :1]).any()

    def normed(rows, layer):
        y = rows @ params[f"{layer}.W"]
        found, flat = batch[layer], y.reshape(-1, y.shape[-1])
        assert found.rows == len(flat)
        # sums of some hundreds of numbers of order one
        np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=0, atol=1e-13)
        np.testing.assert_allclose(found.var, flat.var(axis=0), rtol=1e-11, atol=1e-13)
        y = (y - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + config.eps)
        return np.maximum(params[f"{layer}.gamma"] * y + params[f"{layer}.beta"], 0)

    f, cloud = normed(x, "entry0"), np.arange(5)[:, None, None]
    o = x[cloud, members] - x[cloud[..., 0], centres][:, :, None]
    rows = np.concatenate([o, f[cloud, members]], axis=3)
    assert batch["level0.scale0.0"].rows == 5 * 16 * 9
    normed(normed(rows, "level0.scale0.0"), "level0.scale0.1")


@pytest.mark.parametrize("text", TEXTS)
def test_evaluation_with_the_statistics_of_a_batch_is_the_forward_of_training(text, engine):
    config = sizes(text, 5)
    params, inputs, dlogits = problem(config, 5, 24)
    z, batch, _ = run(config, params, inputs, dlogits, "textbook")
    found = pointnet2.evaluator(params, statistics(batch), config, engine)(inputs)
    assert worst({0: found}, {0: z}) <= 1e-12  # hundreds of roundings, as between the engines


def test_running_statistics_move_towards_those_of_every_layer(engine):
    config = sizes(TEXTS[4], 5)
    params, inputs, dlogits = problem(config, 5, 24)
    _, batch, _ = run(config, params, inputs, dlogits, engine)
    stats = pointnet2.initial_stats(config, np.float64)
    moved_stats = track(stats, batch, config)
    assert moved_stats.keys() == stats.keys() == statistics(batch).keys()
    for name, layer in batch.items():
        unbiased = layer.var * layer.rows / (layer.rows - 1)
        np.testing.assert_allclose(moved_stats[f"{name}.mean"], 0.1 * layer.mean, rtol=1e-14)
        np.testing.assert_allclose(moved_stats[f"{name}.var"], 0.9 + 0.1 * unbiased, rtol=1e-14)


def test_a_model_without_its_groups_is_refused_with_the_remedy(engine):
    config = sizes(TEXTS[0], 5)
    params, inputs, _ = problem(config, 5, 24)
    stats = pointnet2.initial_stats(config, np.float64)
    for wrong in (inputs.points, Inputs(inputs.points, inputs.groups[:1])):
        with pytest.raises(DataError, match="reads points and 2 groups, got .*prepare"):
            forward_train(params, wrong, config, engine=engine)
        with pytest.raises(DataError, match="reads points and 2 groups, got .*prepare"):
            pointnet2.evaluator(params, stats, config, engine)(wrong)


# the device that is not there


@pytest.mark.parametrize("text", [TEXTS[2], TEXTS[4]])
def test_a_device_computes_what_the_host_does(text, engine, device):
    """The textbook bit for bit; the fast engine scatters in another order there."""
    config = sizes(text, 5)
    given = problem(config, 5, 24)
    here = run(config, *given, engine)
    there = run(config, *moved(device, given), engine)
    # a gamma whose gradient cancels to zero keeps rounding of the other gradients, near 1
    assert_agrees(device, there, here, digits=1e-10, exact=engine == "textbook", floor=1e-13)
    params, inputs, _ = given
    stats = pointnet2.initial_stats(config, np.float64)
    here = pointnet2.evaluator(params, stats, config, engine)(inputs)
    there = pointnet2.evaluator(*moved(device, (params, stats)), config, engine)(
        moved(device, inputs)
    )
    assert_agrees(device, there, here, digits=1e-10, exact=engine == "textbook")
