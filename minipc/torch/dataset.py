"""A record as a data set of PyTorch: one item is one view of one cloud, replayed bit for bit.

The points are those that the teacher saw: NumPy multiplies and adds in float32, two operations that
round twice (data/augment.py).  torch.addcmul(shift, points, scale) may contract them to one fused
multiply-add, which rounds once and differs in the last place; so may a compiler of the two.

A data set is pickled as paths and a digest, and opens the record again where it arrives, at the
first item: any start method of a DataLoader's workers will do.  Forked workers share what is open.
"""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minipc.data.augment import Params, apply
from minipc.data.clouds import Clouds
from minipc.data.groups_file import kept_groups, make_groups
from minipc.errors import DataError, UsageError
from minipc.record.reader import RecordReader
from minipc.torch.present import torch
from minipc.verbs.find import find_data

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Item(NamedTuple):
    """One view of one cloud; a DataLoader makes batches of the same fields."""

    points: Any  # (N, 3) float32, augmented
    label: int  # -1 where the cloud has none
    logits: Any  # (K,) float32, of the teacher, as stored
    row: int  # of the record: view * clouds + cloud
    groups: Any  # int64 tensors (M,), (M, k), ... of the stored cloud; none without a config


class _Opened(NamedTuple):
    reader: RecordReader
    clouds: Clouds
    groups: tuple


class RecordDataset(torch.utils.data.Dataset):
    """The rows of a record, view after view; item i is an Item.

    record: path.  data: path of the clouds file or the training Clouds; None: the clouds that the
    record carries, or the file that it names.  views: those to serve, in this order; None: all.
    config: of a PointNet++ of ours, whose groups each Item then carries.

    Raises DataError for a missing, damaged or foreign record and for data that it was not made
    from, UsageError for a view that was not recorded.  An item raises DataError for values that are
    not finite, and where another record lies at the path by now.
    """

    def __init__(
        self,
        record: str | os.PathLike,
        data: str | os.PathLike | Clouds | None = None,
        *,
        views: Iterable[int] | None = None,
        config: Any = None,
    ) -> None:
        self.record, self.config, self._digest = os.path.abspath(record), config, ""
        self.data = data if data is None or isinstance(data, Clouds) else os.path.abspath(data)
        self._opened: _Opened | None = None
        reader = self.opened().reader  # what is wrong is said here, not in a worker
        self._digest, self.clouds = reader.digest, reader.plan.clouds
        self.views = tuple(range(reader.views) if views is None else map(operator.index, views))
        for view in self.views:
            if not 0 <= view < reader.views:
                raise UsageError(f"{record}: view {view}: expected 0 to {reader.views - 1}")

    def __len__(self) -> int:
        return len(self.views) * self.clouds

    def __getitem__(self, item: int) -> Item:
        view, cloud = divmod(range(len(self))[item], self.clouds)  # raises IndexError past the end
        reader, clouds, groups = self.opened()
        view = self.views[view]
        scale, shift, logits = (
            stored.row(view).rows(cloud, cloud + 1).read() for stored in reader.rows.values()
        )
        points = apply(clouds.points[cloud : cloud + 1], Params(scale, shift))
        return Item(
            torch.from_numpy(points[0]),
            int(clouds.labels[cloud]),
            torch.from_numpy(logits[0].astype(np.float32)),
            view * self.clouds + cloud,
            [torch.from_numpy(group[cloud].astype(np.int64)) for group in groups],
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def opened(self) -> _Opened:
        """Return the reader, the training Clouds and their groups, opened once in a process."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> _Opened:
        reader = RecordReader(self.record)
        try:
            if self._digest and reader.digest != self._digest:
                raise DataError(
                    f"{self.record}: is not the record that the data set was made of: digest "
                    f"{reader.digest[:16]}, expected {self._digest[:16]}; it was replaced or "
                    "extended meanwhile: make the data set again"
                )
            if isinstance(self.data, Clouds):
                path, clouds = "", self.data
            else:
                name = reader.meta["data_file"]
                path, splits = find_data(self.data, name, self.record, reader=reader)
                clouds = splits.train
            reader.check_belongs(clouds)
            groups: tuple = ()
            if self.config is not None:
                groups = (
                    kept_groups(self.config, clouds, path)
                    if path
                    else make_groups(self.config, clouds.points)
                )
        except BaseException:
            reader.close()
            raise
        return _Opened(reader, clouds, groups)
