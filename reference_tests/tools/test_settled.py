"""What the tool measures is what `--average last --average-epochs 1` keeps, bit for bit."""

import numpy as np

from minipc.models.file import read_model
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.settings import TrainConfig
from minipc.verbs.train import train
from reference_tests.tools import settled


def test_settled_figures_are_those_of_an_average_of_one_epoch(data):
    config = {"epochs": 2, "batch_size": 10, "warmup_steps": 2}
    alone = {"data": data, "labels_only": True}
    model, loss = "4,8/4by2:6+,8+mean:6", LossConfig(**LABELS_ALONE)
    train(model, loss, TrainConfig(**config), out="run", **alone)
    train(model, loss, TrainConfig(**config, average="last", average_epochs=1), out="kept", **alone)
    as_is, anew = settled.figures("run")
    assert list(settled.figures("kept")) == [anew, anew] and anew != as_is
    run, kept = (read_model(f"{folder}/model.h5") for folder in ("run", "kept"))
    for name, array in run.params.items():
        np.testing.assert_array_equal(array, kept.params[name], name)
    assert any((run.stats[name] != kept.stats[name]).any() for name in run.stats)
