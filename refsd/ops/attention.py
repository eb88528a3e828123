"""Scaled dot-product attention with the head split inside."""

import math

import numpy as np

from refsd.contracts import dims, flag, floats, given, need, output, positive
from refsd.ops.activation import softmax
from refsd.registry import op

# Scores of one slice of queries. 4096 tokens x 8 heads would be 512 MiB an image at once.
SLICE_BYTES = 8 * 2**20


def attention_contract(q, k, v, *, heads, mask=None, causal=False):
    dtype = floats("attention", q=q, k=k, v=v, **given(mask=mask))
    N, L, C = dims("attention", "q", q, "N L C")
    batch, S, width = dims("attention", "k", k, "N S C")
    positive("attention", heads=heads)
    need((batch, width) == (N, C), "attention",
         f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in N and C")
    need(tuple(v.shape[:2]) == (N, S) and len(v.shape) == 3, "attention",
         f"v {tuple(v.shape)} must have a row for each of the keys {tuple(k.shape)}")
    flag("attention", causal=causal)
    need(C > 0, "attention", f"q {tuple(q.shape)} has no features")
    need(C % heads == 0 and v.shape[2] % heads == 0, "attention",
         f"widths {C} (q, k) and {v.shape[2]} (v) do not split into {heads} heads")
    need(S > 0, "attention", f"there are no keys: k has shape {tuple(k.shape)}")
    need(not causal or L == S, "attention", f"causal needs as many queries as keys, got {L}, {S}")
    if mask is not None:
        fits = len(mask.shape) <= 4 and all(
            m in (1, n) for m, n in zip(mask.shape[::-1], (S, L, heads, N)))
        need(fits, "attention", f"mask {tuple(mask.shape)} does not broadcast to "
             f"(N, heads, L, S) = {(N, heads, L, S)}")
    flops = 2 * N * L * S * (C + v.shape[2]) + 5 * N * heads * L * S
    return output((N, L, v.shape[2]), dtype, flops=flops, reads=(q, k, v, mask))


@op(attention_contract)
def attention(q, k, v, *, heads, mask=None, causal=False):
    """softmax(q k^T / sqrt(d) + mask) v in each of `heads` heads of width d.   Vaswani et al. 2017

    q (N, L, C), k (N, S, C), v (N, S, D), mask broadcast to (N, heads, L, S) -> (N, L, D).
    `causal` lets query i see the keys 0..i only. A query that sees no key gives zeros. Works in
    slices of queries, so that the scores never take more than SLICE_BYTES (or one query's worth).
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
