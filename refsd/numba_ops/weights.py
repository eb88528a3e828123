"""Weights as kernels read them: the outputs side by side in memory.

A weight (O, I) or (O, I, kH, kW) is the right matrix of a product: its rows are (kH, kW, I), its
columns the outputs. `lay_out` gives an array of the same shape and numbers whose memory is that
matrix, row after row. It is an ordinary NumPy array: who loads weights that way (a pipeline does)
needs no second copy of them for the kernels. Of any other array kernels keep such a copy.
"""

import math

import numpy as np
from numba import prange

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import bounds, flat, panel_width, prepared
from refsd.numba_ops.simd import WIDTH, lanes
from refsd.numba_ops.tile import VECTORS


def row_step(outputs: int, dtype: np.dtype) -> int:
    """Elements from one row to the next: whole panels, and an odd number of them.

    Rows an even number of panels apart would compete for few sets of the caches.
    """
    width = panel_width(dtype)
    return (-(-outputs // width) | 1) * width


def lay_out(weight: np.ndarray) -> np.ndarray:
    """The same weight (O, ...) with its outputs adjacent in memory, zeros filling up the rows."""
    O, I, *taps = weight.shape
    step = row_step(O, weight.dtype)
    size = math.prod((*taps, I)) * step
    # Tiles read whole panels, those of a group from any column on: up to one beyond the last row.
    memory = _lasting(size + panel_width(weight.dtype), weight.dtype)
    rows = memory[:size].reshape(*taps, I, step)
    rows[..., O:] = memory[size:] = 0
    result = np.moveaxis(rows[..., :O], (-1, -2), (0, 1))
    if weight.flags.c_contiguous and weight.flags.aligned and weight.size:
        _turn(flat(weight), O, I, math.prod(taps), step, memory)
    else:
        result[...] = weight
    if not weight.flags.writeable:
        result.flags.writeable = memory.flags.writeable = memory.base.flags.writeable = False
    return result


def _lasting(size, dtype):
    """Aligned memory that is not of the pool for results: weights stay as long as their model."""
    raw = np.empty(size * dtype.itemsize + WIDTH, np.uint8)
    start = -raw.ctypes.data % WIDTH
    return raw[start:start + size * dtype.itemsize].view(dtype)


@jit(parallel=True)
def _turn(weight, O, I, taps, step, out):
    """out[(tap I + i) step + o] = weight[(o I + i) taps + tap], a panel of outputs a task"""
    width = VECTORS * lanes(out)
    for panel in prange((O + width - 1) // width):
        first = np.int64(panel) * width
        count = min(width, O - first)
        for i in range(I):
            for tap in range(taps):
                at, to = (first * I + i) * taps + tap, (tap * I + i) * step + first
                for o in range(count):
                    out[to + o] = weight[at + o * I * taps]


def columns(weight: np.ndarray) -> tuple[np.ndarray, int]:
    """The memory of a weight that is laid out, or of a kept copy that is, and its rows' step."""
    if not is_laid_out(weight):
        weight = prepared(weight, "outputs adjacent", lay_out)
    return flat(weight), row_step(len(weight), weight.dtype)


def is_laid_out(weight: np.ndarray) -> bool:
    """Whether kernels can read the weight where it lies."""
    O, I, *taps = weight.shape
    step = row_step(O, weight.dtype)
    strides, wanted = [1, step], step * I
    for n in reversed(taps):
        strides.insert(2, wanted)
        wanted *= n
    start, (_, end) = weight.__array_interface__["data"][0], bounds(weight)
    room = (math.prod((*taps, I)) * step + panel_width(weight.dtype)) * weight.itemsize
    return start % WIDTH == 0 and start + room <= end and all(
        n == 1 or s == t * weight.itemsize
        for n, s, t in zip(weight.shape, weight.strides, strides))


def lay_out_all(tensors: dict[str, np.ndarray]) -> None:
    """Lay out all matrices and convolution kernels of a checkpoint in place, one after the other.

    Tables of embeddings stay: their rows are looked up, not multiplied.
    """
    for name in list(tensors):
        if tensors[name].ndim in (2, 4) and "embeddings" not in name.split("."):
            tensors[name] = lay_out(tensors[name])
