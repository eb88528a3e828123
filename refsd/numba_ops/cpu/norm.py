"""Normalisations of rows: sums in a fixed order, in two passes over a row that is in the cache.

The mean is found first, then the deviations d from it: their own mean corrects it (it was rounded),
the mean of d^2 gives the variance. Arrays are 1-D in memory: x and y (rows, K).
"""

import numpy as np
from numba import prange

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, empty, flat
from refsd.numba_ops.pointwise import BLOCK
from refsd.numba_ops.simd import (
    fma,
    lane_indices,
    lanes,
    load,
    masked_load,
    masked_store,
    pointer,
    reduce_add,
    scratch,
    select,
    splat_like,
    store,
)
from refsd.registry import kernel

# Rows that take each step together, so that the processor overlaps the sums of several.
TOGETHER = 4


@kernel("numba", reads_halves=True)
def layer_norm(x, weight=None, bias=None, *, eps):
    y = empty(x.shape, x.dtype)
    if y.size:
        memory, rows, step = as_rows(x)
        _layer_norm(memory, step, rows, x.shape[-1], _vector(weight, 1, x), _vector(bias, 0, x),
                    float(eps), flat(y))
    return y


@kernel("numba", reads_halves=True)
def rms_norm(x, weight, *, eps):
    y = empty(x.shape, x.dtype)
    if y.size:
        memory, rows, step = as_rows(x)
        _rms_norm(memory, step, rows, x.shape[-1], flat_vector(weight), float(eps), flat(y))
    return y


def _vector(vector, value, x):
    """The vector's memory; that of a value for each of x's features where there is none."""
    return flat_vector(np.full(x.shape[-1], value, x.dtype) if vector is None else vector)


def flat_vector(vector):
    """The memory of a weight or a bias."""
    good = vector.flags.c_contiguous and vector.flags.aligned
    return flat(vector if good else np.require(vector, None, "CA"))


@jit(parallel=True)
def _layer_norm(x, step, rows, K, weight, bias, eps, y):
    """y = weight (x - mean) / sqrt(variance + eps) + bias, row by row"""
    tall = max(1, BLOCK // K)
    for task in prange((rows + tall - 1) // tall):
        means, offs, scales = scratch(3 * TOGETHER, x).reshape(3, TOGETHER)
        start = np.int64(task) * tall
        stop = min(start + tall, rows)
        for first in range(start, stop, TOGETHER):
            count = min(TOGETHER, stop - first)
            for i in range(count):
                means[i] = total(pointer(x, (first + i) * step), K) / K
            for i in range(count):
                off, square = _deviations(pointer(x, (first + i) * step), K, means[i])
                offs[i] = off
                scales[i] = 1 / np.sqrt(max(square - off * off, 0.0) + eps)
            for i in range(count):
                _scale_row(pointer(x, (first + i) * step), K, means[i], offs[i], scales[i],
                           pointer(weight, 0), pointer(bias, 0), pointer(y, (first + i) * K))


@jit
def total(x, K):
    """x[0] + ... + x[K - 1]"""
    size = lanes(x)
    s = masked_load(x, K - K % size, K % size)
    for i in range(0, K - size + 1, size):
        s = s + load(x, i)
    return reduce_add(s)


@jit
def _deviations(x, K, mean):
    """The means of d and of d^2, d = x - mean"""
    size = lanes(x)
    d = masked_load(x, K - K % size, K % size) - mean
    d = select(lane_indices(d) < K % size, d, splat_like(d, 0.0))
    s, q = d, d * d
    for i in range(0, K - size + 1, size):
        d = load(x, i) - mean
        s, q = s + d, fma(d, d, q)
    return reduce_add(s) / K, reduce_add(q) / K


@jit
def _scale_row(x, K, mean, off, scale, weight, bias, y):
    """y = weight (x - mean - off) scale + bias"""
    size = lanes(x)
    for i in range(0, K - size + 1, size):
        normal = (load(x, i) - mean - off) * scale
        store(y, i, fma(normal, load(weight, i), load(bias, i)))
    i, rest = K - K % size, K % size
    if rest > 0:
        normal = (masked_load(x, i, rest) - mean - off) * scale
        value = fma(normal, masked_load(weight, i, rest), masked_load(bias, i, rest))
        masked_store(y, i, value, rest)


@jit(parallel=True)
def _rms_norm(x, step, rows, K, weight, eps, y):
    """y = weight x / sqrt(mean x^2 + eps), row by row"""
    size = lanes(x)
    tall = max(1, BLOCK // K)
    for task in prange((rows + tall - 1) // tall):
        first = np.int64(task) * tall
        for r in range(first, min(first + tall, rows)):
            _, square = _deviations(pointer(x, r * step), K, 0)
            scale = 1 / np.sqrt(square + eps)
            for i in range(0, K - size + 1, size):
                store(y, r * K + i, load(x, r * step + i) * scale * load(weight, i))
            i, rest = K - K % size, K % size
            if rest > 0:
                value = masked_load(x, r * step + i, rest) * scale * masked_load(weight, i, rest)
                masked_store(y, r * K + i, value, rest)
