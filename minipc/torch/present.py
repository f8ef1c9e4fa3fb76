"""PyTorch, or one line that says how to install it: all files of minipc.torch take it from here.

Nothing else of minipc imports this package, so PyTorch is loaded only for those who ask for it.
"""

from minipc.errors import BackendError

try:
    import torch
except ImportError as reason:
    raise BackendError(
        f"minipc.torch: PyTorch is not installed ({reason}); in a checkout of minipc: "
        "pip install -e '.[torch]'"
    ) from reason

__all__ = ["torch"]
