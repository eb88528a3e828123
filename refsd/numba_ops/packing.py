"""Weights (O, I, *taps) in memory (*taps, I, O), converted on the way: what packing them is.

Reading is of a row for each output and writing of a row for each number, thousands of bytes apart:
the rows that come next are prefetched, and whole lines are written past the caches, else each would
be read before.
"""

import math
from collections.abc import Sequence

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_bits, flat, panel_width
from refsd.numba_ops.simd import (
    WIDTH,
    elements_at,
    lanes,
    load,
    load_pair,
    masked_store,
    prefetch,
    scratch,
)
from refsd.numba_ops.tile import VECTORS
from refsd.numba_ops.transpose import transpose

AHEAD = 6  # squares that are prefetched
LARGE = 2**18  # bytes of a packed weight that would drive others out of a second-level cache


def turn(values: np.ndarray, memory: np.ndarray, O: int, I: int, taps: Sequence[int],
         step: int) -> None:
    """memory[(tap I + i) step + o] = values[o, i, tap], which lie in order, rounded to its dtype.

    Large ones, of whole panels, are written past the caches.
    """
    width = panel_width(memory.dtype)
    past = step % width == 0 and width * memory.itemsize >= WIDTH and memory.nbytes >= LARGE
    _turn(*_moved(values, memory), O, I, math.prod(taps), step, past)


@jit(parallel=True)
def _turn(weight, out, O, I, taps, step, past):
    """A panel of outputs a task"""
    width = VECTORS * lanes(out)
    for panel in prange((O + width - 1) // width):
        low = np.int64(panel) * width
        _turn_panel(weight, O, I, taps, step, out, low, past and low + width <= O)
        if past:
            wait_for_stores()


@jit
def _turn_panel(weight, O, I, taps, step, out, low, past):
    """Squares of a vector's outputs by as many of their numbers are transposed in registers."""
    size, K = lanes(out), I * taps
    width = VECTORS * size
    panel = scratch(size * width, out)
    count, at, tap = min(width, O - low), low, 0
    for k in range(0, K, size):
        wide = min(size, K - k)
        gather(weight, low, k, K, count, wide, size, panel)
        for j in range(wide):
            if past:
                store_past_caches(out, at, load_pair(panel, j * width))
            else:
                for first in range(0, count, size):
                    masked_store(out, at + first, load(panel, j * width + first), count - first)
            at, tap = next_row(at, tap, I, taps, step)


@jit
def gather(weight, low, k, K, count, wide, size, panel):
    """panel's row j: number k + j < k + wide of `count` outputs from `low` on, of K numbers each.

    Outputs lie too far apart for the hardware to follow, so what comes next is prefetched.
    """
    for first in range(0, count, size):
        at, few = (low + first) * K + k, min(size, count - first)
        for row in range(few):
            prefetch(weight, at + AHEAD * size + row * K)
        transpose(weight, at, K, few, wide, panel, first, VECTORS * size)


@jit
def next_row(at, tap, I, taps, step):
    """Where the number goes that follows on one of tap `tap` at `at`, and its tap."""
    if tap + 1 < taps:
        return at + I * step, tap + 1
    return at - (taps - 1) * I * step + step, 0


def _moved(values, memory):
    """Flat memory to copy from and to: halves are converted only if their type changes."""
    source, target = flat(values), flat(memory)
    return (as_bits(source), as_bits(target)) if source.dtype == target.dtype else (source, target)


@intrinsic
def store_past_caches(typing, a, i, x):
    """a[i : i + lanes] = x, at an address of whole vectors, for what is not read soon.

    Nothing is read before it is overwritten, and nothing is driven out. `wait_for_stores` before
    others read it.
    """

    def emit(context, builder, signature, arguments):
        array, index, value = arguments
        elements, address = elements_at(context, builder, signature.args[0], array, index, x)
        written = elements.store(builder, value, address)
        written.align = min(WIDTH, x.count * elements.size)
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        written.set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return types.void(a, types.intp, x), emit


@intrinsic
def wait_for_stores(typing):
    """Until what this thread has stored past the caches is there for others."""

    def emit(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit
