"""The last figure of finished runs, without the noise of running statistics.

Batch norm's running statistics follow the last few batches (momentum 0.1).  So a test accuracy
moves from epoch to epoch, also where the weights no longer do.  Here each run's model is measured
as it is, and with statistics estimated anew (M23) over the view and the batches of its last epoch:
what `--average last --average-epochs 1` would have kept of the same training.

python -m reference_tests.tools.settled RUN...        # in the folder of its data and its record
"""

import os
import sys
from contextlib import ExitStack

import numpy as np

from minipc.data.augment import Params, apply
from minipc.data.groups_file import kept_groups
from minipc.distil.evaluate import metrics, predict
from minipc.distil.statistics import estimate
from minipc.distil.train import split_rows
from minipc.models.file import read_model
from minipc.models.inputs import Inputs
from minipc.record.reader import RecordReader
from minipc.runs.config import read_config
from minipc.runs.folder import model_path
from minipc.streams import stream
from minipc.verbs.find import find_data
from minipc.verbs.train import prepare


def settled(model, run, groups):
    """Return the statistics of a Model over the last epoch of a Prepared run that made it.

    groups: those of the training clouds.
    """
    training, clouds = run.config.training, run.splits.train
    last = training.epochs - 1
    learnt, _ = split_rows(clouds.labels, training)
    order = learnt[stream(training.seed, "shuffle", last).permutation(len(learnt))]
    augmentation, _ = run.views(last)

    def batches():
        for step in range(training.steps_per_epoch(len(order))):
            rows = order[step * training.batch_size : (step + 1) * training.batch_size]
            points = apply(clouds.points[rows], Params(*(value[rows] for value in augmentation)))
            yield Inputs(points, tuple(group[rows] for group in groups))

    return estimate(model.params, model.config, batches(), training.engine)


def figures(folder):
    """Yield accuracy and NLL of a run's model on its test clouds: as it is, then settled."""
    config, place = read_config(folder), os.path.join(folder, "run.json")
    with ExitStack() as stack:
        reader = config.record and stack.enter_context(RecordReader(config.record.file))
        data, splits = find_data(None, config.data, place, reader=reader)
        run = prepare(folder, config, data, splits, reader, None)
        model = read_model(model_path(folder))
        groups, of_test = (kept_groups(model.config, split, data) for split in splits)
        for stats in (model.stats, settled(model, run, groups)):
            logits = predict(model._replace(stats=stats), splits.test.points, np, 1, groups=of_test)
            found = metrics(splits.test.labels, logits)
            yield found.accuracy, found.nll


if __name__ == "__main__":
    for name in sys.argv[1:]:
        told = (f"{100 * accuracy:.2f} %, NLL {nll:.3f}" for accuracy, nll in figures(name))
        print(f"{name}: {'; settled '.join(told)}", flush=True)
