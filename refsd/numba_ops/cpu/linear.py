"""Matrix products: a linear layer, of weights of any form, and matmul. blocked.py computes them."""

import numpy as np

from refsd.numba_ops.cpu.blocked import multiply, multiply_rows
from refsd.numba_ops.cpu.linear_int8 import multiply_tokens
from refsd.numba_ops.memory import empty, fill_up
from refsd.numba_ops.panels import right_matrix
from refsd.quantized import W8A8, round_tokens
from refsd.registry import kernel


@kernel("numba", reads_leaves=True, reads_halves=True)
def linear(x, weight, bias=None):
    features = len(weight)
    y = empty((*x.shape[:-1], features), x.dtype)
    product(x, weight, bias, y.reshape(-1, features))
    return y


def product(x, weight, bias, y):
    """y = x W^T + bias.   x (..., K), weight (N, K) or (N, K, 1, 1), y (M, N)"""
    if isinstance(weight, W8A8) and x.dtype == np.float32:
        multiply_tokens(x, weight, bias, y)
    else:
        x = round_tokens(x, -1) if isinstance(weight, W8A8) else x
        multiply_rows(x, right_matrix(weight), fill_up(bias, len(weight), x.dtype), y)


@kernel("numba", reads_halves=True)
def matmul(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    for at in np.ndindex(batch):
        multiply(a[at], b[at], y[at])
    return y
