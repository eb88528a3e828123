"""Normalisation of groups of channels: sums in a fixed order, in two passes over cached data.

The mean is found first, then the deviations d from it: their own mean corrects it (it was rounded),
the mean of d^2 gives the variance. Within a block sums run in the arrays' dtype; what they add up
to is float64. Blocks of n_i pixels with means m_i and variances v_i (their d^2's) are merged by

    m = sum n_i m_i / n        v = sum n_i (v_i + (m_i - m)^2) / n        n = sum n_i

the formula of Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance",
The American Statistician 37, for many parts. `centre + off` is a mean in two parts, the second
small. Arrays are 1-D in memory: x and y (N, P, C).
"""

import numpy as np
from numba import prange

from refsd.half import to_float32
from refsd.numba_ops.cpu.layout import as_image, as_tokens
from refsd.numba_ops.cpu.norm import flat_vector, total
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import empty, flat
from refsd.numba_ops.simd import (
    fma,
    lanes,
    load,
    masked_load,
    masked_store,
    pointer,
    scratch,
    store,
)
from refsd.numba_ops.vecmath import sigmoid
from refsd.registry import kernel

# Elements of a block of pixels: read from memory once, then from the second-level cache.
PIXELS = 2**15


@kernel("numba", reads_halves=True)
def group_norm(x, weight, bias, *, groups, eps):
    return _in_groups(x, weight, bias, groups, eps, False)


@kernel("numba", reads_halves=True)
def group_norm_silu(x, weight, bias, *, groups, eps):
    return _in_groups(x, weight, bias, groups, eps, True)


def _in_groups(x, weight, bias, groups, eps, activated):
    """group_norm, and silu of it where it is to be activated"""
    pixels = as_tokens(x)
    y = empty(pixels.shape, x.dtype)
    if y.size:
        # Single elements of these are read, which of halves no kernel can.
        weight, bias = flat_vector(to_float32(weight)), flat_vector(to_float32(bias))
        _group_norm(flat(pixels), weight, bias, *pixels.shape, groups, float(eps),
                    activated, flat(y))
    return as_image(y, x.shape)


@jit
def _group_norm(x, weight, bias, N, P, C, groups, eps, activated, y):
    """x and y (N, P, C), the channels of a group adjacent"""
    tall = block_pixels(C)
    moments = np.empty((N, groups, (P + tall - 1) // tall, 3))
    add_moments(x, N, P, C, 0, moments)
    normalise(x, N, P, C, channel_lines(moments, P, C, weight, bias, eps, x), activated, y)


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
def normalise(x, N, P, C, lines, activated, y):
    """y = (x - centre) scale + shift, and silu of it where activated.   x and y (N, P, C)"""
    tall = block_pixels(C)
    blocks = (P + tall - 1) // tall
    for task in prange(N * blocks):
        n, block = np.int64(task) // blocks, np.int64(task) % blocks
        for p in range(n * P + block * tall, n * P + min((block + 1) * tall, P)):
            _scale_and_shift(pointer(x, p * C), C, pointer(lines[0], n * C),
                             pointer(lines[1], n * C), pointer(lines[2], n * C), activated,
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
        mean = means.dtype.type(total(pointer(sums, first), width) / (count * width))
        for c in range(first, first + width):
            means[c] = mean
        moments[group, 0] = mean

    _add_deviations(pointer(x, at), count, C, pointer(means, 0), pointer(sums, 0),
                    pointer(squares, 0))
    for group in range(len(moments)):
        moments[group, 1] = total(pointer(sums, group * width), width) / (count * width)
        moments[group, 2] = total(pointer(squares, group * width), width) / (count * width)


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
def _scale_and_shift(x, C, centre, scale, shift, activated, y):
    """One pixel: y = (x - centre) scale + shift, and silu of it where activated"""
    size = lanes(x)
    for c in range(0, 0 if activated else C - size + 1, size):
        store(y, c, fma(load(x, c) - load(centre, c), load(scale, c), load(shift, c)))
    for c in range(0, C - size + 1 if activated else 0, size):
        h = fma(load(x, c) - load(centre, c), load(scale, c), load(shift, c))
        store(y, c, h * sigmoid(h))
    c, rest = C - C % size, C % size
    if rest > 0:
        d = masked_load(x, c, rest) - masked_load(centre, c, rest)
        h = fma(d, masked_load(scale, c, rest), masked_load(shift, c, rest))
        masked_store(y, c, h * sigmoid(h) if activated else h, rest)
