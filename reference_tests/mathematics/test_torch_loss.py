"""The loss as a function of PyTorch: the bits of minipc.nn.losses, a right gradient."""

import numpy as np
import pytest

from minipc.errors import DataError, UsageError
from minipc.nn.losses import LossConfig, loss_backward, loss_forward, smooth_labels
from reference_tests.tools.with_torch import torch

# isort: split
from minipc.torch.loss import loss

B, K = 6, 5
SETTINGS = {
    "defaults": {},
    "all terms, guard": dict(
        kd_weight=0.6, self_weight=0.2, temperature=3.0, label_smoothing=0.1, guard="clip"
    ),
    "all terms, raw": dict(
        kd_weight=0.6, self_weight=0.9, temperature=2.0, label_smoothing=0.2, guard="none"
    ),
    "distillation alone": dict(kd_weight=1.0, temperature=4.0),
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def rows(dtype, seed=0):
    """Return logits, labels with unlabelled ones, teacher and self logits, and who has these."""
    rng = np.random.default_rng(seed)
    z, v, u = (3 * rng.standard_normal((3, B, K))).astype(dtype)
    return z, np.array([0, 4, -1, 2, 2, -1]), v, u, np.array([1, 0, 1, 1, 0, 1], bool)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@every_setting
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_gradient_have_the_bits_of_minipc(settings, dtype):
    z, labels, v, u, has = rows(dtype)
    config = LossConfig(**settings)
    y = smooth_labels(labels, K, config.label_smoothing, dtype)
    terms, cache = loss_forward(z, y, v, u, has.astype(dtype), config)
    tz, *constants, thas = tensors(z, labels, v, u, has)
    tz.requires_grad_()
    total = loss(tz, *constants, has_self=thas, **settings)
    total.backward()
    assert total.dtype == tz.dtype and total.shape == ()
    assert total.detach().numpy().tobytes() == np.asarray(terms.total).tobytes()
    assert tz.grad.numpy().tobytes() == loss_backward(cache).tobytes()


@every_setting
def test_the_gradient_is_that_of_finite_differences(settings):
    z, labels, v, u, has = rows(np.float64, seed=1)
    tz, *constants, thas = tensors(z, labels, v, u, has)
    tz.requires_grad_()
    # torch's own tolerances: 1e-6 steps, 1e-5 absolute, 1e-3 relative, in float64
    assert torch.autograd.gradcheck(
        lambda x: loss(x, *constants, has_self=thas, **settings), tz, raise_exception=True
    )


def test_the_gradient_is_multiplied_by_what_arrives():
    z, labels, v, *_ = rows(np.float64)
    tz, *constants = tensors(z, labels, v)
    one, three = (tz.clone().requires_grad_() for _ in range(2))
    loss(one, *constants).backward()
    (3 * loss(three, *constants) + three.sum()).backward()
    assert torch.equal(three.grad, 3 * one.grad + 1)


def test_it_is_torchs_cross_entropy_where_labels_alone_teach():
    z, labels, *_ = rows(np.float64)
    tz, tlabels = tensors(z, np.maximum(labels, 0))
    want = torch.nn.functional.cross_entropy(tz, tlabels, label_smoothing=0.1)
    got = loss(tz, tlabels, kd_weight=0.0, label_smoothing=0.1)
    assert got.item() == pytest.approx(want.item(), rel=1e-14)  # a few roundings


def test_constants_of_another_floating_dtype_are_converted():
    z, labels, v, u, _ = rows(np.float32)
    v = v.astype(np.float16)
    tz, tlabels, tv, tu = tensors(z, labels, v, u)
    a = loss(tz, tlabels, tv, tu, self_weight=0.1)
    assert a == loss(tz, tlabels, tv.float(), tu.double(), self_weight=0.1)


def test_a_second_derivative_is_refused():
    z, labels, v, *_ = rows(np.float64)
    tz, *constants = tensors(z, labels, v)
    total = loss(tz.requires_grad_(), *constants)
    with pytest.raises(UsageError, match="no second derivative; call backward"):
        total.backward(create_graph=True)


def wrong():
    z, labels, v, u, has = tensors(*rows(np.float32))
    grad = v.clone().requires_grad_()
    return {
        "half": ((z.half(), labels, v), {}, "float32 or float64, got torch.float16"),
        "bfloat16": ((z.bfloat16(), labels, v), {}, "got torch.bfloat16"),
        "complex": ((z.to(torch.complex64), labels, v), {}, "got torch.complex64"),
        "an array": ((z.numpy(), labels, v), {}, "got ndarray; pass"),
        "one row alone": ((z[0], labels[:1], v), {}, r"logits: expected shape \(\*, \*\)"),
        "no row": ((z[:0], labels[:0], v[:0]), {}, "at least one row"),
        "labels of another length": ((z, labels[:3], v), {}, r"labels: expected shape \(6\)"),
        "labels that are numbers": ((z, labels.float(), v), {}, "tensor of integers, got"),
        "labels that are bool": ((z, labels > 0, v), {}, "tensor of integers, got torch.bool"),
        "a label that is no class": ((z, labels + 1, v), {}, "expected 0 to 4, or -1 .* 0 to 5"),
        "a label below": ((z, labels - 1, v), {}, "got -2 to 3"),
        "no teacher": ((z, labels), {}, "kd_weight = 0.9 needs teacher_logits"),
        "a teacher of one row": (
            (z, labels, v[:1]),
            {},
            r"teacher_logits: expected shape \(6, 5\)",
        ),
        "a teacher of integers": ((z, labels, v.int()), {}, "teacher_logits: expected a floating"),
        "a teacher that learns": ((z, labels, grad), {}, r"constants .* teacher_logits.detach\(\)"),
        "an earlier self that learns": ((z, labels, v, grad), {}, r"self_logits.detach\(\)"),
        "no earlier self": ((z, labels, v), {"self_weight": 0.1}, "needs self_logits"),
        "has_self of numbers": ((z, labels, v, u), {"has_self": has.int()}, "tensor of bool"),
        "a weight": ((z, labels, v), {"kd_weight": 2.0}, "a from 0 to 1"),
        "a guard": ((z, labels, v, u), {"self_weight": 0.45}, "the guard needs b < a / 2"),
    }


@pytest.mark.parametrize("name", wrong())
def test_what_cannot_be_meant_is_one_line(name):
    arguments, settings, says = wrong()[name]
    with pytest.raises((DataError, UsageError), match=says) as caught:
        loss(*arguments, **settings)
    assert "\n" not in str(caught.value)


@every_setting
def test_a_compiled_training_step_has_the_same_bits(settings):
    """A compiler that traced NumPy's operations would round them in another order."""
    z, labels, v, u, has = rows(np.float32)
    given = tensors(labels, v, u) if settings.get("self_weight") else tensors(labels, v)
    given = given if settings.get("kd_weight") else given[:1]
    if not settings:
        given = tensors(labels, v)

    def step(logits):
        return loss(logits, *given, **settings)

    found = []
    for function in (step, torch.compile(step, backend="eager")):
        (logits,) = tensors(z)
        logits.requires_grad_()
        value = function(logits)
        value.backward()
        found += [value.detach().numpy(), logits.grad.numpy()]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
