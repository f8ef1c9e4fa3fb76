"""Network augmentation in training: what a step adds, what is exported, resume, words."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minipc.data.augment import AugmentConfig, apply
from minipc.distil.augmentation import NetworkAugmentation, largest
from minipc.distil.averaging import averaging
from minipc.distil.self_target import Ema, Snapshot
from minipc.distil.train import Task, TrainConfig, drawn_views, train
from minipc.errors import DataError
from minipc.models.file import new_model
from minipc.models.model import net, sizes
from minipc.models.pointnet import ModelConfig, forward_train
from minipc.nn.engine import ENGINES, backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from minipc.nn.widening import index_of, take
from minipc.runs.config import read_config
from minipc.streams import stream
from reference_tests.commands.test_train import LABELS, assert_same_model, blobs, run, teacher_views

MODEL = ModelConfig((8, 8, 16), (8,), 3)
AUGMENTED = dict(augment_width=3.0, augment_share=1.0)


@pytest.fixture(scope="module")
def splits():
    from minipc.data.clouds import Splits

    return Splits(blobs(70, 0), blobs(40, 1))


def config_of(**changes):
    steps = {"epochs": 4, "batch_size": 16, "lr": 1e-2, "warmup_steps": 4} | AUGMENTED
    return TrainConfig(**steps | changes)


def epochs_of(splits, config, loss=LABELS, views=None, **more):
    views = views or drawn_views(splits.train, config.seed, AugmentConfig())
    return list(train(splits, MODEL, loss, config, views, threads=1, **more))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_follows_the_sum_of_the_gradients_of_the_model_and_of_one_widened_network(
    splits, engine
):
    config = config_of(engine=engine, optimiser="sgd", weight_decay=0.0)
    clouds, work = splits.train, Workspace()
    augmentation = NetworkAugmentation(MODEL, config, np, 1)
    task = Task(
        clouds.points.swapaxes(1, 2),
        clouds.labels,
        (),
        MODEL,
        LossConfig(0.5),
        config,
        None,
        work,
        np,
        widening=augmentation,
    )
    state = task.start(new_model(MODEL, clouds.described, 0))
    before = {name: value.copy() for name, value in state.params.items()}
    view, v = teacher_views(splits)(0)
    rows = np.arange(20, 36)
    after, _ = task.step(state, rows, view, v, None, 0.1, (0, 1))

    # by hand, each network alone: the two are those of this step
    wide = augmentation.drawn(0, 1)
    assert MODEL != wide != augmentation.largest
    x = apply(clouds.points[rows], type(view)(view.scale[rows], view.shift[rows]))
    y = smooth_labels(clouds.labels[rows], 3, 0.0, np.float32)
    expected = {name: value.copy() for name, value in before.items()}
    for model in (MODEL, wide):
        index = index_of(net(model).channels(model), net(model).channels(augmentation.largest))
        z, _, tape = forward_train(take(before, index), x, model, None, engine)
        _, cache = loss_forward(z, y, v[rows].astype(np.float32), None, None, LossConfig(0.5))
        for name, gradient in backward(loss_backward(cache), tape)[0].items():
            expected[name][index[name]] -= np.float32(0.1) * gradient
    for name, value in after.params.items():
        # one rounding of the sum, and another order of rows: a few of float32's 2^-24
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_exported_model_is_the_narrow_one_and_begins_as_without_augmentation(splits):
    config = config_of(epochs=1)
    augmentation = NetworkAugmentation(MODEL, config, np, 1)
    assert augmentation.largest == largest(MODEL, config) == ModelConfig((24, 24, 48), (24,), 3)
    model = new_model(MODEL, splits.train.described, 0)
    large = augmentation.start(model.params)
    for name, value in take(large, augmentation.own).items():
        np.testing.assert_array_equal(value, model.params[name], strict=True)
    (last,) = epochs_of(splits, config)
    assert last.model.config == MODEL
    assert {n: v.shape for n, v in last.model.params.items()} == {
        n: v.shape for n, v in model.params.items()
    }
    assert {n: v.shape for n, v in last.params.items()} == {n: v.shape for n, v in large.items()}
    for name, value in take(last.params, augmentation.own).items():
        np.testing.assert_array_equal(last.model.params[name], value, strict=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_are_those_of_the_exported_weights_on_the_clouds_of_the_epoch(splits, engine):
    """The first layer's input does not depend on weights, so its moments have a closed form."""
    config = config_of(epochs=2, engine=engine)
    last = epochs_of(splits, config)[-1]
    view, _ = drawn_views(splits.train, 0, AugmentConfig())(1)
    order = stream(0, "shuffle", 1).permutation(70)[:64]  # four whole batches
    x = apply(splits.train.points, view)[order].reshape(-1, 3).astype(np.float64)
    y = x @ last.model.params["shared0.W"].astype(np.float64)
    # float32 batches of 384 rows, 2^-24 each, and cancellation of means near zero
    np.testing.assert_allclose(last.model.stats["shared0.mean"], y.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(last.model.stats["shared0.var"], y.var(axis=0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_widths_are_drawn_again_in_each_step_or_in_each_epoch(every):
    augmentation = NetworkAugmentation(MODEL, config_of(augment_every=every), np, 1)
    drawn = [[augmentation.drawn(epoch, step) for step in range(9)] for epoch in range(9)]
    within = [len(set(row)) for row in drawn]
    assert within == [1] * 9 if every == "epoch" else min(within) > 1
    assert len({row[0] for row in drawn}) > 1
    again = NetworkAugmentation(MODEL, config_of(augment_every=every), np, 1)
    assert drawn == [[again.drawn(epoch, step) for step in range(9)] for epoch in range(9)]


def test_the_last_epochs_train_the_model_alone(splits, monkeypatch):
    widened, right = [], NetworkAugmentation.drawn

    def drawn(self, epoch, step):
        widened.append((epoch, step))
        return right(self, epoch, step)

    monkeypatch.setattr(NetworkAugmentation, "drawn", drawn)
    epochs_of(splits, config_of(augment_share=0.5))
    assert widened == [(epoch, step) for epoch in (0, 1) for step in range(4)]
    assert not TrainConfig(epochs=4).augments(0)


def assert_same_epochs(some, others):
    """Every array that Epochs hold is the same, bit for bit."""
    for one, other in zip(some, others, strict=True):
        assert_same_model(one.model, other.model)
        np.testing.assert_array_equal(one.test_logits, other.test_logits)
        for kind in ("params", "stats", "moments", "average"):
            arrays, same = getattr(one, kind), getattr(other, kind)
            assert list(arrays) == list(same), kind
            for name, value in arrays.items():
                np.testing.assert_array_equal(value, same[name], err_msg=name, strict=True)


TARGETS = {
    "none": lambda: None,
    "snapshot": lambda: Snapshot(lambda params, x: forward_train(params, x, MODEL)[0]),
    "ema": lambda: Ema(lambda params, x: forward_train(params, x, MODEL)[0], 0.9),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_resumed_run_equals_one_that_was_never_stopped(splits, target, optimiser):
    config = config_of(optimiser=optimiser, augment_share=0.75)
    loss = LossConfig(0.9, 0.0 if target == "none" else 0.2)
    views = teacher_views(splits)
    whole = epochs_of(splits, config, loss, views, self_target=TARGETS[target]())
    half = whole[1].checkpoint("x")
    parts = epochs_of(splits, config, loss, views, self_target=TARGETS[target](), resume=half)
    assert_same_epochs(whole[1:], parts)


def averages(epochs, config):
    """Return the averages after each Epoch, taken of the models as if nothing were wider."""
    average = averaging(config)
    for epoch in epochs:
        average.epoch_ended(epoch.model.params)
        yield average.params()


def test_averaged_weights_are_those_of_the_model_inside_the_wider_network(splits):
    config = config_of(average="last", average_epochs=2)
    live = epochs_of(splits, replace(config, average="none"))
    averaged = epochs_of(splits, config)
    for one, other, mean in zip(live, averaged, averages(live, config), strict=True):
        for name, value in one.params.items():  # the average has no part in the training
            np.testing.assert_array_equal(other.params[name], value, err_msg=name)
        assert other.model.config == MODEL and list(other.model.params) == list(mean)
        for name, value in mean.items():
            np.testing.assert_array_equal(other.model.params[name], value, err_msg=name)
    first = averaged[0]  # the mean of one epoch
    for name, value in live[0].model.stats.items():
        np.testing.assert_array_equal(first.model.stats[name], value, err_msg=name)
        assert (averaged[3].model.stats[name] != live[3].model.stats[name]).any()


@pytest.mark.parametrize("average", ["ema", "last"])
def test_an_averaged_run_of_wider_networks_resumed_equals_one_never_stopped(splits, average):
    config = config_of(average=average, average_decay=0.9, average_epochs=2, augment_share=0.75)
    whole = epochs_of(splits, config)
    parts = epochs_of(splits, config, resume=whole[1].checkpoint("x"))
    assert_same_epochs(whole[1:], parts)


def test_a_run_begins_inside_wider_networks_from_given_weights(splits):
    begun = epochs_of(splits, config_of(epochs=1, seed=5))[0].model
    config = config_of(epochs=1, lr=1e-30)
    (last,) = epochs_of(splits, config, init=begun)
    for name, value in begun.params.items():
        # a step of 1e-30 changes no float32 weight but one that is zero
        np.testing.assert_allclose(last.model.params[name], value, rtol=0, atol=1e-25)


def test_a_checkpoint_without_augmentation_is_refused(splits):
    one = epochs_of(splits, config_of(augment_width=1.0, epochs=2))[0].checkpoint("x")
    with pytest.raises(DataError, match="holds other layers or moments"):
        epochs_of(splits, config_of(epochs=2), resume=one)


def test_a_model_learns_the_easy_classes_inside_wider_networks(splits):
    last = run(splits, epochs=8, **AUGMENTED)
    # chance is 1/3 of 40 clouds, give or take 0.075: four of these more are 0.63
    assert last.rows[-1]["test_accuracy"] > 0.63
    assert set(last.rows[-1]) == set(run(splits, epochs=1).rows[-1])


def test_augmentation_runs_on_the_device_and_agrees_with_the_host(splits, fake_cupy):
    host, device = (
        run(splits, epochs=2, engine="textbook", xp=xp, **AUGMENTED) for xp in (np, fake_cupy)
    )
    assert_same_model(host.model, device.model)
    assert all(isinstance(value, np.ndarray) for value in device.params.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_of_neighbourhoods_learns_inside_wider_ones(splits, engine):
    model = sizes("4,12/5:6,6/4:5/3:4+,8+mean:5", 3)
    last = run(splits, model=model, epochs=1, engine=engine, **AUGMENTED)
    assert last.model.config == model and np.isfinite(last.test_logits).all()
    assert last.params["head0.W"].shape == (2 * 24, 15)
    assert last.model.params["head0.W"].shape == (2 * 8, 5)
    mean = last.params["head0.W"][24 : 24 + 8, :5]  # the weights of the mean
    np.testing.assert_array_equal(last.model.params["head0.W"][8:], mean)


def test_threads_do_not_change_the_bits(splits):
    one, two = (run(splits, epochs=1, threads=threads, **AUGMENTED) for threads in (1, 2))
    assert_same_model(one.model, two.model)


TRAIN = ("train", "clouds.h5", "--labels-only", "--model", "8-16:8", "--epochs", 2, "--quiet")


def test_the_command_writes_augmentation_into_its_run_and_resume_insists_on_it(say, data, folder):
    trained = say(*TRAIN, "--augment-width", 3, "--stop-after", 1, "--out", "run")
    assert trained[0] == 0, trained
    with open("run/run.json") as file:
        training = json.load(file)["training"]
    assert training["augment_width"] == 3 and training["augment_share"] == 0.5
    code, *told = say("train", "--resume", "--out", "run", "--augment-width", 2)
    assert code == 2 and "augment width is 3.0 there and 2.0 here" in " ".join(told)
    assert say("train", "--resume", "--out", "run", "--quiet")[0] == 0


def test_resume_refuses_options_of_what_the_run_does_not_have(say, data, folder):
    assert say(*TRAIN, "--stop-after", 1, "--out", "run")[0] == 0
    for option in (("--self-target", "ema"), ("--self-every", 3), ("--ema-decay", 0.5)):
        code, *told = say("train", "--resume", "--out", "run", *option)
        said = " ".join(option[0].strip("-").split("-"))
        assert code == 2 and "is a run without self target" in " ".join(told)
        assert f"has no use for {said}" in " ".join(told), told
    assert say("train", "--resume", "--out", "run", "--quiet")[0] == 0


def test_the_other_options_have_no_use_alone(say, data, folder):
    code, *told = say(*TRAIN, "--augment-steps", 3)
    assert code == 2 and "--augment-steps has no use without --augment-width" in " ".join(told)


def test_a_run_of_before_the_settings_is_read_as_one_without(say, data, folder):
    assert say(*TRAIN, "--out", "run")[0] == 0
    with open("run/run.json") as file:
        described = json.load(file)
    config = read_config("run")
    for name in [name for name in described["training"] if name.startswith("augment_")]:
        del described["training"][name]
    with open("run/run.json", "w") as file:
        json.dump(described, file)
    old = read_config("run")
    assert replace(old, provenance={}) == replace(config, provenance={})
    assert old.training.augment_width == 1
