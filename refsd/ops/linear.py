"""Matrix products."""

import numpy as np

from refsd.kinds import call
from refsd.registry import op


@op("x (... K), weight (out K), bias (out) -> (... out)", flops="2 * size * K",
    examples=[call((2, 3, 8), (5, 8), (5,)), call((7, 4), (3, 4))])
def linear(x, weight, bias=None):
    """x W^T + b.   x (..., K), weight (out, K), bias (out,) -> (..., out)

    >>> linear(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([0.0, 100.0]))
    array([  1., 111.])
    """
    y = x @ weight.T
    return y if bias is None else y + bias


@op("a (... M K), b (... K N) -> (... M N)", flops="2 * size * K",
    examples=[call((2, 3, 4), (2, 4, 5)), call((3, 1, 2, 3), (5, 3, 4))])
def matmul(a, b):
    """sum_k a[..., i, k] b[..., k, j].   (..., M, K), (..., K, N) -> (..., M, N), broadcast

    >>> matmul(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    array([[11.]])
    """
    return np.matmul(a, b)
