"""One shard of a recording: its name, and how it is read, with every check that its plan allows."""

from minipc import files, hdf5
from minipc.errors import DataError
from minipc.record.fields import open_fields, shard_fields
from minipc.record.finished import check_kl, sizes
from minipc.record.plan import FORMAT

SHARD_META = {"run_id", "view", "first", "rows", "provenance", "max_kl"}


def shard_name(view, first):
    """Return the name of a shard in OUT.parts."""
    return f"view-{view:05d}-row-{first:08d}.h5"


def read_shard(path, plan, view, first, stop):
    """Return (meta, {field name: array}) of one verified shard of a plan.  Raises DataError."""
    fields = shard_fields(plan.logits)
    with hdf5.open_hdf5(path, "shard", FORMAT, cap=1 << 31) as file:
        datasets = open_fields(file, fields, {**sizes(plan), "N": stop - first}, path)
        meta = hdf5.read_meta(file, path)
        files.check_keys(meta, SHARD_META, path)
        check_kl(meta["max_kl"], path)
        expected = {"run_id": plan.run_id, "view": view, "first": first, "rows": stop - first}
        for key, value in expected.items():
            if meta[key] != value:
                raise DataError(f"{path}: {key} is {meta[key]}, expected {value}")
        if not isinstance(meta["provenance"], dict):
            raise DataError(f"{path}: provenance is no mapping")
        return meta, {
            name: hdf5.read_rows(dataset, ..., path) for name, dataset in datasets.items()
        }
