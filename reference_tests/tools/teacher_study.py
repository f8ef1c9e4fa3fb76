"""Which teacher teaches best: teachers that differ in one thing, and the tiny students of each.

The test split is never opened.  A fifth of the training clouds, stratified and the same for every
run, is held out; teachers and students learn from the rest, and what decides is the accuracy of the
students on the held-out clouds after their last epoch.  Type the same command again and it goes on
where it stopped; results.jsonl in the folder holds a line a run.
"""

import argparse
import hashlib
import json
import os
import time
from dataclasses import replace

import numpy as np

from minipc.backend import worker_threads
from minipc.data.augment import AugmentConfig
from minipc.data.clouds import Splits, read_clouds, stratified
from minipc.distil.train import TrainConfig, drawn_views, recorded_views, train
from minipc.models.file import model_id, read_model, write_model
from minipc.models.pointnet import sizes
from minipc.nn.losses import LABELS_ALONE, LossConfig
from minipc.record.reader import RecordReader
from minipc.record.recorder import model_teacher, record
from minipc.record.recording import Recording

BASE = {
    "epochs": 60,
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "smoothing": 0.0,
    "dropout": 0.3,
    "shared": None,
    "augment": {},
}
TEACHERS = {  # name: what differs from BASE, seeds of the teachers, seed of the recorded views
    "base": ({}, (0,), 0),
    "no dropout": ({"dropout": 0.0}, (0,), 0),
    "three teachers": ({}, (0, 1, 2), 0),
    "120 epochs": ({"epochs": 120}, (0,), 0),
    "weaker augmentation": (
        {"augment": {"scale_low": 0.8, "scale_high": 1.25, "shift_max": 0.1}},
        (0,),
        0,
    ),
    "fresh views": ({}, (0,), 1),
    "wider": ({"shared": (64, 64, 128, 256, 1024)}, (0,), 0),
    "smoothing 0.2": ({"smoothing": 0.2}, (0,), 0),
    "weight decay 0.1": ({"weight_decay": 0.1}, (0,), 0),
}
# T, a: all for the base teacher, the first two for the others
LOSSES = [(1.0, 0.5), (1.0, 0.9), (1.0, 1.0), (1.5, 0.9), (2.0, 0.9), (4.0, 0.9)]


def held_out(path, points):
    """Return Splits whose test split is a fifth of the training clouds of the file."""
    clouds = read_clouds(path).train
    out = stratified(clouds.labels, 0.2, 0, "study")
    return Splits(
        *(
            replace(
                clouds,
                points=np.ascontiguousarray(clouds.points[rows, :points]),
                labels=clouds.labels[rows],
            )
            for rows in (~out, out)
        )
    )


class Study:
    """Runs by name, each computed once."""

    def __init__(self, options):
        self.options, self.splits = options, held_out(options.data, options.points)
        os.makedirs(options.out, exist_ok=True)
        self.results = self.file("results.jsonl")
        with open(self.results, "a+") as file:
            file.seek(0)
            self.done = {json.loads(line)["run"] for line in file}

    def file(self, name):
        return os.path.join(self.options.out, name)

    def model(self, size, recipe, loss, seed, views, epochs):
        config = sizes(size, len(self.splits.train.class_names))
        config = replace(
            config,
            dropout=recipe.get("dropout", config.dropout),
            shared=recipe.get("shared") or config.shared,
        )
        rates = {name: recipe[name] for name in ("lr", "weight_decay") if name in recipe}
        rates = {"lr": 3e-3} | rates  # a student's, when the study was made
        begun = time.perf_counter()
        *_, last = train(
            self.splits, config, loss, TrainConfig(epochs=epochs, seed=seed, **rates), views
        )
        return last, time.perf_counter() - begun

    def tell(self, run, epoch, seconds):
        """Write the last Epoch of a run, and what the run took, into results.jsonl."""
        last = epoch.rows[-1]
        self.write(
            {
                "run": run,
                "held_out": last["test_accuracy"],
                "mean_class": last["test_mean_class_accuracy"],
                "nll": last["test_nll"],
                "label_loss": last["labels"],
                "seconds": round(seconds, 1),
            }
        )

    def write(self, row):
        """Add one line to results.jsonl."""
        with open(self.results, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.done.add(row["run"])
        print(json.dumps(row), flush=True)

    def teacher(self, recipe, seed):
        """Return a trained teacher, from its file where there is one."""
        told = json.dumps(recipe, sort_keys=True)
        path = self.file(f"teacher-{hashlib.sha256(told.encode()).hexdigest()[:12]}-{seed}.h5")
        if not os.path.exists(path):
            views = drawn_views(self.splits.train, seed, AugmentConfig(**recipe["augment"]))
            loss = LossConfig(label_smoothing=recipe["smoothing"], **LABELS_ALONE)
            epochs = max(1, round(recipe["epochs"] * self.options.length))
            last, seconds = self.model("teacher", recipe, loss, seed, views, epochs)
            self.tell(f"teacher {told} seed {seed}", last, seconds)
            write_model(path, last.model)
        return read_model(path)

    def record(self, name):
        """Return the path of a record of the mean logits of a recipe's teachers."""
        path, (changes, seeds, views_seed) = (
            self.file(f"{name.replace(' ', '-')}.h5"),
            TEACHERS[name],
        )
        if not os.path.exists(path):
            teachers = [self.teacher(BASE | changes, seed) for seed in seeds]
            each = [model_teacher(teacher) for teacher in teachers]
            recording = Recording(
                self.splits.train,
                hashlib.sha256("".join(map(model_id, teachers)).encode()).hexdigest(),
                path,
                self.options.views,
                seed=views_seed,
                force=self.options.length < 1,
                threads=worker_threads(np),
            )
            recorded = record(
                recording,
                lambda points: sum(logits_of(points) for logits_of in each) / len(each),
                say=print,
            )
            self.write(
                {"run": f"record of {name}", "right_on_its_views": recorded.teacher_accuracy}
            )
        return path

    def student(self, name, temperature, weight, smoothing, seed):
        """Train one tiny student; weight 0 is a student on labels alone."""
        what = f"T {temperature:g} a {weight:g}" if weight else "labels alone"
        run = f"{name if weight else 'tiny'}, {what}, smoothing {smoothing:g}, seed {seed}"
        if run in self.done:
            return
        loss = LossConfig(weight, 0.0, temperature, smoothing)
        epochs = max(1, round(60 * self.options.length))
        with RecordReader(self.record(name)) as reader:
            views = recorded_views(reader, labels_only=not weight)
            self.tell(run, *self.model("tiny", {}, loss, seed, views, epochs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="a file of clouds, e.g. modelnet40.h5")
    parser.add_argument("--points", type=int, default=256, help="of each cloud; fewer are faster")
    parser.add_argument("--out", default="study", help="folder of the runs")
    parser.add_argument("--teachers", nargs="*", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--seeds", type=int, default=3, help="of the students")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument(
        "--length", type=float, default=1.0, help="factor of all epochs, for a trial"
    )
    study = Study(options := parser.parse_args())
    for name in options.teachers:
        for seed in range(options.seeds):
            for smoothing in (0.0, 0.1):
                study.student(name, 1.0, 0.0, smoothing, seed)
            for temperature, weight in LOSSES if name == "base" else LOSSES[:2]:
                study.student(name, temperature, weight, 0.0, seed)


if __name__ == "__main__":
    main()
