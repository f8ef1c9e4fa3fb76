"""Kernels of our own for a device, each in the place of many array operations.

On a device it is the host's time to begin an operation that small arrays cost, so what CuPy would
do in a hundred operations is one here.  Each kernel takes the operations of its NumPy form in their
order.  Where it says so, the bits are the same but for subnormal numbers, which a device makes 0:
then products and sums are rounded one by one, without fused multiply-add.  Tests hold each against
that form on a device.  No kernel uses atomics: every sum has one order.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.nn.ops import BatchStats

BLOCK = 128  # threads of a block that adds up: a power of two
WIDE = 1024  # of one that has long sums and few others beside it
TILE = 1024  # whole numbers that a block or warp reads at once, to look at each in turn
MOST_TABLES = 4096  # of addresses, see outer(): networks whose widths change would make ever more
ROUNDED_ONE_BY_ONE = ("--fmad=false",)


def on_device(xp: Any) -> bool:
    """Return whether module xp compiles kernels: CuPy does, NumPy does not."""
    return hasattr(xp, "ElementwiseKernel")


@cache
def _elementwise(xp: Any, name: str, given: str, changed: str, body: str) -> Any:
    return xp.ElementwiseKernel(given, changed, body, name, options=ROUNDED_ONE_BY_ONE)


@cache
def _raw(xp: Any, name: str, dtype: Any, body: str, more: str = "") -> Any:
    """Return the kernel of this name, whose T is float or double; more: beside that."""
    kind = "float" if dtype == np.float32 else "double"
    return xp.RawKernel(f"typedef {kind} T;\n{more}\n{SUM}\n{body}", name)


def _plain(dtype: Any, *arrays: Any) -> list:
    """Return arrays as a kernel of C reads them: of this dtype, contiguous; most are already."""
    return [module_of(array).ascontiguousarray(array, dtype) for array in arrays]


# The sum of x over the threads of a block, which all get it, always in the same order: by halves
# in each warp, then over the warps.
SUM = f"""
template <int threads> __device__ double over(double x) {{
  __shared__ double parts[threads / 32];
  for (int half = 16; half; half /= 2) x += __shfl_down_sync(0xffffffff, x, half);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < threads / 32; ++warp) sum += parts[warp];
  return sum;
}}

__device__ double over_block(double x) {{ return over<{BLOCK}>(x); }}"""


def held(work: Any, name: str, array: Any) -> Any:
    """Return an array of the host on the module of work: on a device in the buffer of this name.

    So whatever a step reads lies where the step before read it.  None stays None.
    """
    if array is None or not on_device(work.xp):
        return None if array is None else work.xp.asarray(array)
    buffer = work.array(f"held {name}", array.shape, array.dtype)
    if work.holds:  # the device has put it there
        return buffer
    # not buffer.set(array), whose copy may still read array when Python has freed it: asarray
    # copies it to memory that CuPy keeps until the device has read it
    buffer[...] = work.xp.asarray(array)
    return buffer


def next_of(tables: dict[str, Any], counter: Any, work: Any) -> None:
    """Copy a row of each table (S, ...) to where held() has the array of its name, and count it.

    counter (1,): the number of the row.
    """
    heads, copies, given = [], [], []
    for i, (name, table) in enumerate(tables.items()):
        now = work.array(f"held {name}", table.shape[1:], table.dtype)
        kind = KINDS[table.dtype.char]
        heads.append(f"const {kind}* table{i}, {kind}* now{i}, long long size{i}")
        copies.append(
            f"for (long long j = threadIdx.x; j < size{i}; j += blockDim.x)"
            f" now{i}[j] = table{i}[step * size{i} + j];"
        )
        given += [table, now, now.size]
    body = NEXT_OF % (", ".join(heads), "\n  ".join(copies))
    _raw(work.xp, "next_of", counter.dtype, body)((1,), (BLOCK,), (*given, counter))


KINDS = {"l": "long long", "q": "long long", "f": "float", "d": "double"}
NEXT_OF = """
extern "C" __global__ void next_of(%s, long long* counter) {
  const long long step = *counter;
  %s
  __syncthreads();
  if (threadIdx.x == 0) *counter = step + 1;
}"""


def add_to(totals: Any, numbers: list) -> None:
    """totals[i] += numbers[i], arrays of no axis.  Raises ValueError for more than totals holds."""
    if len(numbers) > len(totals):
        raise ValueError(f"{len(numbers)} numbers, and totals of {len(totals)}")
    names = [f"x{i}" for i in range(len(numbers))]
    body = "; ".join(f"totals[{i}] += {name}[0]" for i, name in enumerate(names))
    given = ", ".join(f"raw T {name}" for name in names)
    kernel = _elementwise(module_of(totals), "add_to", given, "raw T totals", body)
    kernel(*numbers, totals, size=1)


def multiply(a: Any, b: Any, out: Any, scale: float = 1.0) -> Any:
    """out = scale a b, for each cloud where there are clouds: one call of cuBLAS, no copies.

    a (R, I) or (C, R, I), b (I, N) or (C, I, N), out (R, N) or (C, R, N) whose last axis is
    contiguous.  Returns out.
    """
    xp = module_of(a, b, out)
    if a.dtype != out.dtype or b.dtype != out.dtype or not _fits(a) or not _fits(b):
        return xp.multiply(xp.matmul(a, b), scale, out=out)
    # cuBLAS counts along columns, so it is told out^T = b^T a^T
    (rows, points), inner = out.shape[-2:], a.shape[-1]
    given = [(x.data.ptr, *_steps(x)) for x in (b, a, out)]
    clouds = out.shape[0] if out.ndim == 3 else 1
    sizes = _flipped(b), _flipped(a), points, rows, inner
    _cublas(xp, "gemmStridedBatched", out.dtype, sizes, given, clouds, scale)
    return out


def _cublas(
    xp: Any, name: str, dtype: Any, sizes: tuple, given: list, clouds: int, scale: float = 1.0
) -> None:
    """Call a product of cuBLAS.    given: what it reads of the matrices a, b and out

    CuPy refuses to while a stream captures, though cuBLAS can be captured; then we call it.
    """
    cublas, single = xp.cuda.cublas, dtype == np.float32
    factors = _factors(scale, dtype).ctypes.data
    everything = (
        *(xp.cuda.device.get_cublas_handle(), *sizes, factors, *given[0], *given[1]),
        *(factors + dtype.itemsize, *given[2], clouds),
    )
    try:
        getattr(cublas, f"{'s' if single else 'd'}{name}")(*everything)
    except NotImplementedError:
        status = _of_library(cublas, f"cublas{'S' if single else 'D'}{name}")(*everything)
        if status:
            raise RuntimeError(f"cuBLAS: {name} ended with status {status}") from None


@cache
def _of_library(cublas: Any, name: str) -> Any:
    """Return a product of the library that CuPy's module cublas has loaded."""
    function = getattr(ctypes.CDLL(cublas.__file__), name)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    matrix = [pointer, number, *([ctypes.c_longlong] if "Strided" in name else [])]
    function.argtypes = [
        *(pointer, *[number] * 5, pointer, *matrix, *matrix, pointer, *matrix, number)
    ]
    return function


@cache
def _factors(scale: float, dtype: Any) -> np.ndarray:
    """Return [scale, 0], which cuBLAS reads on the host: of a b, and of what out held."""
    return np.array([scale, 0.0], dtype)


def _flipped(a: Any) -> int:
    """Return 1 for a matrix whose columns lie together, 0 for one whose rows do."""
    return int(a.shape[-1] > 1 and a.strides[-1] != a.itemsize)


def _fits(a: Any) -> bool:
    """Return whether cuBLAS can read a where it lies: one axis contiguous, no row repeated."""
    if a.strides[-1] == 0 < a.shape[-1] - 1 or a.strides[-2] == 0 < a.shape[-2] - 1:
        return False
    return not _flipped(a) or a.shape[-2] == 1 or a.strides[-2] == a.itemsize


def _steps(a: Any) -> tuple[int, int]:
    """Return the numbers from one row, or flipped column, to the next, and from cloud to cloud."""
    along, across = (-1, -2) if _flipped(a) else (-2, -1)
    cloud = a.strides[0] // a.itemsize if a.ndim == 3 else 0
    return max(a.strides[along] // a.itemsize, a.shape[across]), cloud


def outer(z: Any, d: Any, work: Any) -> Any:
    """Return the sum over clouds and points of z d^T, (I, O) float64.

    z (C, I, N), d (C, O, N), whose points are contiguous.  A cloud's points are divided into parts
    that are summed in z's dtype by one call of cuBLAS, and these sums in float64: many short sums
    fill a device that few long ones leave idle, and are more exact.
    """
    (clouds, inputs, points), width, parts = z.shape, d.shape[1], 1
    while (
        points % (2 * parts) == 0
        and points // (2 * parts) >= SHORTEST
        and 2 * parts * clouds * inputs * width <= MOST_SUMS
    ):
        parts *= 2
    if len(work.tables) > MOST_TABLES:
        work.tables.clear()  # here, where no product is to come that reads one
    out = work.scratch(f"outer {z.dtype}", (clouds * parts, inputs, width), z.dtype)
    given = [
        *((_places(x, parts, work), x.strides[1] // x.itemsize) for x in (d, z)),
        (_places(out, 1, work), width),
    ]
    sizes = 1, 0, width, inputs, points // parts
    _cublas(work.xp, "gemmBatched", z.dtype, sizes, given, len(out))
    return total(out, work.xp.empty((inputs, width)))


SHORTEST, MOST_SUMS = 128, 2**21  # points of a part, and numbers that all parts make


def _places(x: Any, parts: int, work: Any) -> int:
    """Return where the addresses of the parts of x (C, ., N) lie, cloud by cloud: in a table."""
    part = x.shape[2] // parts * x.strides[2]
    key = (x.data.ptr, len(x), x.strides[0], part, parts)
    if key not in work.tables:
        begin = x.data.ptr + x.strides[0] * np.arange(len(x))[:, None] + part * np.arange(parts)
        work.tables[key] = work.xp.asarray(begin.ravel())
    return work.tables[key].data.ptr


def total(parts: Any, out: Any) -> Any:
    """out = the sum of parts (C, ...) over its first axis, always in one order, in float64."""
    _raw(module_of(out), "total", parts.dtype, TOTAL)(
        (-(-out.size // 16),), (BLOCK,), (parts, len(parts), out.size, out)
    )
    return out


# sixteen numbers a block: a share of the parts for each thread, then the shares in their order
TOTAL = f"""
extern "C" __global__ void total(const T* parts, long long C, long long size, double* out) {{
  __shared__ double shares[{BLOCK}];
  const long long i = blockIdx.x * 16LL + threadIdx.x % 16;
  double sum = 0;
  if (i < size) {{
    #pragma unroll 8
    for (long long c = threadIdx.x / 16; c < C; c += {BLOCK} / 16) sum += parts[c * size + i];
  }}
  shares[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < 16 && i < size) {{
    for (int other = threadIdx.x + 16; other < {BLOCK}; other += 16) sum += shares[other];
    out[i] = sum;
  }}
}}"""


def mean(z: Any) -> Any:
    """Return the mean of z over clouds and points.    z (C, I, N), points contiguous -> (I,)"""
    xp, (clouds, inputs, points), item = module_of(z), z.shape, z.itemsize
    out = xp.empty(inputs, z.dtype)
    sizes = (clouds, points, z.strides[0] // item, z.strides[1] // item)
    _raw(xp, "mean", z.dtype, MEAN)((inputs,), (WIDE,), (z, *sizes, out))
    return out


MEAN = f"""
extern "C" __global__ void mean(const T* z, long long C, long long N, long long cloud,
    long long row, T* out) {{
  double sum = 0;
  for (long long n = threadIdx.x; n < N; n += {WIDE}) {{
    const T* at = z + blockIdx.x * row + n;
    #pragma unroll 8
    for (long long c = 0; c < C; ++c) sum += at[c * cloud];
  }}
  sum = over<{WIDE}>(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum / (C * N);
}}"""


def affine(
    x: Any, W: Any, gamma: Any, beta: Any, eps: float, name: str
) -> tuple[tuple, tuple, tuple[Any, Any]]:
    """Return (c, m, CW, inv_std), ([A^T | c - s'] (O, I + 1), s', -s'), (mean, var): (F1), (F8).

    x: an Activation whose moments are sums over its rows; s' = relu(beta).  Sums are float64.
    """
    (inputs, width), dtype, work = W.shape, W.dtype, x.work
    shapes = {"c": (width,), "m": (inputs,), "CW": W.shape, "inv_std": (width,)}
    shapes |= {"A": (width, inputs + 1), "shift": (width,), "floor": (width,)}
    found = [work.array(f"{name} {part}", shape, dtype) for part, shape in shapes.items()]
    stats = work.xp.empty(width, dtype), work.xp.empty(width, dtype)  # of one batch among several
    sizes = (float(x.rows), float(eps), inputs, width)
    given = *_plain(np.float64, x.moments), *_plain(dtype, W, gamma, beta, x.shift)
    blocks = -(-width // CHANNELS)
    _raw(work.xp, "affine", dtype, AFFINE)((blocks,), (BLOCK,), (*given, *sizes, *found, *stats))
    return tuple(found[:4]), tuple(found[4:]), stats


# CHANNELS of the layer for each block: they share what they read of the moments
CHANNELS = 4
AFFINE = f"""
extern "C" __global__ void affine(const double* M, const T* W, const T* gamma, const T* beta,
    const T* moved_by, double rows, double eps, long long I, long long O, T* c, T* m, T* CW,
    T* inv_std, T* A, T* shift, T* floor, T* mean, T* var) {{
  __shared__ double weights[{CHANNELS}][{BLOCK}], means[{BLOCK}];
  const int t = threadIdx.x;
  const long long begin = blockIdx.x * {CHANNELS}LL, O_here = min(O - begin, {CHANNELS}LL);
  const double* sums = M + I * (I + 1);
  const double each = 1 / rows;  // float64 divisions are slow on most cards
  double square[{CHANNELS}] = {{}}, centre[{CHANNELS}] = {{}}, moved[{CHANNELS}] = {{}};
  for (long long first = 0; first < I; first += {BLOCK}) {{
    const long long i = first + t;
    const double mu = i < I ? sums[i] * each : 0;
    double sum[{CHANNELS}] = {{}};
    for (long long from = 0; from < I; from += {BLOCK}) {{
      const long long row = from + t, count = min(I - from, {BLOCK}LL);
      __syncthreads();
      means[t] = row < I ? sums[row] * each : 0;
      for (int o = 0; o < {CHANNELS}; ++o)
        weights[o][t] = row < I && o < O_here ? W[row * O + begin + o] : 0;
      __syncthreads();
      if (i < I)
        for (long long j = 0; j < count; ++j) {{
          const double C = M[(from + j) * (I + 1) + i] * each - mu * means[j];
          for (int o = 0; o < {CHANNELS}; ++o) sum[o] += C * weights[o][j];
        }}
    }}
    if (i < I)
      for (int o = 0; o < {CHANNELS}; ++o) {{
        if (o >= O_here) break;
        const double w = W[i * O + begin + o];
        CW[i * O + begin + o] = sum[o];
        square[o] += w * sum[o], centre[o] += w * mu, moved[o] += w * (mu + moved_by[i]);
        if (begin + o == 0) m[i] = mu;
      }}
  }}
  for (int here = 0; here < {CHANNELS}; ++here) {{
    if (here >= O_here) break;
    const long long o = begin + here;
    const double full = over_block(square[here]), variance = full < 0 ? 0 : full;
    const double at = over_block(centre[here]), shifted = over_block(moved[here]);
    const double inverse = 1 / sqrt(variance + eps);
    const T scale = gamma[o] * inverse, s = beta[o] < 0 ? 0 : beta[o];
    for (long long i = t; i < I; i += {BLOCK}) A[o * (I + 1) + i] = W[i * O + o] * scale;
    if (t == 0) {{
      c[o] = beta[o] - gamma[o] * inverse * at;
      A[o * (I + 1) + I] = c[o] - s;
      inv_std[o] = inverse, shift[o] = s, floor[o] = -s, mean[o] = shifted, var[o] = variance;
    }}
  }}
}}"""


def gradients(
    products: Any, rows: int, affine: Any, work: Any, name: str
) -> tuple[Any, Any, Any, Any]:
    """Return dW, dgamma, dbeta by (F2), (F3) and [-Q | k | A] (I, I + 1 + O) of (F4).

    products Z~ D^T (I + 1, O) float64.  Where the parameters are joined, so are their gradients.
    """
    _, _, m, CW, W, gamma, inv_std, _ = affine
    (inputs, width), dtype = W.shape, W.dtype
    dW, dgamma, dbeta = (
        gradient_of(work, f"{name}.{part}", shape, dtype)
        for part, shape in (("W", W.shape), ("gamma", (width,)), ("beta", (width,)))
    )
    spare = work.array(f"{name} spare", W.shape, dtype)
    K = work.array(f"{name} K", (inputs, inputs + 1 + width), dtype)
    sizes = (inputs, width, float(rows))
    (products,), (W, gamma) = _plain(np.float64, products), _plain(dtype, W, gamma)
    _raw(work.xp, "gradients", dtype, GRADIENTS)(
        (width,),
        (BLOCK,),
        (products, W, m, CW, gamma, inv_std, *sizes, dW, dgamma, dbeta, spare),
    )
    multiply(spare, W.T, K[:, :inputs], scale=-1)
    _raw(work.xp, "constant", dtype, CONSTANT)(
        (inputs,), (BLOCK,), (W, m, gamma, inv_std, dbeta, *sizes, K)
    )
    return dW, dgamma, dbeta, K


def gradient_of(work: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return where the gradient of a parameter goes: into the joined ones where they fit."""
    view = work.joined.get("gradients", (None, {}))[1].get(name)
    if view is not None and (view.shape, view.dtype) == (shape, dtype):
        return view
    return work.array(f"{name} gradient", shape, dtype)


GRADIENTS = """
extern "C" __global__ void gradients(const double* products, const T* W, const T* m, const T* CW,
    const T* gamma, const T* inv_std, long long I, long long O, double rows, T* dW, T* dgamma,
    T* dbeta, T* spare) {
  const long long o = blockIdx.x;
  const double d = products[I * O + o], inverse = inv_std[o];
  double sum = 0;
  for (long long i = threadIdx.x; i < I; i += blockDim.x)
    sum += W[i * O + o] * (products[i * O + o] - m[i] * d);
  const double dg = over_block(sum) * inverse, scale = gamma[o] * inverse;
  for (long long i = threadIdx.x; i < I; i += blockDim.x) {
    const double R = products[i * O + o] - m[i] * d;
    dW[i * O + o] = (R - CW[i * O + o] * dg * inverse) * scale;
    spare[i * O + o] = W[i * O + o] * (scale * dg * inverse / rows);
  }
  if (threadIdx.x == 0) dgamma[o] = dg, dbeta[o] = d;
}"""

# one block for each row i of K, after its first I columns: k = Q m - A dbeta / rows, then A
CONSTANT = """
extern "C" __global__ void constant(const T* W, const T* m, const T* gamma, const T* inv_std,
    const T* dbeta, long long I, long long O, double rows, T* K) {
  const long long i = blockIdx.x;
  T* row = K + i * (I + 1 + O);
  double sum = 0;
  for (long long j = threadIdx.x; j < I; j += blockDim.x) sum -= row[j] * (double)m[j];
  for (long long o = threadIdx.x; o < O; o += blockDim.x) {
    const T a = W[i * O + o] * (gamma[o] * inv_std[o]);
    sum -= a * (double)dbeta[o] / rows;
    row[I + 1 + o] = a;
  }
  sum = over_block(sum);
  if (threadIdx.x == 0) row[I] = sum;
}"""


def masked(z: Any, floor: Any, dx: Any) -> Any:
    """z = dx where z > floor, else 0: D over Z in the tower, which it returns.

    z and dx (C, O, N), floor (O, 1)
    """
    body = "z = dx * (T)(z > floor)"
    return _elementwise(module_of(z), "masked", "T floor, T dx", "T z", body)(floor, dx, z)


def pool(At: Any, c: Any, z: Any, work: Any) -> tuple[Any, Any, Any]:
    """h = relu(c_o + max_n (A^T z)_on), the first n that attains it, and whether h > 0.  (F5)

    At (O, I), c (O,), z (C, I, N) -> h (C, O), winners (C, O) int64, positive (C, O) bool
    """
    (width, clouds, points), xp, dtype = (len(At), len(z), z.shape[2]), work.xp, z.dtype
    P = multiply(At, z, work.scratch("P", (clouds, width, points), dtype))
    h, winners, positive = (xp.empty((clouds, width), kind) for kind in (dtype, np.int64, bool))
    rows = clouds * width
    given = (P, *_plain(dtype, c), rows, width, np.int32(points))
    _raw(xp, "pool", dtype, POOL)(
        (-(-rows // (BLOCK // 32)),), (BLOCK,), (*given, h, winners, positive)
    )
    return h, winners, positive


# A warp for each row.  Not a number counts as the largest, as in argmax.
POOL = f"""
__device__ bool before(T other, int at, T best, int place) {{
  const bool none = best != best, other_none = other != other;
  if (other_none != none) return other_none;
  return other > best || ((other == best || none) && at < place);
}}

extern "C" __global__ void pool(const T* P, const T* c, long long rows, long long O, int N, T* h,
    long long* winners, bool* positive) {{
  const int lane = threadIdx.x % 32;
  const long long which = blockIdx.x * {BLOCK // 32}LL + threadIdx.x / 32;
  const T* row = P + min(which, rows - 1) * N;
  int at = min(lane, N - 1);
  T best = row[at];
  #pragma unroll 8
  for (int n = lane + 32; n < N; n += 32) {{
    const T x = row[n];
    if (x > best || (x != x && best == best)) best = x, at = n;
  }}
  for (int half = 16; half; half /= 2) {{
    const T other = __shfl_down_sync(0xffffffff, best, half);
    const int place = __shfl_down_sync(0xffffffff, at, half);
    if (before(other, place, best, at)) best = other, at = place;
  }}
  if (lane == 0 && which < rows) {{
    const T y = best + c[which % O];
    h[which] = y < 0 ? 0 : y, winners[which] = at, positive[which] = y > 0;
  }}
}}"""


def at_winners(z: Any, winners: Any, g: Any) -> Any:
    """Return Z~ S over all clouds, (I + 1, O) float64.  (F6)

    z (B, I, N) whose points are contiguous, winners and g (B, O)
    """
    (clouds, inputs), width, item = z.shape[:2], g.shape[1], z.itemsize
    given = "raw T z, raw int64 at, raw T g, int64 B, int64 I, int64 O, int64 cloud, int64 row"
    xp, (cloud, row, _) = module_of(z), z.strides
    flat = xp.ndarray((1,), z.dtype, z.data)  # the kernel computes places itself
    kernel = _elementwise(xp, "at_winners", given, "float64 out", AT_WINNERS)
    out = xp.empty((inputs + 1, width))
    return kernel(flat, winners, g, clouds, inputs, width, cloud // item, row // item, out)


AT_WINNERS = """
    const long long c = i / O, o = i % O;
    double sum = 0;
    #pragma unroll 8
    for (long long b = 0; b < B; ++b)
      sum += c == I ? (double)g[b * O + o]
                    : (double)g[b * O + o] * (&z[0])[b * cloud + c * row + at[b * O + o]];
    out = sum;
"""


def at_group_winners(z: Any, rows: Any, g: Any) -> Any:
    """Return the sum over clouds and groups of Z~ at the winners times g, (I, O) float64.  (F6)

    z (C, I, R) whose rows are contiguous, rows (C, O, M) int64, the winners, and g (C, O, M)
    """
    xp, (clouds, inputs, _), (_, width, count) = module_of(z), z.shape, g.shape
    (cloud, row, _), item = z.strides, z.itemsize
    out = xp.empty((inputs, width))
    rows, g = xp.ascontiguousarray(rows, np.int64), xp.ascontiguousarray(g)
    sizes = (inputs, width, clouds, count, cloud // item, row // item)
    _raw(xp, "at_group_winners", z.dtype, AT_GROUP_WINNERS)(
        (inputs * width,), (BLOCK,), (z, rows, g, *sizes, out)
    )
    return out


AT_GROUP_WINNERS = """
extern "C" __global__ void at_group_winners(const T* z, const long long* at, const T* g,
    long long I, long long O, long long C, long long M, long long cloud, long long row,
    double* out) {
  const long long i = blockIdx.x / O, o = blockIdx.x % O;
  double sum = 0;
  for (long long p = threadIdx.x; p < C * M; p += blockDim.x) {
    const long long c = p / M, here = (c * O + o) * M + p % M;
    sum += (double)g[here] * z[c * cloud + i * row + at[here]];
  }
  sum = over_block(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}"""


def add_at_winners(dx: Any, winners: Any, g: Any, At: Any, work: Any) -> None:
    """dx += A S^T.  (F7)    dx (C, I, N), winners and g (C, O), all contiguous; At (O, I)

    Channels that the same point won form a list, in their order; one thread adds up a list.
    """
    xp, (clouds, inputs, points), width = work.xp, dx.shape, g.shape[1]
    after, leads = (work.array(f"winners {name}", g.shape, np.int32) for name in ("after", "leads"))
    blocks = -(-width // BLOCK), clouds
    _raw(xp, "lists", g.dtype, LISTS)(blocks, (BLOCK,), (winners, np.int32(width), after, leads))
    row = At.strides[0] // At.itemsize
    given = "raw int32 after, raw int32 leads, raw int64 at, raw T g, raw T A, int64 I, int64 O"
    flat = xp.ndarray((1,), At.dtype, At.data)
    kernel = _elementwise(xp, "add_lists", f"{given}, int64 N, int64 row", "raw T dx", ADD_LISTS)
    sizes = (inputs, width, points, row)
    kernel(after, leads, winners, g, flat, *sizes, dx, size=clouds * width * inputs)


LISTS = f"""
extern "C" __global__ void lists(const long long* at, int O, int* after, int* leads) {{
  __shared__ int others[{TILE}];
  const int o = blockIdx.x * {BLOCK} + threadIdx.x;
  at += blockIdx.y * (long long)O, after += blockIdx.y * (long long)O;
  leads += blockIdx.y * (long long)O;
  const int mine = o < O ? at[o] : -1;
  int next = -1, lead = 1;
  for (int from = 0; from < O; from += {TILE}) {{
    __syncthreads();
    for (int k = threadIdx.x; k < {TILE}; k += {BLOCK})
      others[k] = from + k < O ? at[from + k] : -2;
    __syncthreads();
    #pragma unroll 16
    for (int k = 0; k < {TILE}; ++k)
      if (others[k] == mine) {{
        if (from + k < o) lead = 0;
        if (from + k > o && next < 0) next = from + k;
      }}
  }}
  if (o < O) after[o] = next, leads[o] = lead;
}}"""

ADD_LISTS = """
    const long long c = i % I, first = i / (I * O) * O, lead = first + i / I % O;
    if (leads[lead]) {
      T sum = 0;
      for (long long o = lead - first; o >= 0; o = after[first + o])
        sum += g[first + o] * (&A[0])[o * row + c];
      dx[(i / (I * O) * I + c) * N + at[lead]] += sum;
    }
"""


def columns(u: Any, index: Any, out: Any) -> None:
    """out (C, O, R) = u (C, O, N), whose points are contiguous, at columns index (C, R)."""
    xp, (_, width, count), item = module_of(u), out.shape, u.itemsize
    given = "raw T u, raw I index, int64 O, int64 R, int64 cloud, int64 row"
    kernel = _elementwise(xp, "columns", given, "T out", COLUMNS)
    flat = xp.ndarray((1,), u.dtype, u.data)  # the kernel computes places itself
    kernel(flat, index, width, count, u.strides[0] // item, u.strides[1] // item, out)


COLUMNS = """
    const long long c = i / (O * R);
    out = (&u[0])[c * cloud + i / R % O * row + index[c * R + i % R]];
"""


def expand(u: Any, index: Any, centre: Any, floor: Any, out: Any) -> None:
    """out = max(u at columns index - centre, floor), the rows of a level member by member.  (F11)

    u (C, O, N), whose points are contiguous, index (C, k M), centre (C, O, M), floor (O,), out
    (C, O, k M)
    """
    xp, (_, width, count), item = module_of(u), out.shape, u.itemsize
    given = "raw T u, raw I index, raw T centre, raw T floor, int64 O, int64 R, int64 M"
    kernel = _elementwise(xp, "expand", f"{given}, int64 cloud, int64 row", "T out", EXPAND)
    flat = xp.ndarray((1,), u.dtype, u.data)  # the kernel computes places itself
    strides = u.strides[0] // item, u.strides[1] // item
    kernel(flat, index, centre, floor, width, count, centre.shape[2], *strides, out)


EXPAND = """
    const long long c = i / (O * R), o = i / R % O, r = i % R;
    out = (&u[0])[c * cloud + o * row + index[c * R + r]] - centre[(c * O + o) * M + r % M];
    out = out < floor[o] ? floor[o] : out;
"""


def first_maximum(rows: Any, axis: int, best: Any, rank: Any) -> None:
    """best = the maximum of rows along axis, rank = the first place that attains it.

    rows is contiguous.  A maximum that is not a number has the last place.
    """
    inner, places = int(np.prod(rows.shape[axis + 1 :])), rows.shape[axis]
    given = "raw T rows, int64 inner, int64 places"
    kernel = _elementwise(module_of(rows), "first_maximum", given, "T best, R rank", FIRST_MAXIMUM)
    kernel(rows, inner, places, best, rank)


def first_of_gathered(points: Any, index: Any, best: Any, rank: Any) -> None:
    """first_maximum of the rows of points at index over its members, which are never made.

    points (R, O), index (k, G), best and rank (G, O), all but index contiguous.
    """
    xp, (members, groups), width = module_of(points), index.shape, points.shape[1]
    given = "raw T rows, raw I index, int64 O, int64 G, int64 places"
    kernel = _elementwise(xp, "first_of_gathered", given, "T best, R rank", FIRST_OF_GATHERED)
    kernel(points, index, width, groups, members, best, rank)


FIRST = """
    T most = AT(0);
    int won = 0;
    #pragma unroll 8
    for (long long j = 1; j < places; ++j) {
      const T x = AT(j);
      if (x > most || (x != x && most == most)) most = x, won = j;
    }
    best = most, rank = most == most ? won : places - 1;
"""
FIRST_MAXIMUM = "#define AT(j) rows[i / inner * places * inner + i % inner + (j) * inner]" + FIRST
FIRST_OF_GATHERED = "#define AT(j) rows[index[i / O + (j) * G] * O + i % O]" + FIRST


def readers(members: Any, points: int) -> tuple[Any, Any]:
    """Return which places of members (C, M, k) read each point: (C, N + 1) and (C, M k) int32.

    The places m k + j that read point n stand in their order from first[n] to first[n + 1].
    """
    xp, (clouds, count, size) = module_of(members), members.shape
    first, places = (xp.empty((clouds, n), np.int32) for n in (points + 1, count * size))
    integer = {1: "char", 2: "short", 4: "int", 8: "long long"}[members.itemsize]
    kind = ("unsigned " if members.dtype.kind == "u" else "") + integer
    sizes = np.int32(points), np.int32(count * size)
    _raw(xp, "readers", members.dtype, READERS, f"typedef {kind} I;")(
        (-(-(points + 1) // 32), clouds),
        (BLOCK,),
        (xp.ascontiguousarray(members), *sizes, first, places),
    )
    return first, places


# A block for 32 points: each of its warps looks through a share of the places, one after the other,
# first to count, then to write them after those that other shares hold.
READERS = f"""
extern "C" __global__ void readers(const I* __restrict__ at, int N, int most,
    int* __restrict__ first, int* __restrict__ places) {{
  __shared__ int some[{BLOCK // 32}][{TILE}], counts[{BLOCK // 32}][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = blockIdx.x * 32 + lane;
  const int share = (most + {BLOCK // 32 - 1}) / {BLOCK // 32};
  const int begin = min(warp * share, most), end = min(begin + share, most);
  at += blockIdx.y * (long long)most, places += blockIdx.y * (long long)most;
  int less = 0, here = 0, next = 0;
  for (int pass = 0; pass < 2; ++pass) {{
    for (int from = begin; from < end; from += {TILE}) {{
      __syncwarp();
      for (int k = lane; k < {TILE}; k += 32) some[warp][k] = from + k < end ? at[from + k] : N;
      __syncwarp();
      if (pass == 0) {{
        #pragma unroll 32
        for (int k = 0; k < {TILE}; ++k) less += some[warp][k] < n, here += some[warp][k] == n;
      }} else if (n < N) {{
        #pragma unroll 32
        for (int k = 0; k < {TILE}; ++k) if (some[warp][k] == n) places[next++] = from + k;
      }}
    }}
    if (pass == 1) break;
    counts[warp][lane] = less;
    __syncthreads();
    for (int other = 0; other < {BLOCK // 32}; ++other) next += counts[other][lane];
    if (warp == 0 && n <= N) first[blockIdx.y * (N + 1LL) + n] = next;
    __syncthreads();
    counts[warp][lane] = here;
    __syncthreads();
    for (int other = 0; other < warp; ++other) next += counts[other][lane];
  }}
}}"""


def sum_over_readers(
    lists: tuple[Any, Any], size: int, value: str, x: Any, y: Any, out: Any
) -> None:
    """out (C, O, N) = the sum of a value over the places (m, j) that read each point, in order.

    lists: of readers(), with k = size.  value: in C, of channel o and member j, from x and y at
    [c, m, o], which is `centre`, or at [c, o, j M + m], which is `row`.
    """
    xp, (_, channels, points), count = module_of(out), out.shape, lists[1].shape[1] // size
    given = (
        "raw int32 first, raw int32 places, int64 O, int64 N, int64 M, int64 k, raw X x, raw Y y"
    )
    body = SUM_OVER_READERS.replace("VALUE", value)
    kernel = _elementwise(xp, "sum_over_readers", given, "T out", body)
    kernel(*lists, channels, points, count, size, x, y, out)


SUM_OVER_READERS = """
    const long long n = i % N, o = i / N % O, c = i / (N * O), at = c * (N + 1) + n;
    double sum = 0;
    for (long long p = first[at]; p < first[at + 1]; ++p) {
      const long long m = places[c * M * k + p] / k, j = places[c * M * k + p] % k;
      const ptrdiff_t centre[] = {c, m, o}, row[] = {c, o, j * M + m};
      sum += VALUE;
    }
    out = sum;
"""


def shared_eval(points: Any, maps: Any, work: Any) -> Any:
    """Return the pooled features h (B, O) of points (B, N, I) under maps, as fused.shared_eval."""
    xp, (clouds, count, _) = work.xp, points.shape
    z = xp.ascontiguousarray(points.swapaxes(1, 2))
    *narrow, (At, c) = maps
    add_relu = _elementwise(xp, "add_relu", "T b", "T z", "z += b; z = z < 0 ? 0 : z")
    for number, (A, b) in enumerate(narrow):
        z = multiply(A, z, work.scratch(f"z {number}", (clouds, len(A), count), z.dtype))
        add_relu(b[:, None], z)
    return pool(At, c, z, work)[0]


def norm_relu_eval(x: Any, norm: Any, eps: float) -> Any:
    """(M7) and (M10) with the bits of ops.    x (B, O), norm = gamma, beta, mean, var, (O,) each"""
    given = "T x, T gamma, T beta, T mean, T var, T eps"
    kernel = _elementwise(module_of(x), "norm_relu_eval", given, "T y", NORM_RELU_EVAL)
    return kernel(x, *norm, x.dtype.type(eps))


NORM_RELU_EVAL = """
    y = (x - mean) * (gamma * ((T)1 / sqrt(var + eps))) + beta;
    y = y < 0 ? 0 : y;
"""


def exact_product(x: Any, stacks: list, unit: Any, bits: int) -> Any:
    """y = x W by (F10), with the bits of exact.product.    x (B, I), the others of W's Factor"""
    xp, (rows, inputs), (parts, width) = module_of(x), x.shape, (len(stacks), unit.shape[1])
    n, of_rows = xp.empty((rows, parts * inputs)), xp.empty((rows, 1))
    sizes = (inputs, parts, bits)
    _raw(xp, "whole_numbers", x.dtype, WHOLE_NUMBERS)(
        (rows,), (BLOCK,), (*_plain(x.dtype, x), *sizes, n, of_rows)
    )
    sums = xp.empty((parts, rows, width))
    for last, stack in enumerate(stacks):
        multiply(n[:, : (last + 1) * inputs], stack, sums[last])
    given = "raw float64 sums, float64 u, float64 v, int64 parts, float64 step"
    y = xp.empty((rows, width), x.dtype)
    kernel = _elementwise(xp, "brackets", given, "T y", BRACKETS)
    return kernel(sums, of_rows, unit, parts, 2.0**-bits, y)


WHOLE_NUMBERS = f"""
extern "C" __global__ void whole_numbers(const T* x, long long I, long long parts, long long bits,
    double* n, double* unit) {{
  __shared__ T values[{BLOCK}];
  const T* row = x + blockIdx.x * I;
  T largest = 0;
  for (long long i = threadIdx.x; i < I; i += blockDim.x) {{
    const T size = fabs(row[i]);
    if (size > largest || size != size) largest = size;
  }}
  values[threadIdx.x] = largest;
  for (int half = {BLOCK} / 2; half; half /= 2) {{
    __syncthreads();
    if (threadIdx.x < half) {{
      const T mine = values[threadIdx.x], other = values[threadIdx.x + half];
      values[threadIdx.x] = other > mine || other != other ? other : mine;
    }}
  }}
  __syncthreads();
  int exponent;
  frexp(values[0], &exponent);
  const double u = ldexp(1.0, exponent - (int)bits), step = ldexp(1.0, (int)bits);
  for (long long i = threadIdx.x; i < I; i += blockDim.x) {{
    double rest = row[i] / u;
    for (long long part = 0; part < parts; ++part) {{
      const double whole = rint(rest);
      n[(blockIdx.x * parts + part) * I + i] = whole;
      rest = (rest - whole) * step;
    }}
  }}
  if (threadIdx.x == 0) unit[blockIdx.x] = u;
}}"""

BRACKETS = """
    double sum = 0;
    for (long long last = parts - 1; last >= 0; --last)
      sum = sum * step + sums[last * _ind.size() + i];
    y = (T)(sum * (u * v));
"""


class NormReluCache(NamedTuple):
    xhat: Any  # (B, O), the normalised input
    inv_std: Any  # (O,)
    gamma: Any  # (O,)
    y: Any  # (B, O)
    work: Any
    name: str


def norm_relu(
    x: Any, gamma: Any, beta: Any, eps: float, work: Any, name: str
) -> tuple[Any, NormReluCache, BatchStats]:
    """(M5), (M10) of the head, with sums in float64.    x (B, O) -> y (B, O), cache, BatchStats"""
    xp, (rows, width), dtype = work.xp, x.shape, x.dtype
    y, xhat = (work.array(f"{name} {part}", x.shape, dtype) for part in ("y", "xhat"))
    inv_std = work.array(f"{name} inv_std", (width,), dtype)
    stats = xp.empty(width, dtype), xp.empty(width, dtype)
    given = (*_plain(dtype, x, gamma, beta), float(eps), rows, width)
    _raw(xp, "norm_relu", dtype, NORM_RELU)((width,), (BLOCK,), (*given, y, xhat, inv_std, *stats))
    return y, NormReluCache(xhat, inv_std, gamma, y, work, name), BatchStats(*stats, rows)


NORM_RELU = """
extern "C" __global__ void norm_relu(const T* x, const T* gamma, const T* beta, double eps,
    long long B, long long O, T* y, T* xhat, T* inv_std, T* mean, T* var) {
  const long long o = blockIdx.x;
  double sum = 0, square = 0;
  for (long long b = threadIdx.x; b < B; b += blockDim.x) sum += x[b * O + o];
  const double mu = over_block(sum) / B;
  for (long long b = threadIdx.x; b < B; b += blockDim.x) {
    const double d = x[b * O + o] - mu;
    square += d * d;
  }
  const double variance = over_block(square) / B, inverse = 1 / sqrt(variance + eps);
  for (long long b = threadIdx.x; b < B; b += blockDim.x) {
    const double h = (x[b * O + o] - mu) * inverse;
    const T p = gamma[o] * h + beta[o];
    xhat[b * O + o] = h, y[b * O + o] = p < 0 ? 0 : p;
  }
  if (threadIdx.x == 0) mean[o] = mu, var[o] = variance, inv_std[o] = inverse;
}"""


def norm_relu_backward(dy: Any, cache: NormReluCache) -> tuple[Any, Any, Any]:
    """(M11), then (M6).    dy (B, O) -> dx (B, O), dgamma (O,), dbeta (O,)"""
    xhat, inv_std, gamma, y, work, name = cache
    (rows, width), dtype = xhat.shape, xhat.dtype
    dx = work.array(f"{name} dx", xhat.shape, dtype)
    dgamma, dbeta = (
        gradient_of(work, f"{name}.{part}", (width,), dtype) for part in ("gamma", "beta")
    )
    (dy, gamma), sizes = _plain(dtype, dy, gamma), (rows, width)
    _raw(work.xp, "norm_relu_backward", dtype, NORM_RELU_BACKWARD)(
        (width,), (BLOCK,), (dy, xhat, inv_std, gamma, y, *sizes, dx, dgamma, dbeta)
    )
    return dx, dgamma, dbeta


NORM_RELU_BACKWARD = """
extern "C" __global__ void norm_relu_backward(const T* dy, const T* xhat, const T* inv_std,
    const T* gamma, const T* y, long long B, long long O, T* dx, T* dgamma, T* dbeta) {
  const long long o = blockIdx.x;
  double first = 0, second = 0;
  for (long long b = threadIdx.x; b < B; b += blockDim.x) {
    const double d = dy[b * O + o] * (T)(y[b * O + o] > 0);
    first += d, second += d * xhat[b * O + o];
  }
  first = over_block(first), second = over_block(second);
  const double scale = (double)gamma[o] * inv_std[o];
  for (long long b = threadIdx.x; b < B; b += blockDim.x) {
    const double d = dy[b * O + o] * (T)(y[b * O + o] > 0);
    dx[b * O + o] = (d - first / B - xhat[b * O + o] * second / B) * scale;
  }
  if (threadIdx.x == 0) dgamma[o] = second, dbeta[o] = first;
}"""


def smooth_labels(labels: Any, classes: int, smoothing: float, dtype: Any) -> Any:
    """(L3) with the bits of losses.smooth_labels.    labels (B,) -> y (B, K) of dtype"""
    xp = module_of(labels)
    y, rates = xp.empty((len(labels), classes), dtype), (1 - smoothing, smoothing / classes)
    given = "raw L labels, int64 classes, float64 one, float64 each"
    return _elementwise(xp, "smooth_labels", given, "T y", SMOOTH)(labels, classes, *rates, y)


SMOOTH = """
    const long long label = labels[i / classes];
    y = (T)((label == i % classes) * one + (label >= 0) * each);
"""


def loss(z: Any, y: Any, v: Any, u: Any, has_u: Any, config: Any, floor: float) -> tuple:
    """Return the terms of losses.loss_forward and dz (B, K) of (L7), with sums in float64.

    As loss_forward: z, y, v, u (B, K), has_u (B,), and v, u with has_u may be None.
    """
    xp, (rows, classes), dtype = module_of(z), z.shape, z.dtype
    dz, of_rows, means = xp.empty(z.shape, dtype), xp.empty((7, rows)), xp.empty(6, dtype)
    given = [0 if x is None else _plain(dtype, x)[0] for x in (z, y, v, u, has_u)]
    rates = (config.kd_weight, config.self_weight, config.temperature, floor)
    sizes = (np.int64(config.guard == "clip"), rows, classes)
    _raw(xp, "loss_of_rows", dtype, LOSS_OF_ROWS)(
        (rows,), (BLOCK,), (*given, *map(float, rates), *sizes, dz, of_rows)
    )
    _raw(xp, "loss_means", dtype, LOSS_MEANS)((6,), (BLOCK,), (of_rows, rows, means))
    return tuple(means), dz


# Letters as in losses.py: s at temperature 1 and T of the student, p of the teacher, r of its
# earlier self, q' the target of the guard.  One block for each row.
LOSS_OF_ROWS = f"""
struct Softmax {{  // log softmax of row / T is row / T - shift
  const T* row;
  double T_, shift;
  __device__ double log(long long k) const {{ return row[k] / T_ - shift; }}
}};

__device__ Softmax softmax(const T* row, double T_, long long K) {{
  __shared__ T largest[{BLOCK}];
  const int t = threadIdx.x;
  __syncthreads();
  largest[t] = row[t < K ? t : 0];
  for (long long k = t + {BLOCK}; k < K; k += {BLOCK}) if (row[k] > largest[t]) largest[t] = row[k];
  for (int half = {BLOCK} / 2; half; half /= 2) {{
    __syncthreads();
    if (t < half && largest[t + half] > largest[t]) largest[t] = largest[t + half];
  }}
  __syncthreads();
  const double most = largest[0] / T_;
  double sum = 0;
  for (long long k = threadIdx.x; k < K; k += blockDim.x) sum += exp(row[k] / T_ - most);
  return {{row, T_, most + log(over_block(sum))}};
}}

extern "C" __global__ void loss_of_rows(const T* z, const T* y, const T* v, const T* u,
    const T* has_u, double a, double self_weight, double T_, double floor, long long clip,
    long long B, long long K, T* dz, double* rows) {{
  const long long row = blockIdx.x, first = row * K;
  const double has = u ? (double)has_u[row] : 0, b = self_weight * has;
  const Softmax s = softmax(z + first, 1, K), s_T = softmax(z + first, T_, K);
  const Softmax p = softmax((v ? v : z) + first, T_, K), r = softmax((u ? u : z) + first, T_, K);
  double labels = 0, kd = 0, self = 0, guard = 0, weight = 0, sum_q = 0, raised = 0, unbounded = 0;
  for (long long k = threadIdx.x; k < K; k += blockDim.x) {{
    const double P = v ? exp(p.log(k)) : 0, R = u ? exp(r.log(k)) : 0, Y = y[first + k];
    labels -= Y * s.log(k), weight += Y;
    if (v) kd += P * (p.log(k) - s_T.log(k));
    if (u) self += R * (r.log(k) - s_T.log(k));
    const double q = a * P - b * R, least = floor * (a * P), kept = q < least ? least : q;
    raised += kept > q, unbounded += (1 - a) * Y + T_ * q < 0;
    if (clip) guard += (kept - q) * s_T.log(k);
    sum_q += clip ? kept : q;
  }}
  labels = over_block(labels), kd = T_ * T_ * over_block(kd), self = T_ * T_ * over_block(self);
  guard = T_ * T_ * over_block(guard), weight = over_block(weight), sum_q = over_block(sum_q);
  raised = over_block(raised), unbounded = over_block(unbounded);
  for (long long k = threadIdx.x; k < K; k += blockDim.x) {{
    const double P = v ? exp(p.log(k)) : 0, R = u ? exp(r.log(k)) : 0;
    const double q = a * P - b * R, least = floor * (a * P), kept = clip && q < least ? least : q;
    dz[first + k] = ((1 - a) * (weight * exp(s.log(k)) - y[first + k])
                     + T_ * (sum_q * exp(s_T.log(k)) - kept)) / B;
  }}
  if (threadIdx.x == 0) {{
    const double terms[] = {{(1 - a) * labels + a * kd - b * self - guard, labels, kd, has * self,
                            (double)(raised > 0), (double)(unbounded > 0), u ? has : -1}};
    for (int term = 0; term < 7; ++term) rows[term * B + row] = terms[term];
  }}
}}"""

# means of the terms over rows; the fourth over those that have a target
LOSS_MEANS = """
extern "C" __global__ void loss_means(const double* rows, long long B, T* means) {
  const long long term = blockIdx.x;
  double sum = 0, targets = 0;
  for (long long b = threadIdx.x; b < B; b += blockDim.x) {
    sum += rows[term * B + b], targets += rows[6 * B + b];
  }
  sum = over_block(sum), targets = over_block(targets);
  if (threadIdx.x == 0) means[term] = sum / (term != 3 ? B : targets < 1 ? 1 : targets);
}"""


def agreement(z: Any, v: Any) -> Any:
    """Return the share of rows whose largest logits of z and v (B, K) are those of one class."""
    xp, (rows, classes), dtype = module_of(z, v), z.shape, z.dtype
    if not on_device(xp):
        return (z.argmax(axis=1) == v.argmax(axis=1)).mean(dtype=dtype)
    share = xp.empty((), dtype)
    _raw(xp, "agreement", dtype, AGREEMENT)(
        (1,), (BLOCK,), (*_plain(dtype, z, v), rows, classes, share)
    )
    return share


# not a number counts as the largest, as in argmax
AGREEMENT = """
__device__ long long largest(const T* row, long long K) {
  long long at = 0;
  for (long long k = 1; k < K; ++k)
    if (row[k] > row[at] || (row[k] != row[k] && row[at] == row[at])) at = k;
  return at;
}

extern "C" __global__ void agreement(const T* z, const T* v, long long B, long long K, T* share) {
  double same = 0;
  for (long long b = threadIdx.x; b < B; b += blockDim.x)
    same += largest(z + b * K, K) == largest(v + b * K, K);
  same = over_block(same);
  if (threadIdx.x == 0) *share = same / B;
}"""


def rows_of(logits: Any, rows: Any, dtype: Any) -> Any:
    """Return logits[rows] as an array of dtype.    logits (N, K), rows (B,) -> (B, K)"""
    xp = module_of(logits, rows)
    if not on_device(xp):
        return logits[rows].astype(dtype)
    out = xp.empty((len(rows), logits.shape[1]), dtype)
    given = "raw L logits, raw int64 rows, int64 K"
    kernel = _elementwise(xp, "rows_of", given, "T out", "out = logits[rows[i / K] * K + i % K]")
    return kernel(logits, rows, logits.shape[1], out)


def views(points: Any, rows: Any, scale: Any, shift: Any) -> Any:
    """Return the clouds in rows (B,) with (A2), bit for bit as apply() in data/augment.py.

    points (N, 3, P), scale and shift (N, 3) -> (B, P, 3), a view of (B, 3, P)
    """
    xp, (_, axes, count) = module_of(points, rows), points.shape
    x = xp.empty((len(rows), axes, count), points.dtype)
    given = "raw T points, raw int64 rows, raw T scale, raw T shift, int64 axes, int64 count"
    kernel = _elementwise(xp, "views", given, "T x", VIEWS)
    return kernel(points, rows, scale, shift, axes, count, x).swapaxes(1, 2)


VIEWS = """
    const long long axis = i / count % axes, of = rows[i / (axes * count)] * axes + axis;
    x = points[of * count + i % count] * scale[of];
    x += shift[of];
"""


def tracked(
    running: tuple[Any, Any], batch: tuple[Any, Any], rows: int, momentum: float, reuse: bool
) -> tuple:
    """Return new mean and variance (M9), with the bits of ops.track; reuse: in those running."""
    xp, number = module_of(*running), running[0].dtype.type
    given = "T mean, T var, T batch_mean, T batch_var, T keep, T momentum, T unbiased"
    kernel = _elementwise(xp, "tracked", given, "T new_mean, T new_var", TRACKED)
    factors = (1 - momentum, momentum, rows / max(rows - 1, 1))
    return kernel(*running, *batch, *map(number, factors), *(running if reuse else ()))


TRACKED = """
    new_mean = keep * mean + momentum * batch_mean;
    new_var = keep * var + momentum * (batch_var * unbiased);
"""


def join(arrays: dict[str, Any], order: list[str], work: Any, name: str, fresh: bool) -> Any:
    """Return the one array in which all arrays lie, in this order.

    Arrays that are not there are copied, and the dict then holds views.  The Workspace work keeps
    the array by its name.  fresh: the copies must not overwrite the views of another dict.
    """
    memory, views = work.joined.get(name, (None, {}))
    there = {key for key in order if arrays[key] is views.get(key)}
    shapes = {key: arrays[key].shape for key in order}
    if [(key, view.shape) for key, view in views.items()] != [*shapes.items()] or (
        fresh and there != {*order}
    ):
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


RATES = "keep beta1 rest1 beta2 rest2 scale1 scale2 eps lr".split()


def adamw_rates(
    step: int,
    lr: float,
    weight_decay: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> list[float]:
    """Return the RATES of a step of (O1), counted from 1."""
    scales = 1 / (1 - beta1**step), 1 / (1 - beta2**step)
    return [1 - lr * weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, *scales, eps, lr]


def adamw(
    params: dict[str, Any], grads: dict[str, Any], m: dict, v: dict, work: Any, rates: list[float]
) -> None:
    """Take one step of (O1) in place, with the bits of the loop in optim.adamw_in_place.

    The first call moves params, m and v into one array each; rates: of adamw_rates().
    """
    order = sorted(params, key=lambda name: not name.endswith(".W"))  # what decays comes first
    given = [
        join(arrays, order, work, name, fresh)
        for arrays, name, fresh in (
            (grads, "gradients", False),
            (params, "params", True),
            (m, "m", True),
            (v, "v", True),
        )
    ]
    decayed = _size({name: value for name, value in params.items() if name.endswith(".W")})
    # in memory, for a number that is given by value would stay that of one step in a CUDA graph
    numbers = held(work, "rates", np.array(rates, given[0].dtype))
    body = "const T " + ", ".join(f"{name} = rates[{i}]" for i, name in enumerate(RATES))
    kernel = _elementwise(
        work.xp, "adamw", "T g, raw T rates, int64 decayed", "T p, T m, T v", f"{body};{ADAMW}"
    )
    kernel(given[0], numbers, decayed, *given[1:])


ADAMW = """
    m = m * beta1 + g * rest1;
    v = v * beta2 + (g * g) * rest2;
    p = p * (i < decayed ? keep : (T)1) - (m * scale1) / (sqrt(v * scale2) + eps) * lr;
"""
