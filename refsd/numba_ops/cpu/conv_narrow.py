"""Convolution to a few channels: the last layers of a UNet and of a VAE.

A matrix product computes whole panels of outputs, of which 3 or 4 would be wanted. Here the lanes
of a vector are input channels: each tap's products are summed lane by lane, the lanes at the end.
weights: (O up to whole OUTPUTS, kH, kW, C up to whole vectors), 1-D in memory.
"""

import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import as_pixels
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import computed_dtype, fill_up, flat, zeros
from refsd.numba_ops.simd import (
    fma,
    lanes,
    load,
    masked_load,
    masked_store,
    pointer,
    reduce_add,
    scratch,
    splat_like,
)

MOST_OUTPUTS = 8
PIXELS, OUTPUTS = 4, 4  # whose sums are made at once: 16 chains, in registers


def is_narrow(kernel: tuple, groups: int, dtype: np.dtype) -> bool:
    """Whether a kernel (O, I, kH, kW) gives few outputs from at least a vector of channels."""
    return groups == 1 and kernel[0] <= MOST_OUTPUTS and kernel[1] >= lanes(np.dtype(dtype))


def narrow(x, weight, bias, y, stride, padding, dilation):
    """y = w * x + bias.   x (N, C, H, W), y (N, H', W', O), O at most MOST_OUTPUTS"""
    (N, C, H, W), (O, _, kh, kw), vector = x.shape, weight.shape, lanes(x.dtype)
    memory, *steps = as_pixels(x)
    step = -(-C // vector) * vector
    kernels = zeros((-(-O // OUTPUTS) * OUTPUTS, kh, kw, step), computed_dtype(x.dtype))
    kernels[:O, ..., :C] = weight.transpose(0, 2, 3, 1)
    _narrow(memory, (N, C, H, W), tuple(steps), (padding[0][0], padding[1][0]), stride, dilation,
            (kh, kw), flat(kernels), step, fill_up(bias, O, x.dtype),
            flat(zeros((step,), x.dtype)), flat(y), y.shape)


@jit(parallel=True)
def _narrow(x, shape, steps, corner, stride, dilation, kernel, weights, step, bias, zeros, out,
            result):
    """y (N, H', W', O) of x (N, H, W, C); a task is a line of outputs."""
    N, Ho, Wo, O = result
    size = lanes(out)
    for task in prange(N * Ho):
        n, i = np.int64(task) // Ho, np.int64(task) % Ho
        totals = scratch(OUTPUTS + size, out)
        for j in range(0, Wo, PIXELS):
            for o in range(0, O, OUTPUTS):
                sums = _sums(x, n * steps[0], shape, steps, i * stride[0] - corner[0],
                             j * stride[1] - corner[1], stride[1], dilation, kernel, weights, o,
                             step, zeros)
                for p in range(min(PIXELS, Wo - j)):
                    for q in range(OUTPUTS):
                        totals[q] = sums[p][q] + bias[o + q]
                    at, count = ((n * Ho + i) * Wo + j + p) * O + o, min(OUTPUTS, O - o)
                    for q in range(0, count, size):
                        masked_store(out, at + q, load(totals, q), count - q)


@jit
def _sums(x, image, shape, steps, i, j, apart, dilation, kernel, weights, o, step, zeros):
    """The sums of four outputs from number o on for the windows at (i, j), (i, j + apart), ..."""
    _, C, H, W = shape
    n, whole = lanes(x), C - C % lanes(x)
    nothing = splat_like(load(zeros, 0), 0.0)
    a = b = c = d = nothing, nothing, nothing, nothing
    taps = kernel[0] * kernel[1]
    for tap in range(taps):
        row, column = i + tap // kernel[1] * dilation[0], j + tap % kernel[1] * dilation[1]
        pa = _pixel(x, image, row, column, steps, H, W, zeros)
        pb = _pixel(x, image, row, column + apart, steps, H, W, zeros)
        pc = _pixel(x, image, row, column + 2 * apart, steps, H, W, zeros)
        pd = _pixel(x, image, row, column + 3 * apart, steps, H, W, zeros)
        right = pointer(weights, (o * taps + tap) * step)
        for k in range(0, whole, n):
            w = _four(right, k, taps * step)
            a, b = _add(load(pa, k), w, a), _add(load(pb, k), w, b)
            c, d = _add(load(pc, k), w, c), _add(load(pd, k), w, d)
        if whole < C:
            w, more = _four(right, whole, taps * step), C - whole
            a = _add(masked_load(pa, whole, more), w, a)
            b = _add(masked_load(pb, whole, more), w, b)
            c = _add(masked_load(pc, whole, more), w, c)
            d = _add(masked_load(pd, whole, more), w, d)
    return _totals(a), _totals(b), _totals(c), _totals(d)


@jit
def _four(x, at, step):
    return load(x, at), load(x, at + step), load(x, at + 2 * step), load(x, at + 3 * step)


@jit
def _add(x, w, sums):
    return (fma(x, w[0], sums[0]), fma(x, w[1], sums[1]), fma(x, w[2], sums[2]),
            fma(x, w[3], sums[3]))


@jit
def _totals(sums):
    return reduce_add(sums[0]), reduce_add(sums[1]), reduce_add(sums[2]), reduce_add(sums[3])


@jit
def _pixel(x, image, i, j, steps, H, W, zeros):
    """The address of a pixel's channels; outside the image they are zeros."""
    if 0 <= i < H and 0 <= j < W:
        return pointer(x, image + i * steps[1] + j * steps[2])
    return pointer(zeros, 0)
