"""A finished record, verified: what its metadata must say, and that its arrays are what they say.

Whoever opens one gets arrays that were checked but for finite values; the rows are read later, and
libhdf5 has no part in that: it does not bear a fork.
"""

import math
import os
from contextlib import contextmanager
from typing import NamedTuple

from minipc.errors import DataError
from minipc.record import embedded
from minipc.record.fields import cloud_fields, open_fields, record_fields
from minipc.record.plan import Plan
from minipc.storage import files, hdf5

RECORD_META = {"plan", "run_id", "data_file", "provenance", "max_kl_of_rounding"}  # and "clouds"


class Record(NamedTuple):
    """A verified, open record."""

    plan: Plan
    meta: dict  # keys RECORD_META, and "clouds" where it carries them
    digest: str  # of the whole file, hexadecimal
    rows: dict  # {field name: hdf5.Stored (V, N, ...)}
    clouds: dict  # {field name: hdf5.Stored} of the clouds in it, or empty


@contextmanager
def open_record(path):
    """Yield the Record in path after every check but finite values.  Raises DataError."""
    with files.guarded(path, "record", embedded.WITH_CLOUDS) as whole:
        with hdf5.hdf5_in(whole, path) as file:
            record = _checked(file, whole, path)
        yield record


def _checked(file, whole, path):
    """Return the Record in an h5py.File of the file object whole."""
    meta = hdf5.read_meta(file, path)
    carries = "clouds" in meta
    files.check_keys(meta, RECORD_META | {"clouds"} if carries else RECORD_META, path)
    plan = Plan.from_dict(meta["plan"], path)
    made = meta["provenance"] if isinstance(meta["provenance"], list) else [None]
    for item in made:
        files.check_keys(item, {"rows", "made_with"}, path)
    hint = meta["data_file"]
    if not (
        meta["run_id"] == plan.run_id
        and all(type(item["rows"]) is int for item in made)
        and sum(item["rows"] for item in made) == plan.rows
        and (hint is None or isinstance(hint, str) and os.path.basename(hint) == hint)
    ):
        raise DataError(f"{path}: its metadata contradicts itself; make the record again")
    check_kl(meta["max_kl_of_rounding"], path)
    fields, more = record_fields(plan.logits), ()
    if carries:
        embedded.check_meta(meta["clouds"], path)
        more = cloud_fields(meta["clouds"]["dtype"])
    found = open_fields(file, (*fields, *more), sizes(plan), path)
    stored = {name: hdf5.Stored.of(dataset, whole) for name, dataset in found.items()}
    rows, clouds = ({field.name: stored[field.name] for field in some} for some in (fields, more))
    return Record(plan, meta, files.digest_in(whole), rows, clouds)


def sizes(plan):
    """Return {axis letter: length} of the finished record, but for the clouds in it."""
    return {"V": plan.views, "N": plan.clouds, "D": 3, "K": plan.classes}


def check_kl(value, where):
    """Return value if it is a number that a divergence can be.  Raises DataError."""
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where}: max_kl: expected a finite number >= 0, got {value!r}")
    return value


def clouds_of(record, path):
    """Return the Splits that an open Record carries, or None.  Raises DataError as
    embedded.decode.
    """
    if not record.clouds:
        return None
    return embedded.decode(record.clouds, record.meta["clouds"], record.plan, path)
