"""The seam between models and all else, by a second model of two entries (toy_model.py)."""

import numpy as np
import pytest

from minipc.audit import checks, problems, rules
from minipc.errors import DataError, UsageError
from minipc.models.file import model_id, new_model, read_model, write_model
from minipc.models.inputs import Inputs
from minipc.models.model import MODELS, net, sizes
from minipc.models.pointnet import ModelConfig
from minipc.nn.engine import ENGINES, backward
from minipc.nn.fast import fused
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig
from minipc.nn.params import initialise
from minipc.storage import hdf5
from reference_tests.mathematics import toy_model


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", toy_model)
    return sizes("toy", 3)


def problem(config, dtype, clouds=5, points=16):
    """Return params of gains of both signs, Inputs, a mask and dlogits."""
    rng = np.random.default_rng(3)
    params = initialise(toy_model.param_specs(config), rng, np.float64)
    for name in params:
        if name.endswith("gamma"):
            params[name] = rng.uniform(-1.5, 1.5, params[name].shape)
    x = rng.standard_normal((clouds, points, 3))
    groups = toy_model.prepare(config, x)
    mask = (rng.random((clouds, config.outer)) < 0.75) / 0.75
    dlogits = rng.standard_normal((clouds, config.classes))
    cast = {name: value.astype(dtype) for name, value in params.items()}
    return cast, Inputs((1.3 * x).astype(dtype), groups), mask.astype(dtype), dlogits.astype(dtype)


def gradients(config, params, inputs, mask, dlogits, engine, work=None):
    z, batch, tape = toy_model.forward_train(params, inputs, config, mask, engine, work)
    grads, d = backward(dlogits, tape)
    points = fused.input_gradient(d) if isinstance(d, fused.Gradient) else d
    return z.copy(), batch, {name: value.copy() for name, value in grads.items()} | {"x": points}


def test_both_engines_agree_on_a_model_of_two_entries(toy):
    params, inputs, mask, dlogits = problem(toy, np.float64)
    z, batch, grads = gradients(toy, params, inputs, mask, dlogits, "textbook")
    for threads in (1, 3):
        work = Workspace(threads=threads)
        for _ in range(2):  # the second in buffers that the first has used
            found, moments, fast = gradients(toy, params, inputs, mask, dlogits, "fused", work)
            # sums of at most 80 products each, a few layers deep: far above 80 * 2^-52
            np.testing.assert_allclose(found, z, rtol=1e-11, atol=1e-12)
            for name in grads:
                np.testing.assert_allclose(fast[name], grads[name], rtol=1e-9, atol=1e-11)
            for name in batch:
                np.testing.assert_allclose(moments[name].var, batch[name].var, rtol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_through_two_entries_are_central_differences(toy, engine):
    params, inputs, mask, dlogits = problem(toy, np.float64)
    _, _, grads = gradients(toy, params, inputs, mask, dlogits, engine)
    rng, h = np.random.default_rng(0), 1e-6

    def value(params):
        z, _, _ = toy_model.forward_train(params, inputs, toy, mask, engine)
        return float((dlogits * z).sum())

    for name in params:
        direction = rng.standard_normal(params[name].shape)
        up, down = (params | {name: params[name] + sign * h * direction} for sign in (1, -1))
        slope = (value(up) - value(down)) / (2 * h)
        # h^2 of the third derivative and 2^-52 / h of rounding are both near 1e-9
        assert slope == pytest.approx(float((grads[name] * direction).sum()), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("entry", ["points", "features"])
def test_a_tape_of_two_entries_is_read_once_and_before_either_is_entered_again(toy, entry):
    params, inputs, mask, dlogits = problem(toy, np.float64)
    work = Workspace()
    _, _, tape = toy_model.forward_train(params, inputs, toy, mask, "fused", work)
    fused.to_tower(np.ones((5, 4, 3 if entry == "points" else 5)), (), work, entry)
    with pytest.raises(DataError, match="a later forward wrote over it"):
        backward(dlogits, tape)


def test_evaluation_takes_groups_and_both_engines_agree(toy):
    params, inputs, _, _ = problem(toy, np.float64)
    stats = toy_model.initial_stats(toy, np.float64)
    fast, slow = (toy_model.evaluator(params, stats, toy, engine)(inputs) for engine in ENGINES)
    np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)
    third = Inputs(inputs.points[2:3], (inputs.groups[0][2:3],))
    alone = toy_model.evaluator(params, stats, toy)(third)
    np.testing.assert_array_equal(
        alone, toy_model.evaluator(params, stats, toy)(inputs)[2:3], strict=True
    )


def test_a_model_without_its_groups_is_refused_with_the_remedy(toy):
    params, inputs, _, _ = problem(toy, np.float64)
    with pytest.raises(DataError, match=r"reads points and 1 groups, got 0; make them by prepare"):
        toy_model.forward_train(params, inputs.points, toy)


def test_a_name_finds_its_model_and_anything_else_is_widths(toy):
    assert sizes("toy-wide", 7) == toy_model.ModelConfig(4, 12, 20, 7)
    assert sizes("tiny", 7) == ModelConfig((16, 16, 32, 64), (32,), 7)
    assert sizes("5-6:7", 7) == ModelConfig((5, 6), (7,), 7)
    with pytest.raises(UsageError, match="model: expected"):
        sizes("toys", 7)
    assert net(toy) is toy_model and net(sizes("tiny", 7)) is MODELS["pointnet"]


DESCRIBED = {"class_names": ["a", "b", "c"], "up_axis": "z", "normalisation": "none"}


def test_a_model_file_names_its_architecture(toy, tmp_path, monkeypatch):
    model, path = new_model(toy, DESCRIBED, 0), str(tmp_path / "model.h5")
    write_model(path, model)
    found = read_model(path)
    assert found.config == toy and model_id(found) == model_id(model)
    monkeypatch.delitem(MODELS, "toy")
    with pytest.raises(DataError, match="architecture 'toy' is not known here; expected pointnet"):
        read_model(path)


@pytest.mark.parametrize("architecture", [[], {}, 7, None, "pointnet "])
def test_an_architecture_that_is_no_name_of_a_model_is_refused(
    toy, tmp_path, monkeypatch, architecture
):
    path, right = str(tmp_path / "model.h5"), hdf5.write_meta
    monkeypatch.setattr(
        hdf5, "write_meta", lambda file, meta: right(file, meta | {"architecture": architecture})
    )
    write_model(path, new_model(toy, DESCRIBED, 0))
    with pytest.raises(DataError, match="is not known here"):
        read_model(path)


def test_the_architecture_is_part_of_the_identity_of_every_model_but_pointnet(toy, monkeypatch):
    model = new_model(toy, DESCRIBED, 0)
    before = model_id(model)
    monkeypatch.setattr(toy_model.ModelConfig, "architecture", "other")
    assert model_id(model) != before


@pytest.mark.parametrize("engine", ENGINES)
def test_the_audit_checks_a_second_model_by_its_name_alone(toy, engine):
    makers = (
        problems.whole_step("toy-wide", engine, LossConfig(0.5, 0.2)),
        rules.engines("toy-wide"),
    )
    found = checks.check(checks.Line("toy", makers[0], (makers[1],)))
    assert found.passed, found.worst
    assert found.gradients >= 18 and found.facts > 10  # two directions of eight parameters and x


def test_the_audit_finds_a_broken_second_model(toy, monkeypatch):
    right = toy_model._add_back
    monkeypatch.setattr(toy_model, "_add_back", lambda d, inputs: 1.01 * right(d, inputs))
    make = problems.whole_step("toy-wide", "textbook", LossConfig(0.5, 0.2))
    found = checks.check(checks.Line("toy", make))
    assert not found.passed and "points" in found.worst
