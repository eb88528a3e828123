"""Weights as kernels read them: output channels innermost in memory.

A weight (O, I) or (O, I, kH, kW) is the right matrix of a product: its rows are (kH, kW, I), its
columns the outputs. `pack_weight` gives an array of the same shape and values whose memory is that
matrix, row after row. It is an ordinary NumPy array: who loads weights that way (a pipeline does)
needs no second copy of them for the kernels. Of any other weight kernels make such a copy: of a
leaf (refsd.leaf) once, of an array, which may be written to, in every call. Quantized leaves
(refsd.quantized) hold their values so, without gaps: panels.py says how they are read.
"""

import logging
import math
from collections.abc import Callable

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np

from refsd.half import is_half
from refsd.leaf import Weight, is_multiplied, seal
from refsd.numba_ops.memory import (
    address_range,
    aligned_empty,
    count_copy,
    empty_from_pool,
    flat,
    panel_width,
)
from refsd.numba_ops.packing import turn
from refsd.numba_ops.pool import LEAST
from refsd.numba_ops.quantizing import quantized
from refsd.numba_ops.simd import WIDTH
from refsd.quantized import AsRead, Quantized

logger = logging.getLogger(__name__)
_logged = False  # the one line on weights that are repacked in every call


def row_step(outputs: int, dtype: np.dtype) -> int:
    """Elements from one row to the next: whole panels, and an odd number of them.

    Rows an even number of panels apart would compete for few sets of the caches.
    """
    width = panel_width(dtype)
    return (-(-outputs // width) | 1) * width


def _lasting(size, dtype):
    """Aligned memory that is not of the pool for results: weights stay as long as their model."""
    raw = np.empty(size * dtype.itemsize + WIDTH, np.uint8)
    start = -raw.ctypes.data % WIDTH
    return raw[start:start + size * dtype.itemsize].view(dtype)


def pack_weight(weight: np.ndarray, room: Callable = _lasting,
                dtype: np.dtype | None = None) -> np.ndarray:
    """The same weight (O, ...) with its outputs adjacent in memory, zeros filling up the rows.

    Changes of it in place take effect at once; of a read-only one it is sealed. With a dtype it is
    rounded to that, if `_converts` says that it can be.
    """
    O, I, *taps = weight.shape
    memory = pack(weight, room, dtype)
    if not weight.flags.writeable:
        memory = seal(memory)
    return _as_weight(memory, O, I, taps)


def pack(weight: np.ndarray, room: Callable = aligned_empty,
         dtype: np.dtype | None = None) -> np.ndarray:
    """The memory of a packed weight, in what room(elements, dtype) gives."""
    O, I, *taps = weight.shape
    dtype = weight.dtype if dtype is None else dtype
    size, step = math.prod((*taps, I)) * row_step(O, dtype), row_step(O, dtype)
    # Tiles read whole panels, those of a group from any column on: up to one beyond the last row.
    memory = room(size + panel_width(dtype), dtype)
    if _lies_in_order(weight):
        turn(weight, memory, O, I, taps, step)
    else:
        _as_weight(memory, O, I, taps)[...] = weight
    memory[:size].reshape(-1, step)[:, O:] = memory[size:] = 0
    return memory


def _lies_in_order(values):
    return values.flags.c_contiguous and values.flags.aligned and values.size > 0


def _converts(values, dtype):
    """Whether packing an array can round it to a dtype as refsd.half does: all but float64."""
    return _lies_in_order(values) and all(
        kind == np.float32 or is_half(kind) for kind in (values.dtype, dtype))


def _as_weight(memory, O, I, taps):
    """(O, I, *taps), seen in memory (*taps, I, step)"""
    step = row_step(O, memory.dtype)
    rows = memory[:math.prod((*taps, I)) * step].reshape(*taps, I, step)
    return np.moveaxis(rows[..., :O], (-1, -2), (0, 1))


def columns(weight: np.ndarray | Weight) -> tuple[np.ndarray, int]:
    """The memory of a packed weight, or of a packed copy, and its rows' step.

    A copy is kept on a leaf, and counted; of an array the first large one is logged. Of a quantized
    leaf nothing is kept: kernels that call this compute little with it.
    """
    step = row_step(weight.shape[0], weight.dtype)
    if isinstance(weight, Quantized):
        return _columns(weight.dense(), aligned_empty), step
    if isinstance(weight, Weight):
        return weight.prepared("columns", (), lambda array: _columns(array, _lasting)), step
    return _columns(weight, aligned_empty), step


def _columns(weight, room):
    global _logged
    if is_packed(weight):
        return flat(weight)
    count_copy()
    if room is not _lasting and not _logged and weight.nbytes >= LEAST:
        _logged = True
        logger.warning(
            "a weight %s is repacked for the kernels in every call, as are all others that could "
            "be written to: refsd.numba_ops.weights.pack_weight(weight) does it once",
            weight.shape)
    return flat(pack(weight, room))


def is_packed(weight: np.ndarray) -> bool:
    """Whether kernels can read the weight where it lies."""
    O, I, *taps = weight.shape
    step = row_step(O, weight.dtype)
    strides, wanted = [1, step], step * I
    for n in reversed(taps):
        strides.insert(2, wanted)
        wanted *= n
    start, (_, end) = weight.__array_interface__["data"][0], address_range(weight)
    room = (math.prod((*taps, I)) * step + panel_width(weight.dtype)) * weight.itemsize
    return start % WIDTH == 0 and start + room <= end and all(
        n == 1 or s == t * weight.itemsize
        for n, s, t in zip(weight.shape, weight.strides, strides))


def outputs_innermost(weight):
    """(O, I, *taps) -> (*taps, I, O)"""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def _outputs_outermost(rows):
    """(*taps, I, O) -> (O, I, *taps)"""
    return np.moveaxis(rows, (-1, -2), (0, 1))


def pack_all(tensors: dict[str, Weight], *, passing: bool = False) -> None:
    """Pack all matrices and convolution kernels of a checkpoint in place, one after the other.

    Tables of embeddings stay: their rows are looked up, not multiplied. Of what is `passing` the
    memory is the pool's for results.
    """
    room = empty_from_pool if passing else _lasting
    for name, weight in tensors.items():
        if is_multiplied(name, weight.shape):
            tensors[name] = _packed(weight, room)


def _packed(weight, room):
    if isinstance(weight, AsRead):
        if not _converts(weight.values, weight.dtype):
            return _packed(weight.made(), room)
        found = None if weight.kind is None else quantized(weight, room)
        if found is None:
            return Weight(pack_weight(weight.values, room, weight.dtype), weight.name)
        rows, scale = found
        return weight.kind(_outputs_outermost(seal(rows)), scale, weight.dtype, weight.name)
    if isinstance(weight, Quantized):
        values = _outputs_adjacent(weight.values, room)
        return type(weight)(values, weight.scale, weight.dtype, weight.name)
    return Weight(pack_weight(weight.dense(), room), weight.name)


def _outputs_adjacent(values, room):
    """(O, I, *taps), without gaps in memory (*taps, I, O), sealed"""
    O, I, *taps = values.shape
    if not _lies_in_order(values):
        rows = np.ascontiguousarray(outputs_innermost(values))
    else:
        memory = room(values.size, values.dtype)
        turn(values, memory, O, I, taps, O)
        rows = memory.reshape(*taps, I, O)
    return _outputs_outermost(seal(rows))
