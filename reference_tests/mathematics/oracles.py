"""Slow oracles: plain loops over Python floats, typed from the equations and not from the code.

They share nothing with minipc.nn, not even NumPy's reductions.  Arguments are arrays or nested
lists on the host; results are nested lists (or floats).  For tiny sizes only.
"""

from math import exp, log, sqrt
from struct import pack, unpack


def linear(x, W):
    """y_o = sum_i x_i W_io for every row, rows under any number of axes."""
    if hasattr(x[0], "__len__"):
        return [linear(part, W) for part in x]
    return [sum(float(x[i]) * float(W[i][o]) for i in range(len(x))) for o in range(len(W[0]))]


def bias(x, b):
    """y_o = x_o + b_o."""
    if hasattr(x[0], "__len__"):
        return [bias(part, b) for part in x]
    return [float(x[o]) + float(b[o]) for o in range(len(b))]


def rows_of(x):
    """Return the list of rows of nested lists, all axes but the last joined."""
    if hasattr(x[0], "__len__"):
        return [row for part in x for row in rows_of(part)]
    return [[float(value) for value in x]]


def map_rows(function, x):
    """Return x with function applied to every row."""
    if hasattr(x[0], "__len__"):
        return [map_rows(function, part) for part in x]
    return function([float(value) for value in x])


def moments(x):
    """Return mean and variance of every channel over all rows, the variance with divisor rows."""
    rows = rows_of(x)
    n, channels = len(rows), len(rows[0])
    mean = [sum(row[o] for row in rows) / n for o in range(channels)]
    var = [sum((row[o] - mean[o]) ** 2 for row in rows) / n for o in range(channels)]
    return mean, var


def batch_norm_eval(x, gamma, beta, mean, var, eps):
    """y = gamma (x - mean) / sqrt(var + eps) + beta with given moments."""

    def one(row):
        return [
            float(gamma[o]) * (row[o] - float(mean[o])) / sqrt(float(var[o]) + eps) + float(beta[o])
            for o in range(len(row))
        ]

    return map_rows(one, x)


def batch_norm(x, gamma, beta, eps):
    """The same with the moments of x itself."""
    return batch_norm_eval(x, gamma, beta, *moments(x), eps)


def relu(x):
    """y = x where x > 0, else 0."""
    return map_rows(lambda row: [value if value > 0 else 0.0 for value in row], x)


def point_max(x):
    """y_bo = the largest of x_bno over n, of clouds or of groups of clouds."""
    if hasattr(x[0][0][0], "__len__"):
        return [point_max(groups) for groups in x]
    return [[max(float(point[o]) for point in cloud) for o in range(len(cloud[0]))] for cloud in x]


def dropout(x, mask):
    """y = x mask."""
    return [
        [float(a) * float(m) for a, m in zip(row, row_mask, strict=True)]
        for row, row_mask in zip(x, mask, strict=True)
    ]


def log_softmax(z):
    """logp_k = z_k - log sum_j exp z_j, the sum taken relative to the largest term."""

    def one(row):
        top = max(row)
        norm = top + log(sum(exp(value - top) for value in row))
        return [value - norm for value in row]

    return map_rows(one, z)


def soft_cross_entropy(z, q):
    """loss_b = - sum_k q_bk log softmax(z_b)_k."""
    return [
        -sum(float(w) * lp for w, lp in zip(weights, row, strict=True))
        for weights, row in zip(q, log_softmax(z), strict=True)
    ]


def kl_at_temperature(target, z, T):
    """T^2 KL(softmax(target / T) || softmax(z / T)) of one row."""
    log_t = log_softmax([float(value) / T for value in target])
    log_s = log_softmax([float(value) / T for value in z])
    return T * T * sum(exp(a) * (a - b) for a, b in zip(log_t, log_s, strict=True))


def raw_loss(z, y, v, u, has_u, a, b, T):
    """(L): (1-a) CE(y, s_1) + a T^2 KL(p || s_T) - b T^2 KL(r || s_T), mean over rows."""
    total = 0.0
    for i in range(len(z)):
        total += (1 - a) * soft_cross_entropy([z[i]], [y[i]])[0]
        total += a * kl_at_temperature(v[i], z[i], T)
        total -= b * float(has_u[i]) * kl_at_temperature(u[i], z[i], T)
    return total / len(z)


def guarded_loss(z, y, v, u, has_u, a, b, T, delta=0.05):
    """(L9): (1-a) CE(y, s_1) + T^2 [H(q', s_T) - a H(p, p) + b H(r, r)], q' as in (L8), mean over
    rows.
    """
    total = 0.0
    for i in range(len(z)):
        p = [exp(value) for value in log_softmax([float(x) / T for x in v[i]])]
        r = [exp(value) for value in log_softmax([float(x) / T for x in u[i]])]
        q = [
            max(a * pk - b * float(has_u[i]) * rk, delta * a * pk)
            for pk, rk in zip(p, r, strict=True)
        ]
        total += (1 - a) * soft_cross_entropy([z[i]], [y[i]])[0]
        total += T * T * soft_cross_entropy([[float(x) / T for x in z[i]]], [q])[0]
        total -= T * T * a * soft_cross_entropy([[float(x) / T for x in v[i]]], [p])[0]
        total += (
            T * T * b * float(has_u[i]) * soft_cross_entropy([[float(x) / T for x in u[i]]], [r])[0]
        )
    return total / len(z)


def pointnet(params, points, config, norm, mask=None):
    """Logits of a PointNet; norm(x, layer name) is the batch norm in use."""
    x = points
    for i in range(len(config.shared)):
        x = relu(norm(linear(x, params[f"shared{i}.W"]), f"shared{i}"))
    x = point_max(x)
    for i in range(len(config.head)):
        x = relu(norm(linear(x, params[f"head{i}.W"]), f"head{i}"))
    if mask is not None:
        x = dropout(x, mask)
    return bias(linear(x, params["out.W"]), params["out.b"])


def pointnet_train(params, points, config, mask=None):
    """Logits with the statistics of the batch."""

    def norm(x, name):
        return batch_norm(x, params[f"{name}.gamma"], params[f"{name}.beta"], config.eps)

    return pointnet(params, points, config, norm, mask)


def pointnet_eval(params, stats, points, config):
    """Logits with running statistics and without dropout."""

    def norm(x, name):
        return batch_norm_eval(
            x,
            params[f"{name}.gamma"],
            params[f"{name}.beta"],
            stats[f"{name}.mean"],
            stats[f"{name}.var"],
            config.eps,
        )

    return pointnet(params, points, config, norm)


def adamw(params, grads_of_steps, lr, weight_decay, decayed, beta1=0.9, beta2=0.999, eps=1e-8):
    """Loshchilov & Hutter 2019, algorithm 2, number by number; params {name: list of floats}."""
    params = {name: list(values) for name, values in params.items()}
    m = {name: [0.0] * len(values) for name, values in params.items()}
    v = {name: [0.0] * len(values) for name, values in params.items()}
    for t, grads in enumerate(grads_of_steps, start=1):
        for name, values in params.items():
            for i, theta in enumerate(values):
                g = grads[name][i]
                m[name][i] = beta1 * m[name][i] + (1 - beta1) * g
                v[name][i] = beta2 * v[name][i] + (1 - beta2) * g * g
                mhat = m[name][i] / (1 - beta1**t)
                vhat = v[name][i] / (1 - beta2**t)
                decay = weight_decay if name in decayed else 0.0
                values[i] = theta - lr * (mhat / (sqrt(vhat) + eps) + decay * theta)
    return params


def sgd(params, grads_of_steps, lr, weight_decay, decayed, momentum=0.9):
    """velocity = momentum velocity + (gradient + decay theta); theta -= lr velocity."""
    params = {name: list(values) for name, values in params.items()}
    velocity = {name: [0.0] * len(values) for name, values in params.items()}
    for grads in grads_of_steps:
        for name, values in params.items():
            for i, theta in enumerate(values):
                decay = weight_decay if name in decayed else 0.0
                velocity[name][i] = momentum * velocity[name][i] + grads[name][i] + decay * theta
                values[i] = theta - lr * velocity[name][i]
    return params


def rounded(value):
    """Return the float32 nearest to a float: with it, one operation is that of float32."""
    return unpack("<f", pack("<f", value))[0]


def squared_distance(p, q):
    """(x^2 + y^2) + z^2 of the differences, each step rounded to float32."""
    x, y, z = (rounded(float(a) - float(b)) for a, b in zip(p, q, strict=True))
    return rounded(rounded(rounded(x * x) + rounded(y * y)) + rounded(z * z))


def farthest_points(cloud, count):
    """Point 0, then again and again the point whose nearest chosen one is the farthest."""
    chosen = [0]
    while len(chosen) < count:
        best, found = -1.0, None
        for n in range(len(cloud)):
            near = min(squared_distance(cloud[n], cloud[c]) for c in chosen)
            if n not in chosen and near > best:  # of equal ones the first
                best, found = near, n
        chosen.append(found)
    return chosen


def group(cloud, centre, members, radius=0.0):
    """The nearest points of one centre, by distance and then index, filled up with the nearest."""
    order = sorted(range(len(cloud)), key=lambda n: (squared_distance(cloud[n], cloud[centre]), n))
    if radius:
        limit = rounded(rounded(radius) * rounded(radius))
        order = [n for n in order if squared_distance(cloud[n], cloud[centre]) < limit] or order[:1]
    order = order[:members]
    return order + [order[0]] * (members - len(order))


def offsets(positions, centres, members):
    """o_mj = p_g(m,j) - p_c(m) of each cloud."""
    return [
        [
            [[float(a) - float(b) for a, b in zip(p[n], p[c], strict=True)] for n in group]
            for c, group in zip(cloud_centres, cloud_members, strict=True)
        ]
        for p, cloud_centres, cloud_members in zip(positions, centres, members, strict=True)
    ]


def gather(f, members):
    """y_mj = f_g(m,j) of each cloud."""
    return [
        [[[float(value) for value in cloud[n]] for n in group] for group in groups]
        for cloud, groups in zip(f, members, strict=True)
    ]


def readers(members, points):
    """The places m k + j that read each point, ascending, filled with M k to the most of all."""
    found = [
        [
            [
                m * len(group) + j
                for m, group in enumerate(groups)
                for j, n in enumerate(group)
                if n == point
            ]
            for point in range(points)
        ]
        for groups in members
    ]
    most = max(len(places) for cloud in found for places in cloud)
    fill = len(members[0]) * len(members[0][0])
    return [[places + [fill] * (most - len(places)) for places in cloud] for cloud in found]


def max_and_mean(x):
    """y_b = the largest of each channel, then the mean of each channel."""
    means = [
        [sum(float(point[o]) for point in cloud) / len(cloud) for o in range(len(cloud[0]))]
        for cloud in x
    ]
    return [largest + mean for largest, mean in zip(point_max(x), means, strict=True)]
