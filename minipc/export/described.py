"""What an exported model says of itself besides its numbers."""

import json
from typing import NamedTuple

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
    """Return what a model says of itself."""
    told = model.described
    return Described(
        net(model.config).title(model.config),
        tuple(told["class_names"]),
        model.trained.get("points", USUAL_POINTS),
        told["up_axis"],
        told["normalisation"],
    )
