"""Kernels of our own for a device, each in the place of many array operations.

On a device it is the host's time to begin an operation that small arrays cost, so what CuPy would
do in a hundred operations is one here.  Each kernel takes the operations of its NumPy form in their
order, and products and sums are rounded one by one (no fused multiply-add); where it says so, the
bits are the same but for subnormal numbers, which a device makes 0.  Tests hold each against that
form on a device.  No kernel uses atomics: every sum has one order.
"""

from functools import cache
from typing import Any

ROUNDED_ONE_BY_ONE = ("--fmad=false",)


def on_device(xp: Any) -> bool:
    """Return whether module xp compiles kernels: CuPy does, NumPy does not."""
    return hasattr(xp, "ElementwiseKernel")


@cache
def _elementwise(xp: Any, name: str, given: str, changed: str, body: str) -> Any:
    return xp.ElementwiseKernel(given, changed, body, name, options=ROUNDED_ONE_BY_ONE)


def join(arrays: dict[str, Any], work: Any, name: str, fresh: bool) -> Any:
    """Return the one array in which all arrays lie, weights of linear layers (".W") first.

    Arrays that are not there are copied, and the dict then holds views.  The Workspace work keeps
    the array by its name.  fresh: the copies must not overwrite the views of another dict.
    """
    order = sorted(arrays, key=lambda key: not key.endswith(".W"))
    memory, views = work.joined.get(name, (None, {}))
    there = {key for key in order if arrays[key] is views.get(key)}
    shapes = {key: arrays[key].shape for key in order}
    if {key: view.shape for key, view in views.items()} != shapes or (fresh and there != {*order}):
        memory, first, there = work.xp.empty(_size(arrays), arrays[order[0]].dtype), 0, set()
        views = {}
        for key in order:
            stop = first + arrays[key].size
            views[key], first = memory[first:stop].reshape(shapes[key]), stop
        work.joined[name] = memory, views
    for key in order:
        if key not in there:
            views[key][...] = arrays[key]
            arrays[key] = views[key]
    return memory


def _size(arrays: dict[str, Any]) -> int:
    return sum(value.size for value in arrays.values())


def adamw(
    params: dict[str, Any], grads: dict[str, Any], m: dict, v: dict, work: Any, **rates: float
) -> None:
    """Take one step of (O1) in place, with the bits of the loop in optim.adamw_in_place.

    The first call moves params, m and v into one array each; rates: of the step, see ADAMW.
    """
    given = [
        join(arrays, work, name, fresh)
        for arrays, name, fresh in (
            (grads, "gradients", False),
            (params, "params", True),
            (m, "m", True),
            (v, "v", True),
        )
    ]
    decayed = _size({name: value for name, value in params.items() if name.endswith(".W")})
    number = given[0].dtype.type
    names = "keep beta1 rest1 beta2 rest2 scale1 scale2 eps lr".split()
    kernel = _elementwise(
        work.xp,
        "adamw",
        ", ".join(["T g", "int64 decayed", *(f"T {name}" for name in names)]),
        "T p, T m, T v",
        ADAMW,
    )
    kernel(given[0], decayed, *(number(rates[name]) for name in names), *given[1:])


ADAMW = """
    m = m * beta1 + g * rest1;
    v = v * beta2 + (g * g) * rest2;
    p = p * (i < decayed ? keep : (T)1) - (m * scale1) / (sqrt(v * scale2) + eps) * lr;
"""
