"""Every ordinary mistake: exit code, one line that says what to do, nothing left behind.

docs/mistakes.md shows the messages, word for word.  After a change of a message write it anew:
MINIPC_WRITE_MISTAKES=1 python -m pytest reference_tests/commands/test_mistakes.py
"""

import os
import re
import shlex
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import STRETCH, write_three_classes, write_vessels

from minipc.cli.main import main
from minipc.data.clouds import SEVERAL, UNLABELLED, Clouds, Splits, read_clouds, write_clouds
from minipc.data.groups_file import groups_path, indices_of, kept_groups
from minipc.models.file import new_model, write_model
from minipc.models.model import sizes as model_sizes
from minipc.models.pointnet import ModelConfig, sizes
from reference_tests.commands.test_cli import QUICK, snapshot

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
WRITE = bool(os.environ.get("MINIPC_WRITE_MISTAKES"))

# Models with neighbours: the groups that are kept for them are damaged, and of other clouds.
NEAR, BALLS = "8/4:6,6", "8/1x4:6,6"

# {section: [(exit code, the command after "minipc", what its message must name: the remedy)]}
MISTAKES = {
    "Data that cannot be packed": [
        (3, "data pack none -o new.h5", "none"),
        (3, "data pack pipe.h5 -o new.h5", "found a pipe"),
        (3, "data pack text.h5 -o new.h5", "text.h5"),
        (3, "data pack clouds.h5 -o new.h5", "packed already"),
        (3, "data pack taken -o new.h5", "class"),
        (3, "data pack one-class -o new.h5", "at least 2"),
        (3, "data pack empty-class -o new.h5", "spoon"),
        (3, "data pack half-split -o new.h5", "half-split"),
        (3, "data pack parts -o new.h5", ".step"),
        (3, "data pack bad-mesh -o new.h5", "triangulate the mesh"),
        (3, "data pack bad-flat-mesh -o new.h5", "have no area"),
        (3, "data pack bad-cut-mesh -o new.h5", "copy it again"),
        (3, "data pack bad-lying-ply -o new.h5", "says 1000000000000 times vertex"),
        (3, "data pack bad-order -o new.h5", "check the byte order"),
        (3, "data pack vessels/mug/001.xyz -o new.h5", "pack the folder"),
        (3, "data pack no-class.h5 -o new.h5", "class 1 has no training cloud"),
        (3, "data pack bad-header -o new.h5", "or remove the line"),
        (3, "data pack bad-nan -o new.h5", "line 3"),
        (3, "data pack bad-inf -o new.h5", "line 3"),
        (3, "data pack bad-words -o new.h5", "line 3"),
        (3, "data pack bad-columns -o new.h5", "line 1"),
        (3, "data pack bad-empty -o new.h5", "mug/bad.xyz"),
        (3, "data pack bad-comments -o new.h5", "holds no points"),
        (3, "data pack bad-one-point -o new.h5", "2 distinct points"),
        (3, "data pack bad-pickle -o new.h5", "save it again"),
        (3, "data pack bad-shape -o new.h5", "expected one cloud, (P, 3)"),
        (3, "data pack bad-short -o new.h5", "save it again"),
        (3, "data pack no-points.h5 -o new.h5", "points"),
        (3, "data pack wrong-label.h5 -o new.h5", "label"),
        (3, "data pack half-label.h5 -o new.h5", "label"),
        (3, "data pack two-names.h5 -o new.h5", "mug"),
        (3, "data pack flat.h5 -o new.h5", "(40, 3)"),
        # data of others that would be wrong in silence
        (3, "data pack bad-count -o new.h5", "says 3 points, found 2"),
        (3, "data pack bad-empty-cell -o new.h5", "line 2: column 3"),
        (3, "data pack bad-cut -o new.h5", "as in line 1, found 4"),
        (3, "data pack bad-ind -o new.h5", "-1.#IND"),
        (3, "data pack bad-numbered -o new.h5", "remove the line"),
        (3, "data pack bad-index -o new.h5", "index=False"),
        (3, "data pack bad-decimals -o new.h5", "write all decimals with a point"),
        (3, "data pack bad-transposed -o new.h5", "at most 16 columns"),
        (3, "data pack bad-far -o new.h5", "subtract an offset"),
        (3, "data pack far -o new.h5 --normalisation none", "normalise to unit_sphere"),
        (3, "data pack two-forms -o new.h5", "Unicode"),
        (3, "data pack beside -o new.h5", "lies beside the folders"),
        (3, "data pack from-one.h5 -o new.h5", "subtract 1"),
        (3, "data pack one-hot.h5 -o new.h5", "one whole number each"),
        (3, "data pack two-lists.h5 -o new.h5", "class names differ"),
        (3, "data pack minus-one.h5 -o new.h5", "from 0, got -1"),
        (3, "data pack unlabeled -o new.h5", "rename it to unlabelled"),
        (3, "data pack blind-test -o new.h5", "measure nothing"),
        (2, "data pack three.h5 -o new.h5", "--val-split"),
        (2, "data pack vessels -o new.h5 --val-split train", "no third split"),
        (2, "data pack two-sets -o new.h5", "pass --variant with one of"),
        (2, "data pack two-sets -o new.h5 --variant modelnet50", "no variant 'modelnet50'"),
        (3, "data pack two-sets -o new.h5 --variant modelnet40", "missing, though"),
        (2, "data pack vessels -o new.h5 --variant x", "holds one data set"),
        (2, "data pack vessels -o new.h5 --background drop", "marks no background"),
        (2, "data hold-out several.h5 -o new.h5", "one cloud of each"),
        (2, "train several.h5 --labels-only --val-fraction 0.2 --out new", "one cloud of each"),
        (2, "data check clouds.h5 --num-points 64", "is packed"),
        (3, "data check none.h5", "none.h5"),
        (2, "data pack vessels -o clouds.h5", "exists already"),
        (3, "data pack vessels -o no/where.h5", "no/where.h5"),
        (3, "data pack vessels -o folder.h5/x/y.h5", "folder.h5"),
        (2, "data pack vessels -o new.h5 --num-points 0", "num points"),
        (2, "data pack vessels -o new.h5 --test-fraction 1", "test fraction"),
        (2, "data pack vessels -o new.h5 --up-axis w", "--up-axis"),
        (2, "data pack vessels", "--out"),
        (2, "data make -o clouds.h5", "exists already"),
        (2, "data make -o new.h5 --seed -1", "seed"),
        (2, "data hold-out clouds.h5 -o clouds.h5", "exists already"),
        (2, "data hold-out clouds.h5 -o new.h5 --test-fraction 0", "test fraction"),
        (3, "data hold-out none.h5 -o new.h5", "none.h5"),
        (3, "data info text.h5", "not a minipc file"),
    ],
    "Files that are not what they should be": [
        (3, "train none.h5 --labels-only", "none.h5"),
        (3, "train folder.h5 --labels-only", "folder.h5"),
        (3, "train pipe.h5 --labels-only", "pipe.h5"),
        (3, "train vessels --labels-only", "minipc data pack vessels"),
        (3, "train good --labels-only", "minipc train --resume --out good"),
        (3, "train empty.h5 --labels-only", "empty"),
        (3, "train text.h5 --labels-only", "not a minipc file"),
        (3, "train no-points.h5 --labels-only", "data pack"),
        (3, "train cut.h5 --labels-only", "damaged"),
        (3, "train flipped.h5 --labels-only", "damaged"),
        (3, "train future.h5 --labels-only", "upgrade"),
        (
            3,
            "train untrained.h5 --labels-only",
            "is a minipc model file, but a clouds file is wanted",
        ),
        (3, "train record.h5 --labels-only", "--with-clouds"),
        (3, "train --record clouds.h5", "is a minipc clouds file, but a record file is wanted"),
        (3, "train --record cut-record.h5", "damaged"),
        (3, "train clouds.h5 --record untrained.h5", "is a minipc model file"),
        (3, "record clouds.h5 --teacher none.h5", "none.h5"),
        (3, "record clouds.h5 --teacher taken --out new.h5", "model.h5"),
        (3, "record clouds.h5 --teacher record.h5 --out new.h5", "is a minipc record file"),
        (3, "record clouds.h5 --teacher best.pth --out new.h5", "minipc.torch.checkpoints"),
        (3, "eval none.h5 clouds.h5", "none.h5"),
        (3, "eval taken clouds.h5", "model.h5"),
        (3, "eval pipe.h5 clouds.h5", "pipe"),
        (3, "eval --logits shares.npy clouds.h5", "add --probabilities"),
        (3, "eval --logits hole.npy clouds.h5", "finite"),
        (3, "eval --logits classes.npz clouds.h5", "no logits"),
        (3, "info none.h5", "none.h5"),
        (3, "info text.h5", "not a minipc file"),
        (3, "info flipped.h5", "damaged"),
        (3, "info taken", "none of ours"),
        (3, f"train clouds.h5 --labels-only --model {NEAR} --out new -q", "it is made again"),
        (3, f"train clouds.h5 --labels-only --model {BALLS} --out new -q", "it is made again"),
    ],
    "Files that do not belong together": [
        (3, "train other.h5 --record record.h5", "made from"),
        (3, "train renamed.h5 --record record.h5", "class_names is ('flat', 'long'"),
        (3, "train turned.h5 --record record.h5", "up_axis is z there and y here"),
        (
            3,
            "train --record record.h5 --self-weight 0.2 --self-target record --self-record "
            "seeded.h5",
            "teacher alone",
        ),
        (
            3,
            "train --record record.h5 --self-weight 0.2 --self-target record --self-record "
            "record.h5",
            "record an earlier student",
        ),
        (3, "record clouds.h5 --teacher forty.h5 --out new.h5", "class names"),
        (3, "record renamed.h5 --teacher good --out new.h5", "class names"),
        (3, "record turned.h5 --teacher good --out new.h5", "up axis"),
        (3, "record clouds.h5 --teacher better --out record.h5", "teacher_id is"),
        (
            3,
            "record clouds.h5 --teacher good --seed 1 --out record.h5",
            "seed is 0 there and 1 here",
        ),
        (3, "record clouds.h5 --teacher untrained.h5 --out new.h5", "no better than chance"),
        (3, "eval good renamed.h5", "class names"),
        (3, "eval good turned.h5", "up axis"),
        (3, "eval good clouds.h5 --teacher forty.h5", "class names"),
        (3, "eval --logits short.npy clouds.h5", "a row for each test cloud"),
        (3, "eval --logits other-names.csv clouds.h5", "class names"),
        (3, "eval --logits moved.npz clouds.h5", "in the order of its test clouds"),
        (3, "predict good vessels/mug/001.xyz --up-axis y", "up axis"),
        (3, "train clouds.h5 --labels-only --init forty.h5", "class names"),
        (3, "train clouds.h5 --labels-only --init untrained.h5", "shared is (8,), but"),
    ],
    "Places": [
        (2, "train clouds.h5 --labels-only --out taken", "taken: exists already"),
        (3, "train clouds.h5 --labels-only --out no/where", "no/where"),
        (3, "record clouds.h5 --teacher good --out folder.h5", "folder.h5"),
        (3, "record clouds.h5 --teacher good --out pipe.h5", "pipe.h5"),
        (3, "record clouds.h5 --teacher good --out no/where.h5", "no/where.h5"),
        (3, "record clouds.h5 --teacher good --out clouds.h5", "is a minipc clouds file"),
    ],
    "Stopping and going on": [
        (2, "train clouds.h5 --labels-only --epochs 4 --stop-after 5", "1 to 4"),
        (2, "train --resume --out good --epochs 6", "epochs is 4 there and 6 here"),
        (2, "train --resume --out good --seed 1", "seed is 0 there and 1 here"),
        (2, "train --resume --out good --record record.h5", "has no use for --record"),
        (3, "train other.h5 --resume --out good", "pass the same DATA"),
        (3, "train --resume --out taken", "run.json"),
        (3, "train --resume --out nowhere", "nowhere"),
        (2, "train --resume", "--out"),
        (2, "train --resume --dry-run --out good", "leave one out"),
    ],
    "Comparing": [
        (3, "compare good nowhere", "nowhere/run.json"),
        (3, "compare good part", "minipc train --resume --out part"),
        (3, "compare good clouds.h5", "clouds.h5/run.json"),
        (2, "compare good", "at least two arms"),
        (2, "compare good better", "at least two arms"),
        (2, "compare good good/", "name one of them"),
        (2, "compare good better --threads 2", "goes with STUDY.toml"),
        (2, "compare study.toml good", "name it alone"),
        (3, "compare none.toml", "none.toml"),
        (3, "compare broken.toml", "TOML"),
        (2, "compare no-arm.toml", "add another"),
        (2, "compare of-train.toml", "unknown key; known: data"),
        (2, "compare misspelt-arm.toml", "did you mean kd-weight?"),
        (2, "compare one-seed.toml", "seeds: expected integers"),
        (2, "compare twice.toml", "different integers"),
        (2, "compare own-seed.toml", "seeds = [...] at the top"),
        (2, "compare no-name.toml", "names a folder"),
        (2, "compare not-alone.toml", "add labels-only = true"),
        (2, "compare no-record.toml", "arm distilled: train: distillation needs"),
        (2, "compare equal.toml", "the same training as arm"),
        (2, "compare unlike.toml", "train them alike"),
        (3, "compare missing.toml", "arm labels: none.h5"),
        (3, "compare study.toml --out no/where", "no/where"),
        (3, "compare study.toml --out clouds.h5", "choose another --out"),
    ],
    "Reports": [
        (3, "report nowhere", "name the folder of a run or of a study"),
        (3, "report taken", "holds no run.json"),
        (2, "report good good", "named twice"),
        (2, "report good --out clouds.h5", "exists already"),
    ],
    "Exporting": [
        (2, "export", "name MODEL"),
        (2, "export good", "name one of --onnx FILE"),
        (2, "export good --c new --safetensors new", "name one of"),
        (2, "export good --safetensors new --int8", "add it"),
        (2, "export good --c taken", "exists already"),
        (2, "export good --safetensors clouds.h5", "exists already"),
        (2, "export good --c new --sample none", "nor all"),
        (3, "export none.h5 --c new", "none.h5"),
        (3, "export good --c no/where", "no/where"),
        (3, "export untrained.h5 --c new", "pass DATA"),
        (3, "export good turned.h5 --c new --int8", "up axis"),
        (3, "bench none.h5", "none.h5"),
        (3, "bench good renamed.h5", "class names"),
        (2, "bench good --seconds -1", "--help"),
    ],
    "Single clouds": [
        (3, "predict none.h5 vessels/mug/001.xyz", "none.h5"),
        (3, "predict good none.xyz", "none.xyz"),
        (3, "predict good folder.h5", "holds no cloud"),
        (3, "predict good pipe.xyz", "pipe"),
        (3, "predict good bad-nan/mug/bad.xyz", "line 3"),
        (3, "predict good clouds.h5", "is a minipc clouds file"),
        (2, "predict good", "FILE"),
        (2, "predict vessels/mug/001.xyz", "name MODEL"),
        (2, "predict good vessels/mug/001.xyz --turn y --up-axis z", "leave one out"),
        (3, "predict unknown.h5 vessels/mug/001.xyz --turn y", "leave --turn out"),
        (2, "predict good vessels/mug/001.xyz --top 0", "top"),
        (2, "predict good - -", "name - once"),
        (2, "predict good vessels/mug/001.xyz --format npy", "goes with -"),
    ],
    "Looking at clouds": [
        (3, "data show none.h5", "none.h5"),
        (3, "data show vessels", "minipc data pack vessels"),
        (3, "data show good", "is a run"),
        (3, "data show untrained.h5", "is a minipc model file, but a clouds file is wanted"),
        (3, "data show no-points.h5", "data pack"),
        (3, "data show parts/mug/mug.step", "expected .npy"),
        (3, "data show bad-nan/mug/bad.xyz", "line 3"),
        (3, "data show clouds.h5 vessels/mug/001.xyz", "is a minipc clouds file"),
        (3, "data show pipe.xyz", "pipe"),
        (2, "data show clouds.h5 --class longe", "did you mean long?"),
        (2, "data show clouds.h5 --cloud 96", "0 to 95"),
        (2, "data show clouds.h5 --cloud -1", "0 to 95"),
        (2, "data show clouds.h5 --cloud 3 --class long", "leave out --class"),
        (2, "data show record.h5 --count 32", "ask for fewer"),
        (2, "data show clouds.h5 --views 0:1", "only a record has views"),
        (2, "data show clouds.h5 --up-axis y", "has z"),
        (2, "data show clouds.h5 --num-points 0", "num points"),
        (2, "data show record.h5 --views 1:3", "0 <= A < B <= 2"),
        (2, "data show record.h5 --split test", "--split"),
        (2, "data show vessels/mug/001.xyz --cloud 0", "no use for --cloud"),
        (2, "data show clouds.h5 --out clouds.h5", "exists already"),
        (3, "data show clouds.h5 --out no/where.html", "no/where.html"),
        (2, "data make -o new.h5 --show --json", "leave one out"),
        (2, "predict good vessels/mug/001.xyz --show --json", "leave one out"),
    ],
    "Options": [
        (2, "train clouds.h5", "--record FILE"),
        (2, "train --labels-only", "name the data"),
        (2, "train clouds.h5 --labels-only --model huge", "16-16-32-64:32"),
        (2, "train clouds.h5 --labels-only --model tiny@x", "tiny@0.3"),
        (3, "train clouds.h5 --labels-only --model pointnet2", "fewer centres"),
        (
            2,
            "train clouds.h5 --labels-only --batch-size 1000",
            "1000 is more than the 96 training clouds",
        ),
        (2, "train clouds.h5 --labels-only --labels-per-class 33", "of class flat; lower it"),
        (2, "train clouds.h5 --labels-only --labels-per-class -1", "labels per class"),
        (2, "train no-labels.h5 --labels-only", "--kd-weight 1"),
        (2, "train clouds.h5 --labels-only --val-fraction 0.9", "32 is more than the"),
        (2, "train clouds.h5 --labels-only --val-fraction 1", "val fraction"),
        (2, "train clouds.h5 --labels-only --epochs 0", "epochs"),
        (2, "train clouds.h5 --labels-only --epochs many", "--help"),
        (2, "train clouds.h5 --labels-only --lr 0", "lr"),
        (2, "train clouds.h5 --labels-only --colour red", "--colour"),
        (2, "train --record record.h5 --tau 4", "here it is --temperature"),
        (2, "train --record record.h5 --alpha 0.5", "here it is --kd-weight"),
        (2, "train --record record.h5 --gpu", "here it is --backend cupy"),
        (2, "record clouds.h5 --learning-rate 1", "this verb has no --lr"),
        (2, "train clouds.h5 --labels-only --views 0:1", "add --record FILE"),
        (
            2,
            "train clouds.h5 --labels-only --self-weight 0.2",
            "--labels-only has no use for --self-weight",
        ),
        (2, "train clouds.h5 --labels-only --average-decay 0.9", "goes with --average ema"),
        (2, "train clouds.h5 --labels-only --augment-steps 3", "without --augment-width"),
        (2, "train clouds.h5 --labels-only --augment-width 17", "1 (none) to 16"),
        (2, "train --record record.h5 --views 1:3", "0 <= A < B <= 2"),
        (2, "train --record record.h5 --self-weight 0.5", "b < a / 2"),
        (2, "train --record record.h5 --self-weight nan", "self weight"),
        (2, "train --record record.h5 --self-target ema", "without --self-weight"),
        (
            2,
            "train --record record.h5 --self-weight 0.2 --ema-decay 0.5",
            "goes with --self-target ema",
        ),
        (2, "train --record record.h5 --out ''", "is empty; name a file"),
        (
            2,
            "train --record record.h5 --self-weight 0.2 --self-target record",
            "--self-record FILE",
        ),
        (
            2,
            "train --record record.h5 --self-weight 0.2 --self-target ema --ema-decay 1",
            "ema decay",
        ),
        (2, "train --record record.h5 --temperature 0.5", "1 <= T"),
        (2, "train --record record.h5 --kd-weight 2", "a from 0 to 1"),
        (2, "train --record record.h5 --quiet --verbose", "leave one out"),
        (2, "train --record record.h5 --config misspelt.toml", "did you mean epochs?"),
        (3, "train --record record.h5 --config broken.toml", "TOML"),
        (3, "train --record record.h5 --config none.toml", "none.toml"),
        (2, "record clouds.h5", "train clouds.h5 --labels-only --model teacher"),
        (2, "record --teacher good", "name the data"),
        (2, "record clouds.h5 --teacher good --views 0 --out new.h5", "views"),
        (
            2,
            "record clouds.h5 --teacher good --views 1000000000 --out new.h5",
            "views: expected 1 to 100000",
        ),
        (2, "record clouds.h5 --teacher good --seed -1 --out new.h5", "seed"),
        (2, "eval", "name MODEL"),
        (2, "eval clouds.h5", "name MODEL"),
        (2, "info", "name FILE"),
        (2, "eval good clouds.h5 --votes -1", "votes"),
        (2, "eval good clouds.h5 --logits short.npy", "in place of a model"),
        (2, "eval --logits short.npy", "name DATA"),
        (2, "audit --inject sign-of-c", "did you mean sign-of-b?"),
        (2, "audit --temperature 4", "has no use without --record"),
        (3, "audit --record none.h5", "none.h5"),
        (3, "audit other.h5 --record record.h5", "other data"),
        (2, "loss --self-weight 0.5", "b < a / 2"),
        (2, "loss --from deit", "NAME=WEIGHT"),
        (2, "verify record.h5 --sample 5", "--sample has no use without --teacher"),
        (3, "verify clouds.h5", "a record file is wanted"),
        (3, "verify record.h5 other.h5", "other data"),
        (2, "walk", "walk"),
    ],
}


def spoil(folder):
    """Make the files that the mistakes are about."""
    splits = read_clouds("clouds.h5")

    def rewritten(path, points=lambda points: points, names=splits.train.class_names, up_axis="z"):
        write_clouds(
            path,
            Splits(*(Clouds(points(c.points), c.labels, names, up_axis, "none") for c in splits)),
        )

    rewritten("other.h5", points=lambda points: points[:, ::-1].copy())
    rewritten("renamed.h5", names=("long", "flat", "round"))
    rewritten("turned.h5", up_axis="y")
    none = np.full(len(splits.train), UNLABELLED, np.int64)
    write_clouds("no-labels.h5", splits._replace(train=replace(splits.train, labels=none)))
    write_model("untrained.h5", new_model(ModelConfig((8,), (), 3), splits.train.described, 0))
    write_model(
        "forty.h5",
        new_model(sizes("tiny", 40), {**splits.train.described, "class_names": ["a"] * 40}, 0),
    )
    nowhere = {**splits.train.described, "up_axis": "unknown"}
    write_model("unknown.h5", new_model(sizes("tiny", 3), nowhere, 0))
    several = [replace(clouds, source=SEVERAL) for clouds in splits]
    write_clouds("several.h5", Splits(*several))
    spoil_groups(folder, splits.train)
    whole = (folder / "clouds.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[:-100])
    (folder / "flipped.h5").write_bytes(whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:])
    (folder / "cut-record.h5").write_bytes((folder / "record.h5").read_bytes()[:-1])
    (folder / "empty.h5").write_bytes(b"")
    (folder / "best.pth").write_bytes(b"PK\3\4" + bytes(600))
    (folder / "text.h5").write_text("not a file of ours, whatever its name says\n" * 30)
    (folder / "folder.h5").mkdir()
    (folder / "taken").mkdir()
    (folder / "taken/.notes").write_text("mine")
    for name in ("pipe.h5", "pipe.xyz"):
        os.mkfifo(folder / name)
    (folder / "misspelt.toml").write_text("[train]\nepoch = 3\n")
    (folder / "broken.toml").write_text("[train\n")
    spoil_logits(folder, splits.test.labels)
    spoil_studies(folder)
    from_the_future(folder)
    spoil_trees(folder)
    spoil_lists(folder)
    spoil_hdf5(folder)


def spoil_studies(folder):
    data, record = 'data = "clouds.h5"\n', 'record = "record.h5"\n'
    for name, text in {
        "study": f"{record}[arms.distilled]",
        "no-arm": data,
        "of-train": f"{record}epochs = 3",
        "misspelt-arm": f"{record}[arms.distilled]\nkd-wieght = 0.5",
        "one-seed": f"{record}seeds = ['0']",
        "twice": f"{record}seeds = [0, 0]\n[arms.distilled]",
        "own-seed": f"{record}[arms.distilled]\nseed = 1",
        "no-name": f"{record}[arms.'a/b']",
        "not-alone": f"{record}[arms.labels]",
        "no-record": f"{data}[arms.distilled]",
        "equal": f"{record}[arms.one]\n[arms.two]",
        "unlike": f"{record}[arms.distilled]\nepochs = 3",
        "missing": 'record = "none.h5"\n[arms.distilled]',
    }.items():
        (folder / f"{name}.toml").write_text(text + "\n")


def spoil_logits(folder, labels):
    values = np.random.default_rng(0).standard_normal((len(labels), 3))
    hole = values.copy()
    hole[4, 1] = np.nan
    for name, rows in {"short": values[:-1], "hole": hole, "shares": np.eye(3)[labels]}.items():
        np.save(folder / f"{name}.npy", rows)
    np.savez(folder / "moved.npz", logits=values, labels=np.roll(labels, 1))
    np.savez(folder / "classes.npz", logits=np.eye(3, dtype=np.int64)[labels])
    np.savetxt(folder / "other-names.csv", values, delimiter=",", header="a,b,c", comments="")


def spoil_groups(folder, clouds):
    def kept(model, clouds):
        config = model_sizes(model, 3)
        kept_groups(config, clouds, "clouds.h5")
        indices = indices_of(config, clouds.points.shape[1])
        return folder / groups_path("clouds.h5", clouds.points_hash, indices)

    damaged = kept(NEAR, clouds)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 4
    damaged.write_bytes(content)
    kept(BALLS, read_clouds("other.h5").train).replace(kept(BALLS, clouds))


def from_the_future(folder):
    """Write future.h5, whole, of a version that no minipc knows yet."""
    from minipc.storage import files

    body = (folder / "clouds.h5").read_bytes()[files.USER_BLOCK :]
    (folder / "future.h5").write_bytes(
        files.sealed("clouds", 999, files.USER_BLOCK + len(body), [body]) + body
    )


def tree(folder, name, classes=tuple(STRETCH)):
    """Return the path of a new small tree of good clouds."""
    for kind in classes:
        (folder / name / kind).mkdir(parents=True)
        for number in (1, 2):
            np.savetxt(
                folder / name / kind / f"{number}.xyz", np.arange(12).reshape(4, 3) ** number % 7
            )
    return folder / name


PLY = """ply
format {} 1.0
element vertex {}
property float x
property float y
property float z
end_header
"""


def spoil_trees(folder):
    tree(folder, "one-class", ["mug"])
    (tree(folder, "empty-class") / "spoon").mkdir()
    half = tree(folder, "half-split") / "mug" / "train"
    half.mkdir()
    (half / "3.xyz").write_text("0 0 1\n1 2 3\n")
    (tree(folder, "parts") / "mug" / "mug.step").write_text("ISO-10303-21;\n")
    corners = "0 0 0\n1 0 0\n0 1 0\n1 1 0\n"
    for name, text in {
        "mesh.off": f"OFF\n4 1 0\n{corners}4 0 1 2 3\n",  # it crosses itself
        "flat-mesh.off": f"OFF\n4 1 0\n{corners}3 0 0 1\n",
        "cut-mesh.off": f"OFF\n4 2 0\n{corners}3 0 1 2\n",
        "lying-ply.ply": PLY.format("ascii", 10**12) + corners,
    }.items():
        stem, suffix = name.split(".")
        (tree(folder, f"bad-{stem}") / "mug" / f"bad.{suffix}").write_text(text)
    values = np.random.default_rng(0).standard_normal((9, 3)).astype(">f4")
    (tree(folder, "bad-order") / "mug" / "bad.ply").write_bytes(
        PLY.format("binary_little_endian", 9).encode() + values.tobytes()
    )
    for name, text in {
        "nan": "0 0 1\n1 2 3\n4 nan 6\n",
        "inf": "0 0 1\n1 2 3\n4 inf 6\n",
        "words": "0 0 1\n1 2 3\nfour 5 6\n",
        "columns": "0 1\n2 3\n",
        "empty": "",
        "comments": "# nothing\n",
        "header": "vertex x y z i\n1 2 3 9\n4 5 6 8\n",
        "one-point": "1 2 3\n",
        "count": "3\n1 2 3 -1500\n4 5 6 -1400\n",
        "empty-cell": "1,2,3,9\n4,5,,9\n",
        "cut": "1 2 3 0 0 1\n4 5 6 0",
        "ind": "1 2 3\n4 5 -1.#IND\n",
        "numbered": "0,1,2\n0.5,0.1,0.7\n",
        "index": "0,1.5,2.5,3.5\n1,4.5,5.5,6.5\n2,7.5,8.5,9.5\n",
        "decimals": "1,5;2,5;3,5\n4.5;5.5;6.5\n",
        "transposed": f"{'1 ' * 40}\n{'2 ' * 40}\n{'3 ' * 40}\n",
    }.items():
        (tree(folder, f"bad-{name}") / "mug" / "bad.xyz").write_text(text)
    far = np.array([[500000.01, 5400000.02, 300], [500000.03, 5400000.01, 300.02]])
    np.save(tree(folder, "bad-far") / "mug" / "bad.npy", far.astype(np.float32))
    np.save(tree(folder, "far") / "mug" / "far.npy", far)
    tree(folder, "two-forms", ["caf\u00e9", "cafe\u0301"])
    tree(folder, "unlabeled", (*STRETCH, "unlabeled"))
    for split in ("train", "test"):
        tree(folder / "blind-test", split, (*STRETCH, "unlabelled"))
    (tree(folder, "beside") / "README.txt").write_text("about these clouds\n")
    np.save(
        tree(folder, "bad-pickle") / "mug" / "bad.npy",
        np.array([{"x": 1}], object),
        allow_pickle=True,
    )
    np.save(tree(folder, "bad-shape") / "mug" / "bad.npy", np.zeros((2, 5, 3)))
    short = tree(folder, "bad-short") / "mug" / "bad.npy"
    np.save(short, np.zeros((50, 3)))
    short.write_bytes(short.read_bytes()[:-8])


def spoil_lists(folder):
    """Make two-sets: lists of two data sets beside each other, one of which names no file."""
    (folder / "two-sets").mkdir()
    for name in ("modelnet10", "modelnet40"):
        (folder / f"two-sets/{name}_shape_names.txt").write_text("mug\nvase\n")
        for number, split in enumerate(("train", "test")):
            (folder / f"two-sets/{name}_{split}.txt").write_text(f"mug_{number:04d}\n")


def spoil_hdf5(folder):
    points, labels = np.random.default_rng(0).random((6, 40, 3)), np.array([0, 1] * 3)

    def write(name, **members):
        with h5py.File(folder / name, "w") as file:
            for member, values in members.items():
                file[member] = values

    write("no-points.h5", vertices=points, labels=labels)
    write("wrong-label.h5", points=points, labels=labels + 1, class_names=["mug", "vase"])
    write("no-class.h5", points=points, labels=2 * labels)
    write("minus-one.h5", points=points, labels=labels - 1)
    write("half-label.h5", points=points, labels=labels + 0.5)
    write("two-names.h5", points=points, labels=labels, class_names=["mug", "mug"])
    write("from-one.h5", data=points, label=labels[:, None] + 1)
    write("one-hot.h5", points=points, labels=np.eye(2)[labels])
    write("two-lists.h5", points=points, labels=labels, class_names=["mug", "vase"])
    with h5py.File(folder / "two-lists.h5", "a") as file:
        file.attrs["classes"] = ["vase", "mug"]
    write(
        "three.h5",
        **{
            f"{kind}_{split}": values
            for split in ("train", "val", "test")
            for kind, values in (("X", points), ("y", labels))
        },
    )
    write("flat.h5", points=points[0], labels=labels)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the mistakes are made, with the files that they are about."""
    folder = tmp_path_factory.mktemp("mistakes")
    with chdir(folder):
        write_three_classes("clouds.h5")
        write_vessels(folder)
        for seed, model in ((0, "good"), (1, "better")):
            succeed("train", "clouds.h5", "--labels-only", "--out", model, "--seed", seed, *QUICK)
        part = ("--out", "part", "--stop-after", 1)
        succeed("train", "clouds.h5", "--labels-only", *part, *QUICK)
        for seed, name, teacher in ((0, "record.h5", "good"), (1, "seeded.h5", "better")):
            words = ("--teacher", teacher, "--views", 2, "--seed", seed, "--out", name, "--quiet")
            succeed("record", "clouds.h5", *words)
        spoil(folder)
    return folder


def succeed(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0, words


@pytest.fixture(scope="module")
def told():
    """{command: its message} of the mistakes made in this run."""
    return {}


COMMANDS = [mistake for mistakes in MISTAKES.values() for mistake in mistakes]


@pytest.mark.parametrize("code, line, named", COMMANDS, ids=[line for _, line, _ in COMMANDS])
def test_a_mistake_ends_in_one_line_and_its_exit_code_and_leaves_nothing(
    code, line, named, place, told, say, monkeypatch
):
    monkeypatch.chdir(place)
    before = snapshot(place)
    found, out, err = say(*shlex.split(line))
    assert (found, out) == (code, ""), err
    assert err.startswith("minipc: ") and err.count("\n") == 1 and len(err) < 400 and named in err
    assert snapshot(place) == before
    told[line] = escaped(err)
    if not WRITE:
        assert told[line] == messages(PAGE.read_text())[line], (
            "docs/mistakes.md is not what minipc says"
        )


def test_the_page_lists_these_mistakes_in_this_order(told):
    if WRITE:
        assert len(told) == len(COMMANDS), (
            "to write the page, make every mistake: run the whole of this file"
        )
        PAGE.write_text(page_of(told))
    text = PAGE.read_text()
    assert text == page_of(messages(text)), (
        "the head of this file says how to write docs/mistakes.md anew"
    )


def test_without_any_file_a_training_names_the_command_that_makes_a_record(folder, say):
    code, _, err = say("train")
    assert code == 3 and "minipc record" in err and err.count("\n") == 1


def row(code, line):
    """Return the start of a row of the page."""
    return f"| `{line}` | {code} | "


def page_of(said):
    """Return the page, of {command: message}."""
    lines = []
    for section, mistakes in MISTAKES.items():
        lines += [
            "",
            f"## {section}",
            "",
            "| `minipc ...` | exit | message |",
            "| --- | ---: | --- |",
        ]
        lines += [f"{row(code, line)}{said[line]} |" for code, line, _ in mistakes]
    return HEAD + "\n".join(lines) + "\n"


def messages(text):
    """Return {command: message} of a page; None for a command that is not in it."""
    lines = text.splitlines()
    return {
        line: next((each[len(start) : -2] for each in lines if each.startswith(start)), None)
        for start, line in ((row(code, line), line) for code, line, _ in COMMANDS)
    }


def escaped(message):
    """Return a message as the cell of a table, without what libraries say in words of their own."""
    text = message.removeprefix("minipc: ").strip()
    for theirs, ours in THEIRS.items():
        text = re.sub(theirs, ours, text)
    return re.sub(r"([|<>*_\[\]`])", r"\\\1", text)


THEIRS = {
    r"^(?:Invalid|Missing|No such) .*(\(see minipc .*\))": r"... \1",  # click
    r"(as HDF5|as TOML|plain array) \(.*\);": r"\1 (...);",
    r"groups-[0-9a-f]{16}": "groups-...",
    # digests, sizes and counts that another machine may have otherwise
    r"\b[0-9a-f]{16}\.\.\.": "...",
    r"it has \d+ bytes, but \d+ were": "it has ... bytes, but ... were",
    r"\d+ of (\d+ training clouds right, mean class accuracy) [\d.]+": r"... of \1 ...",
}


HEAD = """# Mistakes, and what minipc says

What an ordinary mistake is answered with: one line on stderr, an exit code by its class
([conventions.md](conventions.md#command-line)), nothing half-written. A test makes every one of these
mistakes and compares this page word for word. `clouds.h5` is a packed data set, `good` a trained model,
`record.h5` its record of two views; the other names say what is wrong with them.
"""  # noqa: E501
