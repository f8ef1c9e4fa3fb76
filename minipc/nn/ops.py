"""The operations of PointNet, textbook form: each forward beside its backward, nothing hidden.

Rules of the file.  A forward returns its result and a cache of exactly what its backward reads.
A backward takes the gradient of the loss with respect to the result and returns gradients in the
order of the forward's inputs; dx has the shape of x.  Neither writes into its arguments, and the
cache holds references: do not write into an array after passing it in.  There is no
training flag: two behaviours are two functions.  Arrays may be numpy's or cupy's and keep their
dtype.

Letters: B clouds, N points, K classes, I input and O output channels; "..." any leading axes.
Equations are numbered as in docs/math.md, where each is derived.
"""

from typing import Any, NamedTuple

from minipc.backend import module_of
from minipc.errors import check_shape


def _rows(x: Any) -> Any:
    """Return x with all axes but the last joined: (..., C) -> (rows, C)."""
    return x.reshape(-1, x.shape[-1])


class LinearCache(NamedTuple):
    x: Any  # (..., I)
    W: Any  # (I, O)


def linear_forward(x: Any, W: Any) -> tuple[Any, LinearCache]:
    """y = x W over the last axis.  (M1)    x (..., I), W (I, O) -> y (..., O)

    One shared layer of PointNet is this product applied to every point.  Raises DataError for
    shapes that do not fit.
    """
    module_of(x, W)
    check_shape("W", W, (x.shape[-1], None))
    return x @ W, LinearCache(x, W)


def linear_backward(dy: Any, cache: LinearCache) -> tuple[Any, Any]:
    """dx = dy W^T,  dW = sum over rows of x^T dy.  (M2)    -> dx (..., I), dW (I, O)"""
    return dy @ cache.W.T, _rows(cache.x).T @ _rows(dy)


def bias_forward(x: Any, b: Any) -> tuple[Any, None]:
    """y = x + b over the last axis.  (M3)    x (..., O), b (O,) -> y (..., O)"""
    module_of(x, b)
    check_shape("b", b, (x.shape[-1],))
    return x + b, None


def bias_backward(dy: Any, cache: None) -> tuple[Any, Any]:
    """dx = dy,  db = sum over rows of dy.  (M4)    -> dx (..., O), db (O,)"""
    return dy, _rows(dy).sum(axis=0)


class BatchNormCache(NamedTuple):
    xhat: Any  # (..., O), the normalised input
    inv_std: Any  # (O,)
    gamma: Any  # (O,)


class BatchStats(NamedTuple):
    mean: Any  # (O,)
    var: Any  # (O,), divisor rows
    rows: int


def batch_norm_forward(
    x: Any, gamma: Any, beta: Any, eps: float
) -> tuple[Any, BatchNormCache, BatchStats]:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, moments over all rows.  (M5)

    x (..., O), gamma and beta (O,) -> y (..., O), cache, BatchStats.  var has divisor rows
    (Ioffe & Szegedy 2015, algorithm 1).  The statistics are returned and not tracked, so a second
    call changes nothing.
    """
    xp = module_of(x, gamma, beta)
    check_shape("gamma", gamma, (x.shape[-1],))
    check_shape("beta", beta, (x.shape[-1],))
    rows = _rows(x)
    mean = rows.mean(axis=0)
    xhat = x - mean  # a new array, so it may be scaled in place
    var = (_rows(xhat) ** 2).mean(axis=0)
    inv_std = 1 / xp.sqrt(var + eps)
    xhat *= inv_std
    y = gamma * xhat
    y += beta
    return y, BatchNormCache(xhat, inv_std, gamma), BatchStats(mean, var, len(rows))


def batch_norm_backward(dy: Any, cache: BatchNormCache) -> tuple[Any, Any, Any]:
    """dx = inv_std (g - mean(g) - xhat mean(g xhat)), g = dy gamma.  (M6)

    dgamma = sum dy xhat, dbeta = sum dy.    -> dx (..., O), dgamma (O,), dbeta (O,)
    """
    xhat, inv_std, gamma = cache
    rows = dy.size // dy.shape[-1]
    dgamma = _rows(dy * xhat).sum(axis=0)
    dbeta = _rows(dy).sum(axis=0)
    dx = xhat * (-dgamma / rows)  # mean(g xhat) = gamma dgamma / rows, mean(g) = gamma dbeta / rows
    dx += dy
    dx -= dbeta / rows
    dx *= gamma * inv_std
    return dx, dgamma, dbeta


class BatchNormEvalCache(NamedTuple):
    x: Any  # (..., O)
    mean: Any  # (O,), tracked
    inv_std: Any  # (O,)
    gamma: Any  # (O,)


def batch_norm_eval_forward(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float
) -> tuple[Any, BatchNormEvalCache]:
    """y = gamma (x - mean) / sqrt(var + eps) + beta with tracked mean and var.  (M7)

    x (..., O), the others (O,) -> y (..., O).  An affine map of each channel: a cloud's result
    does not depend on the other clouds of its batch.
    """
    xp = module_of(x, gamma, beta, mean, var)
    inv_std = 1 / xp.sqrt(var + eps)
    y = x - mean
    y *= gamma * inv_std
    y += beta
    return y, BatchNormEvalCache(x, mean, inv_std, gamma)


def batch_norm_eval_backward(dy: Any, cache: BatchNormEvalCache) -> tuple[Any, Any, Any]:
    """dx = dy gamma inv_std, dgamma = sum dy xhat, dbeta = sum dy.  (M8)

    mean and var are constants.
    """
    x, mean, inv_std, gamma = cache
    xhat = (x - mean) * inv_std
    return dy * (gamma * inv_std), _rows(dy * xhat).sum(axis=0), _rows(dy).sum(axis=0)


def track(
    running_mean: Any, running_var: Any, batch: BatchStats, momentum: float
) -> tuple[Any, Any]:
    """Return running statistics moved towards a batch by momentum.  (M9)

    The variance is tracked with divisor rows - 1, PyTorch's convention, although the batch is
    normalised with divisor rows.  Pure: the arguments are not changed.
    """
    unbiased = batch.var * (batch.rows / max(batch.rows - 1, 1))
    return (
        (1 - momentum) * running_mean + momentum * batch.mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


class ReluCache(NamedTuple):
    positive: Any  # (...) bool


def relu_forward(x: Any) -> tuple[Any, ReluCache]:
    """y = max(x, 0).  (M10)    any shape"""
    xp = module_of(x)
    return xp.maximum(x, 0), ReluCache(x > 0)


def relu_backward(dy: Any, cache: ReluCache) -> Any:
    """dx = dy where x > 0, else 0; at x = 0 the derivative is 0.  (M11)"""
    return dy * cache.positive


class PointMaxCache(NamedTuple):
    first: Any  # (..., O) integer, the point that won
    points: int  # N


def point_max_forward(x: Any) -> tuple[Any, PointMaxCache]:
    """y[o] = max_n x[n, o] of each cloud or group.  (M12)    x (..., N, O) -> y (..., O)

    Ties (clouds padded by repeated points make exact ones): the lowest n wins on both backends.
    """
    module_of(x)
    check_shape("x", x, (None,) * max(x.ndim, 3))
    return x.max(axis=-2), PointMaxCache(x.argmax(axis=-2), x.shape[-2])


def point_max_backward(dy: Any, cache: PointMaxCache) -> Any:
    """dx[n, o] = dy[o] where n won, else 0.  (M13)    dy (..., O) -> dx (..., N, O)

    A comparison instead of a scatter: repeated indices in a scatter are undefined on a device.
    """
    xp = module_of(dy, cache.first)
    winner = xp.arange(cache.points)[:, None] == cache.first[..., None, :]  # (..., N, O)
    return dy[..., None, :] * winner


class DropoutCache(NamedTuple):
    mask: Any  # the shape of x


def dropout_forward(x: Any, mask: Any) -> tuple[Any, DropoutCache]:
    """y = x mask.  (M14)    mask has the shape of x and holds 0 or 1 / (1 - rate)

    The mask is drawn by the caller, on the host, from a named stream (inverted dropout:
    evaluation needs no factor).
    """
    module_of(x, mask)
    check_shape("mask", mask, x.shape)
    return x * mask, DropoutCache(mask)


def dropout_backward(dy: Any, cache: DropoutCache) -> Any:
    """dx = dy mask.  (M15)"""
    return dy * cache.mask


class LogSoftmaxCache(NamedTuple):
    logp: Any  # (..., K)


def log_softmax_forward(z: Any) -> tuple[Any, LogSoftmaxCache]:
    """logp_k = z_k - log sum_j exp z_j over the last axis.  (M16)    z (..., K)

    Each row is shifted by its own maximum, so no exponential overflows.
    """
    xp = module_of(z)
    shifted = z - z.max(axis=-1, keepdims=True)
    logp = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    return logp, LogSoftmaxCache(logp)


def log_softmax_backward(dlogp: Any, cache: LogSoftmaxCache) -> Any:
    """dz = dlogp - exp(logp) sum_k dlogp_k.  (M17)"""
    xp = module_of(dlogp, cache.logp)
    return dlogp - xp.exp(cache.logp) * dlogp.sum(axis=-1, keepdims=True)
