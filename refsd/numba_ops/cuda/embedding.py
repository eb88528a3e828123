"""Positions, times and tokens as vectors.

Whole numbers and times may be NumPy's: schedules, tokens and positions are made on the host. They
are small, go to the device here, and count as copies.
"""

import functools
import math
from typing import Any

import numpy as np

from refsd.half import HALVES
from refsd.numba_ops.cuda.array import DeviceArray, empty, to_device
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.fill import filled
from refsd.numba_ops.cuda.layout import UNITS, ordered, unit_of, units
from refsd.numba_ops.cuda.numbers import computed, number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.trigonometry import sin_cos
from refsd.ops.embedding import require_rows
from refsd.registry import kernel

THREADS = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")


@factory(each=[(unit,) for unit in (16, 8, 4, 2)])
def rows_kernel(gpu: Any, unit: int) -> Plan:
    """y[r] = row index[r] of part r of x: a thread a unit of so many bytes."""
    cuda, uint32, load4, store4 = gpu.cuda, gpu.uint32, gpu.load4, gpu.store4

    def rows(y, x, index, count, length, part_step, row_step):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            r = uint32(i // length)
            row = uint32(index[r])
            source = uint32(r * part_step + row * row_step + uint32(i - r * length))
            if unit == 16:
                store4(y, uint32(4 * i), load4(x, uint32(4 * source)))
            else:
                y[i] = x[source]

    array = gpu.array(UNITS[unit])
    return Plan(rows, (array, array, gpu.array("int32"), *(gpu.uint32,) * 4), THREADS)


@kernel("cuda", reads_halves=True)
def embedding(ids, weight):
    index = _checked("embedding", ids, weight.shape[0])
    return _taken(weight, index, 0, weight.strides[0], (*ids.shape, weight.shape[1]))


@kernel("cuda", reads_halves=True)
def gather(x, index):
    index = _checked("gather", index, x.shape[1])
    return _taken(x, index, x.strides[0], x.strides[1], (x.shape[0], x.shape[2]))


def _checked(name, index, rows):
    """The index on the device, after a look at it: if it came from there, a copy to the host."""
    host = index.numpy() if isinstance(index, DeviceArray) else index
    require_rows(name, host, rows)
    return to_device(host.astype(np.int32))


def _taken(x, index, part_step, row_step, shape):
    y, K = empty(shape, x.dtype), shape[-1]
    if x.strides[-1] != 1 and K > 1:
        x = ordered(x)
        part_step, row_step = part_step and x.strides[0], x.strides[-2]
    if y.size:
        unit = unit_of(x.dtype.itemsize, K, part_step, row_step, x.offset)
        per = unit // x.dtype.itemsize
        count = y.size // per
        launch(rows_kernel, (unit,), (-(-count // THREADS),), units(y, unit), units(x, unit), index,
               count, K // per, part_step // per, row_step // per)
    return y


@factory(each=[(dtype,) for dtype in DTYPES])
def times_kernel(gpu: Any, dtype: str) -> Plan:
    """sin and cos of times[n] frequencies[i], a float32 angle: a thread a pair."""
    cuda, uint32, kind = gpu.cuda, gpu.uint32, number(gpu, dtype)
    write, both = writer(gpu, dtype), sin_cos(gpu, dtype)

    def embed(y, times, frequencies, count, half, width, sin_at, cos_at):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            n = uint32(i // half)
            k = uint32(i - n * half)
            sine, cosine = both(kind(times[n] * frequencies[k]))
            write(y, uint32(n * width + sin_at + k), sine)
            write(y, uint32(n * width + cos_at + k), cosine)
            if width > 2 * half and k == 0:
                write(y, uint32(n * width + 2 * half), kind(0))

    of_times = gpu.array("float32")
    return Plan(embed, (gpu.array(dtype), of_times, of_times, *(gpu.uint32,) * 5), THREADS)


@kernel("cuda", reads_halves=True)
def timestep_embedding(timesteps, *, dim, flip_sin_to_cos, freq_shift, dtype):
    half = dim // 2
    on_device = isinstance(timesteps, DeviceArray)
    times = timesteps.astype("float32") if on_device else filled(timesteps)
    y = empty((timesteps.shape[0], dim), HALVES.get(dtype, dtype))
    sin_at, cos_at = (half, 0) if flip_sin_to_cos else (0, half)
    if y.size:
        count = times.size * half
        launch(times_kernel, (dtype,), (-(-count // THREADS),), y, ordered(times),
               _frequencies(current(), half, freq_shift), count, half, dim, sin_at, cos_at)
    return y


@functools.lru_cache(8)
def _frequencies(device, half, freq_shift):
    """Those of refsd/ops/embedding.py, which says why they are float32. They are made once."""
    exponents = np.arange(half, dtype="float32") * np.float32(-math.log(10000))
    exponents /= np.float32(half - freq_shift)
    return to_device(np.exp(exponents.astype("float64")).astype("float32"))


@factory(each=[(dtype,) for dtype in DTYPES])
def rope_kernel(gpu: Any, dtype: str) -> Plan:
    """(a cos - b sin, a sin + b cos) of each pair of a row: a thread a pair."""
    cuda, uint32 = gpu.cuda, gpu.uint32
    read, write, table = reader(gpu, dtype), writer(gpu, dtype), computed(dtype)

    def rotate(y, x, cos, sin, count, length, half, stride, apart):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            row = uint32(i // half)
            k = uint32(i - row * half)
            at = uint32(row * half * uint32(2) + k * stride)
            angle = uint32(uint32(row % length) * half + k)
            a, b, c, s = read(x, at), read(x, uint32(at + apart)), cos[angle], sin[angle]
            write(y, at, a * c - b * s)
            write(y, uint32(at + apart), a * s + b * c)

    kind, numbers = gpu.array(dtype), gpu.array(table)
    return Plan(rotate, (kind, kind, numbers, numbers, *(gpu.uint32,) * 5), THREADS)


@kernel("cuda", reads_halves=True)
def rope(x, positions, *, base, interleaved):
    half, length = x.shape[-1] // 2, x.shape[-2]
    positions = positions.numpy() if isinstance(positions, DeviceArray) else positions
    angles = positions[:, None] * float(base) ** (-np.arange(half) / half)
    x = ordered(x)
    y = empty(x.shape, x.dtype)
    # A pair's first numbers lie `stride` apart, its second one `apart` from the first.
    stride, apart = (2, 1) if interleaved else (1, half)
    if y.size:
        wanted = computed(str(x.dtype))
        cos, sin = (to_device(f(angles).astype(wanted)) for f in (np.cos, np.sin))
        count = y.size // 2
        launch(rope_kernel, (str(x.dtype),), (-(-count // THREADS),), y, x, cos, sin, count, length,
               half, stride, apart)
    return y
