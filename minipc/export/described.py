"""What an exported model says of itself besides its numbers."""

import json
from typing import NamedTuple

from minipc.data.clouds import MOST_POINTS, UP_AXES
from minipc.data.prepare import NORMALISATIONS
from minipc.errors import DataError
from minipc.models.file import Model
from minipc.models.model import net

USUAL_POINTS = 1024  # of a cloud, if the model file does not say


class Described(NamedTuple):
    """Without these the class of a cloud is a guess."""

    title: str
    class_names: tuple  # in the order of the logits
    points: int  # of each cloud in training
    up_axis: str
    normalisation: str

    def as_text(self) -> dict[str, str]:
        """Return {key: text}, the metadata of a file."""
        return {
            "model": self.title,
            "class_names": json.dumps(self.class_names),
            "points": str(self.points),
            "up_axis": self.up_axis,
            "normalisation": self.normalisation,
        }


def described(model: Model) -> Described:
    """Return what a model says of itself.

    Its file may be a stranger's, and these words become source code: raises DataError for class
    names that are not printable text, and for an up axis, normalisation or number of points that
    is none.
    """
    told, points = model.described, model.trained.get("points", USUAL_POINTS)
    names = tuple(told["class_names"])
    if not (
        all(isinstance(name, str) and name.isprintable() for name in names)
        and told["up_axis"] in UP_AXES
        and told["normalisation"] in NORMALISATIONS
        and type(points) is int
        and 0 < points <= MOST_POINTS
    ):
        raise DataError(
            "model: its class names, up axis, normalisation or number of points are not what "
            "minipc writes; train the model again"
        )
    title = net(model.config).title(model.config)
    return Described(title, names, points, told["up_axis"], told["normalisation"])
