"""Compare your own loss with the conformance vectors; the loss here is written in PyTorch."""

from typing import Any

import torch
from torch import Tensor

from minipc.audit.vectors import TOLERANCE, Case, check


def your_loss(z: Tensor, y: Tensor, v: Tensor, u: Tensor, a: float, b: float, T: float) -> Tensor:
    """(1-a) CE(y, s_1) + a T^2 KL(p || s_T) - b T^2 KL(r || s_T) of one row; tensors are (K,).

    s_T, p, r are the softmax of z / T (student), v / T (teacher), u / T (earlier self); y is the
    label, and s_1 is the softmax of z.
    """
    log_s, log_p, log_r = (torch.log_softmax(logits / T, dim=0) for logits in (z, v, u))
    kd, self_kd = (T**2 * (log_q.exp() * (log_q - log_s)).sum() for log_q in (log_p, log_r))
    return (1 - a) * -(y * torch.log_softmax(z, dim=0)).sum() + a * kd - b * self_kd


def yours(case: Case) -> dict[str, Any]:
    """Return the loss of one case, and its gradient by autograd."""
    z, y, v, u = (
        torch.tensor(array, requires_grad=array is case.z)
        for array in (case.z, case.y, case.v, case.u)
    )
    loss = your_loss(z, y, v, u, case.a, case.b, case.T)
    return {"loss": loss.item(), "gradient": torch.autograd.grad(loss, z)[0].numpy()}


case, number, difference = check(yours)[0]
print(f"largest difference: {difference:.1e} in {number} of {case!r}")
if difference > TOLERANCE:
    raise SystemExit("does NOT conform")
