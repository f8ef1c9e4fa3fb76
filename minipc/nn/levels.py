"""Both engines on neighbourhoods: the methods of a level, and of the point-wise layers between.

A level gives each group of neighbours to a small PointNet.  Its input and output are arrays
(B, N, C) in both engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from minipc.backend import module_of
from minipc.nn import local, ops
from minipc.nn.engine import Fast, Tape, Textbook, backward, eval_norm_relu
from minipc.nn.fast import fused, local_eval, pointwise
from minipc.nn.fast import local as fast_local


class Near(NamedTuple):
    """Where the points of a level are, and which of them are centres."""

    positions: Any  # (B, N, 3), augmented
    centres: Any  # (B, M) indices of points

    def of_centres(self) -> Any:
        """Return the positions of the centres (B, M, 3)."""
        xp = module_of(*self)
        return self.positions[xp.arange(len(self.positions))[:, None], self.centres]

    def times(self, factor: int) -> Near:
        """Return where they are for a scale whose offsets are multiplied by factor.  (M18)"""
        return self if factor == 1 else self._replace(positions=self.positions * factor)


class TextbookLevels(Textbook):
    """Levels operation by operation, as docs/math.md derives them."""

    def pointwise(
        self, tape: Tape, x: Any, layer: str, residual: bool = False, inner: bool = True
    ) -> Any:
        """Linear, batch norm and ReLU of every point, plus x where residual.

        x (B, N, I) -> (B, N, O).  inner: x comes from layers below.
        """
        branch = tape.beside()
        y = self.shared(branch, x, layer)
        if residual:
            y = y + x
        return tape.push((y, (branch, residual)), _pointwise_backward, *branch.names)

    def level(self, tape: Tape, x: Any, scales: Sequence[tuple]) -> Any:
        """Return what the groups of a level see, (B, M, channels of all scales).

        x: features (B, N, C), or None.  scales: for each scale its Near, its members (B, M, k) and
        the Layers of its rows, the last of which is pooled.
        """
        branches, results = [], []
        for near, members, layers in scales:
            branches.append(tape.beside())
            results.append(self._scale(branches[-1], near, x, members, layers))
        widths = [result.shape[2] for result in results]
        y = results[0] if len(results) == 1 else self._joined(results, scales[0][2][0].name)
        names = [name for branch in branches for name in branch.names]
        read = x is not None
        return tape.push((y, (branches, widths, read)), _level_backward, *names)

    def _scale(self, tape: Tape, near: Near, x: Any, members: Any, layers: Sequence) -> Any:
        rows = local.offsets(near.positions, near.centres, members)
        if x is not None:
            gathered = tape.push(local.gather_forward(x, members), local.gather_backward)
            rows = self.beside(tape, rows, gathered)
        for layer in layers:
            rows = self.shared(tape, rows, layer.name)
        return tape.push(ops.point_max_forward(rows), ops.point_max_backward)

    def beside(self, tape: Tape, positions: Any, x: Any) -> Any:
        """Return [positions ; x] (..., 3 + C); only x has a gradient."""
        return tape.push((self._joined([positions, x], "beside"), None), _features)

    def _joined(self, arrays: list, name: str) -> Any:
        return module_of(*arrays).concatenate(arrays, axis=-1)

    def eval_pointwise(
        self, values: Sequence, eps: float, residual: bool = False
    ) -> Callable[[Any], Any]:
        """Return pointwise(x) with tracked statistics; values: W, gamma, beta, mean, var."""
        W, *norm = values

        def pointwise(x: Any) -> Any:
            x = module_of(x).ascontiguousarray(x)
            y = eval_norm_relu(ops.linear_forward(x, W)[0], norm, eps)
            return y + x if residual else y

        return pointwise

    def eval_scale(self, layers: Sequence[Sequence], eps: float) -> Callable[[Near, Any, Any], Any]:
        """Return level(near, x, members), one scale of level(), with tracked statistics."""

        def level(near: Near, x: Any, members: Any) -> Any:
            rows = local.offsets(near.positions, near.centres, members)
            if x is not None:
                rows = self._joined([rows, local.gather_forward(x, members)[0]], "")
            rows = rows.reshape(len(rows), -1, rows.shape[-1])  # one product for each cloud
            # another memory order can change the rounding of a product
            rows = module_of(rows).ascontiguousarray(rows)
            for W, *norm in layers:
                rows = eval_norm_relu(ops.linear_forward(rows, W)[0], norm, eps)
            return rows.reshape(*members.shape, -1).max(axis=2)

        return level


class FastLevels(TextbookLevels, Fast):
    """Levels without their rows wherever possible (fast/local.py)."""

    def pointwise(
        self, tape: Tape, x: Any, layer: str, residual: bool = False, inner: bool = True
    ) -> Any:
        """As Textbook.pointwise."""
        names, values = tape.of(layer, "W", "gamma", "beta")
        W, gamma, beta = values
        *result, tape.batch[layer] = pointwise.pointwise_forward(
            x, W, gamma, beta, tape.eps, self.work, layer, residual, inner
        )
        return tape.push(result, pointwise.pointwise_backward, *names)

    def _scale(self, tape: Tape, near: Near, x: Any, members: Any, layers: Sequence) -> Any:
        first, rest = layers[0], list(layers[1:])
        widths = [layer.fan_out for layer in layers[:-1]]
        if x is None:
            rows = fast_local.to_offsets(*near, members, widths, self.work, first.name)
            rest = list(layers)
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

    def _joined(self, arrays: list, name: str) -> Any:
        shape = (*arrays[0].shape[:-1], sum(array.shape[-1] for array in arrays))
        out = self.work.array(f"{name} joined", shape, arrays[0].dtype)
        return module_of(*arrays).concatenate(arrays, axis=-1, out=out)

    def eval_pointwise(
        self, values: Sequence, eps: float, residual: bool = False
    ) -> Callable[[Any], Any]:
        """As Textbook.eval_pointwise."""
        maps = fused.eval_maps([values], eps, len(values[0]))
        return lambda x: pointwise.pointwise_eval(x, maps, residual, self.work)

    def eval_scale(self, layers: Sequence[Sequence], eps: float) -> Callable[[Near, Any, Any], Any]:
        """As Textbook.eval_scale."""
        maps = fused.eval_maps(layers, eps, len(layers[0][0]))
        return lambda near, x, members: local_eval.level_eval(
            near.positions, x, near.centres, members, maps, self.work
        )


ENGINES = {"fused": FastLevels, "textbook": TextbookLevels}


def _features(d: Any, _: None) -> Any:
    return d[..., 3:]


def _pointwise_backward(d: Any, cache: tuple) -> tuple:
    branch, residual = cache
    grads, dx = backward(d, branch)
    return dx + d if residual else dx, *(grads[name] for name in branch.names)


def _level_backward(d: Any, cache: tuple) -> tuple:
    """Each scale reads its channels of d; the gradients of what they all read are added."""
    branches, widths, read = cache
    grads: dict[str, Any] = {}
    dx, first = None, 0
    for branch, width in zip(branches, widths, strict=True):
        of_parameters, part = backward(d[..., first : first + width], branch)
        first += width
        grads |= of_parameters
        if read:
            if dx is None:
                dx = part  # an array of this scale alone
            else:
                dx += part
    return dx, *(grads[name] for branch in branches for name in branch.names)
