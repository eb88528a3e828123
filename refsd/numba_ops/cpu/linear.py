"""Matrix products: tiles of 14 x 32 sums in registers over weights packed once."""

import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import ONE_SEGMENT, even_pieces
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, empty, fill_up, pack, prepared
from refsd.numba_ops.simd import lanes, load, store, store_first
from refsd.numba_ops.tile import ROWS, VECTORS, tile_ahead
from refsd.registry import kernel

# Elements of the left matrix that one task keeps in the second-level cache.
BLOCK = 2**17


@kernel("numba")
def linear(x, weight, bias=None):
    features, K = weight.shape
    panels = prepared(weight, "linear", lambda w: pack(w.T))
    y = empty((*x.shape[:-1], features), x.dtype)
    multiply_rows(x, panels, fill_up(bias, features, x.dtype), y.reshape(-1, features))
    return y


@kernel("numba")
def matmul(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    zeros = fill_up(None, b.shape[-1], y.dtype)
    for place in np.ndindex(batch):
        multiply_rows(a[place], pack(b[place]), zeros, y[place])
    return y


def multiply_rows(x, panels, bias, y):
    """y = x B + bias, B packed into panels.   x (..., K), y (M, N) of adjacent elements"""
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
    _multiply(rows, step, M, K, even_pieces(K), panels, bias, y.reshape(-1), N, ONE_SEGMENT)


@jit(parallel=True)
def _multiply(a, step, rows, depth, piece, panels, bias, out, columns, one):
    """out (rows, columns) = a B + bias, in tasks of a block of rows by all panels or a few."""
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    tiles = (rows + ROWS - 1) // ROWS
    tall = max(1, BLOCK // (depth * ROWS))
    blocks = (tiles + tall - 1) // tall
    # Few blocks of rows: split the panels too, so that there are tasks for every thread.
    parts = min(count, max(1, 16 // blocks))
    for task in prange(blocks * parts):
        block, part = np.int64(task) // parts, np.int64(task) % parts
        low, high = block * tall, min((block + 1) * tall, tiles)
        c = np.empty(ROWS * width, out.dtype)
        for p in range(part * count // parts, (part + 1) * count // parts):
            for t in range(low, high):
                # The last tile reaches back over rows of the one before, and leaves those alone.
                start = max(0, min(t * ROWS, rows - ROWS))
                # Fetch the next rows, and of the next panel the part that makes it whole in time.
                next_rows = start + ROWS if t + 1 < high else low * ROWS
                panel, share = p * depth * width, depth * width * (t - low) // (high - low)
                next_panel, pace = panel + depth * width + share, width // (high - low) + 1
                for k in range(0, depth, piece):
                    tile_ahead(a, start * step + k, step, one, min(piece, depth - k), panels,
                               panel + k * width, c, k, next_rows * step + k * ROWS,
                               next_panel + k * pace, pace)
                _finish(c, t * ROWS - start, min(ROWS, rows - start), bias, out, start, p * width,
                        columns)


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
