"""Moving elements without changing them: views where memory allows, else copies by one kernel."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty, is_contiguous
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.strides import merged, regrouped, walker, walks
from refsd.registry import kernel

THREADS = 256
UNITS = {16: "int32", 8: "int64", 4: "int32", 2: "uint16", 1: "uint8"}  # bytes moved at once
copied = {"arrays": 0, "bytes": 0}  # for how they lay in memory


@factory(each=[(unit,) for unit in UNITS])
def copy_kernel(gpu: Any, unit: int) -> Plan:
    """y[i] = x[i] over four axes: a thread a unit of so many bytes."""
    cuda, uint32, place = gpu.cuda, gpu.uint32, walker(gpu)
    load4, store4 = gpu.load4, gpu.store4

    def copy(y, x, count, n1, n2, n3, y0, y1, y2, y3, x0, x1, x2, x3):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            i0, i1, i2, i3 = place(i, n1, n2, n3)
            target = uint32(i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3)
            source = uint32(i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3)
            if unit == 16:
                store4(y, uint32(4 * target), load4(x, uint32(4 * source)))
            else:
                y[target] = x[source]

    kind = gpu.array(UNITS[unit])
    return Plan(copy, (kind, kind, *(gpu.uint32,) * 12), THREADS)


@factory(each=[()])
def zero_kernel(gpu: Any) -> Plan:
    """y = 0, two bytes a thread."""
    cuda, uint32, zero = gpu.cuda, gpu.uint32, gpu.uint16(0)

    def clear(y, count):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            y[i] = zero

    return Plan(clear, (gpu.array(UNITS[2]), gpu.uint32), THREADS)


def zeros(shape: Sequence[int], dtype: Any, order: Sequence[int] | None = None) -> DeviceArray:
    """An array of zeros, axes in memory in this order, the outermost first."""
    y = empty(shape, dtype, order)
    if y.size:
        count = y.nbytes // 2
        launch(zero_kernel, (), (-(-count // THREADS),), units(y, 2), count)
    return y


def copy(x: DeviceArray, y: DeviceArray) -> None:
    """y = x, of the same shape and dtype, wherever both lie."""
    if not y.size:
        return
    axes, itemsize = merged(y.shape, y.strides, x.strides), y.dtype.itemsize
    unit = _unit(axes, itemsize, x.offset, y.offset)
    per = unit // itemsize
    if per > 1:
        axes = [*([n, s // per, t // per] for n, s, t in axes[:-1]), [axes[-1][0] // per, 1, 1]]
    for (to, start), count, sizes, steps in walks(axes, 2):
        launch(copy_kernel, (unit,), (-(-count // THREADS),), units(y, unit, to),
               units(x, unit, start), count, *sizes, *steps)


def _unit(axes: list[list[int]], itemsize: int, *offsets: int) -> int:
    """The most bytes that neighbours in both arrays have, and everything is a multiple of."""
    if not axes or axes[-1][1:] != [1, 1]:
        return itemsize
    steps = [step for _, *pair in axes[:-1] for step in pair]
    return unit_of(itemsize, axes[-1][0], *steps, *offsets)


def unit_of(itemsize: int, *lengths: int) -> int:
    """The most bytes, up to 16, of which so many elements each are a multiple."""
    return math.gcd(16, *(itemsize * n for n in lengths))


def units(x: DeviceArray, unit: int, start: int = 0) -> DeviceArray:
    """From unit `start` of x on, as numbers that a kernel moves: its memory to the last element."""
    dtype = np.dtype(UNITS[unit])
    per = unit // dtype.itemsize
    first = x.offset * x.dtype.itemsize // dtype.itemsize + start * per
    end = (x.offset + x.span) * x.dtype.itemsize // dtype.itemsize
    return DeviceArray((end - first,), (1,), dtype, x.block, first)


def order_of(x: DeviceArray) -> tuple[int, ...]:
    """x's axes as memory has them, outermost first; an image's channels last, if they can be."""
    return order_by(x.shape, x.strides)


def order_by(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The same of strides."""
    if len(shape) == 4 and is_contiguous(shape, strides, CHANNELS_LAST):
        return CHANNELS_LAST
    return tuple(sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis)))


def dense(x: DeviceArray) -> tuple[DeviceArray, tuple[int, ...]]:
    """x without gaps in memory, and the order of its axes there, the outermost first."""
    order = order_of(x)
    return ordered(x, order), order


def ordered(x: DeviceArray, order: Sequence[int] | None = None) -> DeviceArray:
    """x without gaps in memory and axes in this order: a copy unless it lies so."""
    if x.is_contiguous(order):
        return x
    return _copied(x, order)


def aligned(x: DeviceArray, order: Sequence[int] | None = None) -> DeviceArray:
    """The same, its first element on 16 bytes, as kernels that read sixteen at once want it."""
    x = ordered(x, order)
    return x if x.offset * x.dtype.itemsize % 16 == 0 else _copied(x, order)


def _copied(x, order):
    y = empty(x.shape, x.dtype, order)
    copied["arrays"] += 1
    copied["bytes"] += y.nbytes
    copy(x, y)
    return y


@kernel("cuda", reads_halves=True)
def to_tokens(x):
    N, C, H, W = x.shape
    x = x if _channels_adjacent(x) else ordered(x, CHANNELS_LAST)
    pixel = x.strides[3 if W > 1 else 2]
    return DeviceArray((N, H * W, C), (x.strides[0], pixel, x.strides[1]), x.dtype, x.block,
                       x.offset)


def _channels_adjacent(x):
    """Whether a pixel's channels are neighbours, and pixels lie at one distance row by row."""
    _, C, H, W = x.shape
    return (C == 1 or x.strides[1] == 1) and (1 in (H, W) or x.strides[2] == W * x.strides[3])


@kernel("cuda", reads_halves=True)
def to_image(x, *, height, width):
    N, C = x.shape[0], x.shape[-1]
    pixel = x.strides[1] if x.ndim == 3 else C
    return DeviceArray((N, C, height, width), (x.strides[0], x.strides[-1], width * pixel, pixel),
                       x.dtype, x.block, x.offset)


@kernel("cuda", reads_halves=True)
def concat(arrays, *, axis):
    first = arrays[0]
    axis %= first.ndim
    shape = [*first.shape]
    shape[axis] = sum(x.shape[axis] for x in arrays)
    y, start = empty(shape, first.dtype, order_of(first)), 0
    for x in arrays:
        copy(x, y.part(axis, start, start + x.shape[axis]))
        start += x.shape[axis]
    return y


@kernel("cuda", reads_halves=True)
def slice(x, *, axis, start, stop):
    return x.part(axis % x.ndim, start, stop)


@kernel("cuda", reads_halves=True)
def pad(x, *, widths):
    shape = [before + n + after for n, (before, after) in zip(x.shape, widths)]
    y = inside = zeros(shape, x.dtype, order_of(x))
    for axis, (n, (before, _)) in enumerate(zip(x.shape, widths)):
        inside = inside.part(axis, before, before + n)
    copy(x, inside)
    return y


@kernel("cuda", reads_halves=True)
def transpose(x, *, axes):
    return x.transpose([axis % x.ndim for axis in axes])


@kernel("cuda", reads_halves=True)
def reshape(x, *, shape):
    strides = regrouped(x.shape, x.strides, shape)
    if strides is None:
        return ordered(x).reshape(*shape)
    return DeviceArray(tuple(shape), strides, x.dtype, x.block, x.offset)
