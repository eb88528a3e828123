"""Matrix products out (M, N) = a (M, K) B (K, N) + bias, blocked as in BLIS (Van Zee and van de
Geijn 2015): an MR x NR tile of sums in registers (tile.py), K in blocks of kc, B packed with its
output channels innermost (weights.py), NR of them a panel (panels.py).

What follows a product may be done to its sums before they are stored: an addend, or a gate, whose
panels are multiplied right after those that they gate.
"""

import math

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.activation import geglu
from refsd.numba_ops.cpu.endings import end_row, no_addend
from refsd.numba_ops.cpu.few import FEW, multiply_few
from refsd.numba_ops.cpu.pixels import even_kc
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, fill_up, flat, panel_width, zeros
from refsd.numba_ops.panels import is_small, own_matrix, panel_of, room_of_thread, rooms_for
from refsd.numba_ops.simd import lanes, pointer, scratch
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


def multiply_rows(x, right, bias, y, addend=None):
    """y = x B + bias, B a right matrix (panels.py), and + addend (M, N) if there is one.

    x (..., K), y (M, N) in C order
    """
    if y.size == 0:
        return
    if x.shape[-1] == 0:
        y[:] = bias[:y.shape[1]] if addend is None else bias[:y.shape[1]] + addend
        return
    addend, addend_step = (no_addend(y.dtype), 0) if addend is None else as_rows(addend)[::2]
    _multiply_rows(x, right, bias, addend, addend_step, 0, y)


def multiply_gated(x, right, bias, y):
    """y = h gelu(g), x B + bias = [h | g].   x (..., K), B (K, 2 N), y (M, N) in C order"""
    if y.size == 0:
        return
    if x.shape[-1] == 0:
        y[:] = geglu(bias[np.newaxis, :2 * y.shape[1]])
        return
    _multiply_rows(x, right, bias, no_addend(y.dtype), 0, y.shape[1], y)


def _multiply_rows(x, right, bias, addend, addend_step, gate, y):
    """gate: the column where the gate's outputs begin, 0 if there is none."""
    (M, N), K = y.shape, x.shape[-1]
    kc = even_kc(K)
    kc += kc % 2  # "dot" takes two at a time
    if M <= FEW:
        multiply_few(x, kc, right, bias, addend, addend_step, gate, y)
        return
    if M < ROWS:  # a tile reads ROWS rows: give it that many
        padded = zeros((ROWS, K), x.dtype)
        padded[:M] = x.reshape(M, K)
        x = padded
    rows, _, step = as_rows(x)
    tiles, panels = -(-M // ROWS), -(-N // panel_width(x.dtype))
    # No result depends on these sizes: they keep the caches full and the threads busy.
    row_blocks, column_parts = shares(tiles, panels, numba.get_num_threads())
    slices = -(-K // DEPTH)
    slice_depth = -(-K // (slices * kc)) * kc
    rooms = rooms_for(right, slice_depth, x.dtype)
    _multiply(rows, step, M, K, kc, slice_depth, right, rooms, bias, addend, addend_step, gate,
              flat(y), N, row_blocks, column_parts)


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


@jit
def column_of(panel, gate, width):
    """The first column of a panel in the order of multiplying: with a gate each is two, h and g."""
    return panel // 2 * width + panel % 2 * gate if gate else panel * width


@jit(parallel=True)
def _multiply(a, step, rows, K, kc, slice_depth, right, rooms, bias, addend, addend_step, gate, out,
              columns, row_blocks, column_parts):
    """out (rows, columns) = a B + bias, ended. A task: a block of MR tiles by a part of the panels.

    K is cut into slices of `slice_depth` rows of B, which the second-level cache keeps for all
    tiles of the task, and each slice into KC blocks, which are summed in registers and whose rows
    the first-level cache keeps. sums: (tiles, MR, NR), and with a gate as many again for its own.
    """
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    tiles = (rows + ROWS - 1) // ROWS
    of_each = 2 if gate else 1
    for task in prange(row_blocks * column_parts):
        low, high, first, end = share_of(task, tiles, count, row_blocks, column_parts)
        half = (high - low) * ROWS * width
        sums = scratch(of_each * half, out)
        room = room_of_thread(rooms, slice_depth)
        for p in range(first * of_each, end * of_each):
            column = column_of(p, gate, width)
            for k in range(0, K, slice_depth):
                last = min(k + slice_depth, K)
                here, right_step = panel_of(right, k, last - k, column, room)
                next_slice = slice_depth * right_step
                if last == K:
                    next_slice = column_of(p + 1, gate, width) - column - k * right_step
                if is_small(right):
                    next_slice = 0  # nothing else is in the room
                _add_slice(a, step, rows, low, high, k, last, K, kc, here, right_step, column,
                           next_slice, bias, sums, half, addend, addend_step, gate, out, columns)


@jit
def _add_slice(a, step, rows, low, high, first, last, K, kc, right, right_step, column, next_slice,
               bias, sums, half, addend, addend_step, gate, out, columns):
    """Add products first .. last - 1 to the sums of tiles low .. high - 1 and one panel.

    right: the panel from row `first` on; the next slice's lies next_slice further on. The first KC
    block is added to the bias; after the last one the sums are ended and rounded to out, but for
    those that wait for their gate. A gate's own begin at sums[half].
    """
    width = VECTORS * lanes(sums)
    share, gates = last - first, gate > 0 and column >= gate
    for t in range(low, high):
        # The last tile starts early, over rows of the one before, and gives them the same values.
        start = max(0, min(t * ROWS, rows - ROWS))
        hidden_at = (t - low if share < K or gate else 0) * ROWS * width
        sums_at = hidden_at + (half if gates else 0)
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
        if last == K and (gates or gate == 0):
            to = column - gate if gates else column
            for i in range(min(ROWS, rows - start)):
                end_row(sums, sums_at + i * width, hidden_at + i * width, gates, addend,
                        (start + i) * addend_step + to, out, (start + i) * columns + to,
                        min(width, columns - to))
