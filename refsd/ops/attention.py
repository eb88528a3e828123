"""Scaled dot-product attention with the head split inside."""

import math

import numpy as np

from refsd.kinds import call
from refsd.ops.activation import softmax
from refsd.options import Flag, Integer
from refsd.registry import op

# Scores of one slice of queries. 4096 tokens x 8 heads would be 512 MiB an image at once.
SLICE_BYTES = 8 * 2**20


@op("q (N L C), k (N S C), v (N S D), mask <= (N heads L S) -> (N L D)",
    flops="2 * N * L * S * (C + D) + 5 * N * heads * L * S", heads=Integer(1), causal=Flag(),
    rules={"C > 0": "q {q} has no features",
           "C % heads == 0 and D % heads == 0":
               "widths {C} (q, k) and {D} (v) do not split into {heads} heads",
           "S > 0": "there are no keys: k has shape {k}",
           "L == S or not causal": "causal needs as many queries as keys, got {L}, {S}"},
    examples=[call((2, 5, 8), (2, 7, 8), (2, 7, 8), heads=2),
              call((1, 6, 12), (1, 6, 12), (1, 6, 12), heads=3, causal=True),
              call((1, 4, 6), (1, 5, 6), (1, 5, 4), heads=2, mask=(4, 5))])
def attention(q, k, v, *, heads, mask=None, causal=False):
    """softmax(q k^T / sqrt(d) + mask) v in each of `heads` heads of width d.   Vaswani et al. 2017

    q (N, L, C), k (N, S, C), v (N, S, D), mask broadcast to (N, heads, L, S) -> (N, L, D).
    `causal` lets query i see the keys 0..i only. A query that sees no key gives zeros. Works in
    slices of queries, so that the scores never take more than SLICE_BYTES (or one query's worth).

    >>> alike, values = np.ones((1, 2, 4)), np.array([[[1.0], [3.0]]])
    >>> attention(alike, alike, values, heads=1)  # every key weighs the same: the mean
    array([[[2.],
            [2.]]])
    >>> attention(alike, alike, values, heads=1, causal=True)  # query 0 sees key 0 only
    array([[[1.],
            [2.]]])
    """
    (N, L, C), (_, S, D) = q.shape, v.shape
    q, k, v = (_split_heads(t, heads) for t in (q, k, v))
    y = np.empty((N, L, heads, D // heads), q.dtype)
    if mask is not None:
        mask = np.broadcast_to(mask, (N, heads, L, S))

    rows = max(1, SLICE_BYTES // (heads * S * q.itemsize))
    for n in range(N):
        for start in range(0, L, rows):
            part = slice(start, start + rows)
            scores = (q[n, :, part] * (1 / math.sqrt(C // heads))) @ k[n].swapaxes(-1, -2)
            if mask is not None:
                scores += mask[n, :, part]
            if causal:
                scores[:, np.arange(S) > np.arange(L)[part, None]] = -math.inf
            y[n, part] = (softmax(scores, axis=-1) @ v[n]).swapaxes(0, 1)
    return y.reshape(N, L, D)


def _split_heads(x, heads):
    """(N, L, heads * d) -> (N, heads, L, d), a view"""
    N, L, C = x.shape
    return x.reshape(N, L, heads, C // heads).swapaxes(1, 2)
