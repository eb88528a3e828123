"""Panels of the right matrix of a product, (rows, NR), from weights as they are held.

Weights of the dtype that is computed in lie as tiles read them (weights.py): a panel is an address
and the step between its rows. Smaller ones (refsd.quantized) are packed into a thread's room, a
panel's rows at a time, right before tiles multiply them: values * scale, rounded as `dense()` is.

A right matrix is (memory, step, form, scale): bytes whose rows lie `step` elements apart, what
their elements are, and a factor for each output, which is 1 for halves.
"""

import functools
from weakref import WeakKeyDictionary

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from refsd.half import HALVES, is_half
from refsd.leaf import Weight
from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import STRUCTURES, aligned_empty, count_copy, flat, panel_width
from refsd.numba_ops.simd import lanes, pointer, prefetch, store
from refsd.numba_ops.tile import VECTORS
from refsd.numba_ops.vector import Elements, Vector, first_lanes
from refsd.numba_ops.weights import columns, outputs_innermost
from refsd.quantized import Quantized

OWN, INT8, BFLOAT16, FLOAT16 = range(4)  # forms of elements; OWN is the dtype computed in
_INT8, _BFLOAT16, _FLOAT16 = np.dtype(np.int8), STRUCTURES["bfloat16"], STRUCTURES["float16"]
AHEAD = 8  # rows that are prefetched: they lie too far apart for the hardware to follow
_NO_SCALE = np.empty(0, np.float32)
_known: WeakKeyDictionary = WeakKeyDictionary()  # identity of a small leaf: its matrix


def right_matrix(weight: np.ndarray | Weight) -> tuple[np.ndarray, int, int, np.ndarray]:
    """The matrix that a weight (O, I) or (O, I, kH, kW) is to kernels."""
    form = _form(weight)
    if form == OWN:
        return own_matrix(*columns(weight))
    known = _known.get(weight.identity)
    if known is None:
        known = _known[weight.identity] = _small_matrix(weight, form)
    return known


def _small_matrix(weight, form):
    rows = outputs_innermost(weight.values)
    if not rows.flags.c_contiguous:
        rows = weight.prepared("columns", (), lambda _: _copied(rows))
    scale = np.ones(len(weight), np.float32) if weight.scale is None else flat(weight.scale)
    return flat(rows).view(np.uint8), len(weight), form, scale


def _copied(rows):
    count_copy()
    return np.ascontiguousarray(rows)


def own_matrix(memory: np.ndarray, step: int) -> tuple[np.ndarray, int, int, np.ndarray]:
    """The same of what weights.columns gives."""
    return memory.view(np.uint8), step, OWN, _NO_SCALE


def _form(weight):
    """How kernels read a weight."""
    if not isinstance(weight, Quantized) or 0 in weight.shape:
        return OWN
    if weight.values.dtype == np.int8 and weight.scale is not None:
        return INT8
    if is_half(weight.values.dtype) and weight.scale is None:
        return BFLOAT16 if weight.values.dtype == HALVES["bfloat16"] else FLOAT16
    return OWN


def rooms_for(right: tuple, rows: int, dtype: np.dtype) -> np.ndarray:
    """For each thread, room for so many rows of a panel, if it is to be packed."""
    if right[2] == OWN:
        return _no_rooms(dtype)
    return flat(aligned_empty(numba.get_num_threads() * rows * panel_width(dtype), dtype))


@functools.cache
def _no_rooms(dtype):
    return flat(np.empty(0, dtype))


@jit
def is_small(right):
    """Whether panels are packed, each into the same room."""
    return right[2] != OWN


@jit
def room_of_thread(rooms, rows):
    """The address of this thread's."""
    return pointer(rooms, numba.get_thread_id() * rows * VECTORS * lanes(rooms))


@jit
def panel_of(right, row, rows, column, room):
    """The address of rows from `row` on, of the outputs from `column` on, and the rows' step."""
    if right[2] == OWN:
        return pointer(_elements(right[0], room), row * right[1] + column), right[1]
    pack_panel(right, row, rows, column, room)
    return room, VECTORS * lanes(room)


@jit
def pack_panel(right, row, rows, column, room):
    """room (rows, NR) = values * scale, and zeros behind the last output"""
    memory, step, form, scale = right
    at = row * step + column
    if form == INT8:
        _scale_rows(_elements(memory, _INT8), at, step, scale, column, rows, room)
    elif form == BFLOAT16:
        _scale_rows(_elements(memory, _BFLOAT16), at, step, scale, column, rows, room)
    else:
        _scale_rows(_elements(memory, _FLOAT16), at, step, scale, column, rows, room)


@jit
def _scale_rows(values, at, step, scale, column, rows, room):
    width, have = VECTORS * lanes(room), scale.size - column
    factors = _load_some(scale, column, room, have)
    for r in range(rows):
        source = at + r * step
        prefetch(values, source + AHEAD * step)
        if have >= width:
            store(room, r * width, _load_row(values, source, room) * factors)
        else:
            store(room, r * width, _load_some(values, source, room, have) * factors)


@intrinsic
def _load_row(typing, values, i, room):
    """NR values from values[i] on, as vectors of what the room's are in registers."""
    vector, emit = _loading(values, room)
    return vector(values, types.intp, room), emit


@intrinsic
def _load_some(typing, values, i, room, n):
    """The first n of them, the others 0. Nothing beyond is touched."""
    vector, emit = _loading(values, room)
    return vector(values, types.intp, room, types.intp), emit


def _loading(values, room):
    vector = Vector(room.dtype, VECTORS * Vector(room.dtype).count)
    elements = Elements(values.dtype, vector.count)

    def emit(context, builder, signature, arguments):
        data, i, _, *n = arguments
        if isinstance(values, types.Array):
            data = context.make_array(values)(context, builder, data).data
        mask = first_lanes(builder, *n, vector.count) if n else None
        value = elements.load(builder, elements.address(builder, data, i), mask)
        return value if value.type == vector.llvm else builder.fpext(value, vector.llvm)

    return vector, emit


@intrinsic
def _elements(typing, memory, like):
    """The address that bytes begin at, as of an array like another one, or of a dtype."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.bitcast(data, context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(memory, like), emit
