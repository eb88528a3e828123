"""Attention tile by tile, the scores never in memory as a whole.

The lanes of every vector are queries. A tile multiplies ROWS keys by a panel of NR queries, and
what it gives, keys by queries, is at once the panel that the transposed values are multiplied by.
Largest scores, exponentials and their sums run down the keys, each lane for itself.

One block of keys follows the other (Milakov and Gimelshein 2018; Dao et al. 2022): each query keeps
its largest score m so far, the sum of e^(s - m) and of e^(s - m) v. A larger m scales both down.
Queries are multiplied by log2 e along with 1 / sqrt(d): the powers are then those of 2.
"""

import math

import numpy as np
from numba import prange

from refsd.numba_ops.jit import jit
from refsd.numba_ops.memory import as_rows, empty, flat
from refsd.numba_ops.simd import (
    lane_numbers,
    lanes,
    load,
    load_first,
    load_pair,
    pointer,
    select,
    splat_like,
    store,
    store_first,
)
from refsd.numba_ops.tile import ROWS, VECTORS, tile
from refsd.numba_ops.vecmath import exp2_below
from refsd.registry import kernel

# Keys of a block: its scores against a panel of queries fill most of a first-level cache.
KEYS = 256 // ROWS * ROWS
# Panels of queries in one task: they share each block of keys and values in the next cache.
PANELS = 4
LOG2_E = 1 / math.log(2)
_ONE_SEGMENT = np.zeros(1, np.int64)


@kernel("numba")
def attention(q, k, v, *, heads, mask=None, causal=False):
    (N, L, C), (_, S, D) = q.shape, v.shape
    y = empty((N, L, D), q.dtype)
    if y.size:
        (q, _, q_step), (k, _, k_step), (v, _, v_step) = as_rows(q), as_rows(k), as_rows(v)
        mask, mask_steps = _mask(mask, (N, heads, L, S), q.dtype)
        _attention(q, q_step, k, k_step, v, v_step, mask, mask_steps, N, heads, L, S, C // heads,
                   D // heads, causal, _ONE_SEGMENT, flat(y))
    return y


def _mask(mask, shape, dtype):
    """The mask's memory (none: nothing) and its steps along the axes of `shape`."""
    if mask is None:
        return np.empty(0, dtype), np.zeros(4, np.int64)
    mask = np.require(mask, None, "CA")
    return flat(mask), np.array(np.broadcast_to(mask, shape).strides) // mask.itemsize


@jit(parallel=True)
def _attention(q, q_step, k, k_step, v, v_step, mask, mask_steps, N, heads, L, S, d, e, causal,
               one_segment, y):
    """A task is a few panels of queries of one head. Before: keys and values packed by head."""
    NR = VECTORS * lanes(q)
    key_step, value_step = _odd_lines(d, q), _up(e)
    key_size, value_size = _up(S) * key_step, S * value_step
    keys, values = _lined_up(N * heads * key_size, q), _lined_up(N * heads * value_size, q)
    for task in prange(N * heads):
        of = np.int64(task)
        n, head = of // heads, of % heads
        _pack(pointer(k, n * S * k_step + head * d), k_step, S, d,
              pointer(keys, of * key_size), key_step)
        _pack(pointer(v, n * S * v_step + head * e), v_step, S, e,
              pointer(values, of * value_size), value_step)

    value_rows = np.arange(KEYS) * value_step
    panels = (L + NR - 1) // NR
    parts = (panels + PANELS - 1) // PANELS
    for task in prange(N * heads * parts):
        of, part = np.int64(task) // parts, np.int64(task) % parts
        n, head = of // heads, of % heads
        first, count = part * PANELS * NR, min(PANELS, panels - part * PANELS)
        queries, scores = _lined_up(count * d * NR, q), _lined_up(KEYS * NR, q)
        sums, tile_sums = _lined_up(count * value_step * NR, q), _lined_up(ROWS * NR, q)
        largest, whole = np.full(count * NR, -np.inf, q.dtype), np.zeros(count * NR, q.dtype)
        queries[:] = 0
        sums[:] = 0
        for p in range(count):
            query = first + p * NR
            _pack_queries(q, (n * L + query) * q_step + head * d, q_step, min(NR, L - query), d,
                          queries, p * d * NR)

        for key in range(0, S, KEYS):
            seen = min(KEYS, S - key)
            for p in range(count):
                query = first + p * NR
                _score(pointer(keys, of * key_size + key * key_step), key_step, one_segment, d,
                       pointer(queries, p * d * NR), seen, pointer(scores, 0))
                if mask.size > 0:
                    at = n * mask_steps[0] + head * mask_steps[1]
                    at += query * mask_steps[2] + key * mask_steps[3]
                    _add_mask(mask, at, mask_steps[2], mask_steps[3], min(NR, L - query), seen,
                              scores)
                if causal:
                    _hide_later(pointer(scores, 0), seen, key - query)
                out = pointer(sums, p * value_step * NR)
                _soften(pointer(scores, 0), seen, pointer(largest, p * NR), pointer(whole, p * NR),
                        out, value_step)
                _add_values(pointer(values, of * value_size + key * value_step), value_rows[:seen],
                            pointer(scores, 0), pointer(tile_sums, 0), out, value_step)

        for p in range(count):
            query = first + p * NR
            _finish(sums, p * value_step * NR, pointer(whole, p * NR), min(NR, L - query), e, y,
                    ((n * L + query) * heads + head) * e, heads * e)


@jit
def _score(keys, step, one_segment, d, queries, count, scores):
    """scores (count, NR) = keys (count, d) queries (d, NR)"""
    NR = VECTORS * lanes(scores)
    for i in range(0, count, ROWS):
        tile(keys, i * step, step, one_segment, d, queries, 0, pointer(scores, i * NR))


@jit
def _soften(scores, count, largest, whole, sums, width):
    """scores -> 2^(scores - largest), largest so far; what was summed before is scaled down."""
    NR = VECTORS * lanes(scores)
    before = load_pair(largest, 0)
    now = before
    for i in range(0, count, 2):
        s, t = load_pair(scores, i * NR), load_pair(scores, min(i + 1, count - 1) * NR)
        s = select(s > t, s, t)
        now = select(s > now, s, now)
    store(largest, 0, now)
    # Where no key has been seen yet, 2^(-inf - 0) = 0.
    shift = select(now == -np.inf, splat_like(now, 0.0), now)

    down = exp2_below(before - shift)
    for i in range(0, width * NR, NR):
        store(sums, i, load_pair(sums, i) * down)
    total = load_pair(whole, 0) * down
    for i in range(0, count * NR, NR):
        p = exp2_below(load_pair(scores, i) - shift)
        store(scores, i, p)
        total = total + p
    store(whole, 0, total)


@jit
def _add_values(values, rows, weights, tile_sums, sums, width):
    """sums (width, NR) += values^T (width, keys) weights (keys, NR)

    The tile reads the values transposed as they lie: its rows, features, are 1 apart, and each key
    is a segment of length 1.
    """
    size = lanes(weights)
    NR = VECTORS * size
    for i in range(0, width, ROWS):
        tile(values, i, 1, rows, 1, weights, 0, tile_sums)
        for j in range(0, ROWS * NR, size):
            store(sums, i * NR + j, load(sums, i * NR + j) + load(tile_sums, j))


@jit
def _add_mask(mask, at, query_step, key_step, queries, count, scores):
    NR = VECTORS * lanes(scores)
    for query in range(queries):
        for key in range(count):
            value = mask[at + query * query_step + key * key_step]
            scores[key * NR + query] += value * scores.dtype.type(LOG2_E)


@jit
def _hide_later(scores, count, ahead):
    """-inf where a key comes after the query; the first key is `ahead` of the first query."""
    NR = VECTORS * lanes(scores)
    for i in range(count):
        s = load_pair(scores, i * NR)
        store(scores, i * NR, select(lane_numbers(s) < ahead + i, splat_like(s, -np.inf), s))


@jit
def _finish(sums, start, whole, queries, e, y, at, step):
    """Divide by the sum of all weights, and turn: a query is a row of y."""
    NR = VECTORS * lanes(sums)
    total = load_pair(whole, 0)
    # The largest score adds 2^0 = 1, so only a query that sees no key has less.
    total = select(total < 1.0, splat_like(total, 1.0), total)
    for i in range(start, start + e * NR, NR):
        store(sums, i, load_pair(sums, i) / total)
    for query in range(queries):
        for i in range(e):
            y[at + query * step + i] = sums[start + i * NR + query]


@jit
def _pack_queries(q, at, step, count, d, queries, to):
    """A panel of q^T log2 e / sqrt(d)"""
    NR = VECTORS * lanes(q)
    scale = q.dtype.type(LOG2_E / math.sqrt(d))
    for query in range(count):
        for i in range(d):
            queries[to + i * NR + query] = q[at + query * step + i] * scale


@jit
def _pack(x, step, rows, width, packed, packed_step):
    """One head's rows of `width` elements. What tiles read beyond reaches no result."""
    size = lanes(x)
    for i in range(rows):
        for c in range(0, width, size):
            n = min(size, width - c)
            store_first(packed, i * packed_step + c, load_first(x, i * step + c, n), n)


@jit
def _lined_up(size, like):
    """Uninitialised memory that begins where a line of the cache does."""
    line = 64 // like.itemsize
    memory = np.empty(size + line, like.dtype)
    start = -(memory.ctypes.data // like.itemsize) % line
    return memory[start:start + size]


@jit
def _up(n):
    """n rounded up to a multiple of ROWS"""
    return (n + ROWS - 1) // ROWS * ROWS


@jit
def _odd_lines(n, like):
    """n rounded up to an odd number of cache lines, so that rows do not meet in the cache's sets"""
    line = 64 // like.itemsize
    return ((n + line - 1) // line | 1) * line
