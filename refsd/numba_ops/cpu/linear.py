"""Matrix products: a linear layer, of weights of any form, and matmul. blocked.py computes them."""

import numpy as np

from refsd.numba_ops.cpu.blocked import multiply, multiply_gated, multiply_rows
from refsd.numba_ops.cpu.linear_int8 import multiply_tokens
from refsd.numba_ops.memory import empty, fill_up
from refsd.numba_ops.panels import right_matrix
from refsd.quantized import W8A8, round_tokens
from refsd.registry import kernel


@kernel("numba", reads_leaves=True, reads_halves=True)
def linear(x, weight, bias=None):
    y, rows = _result(x, len(weight))
    product(x, weight, bias, rows)
    return y


@kernel("numba", reads_leaves=True, reads_halves=True)
def linear_add(x, weight, addend, bias=None):
    y, rows = _result(x, len(weight))
    product(x, weight, bias, rows, addend.reshape(rows.shape))
    return y


@kernel("numba", reads_leaves=True, reads_halves=True)
def linear_geglu(x, weight, bias=None):
    y, rows = _result(x, len(weight) // 2)
    x, by_tokens = _met(x, weight)
    if by_tokens:
        multiply_tokens(x, weight, bias, rows, gated=True)
    else:
        multiply_gated(x, right_matrix(weight), fill_up(bias, len(weight), x.dtype), rows)
    return y


def _result(x, features):
    """Room for the result, and the same as rows."""
    y = empty((*x.shape[:-1], features), x.dtype)
    return y, y.reshape(-1, features)


def product(x, weight, bias, y, addend=None):
    """y = x W^T + bias, and + addend if there is one.

    x (..., K), weight (N, K) or (N, K, 1, 1), y (M, N), addend (M, N)
    """
    x, by_tokens = _met(x, weight)
    if by_tokens:
        multiply_tokens(x, weight, bias, y, addend)
    else:
        multiply_rows(x, right_matrix(weight), fill_up(bias, len(weight), x.dtype), y, addend)


def _met(x, weight):
    """x as a weight takes it, and whether in integers."""
    if not isinstance(weight, W8A8):
        return x, False
    return (x, True) if x.dtype == np.float32 else (round_tokens(x, -1), False)


@kernel("numba", reads_halves=True)
def matmul(a, b):
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    for at in np.ndindex(batch):
        multiply(a[at], b[at], y[at])
    return y
