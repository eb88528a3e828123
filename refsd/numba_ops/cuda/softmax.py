"""softmax along an axis: rows of its numbers, held in registers where they fit."""

import math
from typing import Any

from refsd.numba_ops.cuda.array import empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.eights import load_eight, store_eight
from refsd.numba_ops.cuda.layout import aligned
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Choice, Plan, factory
from refsd.numba_ops.cuda.warp import block_max, block_sum, warp_max, warp_sum
from refsd.registry import kernel

WARPS = 4  # of a block of the plain kernel, a row each
THREADS = 256  # a row, in registers
SHORT = 256  # a row that a warp reads as fast
DTYPES = ("float32", "float64", "float16", "bfloat16")
# Eights a thread: rows of up to 4096, the pixels of a picture of 512 x 512 in the VAE's attention,
# and of up to 16384, those of 1024 x 1024.
EACH = [(dtype, eights) for dtype in ("float32", "float16", "bfloat16") for eights in (2, 8)]


@factory(each=[(dtype,) for dtype in DTYPES])
def softmax_plain(gpu: Any, dtype: str) -> Plan:
    """e^(x - max) / sum e^(x - max), a warp a row, which it reads three times.   (rows, K)

    Zeros where all of a row is -inf.
    """
    cuda, uint32, exp, kind = gpu.cuda, gpu.uint32, gpu.exp, number(gpu, dtype)
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)
    total, largest, lowest = warp_sum(gpu), warp_max(gpu), -math.inf

    def softmax(x, y, rows, K):
        t = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x) * uint32(WARPS) + (t >> uint32(5))
        if row >= rows:
            return
        lane, first = t & uint32(31), row * K
        high = kind(lowest)
        for i in range(lane, K, uint32(32)):
            value = read(x, uint32(first + uint32(i)))
            high = value if value > high else high
        high = largest(high)
        high = kind(0) if high == kind(lowest) else high
        part = kind(0)
        for i in range(lane, K, uint32(32)):
            part += exp(read(x, uint32(first + uint32(i))) - high)
        # The largest term is e^0 = 1, so only a wholly hidden row has a sum below 1.
        terms = total(part)
        terms = kind(1) if terms < kind(1) else terms
        for i in range(lane, K, uint32(32)):
            at = uint32(first + uint32(i))
            write(y, at, exp(read(x, at) - high) / terms)

    return Plan(softmax, (array, array, gpu.uint32, gpu.uint32), 32 * WARPS)


@factory(each=EACH)
def softmax_kernel(gpu: Any, dtype: str, eights: int) -> Plan:
    """The same, a block a row, which it reads once.   K a multiple of 8, at most 2048 eights"""
    cuda, uint32, exp, float32 = gpu.cuda, gpu.uint32, gpu.exp, gpu.float32
    load, store, array = load_eight(gpu, dtype), store_eight(gpu, dtype), gpu.array(dtype)
    total, largest = block_sum(gpu, float32, THREADS), block_max(gpu, float32, THREADS)
    numbers, stride, lowest = 8 * eights, 8 * THREADS, -math.inf

    def softmax(x, y, K):
        v = cuda.local.array(numbers, float32)
        t, first = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x) * K
        for e in range(eights):
            at = t * uint32(8) + uint32(stride * e)
            if at < K:
                load(x, first + at, v, 8 * e)
            else:
                for j in range(8):
                    v[8 * e + j] = float32(lowest)
        high = v[0]
        for i in range(1, numbers):
            high = v[i] if v[i] > high else high
        high = largest(high, t)
        high = float32(0) if high == float32(lowest) else high
        part = float32(0)
        for i in range(numbers):
            v[i] = exp(v[i] - high)
            part += v[i]
        terms = total(part, t)
        scale = float32(1) / (float32(1) if terms < float32(1) else terms)
        for e in range(eights):
            at = t * uint32(8) + uint32(stride * e)
            if at < K:
                for j in range(8):
                    v[8 * e + j] *= scale
                store(y, first + at, v, 8 * e)

    return Plan(softmax, (array, array, gpu.uint32), THREADS)


def choose_softmax(K: int, dtype: str) -> Choice:
    """The kernel for rows of K numbers."""
    if dtype == "float64":
        return Choice(softmax_plain, (dtype,), "float64 has a plain kernel only")
    if K % 8:
        return Choice(softmax_plain, (dtype,), f"rows of {K}: registers are filled 8 at once")
    if K <= SHORT:
        return Choice(softmax_plain, (dtype,), f"rows of {K}: a warp is enough")
    for _, eights in softmax_kernel.each:
        if 8 * THREADS * eights >= K:
            return Choice(softmax_kernel, (dtype, eights), f"rows of {K}: a block holds one in "
                          "registers")
    return Choice(softmax_plain, (dtype,), f"rows of {K} do not fit the registers of a block")


@kernel("cuda", reads_halves=True)
def softmax(x, *, axis):
    axes = [*range(x.ndim)]
    axes.append(axes.pop(axis))
    rows = aligned(x.transpose(axes))
    y = empty(rows.shape, x.dtype)
    if y.size:
        rows_softmax(rows, y)
    return y.transpose([axes.index(a) for a in range(x.ndim)])


def rows_softmax(x, y) -> None:
    """y = softmax(x) along the last axis, both without gaps; they may be one array."""
    K, dtype = x.shape[-1], str(x.dtype)
    count, choice = x.size // K, choose_softmax(K, dtype)
    if choice.factory is softmax_plain:
        launch(softmax_plain, choice.constants, (-(-count // WARPS),), x, y, count, K)
    else:
        launch(softmax_kernel, choice.constants, (count,), x, y, K)
