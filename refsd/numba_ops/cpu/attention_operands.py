"""What attention multiplies, as it lies in memory: numbers, or at level "dot" pairs of bfloat16.

A pair is of the d that scores sum over, or of the keys that results sum over. It is one int32, so a
tile of pairs is a tile of numbers, half as deep.

    keys (S, d) or (S, d / 2)         queries (d, NR) or (d / 2, NR)
    values (S, e) or (S / 2, e)       weights (keys, NR) or (keys / 2, NR)

`by_operands` chooses at compile time, by the type of the last argument.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from refsd.numba_ops.jit import jit
from refsd.numba_ops.pairs import add_pairs, pair_up
from refsd.numba_ops.simd import (
    lanes,
    load_pair,
    masked_load,
    masked_store,
    pointer,
    splat_like,
    store,
)
from refsd.numba_ops.tile import TRANSPOSED_ROWS, VECTORS, tile_transposed_a
from refsd.numba_ops.transpose import transpose
from refsd.numba_ops.vecmath import exp2_below

LOG2_E = 1 / math.log(2)


class Factors(NamedTuple):
    """What queries are multiplied by, scores before a mask is added, and scores in powers of 2.

    A mask is added as it is, and log2 e comes after the largest score was subtracted: the lowest
    finite number, which hides a key, times log2 e would be infinite.
    """

    queries: float
    masked: float
    powers: float


def scale_queries(d, masked):
    """1 / sqrt(d) in the queries, and log2 e too where nothing is masked."""
    root = math.sqrt(d)
    return Factors(1 / root, 1.0, LOG2_E) if masked else Factors(LOG2_E / root, 1.0, 1.0)


def scale_scores(d, masked):
    """The same of queries that are pairs, which scaling would round."""
    root = math.sqrt(d)
    return Factors(1.0, 1 / root, LOG2_E) if masked else Factors(1.0, 1.0, LOG2_E / root)


@jit
def pack_rows(x, step, rows, width, packed_step, packed):
    """One head's rows of `width` elements. What tiles read beyond reaches no result."""
    size = lanes(x)
    for i in range(rows):
        for c in range(0, width, size):
            n = min(size, width - c)
            masked_store(packed, i * packed_step + c, masked_load(x, i * step + c, n), n)


@jit
def _pack_pairs_of_rows(x, step, rows, width, packed_step, packed):
    """The same with two rows in one; the last alone with zeros."""
    size = lanes(x)
    for i in range(0, rows, 2):
        for c in range(0, width, size):
            n = min(size, width - c)
            first = masked_load(x, i * step + c, n)
            second = splat_like(first, 0.0)
            if i + 1 < rows:
                second = masked_load(x, (i + 1) * step + c, n)
            masked_store(packed, i // 2 * packed_step + c, pair_up(first, second), n)


@jit
def _pack_queries(q, step, count, d, factor, panel):
    """panel (d, NR) = factor q^T"""
    _transpose_queries(q, step, count, d, factor, panel)
    NR = VECTORS * lanes(panel)
    for i in range(0, d * NR, NR):
        store(panel, i, load_pair(panel, i) * factor)


@jit
def _transpose_queries(q, step, count, d, factor, panel):
    """panel (d, NR) = q^T; lanes without a query repeat another one. factor is 1."""
    size = lanes(q)
    NR = VECTORS * size
    for j in range(0, NR, size):
        start = min(j, (count - 1) // size * size)
        for i in range(0, d, size):
            transpose(q, start * step + i, step, min(size, count - start), min(size, d - i),
                      panel, i * NR + j, NR)


@jit
def _weigh(scores, count, shift, scale, total, weights):
    """weights = 2^(scale (scores - shift)), which are added to the total."""
    NR = VECTORS * lanes(scores)
    for i in range(0, count * NR, NR):
        s = load_pair(scores, i) - shift
        if scale != 1.0:
            s = s * scale
        p = exp2_below(s)
        store(weights, i, p)
        total = total + p
    return total


@jit
def _weigh_in_pairs(scores, count, shift, scale, total, weights):
    """weights = 2^(scale (scores - shift)), rounded, which are added to the total as rounded.

    The same numbers above and below the line: what rounding adds to a weight it adds to their sum,
    so values that are all the same come out as they are.
    """
    NR = VECTORS * lanes(scores)
    if count % 2 == 1:
        store(scores, count * NR, splat_like(shift, -np.inf))
    for i in range(0, count, 2):
        p = exp2_below((load_pair(scores, i * NR) - shift) * scale)
        next_p = exp2_below((load_pair(scores, (i + 1) * NR) - shift) * scale)
        pairs = pair_up(p, next_p)
        store(weights, i // 2 * NR, pairs)
        total = add_pairs(total, pairs)
    return total


@jit
def _add_values(values, first, step, count, acc, weights):
    """acc (step, NR) += values^T (step, count) weights (count, NR), from row `first` on"""
    NR = VECTORS * lanes(weights)
    for i in range(0, step, TRANSPOSED_ROWS):
        tile_transposed_a(values, first * step + i, step, count, weights, pointer(acc, i * NR))


@jit
def _add_values_in_pairs(values, first, step, count, acc, weights):
    """The same of rows that hold two keys each."""
    _add_values(values, first // 2, step, (count + 1) // 2, acc, weights)


def by_operands(numbers, pairs):
    """What compiled code calls: one of two functions, by what the last argument points to."""

    def function(*args):
        raise NotImplementedError(f"{numbers.__name__} exists in compiled code only")

    @overload(function)
    def choose(*args):
        chosen = pairs if args[-1].dtype == types.int32 else numbers
        return lambda *args: chosen(*args)

    return function


pack_queries = by_operands(_pack_queries, _transpose_queries)
pack_values = by_operands(pack_rows, _pack_pairs_of_rows)
weigh = by_operands(_weigh, _weigh_in_pairs)
add_values = by_operands(_add_values, _add_values_in_pairs)
