"""Matrix products."""

import numpy as np

from refsd.registry import op


@op("x (... K), weight (out K), bias (out) -> (... out)", flops="2 * size * K")
def linear(x, weight, bias=None):
    """x W^T + b.   x (..., K), weight (out, K), bias (out,) -> (..., out)"""
    y = x @ weight.T
    return y if bias is None else y + bias


@op("a (... M K), b (... K N) -> (... M N)", flops="2 * size * K")
def matmul(a, b):
    """sum_k a[..., i, k] b[..., k, j].   (..., M, K), (..., K, N) -> (..., M, N), broadcast"""
    return np.matmul(a, b)
