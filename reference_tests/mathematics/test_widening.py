"""Networks inside a wider one: their slices, the gradients that add, widths.

That an index is right is seen by silence: channels outside of the slice are silenced, gamma = beta
= 0, so the large network must compute what the small one does, whatever its other weights are.  No
test repeats how an index is made.
"""

import numpy as np
import pytest

from minipc.errors import DataError
from minipc.models.inputs import Inputs
from minipc.models.model import MODELS, net, sizes
from minipc.nn.engine import ENGINES, backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.gradcheck import check_gradients
from minipc.nn.params import initialise
from minipc.nn.widening import (
    Channels,
    add,
    candidates,
    draw_widths,
    index_of,
    leading,
    put,
    take,
)
from minipc.streams import stream
from reference_tests.mathematics import toy_model

TEXTS = (  # what lies side by side: nothing; offset and features; scales; maximum and mean
    "5-6-7:6",
    "4-5",
    "4,16/5by8:6,6/4by2:5+,8:5",
    "16/9:6-5-4/3by4:4/0.5x5by2:6+,6/3:8/0.9x4by2:4-6+,7+mean:6-5",
    "16/5:6,8+mean",
    "toy",
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", toy_model)


def networks(text, seed=0):
    """Return the config of a text, one in which every width grows, and the index of the first."""
    small = sizes(text, 4)
    rng = np.random.default_rng(seed)
    widths = net(small).widths(small)
    large = net(small).with_widths(small, [int(w + rng.integers(1, 5)) for w in widths])
    return small, large, index_of(net(small).channels(small), net(small).channels(large))


def problem(config, dtype=np.float64, clouds=5, points=40):
    """Return params of gains of both signs, statistics, Inputs and dlogits."""
    rng = np.random.default_rng(3)
    params = initialise(net(config).param_specs(config), rng, dtype)
    for name, value in params.items():
        if name.endswith(("gamma", "beta")):
            params[name] = rng.uniform(-1.5, 1.5, value.shape).astype(dtype)
    stats = {
        name: (value + rng.random(value.shape)).astype(dtype)
        for name, value in net(config).initial_stats(config).items()
    }
    x = rng.standard_normal((clouds, points, 3))
    inputs = Inputs((1.3 * x).astype(dtype), net(config).prepare(config, x))
    return params, stats, inputs, rng.standard_normal((clouds, config.classes)).astype(dtype)


def results(config, params, inputs, dlogits, engine, work=None):
    z, batch, tape = net(config).forward_train(params, inputs, config, None, engine, work)
    grads, _ = backward(dlogits, tape)
    return z.copy(), {name: value.copy() for name, value in grads.items()}


def columns(index, stats):
    """Return the slices of running statistics: they have the channels of gamma."""
    return {name: value[index[name.rpartition(".")[0] + ".gamma"]] for name, value in stats.items()}


def silenced(params, index):
    """Return params with gamma = beta = 0 outside of the slice."""
    slices = {name: value for name, value in take(params, index).items() if name[-2:] != ".W"}
    quiet = {
        name: value * 0 if name.endswith(("gamma", "beta")) else value.copy()
        for name, value in params.items()
    }
    put(quiet, slices, index)
    return quiet


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_large_network_silent_outside_of_a_slice_is_the_network_of_the_slice(text, engine):
    small, large, index = networks(text)
    params, stats, inputs, dlogits = problem(large)
    quiet, slices = silenced(params, index), take(params, index)
    z, grads = results(small, slices, inputs, dlogits, engine)
    wide, wide_grads = results(large, quiet, inputs, dlogits, engine)
    # sums of at most 200 products, a few layers deep, in another order: far above 200 * 2^-52
    np.testing.assert_allclose(wide, z, rtol=1e-9, atol=1e-10)
    inside = take(wide_grads, index)
    for name, value in grads.items():
        np.testing.assert_allclose(inside[name], value, rtol=1e-8, atol=1e-9, err_msg=name)
    evaluated = net(small).forward_eval(slices, columns(index, stats), inputs, small, engine)
    silent = net(large).forward_eval(quiet, stats, inputs, large, engine)
    np.testing.assert_allclose(silent, evaluated, rtol=1e-9, atol=1e-10)


def test_leading_channels_of_the_whole_input_are_another_network():
    small, large, index = networks(TEXTS[3])
    params, _, inputs, dlogits = problem(large)
    parts = net(small).channels(small)
    naive = index_of(
        {name: Channels((sum(c.inputs),), (sum(c.outputs),)) for name, c in parts.items()},
        {
            name: Channels((sum(c.inputs),), (sum(c.outputs),))
            for name, c in net(large).channels(large).items()
        },
    )
    z, _ = results(small, take(params, naive), inputs, dlogits, "textbook")
    wide, _ = results(large, silenced(params, naive), inputs, dlogits, "textbook")
    assert abs(z - wide).max() > 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_slice_computes_the_bits_of_a_network_built_apart(text, engine):
    small, large, index = networks(text)
    apart, stats, inputs, dlogits = problem(small, np.float32)
    params, wide_stats, *_ = problem(large, np.float32)
    put(params, apart, index)
    slices = take(params, index)
    z, grads = results(small, apart, inputs, dlogits, engine)
    work = Workspace()
    for config, some in ((small, slices), (large, params), (small, slices)):
        found, of_slices = results(config, some, inputs, dlogits, engine, work)
    np.testing.assert_array_equal(found, z, strict=True)
    for name, value in grads.items():
        np.testing.assert_array_equal(of_slices[name], value, err_msg=name, strict=True)
    one, other = (
        net(small).forward_eval(some, stats, inputs, small, engine) for some in (apart, slices)
    )
    np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("texts", [("5-9-7:6", "9-5-7:6"), ("16/5:6-9-8,8:5", "16/5:9-6-8,8:5")])
def test_widths_of_the_same_sum_may_follow_each_other_in_the_same_buffers(texts):
    work, problems = Workspace(), {text: problem(sizes(text, 4), np.float32) for text in texts}
    for text in (*texts, *texts):
        params, _, inputs, dlogits = problems[text]
        z, grads = results(sizes(text, 4), params, inputs, dlogits, "fused", work)
        alone, of_alone = results(sizes(text, 4), params, inputs, dlogits, "fused")
        np.testing.assert_array_equal(z, alone)
        for name, value in grads.items():
            np.testing.assert_array_equal(value, of_alone[name], err_msg=name)


@pytest.mark.parametrize("text", TEXTS)
def test_slices_are_contiguous_copies_of_every_parameter(text):
    small, large, index = networks(text)
    params, *_ = problem(large)
    slices = take(params, index)
    specs = net(small).param_specs(small)
    assert list(slices) == list(specs)
    for name, value in slices.items():
        assert value.shape == specs[name].shape and value.flags.c_contiguous
        assert not np.shares_memory(value, params[name])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[3]])
def test_the_gradient_of_the_sum_of_two_losses_is_the_sum_in_the_slices(text, engine):
    small, middle, _ = networks(text, seed=1)
    channels, widths = net(small).channels, net(small).widths
    large = net(small).with_widths(small, [width + 2 for width in widths(middle)])
    inside = [(c, index_of(channels(c), channels(large))) for c in (small, middle)]
    params, _, inputs, dlogits = problem(large)

    def value(params):
        return sum(
            float((weight * dlogits * z).sum())
            for weight, (config, index) in zip((1, 3), inside, strict=True)
            for z, _ in [results(config, take(params, index), inputs, dlogits, engine)]
        )

    total = {name: np.zeros_like(array) for name, array in params.items()}
    for weight, (config, index) in zip((1, 3), inside, strict=True):
        _, grads = results(config, take(params, index), inputs, weight * dlogits, engine)
        add(total, grads, index)
    for report in check_gradients(value, params, total, np.random.default_rng(0)):
        # rounding / step and step^2 are both near 1e-10, relative to gradients of order 1
        assert report.error < 1e-5, report
    outside = {name: np.ones_like(array) for name, array in params.items()}
    put(outside, take(total, inside[1][1]), inside[1][1])
    for name, array in total.items():
        assert (array[outside[name] == 1] == 0).all(), name


def test_the_leading_channels_are_those_of_each_part():
    np.testing.assert_array_equal(leading((3, 2), (3, 5)), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(leading((2, 2), (5, 5)), [0, 1, 5, 6])
    np.testing.assert_array_equal(leading((1, 2, 1), (2, 2, 3)), [0, 2, 3, 4])


def test_a_network_that_is_no_wider_is_refused():
    with pytest.raises(DataError, match=r"channels \(3, 4\) do not fit in \(3, 2\); take a wider"):
        leading((3, 4), (3, 2))
    with pytest.raises(DataError, match="do not fit"):
        leading((3,), (3, 2))
    some = {"a": Channels((3,), (4,))}
    with pytest.raises(DataError, match="other layers"):
        index_of(some, some | {"b": Channels((4,), (4,))})


def test_widths_are_spaced_evenly_from_the_width_to_the_factor():
    assert candidates(16, 3, 2) == [16, 32, 48]
    assert candidates(5, 2, 4) == [5, 6, 8, 9, 10]  # 6.25, 7.5, 8.75
    assert candidates(7, 1.5, 1) == [7, 11]  # 10.5


def test_widths_are_drawn_again_the_same_and_for_each_layer_alone():
    widths = (4, 8, 16)
    drawn = [draw_widths(widths, 3, 2, stream(0, "widths", 1, step)) for step in range(900)]
    assert drawn == [draw_widths(widths, 3, 2, stream(0, "widths", 1, step)) for step in range(900)]
    assert drawn != [draw_widths(widths, 3, 2, stream(1, "widths", 1, step)) for step in range(900)]
    choices, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(choices) == 27  # every combination of three widths in each of three layers
    # each is binomial, 900 / 27 = 33.3 on average: five standard deviations are 28.3
    assert counts.min() >= 5 and counts.max() <= 61


@pytest.mark.parametrize("text", TEXTS)
def test_widths_name_every_hidden_width_and_leave_all_else(text):
    config = sizes(text, 4)
    module = net(config)
    assert module.with_widths(config, module.widths(config)) == config
    doubled = module.with_widths(config, [2 * width for width in module.widths(config)])
    assert module.widths(doubled) == tuple(2 * width for width in module.widths(config))
    assert module.grouping(doubled) == module.grouping(config)
    specs, wide = module.param_specs(config), module.param_specs(doubled)
    for name, channels in module.channels(doubled).items():
        assert wide[f"{name}.W"].shape == (sum(channels.inputs), sum(channels.outputs))
    index = index_of(module.channels(config), module.channels(doubled))
    assert list(specs) == list(wide) and specs.keys() <= index.keys()
