"""Winograd convolution, F(2x2, 3x3) and F(4x4, 3x3): y = A^T [(G g G^T) * (B^T d B)] A + bias.

A tile d of 4 x 4 (6 x 6) pixels gives 2 x 2 (4 x 4) outputs. The product * is a matrix product over
the channels for each of the 16 (36) places in a tile, so that 4 (16) outputs cost 16 (36)
multiplications a channel instead of 36 (144). Source: Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks". docs/kernels-conv.md derives the error and shows the measurements.
"""

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import ONE_SEGMENT, as_pixels, whole_pieces
from refsd.numba_ops.cpu.winograd_transforms import transform_pixels, transform_sums
from refsd.numba_ops.cpu.winograd_weights import transform_channels, transform_weights
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import fill_up, flat, panel_width
from refsd.numba_ops.simd import lanes, load, masked_load, masked_store, store
from refsd.numba_ops.tile import ROWS, VECTORS, tile_ahead
from refsd.numba_ops.weights import columns
from refsd.numba_ops.workspace import workspace

# One task multiplies up to so many bundles of ROWS tiles by one panel of weights: its 36 x 140 x 32
# sums stay in the second-level cache until they are transformed back.
MOST_BUNDLES = 10
# All threads share the transformed tiles of one span: 8 MB stay in the third-level cache.
SPAN_BYTES = 2**23


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
    squares, piece = size * size, whole_pieces(C, lanes(x.dtype))
    tiles = N * -(-Ho // (size - 2)) * -(-Wo // (size - 2))
    threads, width = numba.get_num_threads(), panel_width(x.dtype)
    bundles, count = -(-tiles // ROWS), -(-O // width)
    # No result depends on these sizes: they keep the caches full and the threads busy.
    block = ROWS * min(MOST_BUNDLES, bundles, max(1, bundles * count // (2 * threads)))
    channels = -(-C // piece) * piece
    fitting = SPAN_BYTES // (squares * channels * x.itemsize * block)
    span = block * min(-(-tiles // block), max(1, fitting, 2 * threads // count))
    # If one block holds all tiles, its tasks transform the weights for themselves, piece by piece:
    # they never leave the second-level cache. Else all are transformed before.
    shared = tiles > block
    made = count * squares * (C + 1) if shared else threads * squares * (piece + 1)
    bias = fill_up(bias, O, x.dtype)
    with workspace(x.dtype, squares * span * channels, threads * squares * block * width,
                   made * width) as (spectra, sums, panels):
        if shared:
            transform_weights(*right, C, column, count, size, panels)
        _compute(memory, (N, C, H, W), tuple(steps), corner, size, *right, column, shared, panels,
                 count, piece, bias, flat(y), (Ho, Wo, O), y.strides[2] // y.itemsize, spectra,
                 span, sums, block, ONE_SEGMENT)


@jit(parallel=True)
def _compute(x, shape, steps, corner, size, weight, weight_step, column, shared, panels, count,
             piece, bias, out, result, pixel, spectra, span, sums, block, one):
    """Span after span of tiles: first transform all of them, then multiply and transform back.

    spectra: (pieces, size^2, span, piece), what B^T d B is called here, its channels in pieces.
    sums: (threads, size^2, block, NR). panels: the transformed weights (count, size^2, C + 1, NR)
    if they are shared, else room for one piece of a panel, (threads, size^2, piece + 1, NR).
    """
    down, across = (result[0] + size - 3) // (size - 2), (result[1] + size - 3) // (size - 2)
    tiles, width, C = shape[0] * down * across, VECTORS * lanes(out), shape[1]
    rows = (C if shared else piece) + 1
    for first in range(0, tiles, span):
        here = min(span, tiles - first)
        for bundle in prange((here + ROWS - 1) // ROWS):
            _transform_bundle(x, shape, steps, corner, size, down, across, first, here,
                              np.int64(bundle) * ROWS, spectra, span, piece)
        blocks = (here + block - 1) // block
        for task in prange(blocks * count):
            panel, low = np.int64(task) // blocks, np.int64(task) % blocks * block
            high, room = min(low + block, here), size * size * block * width
            thread = numba.get_thread_id()
            mine, at = sums[thread * room:][:room], panel
            if not shared:
                at = np.int64(thread)
            part = C if shared else piece
            for k in range(0, C, part):
                start = at * size * size * rows * width
                if not shared:
                    transform_channels(weight, weight_step, C, column + panel * width, k,
                                       min(piece, C - k), size, panels, start, rows * width)
                _multiply(spectra, low, high, span, panels, start, rows * width, size * size, k,
                          min(k + part, C), piece, one, mine, block)
            _finish_block(mine, block, size, down, across, first + low, first + high, bias,
                          panel * width, out, result, pixel)


@jit
def _transform_bundle(x, shape, steps, corner, size, down, across, first, here, low, spectra,
                      span, piece):
    """ROWS tiles from number `low` of the span on; from number `here` on there are only zeros."""
    C, squares = shape[1], size * size
    square = np.empty(squares * lanes(x), x.dtype)
    cut = np.empty(squares * (C + lanes(x)), x.dtype)
    for k in range(low, low + ROWS):
        if k < here:
            n, i, j = _place(first + k, down, across)
            i, j = i * (size - 2) + corner[0], j * (size - 2) + corner[1]
            _transform_tile(x, shape, steps, n, i, j, size, cut, square, spectra, k, span, piece)
        else:
            for s in range(0, (C + piece - 1) // piece * squares):
                for c in range(0, piece, lanes(x)):
                    store(spectra, (s * span + k) * piece + c, masked_load(x, 0, 0))


@jit
def _place(tile, down, across):
    """Picture, row and column of tiles"""
    return tile // (down * across), tile // across % down, tile % across


@jit
def _multiply(spectra, low, high, span, panels, at, panel_plane, squares, first, end, piece, one,
              sums, block):
    """For each place s in a tile: sums[s] (tiles, NR) = spectra[s] (tiles, C) panel[s] (C, NR)

    for channels first to end - 1, whose panels begin at `at`; added to what is there from the
    second piece on.
    """
    width = VECTORS * lanes(sums)
    bundles = (high - low + ROWS - 1) // ROWS
    for s in range(squares):
        panel = at + s * panel_plane
        for b in range(bundles):
            c = sums[(s * block + b * ROWS) * width:][:ROWS * width]
            left = s * span + low + b * ROWS
            # Fetch the next rows, and of the next panel the part that makes it whole in time.
            following = left + ROWS if b + 1 < bundles else (s + 1) * span + low
            next_panel = panel + panel_plane + (end - first) * b // bundles * width
            pace = width // bundles + 1
            for k in range(first, end, piece):
                origin, done = k * squares * span, k - first
                tile_ahead(spectra, origin + left * piece, piece, one, min(piece, end - k), panels,
                           panel + done * width, width, c, k, origin + following * piece,
                           next_panel + done * pace, pace)


@jit
def _transform_tile(x, shape, steps, n, i, j, size, cut, square, out, tile, span, piece):
    """B^T d B for all channels of the tile whose first pixel is (i, j); it may lie half outside."""
    _, C, H, W = shape
    picture, row, pixel = steps
    first = n * picture + i * row + j * pixel
    if i < 0 or j < 0 or i + size > H or j + size > W or C % lanes(x) > 0:
        # A copy with zeros around: at the border, and where channels are not whole vectors.
        step = (C + lanes(x) - 1) // lanes(x) * lanes(x)
        for a in range(size):
            for b in range(size):
                inside = 0 <= i + a < H and 0 <= j + b < W
                for c in range(0, C, lanes(x)):
                    have = min(lanes(x), C - c) if inside else 0
                    store(cut, (a * size + b) * step + c,
                          masked_load(x, first + a * row + b * pixel + c, have))
        x, first, row, pixel = cut, 0, size * step, step
    for c in range(0, C, piece):
        transform_pixels(x, first + c, row, pixel, min(piece, C - c), size, square, out,
                         c * size * size * span + tile * piece, span * piece)


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
                    masked_store(out, start + (a * Wo + b) * pixel,
                                 load(edge, a * down + b * right), have)
