"""Attention tile by tile, the scores never in memory as a whole.

The lanes of every vector are queries. A tile multiplies ROWS keys by a panel of NR queries, and
what it gives, keys by queries, is at once the panel that the transposed values are multiplied by.
Largest scores, exponentials and their sums run down the keys, each lane for itself.

One block of keys follows the other (Milakov and Gimelshein 2018; Dao et al. 2022): each query keeps
its largest score m so far, the sum of e^(s - m) and of e^(s - m) v. A larger m scales both down.
Queries are multiplied by log2 e along with 1 / sqrt(d): the powers are then those of 2.
"""

import math

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


@kernel("numba")
def attention(q, k, v, *, heads, mask=None, causal=False):
    (N, L, C), (_, S, D) = q.shape, v.shape
    y = empty((N, L, D), q.dtype)
    if y.size:
        (q, _, q_step), (k, _, k_step), (v, _, v_step) = as_rows(q), as_rows(k), as_rows(v)
        mask, mask_steps = _mask(mask, (N, heads, L, S), q.dtype)
        d, e, NR = C // heads, D // heads, panel_width(y.dtype)
        key_step, value_step = _odd_lines(d, y.itemsize), _up(e, TRANSPOSED_ROWS)
        keys = aligned_empty(N * heads * _up(S, ROWS) * key_step, y.dtype)
        values = aligned_empty(N * heads * S * value_step, y.dtype)
        room = (KEYS + PANELS * (d + value_step + 2)) * NR
        rooms = aligned_empty(numba.get_num_threads() * room, y.dtype)
        _attention(q, q_step, k, k_step, v, v_step, mask, mask_steps, N, heads, L, S, d, e, causal,
                   keys, key_step, values, value_step, rooms, room, flat(y))
    return y


def _mask(mask, shape, dtype):
    """The mask's memory (none: nothing) and its steps along the axes of `shape`."""
    if mask is None:
        return np.empty(0, dtype), np.zeros(4, np.int64)
    mask = np.require(mask, None, "CA")
    return flat(mask), np.array(np.broadcast_to(mask, shape).strides) // mask.itemsize


@jit(parallel=True)
def _attention(q, q_step, k, k_step, v, v_step, mask, mask_steps, N, heads, L, S, d, e, causal,
               keys, key_step, values, value_step, rooms, room, y):
    """A task is a few panels of queries of one head. Before: keys and values packed by head."""
    NR = VECTORS * lanes(q)
    key_size, value_size = keys.size // (N * heads), S * value_step
    for task in prange(N * heads):
        of = np.int64(task)
        n, head = of // heads, of % heads
        _pack(pointer(k, n * S * k_step + head * d), k_step, S, d,
              pointer(keys, of * key_size), key_step)
        _pack(pointer(v, n * S * v_step + head * e), v_step, S, e,
              pointer(values, of * value_size), value_step)

    panels = (L + NR - 1) // NR
    parts = (panels + PANELS - 1) // PANELS
    for task in prange(N * heads * parts):
        of, part = np.int64(task) // parts, np.int64(task) % parts
        n, head = of // heads, of % heads
        first, count = part * PANELS * NR, min(PANELS, panels - part * PANELS)
        scores = rooms[numba.get_thread_id() * room:][:room]
        largest, whole = scores[KEYS * NR:], scores[(KEYS + PANELS) * NR:]
        queries = scores[(KEYS + 2 * PANELS) * NR:]
        sums = queries[PANELS * d * NR:]
        largest[:count * NR] = -np.inf
        whole[:count * NR] = 0
        sums[:count * value_step * NR] = 0
        for p in range(count):
            query = first + p * NR
            _pack_queries(pointer(q, (n * L + query) * q_step + head * d), q_step,
                          min(NR, L - query), d, pointer(queries, p * d * NR))

        for key in range(0, S, KEYS):
            seen = min(KEYS, S - key)
            for p in range(count):
                query = first + p * NR
                _score(pointer(keys, of * key_size + key * key_step), key_step, d,
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
                _add_values(pointer(values, of * value_size + key * value_step), value_step, seen,
                            pointer(scores, 0), out)

        for p in range(count):
            query = first + p * NR
            _finish(pointer(sums, p * value_step * NR), pointer(whole, p * NR), min(NR, L - query),
                    e, pointer(y, ((n * L + query) * heads + head) * e), heads * e)


@jit
def _score(keys, step, d, queries, count, scores):
    """scores (count, NR) = keys (count, d) queries (d, NR)"""
    NR = VECTORS * lanes(scores)
    for i in range(0, count, ROWS):
        tile_once(keys, i * step, step, d, queries, pointer(scores, i * NR))


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
def _add_values(values, step, count, weights, sums):
    """sums (step, NR) += values^T (step, count) weights (count, NR)"""
    NR = VECTORS * lanes(weights)
    for i in range(0, step, TRANSPOSED_ROWS):
        tile_transposed_a(values, i, step, count, weights, pointer(sums, i * NR))


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
        store(scores, i * NR, select(lane_indices(s) < ahead + i, splat_like(s, -np.inf), s))


@jit
def _finish(sums, whole, queries, e, y, step):
    """Divide by the sum of all weights, and turn: a query is a row of y."""
    size = lanes(sums)
    NR = VECTORS * size
    total = load_pair(whole, 0)
    # The largest score adds 2^0 = 1, so only a query that sees no key has less.
    total = select(total < 1.0, splat_like(total, 1.0), total)
    for i in range(0, e * NR, NR):
        store(sums, i, load_pair(sums, i) / total)
    for j in range(0, queries, size):
        for i in range(0, e, size):
            transpose_masked(sums, i * NR + j, NR, min(size, e - i), min(size, queries - j),
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


def _up(n, unit):
    """n rounded up to a multiple of the unit"""
    return -(-n // unit) * unit


def _odd_lines(n, itemsize):
    """n rounded up to an odd number of cache lines, so that rows do not meet in the cache's sets"""
    line = 64 // itemsize
    return (-(-n // line) | 1) * line
