"""The contenders of the benchmark, each in a process of its own.

`python -m reference_tests.tools.speed_workers NAME` reads one JSON object a line, {"task", "size",
"clouds", "points", "repeat", ...}, and answers with {"seconds": [...]} or {"bytes": ...}; "device":
true is a task for CuPy or CUDA.  A task is set up once; the parent decides who computes when, so
contenders alternate and no two compute at a time.
"""

import json
import os
import sys
import time
from functools import partial
from itertools import count, pairwise

NAME, THREADS = sys.argv[1:3] if __name__ == "__main__" else ("numpy", "2")
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = THREADS if NAME in ("torch", "torch compile", "jax", "product") else "1"

import numpy as np  # noqa: E402

from minipc.models.pointnet import NAMED_SIZES  # noqa: E402
from minipc.nn.engine import backward  # noqa: E402
from reference_tests.tools.memory import peak_of  # noqa: E402

CLASSES, LR, DECAY = 40, 1e-3, 1e-2
RECORDED = 16  # batches of one repetition of a recording
WARM = 0.3  # seconds before each repetition: a training goes on, it does not begin
IN_A_ROW = 20  # steps of one repetition on a device


def batch(clouds, points):
    """Return points, labels, scale and shift of one batch: the same for every contender."""
    rng = np.random.default_rng(0)
    scale, shift = rng.uniform(0.7, 1.4, (clouds, 3)), rng.uniform(-0.2, 0.2, (clouds, 3))
    return (
        rng.standard_normal((clouds, points, 3)).astype(np.float32),
        rng.integers(0, CLASSES, clouds),
        scale.astype(np.float32),
        shift.astype(np.float32),
    )


def ours(task):
    """Return a function that does the task once, on minipc."""
    from minipc.backend import load, ordered_map, tree_to
    from minipc.data.augment import Params, apply
    from minipc.models.file import new_model
    from minipc.models.inputs import Inputs
    from minipc.models.model import net, sizes, track
    from minipc.nn import optim
    from minipc.nn.fast.workspace import Workspace
    from minipc.nn.losses import (
        LABELS_ALONE,
        LossConfig,
        loss_backward,
        loss_forward,
        smooth_labels,
    )

    threads = task.get("threads", int(THREADS))
    xp = load("cupy" if task.get("device") else "numpy")
    wait = xp.cuda.runtime.deviceSynchronize if task.get("device") else lambda: None
    config = sizes(task["size"], CLASSES)
    params, stats = (tree_to(xp, arrays) for arrays in new_model(config, {}, 0)[1:3])
    host, *others = batch(task["clouds"], task["points"])
    x, labels, scale, shift = map(xp.asarray, (host, *others))
    groups = tuple(xp.asarray(group) for group in net(config).prepare(config, host))
    channels_first = xp.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    if task["task"] == "record" and task.get("device"):
        return shard_of(task, xp, wait)
    if task["task"] == "record":
        logits_of = net(config).evaluator(params, stats, config)

        def block(_):
            return logits_of(Inputs(apply(x, Params(scale, shift)), groups))

        def record():
            return list(ordered_map(block, range(task.get("batches", RECORDED)), threads))

        return record

    loss, rng = LossConfig(label_smoothing=0.0, **LABELS_ALONE), np.random.default_rng(0)
    if task.get("device"):  # where an epoch is more than its steps
        from minipc.distil.train import Task
        from minipc.settings import TrainConfig

        training = TrainConfig(batch_size=task["clouds"], lr=LR, weight_decay=DECAY)
        points = xp.ascontiguousarray(x.swapaxes(1, 2))
        whole = Task(points, labels, groups, config, loss, training, None, Workspace(xp), xp)
        states, order = [whole.start(new_model(config, {}, 0))], np.arange(task["clouds"])
        views = Params(others[1], others[2])

        def epoch():
            in_a_row = np.tile(order, IN_A_ROW)
            states[0], _, _ = whole.epoch(states[0], 0, in_a_row, views, None, None)
            wait()

        return epoch

    engine, state = task.get("engine", "fused"), [optim.adamw_start(params), params, stats]
    work = Workspace(xp, threads)

    def step():
        adam, params, stats = state
        inputs = Inputs(apply(channels_first, Params(scale, shift)), groups)
        mask = None
        if config.dropout:
            width = (task["clouds"], net(config).dropout_width(config))
            kept = (rng.random(width) >= config.dropout).astype(np.float32)
            mask = xp.asarray(kept / np.float32(1 - config.dropout))
        z, moments, tape = net(config).forward_train(params, inputs, config, mask, engine, work)
        y = smooth_labels(labels, CLASSES, 0.0, np.float32)
        _, cache = loss_forward(z, y, None, None, None, loss)
        grads, _ = backward(loss_backward(cache), tape)
        if engine == "fused":
            adam = optim.adamw_in_place(params, grads, adam, LR, DECAY, work)
        else:
            params, adam = optim.adamw_step(params, grads, adam, LR, DECAY)
        state[:] = adam, params, track(stats, moments, config)

    return step


def shard_of(task, xp, wait):
    """Return a function that records a shard on a device: one view of the same clouds a call."""
    from types import SimpleNamespace

    from minipc.data.augment import AugmentConfig
    from minipc.data.clouds import Clouds
    from minipc.models.file import new_model, on_module
    from minipc.models.model import sizes
    from minipc.record.recorder import compute_shard, model_teacher

    rows, rng = task["clouds"] * task.get("batches", RECORDED), np.random.default_rng(0)
    points = rng.standard_normal((rows, task["points"], 3)).astype(np.float32)
    names = tuple(f"class {k}" for k in range(CLASSES))
    clouds = Clouds(points, np.arange(rows) % CLASSES, names, "z", "none")
    teacher = model_teacher(on_module(new_model(sizes(task["size"], CLASSES), {}, 0), xp))
    plan = SimpleNamespace(seed=0, block=task["clouds"], classes=CLASSES, logits="float32")

    views, kept = count(), {}

    def record():
        given = (clouds, teacher, plan, AugmentConfig(), next(views))
        compute_shard(*given, 0, rows, xp, 1, kept=kept)
        wait()

    return record


def in_a_row(step, wait, task):
    """Return step itself, or on a device twenty of them and the wait for the last."""
    if not task.get("device"):
        return step

    def steps():
        for _ in range(IN_A_ROW):
            step()
        wait()

    return steps


def large_product(task):
    """Return a function that multiplies 4,096 x 4,096 float32 matrices on all threads of BLAS."""
    a = np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a.T.copy(), out=out)


def torch_model(task, points, device):
    """Return the model of a task in PyTorch; task["form"]: of its linear layers or its gathers."""
    from torch import nn

    if task["size"] not in NAMED_SIZES:
        from minipc.models.pointnet2 import sizes
        from reference_tests.tools.torch_local import PointNet2, groups_of

        config = sizes(task["size"], CLASSES)
        groups = [group.to(device) for group in groups_of(config, points)]
        return PointNet2(config, groups, task.get("form", "index_select"))
    import torch

    conv = task.get("form") == "conv"
    (shared, head, dropout) = NAMED_SIZES[task["size"]]

    class PointNet(nn.Module):
        """(B, N, 3) -> (B, K): the layers of minipc."""

        def __init__(self):
            super().__init__()
            pairs = list(pairwise((3, *shared)))
            linear = [
                nn.Conv1d(i, o, 1, bias=False) if conv else nn.Linear(i, o, bias=False)
                for i, o in pairs
            ]
            self.linear, self.norm = (
                nn.ModuleList(linear),
                nn.ModuleList([nn.BatchNorm1d(o) for o in shared]),
            )
            layers = []
            for i, o in pairwise((shared[-1], *head)):
                layers += [nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU()]
            layers += [nn.Dropout(dropout)] * bool(dropout)
            self.head = nn.Sequential(*layers, nn.Linear(head[-1], CLASSES))

        def forward(self, x):
            clouds, points, _ = x.shape
            x = x.transpose(1, 2) if conv else x.reshape(-1, 3)
            for linear, norm in zip(self.linear, self.norm, strict=True):
                x = torch.relu(norm(linear(x)))
            return self.head(x.amax(dim=2) if conv else x.reshape(clouds, points, -1).amax(dim=1))

    return PointNet()


def in_torch(task, compiled=False):
    """Return a function that does the task once, on PyTorch; task["form"]: see torch_model()."""
    import torch
    from torch import nn

    torch.set_num_threads(task.get("threads", int(THREADS)))
    torch.manual_seed(0)
    # float32 against float32: PyTorch allows 10-bit products in convolutions unless told
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = bool(task.get("tf32"))
    device = torch.device("cuda" if task.get("device") else "cpu")
    wait = torch.cuda.synchronize if task.get("device") else lambda: None
    points, *others = batch(task["clouds"], task["points"])
    x, labels, scale, shift = (torch.as_tensor(v, device=device) for v in (points, *others))
    model = torch_model(task, points, device).to(device)
    scale, shift = scale[:, None], shift[:, None]
    # without the host's time for each operation, which bounds small models on a device
    mode = "reduce-overhead" if task.get("device") else None
    run = torch.compile(model, mode=mode) if compiled else model
    if task["task"] == "record":
        model.eval()

        def record():
            with torch.no_grad():
                for _ in range(task.get("batches", RECORDED)):
                    run(x * scale + shift)
            wait()

        return record
    adam = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)

    def step():
        adam.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(run(x * scale + shift), labels).backward()
        adam.step()

    return in_a_row(step, wait, task)


def in_jax(task):
    """Return a function that does one training step, on JAX, jitted as a whole."""
    import jax
    import jax.numpy as jnp

    (shared, head, dropout) = NAMED_SIZES[task["size"]]
    rng = np.random.default_rng(0)
    widths = list(pairwise((3, *shared, *head)))
    params = [
        (
            jnp.asarray(rng.standard_normal((i, o)) * (2 / i) ** 0.5, jnp.float32),
            jnp.ones(o),
            jnp.zeros(o),
        )
        for i, o in widths
    ]
    params.append(
        (
            jnp.asarray(rng.standard_normal((head[-1], CLASSES)) * 0.1, jnp.float32),
            jnp.zeros(CLASSES),
        )
    )
    x, labels, scale, shift = (
        jnp.asarray(value) for value in batch(task["clouds"], task["points"])
    )

    def norm(x, gamma, beta):
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        return gamma * (x - mean) * jax.lax.rsqrt(var + 1e-5) + beta, (mean, var)

    def loss(params, x, key):
        moments = []
        for number, (W, gamma, beta) in enumerate(params[:-1]):
            if number == len(shared):
                x = x.max(axis=1)
            x, found = norm(x @ W, gamma, beta)
            moments.append(found)
            x = jax.nn.relu(x)
        if dropout:
            x = x * jax.random.bernoulli(key, 1 - dropout, x.shape) / (1 - dropout)
        W, b = params[-1]
        log_p = jax.nn.log_softmax(x @ W + b)
        return -log_p[jnp.arange(len(labels)), labels].mean(), moments

    @jax.jit
    def update(params, m, v, running, count, key):
        grads, moments = jax.grad(loss, has_aux=True)(
            params, x * scale[:, None] + shift[:, None], key
        )
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        scale1, scale2 = 1 / (1 - 0.9**count), 1 / (1 - 0.999**count)
        params = jax.tree.map(
            lambda p, m, v: p * (1 - LR * DECAY) - LR * m * scale1 / (jnp.sqrt(v * scale2) + 1e-8),
            params,
            m,
            v,
        )
        running = jax.tree.map(lambda r, b: 0.9 * r + 0.1 * b, running, moments)
        return params, m, v, running, count + 1, jax.random.split(key)[0]

    zeros = jax.tree.map(jnp.zeros_like, params)
    running = [(jnp.zeros(o), jnp.ones(o)) for _, o in widths]
    state = [params, zeros, zeros, running, jnp.float32(1), jax.random.key(0)]

    def step():
        state[:] = update(*state)
        jax.block_until_ready(state[0])

    return step


CONTENDERS = {
    "numpy": ours,
    "product": large_product,
    "torch": in_torch,
    "jax": in_jax,
    "torch compile": lambda task: in_torch(task, compiled=True),
}


def memory(function):
    """Return the bytes that three calls of what function() makes need above the start."""

    def run():
        once = function()
        for _ in range(3):
            once()

    return peak_of(run)


def serve():
    made = {}
    if NAME.startswith("torch"):  # the memory of libraries is the interpreter's
        import torch  # noqa: F401
    else:
        import minipc.models.file  # noqa: F401
        import minipc.nn.gradcheck  # noqa: F401
    print(json.dumps({"ready": NAME}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        repeat = task.pop("repeat", 1)
        if task.pop("memory", False):
            answer = {"bytes": memory(partial(CONTENDERS[NAME], task))}
        else:
            key = json.dumps(task, sort_keys=True)
            if key not in made:
                made.clear()  # one task's arrays at a time
                made[key] = CONTENDERS[NAME](task)
                made[key](), made[key]()
            begun = time.perf_counter()
            while time.perf_counter() - begun < WARM:  # the caches and cores were another's
                made[key]()
            seconds = []
            for _ in range(repeat):
                begun = time.perf_counter()
                made[key]()
                seconds.append(time.perf_counter() - begun)
            answer = {"seconds": seconds}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
