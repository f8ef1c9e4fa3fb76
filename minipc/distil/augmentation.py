"""Network augmentation: the model learns inside wider networks that share its weights.

Cai et al. 2022 (NetAug), the first stage of T3DNet.  The parameters of a run are those of the
largest network; the model and every widened network are slices of them (nn/widening.py).  A step
adds the gradients of the model and of one widened network, on the same clouds, each with weight 1.
What is evaluated and exported is the model alone.
"""

from collections.abc import Callable
from typing import Any

from minipc.backend import tree_to
from minipc.models.model import net
from minipc.nn.engine import backward
from minipc.nn.fast.workspace import Workspace
from minipc.nn.params import initialise
from minipc.nn.widening import add, candidates, draw_widths, index_of, put, take
from minipc.settings import TrainConfig
from minipc.streams import stream


class NetworkAugmentation:
    """The networks of a run: the model (its config), the largest one, and those between."""

    def __init__(self, model: Any, config: TrainConfig, xp: Any, threads: int) -> None:
        """Arrays belong to module xp.  A Workspace of its own, since sizes change with each draw,
        and a widened network must not overwrite what the step still reads of the model.
        """
        self.model, self.config, self.xp = model, config, xp
        self.work = Workspace(xp, threads)
        self.largest = largest(model, config)
        self.own = self.index(model)

    def index(self, model: Any) -> dict[str, Any]:
        """Return the index of a network's slices in the largest one."""
        return index_of(net(model).channels(model), net(model).channels(self.largest), self.xp)

    def start(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return first parameters of the largest network, on xp, with params in their slices.

        So the model begins with the same weights as without augmentation.
        """
        rng = stream(self.config.seed, "init", 1)
        large = tree_to(self.xp, initialise(net(self.model).param_specs(self.largest), rng))
        put(large, params, self.own)
        return large

    def drawn(self, epoch: int, step: int) -> Any:
        """Return the config of the widened network of a step."""
        config, module = self.config, net(self.model)
        key = (epoch,) if config.augment_every == "epoch" else (epoch, step)
        rng = stream(config.seed, "widths", *key)
        factor, steps = config.augment_width, config.augment_steps
        return module.with_widths(
            self.model, draw_widths(module.widths(self.model), factor, steps, rng)
        )

    def gradients(
        self,
        params: dict[str, Any],
        grads: dict[str, Any],
        inputs: Any,
        of_logits: Callable[[Any], Any],
        epoch: int,
        step: int,
    ) -> dict[str, Any]:
        """Return the gradients of the largest network: those of both networks, added.  (W2)

        params: of the largest network.  grads: of the model, for the same inputs.  of_logits(z):
        the gradient of the loss at the logits of the widened network, which has no dropout.  In the
        last epochs, without augmentation, only grads count.
        """
        total = {name: self.xp.zeros_like(value) for name, value in params.items()}
        add(total, grads, self.own)
        if self.config.augments(epoch):
            model = self.drawn(epoch, step)
            index = self.index(model)
            z, _, tape = net(model).forward_train(
                take(params, index), inputs, model, None, self.config.engine, self.work
            )
            add(total, backward(of_logits(z), tape)[0], index)
        return total


def largest(model: Any, config: TrainConfig) -> Any:
    """Return the config of the widest network that a run may draw."""
    factor, steps = config.augment_width, config.augment_steps
    widths = [candidates(width, factor, steps)[-1] for width in net(model).widths(model)]
    return net(model).with_widths(model, widths)
