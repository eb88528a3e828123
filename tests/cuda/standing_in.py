"""Kernels of "cuda" that are none: the definitions, on copies of the device's memory, uncounted.

They take the place of all kernels within a test, so that what is around them can be tested at once
and to the bit: a pipeline on them gives the NumPy backend's picture. They are no part of refsd.
"""

import functools
import inspect

import numpy as np

from refsd import registry
from refsd.half import is_half, through_float32
from refsd.numba_ops.cuda import array
from refsd.numba_ops.cuda.array import DeviceArray, to_device


def stand_in(monkeypatch):
    """Until the test ends, "cuda" computes by the definitions."""
    kernels = dict(registry._kernels)
    for op in registry.ops().values():
        kernels["cuda", op.name] = _through_numpy(op.definition, op.signature)
    monkeypatch.setattr(registry, "_kernels", kernels)
    halves = {kernel for (backend, _), kernel in kernels.items() if backend == "cuda"}
    monkeypatch.setattr(registry, "_reads_halves", registry._reads_halves | halves)


def _through_numpy(definition, signature):
    @functools.wraps(definition)
    def kernel(*args, **options):
        before = dict(array.copies)
        bound = signature.bind(*args, **options)
        arrays = [_host(value) for value in bound.args]
        values = {key: _host(value) for key, value in bound.kwargs.items()}
        _require_on_device(bound)
        dtype = next((str(a.dtype) for a in arrays if is_half(getattr(a, "dtype", ""))), None)
        dtype = values["dtype"] if is_half(values.get("dtype", "")) else dtype
        function = definition if dtype is None else through_float32(definition, dtype)
        result = np.asarray(function(*arrays, **values))
        result = to_device(result, tuple(np.argsort([-s for s in result.strides], kind="stable")))
        array.copies.update(before)
        return result
    kernel.__signature__ = inspect.signature(definition)
    return kernel


def _host(value):
    if type(value) in (list, tuple):
        return type(value)(map(_host, value))
    if not isinstance(value, DeviceArray):
        return value
    order = tuple(np.argsort([-s for s in value.strides], kind="stable"))  # as it lies there
    return np.ascontiguousarray(value.numpy().transpose(order)).transpose(np.argsort(order))


def _require_on_device(bound):
    """As kernels do: whole numbers (ids, positions, timesteps) may come from the host."""
    for name, value in bound.arguments.items():
        if isinstance(value, np.ndarray) and name not in ("ids", "index", "timesteps"):
            raise TypeError(f"{name} is NumPy's")
