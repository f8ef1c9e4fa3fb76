"""Read a data set in an HDF5 file of another program: points, labels and split by common names.

Such a file can link to other files and declare more data than it holds.  So we open only the
members named here, and only after we check their link, their storage and their size.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import h5py
import numpy as np

from minipc.data.clouds import SEVERAL, Splits, made_from, whole_labels
from minipc.data.readers.packed import VALIDATION, Cloud, Listing, Request
from minipc.data.readers.point_files import SUFFIXES
from minipc.errors import DataError, short
from minipc.storage import files

LARGEST = 16 * 2**30  # most bytes that a member may declare; a tiny file can declare 160 TiB
INFLATED = 256 * 2**20  # most bytes of a member that is compressed more than TIMES
TIMES = 100  # coordinates are rarely compressed more than twofold
COLUMNS = 16  # most columns of a point: more mean a transposed array (N, 3, P)
# most bytes of one cloud, and of one compressed chunk: both must be in memory at once
PIECE = 16 * 2**20
CLOUDS, CLASSES = 2**22, 2**16  # most rows of a member
ATTRIBUTES = 2**10  # most names in an attribute
TEXTS = 16  # strings read at once; each may be long
POINTS, LABELS = ("points", "data", "x"), ("labels", "label", "y")
NAMES = ("class_names", "classes", "shape_names", "label_names")
LAYOUT = (
    "expected points (or data, X) and labels (or label, y), or both for train and test "
    "(train/points, X_train)"
)


class Part(NamedTuple):
    """A pair of data sets: points and labels of all clouds, or of one split."""

    points: str  # name of the data set
    scale: float | None  # of integer points
    labels: np.ndarray  # (N,) int64


@contextmanager
def foreign(path: str) -> Iterator[h5py.File]:
    """Yield an h5py.File of another program's file; errors of h5py in the block become DataError.

    A file that another program has or left open for writing gets its own message: it is intact.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as reason:
        # libhdf5 refuses the lock, or finds the mark that a writer leaves in the file
        if "lock file" in str(reason) or "open for write" in str(reason):
            raise DataError(
                f"{path}: another program has it open for writing; close it there (left by one "
                "that died: h5clear -s FILE; on a file system without locks: "
                "HDF5_USE_FILE_LOCKING=FALSE)"
            ) from reason
        raise DataError(
            f"{path}: cannot be read as HDF5 ({reason}); copy it again, or name another"
        ) from reason


def member(file: h5py.File, name: str, path: str) -> h5py.Dataset:
    """Return a dataset whose data are in this file and can be read in blocks.

    Raises DataError for links, for data in other files, and for sizes that are impossible for this
    file or too large to read.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
        file[name], h5py.Dataset
    ):
        raise DataError(f"{path}: expected a data set {name!r}; found {sorted(file)[:8]}")
    dataset = file[name]
    stored = dataset.id.get_storage_size()
    # gzip compresses by a factor of 1032 at most
    most = min(LARGEST, 1100 * stored, max(INFLATED, TIMES * stored))
    if dataset.external or dataset.is_virtual or dataset.nbytes > most:
        raise DataError(
            f"{path}: {name} declares {dataset.nbytes} bytes and has {stored} in this file; copy "
            "it again"
        )
    row = dataset.dtype.itemsize * prod(dataset.shape[1:])
    chunks = dataset.chunks or (1,)
    # the third: chunks side by side, which are read together
    largest = max(row, dataset.dtype.itemsize * prod(chunks), chunks[0] * row // 2)
    if largest > PIECE or dataset.ndim and len(dataset) > CLOUDS:
        raise DataError(
            f"{path}: {name} has {dataset.shape} {dataset.dtype} in chunks of {dataset.chunks}; at "
            f"most {CLOUDS} rows, and {PIECE >> 20} MiB of a row or a chunk, are read; split it, "
            "or store it in smaller chunks"
        )
    return dataset


def blocks(dataset: h5py.Dataset) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first, rows) of a dataset in small blocks; each chunk is decompressed only once."""
    small = max(PIECE // 4 // max(dataset.dtype.itemsize * prod(dataset.shape[1:]), 1), 1)
    tall = (dataset.chunks or (1,))[0]
    step = max(small // tall, 1) * tall
    for first in range(0, len(dataset), step):
        rows = dataset[first : first + step]
        for at in range(0, len(rows), small):
            yield first + at, rows[at : at + small]


def scan(path: str, request: Request) -> Listing:
    """Return the Listing of an HDF5 file with points (data, X) and labels (label, y), in any case.

    points (N, P, 3 to 16) float, or integer with a scalar `scale` (attribute or dataset); labels
    (N,) or (N, 1).  Split: groups train and test, names with such a prefix or suffix, a dataset
    `split` (0 and 1, or the words), or no split.  A pair with another prefix or suffix is a third
    split.  Class names: class_names, classes, shape_names or label_names, a dataset or an
    attribute; without them, the numbers.  A file of an `augmented` name holds several clouds of one
    object, as ScanObjectNN's do.  Raises DataError and UsageError.
    """
    kind = files.kind_of(path)  # raises where path is missing, a folder or a pipe
    if kind:
        what = (
            "packed already: use it as it is"
            if kind == "clouds"
            else f"a minipc {kind} file; name a data set"
        )
        raise DataError(f"{path}: is {what}")
    if path.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: is one cloud; pack the folder that holds its class folder")
    with foreign(path) as file:
        names = _members(file)
        pairs, split = _pairs(file, names, path), _find(names, ("split",), path)
        # the split of each cloud; without a dataset split it follows below from the pairs
        words = _split(member(file, split, path), path) if split else np.array([])
        third = [
            str(name)
            for name in (sorted(set(words)) if split else pairs)
            if name not in ("", *Splits._fields)
        ]
        if not request.joins_training(path, third):
            pairs = {name: pair for name, pair in pairs.items() if name not in third}
        parts = [_checked(file, points, labels, path) for points, labels in pairs.values()]
        labels = np.concatenate([part.labels for part in parts])
        if split and len(words) != len(labels):
            raise DataError(
                f"{path}: split: expected {len(labels)} times train or test, found {len(words)}; "
                "repair it"
            )
        if not split:
            words = np.repeat(list(pairs), [len(part.labels) for part in parts])
        lists = [_find(names, _of_split(NAMES, word), path) for word in dict.fromkeys(["", *pairs])]
        classes = _class_names(file, lists, pairs.values(), labels, path)
    has_split = bool(split) or "" not in pairs
    name = os.path.basename(path)
    several = f", {SEVERAL}" if "augmented" in name.lower() else ""
    return Listing(
        len(labels),
        _clouds(path, parts, words if has_split else None),
        classes,
        has_split,
        made_from(f"HDF5 file {name}{several}"),
        third,
    )


def _clouds(path: str, parts: Sequence[Part], words: np.ndarray | None) -> Iterator[Cloud]:
    """Yield a Cloud for each cloud of the parts; words: the split of each, or None."""
    done = 0
    with foreign(path) as file:
        for part in parts:
            where = f"{path}: {part.points}: cloud"
            for first, block in blocks(member(file, part.points, path)):
                block = block[:, :, :3] if part.scale is None else block[:, :, :3] * part.scale
                for i, points in enumerate(block, first):
                    split = None if words is None else str(words[done])
                    yield Cloud(points, part.labels[i], split, f"{where} {i}")
                    done += 1


def _members(file: h5py.File) -> list[str]:
    """Return the names at the top of the file and in its groups there, without linked groups."""
    names = sorted(file)
    for group in list(names):
        ours = isinstance(file.get(group, getlink=True), h5py.HardLink) and isinstance(
            file[group], h5py.Group
        )
        if ours and file[group] != file["/"]:
            names += [f"{group}/{name}" for name in sorted(file[group])]
    return names


def _pairs(file: h5py.File, names: Sequence[str], path: str) -> dict[str, tuple[str, str]]:
    """Return {split: names of points and labels}: train and test, or "" for all clouds, and others.

    Another word before or behind the names makes another split, if its points have three axes:
    a dataset like `points_mean` holds statistics.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for word in ("", *Splits._fields, *sorted(_words(names) - set(Splits._fields))):
        points, labels = (_find(names, _of_split(kind, word), path) for kind in (POINTS, LABELS))
        ours = word in ("", *Splits._fields, *VALIDATION)
        if points and labels and (ours or member(file, points, path).ndim == 3):
            pairs[word] = points, labels
        elif ours and (points or word and labels):  # labels alone at the top may mean other data
            raise DataError(f"{path}: {LAYOUT}; found {short(names)}; rename them")
    if [word for word in pairs if word in ("", *Splits._fields)] not in (
        [""],
        list(Splits._fields),
    ) or ("" not in pairs and _find(names, ("split",), path)):
        raise DataError(f"{path}: {LAYOUT}; found {short(names)}; rename them")
    return pairs


def _words(names: Sequence[str]) -> set[str]:
    """Return the words before, behind or above the names of points or labels."""
    words = set()
    for name in map(str.lower, names):
        for kind in (*POINTS, *LABELS):
            if name.endswith((f"/{kind}", f"_{kind}")):
                words.add(name[: -len(kind) - 1])
            elif name.startswith(f"{kind}_"):
                words.add(name[len(kind) + 1 :])
    return words


def _of_split(names: Sequence[str], split: str) -> Sequence[str]:
    if not split:
        return names
    return [
        text for name in names for text in (f"{split}/{name}", f"{split}_{name}", f"{name}_{split}")
    ]


def _find(names: Sequence[str], expected: Sequence[str], path: str) -> str | None:
    """Return the name that is in expected, or None.  Raises DataError if there are two."""
    matches = [name for name in names if name.lower() in expected]
    if len(matches) > 1:
        raise DataError(
            f"{path}: expected one of {short(', '.join(expected))}; found {', '.join(matches)}; "
            "remove others"
        )
    return matches[0] if matches else None


def _checked(file: h5py.File, points: str, labels: str, path: str) -> Part:
    """Return the Part of a pair of names."""
    data, label = member(file, points, path), member(file, labels, path)
    if (
        data.ndim != 3
        or not 3 <= data.shape[2] <= COLUMNS
        or not data.size
        or data.dtype.kind not in "fiu"
    ):
        raise DataError(
            f"{path}: {points}: expected (N, P, 3) float or integer with a scale, got {data.shape} "
            f"{data.dtype}"
        )
    if label.shape not in ((len(data),), (len(data), 1)):
        raise DataError(
            f"{path}: {labels}: expected ({len(data)},) labels of {points}, one whole number each "
            f"(of one-hot rows argmax(axis=1)), got {label.shape}"
        )
    if label.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {labels}: expected whole numbers, got {label.dtype}; number the classes "
            "from 0"
        )
    scale = None if data.dtype.kind == "f" else _scale(file, data, path)
    return Part(data.name[1:], scale, whole_labels(label[()], f"{path}: {labels}"))


def _scale(file: h5py.File, data: h5py.Dataset, path: str) -> float:
    places = [
        name for name in (f"{data.parent.name}/scale", "/scale") if file.get(name, getlink=True)
    ]
    scale = (
        data.attrs["scale"]
        if "scale" in data.attrs
        else member(file, places[0], path)
        if places
        else None
    )
    if isinstance(scale, h5py.Dataset) and scale.size == 1:
        scale = scale[()]
    if (
        scale is None
        or np.size(scale) != 1
        or np.asarray(scale).dtype.kind not in "fiu"
        or not 0 < scale < np.inf
    ):
        raise DataError(
            f"{path}: {data.name[1:]}: is {data.dtype}, so one positive number is expected as its "
            f"attribute scale or as a data set scale, found {short(scale)}"
        )
    return float(np.reshape(scale, ()))


def _text(dataset: h5py.Dataset) -> Iterator[str] | None:
    """Return an iterator over the strings of a text dataset, or None for another dtype."""
    if h5py.check_string_dtype(dataset.dtype) is None:
        return None
    strings, step = dataset.asstr(), max(min(TEXTS, PIECE // 4 // dataset.dtype.itemsize), 1)
    if not dataset.ndim:
        return iter([strings[()].strip()])
    parts = (strings[first : first + step] for first in range(0, len(dataset), step))
    return (text.strip() for part in parts for text in part.reshape(-1).tolist())


def _split(dataset: h5py.Dataset, path: str) -> np.ndarray:
    """Return the split of each cloud, (N,) of the words train, test, and those of a third split."""
    meaning: dict[Any, str] = {word: word for word in (*Splits._fields, *VALIDATION)}
    meaning |= {0: "train", 1: "test"}
    if dataset.ndim not in (1, 2) or dataset.size != len(dataset):
        raise DataError(
            f"{path}: split: expected (N,) values, train or test, found {dataset.shape}; repair it"
        )
    words = []
    for value in _text(dataset) or dataset[()].reshape(-1).tolist():
        if value not in meaning:
            raise DataError(
                f"{path}: split: expected {len(dataset)} times train or test, or 0 or 1; found "
                f"{short(repr(value))}; repair it"
            )
        words.append(meaning[value])
    return np.array(words)


def _class_names(
    file: h5py.File,
    lists: Sequence[str | None],
    pairs: Iterable[tuple[str, str]],
    labels: np.ndarray,
    path: str,
) -> tuple[str, ...]:
    """Return the class names of a file, from datasets, from attributes, or from the labels.

    lists: the names of datasets of the file and of its splits, which must say the same.
    """
    named = {}  # {where: class names}
    for name in filter(None, lists):
        dataset = member(file, name, path)
        texts = _text(dataset) if dataset.ndim < 2 and dataset.size <= CLASSES else None
        if texts is None:
            raise DataError(
                f"{path}: {name}: expected text, one name a class, got {dataset.shape} "
                f"{dataset.dtype}"
            )
        try:
            # the limit is far above real names: it cuts hostile ones
            named[name] = tuple(short(text, 1000) for text in texts)
        except UnicodeDecodeError as reason:
            raise DataError(f"{path}: {name}: is no UTF-8 ({reason}); store it so") from reason
    datasets = [file[name] for pair in pairs for name in pair]
    for node in (file, *datasets, *(dataset.parent for dataset in datasets)):
        for key in node.attrs:
            if key.lower() in NAMES:
                named[f"attribute {key} of {node.name}"] = _attribute(node.attrs, key, path)
    if len(set(named.values())) > 1:
        raise DataError(
            f"{path}: class names differ between {short(' and '.join(named), 200)}; remove all but "
            "one"
        )
    if named:
        return next(iter(named.values()))
    classes = int(labels.max(initial=-1)) + 1
    if classes > max(len(labels), 2):
        raise DataError(
            f"{path}: has a label {classes - 1}, but {len(labels)} clouds; check it, or add "
            "class_names"
        )
    return tuple(map(str, range(classes)))


def _attribute(attributes: h5py.AttributeManager, key: str, path: str) -> tuple[str, ...]:
    """Return the text of an attribute, one name a class; few, because it is read at once."""
    stored = attributes.get_id(key)
    if (
        h5py.check_string_dtype(stored.dtype) is None
        or len(stored.shape) != 1
        or stored.shape[0] > ATTRIBUTES
    ):
        raise DataError(
            f"{path}: attribute {key}: expected text, one name a class, up to {ATTRIBUTES}, got "
            f"{stored.shape} {stored.dtype}; store a list, or a data set {key}"
        )
    texts = [
        text.decode() if isinstance(text, bytes) else text for text in attributes[key].tolist()
    ]
    return tuple(short(text.strip(), 1000) for text in texts)
