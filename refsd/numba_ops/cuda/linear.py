"""Matrix products: which kernel computes them on a GPU, and the plain one, right for every shape.

Fast ones: linear_tiles.py for halves on tensor cores, linear_float32.py. Every kernel adds up the
products of an element as k grows; where they are split into pieces, these are added in order. How
many pieces there are is the business of one image's shape alone, so an image has the same bits
alone and in a batch.
"""

import itertools
import math
from typing import Any

import numpy as np

from refsd.numba_ops.cuda import linear_float32, linear_tiles, tiling
from refsd.numba_ops.cuda.array import DeviceArray, contiguous_strides, empty
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.layout import aligned, ordered
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import AMPERE, HOPPER, Choice, Plan, factory
from refsd.numba_ops.cuda.strides import from_element, merged
from refsd.registry import kernel

DTYPES = ("float32", "float64", "float16", "bfloat16")
TILE, DEPTH, SIDE = 32, 16, 16
THREADS, PITCH = SIDE * SIDE, TILE + 2
SIZE = DEPTH * PITCH
MOST_BATCHES = 2**16 - 1  # of a grid's third axis


@factory(each=[(dtype,) for dtype in DTYPES])
def plain(gpu: Any, dtype: str) -> Plan:
    """c (..., M, N) = A B^T + bias, 2 x 2 a thread; A (M, K) and B (N, K) of any strides."""
    cuda, uint32, kind = gpu.cuda, gpu.uint32, number(gpu, dtype)
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)

    def fill(tile, matrix, first, row0, rows, row_step, k0, K, k_step, t):
        """tile (DEPTH, TILE) = the matrix from (row0, k0), zeros outside."""
        for i in range(2):
            e = t + uint32(i * THREADS)
            row, k = row0 + e // uint32(DEPTH), k0 + e % uint32(DEPTH)
            inside = row < rows and k < K
            at = (e % uint32(DEPTH)) * uint32(PITCH) + e // uint32(DEPTH)
            tile[at] = read(matrix, first + row * row_step + k * k_step) if inside else kind(0)

    fill = gpu.device(fill)

    def product(a, b, bias, c, M, N, K, a_row, a_k, b_row, b_k, a_batch, b_batch, biased):
        As = cuda.shared.array(SIZE, kind)
        Bs = cuda.shared.array(SIZE, kind)
        t, z = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z)
        row0 = uint32(cuda.blockIdx.x) * uint32(TILE)
        column0 = uint32(cuda.blockIdx.y) * uint32(TILE)
        ty, tx = t // uint32(SIDE), t % uint32(SIDE)
        sums = cuda.local.array((2, 2), kind)
        sums[0, 0], sums[0, 1], sums[1, 0], sums[1, 1] = kind(0), kind(0), kind(0), kind(0)
        for k0 in range(uint32(0), K, uint32(DEPTH)):
            fill(As, a, z * a_batch, row0, M, a_row, uint32(k0), K, a_k, t)
            fill(Bs, b, z * b_batch, column0, N, b_row, uint32(k0), K, b_k, t)
            cuda.syncthreads()
            for d in range(DEPTH):
                for i in range(2):
                    value = As[ty + uint32(d * PITCH + i * SIDE)]
                    for j in range(2):
                        sums[i, j] += value * Bs[tx + uint32(d * PITCH + j * SIDE)]
            cuda.syncthreads()
        for j in range(2):
            q = column0 + tx + uint32(j * SIDE)
            if q < N:
                extra = read(bias, q) if biased else kind(0)
                for i in range(2):
                    r = row0 + ty + uint32(i * SIDE)
                    if r < M:
                        write(c, z * M * N + r * N + q, sums[i, j] + extra)

    return Plan(product, (*[array] * 4, *[gpu.uint32] * 10), THREADS)


@factory(each=[(dtype,) for dtype in ("float32", "float16", "bfloat16")])
def add_pieces(gpu: Any, dtype: str) -> Plan:
    """c (..., M, N) = the sum of parts (..., pieces, M, N) in their order, + bias."""
    cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)

    def add(parts, bias, c, count, N, area, biased, pieces):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            image = uint32(i // area)
            at, total = uint32(i + image * (pieces - uint32(1)) * area), float32(0)
            for piece in range(uint32(0), pieces, uint32(1)):
                total += parts[uint32(at + uint32(piece) * area)]
            write(c, i, total + read(bias, uint32(i % N)) if biased else total)

    return Plan(add, (gpu.array("float32"), array, array, *[gpu.uint32] * 5), THREADS)


@kernel("cuda", reads_halves=True)
def linear(x, weight, bias=None):
    N, K = weight.shape
    y = empty((*x.shape[:-1], N), x.dtype)
    choice = choose_linear(x.shape, weight.shape, str(x.dtype), current().capability)
    x = _rows(x)
    multiply(choice, x, weight, bias, DeviceArray((len(x), N), (N, 1), y.dtype, y.block))
    return y


@kernel("cuda", reads_halves=True)
def matmul(a, b):
    batch, M, N = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]
    c = empty((*batch, M, N), a.dtype)
    choice = choose_matmul(a.shape, b.shape, str(a.dtype), current().capability)
    multiply(choice, a, b.transpose((*range(b.ndim - 2), b.ndim - 1, b.ndim - 2)), None, c)
    return c


def multiply(choice: Choice, a: DeviceArray, b: DeviceArray, bias: DeviceArray | None,
             c: DeviceArray) -> None:
    """c (..., M, N) = a b^T + bias.   a (..., M, K) and b (..., N, K), broadcast, c contiguous"""
    if not c.size:
        return
    *batch, M, N = c.shape
    if choice.factory is not plain:
        a, b = _suited(a), _suited(b)
    bias = None if bias is None else aligned(bias)
    axes = merged(batch, contiguous_strides(batch), _steps(a, batch), _steps(b, batch))
    *outer, (count, c_step, a_step, b_step) = axes or [[1, 1, 0, 0]]
    most = MOST_BATCHES // choice.pieces
    outer += [[-(-count // most), most * c_step, most * a_step, most * b_step]]
    for index in itertools.product(*(range(n) for n, *_ in outer)):
        of_c, of_a, of_b = (sum(i * axis[k] for i, axis in zip(index, outer)) for k in (1, 2, 3))
        _launch(choice, a, b, bias, c, of_a, of_b, of_c * M * N,
                min(most, count - index[-1] * most), a_step, b_step)


def _launch(choice, a, b, bias, c, of_a, of_b, of_c, count, a_step, b_step):
    """`count` products of matrices, from elements of_a, of_b and of_c on."""
    (M, N), K, pieces = c.shape[-2:], a.shape[-1], choice.pieces
    flat_a, flat_b, flat_c = map(from_element, (a, b, c), (of_a, of_b, of_c))
    biased, bias = bias is not None, flat_c if bias is None else bias
    if choice.factory is plain:
        launch(plain, choice.constants, (-(-M // TILE), -(-N // TILE), count), flat_a, flat_b,
               bias, flat_c, M, N, K, *a.strides[-2:], *b.strides[-2:], a_step, b_step, biased)
        return
    rows, columns = choice.constants[1:3]
    parts = (empty((count * pieces * M * N,), "float32") if pieces > 1 else
             DeviceArray((0,), (1,), np.dtype("float32"), c.block))
    launch(choice.factory, choice.constants, (-(-M // rows), -(-N // columns), count * pieces),
           flat_a, flat_b, bias, flat_c, parts, M, N, K, a.strides[-2], b.strides[-2], a_step,
           b_step, biased, pieces)
    if pieces > 1:
        add_up(parts, bias, flat_c, biased, count, M, N)


def add_up(parts: DeviceArray, bias: DeviceArray, c: DeviceArray, biased: bool, count: int,
           M: int, N: int) -> None:
    """c (count, M, N) = the sums of parts (count, pieces, M, N) + bias."""
    size = count * M * N
    launch(add_pieces, (str(c.dtype),), (-(-size // THREADS),), parts, bias, c, size, N, M * N,
           biased, parts.size // size)


def _suited(x):
    """x (..., K), its rows contiguous and on 16 bytes: a copy unless it lies so."""
    per = 16 // x.dtype.itemsize
    steps = [x.offset, *(s for n, s in zip(x.shape[:-1], x.strides[:-1]) if n != 1)]
    return x if x.strides[-1] == 1 and not any(s % per for s in steps) else aligned(x)


def _rows(x):
    """x (..., K) as (M, K): a copy unless its rows lie at one distance."""
    axes = merged(x.shape[:-1], contiguous_strides(x.shape[:-1]), x.strides[:-1])
    if len(axes) > 1:
        return _rows(ordered(x))
    step = axes[0][2] if axes else x.shape[-1]
    return DeviceArray((math.prod(x.shape[:-1]), x.shape[-1]), (step, x.strides[-1]), x.dtype,
                       x.block, x.offset)


def _steps(x, batch):
    """The steps of x (..., rows, K) along the axes of a batch that it broadcasts to."""
    axes = zip(x.shape[:-2], x.strides[:-2])
    return [0] * (len(batch) - x.ndim + 2) + [0 if n == 1 else s for n, s in axes]


def choose_linear(x: tuple, weight: tuple, dtype: str, capability: int) -> Choice:
    """The kernel for x (..., K) and weight (N, K). An image is the last axis but one, if three."""
    N, K = weight
    rows = x[-2] if len(x) > 2 else 1
    return _choose(rows, math.prod(x[:-1]), N, K, dtype, capability)


def choose_matmul(a: tuple, b: tuple, dtype: str, capability: int) -> Choice:
    """The kernel for a (..., M, K) and b (..., K, N)."""
    return _choose(a[-2], a[-2], b[-1], b[-2], dtype, capability)


def _choose(rows, M, N, K, dtype, capability):
    step = {"float32": 4, "float64": 0}.get(dtype, 8)
    if not step:
        return Choice(plain, (dtype,), "the fast kernels have no float64")
    if K % step or N % step or not K:
        return Choice(plain, (dtype,), f"K = {K} and N = {N} are not both multiples of {step}")
    if dtype == "bfloat16" and capability < AMPERE:
        return Choice(plain, (dtype,), "tensor cores know bfloat16 from capability 8.0 on")
    how = rows, M, N, K, capability
    if dtype == "float32":
        return tiling.chosen(linear_float32.registers, dtype, linear_float32.TILES, *how)
    if capability == HOPPER and rows >= linear_tiles.WARPGROUP:
        return tiling.chosen(linear_tiles.hopper, dtype, linear_tiles.HOPPER_TILES, *how,
                             cycles=tiling.of_warpgroups)
    if capability >= AMPERE:
        return tiling.chosen(linear_tiles.ampere, dtype, linear_tiles.TILES, *how)
    return tiling.chosen(linear_tiles.turing, dtype, linear_tiles.TURING, *how)
