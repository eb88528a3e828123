"""Winograd convolution, F(2x2, 3x3) and F(4x4, 3x3): y = A^T [(G g G^T) * (B^T d B)] A + bias.

A tile d of 4 x 4 (6 x 6) pixels gives 2 x 2 (4 x 4) outputs. The product * is a matrix product over
the channels for each of the 16 (36) positions in a tile, so that 4 (16) outputs cost 16 (36)
multiplications a channel instead of 36 (144). The symbols are those of Lavin and Gray 2016,
arXiv:1509.09308: d tile, g kernel, m the products that A^T m A turns into outputs; `spectra` are
B^T d B. docs/kernels-conv.md derives the error and shows the measurements.

An MR tile is `height` Winograd tiles times NR outputs, a KC block kc channels, an L3 block
`l3_tiles` tiles. Buffers, 1-D in memory, s counting the size^2 positions:

    spectra (KC blocks, s, l3_tiles, kc)          sums (threads, s, block, NR)
    panels (panels, s, C + 1, NR) of the whole layer, or (threads, s, kc + 1, NR)
    of a tile: padded (s, C up to whole vectors), half (s, lanes), edge (reach^2, lanes)
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import (
    ONE_SEGMENT,
    as_addend,
    as_pixels,
    sources,
    whole_kc,
)
from refsd.numba_ops.cpu.winograd_transforms import transform_pixels, transform_sums
from refsd.numba_ops.cpu.winograd_weights import FEW, transform_channels, transform_weights
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import computed_dtype, fill_up, flat, panel_width
from refsd.numba_ops.panels import right_matrix, rooms_for
from refsd.numba_ops.simd import lanes, load, masked_load, masked_store, scratch, store
from refsd.numba_ops.tile import VECTORS, rows_of_tiles, tile_ahead
from refsd.numba_ops.workspace import workspace

# One task multiplies up to so many MR tiles by one panel of weights: its 36 x 140 x 32 sums stay in
# the second-level cache until they are transformed back.
MOST_MR_TILES = 10
# All threads share the transformed tiles of one L3 block: 8 MB stay in the third-level cache.
L3_BLOCK_BYTES = 2**23


def winograd(x, weight, bias, y, size, padding, groups, addend, enlarged):
    """y = w * x + bias + addend from tiles of size x size.   x (N, C, H, W), y (N, H', W', O)

    x as it is `enlarged` to a height and a width.
    """
    features, channels = weight.shape[0] // groups, weight.shape[1]
    right = right_matrix(weight)
    rooms = rooms_for(right, 9 * FEW, x.dtype)
    for g in range(groups):
        ours, theirs = (slice(g * n, (g + 1) * n) for n in (features, channels))
        _one_group(x[:, theirs], right, rooms, ours.start, None if bias is None else bias[ours],
                   y[..., ours], size, padding, None if addend is None else addend[:, ours],
                   enlarged)


def _one_group(x, right, rooms, column, bias, y, size, padding, addend, enlarged):
    (N, C, _, _), (_, Ho, Wo, O) = x.shape, y.shape
    memory, *steps = as_pixels(x)
    corner = (-padding[0][0], -padding[1][0])
    kc, count, height, block, l3_tiles, shared, sizes = blocking(C, y.shape, size, x.dtype)
    bias = fill_up(bias, O, x.dtype)
    with workspace(computed_dtype(x.dtype), *sizes) as (spectra, sums, panels):
        if shared:
            transform_weights(right, C, column, count, size, rooms, panels)
        _compute(memory, (N, C, *enlarged), tuple(steps), sources(x, enlarged), corner, size, right,
                 rooms, column, shared, panels, count, kc, bias, as_addend(addend, x.dtype),
                 flat(y), (Ho, Wo, O), y.strides[2] // y.itemsize, spectra, l3_tiles, sums, block,
                 height, ONE_SEGMENT)


class Blocking(NamedTuple):
    """How a convolution is cut into pieces, and the elements of spectra, sums and panels.

    shared: whether all weights are transformed before, for more than one block of tiles.
    """

    kc: int
    panels: int
    height: int
    block: int
    l3_tiles: int
    shared: bool
    sizes: tuple[int, int, int]


def blocking(C: int, result: tuple, size: int, dtype: np.dtype) -> Blocking:
    """Of C channels into a result (N, H', W', O).

    No result depends on these sizes: they keep the caches full and the threads busy.
    """
    N, Ho, Wo, O = result
    positions, kc = size * size, whole_kc(C, lanes(dtype))
    tiles = N * -(-Ho // (size - 2)) * -(-Wo // (size - 2))
    threads, width = numba.get_num_threads(), panel_width(dtype)
    height = rows_of_tiles(tiles)
    mr_tiles, count = -(-tiles // height), -(-O // width)
    block = height * min(MOST_MR_TILES, mr_tiles, max(1, mr_tiles * count // (2 * threads)))
    channels = -(-C // kc) * kc
    fitting = L3_BLOCK_BYTES // (positions * channels * computed_dtype(dtype).itemsize * block)
    l3_tiles = block * min(-(-tiles // block), max(1, fitting, 2 * threads // count))
    # If one block holds all tiles, its tasks transform the weights for themselves, a KC block at a
    # time: they never leave the second-level cache. Else all are transformed before.
    shared = tiles > block
    made = count * positions * (C + 1) if shared else threads * positions * (kc + 1)
    return Blocking(kc, count, height, block, l3_tiles, shared, (
        positions * l3_tiles * channels, threads * positions * block * width, made * width))


@jit(parallel=True)
def _compute(x, shape, steps, sources, corner, size, right, rooms, column, shared, panels, count,
             kc, bias, addend, out, result, pixel, spectra, l3_tiles, sums, block, height, one):
    """L3 block after L3 block of tiles: transform all of them, then multiply and transform back."""
    down, across = (result[0] + size - 3) // (size - 2), (result[1] + size - 3) // (size - 2)
    tiles, width, C = shape[0] * down * across, VECTORS * lanes(out), shape[1]
    rows = (C if shared else kc) + 1
    for first in range(0, tiles, l3_tiles):
        here = min(l3_tiles, tiles - first)
        for mr_tile in prange((here + height - 1) // height):
            _transform_mr_tile(x, shape, steps, sources, corner, size, down, across, first, here,
                              np.int64(mr_tile) * height, height, spectra, l3_tiles, kc)
        blocks = (here + block - 1) // block
        for task in prange(blocks * count):
            panel, low = np.int64(task) // blocks, np.int64(task) % blocks * block
            high, room = min(low + block, here), size * size * block * width
            thread = numba.get_thread_id()
            mine, at = sums[thread * room:][:room], panel
            if not shared:
                at = np.int64(thread)
            part = C if shared else kc
            for k in range(0, C, part):
                start = at * size * size * rows * width
                if not shared:
                    transform_channels(right, C, column + panel * width, k, min(kc, C - k), size,
                                       rooms, panels, start, rows * width)
                _multiply(spectra, low, high, l3_tiles, panels, start, rows * width, size * size, k,
                          min(k + part, C), kc, one, mine, block, height)
            _finish_block(mine, block, size, down, across, first + low, first + high, bias,
                          addend, panel * width, out, result, pixel)


@jit
def _transform_mr_tile(x, shape, steps, sources, corner, size, down, across, first, here, low,
                       height, spectra, l3_tiles, kc):
    """B^T d B of tiles low .. low + height - 1 of an L3 block; zeros past its `here` tiles."""
    C, positions = shape[1], size * size
    half = scratch(positions * lanes(x), x)
    padded = scratch(positions * (C + lanes(x)), x)
    for k in range(low, low + height):
        if k < here:
            n, i, j = _position(first + k, down, across)
            i, j = i * (size - 2) + corner[0], j * (size - 2) + corner[1]
            _transform_tile(x, shape, steps, sources, n, i, j, size, padded, half, spectra, k,
                            l3_tiles, kc)
        else:
            for s in range(0, (C + kc - 1) // kc * positions):
                for c in range(0, kc, lanes(x)):
                    store(spectra, (s * l3_tiles + k) * kc + c, masked_load(x, 0, 0))


@jit
def _position(tile, down, across):
    """Image, row and column of a tile"""
    return tile // (down * across), tile // across % down, tile % across


@jit
def _multiply(spectra, low, high, l3_tiles, panels, at, panel_plane, positions, first, end, kc, one,
              sums, block, height):
    """For each position s in a tile: sums[s] (tiles, NR) = spectra[s] (tiles, C) panel[s] (C, NR)

    for channels first to end - 1, whose panels begin at `at`; added to what is there from the
    second KC block on.
    """
    width = VECTORS * lanes(sums)
    mr_tiles = (high - low + height - 1) // height
    for s in range(positions):
        panel = at + s * panel_plane
        for b in range(mr_tiles):
            c = sums[(s * block + b * height) * width:][:height * width]
            left = s * l3_tiles + low + b * height
            # Prefetch the next rows, and this MR tile's share of the next panel.
            following = left + height if b + 1 < mr_tiles else (s + 1) * l3_tiles + low
            next_panel = panel + panel_plane + (end - first) * b // mr_tiles * width
            pace = width // mr_tiles + 1
            for k in range(first, end, kc):
                origin, done = k * positions * l3_tiles, k - first
                tile_ahead(height, spectra, origin + left * kc, kc, one, min(kc, end - k), panels,
                           panel + done * width, width, c, k, origin + following * kc,
                           next_panel + done * pace, pace)


@jit
def _transform_tile(x, shape, steps, sources, n, i, j, size, padded, half, out, tile, l3_tiles, kc):
    """spectra = B^T d B of the tile d whose first pixel is (i, j); it may lie half outside."""
    (_, C, H, W), (rows, columns) = shape, sources
    image, row, pixel = steps
    first = n * image + i * row + j * pixel
    enlarged = rows.size > 0
    if enlarged or i < 0 or j < 0 or i + size > H or j + size > W or C % lanes(x) > 0:
        # A copy: with zeros around at the border, with pixels of x repeated where it is enlarged,
        # and where channels are not whole vectors.
        step = (C + lanes(x) - 1) // lanes(x) * lanes(x)
        for a in range(size):
            for b in range(size):
                inside = 0 <= i + a < H and 0 <= j + b < W
                at = first + a * row + b * pixel
                if inside and enlarged:
                    at = n * image + rows[i + a] * row + columns[j + b] * pixel
                for c in range(0, C, lanes(x)):
                    have = min(lanes(x), C - c) if inside else 0
                    store(padded, (a * size + b) * step + c, masked_load(x, at + c, have))
        _transform_copy(padded, 0, size * step, step, C, size, half, out, tile, l3_tiles, kc)
    else:
        _transform_copy(x, first, row, pixel, C, size, half, out, tile, l3_tiles, kc)


@jit
def _transform_copy(x, first, row, pixel, C, size, half, out, tile, l3_tiles, kc):
    """The same of a tile all of whose pixels are there, KC block by KC block"""
    for c in range(0, C, kc):
        transform_pixels(x, first + c, row, pixel, min(kc, C - c), size, half, out,
                         c * size * size * l3_tiles + tile * kc, l3_tiles * kc)


@jit
def _finish_block(sums, block, size, down, across, low, high, bias, addend, column, out, result,
                  pixel):
    """Tiles low .. high - 1 of all images, from the sums of one panel"""
    half = scratch(size * size * lanes(out), out)
    edge = scratch(size * size * lanes(out), out)
    width = VECTORS * lanes(out)
    for k in range(low, high):
        n, i, j = _position(k, down, across)
        i, j = i * (size - 2), j * (size - 2)
        _finish_tile(sums, (k - low) * width, block * width, size, half, edge, bias, addend,
                     column, out, n, i, j, result, pixel)


@jit
def _finish_tile(m, at, plane, size, half, edge, bias, addend, column, out, n, i, j, result, pixel):
    """y = A^T m A + bias + addend for one panel of outputs of one tile"""
    (Ho, Wo, O), (added, image, row, step) = result, addend
    reach, count = size - 2, lanes(out)
    for vector in range(VECTORS):
        o = column + vector * count
        have = min(count, O - o)
        if have <= 0:
            return
        start = ((n * Ho + i) * Wo + j) * pixel + o
        total = load(bias, o)
        if added.size == 0 and i + reach <= Ho and j + reach <= Wo and have == count:
            transform_sums(m, at + vector * count, plane, size, half, total, out, start,
                           Wo * pixel, pixel)
        else:
            transform_sums(m, at + vector * count, plane, size, half, total, edge, 0,
                           reach * count, count)
            for a in range(min(reach, Ho - i)):
                for b in range(min(reach, Wo - j)):
                    value = load(edge, (a * reach + b) * count)
                    if added.size > 0:
                        value = value + masked_load(
                            added, n * image + (i + a) * row + (j + b) * step + o, have)
                    masked_store(out, start + (a * Wo + b) * pixel, value, have)
