"""Facts of what stands around the loss: optimiser, replay, earlier selves, and two engines for one function."""

import numpy as np

from minipc import augment, self_target
from minipc.audit.facts import Fact, holds, near, same
from minipc.audit.problems import step
from minipc.nn import optim, pointnet
from minipc.nn.losses import LossConfig
from minipc.nn.workspace import Workspace

DECAYED = {"out.W": 0.1, "out.b": 0.0, "shared0.gamma": 0.0, "shared0.beta": 0.0}  # weight decay of a name


def _walk(rng, steps=5):
    """Return parameters of every kind and the gradients of some steps."""
    shapes = {"out.W": (3, 4), "out.b": (4,), "shared0.gamma": (5,), "shared0.beta": (5,)}
    draw = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(steps + 1)]
    return draw[0], draw[1:]


def adamw(rng):
    """(O1) unrolled: moments as weighted sums of all gradients, decay on weights alone."""
    start, grads = _walk(rng)
    lr, beta1, beta2, facts = 0.05, 0.9, 0.999, []
    params, state = start, optim.adamw_start(start)
    arrays = {name: value.copy() for name, value in start.items()}
    in_place, work = optim.adamw_start(start), Workspace()
    wanted = dict(start)
    for t, g in enumerate(grads, start=1):
        params, state = optim.adamw_step(params, g, state, lr, 0.1)
        given = {name: value.copy() for name, value in g.items()}
        in_place = optim.adamw_in_place(arrays, given, in_place, lr, 0.1, work)
        for name in wanted:
            past = [earlier[name] for earlier in grads[:t]]
            m = sum((1 - beta1) * beta1 ** (t - i) * one for i, one in enumerate(past, start=1)) / (1 - beta1**t)
            v = sum((1 - beta2) * beta2 ** (t - i) * one**2 for i, one in enumerate(past, start=1)) / (1 - beta2**t)
            wanted[name] = wanted[name] - lr * DECAYED[name] * wanted[name] - lr * m / (np.sqrt(v) + 1e-8)
    for name in wanted:
        facts += [near(name, params[name], wanted[name]), same(f"{name} in place", arrays[name], params[name])]
    return facts


def sgd(rng):
    """(O2) unrolled, and (O4): the direction stays, the norm is cut."""
    start, grads = _walk(rng)
    params, state, wanted, seen = start, optim.sgd_start(start), dict(start), {name: [] for name in start}
    for g in grads:
        params, state = optim.sgd_step(params, g, state, 0.05, 0.1, momentum=0.8)
        for name in wanted:
            seen[name].append(g[name] + DECAYED[name] * wanted[name])
            velocity = sum(0.8**age * one for age, one in enumerate(reversed(seen[name])))
            wanted[name] = wanted[name] - 0.05 * velocity
    facts = [near(name, params[name], wanted[name]) for name in wanted]
    flat = np.concatenate([g.ravel() for g in grads[0].values()])
    for largest in (1.0, 100.0):
        clipped, norm = optim.clip_by_norm(grads[0], largest)
        scale = min(1.0, largest / np.linalg.norm(flat))
        facts += [
            near("norm", norm, np.linalg.norm(flat)),
            near("clipped", np.concatenate([g.ravel() for g in clipped.values()]), scale * flat),
        ]
    return facts


def replay(rng):
    """(A2) rounded twice, in float32: a product of two float32 is exact in float64, and a sum of two rounds alike."""
    points = rng.standard_normal((16, 64, 3)).astype(np.float32)
    params = augment.draw(3, 1, 0, 16, augment.AugmentConfig())
    scaled = (points.astype(np.float64) * params.scale[:, None].astype(np.float64)).astype(np.float32)
    wanted = (scaled.astype(np.float64) + params.shift[:, None].astype(np.float64)).astype(np.float32)
    part = augment.draw(3, 1, 5, 4, augment.AugmentConfig())
    return [
        same("points scale + shift, two roundings", augment.apply(points, params), wanted),
        same("a cloud's draw does not depend on its neighbours", np.hstack(part), np.hstack(params)[5:9]),
        holds("in the ranges", (np.abs(np.log(params.scale)) <= np.log(1.5) + 1e-6).all()
              and (np.abs(params.shift) <= np.float32(0.2)).all()),
    ]


def _toy(rng):
    """Return forward(params, points) -> logits, parameters of four steps, and points of two batches."""
    model = pointnet.ModelConfig((5, 6), (), classes=4)
    arrays, _ = step(model, LossConfig(), "textbook", rng, np.float64, clouds=6)
    points = arrays.pop("points")

    def forward(params, points):
        return pointnet.forward_train(params, points, model, engine="textbook")[0]

    def moved(by):
        return {name: value + by * rng.standard_normal(value.shape) for name, value in arrays.items()}

    return forward, [moved(0.1 * i) for i in range(4)], (points[:3], points[3:])


def snapshot(rng):
    """u is the student of the last n-th epoch's end, on the clouds of this step."""
    forward, walk, (first, second) = _toy(rng)
    target = self_target.Snapshot(forward, every=2)
    facts = [holds("none before the first snapshot", target.target(np.arange(3), first) is None)]
    for epoch, params in enumerate(walk[:3]):
        live = {name: value.copy() for name, value in params.items()}
        target.epoch_ended(epoch, live)
        for value in live.values():
            value += 1  # the next step writes into these arrays
        if epoch:
            u, has = target.target(np.arange(3), second)
            facts.append(near(f"after epoch {epoch}", u, forward(walk[1], second)))
            facts.append(holds("every row has one", (has == 1).all()))
    return facts


def ema(rng):
    """u is the student of the weights w_1 m^k + (1 - m) sum of m^(k - i) w_i."""
    forward, walk, (first, _) = _toy(rng)
    target, m = self_target.Ema(forward, 0.8), 0.8
    for params in walk:
        target.stepped(np.arange(3), None, params)
    last = len(walk) - 1
    averaged = {
        name: m**last * walk[0][name] + (1 - m) * sum(m ** (last - i) * walk[i][name] for i in range(1, last + 1))
        for name in walk[0]
    }
    return [near("the averaged student", target.target(np.arange(3), first)[0], forward(averaged, first))]


def history(rng):
    """u are the cloud's own logits of its last visit, as float16; a cloud not yet seen has none."""
    logits = rng.standard_normal((2, 3, 4))
    target = self_target.History(6, 4)
    target.stepped(np.array([4, 0, 2]), logits[0], None)
    target.stepped(np.array([2, 5, 0]), logits[1], None)
    u, has = target.target(np.array([0, 1, 2, 4]), np.zeros((4, 1, 3)))
    wanted = np.array([logits[1, 2], np.zeros(4), logits[1, 0], logits[0, 0]]).astype(np.float16)
    return [same("logits of the last visit", u, wanted), same("rows that have one", has, [1.0, 0.0, 1.0, 1.0])]


def second_record(rng):
    """u are an earlier student's recorded logits of the view that the epoch replays."""
    views = rng.standard_normal((3, 6, 4))
    target, facts = self_target.SecondRecord(lambda epoch: views[epoch % 3]), []
    for epoch in (0, 2):
        target.epoch_starts(epoch, np)
        u, has = target.target(np.array([5, 1]), np.zeros((2, 1, 3)))
        facts += [same(f"view of epoch {epoch}", u, views[epoch, [5, 1]]), holds("every row", (has == 1).all())]
    return facts


def engines(size):
    """Return the maker of Facts that both engines compute one function: gradients, logits and statistics."""

    def make(rng):
        model = pointnet.sizes(size, 10)
        arrays, fixed = step(model, LossConfig(0.9, 0.3, 2.5), "fused", rng, np.float64, clouds=5, points=24)
        arrays[f"shared{len(model.shared) - 1}.gamma"][1] = 0  # all points tie
        arrays["points"][:, 16:] = arrays["points"][:, :8]  # padded clouds
        arrays["points"] += 3
        found, wanted = (fixed._replace(engine=engine).gradients(arrays) for engine in pointnet.ENGINES)
        for gradients in (found, wanted):  # of repeated points the sum: which of them won is a convention
            dx = gradients["points"]
            gradients["points"] = np.concatenate([dx[:, :8] + dx[:, 16:], dx[:, 8:16]], axis=1)
        largest = max(np.abs(g).max() for g in wanted.values())
        facts = [Fact(name, float(np.abs(found[name] - g).max() / largest), 1e-12) for name, g in wanted.items()]
        params = {name: value for name, value in arrays.items() if name != "points"}
        trained, stats = zip(*(
            pointnet.forward_train(params, arrays["points"], model, engine=engine)[:2] for engine in pointnet.ENGINES
        ))
        facts += [near(f"{name}, {part}", getattr(batch, part), getattr(stats[1][name], part), 1e-11)
                  for name, batch in stats[0].items() for part in ("mean", "var")]
        tracked = pointnet.track(pointnet.initial_stats(model, np.float64), stats[1], model)
        evaluated = [pointnet.forward_eval(params, tracked, arrays["points"], model, e) for e in pointnet.ENGINES]
        return [*facts, near("logits in training", *trained), near("logits in evaluation", *evaluated)]

    return make
