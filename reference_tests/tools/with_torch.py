"""PyTorch for a module of tests: without it the module is skipped, or fails with
MINIPC_REQUIRE_TORCH=1."""

import os
import warnings

import pytest

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, at import; ours stay errors
        import torch
        import torch.utils.data
except ImportError:
    if os.environ.get("MINIPC_REQUIRE_TORCH") == "1":
        raise
    pytest.skip(
        "torch is not installed (MINIPC_REQUIRE_TORCH=1 makes this a failure)",
        allow_module_level=True,
    )

torch.set_num_threads(1)  # its threads wait for each other where other work has the processors

__all__ = ["torch"]
