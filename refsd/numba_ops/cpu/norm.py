"""Normalisations: sums in a fixed order, in two passes over data that is still in the cache.

The mean is found first, then the deviations d from it: their own mean corrects it (it was rounded),
the mean of d^2 gives the variance. Within a block sums run in the arrays' dtype; what they add up
to is float64. Blocks of n_i pixels with means m_i and variances v_i (their d^2's) are merged by

    m = sum n_i m_i / n        v = sum n_i (v_i + (m_i - m)^2) / n        n = sum n_i

the formula of Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance",
The American Statistician 37, for many parts. `centre + off` is a mean in two parts, the second
small. Arrays are 1-D in memory: x and y (N, P, C) or (rows, K).
"""

import numpy as np
from numba import prange

from refsd.half import to_float32
from refsd.numba_ops.cpu.layout import as_image, as_tokens
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

# Elements of a block of pixels: read from memory once, then from the second-level cache.
PIXELS = 2**15
# Rows that take each step together, so that the processor overlaps the sums of several.
TOGETHER = 4


@kernel("numba", reads_halves=True)
def group_norm(x, weight, bias, *, groups, eps):
    pixels = as_tokens(x)
    y = empty(pixels.shape, x.dtype)
    if y.size:
        # Single elements of these are read, which of halves no kernel can.
        weight, bias = _flat(to_float32(weight)), _flat(to_float32(bias))
        _group_norm(flat(pixels), weight, bias, *pixels.shape, groups, float(eps),
                    flat(y))
    return as_image(y, x.shape)


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
        _rms_norm(memory, step, rows, x.shape[-1], _flat(weight), float(eps), flat(y))
    return y


def _vector(vector, value, x):
    """The vector's memory; that of a value for each of x's features where there is none."""
    return _flat(np.full(x.shape[-1], value, x.dtype) if vector is None else vector)


def _flat(vector):
    good = vector.flags.c_contiguous and vector.flags.aligned
    return flat(vector if good else np.require(vector, None, "CA"))


@jit
def _group_norm(x, weight, bias, N, P, C, groups, eps, y):
    """x and y (N, P, C), the channels of a group adjacent"""
    tall = block_pixels(C)
    moments = np.empty((N, groups, (P + tall - 1) // tall, 3))
    add_moments(x, N, P, C, 0, moments)
    normalise(x, N, P, C, channel_lines(moments, P, C, weight, bias, eps, x), y)


@jit
def block_pixels(C):
    """How many pixels a block has."""
    return max(1, PIXELS // C)


@jit(parallel=True)
def add_moments(x, N, P, C, first, moments):
    """moments (N, groups, blocks, 3): those of x's blocks, to be put from number `first` on."""
    tall = block_pixels(C)
    blocks = (P + tall - 1) // tall
    for task in prange(N * blocks):
        n, block = np.int64(task) // blocks, np.int64(task) % blocks
        at = block * tall
        _block_moments(x, (n * P + at) * C, min(tall, P - at), C, moments[n, :, first + block])


@jit(parallel=True)
def channel_lines(moments, P, C, weight, bias, eps, x):
    """Centre, scale and shift of each channel, of P pixels.   -> (3, N C) in the numbers of x"""
    N, groups = moments.shape[:2]
    lines = scratch(3 * N * C, x).reshape(3, N * C)
    for task in prange(N * groups):
        n, group = np.int64(task) // groups, np.int64(task) % groups
        mean, off, variance = _whole_moments(moments[n, group], block_pixels(C), P)
        centre = lines.dtype.type(mean + off)
        rest = mean - centre + off
        for c in range(group * (C // groups), (group + 1) * (C // groups)):
            scale = weight[c] / np.sqrt(variance + eps)
            lines[0, n * C + c] = centre
            lines[1, n * C + c] = scale
            # Beside an infinite weight the rest does not count, and 0 times it would be NaN.
            lines[2, n * C + c] = bias[c] - (rest * scale if abs(scale) < np.inf else 0.0)
    return lines


@jit(parallel=True)
def normalise(x, N, P, C, lines, y):
    """y = (x - centre) scale + shift.   x and y (N, P, C)"""
    tall = block_pixels(C)
    blocks = (P + tall - 1) // tall
    for task in prange(N * blocks):
        n, block = np.int64(task) // blocks, np.int64(task) % blocks
        for p in range(n * P + block * tall, n * P + min((block + 1) * tall, P)):
            _scale_and_shift(pointer(x, p * C), C, pointer(lines[0], n * C),
                             pointer(lines[1], n * C), pointer(lines[2], n * C),
                             pointer(y, p * C))


@jit
def _block_moments(x, at, count, C, moments):
    """For each group of channels in a block: a mean m, and the means of x - m and of its square."""
    width = C // len(moments)
    sums, squares, means = scratch(3 * (C + lanes(x)), x).reshape(3, C + lanes(x))
    sums[:], squares[:], means[:] = 0, 0, 0
    _add_pixels(pointer(x, at), count, C, pointer(sums, 0))
    for group in range(len(moments)):
        first = group * width
        mean = means.dtype.type(_total(pointer(sums, first), width) / (count * width))
        for c in range(first, first + width):
            means[c] = mean
        moments[group, 0] = mean

    _add_deviations(pointer(x, at), count, C, pointer(means, 0), pointer(sums, 0),
                    pointer(squares, 0))
    for group in range(len(moments)):
        moments[group, 1] = _total(pointer(sums, group * width), width) / (count * width)
        moments[group, 2] = _total(pointer(squares, group * width), width) / (count * width)


@jit
def _add_pixels(x, count, C, sums):
    """sums = the sum of the pixels, a vector of channels at a time"""
    size = lanes(x)
    for c in range(0, C, size):
        n = min(size, C - c)
        s = masked_load(x, c, n)
        for p in range(1, count):
            s = s + masked_load(x, p * C + c, n)
        store(sums, c, s)


@jit
def _add_deviations(x, count, C, means, sums, squares):
    """sums, squares = the sums of d and d^2, d = pixel - means"""
    size = lanes(x)
    for c in range(0, C, size):
        n, mean = min(size, C - c), load(means, c)
        d = masked_load(x, c, n) - mean
        s, q = d, d * d
        for p in range(1, count):
            d = masked_load(x, p * C + c, n) - mean
            s, q = s + d, fma(d, d, q)
        store(sums, c, s)
        store(squares, c, q)


@jit
def _whole_moments(moments, tall, P):
    """Mean (in two parts) and variance of all P pixels: Chan et al.'s merge of blocks of `tall`.

    moments: (blocks, 3), a rounded mean m, and the means of d = x - m and of d^2; so m_i is
    m + mean d, and v_i is mean d^2 - (mean d)^2.
    """
    mean, off, variance = moments[0, 0], 0.0, 0.0
    for block in range(len(moments)):
        share = min(tall, P - block * tall) / P
        off += share * (moments[block, 0] - mean + moments[block, 1])
    for block in range(len(moments)):
        share = min(tall, P - block * tall) / P
        d = moments[block, 0] - mean + moments[block, 1] - off
        variance += share * (max(moments[block, 2] - moments[block, 1]**2, 0.0) + d * d)
    return mean, off, variance


@jit
def _scale_and_shift(x, C, centre, scale, shift, y):
    """One pixel: y = (x - centre) scale + shift"""
    size = lanes(x)
    for c in range(0, C - size + 1, size):
        store(y, c, fma(load(x, c) - load(centre, c), load(scale, c), load(shift, c)))
    c, rest = C - C % size, C % size
    if rest > 0:
        d = masked_load(x, c, rest) - masked_load(centre, c, rest)
        masked_store(y, c, fma(d, masked_load(scale, c, rest), masked_load(shift, c, rest)), rest)


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
                means[i] = _total(pointer(x, (first + i) * step), K) / K
            for i in range(count):
                off, square = _deviations(pointer(x, (first + i) * step), K, means[i])
                offs[i] = off
                scales[i] = 1 / np.sqrt(max(square - off * off, 0.0) + eps)
            for i in range(count):
                _scale_row(pointer(x, (first + i) * step), K, means[i], offs[i], scales[i],
                           pointer(weight, 0), pointer(bias, 0), pointer(y, (first + i) * K))


@jit
def _total(x, K):
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
