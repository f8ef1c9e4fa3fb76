"""Mutants: one thing broken on purpose, so that the audit can be seen to catch it.

A mutant is a mistake that somebody made or could make.  It replaces functions of one module while
one audit runs; the code that it breaks does not know of mutants.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from minipc.data import augment
from minipc.distil import augmentation, averaging, self_target, statistics
from minipc.errors import UsageError
from minipc.models import model, pointnet, pointnet2
from minipc.nn import local, losses, ops, optim, widening
from minipc.nn.fast import fused, products
from minipc.nn.fast import local as fast_local
from minipc.record.reader import RecordReader

Function = Callable[..., Any]


class Mutant(NamedTuple):
    """What is broken, and how."""

    says: str  # the mistake, in a line
    breaks: tuple  # of (owner, name, wrong): wrong(right function) returns the broken function


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """Replace the functions that a mutant breaks; restore the right ones at the end."""
    with ExitStack() as stack:
        for owner, name, wrong in mutant.breaks:
            stack.enter_context(mock.patch.object(owner, name, wrong(getattr(owner, name))))
        stack.enter_context(np.errstate(all="ignore"))  # a mutant may overflow
        yield


def find(name: str) -> Mutant:
    """Return the Mutant of this name.  Raises UsageError for an unknown name."""
    if name not in MUTANTS:
        close = get_close_matches(name, MUTANTS, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"inject: unknown mutant {name!r}; {meant}`minipc audit --list` names them"
        )
    return MUTANTS[name]


def _with_config(right: Function, change: Function) -> Function:
    """Return a loss_forward that computes with a changed LossConfig, which need not be valid."""

    def loss_forward(z: Any, y: Any, v: Any, u: Any, has_u: Any, config: Any) -> Any:
        changed = copy.copy(config)
        for name, value in change(config).items():
            object.__setattr__(changed, name, value)
        return right(z, y, v, u, has_u, changed)

    return loss_forward


def _softmax_minus_target(right: Function) -> Function:
    return lambda dloss, cache: dloss[:, None] * (cache.s - cache.q)


def _swapped_divergence(right: Function) -> Function:
    return lambda p, log_p, log_s, T: T**2 * (np.exp(log_s) * (log_s - log_p)).sum(axis=-1)


def _gradient_with_temperature_squared(right: Function) -> Function:
    def loss_backward(cache: Any) -> Any:
        config = cache.config
        return right(cache._replace(config=replace(config, temperature=config.temperature**2)))

    return loss_backward


def _smoothing_over_the_wrong_classes(right: Function) -> Function:
    def smooth_labels(labels: Any, classes: Any, smoothing: Any, dtype: Any) -> Any:
        y = np.full((len(labels), classes), smoothing / (classes - 1), dtype)
        y[np.arange(len(labels)), labels] = 1 - smoothing
        return y

    return smooth_labels


def _smoothing_without_a_label(right: Function) -> Function:
    def smooth_labels(labels: Any, classes: Any, smoothing: Any, dtype: Any) -> Any:
        y = right(labels, classes, smoothing, dtype)
        return np.where(labels[:, None] < 0, dtype(smoothing / classes), y)

    return smooth_labels


def _softmax_without_shift(right: Function) -> Function:
    def log_softmax_forward(z: Any) -> Any:
        logp = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return logp, ops.LogSoftmaxCache(logp)

    return log_softmax_forward


def _no_mean_term(right: Function) -> Function:
    def batch_norm_backward(dy: Any, cache: Any) -> Any:
        dx, dgamma, dbeta = right(dy, cache)
        return dx + cache.gamma * cache.inv_std * dbeta / (dy.size // dy.shape[-1]), dgamma, dbeta

    return batch_norm_backward


def _unbiased_normalisation(right: Function) -> Function:
    def batch_norm_forward(x: Any, gamma: Any, beta: Any, eps: Any) -> Any:
        rows = x.size // x.shape[-1]
        y, cache, stats = right(x, gamma, beta, eps)
        shrink = ((rows - 1) / rows) ** 0.5
        cache = cache._replace(xhat=cache.xhat * shrink, inv_std=cache.inv_std * shrink)
        return (y - beta) * shrink + beta, cache, stats

    return batch_norm_forward


def _last_of_ties(right: Function) -> Function:
    def point_max_forward(x: Any) -> Any:
        y, cache = right(x)
        return y, cache._replace(first=x.shape[1] - 1 - x[:, ::-1].argmax(axis=1))

    return point_max_forward


def _winners_without_sign(right: Function) -> Function:
    def pooled_forward(x: Any, W: Any, gamma: Any, beta: Any, eps: Any, name: Any) -> Any:
        winners = right(x, W, np.abs(gamma), beta, eps, name)[1].winners.copy()
        h, cache, stats = right(x, W, gamma, beta, eps, name)
        return h, cache._replace(winners=winners), stats

    return pooled_forward


def _no_constant_row(right: Function) -> Function:
    def gradients(products: Any, x: Any, affine: Any, name: Any, with_A: bool = False) -> Any:
        *grads, K = right(products, x, affine, name, with_A)
        K[:, len(K)] = 0  # (I, I + 1), or with A (I, I + 1 + O)
        return *grads, K

    return gradients


def _moments_of_a_sample(right: Function) -> Function:
    def filled(y: Any, write: Any, name: Any, exact: bool = False) -> Any:
        y = right(y, write, name, exact)
        *means, _ = mean = y.moments[-1]
        squares = np.outer(means, mean)
        y.moments[:-1] = (y.moments[:-1] - squares) * y.rows / (y.rows - 1) + squares
        return y

    return filled


def _no_relu_backward(right: Function) -> Function:
    def shared_backward(dy: Any, cache: Any) -> Any:
        return right(dy, cache._replace(y=cache.y._replace(floor=cache.y.floor - np.inf)))

    return shared_backward


def _fused_multiply_add(right: Function) -> Function:
    def apply(points: Any, params: Any) -> Any:
        scale, shift = (value[:, None, :].astype(np.float64) for value in params)
        return (points * scale + shift).astype(points.dtype)

    return apply


def _live_parameters(right: Function) -> Function:
    def epoch_ended(self: Any, epoch: Any, params: Any) -> Any:
        if (epoch + 1) % self.every == 0:
            self.params = params

    return epoch_ended


def _swapped_decay(right: Function) -> Function:
    def stepped(self: Any, rows: Any, logits: Any, params: Any) -> Any:
        self.decay = 1 - self.decay
        right(self, rows, logits, params)
        self.decay = 1 - self.decay

    return stepped


def _clip_each(right: Function) -> Function:
    def clip_by_norm(grads: Any, largest: Any) -> Any:
        clipped = {name: right({name: g}, largest)[0][name] for name, g in grads.items()}
        return clipped, right(grads, largest)[1]

    return clip_by_norm


def _other_eps(right: Function, eps: float) -> Function:
    def forward(params: Any, *arguments: Any, **settings: Any) -> Any:
        place = next(i for i, one in enumerate(arguments) if isinstance(one, pointnet.ModelConfig))
        return right(
            params,
            *arguments[:place],
            replace(arguments[place], eps=eps),
            *arguments[place + 1 :],
            **settings,
        )

    return forward


def _without_mask(right: Function) -> Function:
    def forward_train(
        params: Any,
        points: Any,
        config: Any,
        mask: Any = None,
        engine: str = "fused",
        work: Any = None,
    ) -> Any:
        return right(params, points, config, None, engine, work)

    return forward_train


def _lost_where_gamma_is_zero(right: Function) -> Function:
    def pooled_backward(dh: Any, cache: Any) -> Any:
        dx, dW, dgamma, dbeta = right(dh, cache)
        dgamma[cache.affine.gamma == 0] = np.nan
        return dx, dW, dgamma, dbeta

    return pooled_backward


def _sums_go_on(right: Function) -> Function:
    def sum_over_blocks(function: Any, x: Any, shape: Any, name: Any) -> Any:
        before = x.work.array(f"{name} before", shape, np.float64, fill=0)
        before += right(function, x, shape, name)
        return before.copy()

    return sum_over_blocks


def _one_scale(right: Function) -> Function:
    def draw(*arguments: Any) -> Any:
        scale, shift = right(*arguments)
        return augment.Params(np.repeat(scale[:, :1], 3, axis=1), shift)

    return draw


def _other_view(right: Function) -> Function:
    def view(self: Any, view: Any) -> Any:
        scale, shift, _ = right(self, (view + 1) % self.views)
        return scale, shift, right(self, view)[2]

    return view


def _no_bias_correction(right: Function) -> Function:
    def adamw_step(
        params: Any, grads: Any, state: Any, lr: Any, weight_decay: Any, **betas: Any
    ) -> Any:
        new, moved = right(params, grads, state._replace(step=10**6), lr, weight_decay, **betas)
        return new, moved._replace(step=state.step + 1)

    return adamw_step


def _regrouped(right: Function) -> Function:
    def _read(inputs: Any, config: Any) -> Any:
        return right(inputs._replace(groups=pointnet2.prepare(config, inputs.points)), config)

    return _read


def _assigned(right: Function) -> Function:
    def gather_backward(dy: Any, cache: Any) -> Any:
        df = np.zeros_like(right(dy, cache))
        df[np.arange(len(df))[:, None, None], cache.members] = dy
        return df

    return gather_backward


def _where_the_members_are(right: Function) -> Function:
    return lambda positions, centres, members: positions[
        np.arange(len(members))[:, None, None], members
    ]


def _winner_of_the_next_group(right: Function) -> Function:
    def level_forward(x: Any, W: Any, gamma: Any, beta: Any, eps: Any, name: Any) -> Any:
        h, cache, stats = right(x, W, gamma, beta, eps, name)
        return h, cache._replace(rank=np.roll(cache.rank, 1, axis=1)), stats

    return level_forward


def _each_point_once(right: Function) -> Function:
    def to_level(positions: Any, f: Any, centres: Any, members: Any, work: Any, name: Any) -> Any:
        x = right(positions, f, centres, members, work, name)
        z = x.z.astype(np.float64)
        return x._replace(moments=(z @ z.swapaxes(1, 2)).mean(axis=0) / z.shape[2])

    return to_level


def _kept_without_copies(right: Function) -> Function:
    def epoch_ended(self: Any, params: Any) -> Any:
        self.kept = [*self.kept, params][-self.epochs :]

    return epoch_ended


def _means_do_not_differ(right: Function) -> Function:
    def pooled(batches: Any) -> Any:
        mean = right(batches).mean
        return right([batch._replace(mean=mean) for batch in batches])

    return pooled


def _put_instead_of_added(right: Function) -> Function:
    return lambda total, grads, index: widening.put(total, grads, index)


def _one_draw(right: Function) -> Function:
    def draw_widths(widths: Any, factor: Any, steps: Any, rng: Any) -> Any:
        step = rng.integers(0, steps + 1)
        return tuple(widening.candidates(width, factor, steps)[step] for width in widths)

    return draw_widths


MUTANTS = {
    "no-temperature-squared": Mutant(
        "KL without its factor T^2",
        (
            (
                losses,
                "divergence",
                lambda right: lambda p, log_p, log_s, T: right(p, log_p, log_s, T) / T**2,
            ),
        ),
    ),
    "temperature-squared-in-the-gradient": Mutant(
        "T^2 where the gradient has T: the inner derivative 1 / T forgotten",
        ((losses, "loss_backward", _gradient_with_temperature_squared),),
    ),
    "softmax-minus-target": Mutant(
        "s - q where q does not sum to one, instead of (sum q) s - q",
        ((losses, "soft_cross_entropy_backward", _softmax_minus_target),),
    ),
    "swapped-divergence": Mutant(
        "KL(s || p) instead of KL(p || s)", ((losses, "divergence", _swapped_divergence),)
    ),
    "sign-of-b": Mutant(
        "the self term added instead of subtracted",
        (
            (
                losses,
                "loss_forward",
                lambda right: _with_config(right, lambda c: {"self_weight": -c.self_weight}),
            ),
        ),
    ),
    "self-term-everywhere": Mutant(
        "the self term in rows that have no target",
        (
            (
                losses,
                "loss_forward",
                lambda right: (
                    lambda z, y, v, u, has_u, c: right(
                        z, y, v, u, None if has_u is None else has_u * 0 + 1, c
                    )
                ),
            ),
        ),
    ),
    "guard-without-floor": Mutant(
        "the guard raises to 0 instead of delta a p: bounded, but without a minimiser",
        ((losses, "guarded", lambda right: lambda ap, br: np.maximum(ap - br, 0)),),
    ),
    "smoothing-over-wrong-classes": Mutant(
        "label smoothing by e / (K - 1) over the wrong classes",
        ((losses, "smooth_labels", _smoothing_over_the_wrong_classes),),
    ),
    "smoothing-without-a-label": Mutant(
        "a row without a label is smoothed too: y = e / K instead of 0",
        ((losses, "smooth_labels", _smoothing_without_a_label),),
    ),
    "softmax-without-shift": Mutant(
        "log-softmax without subtracting the row's maximum",
        tuple((module, "log_softmax_forward", _softmax_without_shift) for module in (ops, losses)),
    ),
    "unbiased-normalisation": Mutant(
        "batch norm normalises with divisor rows - 1",
        ((ops, "batch_norm_forward", _unbiased_normalisation),),
    ),
    "biased-tracking": Mutant(
        "running variance tracked with divisor rows",
        (
            (
                ops,
                "track",
                lambda right: (
                    lambda mean, var, batch, m: right(mean, var, batch._replace(rows=10**12), m)
                ),
            ),
        ),
    ),
    "swapped-momentum": Mutant(
        "momentum as the weight of the old statistics",
        (
            (
                ops,
                "track",
                lambda right: (
                    lambda mean, var, batch, momentum: right(mean, var, batch, 1 - momentum)
                ),
            ),
        ),
    ),
    "no-mean-term": Mutant(
        "batch norm's backward without the mean of dy",
        ((ops, "batch_norm_backward", _no_mean_term),),
    ),
    "slope-at-zero": Mutant(
        "derivative 1 of ReLU at 0",
        ((ops, "relu_forward", lambda right: lambda x: (right(x)[0], ops.ReluCache(x >= 0))),),
    ),
    "last-of-ties": Mutant(
        "the last of equal points wins the pool", ((ops, "point_max_forward", _last_of_ties),)
    ),
    "dropout-in-the-forward-only": Mutant(
        "the gradient passes dropped units",
        ((ops, "dropout_backward", lambda right: lambda dy, cache: dy),),
    ),
    "mean-for-sum": Mutant(
        "a bias gradient averaged over the rows",
        (
            (
                ops,
                "bias_backward",
                lambda right: lambda dy, cache: (dy, dy.reshape(-1, dy.shape[-1]).mean(axis=0)),
            ),
        ),
    ),
    "winners-without-sign": Mutant(
        "the fused pool looks for its maxima without the sign of gamma",
        ((fused, "pooled_forward", _winners_without_sign),),
    ),
    "no-constant-row": Mutant(
        "(F4) without its constant row: the mean terms of batch norm",
        ((fused, "gradients", _no_constant_row),),
    ),
    "moments-of-a-sample": Mutant(
        "the fused layer's covariance with divisor M - 1",
        ((fused, "filled", _moments_of_a_sample),),
    ),
    "no-relu-backward": Mutant(
        "the fused layer's gradient where its ReLU is off",
        ((fused, "shared_backward", _no_relu_backward),),
    ),
    "fused-multiply-add": Mutant(
        "replay rounded once instead of twice",
        ((augment, "apply", _fused_multiply_add),),
    ),
    "self-target-of-the-same-step": Mutant(
        "a snapshot that keeps the live parameters: its gradient is zero, the term does nothing",
        ((self_target.Snapshot, "epoch_ended", _live_parameters),),
    ),
    "swapped-decay": Mutant(
        "a moving average that keeps 1 - m", ((self_target.Ema, "stepped", _swapped_decay),)
    ),
    "history-of-the-neighbour": Mutant(
        "logits of the last visit filed under the next row",
        (
            (
                self_target.History,
                "stepped",
                lambda right: (
                    lambda self, rows, logits, params: right(self, np.roll(rows, 1), logits, params)
                ),
            ),
        ),
    ),
    "decay-on-biases": Mutant(
        "weight decay on biases and on batch norm",
        ((optim, "_decay", lambda right: lambda name, decay: decay),),
    ),
    "no-bias-correction": Mutant(
        "AdamW without the correction of its young moments",
        ((optim, "adamw_step", _no_bias_correction),),
    ),
    "another-eps": Mutant(
        "training normalises with an eps that is not the model's",
        ((pointnet, "forward_train", lambda right: _other_eps(right, 1e-2)),),
    ),
    "evaluation-with-another-eps": Mutant(
        "evaluation normalises with an eps that training did not have",
        ((pointnet, "forward_eval", lambda right: _other_eps(right, 1e-2)),),
    ),
    "dropout-forgotten": Mutant(
        "no dropout in training", ((pointnet, "forward_train", _without_mask),)
    ),
    "statistics-forgotten": Mutant(
        "running statistics are never tracked",
        ((model, "track", lambda right: lambda stats, batch, config: stats),),
    ),
    "lost-where-gamma-is-zero": Mutant(
        "no number where gamma is 0, as in a division by it",
        ((fused, "pooled_backward", _lost_where_gamma_is_zero),),
    ),
    "first-block-only": Mutant(
        "the sums of a layer over its first block of clouds alone",
        (
            (
                fused,
                "blocks_of",
                lambda right: lambda clouds, elements, work: right(clouds, elements, work)[:1],
            ),
        ),
    ),
    "first-channels-only": Mutant(
        "the pool of the first slice of channels alone",
        ((fused, "slices_of", lambda right: lambda width, z, work: right(width, z, work)[:1]),),
    ),
    "sums-go-on": Mutant(
        "sums of the step before are not cleared",
        ((fused, "sum_over_blocks", _sums_go_on),),
    ),
    "one-buffer-for-two-layers": Mutant(
        "layers of the head write their gradients into one array",
        (
            (
                products,
                "linear_forward",
                lambda right: lambda x, W, work, name: right(x, W, work, "head"),
            ),
        ),
    ),
    "no-schedule": Mutant(
        "a learning rate that neither warms up nor falls",
        ((optim, "warmup_cosine", lambda right: lambda step, steps, warmup: 1.0),),
    ),
    "every-view-the-first": Mutant(
        "every view is drawn as view 0",
        (
            (
                augment,
                "draw",
                lambda right: lambda seed, view, first, clouds, c: right(seed, 0, first, clouds, c),
            ),
        ),
    ),
    "one-scale-for-all-axes": Mutant("one scale for three axes", ((augment, "draw", _one_scale),)),
    "another-view-replayed": Mutant(
        "logits of one view beside the parameters of another",
        ((RecordReader, "view", _other_view),),
    ),
    "clipping-each-array": Mutant(
        "gradients clipped array by array: another direction",
        ((optim, "clip_by_norm", _clip_each),),
    ),
    "grouped-on-the-augmented-cloud": Mutant(
        "neighbours of the points that the network sees instead of the stored ones",
        ((pointnet2, "_read", _regrouped),),
    ),
    "gather-assigns": Mutant(
        "a point's gradient from its last reader alone, assigned instead of added",
        ((local, "gather_backward", _assigned),),
    ),
    "centre-not-subtracted": Mutant(
        "members where they are instead of as their centre sees them",
        ((local, "offsets", _where_the_members_are),),
    ),
    "winner-of-the-wrong-group": Mutant(
        "the fused level's gradient goes to the member that won in the group before",
        ((fast_local, "level_forward", _winner_of_the_next_group),),
    ),
    "moments-without-the-counts": Mutant(
        "the fused level's moments as if every point were read once",
        ((fast_local, "to_level", _each_point_once),),
    ),
    "average-with-its-start": Mutant(
        "a moving average of the weights whose start is not divided out: the first ones stay",
        (
            (
                averaging.EmaWeights,
                "stepped",
                lambda right: lambda self, params, step: right(self, params, 10**9),
            ),
        ),
    ),
    "epochs-kept-without-copies": Mutant(
        "the weights of the last epochs are the live ones, which the next step overwrites",
        ((averaging.LastWeights, "epoch_ended", _kept_without_copies),),
    ),
    "variances-averaged": Mutant(
        "the variance of all batches as the mean of theirs, as if their means were equal",
        ((statistics, "pooled", _means_do_not_differ),),
    ),
    "leading-of-the-whole": Mutant(
        "the leading channels of the whole input, where each part has its own",
        (
            (
                widening,
                "leading",
                lambda right: lambda parts, of: right((sum(parts),), (sum(of),)),
            ),
        ),
    ),
    "gradients-assigned": Mutant(
        "the widened network's gradient written over the model's instead of added",
        ((augmentation, "add", _put_instead_of_added),),
    ),
    "one-draw-for-all-layers": Mutant(
        "all layers widened by one draw instead of one each",
        ((widening, "draw_widths", _one_draw),),
    ),
}
