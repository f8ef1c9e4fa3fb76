"""Files that lie: for each kind of file of ours, changed copies that a reader must refuse.

Every change of the HDF5 content comes with a recomputed digest, so that the structural checks are
what refuses it; the others are changes of the bytes, which the digest is there for.  Data sets of
others have no digest, and what is merely unusual in them is read.

`python -m reference_tests.faults.hostile FOLDER` reads every file of the corpus in FOLDER, each by
the reader of its kind, and prints what came of it, how long it took and the memory it needed: a
process of its own, so that the memory is that of the readers.
"""

import io
import json
import os
import sys
import tempfile
import time
import zlib

import h5py
import numpy as np

from minipc.data.clouds import read_clouds
from minipc.data.groups_file import read_groups
from minipc.data.readers.source import read_source
from minipc.errors import MinipcError
from minipc.models.checkpoint import read_checkpoint
from minipc.models.file import read_model
from minipc.record.reader import RecordReader
from minipc.storage import files
from reference_tests.tools.memory import peak_of

VERSIONS = {"record": 1, "clouds": 2, "model": 1, "checkpoint": 1, "groups": 1}


def read_record(path):
    with RecordReader(path) as reader:
        return [array for view in range(reader.views) for array in reader.view(view)]


def points_of(splits):
    return [split.points for split in splits]


def read_single(path):
    return points_of(read_source(path, 16, limits=False).splits)


def read_folder(path):
    """Read one file as both parts of a ModelNet folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (
            ("shape_names", "a\nb"),
            ("train_files", "part.h5"),
            ("test_files", "part.h5"),
        ):
            with open(os.path.join(folder, f"{name}.txt"), "w") as file:
                file.write(text)
        os.symlink(os.path.abspath(path), os.path.join(folder, "part.h5"))
        return points_of(read_source(folder, 16, limits=False)[0])


def read_parameters(path):
    model = read_model(path)
    return [*model.params.values(), *model.stats.values()]


def read_state(path):
    state = read_checkpoint(path)
    return [*state.params.values(), *state.stats.values(), *state.optimiser.values()]


# Each returns the arrays of numbers that the file holds.
OURS = {
    "record": read_record,
    "clouds": lambda path: points_of(read_clouds(path)),
    "model": read_parameters,
    "checkpoint": read_state,
    "groups": lambda path: list(read_groups(path).arrays),
}
OTHERS = {"data set": read_single, "part": read_folder}
READERS = OURS | OTHERS


def arrays_of(file):
    """Return the names of all datasets but meta, largest first."""
    found = []
    file.visititems(
        lambda name, node: (
            found.append((-node.size, name)) if isinstance(node, h5py.Dataset) else None
        )
    )
    return [name for _, name in sorted(found) if name != "meta"]


def instead(make):
    """Return a change: make(file, name, array) creates what replaces the largest dataset."""

    def change(file):
        name = arrays_of(file)[0]
        array = file[name][...]
        del file[name]
        make(file, name, array)

    return change


def linked(link_to):
    """Return a change to a link; link_to(name) makes it."""

    def make(file, name, array):
        file[name] = link_to(name)

    return instead(make)


def stored(shape=None, data=None, dtype=None, **how):
    """Return a change to a dataset: shape and dtype as given, data a function of the array."""

    def make(file, name, array):
        values = {"data": data(array)} if data else {"shape": (shape or array.shape)[: array.ndim]}
        file.create_dataset(
            name,
            dtype=dtype(array.dtype) if dtype else None if data else array.dtype,
            **values,
            **how,
        )

    return instead(make)


def _virtual(file, name, array):
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource("elsewhere.h5", "x", array.shape)
    file.create_virtual_dataset(name, layout)


def _external(file, name, array):
    file.create_dataset(name, array.shape, array.dtype, external=[("/etc/passwd", 0, array.nbytes)])


def _nan(array):
    """Not a number in the middle; integers, which have none, become another type."""
    if array.dtype.kind != "f":
        return array.astype(">i8")
    array.flat[array.size // 2] = np.nan
    return array


def _loop(file):
    file["loop"] = file["/"]


def _huge_type(file, name, array):
    file.create_dataset(name, (1,), np.dtype([(f"f{i}", f"({1 << 16},)f8") for i in range(32)]))


def meta(text):
    """Return a change of meta to some bytes, None for none at all."""

    def change(file):
        del file["meta"]
        if text is not None:
            file.create_dataset("meta", data=np.frombuffer(text, np.uint8))

    return change


# Of the content; the digest is made anew.
CHANGES = {
    "external link": linked(lambda name: h5py.ExternalLink("elsewhere.h5", "/x")),
    "external link to a system file": linked(lambda name: h5py.ExternalLink("/etc/passwd", "/x")),
    "soft link": linked(lambda name: h5py.SoftLink("/meta")),
    "soft link to itself": linked(lambda name: h5py.SoftLink(f"/{name}")),
    "external storage": instead(_external),
    "virtual dataset": instead(_virtual),
    "link loop": _loop,
    "shape bomb of a gigabyte": stored((1 << 10, 1 << 10, 1 << 8)),
    "shape bomb of a terabyte": stored((1 << 20, 1 << 10, 1 << 8)),
    "shape bomb of 160 TiB": stored((1 << 40, 40, 1)),
    "huge type": instead(_huge_type),
    "stacked filters": stored(
        data=np.array, chunks=True, compression="gzip", shuffle=True, fletcher32=True
    ),
    "chunks": stored(data=np.array, chunks=True),
    "NaN": stored(data=_nan),
    "big endian": stored(data=np.array, dtype=lambda dtype: dtype.newbyteorder(">")),
    "another type": stored(data=np.array, dtype=lambda dtype: np.dtype("<f8")),
    "text": stored(data=lambda array: ["a"] * 3),
    "another rank": stored(data=lambda array: array.reshape(1, 1, 1, 1, -1)),
    "one row more": stored(data=lambda array: np.concatenate([array, array[-1:]])),
    "unwritten": stored(),
    "a group": instead(lambda file, name, array: file.create_group(name)),
    "nothing": instead(lambda file, name, array: None),
    "another member": lambda file: file.create_dataset("more", data=np.zeros(3)),
    "no meta": meta(None),
    "meta is no JSON": meta(b"{"),
    "meta is a list": meta(b"[]"),
    "empty meta": meta(b"{}"),
}


def edited(whole, change):
    """Return the bytes of a file whose content was changed."""
    image = io.BytesIO(whole)
    with h5py.File(image, "r+", libver=("v108", "v110")) as file:
        change(file)
    return image.getvalue()


def changed(whole, kind, change):
    """The same with its digest made anew."""
    return sealed_again(edited(whole, change), kind)


def sealed_again(whole, kind):
    """Return a file with a header that fits its bytes."""
    body = whole[files.USER_BLOCK :]
    return files.sealed(kind, VERSIONS[kind], len(whole), [body]) + body


def corpus(whole, kind):
    """Yield (name, bytes) of every hostile version of a good file."""
    for name, change in CHANGES.items():
        yield name, changed(whole, kind, change)
    yield "empty", b""
    yield "HDF5 without our header", whole[files.USER_BLOCK :]
    yield "a foreign user block", b"foreign!" + whole[8:]
    yield "trailing bytes", whole + b"\0"
    yield "trailing bytes, digest made anew for less", whole + whole[:100]
    for part in (1, 7, 8, 100, 511, 512, 513, len(whole) // 2, len(whole) - 1):
        yield f"cut after {part} bytes", whole[:part]
    rng = np.random.default_rng(0)
    for _ in range(200):
        bit = int(rng.integers(0, 8 * len(whole)))
        yield (
            f"bit {bit} turned",
            whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :],
        )


def deflate(file, name, shape, chunks, dtype="<f4"):
    """Make a dataset of zeros, deflated a thousandfold: valid, and far too large in memory."""
    found = file.create_dataset(name, shape, dtype, chunks=chunks, compression="gzip")
    chunk = zlib.compress(bytes(found.dtype.itemsize * int(np.prod(chunks))))
    for at in np.ndindex(*(-(-size // step) for size, step in zip(shape, chunks, strict=True))):
        found.id.write_direct_chunk(
            tuple(int(i * step) for i, step in zip(at, chunks, strict=True)), chunk
        )


def deflated(shape, chunks):
    """Return a change to such a dataset in place of the largest."""
    return instead(lambda file, name, array: deflate(file, name, shape, chunks))


def besides(name, shape, chunks, dtype, points=None):
    """Return a change that adds such a dataset, or replaces the one of that name.

    points: another dtype for the points, which then need a scale.
    """

    def change(file):
        for old in {name, "label" if name == "labels" else name} & set(file):
            del file[old]
            deflate(file, old, shape, chunks, dtype)
            break
        else:
            deflate(file, name, shape, chunks, dtype)
        if points:
            where = arrays_of(file)
            where = "points" if "points" in where else "data"
            array = file[where][...]
            del file[where]
            file[where] = array.astype(points)

    return change


def _bad_in_a_large_chunk(file, name, array):
    """The last of many clouds is NaN; clouds have two points, so that a chunk holds many."""
    many = np.tile(array[:, :2], (500, 1, 1))
    many[-1, 0, 0] = np.nan
    labels = next(each for each in ("labels", "label") if each in file)
    del file[labels]
    file.create_dataset(labels, data=np.arange(len(many), dtype=np.uint8) % 2)
    file.create_dataset(name, data=many, chunks=many.shape, compression="gzip")


# In a data set of others these are unusual and no lie.
OF_META = {"no meta", "meta is no JSON", "meta is a list", "empty meta"}  # of which it has none
HARMLESS = {
    "chunks",
    "stacked filters",
    "big endian",
    "another type",
    "another member",
    "link loop",
} | OF_META
BOMBS = {
    "deflated zeros": deflated((60, 1 << 18, 3), (1, 1 << 18, 3)),
    "clouds of 100 MB": deflated((60, 1 << 23, 3), (1, 1 << 18, 3)),
    "a large chunk": deflated((60, 1 << 17, 3), (60, 1 << 17, 3)),
    "clouds without number": deflated((1 << 24, 1, 3), (1 << 20, 1, 3)),
    "chunks across all clouds": deflated((60, 1 << 18, 3), (60, 1 << 10, 1)),
    "labels of 16 MiB": besides("labels", (60,), (1,), "S16777216"),
    "not a number in a large chunk": instead(_bad_in_a_large_chunk),
}
BOMBS_OF_A_DATA_SET = {  # members that a part of a folder does not have
    "a scale of a gigabyte": besides("scale", (256, 1 << 20), (1, 1 << 20), "<f4", points="i1"),
    "a split of a gigabyte": besides("split", (64, 1 << 24), (1, 1 << 24), "u1"),
    "classes without number": besides("class_names", (1 << 22,), (1 << 20,), "S1"),
    "classes of rank two": besides("class_names", (256, 1 << 20), (1, 1 << 20), "S1"),
}


def harmless_of_others(whole):
    """Yield (name, bytes) of versions of a good data set that shall be read."""
    yield "as it was", whole
    for name in sorted(HARMLESS - OF_META):
        yield name, edited(whole, CHANGES[name])


def corpus_of_others(whole):
    """Yield (name, bytes) of every hostile version of a good data set that is not ours."""
    single = BOMBS_OF_A_DATA_SET if b"class_names" in whole else {}
    for name, change in {**CHANGES, **BOMBS, **single}.items():
        if name not in HARMLESS:
            yield name, edited(whole, change)
    yield "empty", b""
    for part in (1, 7, 8, 100, 511, 512, len(whole) // 2, len(whole) - 1):
        yield f"cut after {part} bytes", whole[:part]


def fuzzed(whole, kind, count, rng):
    """Yield (name, bytes): some bytes of the content are changed and the digest made again."""
    for number in range(count):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(files.USER_BLOCK if kind in OURS else 0, len(data)))] = int(
                rng.integers(0, 256)
            )
        yield f"fuzzed {number}", sealed_again(bytes(data), kind) if kind in OURS else bytes(data)


def read_all(folder):
    """Read KIND/N for every kind; return {path: [outcome, CPU seconds]}."""
    found = {}
    for kind in sorted(set(READERS) & set(os.listdir(folder))):
        for name in sorted(os.listdir(os.path.join(folder, kind))):
            path, start = os.path.join(folder, kind, name), time.process_time()
            try:
                arrays = READERS[kind](path)
                outcome = (
                    "read"
                    if arrays and all(np.isfinite(each).all() for each in arrays)
                    else "read what is none"
                )
            except MinipcError as reason:
                one_line = reason.exit_code == 3 and "\n" not in str(reason)
                outcome = "refused" if one_line else f"exit {reason.exit_code}: {reason}"
            except Exception as reason:
                outcome = f"{type(reason).__name__}: {reason}"
            found[f"{kind}/{name}"] = [outcome, time.process_time() - start]
    return found


def main(folder):
    """Print what came of all files, and the memory above the start, in bytes."""
    found = {}
    memory = peak_of(lambda: found.update(read_all(folder)))
    print(json.dumps({"found": found, "memory": memory}))


if __name__ == "__main__":
    main(sys.argv[1])
