"""Moving elements without changing them: views where memory allows, else copies by one kernel."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.strides import launches, merged, walker

THREADS = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")
UNITS = {16: "int32", 8: "int64", 4: "int32", 2: "uint16", 1: "uint8"}  # bytes moved at once
copied = {"arrays": 0, "bytes": 0}  # for how they lay in memory


@factory(each=[(unit,) for unit in UNITS])
def copy_kernel(gpu: Any, unit: int) -> Plan:
    """y[i] = x[i] over four axes: a thread a unit of so many bytes."""
    cuda, uint32, place = gpu.cuda, gpu.uint32, walker(gpu)
    load4, store4 = gpu.load4, gpu.store4

    def copy(x, y, count, n1, n2, n3, x0, x1, x2, x3, y0, y1, y2, y3):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            i0, i1, i2, i3 = place(i, n1, n2, n3)
            source = uint32(i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3)
            target = uint32(i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3)
            if unit == 16:
                store4(y, uint32(4 * target), load4(x, uint32(4 * source)))
            else:
                y[target] = x[source]

    kind = gpu.array(UNITS[unit])
    return Plan(copy, (kind, kind, *(gpu.uint32,) * 12), THREADS)


def copy(x: DeviceArray, y: DeviceArray) -> None:
    """y = x, of the same shape and dtype, wherever both lie."""
    if not y.size:
        return
    axes, itemsize = merged(y.shape, y.strides, x.strides), y.dtype.itemsize
    unit = _unit(axes, itemsize, x.offset, y.offset)
    per = unit // itemsize
    if per > 1:
        axes = [*([n, s // per, t // per] for n, s, t in axes[:-1]), [axes[-1][0] // per, 1, 1]]
    for (to, start), sizes, (y_steps, x_steps) in launches(axes, 2):
        count = math.prod(sizes)
        launch(copy_kernel, (unit,), (-(-count // THREADS),), _units(x, unit, start),
               _units(y, unit, to), count, *sizes[1:], *x_steps, *y_steps)


def _unit(axes: list[list[int]], itemsize: int, *offsets: int) -> int:
    """The most bytes that neighbours in both arrays have, and everything is a multiple of."""
    if not axes or axes[-1][1:] != [1, 1]:
        return itemsize
    steps = [step for _, *pair in axes[:-1] for step in pair]
    return math.gcd(16, *(itemsize * n for n in (axes[-1][0], *steps, *offsets)))


def _units(x: DeviceArray, unit: int, start: int) -> DeviceArray:
    """From unit `start` of x on, as numbers that a kernel moves: its memory to the last element."""
    dtype = np.dtype(UNITS[unit])
    per = unit // dtype.itemsize
    first = x.offset * x.dtype.itemsize // dtype.itemsize + start * per
    end = (x.offset + x.span) * x.dtype.itemsize // dtype.itemsize
    return DeviceArray((end - first,), (1,), dtype, x.block, first)


def order_of(x: DeviceArray) -> tuple[int, ...]:
    """x's axes as memory has them, the outermost first; an image's channels last if they can be."""
    if x.ndim == 4 and x.is_contiguous(CHANNELS_LAST):
        return CHANNELS_LAST
    return tuple(sorted(range(x.ndim), key=lambda axis: (-x.strides[axis], axis)))


def dense(x: DeviceArray) -> tuple[DeviceArray, tuple[int, ...]]:
    """x without gaps in memory, and the order of its axes there, the outermost first."""
    order = order_of(x)
    return ordered(x, order), order


def ordered(x: DeviceArray, order: Sequence[int] | None = None) -> DeviceArray:
    """x without gaps in memory and axes in this order: a copy unless it lies so."""
    if x.is_contiguous(order):
        return x
    y = empty(x.shape, x.dtype, order)
    copied["arrays"] += 1
    copied["bytes"] += y.nbytes
    copy(x, y)
    return y
