"""FlashAttention: attention block of keys by block of keys, never all scores in memory.

For each query, over the blocks of keys so far (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao
et al. 2022, arXiv:2205.14135), with s = q k^T log2 e / sqrt(d), so that powers are of 2:

    m' = max(m, max s)    l' = l 2^(m - m') + sum 2^(s - m')    acc' = acc 2^(m - m') + 2^(s - m') v

Here m is `row_max` and l is `row_sum`; acc is O before its division by l, which comes last (Dao
2023, arXiv:2307.08691). d and e are the widths of a head's queries and values.

The lanes of every vector are NR queries: a tile multiplies ROWS keys by a panel (d, NR) of queries,
and its scores (keys, NR) are at once the panel that values^T is multiplied by. A lane's maximum and
sum run over the keys and never meet another lane's. Buffers, 1-D in memory:

    keys (N heads, S up to whole ROWS, key_step)     values (N heads, S, value_step)
    of a thread: scores (KEYS, NR), row_max and row_sum (PANELS, NR), queries (PANELS, d, NR),
    acc (PANELS, value_step, NR)
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from refsd.half import to_float32
from refsd.numba_ops.cpu.attention_operands import (
    add_values,
    pack_queries,
    pack_rows,
    pack_values,
    scale_queries,
    scale_scores,
    weigh,
)
from refsd.numba_ops.jit import jit
from refsd.numba_ops.levels import BFLOAT16
from refsd.numba_ops.memory import (
    aligned_empty,
    as_rows,
    computed_dtype,
    count_copy,
    empty,
    flat,
    panel_width,
)
from refsd.numba_ops.simd import (
    WIDTH,
    lane_indices,
    lanes,
    load_pair,
    pointer,
    select,
    splat_like,
    store,
)
from refsd.numba_ops.tile import ROWS, TRANSPOSED_ROWS, VECTORS, tile_once
from refsd.numba_ops.transpose import transpose_masked
from refsd.numba_ops.vecmath import exp2_below
from refsd.registry import kernel

# Keys of a block: its scores against a panel of queries fill half a first-level cache of 48 KB, and
# the queries and some keys and values have room beside them.
KEYS = 22 * 2**10 // (VECTORS * WIDTH) // ROWS * ROWS
# Panels of queries in one task: they share each block of keys and values in the next cache.
PANELS = 4


class Rows(NamedTuple):
    """Rows of adjacent elements in flat memory, each `step` elements after the one before."""

    data: np.ndarray
    step: int


class Mask(NamedTuple):
    """A mask's flat memory (none: nothing), and its steps along N, heads, L and S."""

    data: np.ndarray
    steps: np.ndarray


class Sizes(NamedTuple):
    """Images, heads, queries, keys, and the widths of a head's queries and values.

    Each as what is multiplied: where that is pairs, d counts pairs.
    """

    N: int
    heads: int
    L: int
    S: int
    d: int
    e: int


class Buffers(NamedTuple):
    """A buffer of `step` elements for each thread: numbers, and in the same memory operands."""

    numbers: np.ndarray
    operands: np.ndarray
    step: int


@kernel("numba", reads_halves=True)
def attention(q, k, v, *, heads, mask=None, causal=False):
    (N, L, C), (_, S, D) = q.shape, v.shape
    y = empty((N, L, D), q.dtype)
    if y.size:
        numbers = computed_dtype(y.dtype)
        mask = _mask(to_float32(mask), (N, heads, L, S), numbers)
        d, e = C // heads, D // heads
        key_step, value_step, *sizes, step = lengths(N, heads, S, d, e, y.dtype)
        if _is_paired(y.dtype, d):
            q, k, operands = _pairs(q), _pairs(k), np.dtype(np.int32)
            factors, d = scale_scores(d, mask.data.size > 0), d // 2
        else:
            q, k, operands = _rows(q), _rows(k), numbers
            factors = scale_queries(d, mask.data.size > 0)
        keys, values = (aligned_empty(size, operands) for size in sizes)
        buffers = aligned_empty(numba.get_num_threads() * step, numbers)
        _attention(q, k, _rows(v), mask, causal, factors, Sizes(N, heads, L, S, d, e),
                   Rows(keys, key_step), Rows(values, value_step),
                   Buffers(buffers, buffers.view(operands), step), flat(y))
    return y


def _is_paired(dtype, d):
    """Whether pairs of numbers are multiplied."""
    return BFLOAT16 == "dot" and dtype.name == "bfloat16" and d % 2 == 0


def lengths(N: int, heads: int, S: int, d: int, e: int, dtype: np.dtype) -> tuple[int, ...]:
    """The steps of keys and values, and the elements of keys, values and a thread's buffer."""
    rows, itemsize = S, computed_dtype(dtype).itemsize
    if _is_paired(dtype, d):
        d, rows = d // 2, -(-S // 2)
    key_step, value_step = _odd_lines(d, itemsize), _round_up(e, TRANSPOSED_ROWS)
    return (key_step, value_step, N * heads * _round_up(S, ROWS) * key_step,
            N * heads * rows * value_step,
            (KEYS + PANELS * (d + value_step + 2)) * panel_width(computed_dtype(dtype)))


def _rows(x):
    data, _, step = as_rows(x)
    return Rows(data, step)


def _pairs(x):
    """Rows of bfloat16, an even number each, as rows of pairs of them."""
    data, step = _rows(x)
    if step % 2 or data.__array_interface__["data"][0] % 4:
        count_copy()
        data, step = _rows(x.copy())
    return Rows(data.view(np.int32), step // 2)


def _mask(mask, shape, dtype):
    if mask is None:
        return Mask(np.empty(0, dtype), np.zeros(4, np.int64))
    mask = np.require(mask, None, "CA")
    return Mask(flat(mask), np.array(np.broadcast_to(mask, shape).strides) // mask.itemsize)


@jit(parallel=True)
def _attention(q, k, v, mask, causal, factors, sizes, keys, values, buffers, y):
    """Keys and values are packed by head; then a task is a few panels of queries of one head."""
    NR = VECTORS * lanes(y)
    N, heads, L, S, d, e = sizes
    key_size, value_size = keys.data.size // (N * heads), values.data.size // (N * heads)
    for task in prange(N * heads):
        of = np.int64(task)
        n, head = of // heads, of % heads
        pack_rows(pointer(k.data, n * S * k.step + head * d), k.step, S, d, keys.step,
                  pointer(keys.data, of * key_size))
        pack_values(pointer(v.data, n * S * v.step + head * e), v.step, S, e, values.step,
                    pointer(values.data, of * value_size))

    panels = (L + NR - 1) // NR
    parts = (panels + PANELS - 1) // PANELS
    for task in prange(N * heads * parts):
        of, part = np.int64(task) // parts, np.int64(task) % parts
        n, head = of // heads, of % heads
        first, count = part * PANELS * NR, min(PANELS, panels - part * PANELS)
        buffer = numba.get_thread_id() * buffers.step
        scores = buffers.numbers[buffer:][:buffers.step]
        weights = pointer(buffers.operands, buffer)
        row_max, row_sum = scores[KEYS * NR:], scores[(KEYS + PANELS) * NR:]
        queries = buffers.operands[buffer + (KEYS + 2 * PANELS) * NR:]
        acc = scores[(KEYS + (2 + d) * PANELS) * NR:]
        row_max[:count * NR] = -np.inf
        row_sum[:count * NR] = 0
        acc[:count * values.step * NR] = 0
        for p in range(count):
            query = first + p * NR
            pack_queries(pointer(q.data, (n * L + query) * q.step + head * d), q.step,
                         min(NR, L - query), d, factors.queries, pointer(queries, p * d * NR))

        for key in range(0, S, KEYS):
            block = min(KEYS, S - key)
            for p in range(count):
                query = first + p * NR
                _score(pointer(keys.data, of * key_size + key * keys.step), keys.step, d,
                       pointer(queries, p * d * NR), block, pointer(scores, 0))
                if mask.data.size > 0:
                    at = n * mask.steps[0] + head * mask.steps[1]
                    at += query * mask.steps[2] + key * mask.steps[3]
                    _add_mask(mask, at, min(NR, L - query), block, factors.masked, scores)
                if causal:
                    _causal_mask(pointer(scores, 0), block, key - query)
                out = pointer(acc, p * values.step * NR)
                _online_softmax(pointer(scores, 0), block, factors.powers,
                                pointer(row_max, p * NR), pointer(row_sum, p * NR), out,
                                values.step, weights)
                add_values(pointer(values.data, of * value_size), key, values.step, block, out,
                           weights)

        for p in range(count):
            query = first + p * NR
            _finish(pointer(acc, p * values.step * NR), pointer(row_sum, p * NR),
                    min(NR, L - query), e, pointer(y, ((n * L + query) * heads + head) * e),
                    heads * e)


@jit
def _score(keys, step, d, queries, count, scores):
    """scores (count, NR) = keys (count, d) queries (d, NR)"""
    NR = VECTORS * lanes(scores)
    for i in range(0, count, ROWS):
        tile_once(keys, i * step, step, d, queries, pointer(scores, i * NR))


@jit
def _online_softmax(scores, count, scale, row_max, row_sum, acc, width, weights):
    """weights = 2^(scale (scores - m')); row_max, row_sum and acc go from m to m', as above."""
    NR = VECTORS * lanes(scores)
    old_max = load_pair(row_max, 0)
    new_max = old_max
    for i in range(0, count, 2):
        s, t = load_pair(scores, i * NR), load_pair(scores, min(i + 1, count - 1) * NR)
        s = select(s > t, s, t)
        new_max = select(s > new_max, s, new_max)
    store(row_max, 0, new_max)
    # Where no key has been seen yet, 2^(-inf - 0) = 0.
    shift = select(new_max == -np.inf, splat_like(new_max, 0.0), new_max)

    rescale = exp2_below((old_max - shift) * scale)
    for i in range(0, width * NR, NR):
        store(acc, i, load_pair(acc, i) * rescale)
    new_sum = load_pair(row_sum, 0) * rescale
    store(row_sum, 0, weigh(scores, count, shift, scale, new_sum, weights))


@jit
def _add_mask(mask, at, queries, count, factor, scores):
    """scores = factor scores + mask"""
    NR = VECTORS * lanes(scores)
    for query in range(queries):
        for key in range(count):
            value = mask.data[at + query * mask.steps[2] + key * mask.steps[3]]
            score = scores[key * NR + query] * scores.dtype.type(factor)
            scores[key * NR + query] = score + value


@jit
def _causal_mask(scores, count, ahead):
    """scores = -inf where a key comes after the query; the first one is `ahead` of the first."""
    NR = VECTORS * lanes(scores)
    for i in range(count):
        s = load_pair(scores, i * NR)
        store(scores, i * NR, select(lane_indices(s) < ahead + i, splat_like(s, -np.inf), s))


@jit
def _finish(acc, row_sum, queries, e, y, step):
    """y (queries, e) = (acc / row_sum)^T, rows `step` apart"""
    size = lanes(acc)
    NR = VECTORS * size
    new_sum = load_pair(row_sum, 0)
    # The largest score adds 2^0 = 1, so only a query that sees no key has less.
    new_sum = select(new_sum < 1.0, splat_like(new_sum, 1.0), new_sum)
    for i in range(0, e * NR, NR):
        store(acc, i, load_pair(acc, i) / new_sum)
    for j in range(0, queries, size):
        for i in range(0, e, size):
            transpose_masked(acc, i * NR + j, NR, min(size, e - i), min(size, queries - j),
                       y, j * step + i, step)


def _round_up(n, unit):
    """n rounded up to a multiple of the unit"""
    return -(-n // unit) * unit


def _odd_lines(n, itemsize):
    """n rounded up to an odd number of cache lines, so that rows do not meet in the cache's sets"""
    line = 64 // itemsize
    return (-(-n // line) | 1) * line
