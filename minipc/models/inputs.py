"""The input of a model: points of clouds, and groups made once from the stored points."""

from typing import Any, NamedTuple

from minipc.errors import DataError, check_shape


class Inputs(NamedTuple):
    """Points as the network sees them, and which of them are neighbours.

    A group is a set of point indices of one cloud.  Groups are computed from the stored cloud and
    used on the augmented one, because scaling each axis would change the neighbours.
    """

    points: Any  # (B, N, 3), augmented
    groups: tuple = ()  # integer arrays (B, ...), as prepare() of the model returns them


def check_groups(groups: tuple, clouds: int) -> None:
    """Raise DataError unless each array of groups has one row for each of so many clouds."""
    for group in groups:
        if len(group) != clouds:
            raise DataError(
                f"groups: are of {len(group)} clouds, but there are {clouds}; make them by "
                "prepare() of the model, from these clouds"
            )


def points_of(x: Any) -> Any:
    """Return the points of Inputs, or x itself if it holds points alone."""
    return x.points if isinstance(x, Inputs) else x


def inputs_of(x: Any, groups: int = 0) -> Inputs:
    """Return x as Inputs: x is Inputs, or points (B, N, 3) alone.

    groups: how many groups the model reads.
    Raises DataError for points of another shape or missing groups.
    """
    inputs = x if isinstance(x, Inputs) else Inputs(x)
    check_shape("points", inputs.points, (None, None, 3))
    if len(inputs.groups) != groups:
        raise DataError(
            f"model: reads points and {groups} groups, got {len(inputs.groups)}; make them by "
            "prepare() of the model, from the stored clouds"
        )
    return inputs
