"""Our models as state dicts and modules of PyTorch, and published checkpoints as models of ours."""

import numpy as np
import pytest

from minipc.errors import DataError, UsageError
from minipc.models.file import model_id, new_model
from minipc.models.inputs import Inputs
from minipc.models.model import net, sizes
from reference_tests.tools.with_torch import torch

# isort: split
from minipc.torch.checkpoints import import_checkpoint, read_checkpoint
from minipc.torch.modules import to_module
from minipc.torch.published import published_pointnet
from minipc.torch.state_dict import from_state_dict, to_state_dict

CLASSES = 5
DESCRIBED = {"class_names": list("abcde"), "up_axis": "z", "normalisation": "unit_sphere"}
MODELS = [
    *("teacher", "student", "tiny", "8-16"),
    *("pointnet2/8", "pointnet2-msg/8", "local-student", "local-tiny"),
    "6,32/6:8-10/0.9x9:6,8/4:12,16+mean",
    "8,32/6:12+,16/6:16/3:8+,8/4:16+,24+mean:12",
]
SSG = "32/0.2x8:8-8-16,8/0.4x6:12-12-24,16-32-40:20-12"
MSG = "32/0.5x4:6-8/0.9x8:6-6-10/2x4:6,8/1x5:8-12/2x8:8-8-12/3x3:8,16-24:16-8"
CLOSE = 1e-9  # of the largest logit: float64, sums in another order
every_model = pytest.mark.parametrize("text", [*MODELS, SSG, MSG])


def lively(text, seed=0):
    """Return a Model whose norms have gains, offsets and statistics of their own."""
    model, rng = new_model(sizes(text, CLASSES), DESCRIBED, seed), np.random.default_rng(seed)
    params = {
        name: value if name.endswith(".W") else value + 0.3 * rng.standard_normal(value.shape)
        for name, value in model.params.items()
    }
    stats = {name: value + rng.random(value.shape) for name, value in model.stats.items()}
    return model._replace(params=rounded(params), stats=rounded(stats))


def rounded(arrays):
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def clouds(config, count=3):
    """Return points (B, N, 3) float32 and their groups."""
    points = np.random.default_rng(5).standard_normal((count, 600, 3)).astype(np.float32)
    return points, net(config).prepare(config, points)


def ours_in_float64(model, points, groups):
    params, stats = (
        {name: value.astype(np.float64) for name, value in part.items()}
        for part in (model.params, model.stats)
    )
    inputs = Inputs(points.astype(np.float64), groups)
    return net(model.config).forward_eval(params, stats, inputs, model.config)


def assert_close(got, want):
    assert want.std(axis=0).min() > 1e-3  # the clouds are told apart
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE * np.abs(want).max())


@every_model
@pytest.mark.parametrize("biases", [False, True])
def test_the_round_trip_keeps_the_identity(text, biases):
    model = lively(text)
    again = from_state_dict(to_state_dict(model, biases), model.config, DESCRIBED)
    assert model_id(again) == model_id(model) and again.described == DESCRIBED
    for one, other in ((model.params, again.params), (model.stats, again.stats)):
        assert list(one) == list(other)
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
        assert all(value.flags.c_contiguous for value in other.values())


@every_model
def test_the_module_computes_what_the_model_computes(text):
    model = lively(text)
    points, groups = clouds(model.config)
    module = to_module(model).double().eval()
    with torch.no_grad():
        got = module(torch.from_numpy(points).double()).numpy()
    assert_close(got, ours_in_float64(model, points, groups))


def test_a_module_reads_the_groups_that_it_is_given():
    model = lively("local-tiny")
    points, groups = clouds(model.config)
    moved = (points * [1.4, 0.7, 1]).astype(np.float32)
    module = to_module(model).double().eval()
    with torch.no_grad():
        given = [torch.from_numpy(group.astype(np.int64)) for group in groups]
        got = module(torch.from_numpy(moved).double(), given).numpy()
    assert_close(got, ours_in_float64(model, moved, groups))


def test_the_tensors_belong_to_nobody_else():
    model = lively("tiny")
    was = model_id(model)
    state = to_state_dict(model)
    back = from_state_dict(state, model.config, DESCRIBED)
    for value in state.values():
        value.zero_()
    assert model_id(model) == model_id(back) == was


def test_names_and_shapes_are_those_of_published_code():
    """Typed from the published modules; the first input of a level of several scales is turned."""
    state = to_state_dict(lively("8-16-32:12-10"), biases=True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name, shape in {
        "feat.conv1.weight": (8, 3, 1),
        "feat.conv3.weight": (32, 16, 1),
        "feat.conv3.bias": (32,),
        "feat.bn3.running_var": (32,),
        "fc1.weight": (12, 32),
        "bn2.weight": (10,),
        "fc3.weight": (5, 10),
        "fc3.bias": (5,),
    }.items():
        assert shapes[name] == shape, name
    assert state["feat.bn1.num_batches_tracked"] == 0 and "bn3.weight" not in state
    ssg, msg = (to_state_dict(lively(text)) for text in (SSG, MSG))
    assert tuple(ssg["sa2.mlp_convs.0.weight"].shape) == (12, 19, 1, 1)
    assert tuple(ssg["sa3.mlp_convs.2.weight"].shape) == (40, 32, 1, 1)
    assert tuple(msg["sa2.conv_blocks.1.0.weight"].shape) == (8, 27, 1, 1)
    model = lively(MSG)
    W, weight = model.params["level1.scale1.0.W"], msg["sa2.conv_blocks.1.0.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(weight[:, -3:].T, W[:3])  # the offset, first in ours
    np.testing.assert_array_equal(weight[:, :-3].T, W[3:])


def trained_on(module, steps=3):
    """Take some steps of SGD in training mode."""
    torch.manual_seed(0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        logits = module(torch.randn(8, 600, 3))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.arange(8) % CLASSES).backward()
        optimiser.step()
    return module


@pytest.mark.parametrize("text", ["tiny", "local-tiny", "16/6:8/3:4,8:8"])
def test_what_pytorch_goes_on_with_comes_back_as_a_model(text):
    module = trained_on(to_module(lively(text)))
    model = from_state_dict(module.state_dict(), sizes(text, CLASSES), DESCRIBED)
    assert model_id(model) != model_id(lively(text))
    points, groups = clouds(model.config)
    with torch.no_grad():
        got = module.double().eval()(torch.from_numpy(points).double()).numpy()
    assert_close(got, ours_in_float64(model, points, groups))


# States that are refused


def spoilt():
    """Return {name: (change of a state dict, what is said)}."""

    def put(name, value):
        return lambda state: state.update({name: value(state[name])})

    return {
        "missing": (lambda s: s.pop("feat.bn2.running_mean"), "misses feat.bn2.running_mean"),
        "foreign": (lambda s: s.update(fc9=torch.zeros(1)), "misses nothing, has foreign fc9"),
        "empty": (lambda s: s.clear(), "misses bn1.bias.*has foreign nothing"),
        "shape": (put("fc1.weight", lambda x: x.T), r"fc1.weight: expected shape \(32, 64\)"),
        "conv of 2 axes": (put("feat.conv1.weight", lambda x: x[..., 0]), "expected shape"),
        "half": (put("fc1.weight", torch.Tensor.half), "float32 tensor, found torch.float16"),
        "bfloat16": (put("feat.bn1.bias", torch.Tensor.bfloat16), "found torch.bfloat16"),
        "double": (put("fc1.weight", torch.Tensor.double), "found torch.float64"),
        "int": (put("fc2.bias", torch.Tensor.int), "fc2.bias: .* found torch.int32"),
        "an array": (put("fc2.bias", torch.Tensor.numpy), "float32 tensor, found float32"),
        "no tensor": (put("fc2.bias", lambda x: "x"), "float32 tensor, found str"),
        "no values": (put("fc1.weight", lambda x: x.to("meta")), "fc1.weight has no values"),
        "NaN": (put("fc1.weight", lambda x: x * np.nan), "fc1.weight holds NaN"),
        "infinite": (put("bn1.running_var", lambda x: x + np.inf), "running_var holds NaN or inf"),
        "negative variance": (put("bn1.running_var", lambda x: x - 9), "no negative variance"),
    }


@pytest.mark.parametrize("name", spoilt())
def test_a_state_that_is_not_the_models_is_one_line(name):
    model, (change, says) = lively("tiny"), spoilt()[name]
    state = to_state_dict(model)
    change(state)
    with pytest.raises(DataError, match=f"^state dict: .*{says}") as caught:
        from_state_dict(state, model.config, DESCRIBED)
    assert "\n" not in str(caught.value)


def test_class_names_that_are_not_as_many_as_the_classes_are_one_line():
    model = lively("tiny")
    fewer = {**DESCRIBED, "class_names": list("ab")}
    with pytest.raises(DataError, match="described has 2 class names, but the model has 5"):
        from_state_dict(to_state_dict(model), model.config, fewer)
    with pytest.raises(DataError, match="described"):
        from_state_dict(to_state_dict(model), model.config, {"class_names": list("abcde")})


# Published checkpoints


def published_state(text, exact=True, seed=3):
    """Return the state dict of a published network: layers as lively(text) has, with biases.

    exact: biases and means are multiples of 2^-10, so that no fold of them rounds.
    """
    rng = np.random.default_rng(seed)
    state = to_state_dict(lively(text), biases=True)
    for name, value in state.items():
        if (name.endswith("bias") and "bn" not in name) or name.endswith("running_mean"):
            drawn = rng.standard_normal(value.shape)
            drawn = np.round(drawn * 1024) / 1024 if exact else drawn
            state[name] = torch.from_numpy(drawn.astype(np.float32))
    return state


def saved(tmp_path, state, name="checkpoint.pth"):
    torch.save(state, tmp_path / name)
    return str(tmp_path / name)


def conv(x, state, name, norm=None):
    """x (..., I) -> (..., O) in float64: a layer with its bias, then the norm of that name."""
    weight = state[f"{name}.weight"].double()
    y = x @ weight.reshape(weight.shape[:2]).T + state[f"{name}.bias"].double()
    if norm is None:
        return y
    mean, var, gamma, beta = (
        state[f"{norm}.{part}"].double()
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / (var + 1e-5).sqrt() * gamma + beta


def published_pointnet2(state, config, points, groups):
    """The layers of published code on given groups, from its definition, in float64."""
    each, p, x = iter(groups), torch.from_numpy(points).double(), None
    at = torch.arange(len(points))
    for number, level in enumerate(config.parsed, 1):
        centres = p[at[:, None], torch.from_numpy(next(each).astype(np.int64))]
        parts, several = [], len(level.scales) > 1
        for s, (_, widths) in enumerate(level.scales):
            members = torch.from_numpy(next(each).astype(np.int64))
            rows = p[at[:, None, None], members] - centres[:, :, None]
            if x is not None:
                features = x[at[:, None, None], members]
                rows = torch.cat([features, rows] if several else [rows, features], -1)
            for j in range(len(widths)):
                inner = f"blocks.{s}.{j}" if several else f"s.{j}"
                sa = f"sa{number}." if several else f"sa{number}.mlp_"
                conv_at, bn_at = (
                    (f"{sa}conv_{inner}", f"{sa}bn_{inner}")
                    if several
                    else (f"{sa}conv{inner}", f"{sa}bn{inner}")
                )
                rows = conv(rows, state, conv_at, bn_at).relu()
            parts.append(rows.max(dim=2).values)
        p, x = centres, torch.cat(parts, -1)
    x, last = torch.cat([p, x], -1), len(config.levels) + 1
    for j in range(len(config.last)):
        x = conv(x, state, f"sa{last}.mlp_convs.{j}", f"sa{last}.mlp_bns.{j}").relu()
    return head(x.max(dim=1).values, state, len(config.head))


def head(x, state, depth):
    for number in range(1, depth + 1):
        x = conv(x, state, f"fc{number}", f"bn{number}").relu()
    return conv(x, state, f"fc{depth + 1}").numpy()


@pytest.mark.parametrize("text", [SSG, MSG])
def test_a_published_pointnet2_becomes_our_model_with_its_biases_folded_exactly(tmp_path, text):
    state, said = published_state(text), []
    levels = [level.replace("x", "x") for level in sizes(text, CLASSES).levels]
    near = ["/".join(part.split(":")[0] for part in level.split("/")) for level in levels]
    path = saved(tmp_path, state)
    model = import_checkpoint(path, DESCRIBED, levels=near, say=said.append)
    assert model.config.levels == sizes(text, CLASSES).levels and model.described == DESCRIBED
    points, groups = clouds(model.config)
    want = published_pointnet2(state, model.config, points, groups)
    assert_close(ours_in_float64(model, points, groups), want)
    assert "grouped as minipc does" in said[0] and "minipc eval" in said[0]


def test_a_factor_of_offsets_is_in_the_weights_that_published_code_reads(tmp_path):
    text = SSG.replace(":", "by8:", 1)
    model = lively(text)
    assert model.config.parsed[0].times == (8,)
    state = to_state_dict(model, biases=True)
    near = [level.split(":")[0].removesuffix("by8") for level in model.config.levels]
    again = import_checkpoint(saved(tmp_path, state), DESCRIBED, levels=near)
    assert again.config.parsed[0].times == (1,)
    points, groups = clouds(model.config)
    want = ours_in_float64(model, points, groups)
    np.testing.assert_array_equal(ours_in_float64(again, points, groups), want)
    assert_close(published_pointnet2(state, model.config, points, groups), want)


def test_a_fold_rounds_once(tmp_path):
    state = published_state(SSG, exact=False)
    model = import_checkpoint(saved(tmp_path, state), DESCRIBED)
    mean, bias = state["sa1.mlp_bns.0.running_mean"], state["sa1.mlp_convs.0.bias"]
    want = (mean.double() - bias.double()).float().numpy()
    np.testing.assert_array_equal(model.stats["level0.scale0.0.mean"], want)


def test_the_published_sizes_are_those_of_our_names(tmp_path):
    for text in ("pointnet2", "pointnet2-msg"):
        path = saved(tmp_path, to_state_dict(lively(text), biases=True))
        assert import_checkpoint(path, DESCRIBED).config == sizes(text, CLASSES)


def test_a_pointnet_without_t_nets_becomes_our_model_where_its_code_has_the_relu(tmp_path):
    state = published_state("8-16-32:12-10")
    path = saved(tmp_path, state)
    with pytest.raises(DataError, match="no ReLU before its maximum.*published_pointnet"):
        import_checkpoint(path, DESCRIBED)
    model = import_checkpoint(path, DESCRIBED, relu_before_max=True)
    points, groups = clouds(model.config)
    x = torch.from_numpy(points).double()
    for number in (1, 2, 3):
        x = conv(x, state, f"feat.conv{number}", f"feat.bn{number}").relu()
    assert_close(ours_in_float64(model, points, groups), head(x.max(dim=1).values, state, 2))


@pytest.mark.parametrize("wrap", ["model_state_dict", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_training_loops_wrap_around_a_state_is_taken_off(tmp_path, wrap, prefix):
    state = {prefix + name: value for name, value in published_state(SSG).items()}
    whole = {
        "epoch": 7,
        "instance_acc": np.mean([0.9, 1.0]),  # a scalar of NumPy, as published code saves it
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
        wrap: state,
    }
    path = saved(tmp_path, whole if wrap else state)
    found = read_checkpoint(path)
    assert found.keys() == published_state(SSG).keys()
    assert model_id(import_checkpoint(path, DESCRIBED)) == model_id(
        import_checkpoint(saved(tmp_path, published_state(SSG)), DESCRIBED)
    )


class Unsafe:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_a_file_of_which_torch_reads_no_state_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = (tmp_path / saved(tmp_path, published_state(SSG))).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    files = {
        "none.pth": "No such file",
        "cut.pth": "is damaged, or not of torch.save",
        "text.pth": "is damaged, or not of torch.save",
        "empty.pth": "torch.load reads no weights",
        saved(tmp_path, {"a": Unsafe()}, "runs.pth"): "neither a tensor nor a number",
        saved(tmp_path, torch.nn.Linear(2, 2), "whole.pth"): "Linear, which is neither",
        saved(tmp_path, torch.zeros(3), "tensor.pth"): "expected a state dict.*found a Tensor",
        saved(tmp_path, [1], "list.pth"): "found a list",
        saved(tmp_path, {"lr": 1.0}, "numbers.pth"): "found lr",
        saved(tmp_path, {"conv5.weight": torch.zeros(3, 3)}, "other.pth"): "expected the names of",
    }
    for path, says in files.items():
        with pytest.raises(DataError, match=says) as caught:
            import_checkpoint(path, DESCRIBED)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_no_model_of_ours_says_what_it_is(tmp_path):
    def refused(text, change, says, kind=DataError, **options):
        state = published_state(text)
        change(state)
        with pytest.raises(kind, match=says) as caught:
            import_checkpoint(saved(tmp_path, state), DESCRIBED, **options)
        assert "\n" not in str(caught.value)

    def put(name, value):
        return lambda state: state.update({name: value(state[name])})

    def wider(weight):
        return torch.cat([weight, weight], dim=1)

    first = "sa1.mlp_convs.0.weight"
    refused(SSG, put(first, wider), "reads 6 numbers a point")
    refused(SSG, put(first, torch.Tensor.half), "found torch.float16; convert")
    refused(SSG, lambda s: s.pop("sa2.mlp_bns.1.weight"), "misses sa2.mlp_bns.1.weight")
    refused(SSG, lambda s: s.pop("fc1.weight"), "misses .*fc1.weight")
    refused(SSG, lambda s: s.pop("sa2.mlp_convs.0.weight"), "misses sa2.mlp_convs.0.weight or")
    refused(SSG, put("fc3.weight", lambda x: x[:4]), "has 4 classes, but 5 class names")
    refused(SSG, put("bn2.running_var", lambda x: -x), "no negative variance")
    refused(SSG, put("fc3.bias", lambda x: x * np.nan), "fc3.bias holds NaN")
    refused(SSG, lambda s: s.update(fp1=torch.zeros(1)), "has foreign fp1")
    refused(SSG, lambda s: None, "of 1, 1 scales, got levels", UsageError, levels=["8/3/4", "4/3"])
    refused(SSG, lambda s: None, "expected levels such as", UsageError, levels=["x/3", "4/3"])
    three = "32/4:8,16/4:8,8/4:8,8:8"
    refused(three, lambda s: None, "not two of one or three; pass levels", UsageError)


# The PointNet of published code, with T-Nets


def with_t_nets(names=("stn", "fstn"), convs=(8, 16, 24), dense=(12, 10), t=(6, 10, 14, 8, 7)):
    """Return the state dict of a published PointNet, drawn at random."""
    rng, state = np.random.default_rng(1), {}

    def layer(name, i, o, norm=None, ones=(1,)):
        def put(name, shape, scale=1.0, more=0.0):
            value = more + scale * rng.standard_normal(shape)
            state[name] = torch.from_numpy(np.array(value, np.float32))

        put(f"{name}.weight", (o, i, *ones), i**-0.5)
        put(f"{name}.bias", (o,), 0.3)
        if norm:
            put(f"{norm}.weight", (o,), 0.3, 1.0)
            put(f"{norm}.bias", (o,), 0.3)
            put(f"{norm}.running_mean", (o,), 0.3)
            state[f"{norm}.running_var"] = torch.from_numpy(rng.random(o).astype(np.float32)) + 0.5
            state[f"{norm}.num_batches_tracked"] = torch.tensor(9)

    for name, side in (("stn", 3), ("fstn", convs[0])):
        if name in names:
            at = f"feat.{name}."
            for j, (i, o) in enumerate(zip((side, *t[:2]), t[:3], strict=True), 1):
                layer(f"{at}conv{j}", i, o, f"{at}bn{j}")
            layer(f"{at}fc1", t[2], t[3], f"{at}bn4", ())
            layer(f"{at}fc2", t[3], t[4], f"{at}bn5", ())
            layer(f"{at}fc3", t[4], side * side, None, ())
    for j, (i, o) in enumerate(zip((3, *convs[:2]), convs, strict=True), 1):
        layer(f"feat.conv{j}", i, o, f"feat.bn{j}")
    layer("fc1", convs[2], dense[0], "bn1", ())
    layer("fc2", *dense, "bn2", ())
    layer("fc3", dense[1], CLASSES, None, ())
    return state


def published_logits(state, points):
    """The published PointNet from its definition, in float64, on rows (B, N, C)."""

    def turned(x, at):
        if f"{at}conv1.weight" not in state:
            return x
        t = x
        for j in (1, 2, 3):
            t = conv(t, state, f"{at}conv{j}", f"{at}bn{j}").relu()
        t = t.max(dim=1).values
        t = conv(t, state, f"{at}fc1", f"{at}bn4").relu()
        t = conv(t, state, f"{at}fc2", f"{at}bn5").relu()
        side = x.shape[2]
        matrix = conv(t, state, f"{at}fc3").reshape(-1, side, side) + torch.eye(side)
        return torch.bmm(x, matrix)

    x = turned(torch.from_numpy(points).double(), "feat.stn.")
    x = conv(x, state, "feat.conv1", "feat.bn1").relu()
    x = turned(x, "feat.fstn.")
    x = conv(x, state, "feat.conv2", "feat.bn2").relu()
    x = conv(x, state, "feat.conv3", "feat.bn3")  # no ReLU
    return head(x.max(dim=1).values, state, 2)


@pytest.mark.parametrize("names", [(), ("stn",), ("stn", "fstn")])
def test_a_published_pointnet_is_a_module_that_computes_what_its_code_computes(tmp_path, names):
    state = with_t_nets(names)
    module = published_pointnet(saved(tmp_path, {"model_state_dict": state}))
    assert not module.training
    points = np.random.default_rng(2).standard_normal((4, 30, 3)).astype(np.float32)
    with torch.no_grad():
        got = module.double()(torch.from_numpy(points).double()).numpy()
    assert_close(got, published_logits(state, points))


def test_a_checkpoint_with_t_nets_names_the_way_as_a_teacher(tmp_path):
    path = saved(tmp_path, with_t_nets())
    with pytest.raises(DataError, match="has T-Nets.*record_module.published_pointnet") as caught:
        import_checkpoint(path, DESCRIBED, relu_before_max=True)
    assert "\n" not in str(caught.value)


def test_a_published_pointnet_that_is_none_is_one_line(tmp_path):
    def refused(change, says):
        state = with_t_nets()
        change(state)
        with pytest.raises(DataError, match=says) as caught:
            published_pointnet(saved(tmp_path, state))
        assert "\n" not in str(caught.value)

    def put(name, value):
        return lambda state: state.update({name: value(state[name])})

    refused(lambda s: s.pop("feat.stn.bn2.weight"), "no published PointNet.*stn.bn2.weight")
    refused(lambda s: s.pop("fc3.weight"), "expected feat.conv1 to 3 and fc1 to 3")
    refused(lambda s: s.update(extra=torch.zeros(2)), "extra")
    refused(put("feat.conv1.weight", lambda x: torch.cat([x, x], 1)), "of 3 coordinates")
    refused(put("feat.stn.fc3.weight", lambda x: x[:8]), "feat.stn.fc3 has 8 outputs, .* 3 x 3")
    refused(put("fc1.weight", torch.Tensor.half), "fc1.weight: .* found torch.float16")
    refused(put("fc1.weight", lambda x: x.to("meta")), "fc1.weight: expected .* with values")
    refused(put("fc1.weight", lambda x: 0), "fc1.weight")
    refused(put("bn1.running_var", lambda x: -x), "negative variance")
    refused(put("fc1.bias", lambda x: x / 0), "holds NaN, infinite")
