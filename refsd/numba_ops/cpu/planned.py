"""What memory plans (refsd.graph) ask of this backend.

Where results come from, how to tell, and what kernels allocate on top. Of weights in their own
dtype: smaller ones have a panel a thread besides, some hundred kilobytes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numba
import numpy as np

from refsd.half import HALVES
from refsd.numba_ops.cpu.attention import lengths
from refsd.numba_ops.cpu.conv import choose_here
from refsd.numba_ops.cpu.conv_gemm import plan_of
from refsd.numba_ops.cpu.conv_narrow import OUTPUTS, is_narrow
from refsd.numba_ops.cpu.conv_winograd import blocking
from refsd.numba_ops.memory import (
    allocate_from_pool,
    allocating_with,
    computed_dtype,
    panel_width,
)
from refsd.numba_ops.pool import LEAST, LINE, Places
from refsd.numba_ops.simd import WIDTH, lanes
from refsd.numba_ops.tile import ROWS
from refsd.numba_ops.weights import row_step
from refsd.numba_ops.workspace import rooms_of
from refsd.ops.conv import pair, sides

__all__ = ["Replay", "allocate_from_pool", "allocating_with", "packed_bytes", "work_bytes"]
CONVOLUTIONS = ("conv2d", "conv2d_add", "upsample_conv2d")
LINEAR = ("linear", "linear_add", "linear_geglu")
ADDRESSES = 2**60


class Replay:
    """The memory of calls, as allocate_from_pool would give it: what is asked and freed, in order.

    The pool's gaps are counted by its own code; below pool.LEAST the C library's are not known.
    `peak` are the most bytes in memory, of the pool, idle or not, and of small pieces; `note()`, if
    there is one, is called at each new peak.
    """

    def __init__(self, note: Callable[[], None] | None = None) -> None:
        self._pool, self._small, self._most_small = Places(ADDRESSES), 0, 0
        self.note, self.peak = note, 0

    def take(self, size: int) -> tuple[int | None, int]:
        """A block of so many bytes."""
        if size + WIDTH >= LEAST:
            block = self._pool.place(size + WIDTH)
        else:
            block = None, size
            self._small += size
            self._most_small = max(self._most_small, self._small)
        if self.now > self.peak:
            self.peak = self.now
            if self.note is not None:
                self.note()
        return block

    def free(self, start: int | None, size: int) -> None:
        """Give a block back."""
        if start is None:
            self._small -= size
        else:
            self._pool.free(start, size)

    @property
    def now(self) -> int:
        """The bytes in memory: what the C library has had of small pieces it keeps."""
        return self._pool.taken + sum(n for _, n in self._pool.used) + self._most_small


def work_bytes(op: str, inputs: Mapping[str, Any], options: Mapping[str, Any],
               result: Any) -> int | None:
    """What a kernel allocates beside its result, in bytes; None where nobody has counted it.

    inputs and result have a shape and a dtype. It is exact but for copies of what lies in memory
    as no kernel leaves it.
    """
    dtype = np.dtype(HALVES.get(str(result.dtype), str(result.dtype)))
    if op in CONVOLUTIONS:
        return _convolution(op, inputs["x"].shape, inputs["weight"].shape, options, result.shape,
                            dtype)
    if op == "attention":
        (_, _, C), (N, S, D), heads = inputs["q"].shape, inputs["v"].shape, options["heads"]
        *_, keys, values, step = lengths(N, heads, S, C // heads, D // heads, dtype)
        size = computed_dtype(dtype).itemsize
        return _lines(keys * size, values * size, numba.get_num_threads() * step * size)
    return _bias(inputs["weight"].shape[0], dtype) if op in LINEAR else None


def packed_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """What a weight lies in that was packed (refsd.numba_ops.weights), in bytes."""
    dtype = np.dtype(HALVES.get(dtype, dtype))
    rows = math.prod(shape[1:]) * row_step(shape[0], dtype)
    return (rows + panel_width(dtype)) * dtype.itemsize


def _convolution(op, x, weight, options, result, dtype):
    (N, C, _, _), (O, I, kh, kw), (_, _, Ho, Wo) = x, weight, result
    stride, dilation = pair(options["stride"]), pair(options["dilation"])
    padding, groups, result = sides(options["padding"]), options["groups"], (N, Ho, Wo, O)
    name = choose_here(result, weight, stride=stride, dilation=dilation, groups=groups,
                       algorithm=options["algorithm"], dtype=dtype).algorithm
    if name == "fft":
        return None
    if name != "im2col":
        sizes = blocking(I, (N, Ho, Wo, O // groups), 4 if name == "winograd2" else 6, dtype).sizes
        rooms = rooms_of(computed_dtype(dtype), *sizes)
        return groups * (_lines(sum(rooms)) + _bias(O // groups, dtype))
    enlarged = op == "upsample_conv2d"
    if (kh, kw, *stride, groups) == (1, 1, 1, 1, 1) and not np.any(padding):
        return None if enlarged else _bias(O, dtype)
    if is_narrow(weight, groups, dtype):
        if op != "conv2d":
            return None
        step = -(-C // lanes(dtype)) * lanes(dtype)
        kernels = -(-O // OUTPUTS) * OUTPUTS * kh * kw * step * computed_dtype(dtype).itemsize
        return _lines(kernels, step * dtype.itemsize) + _bias(O, dtype)
    plan = plan_of(C, weight, result, stride, padding, dilation, dtype.itemsize)
    if (stride == (1, 1) and not np.any(padding) and plan.run >= ROWS and plan.step == C
            and not enlarged):
        return _bias(O, dtype)
    return _bias(O, dtype) + _lines(*rooms_of(dtype, plan.elements(N, padding[1][0])))


def _bias(outputs, dtype):
    """See memory.fill_up."""
    return _lines((outputs + panel_width(dtype)) * computed_dtype(dtype).itemsize)


def _lines(*sizes):
    """Bytes in whole lines of the cache, which an arena gives them."""
    return sum(-(-size // LINE) * LINE for size in sizes)
