"""Two engines with the same methods, and the tape of what the backward needs.

A model's forward is a sequence of calls to an engine: enter, shared, pooled, dense, output.
Textbook builds each call from the operations of ops.py, the specification; Fast computes the
same function from the moments of each layer's input (fast/fused.py).  Each engine passes its own
type from layer to layer: (B, N, O) arrays here, an Activation there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from minipc.backend import module_of
from minipc.errors import UsageError
from minipc.nn import local, ops
from minipc.nn.fast import fused
from minipc.nn.fast import local as fast_local
from minipc.nn.fast.workspace import Workspace


class Operation(NamedTuple):
    """One operation of a forward, as its backward needs it."""

    backward: Any  # backward(dy, cache) -> dx, or (dx, dparameter, ...) in the order of names
    cache: Any
    names: tuple[str, ...]  # of the parameters


class Near(NamedTuple):
    """Where the points of a level are, and which of them are centres."""

    positions: Any  # (B, N, 3), augmented
    centres: Any  # (B, M) indices of points

    def of_centres(self):
        """Return the positions of the centres (B, M, 3)."""
        xp = module_of(*self)
        return self.positions[xp.arange(len(self.positions))[:, None], self.centres]


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

    def beside(self):
        """Return an empty tape of the same forward, for a branch of it."""
        tape = Tape(self.params, self.eps)
        tape.batch = self.batch
        return tape

    @property
    def names(self):
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


class Textbook:
    """Each layer operation by operation, as docs/math.md derives them."""

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

    def pointwise(self, tape, x, layer, residual=False, inner=True):
        """Linear, batch norm and ReLU of every point, plus x where residual.

        x (B, N, I) -> (B, N, O).  inner: x comes from layers below.
        """
        branch = tape.beside()
        y = self.shared(branch, x, layer)
        if residual:
            y = y + x
        return tape.push((y, (branch, residual)), _pointwise_backward, *branch.names)

    def level(self, tape, near, x, scales):
        """Return what the groups of a level see, (B, M, channels of all scales).

        near: Near.  x: features (B, N, C), or None.  scales: for each scale its members (B, M, k)
        and the Layers of its rows, the last of which is pooled.
        """
        branches, results = [], []
        for members, layers in scales:
            branches.append(tape.beside())
            results.append(self._scale(branches[-1], near, x, members, layers))
        widths = [result.shape[2] for result in results]
        y = results[0] if len(results) == 1 else self._joined(results, layers[0].name)
        names = [name for branch in branches for name in branch.names]
        read = x is not None
        return tape.push((y, (branches, widths, read)), _level_backward, *names)

    def _scale(self, tape, near, x, members, layers):
        rows = local.offsets(near.positions, near.centres, members)
        if x is not None:
            gathered = tape.push(local.gather_forward(x, members), local.gather_backward)
            rows = self.beside(tape, rows, gathered)
        for layer in layers:
            rows = self.shared(tape, rows, layer.name)
        return tape.push(ops.point_max_forward(rows), ops.point_max_backward)

    def beside(self, tape, positions, x):
        """Return [positions ; x] (..., 3 + C); only x has a gradient."""
        return tape.push((self._joined([positions, x], "beside"), None), _features)

    def _joined(self, arrays, name):
        return module_of(*arrays).concatenate(arrays, axis=-1)

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

    def eval_pointwise(self, values, eps, residual=False):
        """Return pointwise(x) with tracked statistics; values: W, gamma, beta, mean, var."""
        W, *norm = values

        def pointwise(x):
            x = module_of(x).ascontiguousarray(x)
            y = eval_norm_relu(ops.linear_forward(x, W)[0], norm, eps)
            return y + x if residual else y

        return pointwise

    def eval_scale(self, layers, eps):
        """Return level(near, x, members), one scale of level(), with tracked statistics."""

        def level(near, x, members):
            rows = local.offsets(near.positions, near.centres, members)
            if x is not None:
                rows = self._joined([rows, local.gather_forward(x, members)[0]], "")
            rows = rows.reshape(len(rows), -1, rows.shape[-1])  # one product for each cloud
            for W, *norm in layers:
                rows = eval_norm_relu(ops.linear_forward(rows, W)[0], norm, eps)
            return rows.reshape(*members.shape, -1).max(axis=2)

        return level


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

    def _fused(self, tape: Tape, x: Any, layer: str, forward: Callable, backward: Callable) -> Any:
        names, values = tape.of(layer, "W", "gamma", "beta")
        *result, tape.batch[layer] = forward(x, *values, tape.eps, name=layer)
        return tape.push(result, backward, *names)

    def _linear(self, tape: Tape, x: Any, layer: str) -> Any:
        names, (W,) = tape.of(layer, "W")
        result = fused.linear_forward(x, W, self.work, layer)
        return tape.push(result, fused.linear_backward, *names)

    def pointwise(self, tape, x, layer, residual=False, inner=True):
        """As Textbook.pointwise."""
        names, values = tape.of(layer, "W", "gamma", "beta")
        *result, tape.batch[layer] = fast_local.pointwise_forward(
            x, *values, tape.eps, self.work, layer, residual, inner
        )
        return tape.push(result, fast_local.pointwise_backward, *names)

    def _scale(self, tape, near, x, members, layers):
        (first, *rest), widths = layers, [layer.fan_out for layer in layers[:-1]]
        if x is None:
            rows = fast_local.to_offsets(*near, members, widths, self.work, first.name)
            rest = layers
        else:
            entry = fast_local.to_level(
                near.positions, x, near.centres, members, self.work, first.name
            )
            if not rest:
                return self._fused(
                    tape, entry, first.name, fast_local.level_forward, fast_local.level_backward
                )
            expand = partial(fast_local.expand_forward, widths=widths)
            rows = self._fused(tape, entry, first.name, expand, fast_local.expand_backward)
        for layer in rest[:-1]:
            rows = self.shared(tape, rows, layer.name)
        pool = partial(fast_local.group_pool_forward, members=members.shape[2])
        rows = self._fused(tape, rows, rest[-1].name, pool, fast_local.group_pool_backward)
        return rows

    def _joined(self, arrays, name):
        shape = (*arrays[0].shape[:-1], sum(array.shape[-1] for array in arrays))
        out = self.work.array(f"{name} joined", shape, arrays[0].dtype)
        return module_of(*arrays).concatenate(arrays, axis=-1, out=out)

    def eval_entry(
        self, layers: Sequence[Sequence], eps: float, channels: int = 3
    ) -> Callable[[Any], Any]:
        """As Textbook.eval_entry."""
        maps = fused.eval_maps(layers, eps, channels)
        return lambda x: fused.shared_eval(x, maps, self.work)

    def eval_pointwise(self, values, eps, residual=False):
        """As Textbook.eval_pointwise."""
        maps = fused.eval_maps([values], eps, len(values[0]))
        return lambda x: fast_local.pointwise_eval(x, maps, residual, self.work)

    def eval_scale(self, layers, eps):
        """As Textbook.eval_scale."""
        maps = fused.eval_maps(layers, eps, len(layers[0][0]))
        return lambda near, x, members: fast_local.level_eval(
            near.positions, x, near.centres, members, maps, self.work
        )


ENGINES = {"fused": Fast, "textbook": Textbook}


def check_engine(name: str) -> None:
    """Raise UsageError for an unknown engine name."""
    if name not in ENGINES:
        raise UsageError(f"engine: expected {' or '.join(ENGINES)}, got {name!r}")


def engine_of(name: str, work: Workspace | None, *arrays: Any) -> Textbook:
    """Return the engine of this name, with work or a new Workspace for the arrays' module.

    Raises UsageError for an unknown name.
    """
    check_engine(name)
    return ENGINES[name](work or Workspace(module_of(*arrays)))


def _norm_relu(tape: Tape, x: Any, layer: str) -> Any:
    names, (gamma, beta) = tape.of(layer, "gamma", "beta")
    *result, tape.batch[layer] = ops.batch_norm_forward(x, gamma, beta, tape.eps)
    x = tape.push(result, ops.batch_norm_backward, *names)
    return tape.push(ops.relu_forward(x), ops.relu_backward)


def _input_gradient(d: fused.Gradient, _: None) -> Any:
    return fused.input_gradient(d)


def _features(d, _):
    return d[..., 3:]


def _pointwise_backward(d, cache):
    branch, residual = cache
    grads, dx = backward(d, branch)
    return dx + d if residual else dx, *(grads[name] for name in branch.names)


def _level_backward(d, cache):
    """Each scale reads its channels of d; the gradients of what they all read are added."""
    branches, widths, read = cache
    dx, grads, first = None, {}, 0
    for branch, width in zip(branches, widths, strict=True):
        of_parameters, part = backward(d[..., first : first + width], branch)
        first += width
        grads |= of_parameters
        if read:
            dx = part if dx is None else dx + part
    return dx, *(grads[name] for branch in branches for name in branch.names)


def eval_norm_relu(x: Any, norm: Sequence, eps: float) -> Any:
    """Batch norm with tracked statistics, and ReLU.    norm = gamma, beta, mean, var, (O,) each"""
    gamma, beta, mean, var = norm
    x, _ = ops.batch_norm_eval_forward(x, gamma, beta, mean, var, eps)
    return ops.relu_forward(x)[0]
