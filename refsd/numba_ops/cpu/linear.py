"""Matrix products: tiles of 14 x 32 sums in registers over weights whose outputs are adjacent."""

import math

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import even_pieces
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, empty, fill_up, panel_width
from refsd.numba_ops.simd import lanes, load, masked_store, pointer
from refsd.numba_ops.tile import ROWS, VECTORS, tile_onto
from refsd.numba_ops.weights import columns, pack, row_step
from refsd.registry import kernel

# Tiles of a task: a panel is read from memory once for all of them.
MOST_TILES = 40
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
        right = pack(b[place].T)
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
    tiles, panels = -(-M // ROWS), -(-N // panel_width(x.dtype))
    # No result depends on these sizes: they keep the caches full and the threads busy.
    blocks, parts = _shares(tiles, panels, numba.get_num_threads())
    piece = even_pieces(K)
    slices = -(-K // DEPTH)
    depth = -(-K // (slices * piece)) * piece
    _multiply(rows, step, M, K, piece, depth, right, right_step, bias, y.reshape(-1), N, blocks,
              parts)


def _shares(tiles, panels, threads):
    """Into how many blocks of tiles and parts of panels to cut: a multiple of the threads."""
    blocks = max(-(-tiles // MOST_TILES), min(tiles, -(-threads // panels)))
    return blocks, min(panels, threads // math.gcd(blocks, threads))


@jit(parallel=True)
def _multiply(a, step, rows, K, piece, depth, right, right_step, bias, out, columns, blocks, parts):
    """out (rows, columns) = a B + bias. A task is a block of tiles by a part of the panels.

    Each panel passes in slices of `depth` rows, and each slice in pieces that are summed in
    registers: the second cache keeps the slice for all tiles, the first one the piece's rows.
    """
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    tiles = (rows + ROWS - 1) // ROWS
    for task in prange(blocks * parts):
        block, part = np.int64(task) // parts, np.int64(task) % parts
        low, high = block * tiles // blocks, (block + 1) * tiles // blocks
        sums = np.empty((high - low) * ROWS * width, out.dtype)
        for p in range(part * count // parts, (part + 1) * count // parts):
            for k in range(0, K, depth):
                after = k + depth if k + depth < K else 0
                next_slice = (p if after else p + 1) * width + after * right_step
                _add_slice(a, step, rows, low, high, k, min(k + depth, K), K, piece, right,
                           right_step, p * width, next_slice, bias, sums, out, columns)


@jit
def _add_slice(a, step, rows, low, high, first, last, K, piece, right, right_step, column,
               next_slice, bias, sums, out, columns):
    """Add products first .. last - 1 to the sums of tiles low .. high - 1 and one panel.

    The first piece is added to the bias; with the last one a tile that is wanted whole goes to out.
    """
    width = VECTORS * lanes(sums)
    share = last - first
    whole = rows >= ROWS and column + width <= columns
    for t in range(low, high):
        # The last tile reaches back over rows of the one before, and gives them the same numbers.
        start = max(0, min(t * ROWS, rows - ROWS))
        place = (t - low if share < K else 0) * ROWS * width
        # Fetch the next rows, and of the next slice the part that makes it whole in time.
        next_rows = (start + ROWS if t + 1 < high else low * ROWS) * step + first
        done, pace = share * (t - low) // (high - low), width // (high - low) + 1
        before, before_at, before_step = pointer(sums, 0), place, width
        if first == 0:
            before, before_at, before_step = pointer(bias, 0), column, 0
        for k in range(first, last, piece):
            to, to_at, to_step = pointer(sums, 0), place, width
            if whole and k + piece >= K:
                to, to_at, to_step = pointer(out, 0), start * columns + column, columns
            ahead = next_slice + (done + (k - first) * pace // width) * right_step
            tile_onto(a, start * step + k, step, min(piece, last - k), right,
                      column + k * right_step, right_step, before, before_at, before_step,
                      to, to_at, to_step, next_rows + (k - first) * ROWS, ahead, pace)
            before, before_at, before_step = to, to_at, to_step
        if last == K and not whole:
            for i in range(min(ROWS, rows - start)):
                _store_some(sums, place + i * width, out, (start + i) * columns + column,
                            min(width, columns - column))


@jit
def _store_some(x, at, out, out_at, count):
    """out[out_at : out_at + count] = x[at : at + count]"""
    size = lanes(x)
    for j in range(0, count, size):
        masked_store(out, out_at + j, load(x, at + j), min(size, count - j))
