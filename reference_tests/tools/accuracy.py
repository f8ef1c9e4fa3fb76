"""How far float32 is off: the fast engine beside the textbook.

`python -m reference_tests.tools.accuracy` prints the row of docs/reliability.md for the kernel of
BLAS in use; OPENBLAS_CORETYPE=NAME before the command takes another.  test_fused.py holds the same
figures to what is claimed.
"""

import numpy as np

from minipc.backend import blas_kernel, blas_on_one_thread
from minipc.models.pointnet import forward_train, param_specs, sizes
from minipc.nn.engine import backward
from minipc.nn.fast import fused
from minipc.nn.params import initialise

FAR = (10, 100, 1000)
DRAWS = 9


def signed_params(specs, rng):
    """Return {name: float64 array} of specs, with signs and zeros in gamma."""
    params = initialise(specs, rng, np.float64)
    for name, value in params.items():
        if name.endswith(".gamma"):
            value *= rng.standard_normal(value.shape)
            value[1] = 0
        elif not name.endswith(".W"):
            value += 0.5 * rng.standard_normal(value.shape)
    return params


def problem(config, clouds, points, dtype=np.float64, seed=0, offset=0.0):
    """Return params with signs and zeros in gamma, points and dlogits."""
    rng = np.random.default_rng(seed)
    params = signed_params(param_specs(config), rng)
    x = rng.standard_normal((clouds, points, 3)) + offset
    dlogits = rng.standard_normal((clouds, config.classes))
    return (
        {name: value.astype(dtype) for name, value in params.items()},
        x.astype(dtype),
        dlogits.astype(dtype),
    )


def both(config, params, points, dlogits, work=None):
    """Return (logits, statistics, all gradients) of the fast engine, then of the textbook."""
    found = []
    for engine in ("fused", "textbook"):
        z, batch, tape = forward_train(params, points, config, None, engine, work)
        grads, d = backward(dlogits, tape)
        found.append(
            (z, batch, grads | {"points": fused.input_gradient(d) if engine == "fused" else d})
        )
    return found


def worst(mine, theirs):
    """Return the largest difference, relative to the largest number of the other dict."""
    largest = max(np.abs(value).max() for value in theirs.values())
    return max(np.abs(mine[name] - theirs[name]).max() for name in theirs) / largest


def statistics(batch):
    return {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in batch.items()
        for part in ("mean", "var")
    }


def one_point_far(far):
    def change(x):
        x[0, 0] = far
        return x

    return change


def one_cloud_far(far):
    def change(x):
        x[0] += far
        return x

    return change


def drawn_out(far):
    """Points along a line, in a direction that no axis and no weight knows of."""

    def change(x):
        return x + (far - 1) * (x @ np.full((3, 3), 1 / 3, x.dtype))

    return change


def errors_in_float32(change=lambda x: x, offset=0.0):
    """Return the median errors of the fast engine, then of the textbook."""
    config, errors = sizes("tiny", 10), []
    for seed in range(DRAWS):
        params, x, dlogits = problem(config, 8, 256, np.float32, seed, offset)
        x = change(x)
        params["shared0.gamma"] = np.abs(params["shared0.gamma"]) + 0.5
        in_float64 = {name: value.astype(float) for name, value in params.items()}
        _, (z_exact, batch_exact, exact) = both(
            config, in_float64, x.astype(float), dlogits.astype(float)
        )
        del exact["points"]  # a sum of few terms; its error is that of which point wins
        errors.append(
            [
                (
                    worst({"z": z}, {"z": z_exact}),
                    worst(statistics(batch), statistics(batch_exact)),
                    worst(grads, exact),
                )
                for z, batch, grads in both(config, params, x, dlogits)
            ]
        )
    return np.median(
        errors, axis=0
    )  # not the mean: one other winner of the pool outweighs all roundings


def main():
    kinds = {
        "offsets": [({}, {"offset": offset}) for offset in (0.0, 1.0, 10.0, 1e4)],
        "outliers": [
            ({"change": kind(far)}, {}) for kind in (one_point_far, one_cloud_far) for far in FAR
        ],
        "lines": [({"change": drawn_out(far)}, {}) for far in FAR],
    }
    cells = [blas_kernel() or "unknown"]
    with blas_on_one_thread(print):
        for cases in kinds.values():
            ratios = np.array([np.divide(*errors_in_float32(**{**a, **b})) for a, b in cases])
            cells += [
                f"{np.median(each):.2f}, {each.max():.2f}" for each in (ratios[:, :2], ratios[:, 2])
            ]
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
