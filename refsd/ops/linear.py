"""Matrix products."""

import math

import numpy as np

from refsd.contracts import broadcast, dims, floats, given, need, output, vector
from refsd.registry import op


def linear_contract(x, weight, bias=None):
    dtype = floats("linear", x=x, weight=weight, **given(bias=bias))
    features, K = dims("linear", "weight", weight, "out K")
    need(len(x.shape) >= 1 and x.shape[-1] == K, "linear",
         f"the last axis of x (shape {tuple(x.shape)}) must be the {K} inputs of weight "
         f"{tuple(weight.shape)}")
    vector("linear", "bias", bias, features, "output feature")
    shape = (*x.shape[:-1], features)
    return output(shape, dtype, flops=2 * math.prod(shape) * K, reads=(x, weight, bias))


@op(linear_contract)
def linear(x, weight, bias=None):
    """x W^T + b.   x (..., K), weight (out, K), bias (out,) -> (..., out)"""
    y = x @ weight.T
    return y if bias is None else y + bias


def matmul_contract(a, b):
    dtype = floats("matmul", a=a, b=b)
    need(len(a.shape) >= 2 and len(b.shape) >= 2, "matmul",
         f"a {tuple(a.shape)} and b {tuple(b.shape)} need two dimensions or more")
    M, K = a.shape[-2:]
    need(b.shape[-2] == K, "matmul",
         f"a {tuple(a.shape)} has {K} columns, b {tuple(b.shape)} has {b.shape[-2]} rows")
    batch = broadcast("matmul", _Leading(a), _Leading(b))
    shape = (*batch, M, b.shape[-1])
    return output(shape, dtype, flops=2 * math.prod(shape) * K, reads=(a, b))


class _Leading:
    """The batch axes of a stack of matrices, for the broadcasting rule."""

    def __init__(self, array):
        self.shape = array.shape[:-2]


@op(matmul_contract)
def matmul(a, b):
    """sum_k a[..., i, k] b[..., k, j].   (..., M, K), (..., K, N) -> (..., M, N), broadcast"""
    return np.matmul(a, b)
