"""Enlarging images, channels last: a thread a few channels of a pixel."""

import functools
from typing import Any

from refsd.numba_ops.cuda.array import CHANNELS_LAST, empty, to_device
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.layout import UNITS, ordered, unit_of, units
from refsd.numba_ops.cuda.numbers import computed, number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.ops.resize import source_pairs
from refsd.registry import kernel

THREADS = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")


@factory(each=[(unit,) for unit in (16, 8, 4, 2)])
def nearest_kernel(gpu: Any, unit: int) -> Plan:
    """y[i, j] = x[floor(i H / height), floor(j W / width)] in float32: a thread a unit of bytes."""
    cuda, uint32, float32, load4, store4 = (
        gpu.cuda, gpu.uint32, gpu.float32, gpu.load4, gpu.store4)

    def nearest(y, x, count, length, H, W, height, width):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            pixel = uint32(i // length)
            row = uint32(pixel // width)
            column = uint32(pixel - row * width)
            image = uint32(row // height)
            row = uint32(row - image * height)
            row = uint32(float32(row) * (float32(H) / float32(height)))
            column = uint32(float32(column) * (float32(W) / float32(width)))
            row, column = min(row, uint32(H - uint32(1))), min(column, uint32(W - uint32(1)))
            source = uint32(uint32(uint32(image * H + row) * W + column) * length
                            + uint32(i - pixel * length))
            if unit == 16:
                store4(y, uint32(4 * i), load4(x, uint32(4 * source)))
            else:
                y[i] = x[source]

    array = gpu.array(UNITS[unit])
    return Plan(nearest, (array, array, *(gpu.uint32,) * 6), THREADS)


@kernel("cuda", reads_halves=True)
def upsample_nearest(x, *, height, width):
    N, C, H, W = x.shape
    x, y = ordered(x, CHANNELS_LAST), empty((N, C, height, width), x.dtype, CHANNELS_LAST)
    if y.size:
        unit = unit_of(x.dtype.itemsize, C, x.offset)
        per = unit // x.dtype.itemsize
        count = y.size // per
        launch(nearest_kernel, (unit,), (-(-count // THREADS),), units(y, unit), units(x, unit),
               count, C // per, H, W, height, width)
    return y


@factory(each=[(dtype,) for dtype in DTYPES])
def bilinear_kernel(gpu: Any, dtype: str) -> Plan:
    """Four pixels into one: two and two by `down`, then these by `across`: a thread a channel."""
    cuda, uint32, one = gpu.cuda, gpu.uint32, number(gpu, dtype)(1)
    read, write = reader(gpu, dtype), writer(gpu, dtype)

    def bilinear(y, x, top, bottom, down, left, right, across, count, C, H, W, height, width):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            pixel = uint32(i // C)
            c = uint32(i - pixel * C)
            above = uint32(pixel // width)
            column = uint32(pixel - above * width)
            image = uint32(above // height)
            row = uint32(above - image * height)
            upper = uint32(uint32(image * H + uint32(top[row])) * W)
            lower = uint32(uint32(image * H + uint32(bottom[row])) * W)
            u, v = down[row], across[column]
            p, q = uint32(left[column]), uint32(right[column])
            first = (read(x, uint32(uint32(upper + p) * C + c)) * (one - u)
                     + read(x, uint32(uint32(lower + p) * C + c)) * u)
            second = (read(x, uint32(uint32(upper + q) * C + c)) * (one - u)
                      + read(x, uint32(uint32(lower + q) * C + c)) * u)
            write(y, i, first * (one - v) + second * v)

    kind, rows = gpu.array(dtype), gpu.array("int32")
    weights = gpu.array(computed(dtype))
    return Plan(bilinear, (kind, kind, rows, rows, weights, rows, rows, weights,
                           *(gpu.uint32,) * 6), THREADS)


@kernel("cuda", reads_halves=True)
def upsample_bilinear(x, *, height, width, align_corners):
    N, C, H, W = x.shape
    x, y = ordered(x, CHANNELS_LAST), empty((N, C, height, width), x.dtype, CHANNELS_LAST)
    if y.size:
        pairs = [_pairs(current(), *sizes, align_corners, computed(str(x.dtype)))
                 for sizes in ((H, height), (W, width))]
        launch(bilinear_kernel, (str(x.dtype),), (-(-y.size // THREADS),), y, x, *pairs[0],
               *pairs[1], y.size, C, H, W, height, width)
    return y


@functools.lru_cache(16)
def _pairs(device, size, new_size, align_corners, dtype):
    """The two sources of each position and the second's weight: made on the host, once a size."""
    first, second, weight = source_pairs(size, new_size, align_corners, dtype)
    return [to_device(a) for a in (first.astype("int32"), second.astype("int32"), weight)]
