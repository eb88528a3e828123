"""Products of few rows: one token, the times of two images. The weights' way from memory decides.

A tile of blocked.py would multiply rows of zeros, and read 128 bytes here and there. Here DEEP rows
of the right matrix are read side by side from end to end, and all sums wait in the first-level
cache. Each has the bits that the tiles give it: one chain a KC block, added to those before it.
"""

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.endings import end_row
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, flat, panel_width, zeros
from refsd.numba_ops.panels import is_small, panel_of, room_of_thread, rooms_for
from refsd.numba_ops.simd import lanes, load, pointer, prefetch, scratch, splat_like, store
from refsd.numba_ops.tile import FEW, VECTORS, add_chain, chain

DEEP = 8  # rows of the right matrix at a time: as many streams as the processor prefetches
PART = 2**18  # bytes of the right matrix that are worth a thread


def multiply_few(x, kc, right, bias, addend, addend_step, gate, y):
    """As blocked.multiply_rows and multiply_gated, for at most FEW rows."""
    (M, N), K = y.shape, x.shape[-1]
    rows = next(n for n in (1, 2, FEW) if n >= M)
    if rows > M:
        padded = zeros((rows, K), x.dtype)
        padded[:M] = x.reshape(M, K)
        x = padded
    memory, _, step = as_rows(x)
    panels = -(-N // panel_width(x.dtype))
    parts = min(panels, numba.get_num_threads(), -(-K * N * x.itemsize // PART))
    _multiply(memory, step, M, rows, K, kc, right, rooms_for(right, DEEP, x.dtype), bias, addend,
              addend_step, gate, flat(y), N, parts)


@jit(parallel=True)
def _multiply(a, step, M, rows, K, kc, right, rooms, bias, addend, addend_step, gate, out, columns,
              parts):
    """out (M, columns). A task is a part of the panels; with a gate also of its own."""
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    for task in prange(parts):
        part = np.int64(task)
        first, end = part * count // parts, (part + 1) * count // parts
        each = (end - first) * rows * width
        chains, sums = scratch(each, out), scratch(2 * each if gate else each, out)
        room = room_of_thread(rooms, DEEP)
        _add_up(a, step, rows, K, kc, right, room, bias, first, end, 0, chains, pointer(sums, 0))
        if gate:
            _add_up(a, step, rows, K, kc, right, room, bias, first, end, gate, chains,
                    pointer(sums, each))
        for p in range(first, end):
            for i in range(M):
                at = ((p - first) * rows + i) * width
                end_row(sums, at + each if gate else at, at, gate > 0, addend,
                        i * addend_step + p * width, out, i * columns + p * width,
                        min(width, columns - p * width))


@jit
def _add_up(a, step, rows, K, kc, right, room, bias, first, end, gate, chains, sums):
    """sums (panels, rows, NR) = bias + a B for panels first .. end - 1, from column `gate` on"""
    width, size = VECTORS * lanes(chains), lanes(chains)
    tile, zero = rows * width, splat_like(load(bias, 0), 0.0)
    for p in range(first, end):
        for j in range(0, tile, size):
            store(sums, (p - first) * tile + j, load(bias, p * width + gate + j % width))
    for block in range(0, K, kc):
        last = min(block + kc, K)
        for j in range(0, (end - first) * tile, size):
            store(chains, j, zero)
        for k in range(block, last, DEEP):
            deep = min(DEEP, last - k)
            for p in range(first, end):
                here, right_step = panel_of(right, k, deep, p * width + gate, room)
                if not is_small(right):
                    for r in range(DEEP, 2 * DEEP):
                        for j in range(0, width, size):
                            prefetch(here, r * right_step + j)
                chain(rows, a, k, step, deep, here, right_step, chains, (p - first) * tile)
        for p in range(first, end):
            for i in range(rows):
                at = ((p - first) * rows + i) * width
                add_chain(a, room, chains, at, sums, at)
