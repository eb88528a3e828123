"""Enlarging images, all channels of a pixel at a time."""

import numpy as np
from numba import prange

from refsd.numba_ops.cpu.layout import as_image, as_tokens, copy_run
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_bits, computed_dtype, empty, flat
from refsd.numba_ops.simd import lanes, load, masked_load, masked_store, pointer, store
from refsd.ops.resize import source_pairs, source_pixels
from refsd.registry import kernel


@kernel("numba", reads_halves=True)
def upsample_nearest(x, *, height, width):
    N, C, H, W = x.shape
    y = empty((N, height * width, C), x.dtype)
    if y.size:
        rows, columns = source_pixels(H, height), source_pixels(W, width)
        _upsample_nearest(as_bits(flat(as_tokens(x))), rows, columns, N, C, H, W,
                          as_bits(flat(y)))
    return as_image(y, (N, C, height, width))


@jit(parallel=True)
def _upsample_nearest(x, rows, columns, N, C, H, W, y):
    """One task a row of the result."""
    height, width = rows.size, columns.size
    for task in prange(N * height):
        n, i = np.int64(task) // height, np.int64(task) % height
        for j in range(width):
            pixel = (n * H + rows[i]) * W + columns[j]
            copy_run(pointer(x, pixel * C), C, pointer(y, ((n * height + i) * width + j) * C))


@kernel("numba", reads_halves=True)
def upsample_bilinear(x, *, height, width, align_corners):
    N, C, H, W = x.shape
    y = empty((N, height * width, C), x.dtype)
    if y.size:
        top, bottom, down = source_pairs(H, height, align_corners, computed_dtype(x.dtype))
        left, right, across = source_pairs(W, width, align_corners, computed_dtype(x.dtype))
        _upsample_bilinear(flat(as_tokens(x)), top, bottom, down, left, right, across, N, C, H, W,
                           flat(y))
    return as_image(y, (N, C, height, width))


@jit(parallel=True)
def _upsample_bilinear(x, top, bottom, down, left, right, across, N, C, H, W, y):
    """One task a row of the result."""
    height, width = top.size, left.size
    for task in prange(N * height):
        n, i = np.int64(task) // height, np.int64(task) % height
        upper, lower = (n * H + top[i]) * W, (n * H + bottom[i]) * W
        for j in range(width):
            _mix(pointer(x, (upper + left[j]) * C), pointer(x, (lower + left[j]) * C),
                 pointer(x, (upper + right[j]) * C), pointer(x, (lower + right[j]) * C),
                 down[i], across[j], C, pointer(y, ((n * height + i) * width + j) * C))


@jit
def _mix(a, b, c, d, down, across, C, y):
    """Four pixels into one: a and b, c and d by `down`, then these two by `across`."""
    size = lanes(y)
    for i in range(0, C - size + 1, size):
        left = load(a, i) * (1 - down) + load(b, i) * down
        right = load(c, i) * (1 - down) + load(d, i) * down
        store(y, i, left * (1 - across) + right * across)
    i, rest = C - C % size, C % size
    if rest > 0:
        left = masked_load(a, i, rest) * (1 - down) + masked_load(b, i, rest) * down
        right = masked_load(c, i, rest) * (1 - down) + masked_load(d, i, rest) * down
        masked_store(y, i, left * (1 - across) + right * across, rest)
