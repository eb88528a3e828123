"""Element-wise non-linearities, and softmax.

Four functions go by the name of GELU or look like it; a port that mixes them still draws a picture.
They are separate ops here: `gelu` (erf), `gelu_tanh`, `quick_gelu`, `silu`.
"""

import math

import numpy as np
from scipy.special import erf

from refsd.contracts import floats, is_int, need, output
from refsd.registry import op


def _elementwise(name, x, flops):
    dtype = floats(name, x=x)
    return output(x.shape, dtype, flops=flops * math.prod(x.shape), reads=(x,))


def silu_contract(x):
    return _elementwise("silu", x, 4)


@op(silu_contract)
def silu(x):
    """x sigmoid(x), the swish of Ramachandran et al. 2017.   any shape -> the same"""
    return x * _sigmoid(x)


def quick_gelu_contract(x):
    return _elementwise("quick_gelu", x, 5)


@op(quick_gelu_contract)
def quick_gelu(x):
    """x sigmoid(1.702 x), CLIP's approximation of GELU.   any shape -> the same"""
    return x * _sigmoid(1.702 * x)


def _sigmoid(x):
    """1 / (1 + e^-x), written with e^-|x| <= 1 so that nothing overflows."""
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, z) / (1 + z)


def gelu_contract(x):
    return _elementwise("gelu", x, 5)


@op(gelu_contract)
def gelu(x):
    """x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, Hendrycks and Gimpel 2016.   any shape -> the same"""
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_tanh_contract(x):
    return _elementwise("gelu_tanh", x, 9)


@op(gelu_tanh_contract)
def gelu_tanh(x):
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, GELU by tanh.   any shape -> same"""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def geglu_contract(x):
    dtype = floats("geglu", x=x)
    need(len(x.shape) >= 1 and x.shape[-1] % 2 == 0, "geglu",
         f"the last axis of x (shape {tuple(x.shape)}) must split into two halves")
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    return output(shape, dtype, flops=6 * math.prod(shape), reads=(x,))


@op(geglu_contract)
def geglu(x):
    """h gelu(g) where x = [h | g].   (..., 2 K) -> (..., K)   Shazeer 2020; the gate is second"""
    hidden, gate = np.split(x, 2, axis=-1)
    return hidden * gelu(gate)


def softmax_contract(x, *, axis):
    dtype = floats("softmax", x=x)
    need(is_int(axis) and -len(x.shape) <= axis < len(x.shape), "softmax",
         f"axis is {axis!r}, x has {len(x.shape)} dimensions")
    need(x.shape[axis] > 0, "softmax", f"axis {axis} of x {tuple(x.shape)} is empty")
    return output(x.shape, dtype, flops=5 * math.prod(x.shape), reads=(x,))


@op(softmax_contract)
def softmax(x, *, axis):
    """e^(x - max) / sum e^(x - max) along an axis.   any shape -> the same

    A row that is -inf everywhere (all keys masked) gives zeros, where the formula says 0 / 0.
    """
    largest = x.max(axis=axis, keepdims=True)
    e = np.exp(x - np.where(np.isneginf(largest), 0, largest))
    # The largest term is e^0 = 1, so only a wholly masked row has a sum below 1.
    return e / np.maximum(e.sum(axis=axis, keepdims=True), 1)
