"""What the machine can do at most: multiply-adds in registers, and bytes to and from memory."""

import numba
import numpy as np
from numba import prange

from refsd import ops  # noqa: F401  kernels are declared for ops that must be there
from refsd.numba_ops.memory import aligned_empty, panel_width
from refsd.numba_ops.tile import ROWS, tile

# A tile of 14 x 128 by 128 x 32 float32 is 23 KB: it stays in a first cache of 32 KB.
DEPTH = 128
REPEATS = 50_000
COPY_BYTES = 2**28  # 256 MiB, more than the last cache of most machines


@numba.njit(parallel=True, error_model="numpy")
def _multiply(a, panel, one, c, depth, repeats, threads):
    """Every thread computes the same tile again and again, on data of its own."""
    for thread in prange(threads):
        t = np.int64(thread)
        for _ in range(repeats):
            tile(a[t], 0, depth, one, depth, panel[t], 0, c[t])


@numba.njit(parallel=True, error_model="numpy")
def _copy(source, target, pieces):
    size = source.size // pieces
    for piece in prange(pieces):
        start = np.int64(piece) * size
        target[start:start + size] = source[start:start + size]


def fma(threads):
    """A function that runs multiply-adds on `threads` cores, and how many FLOPs it runs."""
    width = panel_width(np.dtype("float32"))

    def rows(count):
        memory = aligned_empty(threads * count, "float32").reshape(threads, count)
        memory[:] = 1
        return memory

    a, panel, c = rows(ROWS * DEPTH), rows(DEPTH * width), rows(ROWS * width)
    one = np.zeros(1, "int64")
    flops = 2 * ROWS * width * DEPTH * REPEATS * threads
    return lambda: _multiply(a, panel, one, c, DEPTH, REPEATS, threads), flops


def copy(threads):
    """A function that copies COPY_BYTES with `threads` cores, and the bytes read and written."""
    source, target = np.ones(COPY_BYTES, "uint8"), np.zeros(COPY_BYTES, "uint8")
    return lambda: _copy(source, target, threads), 2 * COPY_BYTES
