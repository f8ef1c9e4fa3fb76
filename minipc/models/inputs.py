"""What a model reads of some clouds: their points, and groups made once from the stored points."""

from typing import Any, NamedTuple

from minipc.errors import DataError, check_shape


class Inputs(NamedTuple):
    """Points as the network sees them, and which of them are neighbours.

    A group is a set of points of one cloud, as their numbers in it.  Groups are made from the
    stored cloud and gathered from the augmented one: scaling by axis would change who is near.
    """

    points: Any  # (B, N, 3), augmented
    groups: tuple = ()  # integer arrays (B, ...), as prepare() of the model returns them

    def rows(self, index):
        """Return the Inputs of some clouds; index: a slice or an integer array."""
        return Inputs(self.points[index], tuple(group[index] for group in self.groups))


def points_of(x):
    """Return the points of Inputs, or x itself where it is points alone."""
    return x.points if isinstance(x, Inputs) else x


def inputs_of(x, groups=0):
    """Return Inputs of x: Inputs, or points (B, N, 3) alone.  groups: how many a model reads.

    Raises ShapeError for points of another shape, DataError where the groups are missing.
    """
    inputs = x if isinstance(x, Inputs) else Inputs(x)
    check_shape("points", inputs.points, (None, None, 3))
    if len(inputs.groups) != groups:
        raise DataError(
            f"model: reads points and {groups} groups, got {len(inputs.groups)}; make them by "
            "prepare() of the model, from the stored clouds"
        )
    return inputs
