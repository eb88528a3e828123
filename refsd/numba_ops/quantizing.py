"""int8 of a weight that was read: rounded as it is laid out, with the bits of refsd.quantized.

Two passes over its numbers: one finds the largest of each output, one rounds and transposes.
"""

import math
from collections.abc import Callable

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np
from numba import prange

from refsd.half import as_dtype
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import flat
from refsd.numba_ops.packing import gather, next_row
from refsd.numba_ops.simd import (
    absolute,
    lanes,
    load,
    masked_load,
    masked_store,
    maximum,
    reduce_max,
    rint,
)
from refsd.numba_ops.tile import VECTORS
from refsd.quantized import AsRead, in_range, scale_of


def quantized(weight: AsRead, room: Callable) -> tuple[np.ndarray, np.ndarray] | None:
    """Of (O, I, *taps): its int8 values in memory (*taps, I, O), and their scale.

    None if int8 cannot stand for it. The memory is what room(elements, dtype) gives.
    """
    O, I, *taps = weight.shape
    values, largest = flat(weight.values), np.empty(O, np.float32)
    _find_largest(values, O, values.size // O, largest)
    # of numbers that are rounded first; what was larger is not smaller then
    largest = as_dtype(as_dtype(largest, weight.dtype), np.float32)
    if not in_range(largest):
        return None
    scale, rows = scale_of(largest), room(values.size, np.int8)
    _round(values, scale, O, I, math.prod(taps), flat(np.empty(0, weight.dtype)), rows)
    return rows.reshape(*taps, I, O), scale


@jit(parallel=True)
def _find_largest(weight, O, K, largest):
    """The largest magnitude of each row (O, K); NaN if it has one"""
    for o in prange(O):
        first, size = np.int64(o) * K, lanes(weight)
        found = absolute(masked_load(weight, first, min(K, size)))
        for k in range(0, K - size + 1, size):
            found = maximum(found, absolute(load(weight, first + k)))
        if size < K:
            found = maximum(found, absolute(load(weight, first + K - size)))
        largest[o] = reduce_max(found)


@jit(parallel=True)
def _round(weight, scale, O, I, taps, like, out):
    """out[(tap I + i) O + o] = rint(weight[(o I + i) taps + tap], rounded as like's, / scale[o])"""
    width = VECTORS * lanes(out)
    for panel in prange((O + width - 1) // width):
        _round_panel(weight, scale, O, I, taps, like, out, np.int64(panel) * width)


@jit
def _round_panel(weight, scale, O, I, taps, like, out, low):
    size, K = lanes(out), I * taps
    width = VECTORS * size
    panel = np.empty(size * width, like.dtype)
    count, at, tap = min(width, O - low), low, 0
    for k in range(0, K, size):
        wide = min(size, K - k)
        gather(weight, low, k, K, count, wide, size, panel)
        for j in range(wide):
            for first in range(0, count, size):
                divisor = masked_load(scale, low + first, count - first)
                masked_store(out, at + first, rint(load(panel, j * width + first) / divisor),
                             count - first)
            at, tap = next_row(at, tap, I, taps, O)
