"""Matrix products out (M, N) = a (M, K) B (K, N) + bias, blocked as in BLIS (Van Zee and van de
Geijn 2015): an MR x NR tile of sums in registers (tile.py), K in blocks of kc, B packed with its
output channels innermost (weights.py), NR of them a panel (panels.py).
"""

import math

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.pixels import even_kc
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, fill_up, flat, panel_width, zeros
from refsd.numba_ops.panels import is_small, own_matrix, panel_of, room_of_thread, rooms_for
from refsd.numba_ops.simd import lanes, load, masked_store, pointer, scratch, store
from refsd.numba_ops.tile import ROWS, VECTORS, tile_onto
from refsd.numba_ops.weights import pack, row_step

# Tiles of a task: a panel is read from memory once for all of them.
MOST_TILES = 40
# Rows of a panel that stay in the second-level cache while all tiles of a task pass.
DEPTH = 1280


def multiply(a, b, y):
    """y = a b.   (M, K), (K, N) -> y (M, N) in C order"""
    right = own_matrix(flat(pack(b.T)), row_step(b.shape[-1], b.dtype))
    multiply_rows(a, right, fill_up(None, b.shape[-1], y.dtype), y)


def multiply_rows(x, right, bias, y):
    """y = x B + bias, B a right matrix (panels.py).   x (..., K), y (M, N) in C order"""
    M, N = y.shape
    K = x.shape[-1]
    if y.size == 0:
        return
    if K == 0:
        y[:] = bias[:N]
        return
    if M < ROWS:  # a tile reads ROWS rows: give it that many
        padded = zeros((ROWS, K), x.dtype)
        padded[:M] = x.reshape(M, K)
        x = padded
    rows, _, step = as_rows(x)
    tiles, panels = -(-M // ROWS), -(-N // panel_width(x.dtype))
    # No result depends on these sizes: they keep the caches full and the threads busy.
    row_blocks, column_parts = shares(tiles, panels, numba.get_num_threads())
    kc = even_kc(K)
    kc += kc % 2  # "dot" takes two at a time
    slices = -(-K // DEPTH)
    slice_depth = -(-K // (slices * kc)) * kc
    rooms = rooms_for(right, slice_depth, x.dtype)
    _multiply(rows, step, M, K, kc, slice_depth, right, rooms, bias, flat(y), N, row_blocks,
              column_parts)


def shares(tiles, panels, threads):
    """How many blocks of rows and parts of columns make the tasks: a multiple of the threads."""
    row_blocks = max(-(-tiles // MOST_TILES), min(tiles, -(-threads // panels)))
    return row_blocks, min(panels, threads // math.gcd(row_blocks, threads))


@jit
def share_of(task, tiles, panels, row_blocks, column_parts):
    """The first tile and the one after the last of a task, and the same of its panels."""
    block, part = np.int64(task) // column_parts, np.int64(task) % column_parts
    return (block * tiles // row_blocks, (block + 1) * tiles // row_blocks,
            part * panels // column_parts, (part + 1) * panels // column_parts)


@jit(parallel=True)
def _multiply(a, step, rows, K, kc, slice_depth, right, rooms, bias, out, columns, row_blocks,
              column_parts):
    """out (rows, columns) = a B + bias. A task is a block of MR tiles by a part of the panels.

    K is cut into slices of `slice_depth` rows of B, which the second-level cache keeps for all
    tiles of the task, and each slice into KC blocks, which are summed in registers and whose rows
    the first-level cache keeps. sums: (tiles, MR, NR).
    """
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    tiles = (rows + ROWS - 1) // ROWS
    for task in prange(row_blocks * column_parts):
        low, high, first, end = share_of(task, tiles, count, row_blocks, column_parts)
        sums = scratch((high - low) * ROWS * width, out)
        room = room_of_thread(rooms, slice_depth)
        for p in range(first, end):
            for k in range(0, K, slice_depth):
                last = min(k + slice_depth, K)
                here, right_step = panel_of(right, k, last - k, p * width, room)
                next_slice = slice_depth * right_step if last < K else width - k * right_step
                if is_small(right):
                    next_slice = 0  # nothing else is in the room
                _add_slice(a, step, rows, low, high, k, last, K, kc, here, right_step, p * width,
                           next_slice, bias, sums, out, columns)


@jit
def _add_slice(a, step, rows, low, high, first, last, K, kc, right, right_step, column,
               next_slice, bias, sums, out, columns):
    """Add products first .. last - 1 to the sums of tiles low .. high - 1 and one panel.

    right: the panel from row `first` on; the next slice's lies next_slice further on. The first KC
    block is added to the bias; after the last one the sums are rounded to out.
    """
    width = VECTORS * lanes(sums)
    share = last - first
    for t in range(low, high):
        # The last tile starts early, over rows of the one before, and gives them the same values.
        start = max(0, min(t * ROWS, rows - ROWS))
        sums_at = (t - low if share < K else 0) * ROWS * width
        # Prefetch the next rows, and this tile's share of the next slice.
        next_rows = (start + ROWS if t + 1 < high else low * ROWS) * step + first
        done, pace = share * (t - low) // (high - low), width // (high - low) + 1
        before, before_at, before_step = pointer(sums, 0), sums_at, width
        if first == 0:
            before, before_at, before_step = pointer(bias, 0), column, 0
        for k in range(first, last, kc):
            ahead = next_slice + (done + (k - first) * pace // width) * right_step
            tile_onto(a, start * step + k, step, min(kc, last - k), right,
                      (k - first) * right_step, right_step, before, before_at, before_step,
                      pointer(sums, sums_at), next_rows + (k - first) * ROWS, ahead, pace)
            before, before_at, before_step = pointer(sums, 0), sums_at, width
        if last == K:
            for i in range(min(ROWS, rows - start)):
                _store_some(sums, sums_at + i * width, out, (start + i) * columns + column,
                            min(width, columns - column))


@jit
def _store_some(x, at, out, out_at, count):
    """out[out_at : out_at + count] = x[at : at + count]"""
    size = lanes(x)
    for j in range(0, count, size):
        if count - j >= size:
            store(out, out_at + j, load(x, at + j))
        else:
            masked_store(out, out_at + j, load(x, at + j), count - j)
