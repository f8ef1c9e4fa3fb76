"""Our kernels on a device against the NumPy forms in whose place they stand."""

import numpy as np
import pytest

from minipc.models.pointnet import param_specs, sizes
from minipc.nn import optim
from minipc.nn.fast.workspace import Workspace
from minipc.nn.params import initialise


def drawn(dtype, seed):
    return initialise(param_specs(sizes("tiny", 5)), np.random.default_rng(seed), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adamw_has_the_bits_of_numpy(cupy, dtype):
    trained = {}
    for xp in (np, cupy):
        work = Workspace(xp)
        params = {name: xp.asarray(value).copy() for name, value in drawn(dtype, 0).items()}
        state = optim.adamw_start(params)
        for step in range(1, 5):
            grads = {name: xp.asarray(value) for name, value in drawn(dtype, step).items()}
            state = optim.adamw_in_place(params, grads, state, 1e-2, 0.1, work)
        of = {"params": params, "m": state.m, "v": state.v}
        trained[xp] = {(key, name): x for key, found in of.items() for name, x in found.items()}
    assert list(trained[np]) == list(trained[cupy])  # files are written in this order
    for key, value in trained[np].items():
        np.testing.assert_array_equal(cupy.asnumpy(trained[cupy][key]), value, err_msg=str(key))


def test_two_trainings_in_one_workspace_do_not_write_into_each_other(cupy):
    work = Workspace(cupy)
    first, second = (
        {name: cupy.asarray(value) for name, value in drawn(np.float32, seed).items()}
        for seed in (0, 1)
    )
    grads = {name: cupy.ones_like(value) for name, value in first.items()}
    optim.adamw_in_place(first, dict(grads), optim.adamw_start(first), 1e-2, 0.1, work)
    kept = {name: value.copy() for name, value in first.items()}
    optim.adamw_in_place(second, dict(grads), optim.adamw_start(second), 1e-2, 0.1, work)
    for name, value in first.items():
        np.testing.assert_array_equal(cupy.asnumpy(value), cupy.asnumpy(kept[name]))
