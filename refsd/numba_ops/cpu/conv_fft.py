"""Convolution of large kernels: overlapping tiles, transformed, multiplied, transformed back.

The transforms are scipy.fft's; the products, a matrix product over the channels for each of the
frequencies, are ours. A complex product x conj(w) is two real ones with the same right matrix:

    real part   [xr xi] [wr]        imaginary part   [xi -xr] [wr]
                        [wi]                                  [wi]

so a spectrum keeps [xr xi -xr] of each frequency: the imaginary part starts I values further on.
For a slice of T tiles it is (T, frequencies, 3 I) in memory, its rows `step` apart.
"""

import numpy as np
from numba import prange
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft2, next_fast_len, rfft2

from refsd.dense import to_dense
from refsd.half import is_half, to_float32, to_half
from refsd.leaf import Weight
from refsd.numba_ops.cpu.pixels import ONE_SEGMENT
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import (
    aligned_empty,
    allocate_from_pool,
    empty,
    panel_width,
)
from refsd.numba_ops.simd import lanes, load, masked_store, store
from refsd.numba_ops.tile import ROWS, VECTORS, tile

# The transformed tiles of one slice of tile rows.
SLICE_BYTES = 32 * 2**20


def fft(x, weight, bias, y, stride, padding, dilation, groups):
    """y = w * x + bias, image by image.   x (N, C, H, W), y (N, H', W', O)"""
    N, (O, I, kh, kw) = len(x), weight.shape
    reach = (dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1)
    extent = [n + sum(pad) for n, pad in zip(x.shape[2:], padding)]
    size = tile_size(extent, reach)
    ours = [slice(g * O // groups, (g + 1) * O // groups) for g in range(groups)]

    def pack(array):
        return [_pack_spectra(to_float32(array[outputs]), size, dilation) for outputs in ours]

    kept = isinstance(weight, Weight)
    spectra = weight.prepared("fft", (size, dilation, groups), pack) if kept else pack(weight)
    sums = empty(y.shape, np.float32) if is_half(y.dtype) else y
    for g, (outputs, panels) in enumerate(zip(ours, spectra)):
        for n in range(N):
            image = to_float32(x[n, g * I:(g + 1) * I])
            dense = _image(image, padding, panels, size, reach, O // groups)
            sums[n, :, :, outputs] = dense[::stride[0], ::stride[1]]
    if bias is not None:
        sums += to_float32(to_dense(bias))
    if is_half(y.dtype):
        y[...] = to_half(sums, y.dtype)


def tile_size(extent, reach):
    """Tiles of four kernels or more that have a fast transform, no larger than the image."""
    return tuple(min(next_fast_len(n, real=True), next_fast_len(max(64, 4 * k), real=True))
                 for n, k in zip(extent, reach))


def _image(x, padding, panels, size, reach, O):
    """The dense outputs (H', W', O) of one image x (I, H, W)"""
    I = len(x)
    step = [s - k + 1 for s, k in zip(size, reach)]
    result = [n + sum(pad) - k + 1 for n, pad, k in zip(x.shape[1:], padding, reach)]
    down, across = (-(-n // s) for n, s in zip(result, step))
    ends = [(low, max(high, n * s + k - 1 - low - length)) for (low, high), n, s, k, length
            in zip(padding, (down, across), step, reach, x.shape[1:])]
    padded = np.pad(x.transpose(1, 2, 0), (*ends, (0, 0)))
    tiles = sliding_window_view(padded, size, axis=(0, 1))[::step[0], ::step[1]]
    tiles = tiles[:down, :across].transpose(0, 1, 3, 4, 2)  # down across P Q I

    y = empty((down * step[0], across * step[1], O), x.dtype)
    lines = max(1, SLICE_BYTES // (across * size[0] * size[1] * max(I, O) * 2 * x.itemsize))
    for i in range(0, down, lines):
        part = tiles[i:i + lines].reshape(-1, *size, I)
        sums = _products(rfft2(part, axes=(1, 2)), panels, O)
        block = irfft2(sums, s=size, axes=(1, 2))[:, :step[0], :step[1]]
        block = block.reshape(-1, across, *step, O).swapaxes(1, 2)
        y[i * step[0]:(i + lines) * step[0]] = block.reshape(-1, across * step[1], O)
    return y[:result[0], :result[1]]


def _products(z, panels, O):
    """(T, P, Q, I) complex, the panels of P x Q matrices (I, O) -> (T, P, Q, O) complex"""
    T, P, Q, I = z.shape
    dtype = z.real.dtype
    # A little more than needed: rows at multiples of 4096 bytes would share few cache sets.
    step = P * Q * 3 * I + lanes(dtype)
    rows = aligned_empty(-(-T // ROWS) * ROWS * step, dtype).reshape(-1, step)
    rows[T:] = 0
    rows[:T, :P * Q * 3 * I] = np.concatenate([z.real, z.imag, -z.real], -1).reshape(T, -1)
    sums = empty((2, T, P, Q, O), dtype)
    _multiply(rows.reshape(-1), step, T, P * Q, I, panels, sums.reshape(-1), O, ONE_SEGMENT)
    result = empty((T, P, Q, O), z.dtype)
    result.real, result.imag = sums
    return result


def _pack_spectra(weight, size, dilation):
    """weight (O, I, kH, kW) -> flat panels of NR outputs, for each frequency [wr; wi] (2 I, NR)"""
    O, I, kh, kw = weight.shape
    width = panel_width(weight.dtype)
    wide = np.zeros((O, I, dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1))
    wide[:, :, ::dilation[0], ::dilation[1]] = weight
    frequencies = size[0] * (size[1] // 2 + 1)
    count = -(-O // width) * frequencies * 2 * I * width * weight.itemsize
    panels = allocate_from_pool(count).view(weight.dtype)  # which may be kept
    view = panels.reshape(-1, frequencies, 2 * I, width)
    for p, panel in enumerate(view):  # one after the other: the float64 spectra are large
        z = rfft2(wide[p * width:(p + 1) * width], s=size).reshape(-1, I, frequencies).T
        panel[..., z.shape[2]:] = 0
        panel[:, :I, :z.shape[2]], panel[:, I:, :z.shape[2]] = z.real, z.imag
    return panels


@jit(parallel=True)
def _multiply(spectra, step, tiles, frequencies, channels, panels, sums, features, one):
    """sums (2, tiles, frequencies, O): real and imaginary parts of the products"""
    width = VECTORS * lanes(sums)
    depth = 2 * channels
    count = (features + width - 1) // width
    for task in prange(frequencies * count):
        f, p = np.int64(task) // count, np.int64(task) % count
        c = np.empty(ROWS * width, sums.dtype)
        for half in range(2):
            for t in range(0, tiles, ROWS):
                tile(spectra, t * step + (f * 3 + half) * channels, step, one, depth, panels,
                     (p * frequencies + f) * depth * width, c)
                for r in range(min(ROWS, tiles - t)):
                    at = ((half * tiles + t + r) * frequencies + f) * features + p * width
                    _store_row(c, r * width, sums, at, features - p * width)


@jit
def _store_row(c, at, out, out_at, room):
    """One row of a tile, or as many columns of it as there is room for"""
    size = lanes(out)
    for v in range(VECTORS):
        if room >= (v + 1) * size:
            store(out, out_at + v * size, load(c, at + v * size))
        elif room > v * size:
            masked_store(out, out_at + v * size, load(c, at + v * size), room - v * size)
