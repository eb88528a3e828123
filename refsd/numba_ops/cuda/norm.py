"""Normalisations: which kernels compute them on a GPU, and the plain ones.

Means are found twice, as the definition does: first the mean, then that of what deviates from it.
Sums run in a fixed order that depends on the shape of one row, or one image, and on nothing else.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refsd.numba_ops.cuda import norm_groups, norm_rows
from refsd.numba_ops.cuda.array import empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.fill import filled
from refsd.numba_ops.cuda.layout import aligned, ordered
from refsd.numba_ops.cuda.norm_rows import WARPS
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Choice, Plan, factory
from refsd.numba_ops.cuda.warp import block_sum, warp_sum
from refsd.registry import kernel

THREADS, FEW = 256, 512  # of a group; one warp where it has few numbers
SMALL = 1 << 14  # numbers of a group that one block reads as fast as three launches do
DTYPES = ("float32", "float64", "float16", "bfloat16")


@factory(each=[(dtype, threads) for dtype in DTYPES for threads in (32, THREADS)])
def group_norm_plain(gpu: Any, dtype: str, threads: int) -> Plan:
    """A block a group of an image, (n, group): a few channels of all pixels, read four times.

    x and y (N, P, C) in memory. Of a group's `width` channels a thread has one or several, and
    every so many pixels of each.
    """
    cuda, uint32, sqrt, kind = gpu.cuda, gpu.uint32, gpu.sqrt, number(gpu, dtype)
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)
    total = block_sum(gpu, kind, threads)

    def group_norm(x, weight, bias, y, P, C, width, eps):
        t, c0 = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.y) * width
        columns = width if width < uint32(threads) else uint32(threads)
        phases, phase, column = uint32(threads) // columns, t // columns, t % columns
        # Threads beyond the last whole phase have no pixels.
        start = phase if phase < phases else P
        first, count = uint32(cuda.blockIdx.x) * P * C + c0, kind(P * width)

        part = kind(0)
        for c in range(column, width, columns):
            for p in range(start, P, phases):
                part += read(x, uint32(first + uint32(p) * C + uint32(c)))
        mean = total(part, t) / count
        part = kind(0)
        for c in range(column, width, columns):
            for p in range(start, P, phases):
                part += read(x, uint32(first + uint32(p) * C + uint32(c))) - mean
        off = total(part, t) / count
        part = kind(0)
        for c in range(column, width, columns):
            for p in range(start, P, phases):
                d = read(x, uint32(first + uint32(p) * C + uint32(c))) - mean - off
                part += d * d
        deviation = sqrt(total(part, t) / count + eps)

        for c in range(column, width, columns):
            w, b = read(weight, uint32(c0 + uint32(c))), read(bias, uint32(c0 + uint32(c)))
            for p in range(start, P, phases):
                at = uint32(first + uint32(p) * C + uint32(c))
                write(y, at, (read(x, at) - mean - off) / deviation * w + b)

    return Plan(group_norm, (array,) * 4 + (gpu.uint32,) * 3 + (kind,), threads)


@factory(each=[(dtype,) for dtype in DTYPES])
def layer_norm_plain(gpu: Any, dtype: str) -> Plan:
    """A warp a row, which it reads four times.   x and y (rows, K)"""
    cuda, uint32, sqrt, kind = gpu.cuda, gpu.uint32, gpu.sqrt, number(gpu, dtype)
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)
    total = warp_sum(gpu)

    def layer_norm(x, weight, bias, y, rows, K, eps):
        t = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x) * uint32(WARPS) + (t >> uint32(5))
        if row >= rows:
            return
        lane, first = t & uint32(31), row * K
        part = kind(0)
        for i in range(lane, K, uint32(32)):
            part += read(x, uint32(first + uint32(i)))
        mean = total(part) / kind(K)
        part = kind(0)
        for i in range(lane, K, uint32(32)):
            part += read(x, uint32(first + uint32(i))) - mean
        off = total(part) / kind(K)
        part = kind(0)
        for i in range(lane, K, uint32(32)):
            d = read(x, uint32(first + uint32(i))) - mean - off
            part += d * d
        deviation = sqrt(total(part) / kind(K) + eps)
        for i in range(lane, K, uint32(32)):
            at = uint32(first + uint32(i))
            normal = (read(x, at) - mean - off) / deviation
            write(y, at, normal * read(weight, uint32(i)) + read(bias, uint32(i)))

    return Plan(layer_norm, (array,) * 4 + (gpu.uint32,) * 2 + (kind,), 32 * WARPS)


@factory(each=[(dtype,) for dtype in DTYPES])
def rms_norm_plain(gpu: Any, dtype: str) -> Plan:
    """A warp a row, which it reads twice.   x and y (rows, K)"""
    cuda, uint32, sqrt, kind = gpu.cuda, gpu.uint32, gpu.sqrt, number(gpu, dtype)
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)
    total = warp_sum(gpu)

    def rms_norm(x, weight, y, rows, K, eps):
        t = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x) * uint32(WARPS) + (t >> uint32(5))
        if row >= rows:
            return
        lane, first = t & uint32(31), row * K
        part = kind(0)
        for i in range(lane, K, uint32(32)):
            value = read(x, uint32(first + uint32(i)))
            part += value * value
        root = sqrt(total(part) / kind(K) + eps)
        for i in range(lane, K, uint32(32)):
            at = uint32(first + uint32(i))
            write(y, at, read(x, at) / root * read(weight, uint32(i)))

    return Plan(rms_norm, (array,) * 3 + (gpu.uint32,) * 2 + (kind,), 32 * WARPS)


def choose_group_norm(shape: Sequence[int], groups: int, dtype: str) -> Choice:
    """The kernel for x of that shape (N, C, ...). It does not ask for N."""
    C, P = shape[1], math.prod(shape[2:])
    numbers = P * C // groups
    plain = dtype, 32 if numbers <= FEW else THREADS
    if dtype == "float64":
        return Choice(group_norm_plain, plain, "float64 has a plain kernel only")
    if C % 8 or C > norm_groups.CHANNELS or groups > norm_groups.GROUPS:
        return Choice(group_norm_plain, plain, f"{C} channels in {groups} groups: pieces have "
                      f"a multiple of 8, at most {norm_groups.CHANNELS} in {norm_groups.GROUPS}")
    if numbers <= SMALL:
        return Choice(group_norm_plain, plain, f"{numbers} numbers a group: one launch is faster "
                      "than three")
    return Choice(norm_groups.apply_kernel, (dtype,), "pieces of whole pixels, 16 bytes at once")


def choose_layer_norm(shape: Sequence[int], dtype: str) -> Choice:
    """The kernel for rows of shape[-1] numbers."""
    return _choose_rows(shape[-1], dtype, layer_norm_plain, norm_rows.layer_norm_kernel)


def choose_rms_norm(shape: Sequence[int], dtype: str) -> Choice:
    """The kernel for rows of shape[-1] numbers."""
    return _choose_rows(shape[-1], dtype, rms_norm_plain, norm_rows.rms_norm_kernel)


def _choose_rows(K, dtype, plain, fast):
    if dtype == "float64":
        return Choice(plain, (dtype,), "float64 has a plain kernel only")
    if K % 8:
        return Choice(plain, (dtype,), f"rows of {K}: registers are filled 8 numbers at once")
    for _, eights in fast.each:
        if 256 * eights >= K:
            return Choice(fast, (dtype, eights), f"rows of {K}: a warp holds one in registers")
    return Choice(plain, (dtype,), f"rows of {K} do not fit the registers of a warp")


@kernel("cuda", reads_halves=True)
def group_norm(x, weight, bias, *, groups, eps):
    order = (0, *range(2, x.ndim), 1)
    x, weight, bias = aligned(x, order), ordered(weight), ordered(bias)
    y = empty(x.shape, x.dtype, order)
    if not y.size:
        return y
    choice = choose_group_norm(x.shape, groups, str(x.dtype))
    (N, C), P = x.shape[:2], math.prod(x.shape[2:])
    if choice.factory is group_norm_plain:
        launch(*choice[:2], (N, groups), x, weight, bias, y, P, C, C // groups, eps)
    else:
        norm_groups.by_pieces(x, weight, bias, y, N, P, C, groups, eps)
    return y


@kernel("cuda", reads_halves=True)
def layer_norm(x, weight=None, bias=None, *, eps):
    parameters = _or(weight, 1, x), _or(bias, 0, x)
    return _of_rows(choose_layer_norm(x.shape, str(x.dtype)), x, parameters, eps)


def _or(vector, value, x):
    """The vector; a value for each of x's features where there is none."""
    if vector is not None:
        return vector
    return filled(np.full(x.shape[-1:], value, "float32")).astype(x.dtype)


@kernel("cuda", reads_halves=True)
def rms_norm(x, weight, *, eps):
    return _of_rows(choose_rms_norm(x.shape, str(x.dtype)), x, (weight,), eps)


def _of_rows(choice, x, parameters, eps):
    y, K = empty(x.shape, x.dtype), x.shape[-1]
    if y.size:
        x, *parameters = (aligned(t) for t in (x, *parameters))
        rows = x.size // K
        launch(*choice[:2], (-(-rows // WARPS),), x, *parameters, y, rows, K, eps)
    return y
