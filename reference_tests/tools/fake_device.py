"""A device that is not there: arrays that behave as CuPy's do, computed by NumPy.

FakeArray wraps one ndarray (`host`).  It is written out method by method: a `__getattr__` that
forwards everything would leak `__array_interface__`, and np.asarray would then silently succeed.
What mixes host and device raises here, as on a device or a little earlier: CuPy copies a host
array that is used as an index, which is a transfer nobody sees, so here it is refused.

Computed by NumPy in the same order, results are bit for bit those of NumPy arrays.
"""

import types

import numpy as np


def unwrap(x):
    """Return the host value of one operand; raise CuPy's TypeError for a host array."""
    if isinstance(x, FakeArray):
        return x.host
    if isinstance(x, (np.ndarray, list, tuple)) and not (isinstance(x, np.ndarray) and x.ndim == 0):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def wrap(x):
    """Return FakeArrays around arrays and NumPy scalars (a reduction stays on the device)."""
    if isinstance(x, tuple):
        return tuple(wrap(item) for item in x)
    return FakeArray(x)


def _index(key):
    """Return an index whose arrays are on the host; raise IndexError for a host array in it."""
    if isinstance(key, tuple):
        return tuple(_index(part) for part in key)
    if isinstance(key, (np.ndarray, list)):
        raise IndexError(
            f"Unsupported type {type(key)} as an index: a hidden transfer to the device"
        )
    return key.host if isinstance(key, FakeArray) else key


class FakeArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the device that is not there; operators come from the mixin, through ufuncs."""

    def __init__(self, host):
        self.host = np.asarray(host)
        assert not isinstance(host, FakeArray) and self.host.dtype != object, host

    # what NumPy asks

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method != "__call__":
            return NotImplemented
        host = [unwrap(x) for x in inputs]
        if out is None:
            return wrap(ufunc(*host, **options))
        if not all(isinstance(o, FakeArray) for o in out):
            raise TypeError("a result on the device cannot be written into a host array")
        ufunc(*host, out=tuple(o.host for o in out), **options)
        return out[0]

    def __array_function__(self, function, types, args, options):
        ours = MODULE_FUNCTIONS.get(function.__name__)
        return NotImplemented if ours is None else ours(*args, **options)

    # facts

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    T = property(lambda self: FakeArray(self.host.T))

    def __len__(self):
        return len(self.host)

    def __repr__(self):
        return f"FakeArray({self.host!r})"

    # to the host: only a single number, only when asked (on a device, this waits for it)

    def _number(self):
        if self.ndim:
            raise TypeError(f"only an array without dimensions is a number, got shape {self.shape}")
        return self.host

    def __float__(self):
        return float(self._number())

    def __int__(self):
        return int(self._number())

    def __bool__(self):
        return bool(self._number())

    def item(self):
        return self._number().item()

    def get(self):
        return self.host.copy()

    # items

    def __getitem__(self, key):
        return FakeArray(self.host[_index(key)])

    def __setitem__(self, key, value):
        self.host[_index(key)] = unwrap(value)

    def __iter__(self):
        return (FakeArray(row) for row in self.host)

    # methods, with the arguments that CuPy has as well

    def reshape(self, *shape):
        return FakeArray(self.host.reshape(*shape))

    def view(self, dtype):
        return FakeArray(self.host.view(dtype))

    def astype(self, dtype, copy=True):
        return FakeArray(self.host.astype(dtype, copy=copy))

    def transpose(self, *axes):
        return FakeArray(self.host.transpose(*axes))

    def swapaxes(self, first, second):
        return FakeArray(self.host.swapaxes(first, second))

    def ravel(self):
        return FakeArray(self.host.ravel())

    def copy(self):
        return FakeArray(self.host.copy())

    def fill(self, value):
        self.host.fill(unwrap(value))

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return self._reduced(np.sum, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return self._reduced(np.mean, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def var(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False):
        return self._reduced(np.var, out, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)

    def max(self, axis=None, out=None, keepdims=False):
        return self._reduced(np.max, out, axis=axis, keepdims=keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        return self._reduced(np.min, out, axis=axis, keepdims=keepdims)

    def argmax(self, axis=None):
        return FakeArray(self.host.argmax(axis=axis))

    def argsort(self, axis=-1, kind=None):
        assert kind in (None, "stable"), kind
        return FakeArray(self.host.argsort(axis=axis, kind="stable"))

    def cumsum(self, axis=None):
        return FakeArray(self.host.cumsum(axis=axis))

    def any(self, axis=None, out=None, keepdims=False):
        return self._reduced(np.any, out, axis=axis, keepdims=keepdims)

    def all(self, axis=None, out=None, keepdims=False):
        return self._reduced(np.all, out, axis=axis, keepdims=keepdims)

    def _reduced(self, function, out, **options):
        if out is None:
            return FakeArray(function(self.host, **options))
        function(self.host, out=out.host, **options)
        return out


def _computed(name):
    """Return the module function of this name: unwrap, compute, wrap."""
    function = getattr(np, name)

    def on_device(*args, out=None, **options):
        host = [unwrap(x) for x in args]
        if out is None:
            return wrap(function(*host, **{key: unwrap(value) for key, value in options.items()}))
        function(*host, out=out.host, **options)
        return out

    return on_device


def _joined(name):
    """Return the module function of this name, which takes a sequence of arrays first."""
    function = getattr(np, name)

    def on_device(arrays, axis=0, out=None):
        host = None if out is None else out.host
        result = function([unwrap(x) for x in arrays], axis=axis, out=host)
        return FakeArray(result) if out is None else out

    return on_device


def _made(name):
    """Return the module function of this name, which makes an array from a shape or numbers."""
    function = getattr(np, name)
    return lambda *args, **options: FakeArray(function(*args, **options))


def _put_along_axis(array, index, values, axis):
    np.put_along_axis(array.host, index.host, unwrap(values), axis)


COMPUTED = """
    add subtract multiply divide matmul maximum minimum greater exp log log1p sqrt square
    abs sign equal isfinite frexp ldexp rint where sum mean max min argmax any all take
    take_along_axis broadcast_to expand_dims einsum divmod bincount clip
    zeros_like ones_like full_like empty_like ascontiguousarray
""".split()
MODULE_FUNCTIONS = (
    {name: _computed(name) for name in COMPUTED}
    | {name: _joined(name) for name in ("concatenate", "stack")}
    | {"put_along_axis": _put_along_axis}
    | {"pad": lambda x, width: FakeArray(np.pad(unwrap(x), width))}
    | {name: _made(name) for name in ("arange", "zeros", "ones", "full", "empty")}
)
CONSTANTS = "float16 float32 float64 int8 int32 int64 uint8 bool_ newaxis inf nan pi".split()


def _asarray(x, dtype=None):
    """From the host to the device: a copy, as a transfer is; a device array passes."""
    if isinstance(x, FakeArray):
        return x if dtype is None else x.astype(dtype, copy=False)
    return FakeArray(np.array(x, dtype=dtype))


def _asnumpy(x):
    """From the device to the host: a copy, as a transfer is."""
    return x.get() if isinstance(x, FakeArray) else np.asarray(x)


def fake_module():
    """Return a module object to stand in sys.modules["cupy"]: one device, named "fake"."""
    module = types.ModuleType("cupy", "A fake CuPy over NumPy.")
    for name, function in MODULE_FUNCTIONS.items():
        setattr(module, name, function)
    for name in CONSTANTS:
        setattr(module, name, getattr(np, name))
    module.fake = True
    module.ndarray = FakeArray
    module.asarray = module.array = _asarray
    module.asnumpy = _asnumpy
    module.__version__ = "0 (fake)"
    module.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: 1,
            getDevice=lambda: 0,
            getDeviceProperties=lambda device: {"name": b"fake", "totalGlobalMem": 8 << 30},
            deviceSynchronize=lambda: None,
            runtimeGetVersion=lambda: 13000,
            driverGetVersion=lambda: 13000,
        ),
        nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
        cublas=types.SimpleNamespace(getVersion=lambda handle: 130000),
        Device=lambda: types.SimpleNamespace(cublas_handle=1),
    )
    return module


def is_fake(xp):
    """Return whether a module is ours."""
    return getattr(xp, "ndarray", None) is FakeArray


def map_arrays(function, tree):
    """Return tree (dicts, tuples, NamedTuples, lists) with function applied to every array.

    Arrays are whatever has a dtype; NumPy scalars are left alone, and so is all else.
    """
    if isinstance(tree, dict):
        return {key: map_arrays(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_arrays(function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_arrays(function, value) for value in tree)
    is_array = hasattr(tree, "dtype") and not isinstance(tree, np.generic)
    return function(tree) if is_array else tree


def moved(xp, tree):
    """Return tree with its host arrays moved to module xp."""
    return map_arrays(xp.asarray, tree)


def on_host(tree):
    """Return tree with every array as a numpy array, wherever it was."""

    def get(array):
        return array if isinstance(array, np.ndarray) else array.get()

    return map_arrays(get, tree)


def leaves(tree):
    """Return the arrays and NumPy scalars of tree, in order."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree] if hasattr(tree, "dtype") else []


def assert_agrees(xp, got, want, digits=1e-10, exact=True, floor=0.0):
    """Raise unless two trees agree: if exact, bit for bit on NumPy and the fake device.

    On a real device sums run in another order: `digits`, relative to the largest of each array.
    floor: what rounding leaves of an array whose true value is zero.
    """
    got, want = leaves(on_host(got)), leaves(on_host(want))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        if exact and (xp is np or is_fake(xp)):
            np.testing.assert_array_equal(g, w)
        else:
            scale = float(np.abs(w).max(initial=0)) or 1.0
            np.testing.assert_allclose(g, w, rtol=0, atol=digits * scale + floor)
