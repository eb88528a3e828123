"""Winograd convolution, F(2x2, 3x3) and F(4x4, 3x3): y = A^T [(G g G^T) * (B^T d B)] A + bias.

A tile d of 4 x 4 (6 x 6) pixels gives 2 x 2 (4 x 4) outputs. The product * is a matrix product over
the channels for each of the 16 (36) places in a tile, so that 4 (16) outputs cost 16 (36)
multiplications a channel instead of 36 (144). Source: Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks". docs/kernels-conv.md derives the error and shows the measurements.
"""

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import ONE_SEGMENT, as_pixels, even_pieces
from refsd.numba_ops.cpu.winograd_transforms import transform_pixels, transform_sums
from refsd.numba_ops.cpu.winograd_weights import transform_weights
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import fill_up, flat, panel_width
from refsd.numba_ops.simd import lanes, load, load_first, store, store_first
from refsd.numba_ops.tile import ROWS, VECTORS, tile_ahead
from refsd.numba_ops.weights import columns
from refsd.numba_ops.workspace import workspace

# One task multiplies up to so many bundles of ROWS tiles by one panel of weights: its 36 x 140 x 32
# sums stay in the second-level cache until they are transformed back.
MOST_BUNDLES = 10
# All threads share the transformed tiles of one span, and the transformed weights of some panels:
# 8 and 4 MB stay in the third-level cache.
SPAN_BYTES, WEIGHT_BYTES = 2**23, 2**22


def winograd(x, weight, bias, y, size, padding, groups):
    """y = w * x + bias from tiles of size x size.   x (N, C, H, W), y (N, H', W', O)"""
    features, channels = weight.shape[0] // groups, weight.shape[1]
    right = columns(weight)
    for g in range(groups):
        ours, theirs = (slice(g * n, (g + 1) * n) for n in (features, channels))
        _one_group(x[:, theirs], right, ours.start, None if bias is None else bias[ours],
                   y[..., ours], size, padding)


def _one_group(x, right, column, bias, y, size, padding):
    (N, C, H, W), (_, Ho, Wo, O) = x.shape, y.shape
    memory, *steps = as_pixels(x)
    corner = (-padding[0][0], -padding[1][0])
    vector, squares = lanes(x.dtype), size * size
    # Whole vectors of channels and one more: rows at multiples of 4096 bytes share few cache sets.
    step = -(-C // vector) * vector + vector
    tiles = N * -(-Ho // (size - 2)) * -(-Wo // (size - 2))
    threads, width = numba.get_num_threads(), panel_width(x.dtype)
    bundles, count = -(-tiles // ROWS), -(-O // width)
    # No result depends on these sizes: they keep the caches full and the threads busy.
    block = ROWS * min(MOST_BUNDLES, bundles, max(1, bundles * count // (2 * threads)))
    fitting = SPAN_BYTES // (squares * step * x.itemsize * block)
    span = block * min(-(-tiles // block), max(1, fitting, 2 * threads // count))
    # Many spans would need the transformed weights many times: then all are made at once.
    one_span, panel_size = span >= tiles, squares * (C + 1) * width
    fitting = WEIGHT_BYTES // (panel_size * x.itemsize)
    some = min(count, max(threads, fitting)) if one_span else count
    bias = fill_up(bias, O, x.dtype)
    with workspace(x.dtype, squares * span * step, threads * squares * block * width,
                   some * panel_size) as (spectra, sums, panels):
        for first in range(0, count, some):
            here = min(some, count - first)
            transform_weights(*right, C, column + first * width, here, size, panels)
            _compute(memory, (N, C, H, W), tuple(steps), corner, size, panels, first, here,
                     even_pieces(C), bias, flat(y), (Ho, Wo, O), y.strides[2] // y.itemsize,
                     spectra, span, step, sums, block, ONE_SEGMENT)


@jit(parallel=True)
def _compute(x, shape, steps, corner, size, panels, first_panel, count, piece, bias, out, result,
             pixel, spectra, span, step, sums, block, one):
    """Span after span of tiles: first transform all of them, then multiply and transform back.

    spectra: (size^2, span, step), what B^T d B is called here; if there is one span, it is made
    with the first panel. sums: (threads, size^2, block, NR).
    """
    down, across = (result[0] + size - 3) // (size - 2), (result[1] + size - 3) // (size - 2)
    tiles, width = shape[0] * down * across, VECTORS * lanes(out)
    for first in range(0, tiles, span):
        here = min(span, tiles - first)
        fresh = first_panel == 0 or tiles > span
        for bundle in prange((here + ROWS - 1) // ROWS if fresh else 0):
            _transform_bundle(x, shape, steps, corner, size, down, across, first, here,
                              np.int64(bundle) * ROWS, spectra, span * step, step)
        blocks = (here + block - 1) // block
        for task in prange(blocks * count):
            panel, low = np.int64(task) // blocks, np.int64(task) % blocks * block
            high, room = min(low + block, here), size * size * block * width
            mine = sums[numba.get_thread_id() * room:][:room]
            _multiply(spectra, low, high, span * step, step, panels, panel, size * size, shape[1],
                      piece, one, mine, block)
            _finish_block(mine, block, size, down, across, first + low, first + high, bias,
                          (first_panel + panel) * width, out, result, pixel)


@jit
def _transform_bundle(x, shape, steps, corner, size, down, across, first, here, low, spectra,
                      plane, step):
    """ROWS tiles from number `low` of the span on; from number `here` on there are only zeros."""
    square = np.empty(size * size * lanes(x), x.dtype)
    cut = np.empty(size * size * step, x.dtype)
    for k in range(low, low + ROWS):
        if k < here:
            n, i, j = _place(first + k, down, across)
            i, j = i * (size - 2) + corner[0], j * (size - 2) + corner[1]
            _transform_tile(x, shape, steps, n, i, j, size, cut, square, spectra, k * step, plane,
                            step)
        else:
            for s in range(size * size):
                for c in range(0, shape[1], lanes(x)):
                    store(spectra, s * plane + k * step + c, load_first(x, 0, 0))


@jit
def _place(tile, down, across):
    """Picture, row and column of tiles"""
    return tile // (down * across), tile // across % down, tile % across


@jit
def _multiply(spectra, low, high, plane, step, panels, number, squares, C, piece, one, sums,
              block):
    """For each place s in a tile: sums[s] (tiles, NR) = spectra[s] (tiles, C) panel[s] (C, NR)"""
    width = VECTORS * lanes(sums)
    bundles = (high - low + ROWS - 1) // ROWS
    for s in range(squares):
        panel = (number * squares + s) * (C + 1) * width
        for b in range(bundles):
            left = s * plane + (low + b * ROWS) * step
            c = sums[(s * block + b * ROWS) * width:][:ROWS * width]
            # Fetch the next rows, and of the next panel the part that makes it whole in time.
            next_left = left + ROWS * step if b + 1 < bundles else (s + 1) * plane + low * step
            next_panel, pace = panel + (C + 1 + C * b // bundles) * width, width // bundles + 1
            for k in range(0, C, piece):
                tile_ahead(spectra, left + k, step, one, min(piece, C - k), panels,
                           panel + k * width, width, c, k, next_left + k * ROWS,
                           next_panel + k * pace, pace)


@jit
def _transform_tile(x, shape, steps, n, i, j, size, cut, square, out, at, plane, step):
    """B^T d B for all channels of the tile whose first pixel is (i, j); it may lie half outside."""
    _, C, H, W = shape
    picture, row, pixel = steps
    first = n * picture + i * row + j * pixel
    if i < 0 or j < 0 or i + size > H or j + size > W or C % lanes(x) > 0:
        # A copy with zeros around: at the border, and where channels are not whole vectors.
        for a in range(size):
            for b in range(size):
                inside = 0 <= i + a < H and 0 <= j + b < W
                for c in range(0, C, lanes(x)):
                    have = min(lanes(x), C - c) if inside else 0
                    store(cut, (a * size + b) * step + c,
                          load_first(x, first + a * row + b * pixel + c, have))
        x, first, row, pixel = cut, 0, size * step, step
    transform_pixels(x, first, row, pixel, C, size, square, out, at, plane)


@jit
def _finish_block(sums, block, size, down, across, low, high, bias, column, out, result, pixel):
    """Tiles low .. high - 1 of the pictures, from the sums of one panel"""
    square = np.empty(size * size * lanes(out), out.dtype)
    edge = np.empty(size * size * lanes(out), out.dtype)
    width = VECTORS * lanes(out)
    for k in range(low, high):
        n, i, j = _place(k, down, across)
        i, j = i * (size - 2), j * (size - 2)
        _finish_tile(sums, (k - low) * width, block * width, size, square, edge, bias, column, out,
                     n, i, j, result, pixel)


@jit
def _finish_tile(m, at, plane, size, square, edge, bias, column, out, n, i, j, result, pixel):
    """A^T m A + bias for one panel of outputs of one tile, to its place in the picture."""
    Ho, Wo, O = result
    reach, count = size - 2, lanes(out)
    for vector in range(VECTORS):
        o = column + vector * count
        have = min(count, O - o)
        if have <= 0:
            return
        start = ((n * Ho + i) * Wo + j) * pixel + o
        whole = i + reach <= Ho and j + reach <= Wo and have == count
        to, first, down, right = out, start, Wo * pixel, pixel
        if not whole:
            to, first, down, right = edge, 0, reach * count, count
        transform_sums(m, at + vector * count, plane, size, square, load(bias, o), to, first, down,
                       right)
        if not whole:
            for a in range(min(reach, Ho - i)):
                for b in range(min(reach, Wo - j)):
                    store_first(out, start + (a * Wo + b) * pixel, load(edge, a * down + b * right),
                                have)
