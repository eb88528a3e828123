"""Attention: which kernel computes it on a GPU, and the plain one, a warp a query.

All of them go over the keys block by block, as the CPU's kernel does, with

    m' = max(m, max s)    l' = l e^(m - m') + sum e^(s - m')    acc' = acc e^(m - m') + e^(s - m') v

(Milakov and Gimelshein 2018, arXiv:1805.02867), so that no scores are in memory. m is `row_max` and
l is `row_sum`. d and e are the widths of a head's queries and values. A key that is hidden still
weighs 0 times its value, which is NaN where that is NaN or infinite: as in the definition.
"""

import math
from typing import Any

from refsd.half import HALVES
from refsd.numba_ops.cuda.array import DeviceArray, empty
from refsd.numba_ops.cuda.attention_call import WARP, Call, signature
from refsd.numba_ops.cuda.attention_flash import attention_flash, attention_flash_turing
from refsd.numba_ops.cuda.attention_tiles import WIDEST, attention_tiles
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.layout import aligned
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Choice, Plan, factory
from refsd.numba_ops.cuda.warp import warp_max, warp_sum
from refsd.registry import kernel

WARPS = 4
THREADS = WARPS * WARP
PER_LANE = 2  # columns of the result that a lane adds up
DTYPES = ("float32", "float64", "float16", "bfloat16")


@factory(each=[(dtype,) for dtype in DTYPES])
def attention_plain(gpu: Any, dtype: str) -> Plan:
    """y = softmax(q k^T scale + mask) v, a lane a key, then a lane a few columns of the values."""
    cuda, uint32, exp, kind = gpu.cuda, gpu.uint32, gpu.exp, number(gpu, dtype)
    read, write, lowest = reader(gpu, dtype), writer(gpu, dtype), kind(-math.inf)
    largest, total = warp_max(gpu), warp_sum(gpu)

    def attention(q, k, v, mask, y, scale, masked, causal, heads, L, S, d, e, q_image, q_row,
                  k_image, k_row, v_image, v_row, mask_image, mask_head, mask_query, mask_key):
        weights = cuda.shared.array(THREADS, kind)  # of a warp: those of its 32 keys
        acc = cuda.local.array(PER_LANE, kind)
        t = uint32(cuda.threadIdx.x)
        lane, of_warp = t % uint32(WARP), t - t % uint32(WARP)
        row = uint32(cuda.blockIdx.x) * uint32(WARPS) + t // uint32(WARP)
        n, head = uint32(cuda.blockIdx.y) // heads, uint32(cuda.blockIdx.y) % heads
        column = uint32(cuda.blockIdx.z) * uint32(PER_LANE * WARP) + lane
        if row < L:
            query, first_key = n * q_image + row * q_row + head * d, n * k_image + head * d
            values, masks = n * v_image + head * e, n * mask_image + head * mask_head
            row_max, row_sum = lowest, kind(0)
            for a in range(PER_LANE):
                acc[a] = kind(0)
            for block in range(uint32(0), S, uint32(WARP)):
                key, score = uint32(block) + lane, lowest
                if key < S and (not causal or key <= row):
                    score = kind(0)
                    for c in range(d):
                        score += read(q, query + uint32(c)) * read(
                            k, first_key + key * k_row + uint32(c))
                    score *= scale
                    if masked:
                        score += read(mask, masks + row * mask_query + key * mask_key)
                new_max = largest(row_max if row_max > score else score)
                shift = kind(0) if new_max == lowest else new_max  # no key has been seen yet
                rescale, weight = exp(row_max - shift), exp(score - shift)
                weights[t] = weight
                row_max, row_sum = new_max, row_sum * rescale + total(weight)
                cuda.syncwarp()
                for a in range(PER_LANE):
                    acc[a] *= rescale
                for i in range(min(uint32(WARP), S - uint32(block))):
                    for a in range(PER_LANE):
                        if column + uint32(a * WARP) < e:
                            acc[a] += weights[of_warp + uint32(i)] * read(
                                v, values + (uint32(block) + uint32(i)) * v_row
                                + column + uint32(a * WARP))
                cuda.syncwarp()
            whole = row_sum if row_sum > kind(0) else kind(1)  # a query that sees no key: 0
            for a in range(PER_LANE):
                if column + uint32(a * WARP) < e:
                    write(y, ((n * L + row) * heads + head) * e + column + uint32(a * WARP),
                          acc[a] / whole)

    return Plan(attention, signature(gpu, dtype), THREADS)


@kernel("cuda", reads_halves=True)
def attention(q, k, v, *, heads, mask=None, causal=False):
    (N, L, C), (_, _, D) = q.shape, v.shape
    y = empty((N, L, D), q.dtype)
    if y.size:
        run(choose_attention(C // heads, D // heads, str(q.dtype), mask is not None,
                             current().capability), q, k, v, mask, y, heads=heads, causal=causal)
    return y


def choose_attention(d: int, e: int, dtype: str, masked: bool, capability: int) -> Choice:
    """The kernel for heads whose queries have width d and whose values have e."""
    if dtype in HALVES and d % 8 == e % 8 == 0:
        flash = attention_flash if capability >= attention_flash.since else attention_flash_turing
        for constants in flash.each:
            if constants[0] == dtype and constants[1] >= max(d, e) and constants[2] == masked:
                return Choice(flash, constants, f"tensor cores, widths up to {constants[1]}")
    if dtype != "float64" and d % (per := 8 if dtype in HALVES else 4) == e % per == 0:
        part = -(-e // -(-e // WIDEST[0]))  # of the values, all parts alike
        for constants in attention_tiles.each:
            if constants[0] == dtype and constants[1] >= part:
                return Choice(attention_tiles, constants, "tiles of float32, values "
                              f"{constants[1]} columns at a time")
    return Choice(attention_plain, (dtype,), "a warp a query: takes any width and dtype")


def run(choice: Choice, q: DeviceArray, k: DeviceArray, v: DeviceArray, mask: DeviceArray | None,
        y: DeviceArray, *, heads: int, causal: bool) -> None:
    """The chosen kernel into y (N, L, D), which is contiguous."""
    (N, L, C), (_, S, D) = q.shape, v.shape
    d, e = C // heads, D // heads
    rows, columns, neighbours = _block(*choice[:2])
    q, k, v = (_rows(x, neighbours) for x in (q, k, v))
    steps = [step for x in (q, k, v) for step in x.strides[:2]]
    call = Call(mask is not None, causal, heads, L, S, d, e, *steps, *_steps(mask))
    grid = -(-L // rows), N * heads, -(-e // columns)
    launch(choice.factory, choice.constants, grid, q, k, v, q if mask is None else mask, y,
           1 / math.sqrt(d), *call)


def _block(factory, constants):
    """The queries and columns of the values that a block computes, and elements read at once."""
    if factory is attention_plain:
        return WARPS, PER_LANE * WARP, 1
    if factory is attention_tiles:
        return 16 * constants[2], constants[1], 4 if constants[0] == "float32" else 8
    return 16 * constants[3] * constants[4], constants[1], 8


def _rows(x, neighbours):
    """Rows of elements side by side, wherever each row lies that begins at a whole vector."""
    whole = not any(place % neighbours for place in (x.offset, *x.strides[:2]))
    return x if x.strides[2] == 1 and whole else aligned(x)


def _steps(mask):
    """From image to image, head to head, query to query, key to key; 0 where all have the same."""
    steps = [] if mask is None else [0 if n == 1 else s for n, s in zip(mask.shape, mask.strides)]
    return [0] * (4 - len(steps)) + steps
