"""The loss of minipc.nn.losses as a function of PyTorch: its value and its gradient are ours.

NumPy computes both on the host, in the dtype of the logits.  Tensors of a device are copied to the
host and the gradient back: for B rows of K classes that is little beside a network.
"""

from typing import Any

import numpy as np

from minipc.errors import DataError, UsageError, check_shape
from minipc.nn.losses import loss_backward, loss_forward, smooth_labels
from minipc.settings import LossConfig
from minipc.torch.present import torch


@torch.compiler.disable  # a compiler would trace NumPy's operations as its own, and round otherwise
def loss(
    logits: Any,
    labels: Any,
    teacher_logits: Any = None,
    self_logits: Any = None,
    *,
    has_self: Any = None,
    kd_weight: float = LossConfig.kd_weight,
    self_weight: float = LossConfig.self_weight,
    temperature: float = LossConfig.temperature,
    guard: str = LossConfig.guard,
    label_smoothing: float = LossConfig.label_smoothing,
) -> Any:
    """Return the loss (L5), with the guard (L9), as a tensor () whose backward is (L7).

    logits, teacher_logits, self_logits (B, K); labels (B,) integers, -1 for none; has_self (B,)
    bool, which rows have a self target, None for all.  logits are float32 or float64; teacher and
    self logits are constants of any real floating dtype, converted to that of the logits.  Raises
    UsageError for weights that LossConfig refuses, for teacher or self logits that require a
    gradient, and in a backward with create_graph; DataError for other shapes, dtypes and labels.
    """
    config = LossConfig(kd_weight, self_weight, temperature, label_smoothing, guard)
    if not isinstance(logits, torch.Tensor) or logits.dtype not in (torch.float32, torch.float64):
        raise DataError(
            f"loss: expected logits in float32 or float64, got {_kind(logits)}; pass logits.float()"
        )
    check_shape("loss: logits", logits, (None, None))
    if not logits.numel():
        raise DataError(f"loss: expected at least one row, got logits {tuple(logits.shape)}")
    if teacher_logits is None and config.kd_weight:
        raise UsageError(
            f"loss: kd_weight = {config.kd_weight:g} needs teacher_logits; pass them or kd_weight=0"
        )
    if self_logits is None and config.self_weight:
        raise UsageError(
            f"loss: self_weight = {config.self_weight:g} needs self_logits; pass them (where no "
            "row has some yet, any with has_self all False) or self_weight=0"
        )
    v, u = (
        _constant(name, value, logits)
        for name, value in (("teacher_logits", teacher_logits), ("self_logits", self_logits))
    )
    y = smooth_labels(_labels(labels, logits), logits.shape[1], label_smoothing, _dtype(logits))
    has = None if u is None else _rows_with(has_self, logits)
    return _Loss.apply(logits, y, v, u, has, config)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Any, y: Any, v: Any, u: Any, has: Any, config: Any) -> Any:
        terms, ctx.cache = loss_forward(_host(logits), y, v, u, has, config)
        return torch.tensor(terms.total, dtype=logits.dtype, device=logits.device)

    @staticmethod
    def backward(ctx: Any, dtotal: Any) -> tuple:
        if torch.is_grad_enabled():  # a graph of the gradient is asked for; NumPy leaves none
            raise UsageError(
                "loss: has no second derivative; call backward() without create_graph=True"
            )
        dz = torch.from_numpy(loss_backward(ctx.cache)).to(dtotal.device)
        return dz * dtotal, None, None, None, None, None


def _kind(value: Any) -> str:
    return str(value.dtype if isinstance(value, torch.Tensor) else type(value).__name__)


def _host(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _dtype(tensor: Any) -> Any:
    return np.float32 if tensor.dtype == torch.float32 else np.float64


def _constant(name: str, value: Any, logits: Any) -> np.ndarray | None:
    """Return constant logits (B, K) on the host, in the dtype of the student's."""
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        raise DataError(f"loss: {name}: expected a floating point tensor, got {_kind(value)}")
    if value.requires_grad:
        raise UsageError(
            f"loss: {name} require a gradient, but they are constants of this loss; pass "
            f"{name}.detach()"
        )
    check_shape(f"loss: {name}", value, tuple(logits.shape))
    return _host(value.to(logits.dtype))


def _labels(labels: Any, logits: Any) -> np.ndarray:
    """Return labels (B,) int64 on the host, after their check."""
    if (
        not isinstance(labels, torch.Tensor)
        or labels.dtype.is_floating_point
        or labels.dtype.is_complex
        or labels.dtype == torch.bool
    ):
        raise DataError(f"loss: labels: expected a tensor of integers, got {_kind(labels)}")
    check_shape("loss: labels", labels, (len(logits),))
    values, classes = _host(labels).astype(np.int64), logits.shape[1]
    if values.min() < -1 or values.max() >= classes:
        raise DataError(
            f"loss: labels: expected 0 to {classes - 1}, or -1 for none, got "
            f"{values.min()} to {values.max()}"
        )
    return values


def _rows_with(has_self: Any, logits: Any) -> np.ndarray:
    """Return 1 where a row has a self target and 0 where not, (B,) in the dtype of the logits."""
    if has_self is None:
        return np.ones(len(logits), _dtype(logits))
    if not isinstance(has_self, torch.Tensor) or has_self.dtype != torch.bool:
        raise DataError(f"loss: has_self: expected a tensor of bool, got {_kind(has_self)}")
    check_shape("loss: has_self", has_self, (len(logits),))
    return _host(has_self).astype(_dtype(logits))
