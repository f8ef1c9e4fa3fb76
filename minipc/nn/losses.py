"""The loss of offline distillation: labels, distillation, and self-distillation subtracted.

Everything rests on one primitive, soft cross-entropy with signed weights that need not sum to
one, so the familiar gradient s - q is wrong here.  z: student logits, y: smoothed one-hot labels,
v: recorded teacher logits, u: logits of the student's earlier self; v and u are constants.
Their softmaxes are s, p and r, in this order: student, teacher, earlier self.  Three
things are our reading and derivation, not statements of arXiv 2409.02020: the form of the third
term, one temperature for both divergences, and the guard (docs/math.md says which is which).
"""

from typing import Any, NamedTuple

from minipc.backend import module_of
from minipc.errors import UsageError, check_shape
from minipc.nn import kernels
from minipc.nn.ops import log_softmax_forward
from minipc.settings import LossConfig

GUARD_FLOOR = 0.05  # delta of (L8): the part of a p that the guard keeps in every class

LABELS_ALONE: dict[str, Any] = {"kd_weight": 0.0, "self_weight": 0.0}


class SoftCrossEntropyCache(NamedTuple):
    s: Any  # (B, K), softmax of the logits
    q: Any  # (B, K), signed weights


def soft_cross_entropy_forward(z: Any, q: Any) -> tuple[Any, SoftCrossEntropyCache]:
    """loss_b = - sum_k q_bk log s_bk, s = softmax(z).  (L1)    z, q (B, K) -> loss (B,)

    q may hold negative weights and need not sum to one; neither is assumed below.
    """
    xp = module_of(z, q)
    check_shape("q", q, z.shape)
    log_s, _ = log_softmax_forward(z)
    return -(q * log_s).sum(axis=-1), SoftCrossEntropyCache(xp.exp(log_s), q)


def soft_cross_entropy_backward(dloss: Any, cache: SoftCrossEntropyCache) -> Any:
    """dz_bk = dloss_b ((sum_j q_bj) s_bk - q_bk).  (L2)    dloss (B,) -> dz (B, K)

    q is a constant: no gradient is returned for it, which is the stop-gradient of teacher and
    earlier self.
    """
    s, q = cache
    return dloss[:, None] * (q.sum(axis=-1, keepdims=True) * s - q)


def smooth_labels(labels: Any, classes: int, smoothing: float, dtype: Any) -> Any:
    """y = (1 - e) onehot + e / K, and 0 without a label.  (L3)    labels (B,) -> y (B, K) of dtype

    PyTorch's convention (PointMLP divides by K - 1).  Labels are integers in 0 .. K - 1, or -1 for
    none: a row y = 0 has value and gradient 0 in (L1).  Readers of data check the range.
    """
    xp = module_of(labels)
    if kernels.on_device(xp):
        return kernels.smooth_labels(labels, classes, smoothing, dtype)
    onehot = labels[:, None] == xp.arange(classes)[None, :]
    return (onehot * (1 - smoothing) + (labels[:, None] >= 0) * (smoothing / classes)).astype(dtype)


def _log_softmax_at(logits: Any, temperature: float) -> tuple[Any, Any]:
    """Return (softmax, log softmax) of logits / T."""
    log_p, _ = log_softmax_forward(logits / temperature)
    return module_of(logits).exp(log_p), log_p


def divergence(p: Any, log_p: Any, log_s: Any, temperature: float) -> Any:
    """T^2 KL(p || s_T) = T^2 sum_k p_k (log p_k - log s_k).  (L4)    (B, K) each -> (B,)

    p and log_p belong to the constant side, log_s to the student, all at temperature T.
    """
    return temperature**2 * (p * (log_p - log_s)).sum(axis=-1)


def margins(y: Any, p: Any, r: Any, b: Any, config: LossConfig) -> Any:
    """M_i = (1-a) y_i + T (a p_i - b r_i).  (L6)    y, p, r (B, K), b (B, 1) -> (B, K)

    (L5) is bounded below for a row if and only if M_i >= 0 for every class i (theorem 2.1 of
    docs/math.md); else it falls along z_i -> -infinity with slope M_i.
    """
    a, T = config.kd_weight, config.temperature
    return (1 - a) * y + T * (a * p - b * r)


def guarded(ap: Any, br: Any) -> Any:
    """q' = max(a p - b r, delta a p), class by class.  (L8)    (B, K), (B, K) -> (B, K)"""
    return module_of(ap, br).maximum(ap - br, GUARD_FLOOR * ap)


class LossTerms(NamedTuple):
    """Means over the batch, as 0-d arrays of the logits' module."""

    total: Any  # of the formula in use: (L5), and with the guard T^2 H(q' - q, s_T) more, (L9)
    labels: Any  # CE(y, s_1)
    distillation: Any  # T^2 KL(p || s_T), without its weight
    self_distillation: Any  # T^2 KL(r || s_T), over rows that have a target, without its weight
    raised: Any  # share of rows in which the guard raises some class
    unbounded: Any  # share of rows with min_i M_i < 0, whose raw loss has no lower bound


class LossCache(NamedTuple):
    labels: Any  # SoftCrossEntropyCache; on a device dz (B, K) itself, which one kernel computed
    soft: Any  # SoftCrossEntropyCache of z / T, or None without a teacher
    config: LossConfig


class Constants(NamedTuple):
    """The constant side of the soft terms, at temperature T; zeros where a term is absent."""

    p: Any  # (B, K) of the teacher
    log_p: Any  # (B, K), or None without a teacher
    r: Any  # (B, K) of the earlier self
    log_r: Any  # (B, K), or None without a self target
    b: Any  # (B, 1), weight of the self term: 0 in rows without a target


def constants(z: Any, v: Any, u: Any, has_u: Any, config: LossConfig) -> Constants:
    """Return Constants for logits z (B, K); v, u and has_u as in loss_forward."""
    xp, T = module_of(z), config.temperature
    p, log_p = (xp.zeros_like(z), None) if v is None else _log_softmax_at(v, T)
    if u is None:
        return Constants(p, log_p, xp.zeros_like(z), None, xp.zeros_like(z[:, :1]))
    return Constants(p, log_p, *_log_softmax_at(u, T), config.self_weight * has_u[:, None])


def loss_forward(
    z: Any, y: Any, v: Any, u: Any, has_u: Any, config: LossConfig
) -> tuple[LossTerms, LossCache]:
    """L = (1-a) CE(y, s_1) + a T^2 KL(p || s_T) - b T^2 KL(r || s_T), batch mean.  (L5)

    The guard adds T^2 H(q' - q, s_T), which is 0 in a row where it raises no class.  (L9)

    z, y, v, u (B, K); has_u (B,) holds 1 where the row has a self target and 0 where not (b is 0
    there).  v is None for labels alone (a must be 0), u and has_u None while no target exists.
    Returns LossTerms and the cache of loss_backward.
    """
    _check_rows(z, y, v, u, has_u, config)
    if kernels.on_device(module_of(z)):
        means, dz = kernels.loss(z, y, v, u, has_u, config, GUARD_FLOOR)
        return LossTerms(*means), LossCache(dz, None, config)
    labels, labels_cache = soft_cross_entropy_forward(z, y)
    if v is None and u is None:
        total, zero = labels.mean(), module_of(z).zeros((), z.dtype)
        terms = LossTerms(total, total, zero, zero, zero, zero)
        return terms, LossCache(labels_cache, None, config)

    a, T = config.kd_weight, config.temperature
    p, log_p, r, log_r, b = side = constants(z, v, u, has_u, config)
    _, log_s = _log_softmax_at(z, T)
    none = module_of(z).zeros_like(labels)
    kd = none if log_p is None else divergence(p, log_p, log_s, T)
    self_kl = none if log_r is None else has_u * divergence(r, log_r, log_s, T)

    ap, br = a * p, b * r
    q, kept = ap - br, guarded(ap, br)  # of (L5), and q' of (L8)
    raised = kept > q
    total = (1 - a) * labels + a * kd - b[:, 0] * self_kl
    if config.guard == "clip":
        total = total - T**2 * ((kept - q) * log_s).sum(axis=-1)
        q = kept
    _, soft_cache = soft_cross_entropy_forward(z / T, q)

    terms = _batch_means(total, labels, kd, self_kl, has_u, raised, y, side, config)
    return terms, LossCache(labels_cache, soft_cache, config)


def _check_rows(z: Any, y: Any, v: Any, u: Any, has_u: Any, config: LossConfig) -> None:
    module_of(*(array for array in (z, y, v, u, has_u) if array is not None))
    for name, array, shape in (("v", v, z.shape), ("u", u, z.shape), ("has_u", has_u, z.shape[:1])):
        if array is not None:
            check_shape(name, array, shape)  # NumPy would broadcast another shape over the batch
    if v is None and config.kd_weight != 0:
        raise UsageError(
            f"kd weight: a = {config.kd_weight:g} needs teacher logits; without a record use "
            "--labels-only"
        )


def _batch_means(
    total: Any,
    labels: Any,
    kd: Any,
    self_kl: Any,
    has_u: Any,
    raised: Any,
    y: Any,
    side: Constants,
    config: LossConfig,
) -> LossTerms:
    """Return LossTerms of values by row (B,); raised (B, K) bool: classes that the guard raises."""
    targets = 1 if side.log_r is None else module_of(y).maximum(has_u.sum(), 1)
    unbounded = margins(y, side.p, side.r, side.b, config) < 0
    return LossTerms(
        total.mean(),
        labels.mean(),
        kd.mean(),
        self_kl.sum() / targets,
        raised.any(axis=-1).mean(dtype=labels.dtype),
        unbounded.any(axis=-1).mean(dtype=labels.dtype),
    )


def loss_backward(cache: LossCache) -> Any:
    """dz = [(1-a)(s_1 - y) + T ((sum_k q_k) s_T - q)] / B.  (L7)    -> (B, K)

    q = a p - b r for (L5), q' for (L8).  T^2 of the loss and 1/T of the inner derivative leave T.
    """
    labels, soft, config = cache
    if not isinstance(labels, SoftCrossEntropyCache):
        return labels
    rows = labels.s.shape[0]
    each = module_of(labels.s).full(rows, 1 / rows, dtype=labels.s.dtype)  # of the batch mean
    dz = soft_cross_entropy_backward((1 - config.kd_weight) * each, labels)
    if soft is not None:
        dz = dz + soft_cross_entropy_backward(config.temperature * each, soft)
    return dz


def formula(config: LossConfig) -> str:
    """Return the loss in use, with its conventions, as one line of text."""
    a, b, T = config.kd_weight, config.self_weight, config.temperature
    text = f"{1 - a:g} CE(y, s_1)"
    if a:
        text += f" + {a:g} T^2 KL(p || s_T)"
    if b:
        text += f" - {b:g} T^2 KL(r || s_T)"
    if a or b:
        text += f", T = {T:g}, KL summed over classes, batch mean"
    if b:
        text += f", guard {config.guard}"
    if config.label_smoothing:
        text += f"; y smoothed by {config.label_smoothing:g}"
    return f"loss = {text}"
