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

import math
from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import aligned_empty, as_rows, empty, flat, panel_width
from refsd.numba_ops.simd import (
    WIDTH,
    lane_indices,
    lanes,
    load_pair,
    masked_load,
    masked_store,
    pointer,
    select,
    splat_like,
    store,
)
from refsd.numba_ops.tile import ROWS, TRANSPOSED_ROWS, VECTORS, tile_once, tile_transposed_a
from refsd.numba_ops.transpose import transpose, transpose_masked
from refsd.numba_ops.vecmath import exp2_below
from refsd.registry import kernel

# Keys of a block: its scores against a panel of queries fill half a first-level cache of 48 KB, and
# the queries and some keys and values have room beside them.
KEYS = 22 * 2**10 // (VECTORS * WIDTH) // ROWS * ROWS
# Panels of queries in one task: they share each block of keys and values in the next cache.
PANELS = 4
LOG2_E = 1 / math.log(2)


class Rows(NamedTuple):
    """Rows of adjacent elements in flat memory, each `step` elements after the one before."""

    data: np.ndarray
    step: int


class Mask(NamedTuple):
    """A mask's flat memory (none: nothing), and its steps along N, heads, L and S."""

    data: np.ndarray
    steps: np.ndarray


class Sizes(NamedTuple):
    """Images, heads, queries, keys, and the widths of a head's queries and values."""

    N: int
    heads: int
    L: int
    S: int
    d: int
    e: int


@kernel("numba")
def attention(q, k, v, *, heads, mask=None, causal=False):
    (N, L, C), (_, S, D) = q.shape, v.shape
    y = empty((N, L, D), q.dtype)
    if y.size:
        d, e, NR = C // heads, D // heads, panel_width(y.dtype)
        key_step, value_step = _odd_lines(d, y.itemsize), _round_up(e, TRANSPOSED_ROWS)
        keys = aligned_empty(N * heads * _round_up(S, ROWS) * key_step, y.dtype)
        values = aligned_empty(N * heads * S * value_step, y.dtype)
        buffer_size = (KEYS + PANELS * (d + value_step + 2)) * NR
        buffers = aligned_empty(numba.get_num_threads() * buffer_size, y.dtype)
        _attention(_rows(q), _rows(k), _rows(v), _mask(mask, (N, heads, L, S), y.dtype), causal,
                   Sizes(N, heads, L, S, d, e), Rows(keys, key_step), Rows(values, value_step),
                   Rows(buffers, buffer_size), flat(y))
    return y


def _rows(x):
    data, _, step = as_rows(x)
    return Rows(data, step)


def _mask(mask, shape, dtype):
    if mask is None:
        return Mask(np.empty(0, dtype), np.zeros(4, np.int64))
    mask = np.require(mask, None, "CA")
    return Mask(flat(mask), np.array(np.broadcast_to(mask, shape).strides) // mask.itemsize)


@jit(parallel=True)
def _attention(q, k, v, mask, causal, sizes, keys, values, buffers, y):
    """Keys and values are packed by head; then a task is a few panels of queries of one head."""
    NR = VECTORS * lanes(y)
    N, heads, L, S, d, e = sizes
    key_size, value_size = keys.data.size // (N * heads), S * values.step
    for task in prange(N * heads):
        of = np.int64(task)
        n, head = of // heads, of % heads
        _pack(pointer(k.data, n * S * k.step + head * d), k.step, S, d,
              pointer(keys.data, of * key_size), keys.step)
        _pack(pointer(v.data, n * S * v.step + head * e), v.step, S, e,
              pointer(values.data, of * value_size), values.step)

    panels = (L + NR - 1) // NR
    parts = (panels + PANELS - 1) // PANELS
    for task in prange(N * heads * parts):
        of, part = np.int64(task) // parts, np.int64(task) % parts
        n, head = of // heads, of % heads
        first, count = part * PANELS * NR, min(PANELS, panels - part * PANELS)
        scores = buffers.data[numba.get_thread_id() * buffers.step:][:buffers.step]
        row_max, row_sum = scores[KEYS * NR:], scores[(KEYS + PANELS) * NR:]
        queries = scores[(KEYS + 2 * PANELS) * NR:]
        acc = queries[PANELS * d * NR:]
        row_max[:count * NR] = -np.inf
        row_sum[:count * NR] = 0
        acc[:count * values.step * NR] = 0
        for p in range(count):
            query = first + p * NR
            _pack_queries(pointer(q.data, (n * L + query) * q.step + head * d), q.step,
                          min(NR, L - query), d, pointer(queries, p * d * NR))

        for key in range(0, S, KEYS):
            block = min(KEYS, S - key)
            for p in range(count):
                query = first + p * NR
                _score(pointer(keys.data, of * key_size + key * keys.step), keys.step, d,
                       pointer(queries, p * d * NR), block, pointer(scores, 0))
                if mask.data.size > 0:
                    at = n * mask.steps[0] + head * mask.steps[1]
                    at += query * mask.steps[2] + key * mask.steps[3]
                    _add_mask(mask, at, min(NR, L - query), block, scores)
                if causal:
                    _causal_mask(pointer(scores, 0), block, key - query)
                out = pointer(acc, p * values.step * NR)
                _online_softmax(pointer(scores, 0), block, pointer(row_max, p * NR),
                                pointer(row_sum, p * NR), out, values.step)
                _add_values(pointer(values.data, of * value_size + key * values.step), values.step,
                            block, pointer(scores, 0), out)

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
def _online_softmax(scores, count, row_max, row_sum, acc, width):
    """scores = 2^(scores - m'), and row_max, row_sum and acc go from m to m', as above."""
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

    rescale = exp2_below(old_max - shift)
    for i in range(0, width * NR, NR):
        store(acc, i, load_pair(acc, i) * rescale)
    new_sum = load_pair(row_sum, 0) * rescale
    for i in range(0, count * NR, NR):
        p = exp2_below(load_pair(scores, i) - shift)
        store(scores, i, p)
        new_sum = new_sum + p
    store(row_sum, 0, new_sum)


@jit
def _add_values(values, step, count, weights, acc):
    """sums (step, NR) += values^T (step, count) weights (count, NR)"""
    NR = VECTORS * lanes(weights)
    for i in range(0, step, TRANSPOSED_ROWS):
        tile_transposed_a(values, i, step, count, weights, pointer(acc, i * NR))


@jit
def _add_mask(mask, at, queries, count, scores):
    NR = VECTORS * lanes(scores)
    for query in range(queries):
        for key in range(count):
            value = mask.data[at + query * mask.steps[2] + key * mask.steps[3]]
            scores[key * NR + query] += value * scores.dtype.type(LOG2_E)


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


@jit
def _pack_queries(q, step, count, d, panel):
    """panel (d, NR) = q^T log2 e / sqrt(d); lanes without a query repeat another one."""
    size = lanes(q)
    NR = VECTORS * size
    for j in range(0, NR, size):
        start = min(j, (count - 1) // size * size)
        for i in range(0, d, size):
            transpose(q, start * step + i, step, min(size, count - start), min(size, d - i),
                 panel, i * NR + j, NR)
    for i in range(0, d * NR, NR):
        store(panel, i, load_pair(panel, i) * (LOG2_E / math.sqrt(d)))


@jit
def _pack(x, step, rows, width, packed, packed_step):
    """One head's rows of `width` elements. What tiles read beyond reaches no result."""
    size = lanes(x)
    for i in range(rows):
        for c in range(0, width, size):
            n = min(size, width - c)
            masked_store(packed, i * packed_step + c, masked_load(x, i * step + c, n), n)


def _round_up(n, unit):
    """n rounded up to a multiple of the unit"""
    return -(-n // unit) * unit


def _odd_lines(n, itemsize):
    """n rounded up to an odd number of cache lines, so that rows do not meet in the cache's sets"""
    line = 64 // itemsize
    return (-(-n // line) | 1) * line
