"""What files and machines are, as numbers for programs and lines for people."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np

from minipc import __version__


class Description(NamedTuple):
    values: dict  # JSON
    lines: list  # text


def versions():
    """Return one line naming minipc, Python, NumPy, h5py with HDF5, and CuPy."""
    import h5py  # here, so that describing data stays light

    cupy = "none"
    for name in ("cupy-cuda12x", "cupy-cuda13x", "cupy"):
        try:
            cupy = version(name)
            break
        except PackageNotFoundError:
            pass
    return (
        f"minipc {__version__}, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"h5py {h5py.__version__} with HDF5 {h5py.version.hdf5_version}, CuPy {cupy}"
    )


def describe_splits(path, splits):
    """Return the Description of a data file and its Splits."""
    train, test = splits
    classes = len(train.class_names)
    counts = {name: np.bincount(clouds.labels, minlength=classes) for name, clouds in splits._asdict().items()}
    values = {
        "file": str(path),
        "train": len(train),
        "test": len(test),
        "points": train.points.shape[1],
        "classes": classes,
        "class_names": list(train.class_names),
        "up_axis": train.up_axis,
        "normalisation": train.normalisation,
        "points_hash": train.points_hash,
        "labels_hash": train.labels_hash,
        "train_per_class": counts["train"].tolist(),
        "test_per_class": counts["test"].tolist(),
    }
    width = max(len(name) for name in train.class_names)
    lines = [
        f"{path}: {len(train)} training and {len(test)} test clouds of {values['points']} points, {classes} classes",
        f"up axis {train.up_axis}, normalisation {train.normalisation}, training points {train.points_hash[:16]}",
        *(
            f"  {name:{width}}  {counts['train'][i]:5d} train  {counts['test'][i]:5d} test"
            for i, name in enumerate(train.class_names)
        ),
    ]
    return Description(values, lines)
