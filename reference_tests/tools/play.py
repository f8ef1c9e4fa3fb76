"""The student and the clouds of docs/play, as scripts: a page opened from a disk loads no data.

    minipc record
    minipc train
    python -m reference_tests.tools.play study/record-0/model.h5 shapes.h5 docs/play

The first two commands make the model, in a few minutes.  From one model and one data file the two
scripts are always the same bytes.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np

from minipc.data.augment import AugmentConfig
from minipc.data.clouds import read_clouds
from minipc.errors import UsageError
from minipc.models.file import model_id, read_model
from minipc.models.pointnet import count, forward_eval, title

OF_EACH_CLASS = 2  # clouds in the page: the first of the test split, so nobody chose them
UNITS = 32767  # of a coordinate, which lies in -1 .. 1: int16 is off by at most 1.5e-5


def folded(model):
    """Return [(name, W (I, O), b (O,))] float32: the layers of a PointNet, batch norm folded in.

    (M7) is affine in x W, so W gamma / sqrt(var + eps) and beta - mean gamma / sqrt(var + eps) do
    the same in one step.  Computed in float64, rounded once.
    """
    if model.config.architecture != "pointnet":
        raise UsageError(f"play: expected a PointNet, got a {model.config.architecture}")
    arrays = {
        name: value.astype(np.float64) for name, value in (model.params | model.stats).items()
    }
    layers = []
    for name in [key.removesuffix(".W") for key in model.params if key.endswith(".W")]:
        W, b = arrays[f"{name}.W"], arrays.get(f"{name}.b")
        if f"{name}.gamma" in arrays:
            gain = arrays[f"{name}.gamma"] / np.sqrt(arrays[f"{name}.var"] + model.config.eps)
            W, b = W * gain, arrays[f"{name}.beta"] - arrays[f"{name}.mean"] * gain
        layers.append((name, W.astype(np.float32), b.astype(np.float32)))
    return layers


def _text(array, dtype):
    """Return an array as base64 of its bytes, little-endian, row by row."""
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _script(name, comment, value):
    head = f"// Written by reference_tests/tools/play.py. {comment}"
    return f'{head}\n"use strict";\n\nconst {name} = {value};\n'


def weights_script(model, splits):
    """Return the text of weights.js: STUDENT, with float32 numbers in base64."""
    test, config = splits.test, AugmentConfig()
    said = forward_eval(model.params, model.stats, test.points, model.config).argmax(axis=1)
    accuracy = float((said == test.labels).mean())
    points = test.points.shape[1]
    size = count(model.config, points)
    layers = [
        {
            "name": name,
            "inputs": W.shape[0],
            "outputs": W.shape[1],
            "W": _text(W, "<f4"),
            "b": _text(b, "<f4"),
        }
        for name, W, b in folded(model)
    ]
    student = {
        "about": f"The student is a {title(model.config)} of {size.parameters:,} parameters and "
        f"{size.macs:,} multiply-adds for a cloud, as minipc record and minipc train make it from "
        f"the built-in shapes: it learnt from a teacher's record. It is right for "
        f"{100 * accuracy:.1f} % of the {len(test):,} test clouds. The clouds here are the first "
        "two of each class among those, so it did not learn from them.",
        "model": model_id(model),
        "classes": list(test.class_names),
        "points": points,
        "said": _text(said, "u1"),
        "scale": [config.scale_low, config.scale_high],
        "shift": [-config.shift_max, config.shift_max],
        "shared": len(model.config.shared),
        "layers": layers,
    }
    comment = (
        "In base64: W and b, float32, little-endian; said, the class that minipc predicts for each "
        "cloud of the test split, a byte each."
    )
    return _script("STUDENT", comment, json.dumps(student, indent=1))


def clouds_script(splits):
    """Return the text of clouds.js: CLOUDS, the first clouds of each class of the test split."""
    clouds = []
    for label in range(len(splits.test.class_names)):
        for index in np.flatnonzero(splits.test.labels == label)[:OF_EACH_CLASS]:
            points = np.rint(splits.test.points[index].astype(np.float64) * UNITS)
            clouds.append({"label": label, "points": _text(points, "<i2")})
    lines = ",\n".join(json.dumps(cloud) for cloud in clouds)
    return _script(
        "CLOUDS", f"points: int16 / {UNITS}, little-endian, in base64.", f"[\n{lines}\n]"
    )


def write(model, splits, folder):
    """Write weights.js and clouds.js into a folder."""
    Path(folder, "weights.js").write_text(weights_script(model, splits))
    Path(folder, "clouds.js").write_text(clouds_script(splits))


if __name__ == "__main__":
    write(read_model(sys.argv[1]), read_clouds(sys.argv[2]), sys.argv[3])
