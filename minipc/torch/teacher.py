"""A module of PyTorch as a teacher: points of NumPy in, logits of NumPy out, nothing random.

It is called in evaluation mode, without gradients, without autocast, in the full precision of its
own dtype: no TF32, no algorithm of cuDNN that does not repeat.  Afterwards the module and PyTorch
are as they were.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minipc.backend import BLOCK
from minipc.errors import DataError, UsageError
from minipc.torch.present import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    import numpy as np


class ModuleTeacher:
    """A teacher, as contract.py has it, of a torch.nn.Module.

    The module reads (B, P, 3), or (B, 3, P) with channels_first; or what transform makes of the
    tensor (B, P, 3) on the device.  It returns logits (B, K), or something of which output takes
    them, such as `lambda returned: returned[0]`.  batch: clouds at once, a divisor of 32.

    teacher_id: of the names, dtypes, shapes and bytes of the state dict, the module's class and
    channels_first.  What else the logits depend on (transform, output, attributes) is not in it:
    pass another id where these change.
    """

    def __init__(
        self,
        module: Any,
        *,
        channels_first: bool = False,
        transform: Callable[[Any], Any] | None = None,
        output: Callable[[Any], Any] | None = None,
        device: str = "cpu",
        batch: int = BLOCK,
        teacher_id: str | None = None,
    ) -> None:
        """Move module to device, where it stays.

        Raises UsageError for what is no module, device or batch.
        """
        if not isinstance(module, torch.nn.Module):
            raise UsageError(
                f"teacher: expected a torch.nn.Module, got {type(module).__name__}; pass the "
                "network itself"
            )
        if not 1 <= batch <= BLOCK or BLOCK % batch:
            raise UsageError(f"teacher: expected a batch that divides {BLOCK}, got {batch!r}")
        try:
            self.device = torch.device(device)
            self.module = module.to(self.device)
        except (RuntimeError, AssertionError) as reason:  # no such device, or no CUDA in the build
            said = str(reason).strip().splitlines()[0].rstrip(".")
            raise UsageError(f"teacher: device {device!r} cannot be used: {said}") from reason
        self.batch, self.output = batch, output
        self.transform = transform
        self.channels_first = channels_first
        floats = [value for value in module.parameters() if value.dtype.is_floating_point]
        self.dtype = floats[0].dtype if floats else torch.float32
        self._given_id = teacher_id
        self._lock = threading.Lock()  # evaluation mode belongs to the module, not to a call

    @property
    def teacher_id(self) -> str:
        """What identifies the teacher: as given, else of its weights as they are now."""
        return self._given_id or module_id(self.module, self.channels_first)

    @property
    def made_with(self) -> dict[str, Any]:
        """Version, device, dtype and threads of PyTorch, for the provenance of shards."""
        made = {
            "torch": torch.__version__,
            "torch_device": platform.machine(),
            "torch_dtype": str(self.dtype).removeprefix("torch."),
            "torch_tf32": False,
            "torch_threads": torch.get_num_threads(),
        }
        if self.device.type != "cuda":
            return made | {"torch_kernel": torch.backends.cpu.get_cpu_capability()}
        return made | {
            "torch_device": torch.cuda.get_device_name(self.device),
            "torch_cuda": torch.version.cuda,
            "torch_cudnn": torch.backends.cudnn.version(),
        }

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """points (B, P, 3) float32 -> logits (B, K) float32, on the host.  Raises DataError."""
        whole = torch.from_numpy(points)
        with self._lock, torch.inference_mode(), evaluation(self.module), full_precision():
            return torch.cat([self._logits(part) for part in whole.split(self.batch)]).numpy()

    def _logits(self, points: Any) -> Any:
        x = points.to(self.device, self.dtype)
        if self.channels_first:
            x = x.transpose(1, 2).contiguous()
        with torch.autocast(self.device.type, enabled=False):
            returned = self.module(x if self.transform is None else self.transform(x))
        logits = returned if self.output is None else self.output(returned)
        if not isinstance(logits, torch.Tensor):
            of = f" of {len(logits)}" if isinstance(logits, tuple | list) else ""
            raise DataError(
                f"teacher: the module returned a {type(logits).__name__}{of}, expected a tensor of "
                "logits (B, K); say which of it they are: output=lambda returned: returned[0]"
            )
        return logits.float().cpu()


def module_id(module: Any, channels_first: bool = False) -> str:
    """Return "torch-" and a SHA-256: see ModuleTeacher."""
    digest = hashlib.sha256(f"{type(module).__name__} {channels_first}".encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"torch-{digest.hexdigest()}"


@contextmanager
def evaluation(module: Any) -> Iterator[None]:
    """Put a module in evaluation mode inside this block; each part of it is restored."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch off TF32, bfloat16 for float32, and what does not repeat in cuDNN, in this block."""
    backends = torch.backends
    products = (backends.cuda.matmul, backends.mkldnn.matmul)
    others = (backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv, backends.mkldnn.rnn)
    wanted: list[tuple[Any, str, Any]] = [
        (part, "fp32_precision", "ieee") for part in (*products, *others)
    ]
    wanted += [(backends.cudnn, "benchmark", False), (backends.cudnn, "deterministic", True)]
    before = [(part, name, getattr(part, name)) for part, name, _ in wanted]
    try:
        for part, name, value in wanted:
            setattr(part, name, value)
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)
