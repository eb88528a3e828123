"""Kernels of "cuda" that are none: the definitions, on the device's memory itself, uncounted.

They take the place of all kernels within a test, so that what is around them can be tested at once
and to the bit: a pipeline on them gives the NumPy backend's picture. They are no part of refsd.
"""

import functools
import inspect

import numpy as np

from refsd import registry
from refsd.half import is_half, through_float32
from refsd.numba_ops.cuda import deviation, device
from refsd.numba_ops.cuda.array import DeviceArray, empty
from refsd.numba_ops.cuda.device import current
from refsd.numba_ops.cuda.plan import Factory
from refsd.numba_ops.cuda.simulated import Simulated


def stand_in(monkeypatch):
    """Until the test ends, "cuda" computes by the definitions, and deviations as NumPy does."""
    monkeypatch.setattr(device, "_instead", [ByDefinition()])
    device.current.cache_clear()
    kernels = dict(registry._kernels)
    for op in registry.ops().values():
        kernels["cuda", op.name] = _through_numpy(op.definition, op.signature)
    monkeypatch.setattr(registry, "_kernels", kernels)
    halves = {kernel for (backend, _), kernel in kernels.items() if backend == "cuda"}
    monkeypatch.setattr(registry, "_reads_halves", registry._reads_halves | halves)
    monkeypatch.setattr(deviation, "deviation", _deviation)


def _through_numpy(definition, signature):
    @functools.wraps(definition)
    def kernel(*args, **options):
        bound = signature.bind(*args, **options)
        _require_on_device(bound)
        arrays, values = bound.args, bound.kwargs
        dtype = next((str(a.dtype) for a in arrays if is_half(getattr(a, "dtype", ""))), None)
        dtype = values["dtype"] if is_half(values.get("dtype", "")) else dtype
        function = definition if dtype is None else through_float32(definition, dtype)

        def compute():
            seen = {key: _seen(value) for key, value in values.items()}
            with np.errstate(all="ignore"):  # while a graph is captured memory is NaN
                return np.asarray(function(*map(_seen, arrays), **seen))
        return _launched(compute)
    kernel.__signature__ = inspect.signature(definition)
    return kernel


def _deviation(x, ddof):
    axes = tuple(range(1, x.ndim))
    return _launched(lambda: _seen(x).std(axis=axes, keepdims=True, ddof=ddof))


def _launched(compute):
    """What compute() gives, on the device; a captured step computes it again."""
    result = compute()
    order = tuple(np.argsort([-s for s in result.strides], kind="stable"))
    y = empty(result.shape, result.dtype, order)
    current().launch(compute, (), (), (y,))
    return y


def _seen(value):
    """The device's memory itself."""
    if type(value) in (list, tuple):
        return type(value)(map(_seen, value))
    if not isinstance(value, DeviceArray):
        return value
    memory = value.block.memory.view(value.dtype)[value.offset:]
    return np.lib.stride_tricks.as_strided(
        memory, value.shape, [s * value.dtype.itemsize for s in value.strides])


class ByDefinition(Simulated):
    """A device that computes with NumPy what is no kernel."""

    def run(self, factory, constants, grid, arguments):
        if isinstance(factory, Factory):
            super().run(factory, constants, grid, arguments)
        else:
            _seen(arguments[0])[...] = factory()


def _require_on_device(bound):
    """As kernels do: whole numbers (ids, positions, timesteps) may come from the host."""
    for name, value in bound.arguments.items():
        if isinstance(value, np.ndarray) and name not in ("ids", "index", "timesteps"):
            raise TypeError(f"{name} is NumPy's")
