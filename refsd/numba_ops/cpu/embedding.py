"""Positions, times and tokens as vectors."""

import math

import numpy as np
from numba import prange

from refsd.dense import to_dense
from refsd.numba_ops.cpu.layout import copy_run
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_bits, as_rows, empty, flat, zeros
from refsd.numba_ops.pointwise import BLOCK
from refsd.numba_ops.simd import pointer
from refsd.ops.embedding import require_rows
from refsd.quantized import Quantized
from refsd.registry import kernel


@kernel("numba", reads_leaves=True, reads_halves=True)
def embedding(ids, weight):
    require_rows("embedding", ids, len(weight))
    if isinstance(weight, Quantized):
        return weight.rows(ids)
    weight = to_dense(weight)
    y = empty((*ids.shape, weight.shape[1]), weight.dtype)
    if weight.strides[1] != weight.itemsize:  # packed for a product: a table that is a head too
        y[...] = weight[ids]
        return y
    return _take(weight, ids.reshape(-1), y)


@kernel("numba", reads_halves=True)
def gather(x, index):
    require_rows("gather", index, x.shape[1])
    N, L, D = x.shape
    return _take(x, np.arange(N) * L + index.astype(np.int64), empty((N, D), x.dtype))


def _take(x, index, y):
    """y[i] = row index[i] of x, whose rows are its last axis"""
    if y.size:
        memory, _, step = as_rows(x)
        _copy_rows(as_bits(memory), step, index.astype(np.int64), x.shape[-1], as_bits(flat(y)))
    return y


@jit(parallel=True)
def _copy_rows(x, step, index, K, y):
    tall = max(1, BLOCK // K)
    for task in prange((index.size + tall - 1) // tall):
        first = np.int64(task) * tall
        for r in range(first, min(first + tall, index.size)):
            copy_run(pointer(x, index[r] * step), K, pointer(y, r * K))


@kernel("numba")
def timestep_embedding(timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    half = dim // 2
    # Frequencies and angles are float32 whatever the result: refsd/ops/embedding.py says why.
    exponents = np.arange(half, dtype="float32") * np.float32(-math.log(10000))
    exponents /= np.float32(half - freq_shift)
    frequencies = np.exp(exponents.astype("float64")).astype("float32")
    angles = (timesteps.astype("float32")[:, None] * frequencies).astype(dtype)
    y = zeros((len(timesteps), dim), dtype)
    sin_at, cos_at = (half, 0) if flip_sin_to_cos else (0, half)
    if y.size:
        _sin_cos(angles, y, sin_at, cos_at)
    return y


@jit
def _sin_cos(angles, y, sin_at, cos_at):
    for n in range(angles.shape[0]):
        for i in range(angles.shape[1]):
            y[n, sin_at + i] = math.sin(angles[n, i])
            y[n, cos_at + i] = math.cos(angles[n, i])


@kernel("numba")
def rope(x, positions, *, base, interleaved):
    half = x.shape[-1] // 2
    angles = positions[:, None] * float(base) ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    y = empty(x.shape, x.dtype)
    if y.size:
        memory, rows, step = as_rows(x)
        # A pair's first numbers lie `stride` apart, its second one `apart` from the first.
        stride, apart = (2, 1) if interleaved else (1, half)
        _rotate(memory, step, rows, cos, sin, stride, apart, flat(y))
    return y


@jit(parallel=True)
def _rotate(x, step, rows, cos, sin, stride, apart, y):
    L, half = cos.shape
    for task in prange(rows):
        r = np.int64(task)
        for i in range(half):
            at, to = r * step + i * stride, r * 2 * half + i * stride
            a, b, c, s = x[at], x[at + apart], cos[r % L, i], sin[r % L, i]
            y[to] = a * c - b * s
            y[to + apart] = a * s + b * c
