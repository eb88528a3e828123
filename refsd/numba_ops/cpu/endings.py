"""What is done to the sums of a product before they are stored: an addend, or a gate."""

import functools

import numpy as np

from refsd.numba_ops.cpu.activation import gelu_of
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import flat
from refsd.numba_ops.simd import lanes, load, masked_load, masked_store, store


@functools.cache
def no_addend(dtype):
    """What kernels take as an addend where there is none."""
    return flat(np.empty(0, dtype))


@jit
def end_row(sums, at, hidden_at, gates, addend, addend_at, out, out_at, count):
    """out[out_at :] = `count` sums from `at` on; plus the addend, or as the gate of hidden ones."""
    size = lanes(sums)
    for j in range(0, count, size):
        value, some = load(sums, at + j), min(size, count - j)
        if gates:
            value = load(sums, hidden_at + j) * gelu_of(value)
        elif addend.size > 0:
            value = value + masked_load(addend, addend_at + j, some)
        if some == size:
            store(out, out_at + j, value)
        else:
            masked_store(out, out_at + j, value, some)
