"""Element-wise non-linearities, and softmax, on vectors."""

import math

import numpy as np
from numba import prange
from numba.extending import register_jitable

from refsd.numba_ops import vecmath
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, empty, flat
from refsd.numba_ops.pointwise import BLOCK, each
from refsd.numba_ops.simd import (
    lane_indices,
    lanes,
    load,
    masked_load,
    masked_store,
    maximum,
    pointer,
    reduce_add,
    reduce_max,
    scratch,
    select,
    splat_like,
    store,
)
from refsd.registry import kernel

ROOT_TWO_OVER_PI = math.sqrt(2 / math.pi)


@register_jitable
def _silu(x):
    return x * vecmath.sigmoid(x)


@register_jitable
def _quick_gelu(x):
    return x * vecmath.sigmoid(1.702 * x)


@register_jitable
def gelu_of(x):
    """gelu of a vector"""
    return x * vecmath.phi(x)


@register_jitable
def _gelu_tanh(x):
    return 0.5 * x * (1.0 + vecmath.tanh(ROOT_TWO_OVER_PI * (x + 0.044715 * x * x * x)))


_each_silu, _each_quick_gelu = each(_silu), each(_quick_gelu)
_each_gelu, _each_gelu_tanh = each(gelu_of), each(_gelu_tanh)


@kernel("numba", reads_halves=True)
def silu(x):
    return _each_silu(x)


@kernel("numba", reads_halves=True)
def quick_gelu(x):
    return _each_quick_gelu(x)


@kernel("numba", reads_halves=True)
def gelu(x):
    return _each_gelu(x)


@kernel("numba", reads_halves=True)
def gelu_tanh(x):
    return _each_gelu_tanh(x)


@kernel("numba", reads_halves=True)
def geglu(x):
    K = x.shape[-1] // 2
    y = empty((*x.shape[:-1], K), x.dtype)
    if y.size:
        memory, rows, step = as_rows(x)
        _geglu(memory, step, rows, K, flat(y))
    return y


@jit(parallel=True)
def _geglu(x, step, rows, K, y):
    tall = max(1, BLOCK // K)
    for task in prange((rows + tall - 1) // tall):
        first = np.int64(task) * tall
        for r in range(first, min(first + tall, rows)):
            _gate(pointer(x, r * step), pointer(x, r * step + K), K, pointer(y, r * K))


@jit
def _gate(hidden, gate, K, y):
    """y = hidden gelu(gate)"""
    size = lanes(y)
    for i in range(0, K - size + 1, size):
        store(y, i, load(hidden, i) * gelu_of(load(gate, i)))
    i, rest = K - K % size, K % size
    if rest > 0:
        masked_store(y, i, masked_load(hidden, i, rest) * gelu_of(masked_load(gate, i, rest)), rest)


@kernel("numba", reads_halves=True)
def softmax(x, *, axis):
    rows = np.moveaxis(x, axis, -1)
    y = empty(rows.shape, x.dtype)
    if y.size:
        memory, count, step = as_rows(rows)
        _softmax(memory, step, count, rows.shape[-1], flat(y))
    return np.moveaxis(y, -1, axis)


@jit(parallel=True)
def _softmax(x, step, rows, K, y):
    tall = max(1, BLOCK // K)
    for task in prange((rows + tall - 1) // tall):
        first, powers = np.int64(task) * tall, scratch(K, x)
        for r in range(first, min(first + tall, rows)):
            _softmax_row(pointer(x, r * step), K, powers, pointer(y, r * K))


@jit
def _softmax_row(x, K, powers, y):
    """y = powers / sum powers, powers = e^(x - max); zeros where all of x is -inf"""
    size = lanes(x)
    last, rest = K - K % size, K % size
    # The last, shorter vector is filled up with -inf, whose e^ is 0.
    tail = masked_load(x, last, rest)
    tail = select(lane_indices(tail) < rest, tail, splat_like(tail, -np.inf))

    high = tail
    for i in range(0, last, size):
        high = maximum(high, load(x, i))
    row_max = reduce_max(high)
    shift = splat_like(tail, row_max if row_max > -np.inf or row_max != row_max else 0.0)

    tail = vecmath.exp_below(tail - shift)
    sums = tail
    for i in range(0, last, size):
        e = vecmath.exp_below(load(x, i) - shift)
        store(powers, i, e)
        sums = sums + e
    # The largest term is e^0 = 1, so only a wholly masked row has a sum below 1.
    row_sum = reduce_add(sums)
    row_sum = splat_like(tail, 1.0 if row_sum < 1 else row_sum)

    for i in range(0, last, size):
        store(y, i, load(powers, i) / row_sum)
    if rest > 0:
        masked_store(y, last, tail / row_sum, rest)
