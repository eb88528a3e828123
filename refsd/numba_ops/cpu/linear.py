"""Matrix products: tiles of 14 x 32 sums in registers over weights whose outputs are adjacent."""

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import ONE_SEGMENT, even_pieces
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, empty, fill_up, flat, panel_width
from refsd.numba_ops.simd import lanes, load, store, store_first
from refsd.numba_ops.tile import ROWS, VECTORS, tile_ahead
from refsd.numba_ops.weights import columns, lay_out, row_step
from refsd.registry import kernel

# Rows of a task: so many tiles, fewer where their elements would not stay in the caches.
MOST_TILES, BLOCK = 24, 2**19
# Rows of a panel that stay in the second-level cache while all tiles of a task pass.
DEPTH = 1280


@kernel("numba")
def linear(x, weight, bias=None):
    features = len(weight)
    y = empty((*x.shape[:-1], features), x.dtype)
    multiply_rows(x, *columns(weight), fill_up(bias, features, x.dtype), y.reshape(-1, features))
    return y


@kernel("numba")
def matmul(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    zeros = fill_up(None, b.shape[-1], y.dtype)
    for place in np.ndindex(batch):
        right = flat(lay_out(b[place].T))
        multiply_rows(a[place], right, row_step(b.shape[-1], b.dtype), zeros, y[place])
    return y


def multiply_rows(x, right, right_step, bias, y):
    """y = x B + bias, rows of B right_step apart in memory.   x (..., K), y (M, N) in C order"""
    M, N = y.shape
    K = x.shape[-1]
    if y.size == 0:
        return
    if K == 0:
        y[:] = bias[:N]
        return
    if M < ROWS:  # a tile reads ROWS rows: give it that many
        padded = np.zeros((ROWS, K), x.dtype)
        padded[:M] = x.reshape(M, K)
        x = padded
    rows, _, step = as_rows(x)
    # No result depends on these sizes: they keep the caches full and the threads busy.
    tiles, threads = -(-M // ROWS), numba.get_num_threads()
    blocks = -(-tiles // max(1, min(MOST_TILES, BLOCK // (K * ROWS))))
    tall = -(-tiles // (-(-blocks // threads) * threads))
    parts = max(1, min(-(-N // panel_width(x.dtype)), 8 * threads // -(-tiles // tall)))
    piece = even_pieces(K)
    _multiply(rows, step, M, K, piece, max(1, DEPTH // piece) * piece, right, right_step, bias,
              y.reshape(-1), N, ONE_SEGMENT, tall, parts)


@jit(parallel=True)
def _multiply(a, step, rows, K, piece, depth, right, right_step, bias, out, columns, one, tall,
              parts):
    """out (rows, columns) = a B + bias. A task is a block of `tall` tiles by a part of the panels.

    Each panel passes in slices of `depth` rows, and each slice in pieces that are summed in
    registers: the second cache keeps the slice for all tiles, the first one the piece's rows.
    """
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    tiles = (rows + ROWS - 1) // ROWS
    blocks = (tiles + tall - 1) // tall
    for task in prange(blocks * parts):
        block, part = np.int64(task) // parts, np.int64(task) % parts
        low, high = block * tall, min((block + 1) * tall, tiles)
        sums = np.empty(tall * ROWS * width, out.dtype)
        for p in range(part * count // parts, (part + 1) * count // parts):
            for k in range(0, K, depth):
                after = k + depth if k + depth < K else 0
                next_slice = (p if after else p + 1) * width + after * right_step
                _add_slice(a, step, rows, low, high, k, min(k + depth, K), piece, right,
                           right_step, p * width, next_slice, one, sums)
            for t in range(low, high):
                # The last tile reaches back over rows of the one before, and leaves those alone.
                start = max(0, min(t * ROWS, rows - ROWS))
                _finish(sums[(t - low) * ROWS * width:], t * ROWS - start, min(ROWS, rows - start),
                        bias, out, start, p * width, columns)


@jit
def _add_slice(a, step, rows, low, high, first, last, piece, right, right_step, column, next_slice,
               one, sums):
    """Tiles low .. high - 1 of sums = (first > 0: +=) columns first .. last - 1 of a by a panel"""
    width = VECTORS * lanes(sums)
    for t in range(low, high):
        start = max(0, min(t * ROWS, rows - ROWS))
        c = sums[(t - low) * ROWS * width:][:ROWS * width]
        # Fetch the next rows, and of the next slice the part that makes it whole in time.
        next_rows = (start + ROWS if t + 1 < high else low * ROWS) * step + first
        share, pace = (last - first) * (t - low) // (high - low), width // (high - low) + 1
        for k in range(first, last, piece):
            ahead = next_slice + (share + (k - first) * pace // width) * right_step
            tile_ahead(a, start * step + k, step, one, min(piece, last - k), right,
                       column + k * right_step, right_step, c, k, next_rows + (k - first) * ROWS,
                       ahead, pace)


@jit
def _finish(c, first, last, bias, out, row, column, columns):
    """Rows first .. last - 1 of a tile of sums, plus bias, to their place in out."""
    size = lanes(out)
    for i in range(first, last):
        for j in range(VECTORS):
            at, room = column + j * size, columns - column - j * size
            value = load(c, (i * VECTORS + j) * size) + load(bias, at)
            if room >= size:
                store(out, (row + i) * columns + at, value)
            elif room > 0:
                store_first(out, (row + i) * columns + at, value, room)
