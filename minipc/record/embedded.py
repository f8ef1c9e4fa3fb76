"""Clouds in a record, so that one file is enough to train a student; int16 where lossless.

A record with clouds has header version 2 and one more key in its meta.  The clouds are not part of
its identity: the plan holds the hashes of the training clouds, and decoded clouds must match them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.data.clouds import Clouds, Splits, names_of, with_names
from minipc.errors import DataError
from minipc.storage import files

if TYPE_CHECKING:
    from typing import Any

    from minipc.record.plan import Plan
    from minipc.storage.hdf5 import Stored

WITH_CLOUDS = 2  # header version of a record that carries its clouds
WITH_FILES = 3  # ... and the names of their files
CLOUDS_META = {"dtype", "exponent", "source"}  # of version 2; version 3 adds files


class Embedded(NamedTuple):
    """Clouds as a record stores them."""

    meta: dict  # keys CLOUDS_META, and files where they have names
    arrays: dict  # {field name: array}

    @property
    def version(self) -> int:
        """The header version of a record that carries them."""
        return WITH_FILES if "files" in self.meta else WITH_CLOUDS

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def encode(splits: Splits) -> Embedded:
    """Return both splits as Embedded; int16 points are stored * 2^exponent.

    The exponent is that of the finest grid on which the largest coordinate fits.  If any bit of any
    float32 would be lost (even the sign of a zero), points stay float32 and the exponent is None.
    """
    points = [clouds.points for clouds in splits]
    fraction, exponent = np.frexp(max(max(x.max(), -x.min()) for x in points))
    exponent = int(exponent) - 15 + int(fraction > 32767 / 32768)
    dtype, stored = "int16", [np.ldexp(x, -exponent).astype(np.int16) for x in points]
    if not all(_same_bits(_decode(q, exponent), x) for q, x in zip(stored, points, strict=True)):
        dtype, exponent, stored = "float32", None, points
    arrays = {}
    for name, clouds, values in zip(Splits._fields, splits, stored, strict=True):
        arrays[f"clouds/{name}/points"], arrays[f"clouds/{name}/labels"] = values, clouds.labels
    meta = {"dtype": dtype, "exponent": exponent, "source": splits.train.source or None}
    named = names_of(splits)
    return Embedded(meta | ({"files": named} if named else {}), arrays)


def check_meta(meta: dict[str, Any], path: str) -> None:
    """Raise DataError unless meta, read from a file, is a valid Embedded.meta."""
    named = isinstance(meta, dict) and "files" in meta
    files.check_keys(meta, CLOUDS_META | ({"files"} if named else set()), path)
    kind, exponent = meta["dtype"], meta["exponent"]
    if not (
        kind == "float32"
        and exponent is None
        or kind == "int16"
        and type(exponent) is int
        and abs(exponent) < 256  # float32 has 2^-149 to 2^127
    ):
        raise DataError(f"{path}: clouds as {kind!r} * 2^{exponent!r}: make the record again")


def decode(stored: dict[str, Stored], meta: dict[str, Any], plan: Plan, path: str) -> Splits:
    """Return the Splits in the hdf5.Stored arrays of cloud_fields, exactly as they were embedded.

    Raises DataError unless the training split has the hashes that the plan names.
    """
    described = {name: getattr(plan, name) for name in ("class_names", "up_axis", "normalisation")}
    described |= {"source": meta["source"] or "", "files": ()}
    splits = []
    for name in Splits._fields:
        points, labels = (stored[f"clouds/{name}/{part}"].read() for part in ("points", "labels"))
        points = points if meta["exponent"] is None else _decode(points, meta["exponent"])
        splits.append(
            files.from_dict(
                Clouds, {"points": points, "labels": labels, **described}, f"{path}: clouds/{name}"
            )
        )
    check_recorded(splits[0], plan, f"{path}: clouds/train")
    return with_names(Splits(*splits), meta.get("files", []), f"{path}: clouds")


def check_recorded(clouds: Clouds, plan: Plan, where: str) -> None:
    """Raise DataError unless clouds, a training split, have the hashes that the plan names."""
    for name in ("points_hash", "labels_hash"):
        actual, expected = getattr(clouds, name), getattr(plan, name)
        if actual != expected:
            raise DataError(
                f"{where}: are not those that are recorded: {name} is {actual[:16]}, expected "
                f"{expected[:16]}; use the data that the record is made from"
            )


def _decode(stored: np.ndarray, exponent: int) -> np.ndarray:
    """Return stored * 2^exponent as float32, exact wherever encode chose the exponent."""
    return np.ldexp(stored.astype(np.float32), exponent)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))
