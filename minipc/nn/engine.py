"""Two engines with the same methods, and the tape of what the backward needs.

A model's forward is a sequence of calls to an engine: enter, shared, pooled, dense, output.
Textbook builds each call from the operations of ops.py, the specification; Fast computes the
same function from the moments of each layer's input (fast/fused.py).  Each engine passes its own
type from layer to layer: (B, N, O) arrays here, an Activation there.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from minipc.backend import module_of
from minipc.errors import UsageError
from minipc.nn import kernels, ops
from minipc.nn.fast import fused, products
from minipc.nn.fast.workspace import Workspace


class Operation(NamedTuple):
    """One operation of a forward, as its backward needs it."""

    backward: Any  # backward(dy, cache) -> dx, or (dx, dparameter, ...) in the order of names
    cache: Any
    names: tuple[str, ...]  # of the parameters


class Tape(list[Operation]):
    """The Operations of one forward, in its order; it is not autograd: no graph, no tracing."""

    def __init__(self, params: dict[str, Any], eps: float) -> None:
        """params {dotted name: array} and eps of batch norm serve the whole forward."""
        super().__init__()
        self.params, self.eps = params, eps
        self.batch: dict[str, ops.BatchStats] = {}  # by layer

    def push(self, result: Sequence, backward: Callable, *names: str) -> Any:
        """Keep one operation, result = (y, cache), and return y."""
        y, cache = result
        self.append(Operation(backward, cache, names))
        return y

    def beside(self) -> "Tape":
        """Return an empty tape of the same forward, for a branch of it."""
        tape = Tape(self.params, self.eps)
        tape.batch = self.batch
        return tape

    @property
    def names(self) -> list[str]:
        """The names of all parameters, in the order of the forward."""
        return [name for operation in self for name in operation.names]

    def of(self, layer: str, *parts: str) -> tuple[list[str], list[Any]]:
        """Return the dotted names of a layer's parameters, and the parameters."""
        names = [f"{layer}.{part}" for part in parts]
        return names, [self.params[name] for name in names]


def backward(dlogits: Any, tape: Tape) -> tuple[dict[str, Any], Any]:
    """Return {name: gradient} with the names of params, and the gradient of the input.

    The latter is dpoints (B, N, 3) of the textbook engine.  Fast leaves it as a fused.Gradient,
    since training does not need it; fused.input_gradient() multiplies it out.
    """
    grads: dict[str, Any] = {}
    d = dlogits
    for operation in reversed(tape):
        result = operation.backward(d, operation.cache)
        if operation.names:
            d, *of_parameters = result
            grads |= zip(operation.names, of_parameters, strict=True)
        else:
            d = result
    return grads, d


class Evaluator(NamedTuple):
    """What a finished model computes: logits = head(features(inputs)).

    The head's sums are exact, so a device may take it once for many blocks of features.
    """

    features: Callable[[Any], Any]  # of points (B, N, 3) or Inputs -> (B, O)
    head: Callable[[Any], Any]  # (B, O) -> (B, K)
    work: Workspace | None = None  # of the features

    def __call__(self, inputs: Any) -> Any:
        return self.head(self.features(inputs))


class Textbook:
    """Each layer operation by operation, as docs/math.md derives them."""

    work: Any = None

    def __init__(self, work: Workspace | None = None) -> None:
        """This engine ignores work: it keeps nothing between steps."""

    def enter(
        self, tape: Tape, x: Any, widths: Sequence[int], name: str = "points", inner: bool = False
    ) -> Any:
        """Convert x (B, N, I) to the input of shared() and pooled().

        widths: of the layers that follow, without the pooled one.  name: of this entry, if a
        forward has several.  inner: x comes from layers below, so backward needs its gradient.
        """
        return x

    def shared(self, tape: Tape, x: Any, layer: str) -> Any:
        """Linear, batch norm and ReLU of every point."""
        return _norm_relu(tape, self._linear(tape, x, layer), layer)

    def pooled(self, tape: Tape, x: Any, layer: str) -> Any:
        """The last shared layer of an entry and the maximum over its points.    -> (B, O)"""
        x = self.shared(tape, x, layer)
        return tape.push(ops.point_max_forward(x), ops.point_max_backward)

    def dense(self, tape: Tape, x: Any, layer: str) -> Any:
        """Linear, batch norm and ReLU of the head.    (B, I) -> (B, O)"""
        return _norm_relu(tape, self._linear(tape, x, layer), layer)

    def output(self, tape: Tape, x: Any, layer: str) -> Any:
        """The logits: linear and bias.    (B, I) -> (B, K)"""
        names, (b,) = tape.of(layer, "b")
        x = self._linear(tape, x, layer)
        return tape.push(ops.bias_forward(x, b), ops.bias_backward, *names)

    def _linear(self, tape: Tape, x: Any, layer: str) -> Any:
        names, (W,) = tape.of(layer, "W")
        return tape.push(ops.linear_forward(x, W), ops.linear_backward, *names)

    def eval_entry(
        self, layers: Sequence[Sequence], eps: float, channels: int = 3
    ) -> Callable[[Any], Any]:
        """Return pooled(x), the features (B, O) of x (B, N, channels) with tracked statistics.

        layers: (W, gamma, beta, mean, var) of the shared layers of an entry.
        """

        def pooled(x: Any) -> Any:
            # another memory order can change the rounding of a product
            x = module_of(x).ascontiguousarray(x)
            for W, *norm in layers:
                x = eval_norm_relu(ops.linear_forward(x, W)[0], norm, eps)
            return x.max(axis=1)  # (M12); only a backward needs the winners

        return pooled


class Fast(Textbook):
    """Shared layers and pool by the moments of their inputs, in the buffers of a Workspace.

    The head is that of the textbook, but for a product whose gradient has a buffer.
    """

    def __init__(self, work: Workspace) -> None:
        self.work = work

    def enter(
        self, tape: Tape, x: Any, widths: Sequence[int], name: str = "points", inner: bool = False
    ) -> Any:
        """As Textbook.enter."""
        entry = fused.to_tower(x, widths, self.work, name, exact=not inner)
        return tape.push((entry, None), _input_gradient) if inner else entry

    def shared(self, tape: Tape, x: Any, layer: str) -> Any:
        """As Textbook.shared."""
        return self._fused(tape, x, layer, fused.shared_forward, fused.shared_backward)

    def pooled(self, tape: Tape, x: Any, layer: str) -> Any:
        """As Textbook.pooled."""
        return self._fused(tape, x, layer, fused.pooled_forward, fused.pooled_backward)

    def dense(self, tape: Tape, x: Any, layer: str) -> Any:
        """As Textbook.dense; on a device, batch norm and ReLU are one kernel."""
        if not kernels.on_device(self.work.xp):
            return super().dense(tape, x, layer)
        names, values = tape.of(layer, "gamma", "beta")
        x = self._linear(tape, x, layer)
        y, cache, stats = kernels.norm_relu(x, values[0], values[1], tape.eps, self.work, layer)
        tape.batch[layer] = stats
        return tape.push((y, cache), kernels.norm_relu_backward, *names)

    def _fused(self, tape: Tape, x: Any, layer: str, forward: Callable, backward: Callable) -> Any:
        names, values = tape.of(layer, "W", "gamma", "beta")
        *result, tape.batch[layer] = forward(x, *values, tape.eps, name=layer)
        return tape.push(result, backward, *names)

    def _linear(self, tape: Tape, x: Any, layer: str) -> Any:
        names, (W,) = tape.of(layer, "W")
        result = products.linear_forward(x, W, self.work, layer)
        return tape.push(result, products.linear_backward, *names)

    def eval_entry(
        self, layers: Sequence[Sequence], eps: float, channels: int = 3
    ) -> Callable[[Any], Any]:
        """As Textbook.eval_entry."""
        maps = fused.eval_maps(layers, eps, channels)
        return lambda x: fused.shared_eval(x, maps, self.work)


ENGINES = {"fused": Fast, "textbook": Textbook}


def check_engine(name: str) -> None:
    """Raise UsageError for an unknown engine name."""
    if name not in ENGINES:
        raise UsageError(f"engine: expected {' or '.join(ENGINES)}, got {name!r}")


def engine_of(name: str, work: Workspace | None, *arrays: Any, engines: dict = ENGINES) -> Any:
    """Return the engine of this name, with work or a new Workspace for the arrays' module.

    Raises UsageError for an unknown name.
    """
    check_engine(name)
    return engines[name](work or Workspace(module_of(*arrays)))


def _norm_relu(tape: Tape, x: Any, layer: str) -> Any:
    names, (gamma, beta) = tape.of(layer, "gamma", "beta")
    *result, tape.batch[layer] = ops.batch_norm_forward(x, gamma, beta, tape.eps)
    x = tape.push(result, ops.batch_norm_backward, *names)
    return tape.push(ops.relu_forward(x), ops.relu_backward)


def _input_gradient(d: fused.Gradient, _: None) -> Any:
    return fused.input_gradient(d)


def eval_norm_relu(x: Any, norm: Sequence, eps: float) -> Any:
    """Batch norm with tracked statistics, and ReLU.    norm = gamma, beta, mean, var, (O,) each"""
    gamma, beta, mean, var = norm
    if kernels.on_device(module_of(x)):
        return kernels.norm_relu_eval(x, norm, eps)
    x, _ = ops.batch_norm_eval_forward(x, gamma, beta, mean, var, eps)
    return ops.relu_forward(x)[0]
