"""Element-wise non-linearities, and softmax.

Four functions go by the name of GELU or look like it; a port that mixes them still draws a picture.
They are separate ops here: `gelu` (erf), `gelu_tanh`, `quick_gelu`, `silu`.
"""

import math

import numpy as np
from scipy.special import erf

from refsd.kinds import EXP, Map, call
from refsd.options import Axis
from refsd.registry import op


# e^-|x|, 1 + z (2 of z's, as z is at most 1, and its own), the quotient, the product.
@op("x (...) -> (...)", Map(roundings=EXP + 5, curvature=1, scale=4), flops="4 * size")
def silu(x):
    """x sigmoid(x), the swish of Ramachandran et al. 2017.   any shape -> the same

    >>> silu(np.array([0.0, 100.0]))  # the sigmoid is 1/2 and 1
    array([  0., 100.])
    """
    return x * _sigmoid(x)


@op("x (...) -> (...)", Map(curvature=1, scale=4), flops="5 * size")
def quick_gelu(x):
    """x sigmoid(1.702 x), CLIP's approximation of GELU.   any shape -> the same

    >>> quick_gelu(np.array([1.0])).round(4)  # Phi(1) is 0.8413
    array([0.8458])
    """
    return x * _sigmoid(1.702 * x)


def _sigmoid(x):
    """1 / (1 + e^-x), written with e^-|x| <= 1 so that nothing overflows."""
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, z) / (1 + z)


@op("x (...) -> (...)", Map(curvature=1, scale=2), flops="5 * size")
def gelu(x):
    """x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, Hendrycks and Gimpel 2016.   any shape -> the same

    >>> gelu(np.array([1.0])).round(4)  # Phi(1)
    array([0.8413])
    """
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


@op("x (...) -> (...)", Map(curvature=1, scale=2), flops="9 * size")
def gelu_tanh(x):
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, GELU by tanh.   any shape -> same

    >>> gelu_tanh(np.array([1.0])).round(4)  # Phi(1) is 0.8413
    array([0.8412])
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@op("x (... 2*K) -> (... K)", flops="6 * size", examples=[call((2, 3, 8))])
def geglu(x):
    """h gelu(g) where x = [h | g].   (..., 2 K) -> (..., K)   Shazeer 2020; the gate is second

    >>> geglu(np.array([7.0, 100.0]))  # 7 gelu(100)
    array([700.])
    """
    hidden, gate = np.split(x, 2, axis=-1)
    return hidden * gelu(gate)


@op("x (...) -> (...)", flops="5 * size", axis=Axis("x"),
    rules={"x[axis] > 0": "axis {axis} of x {x} is empty"},
    examples=[call((2, 3, 5), axis=-1), call((2, 3, 5), axis=1)])
def softmax(x, *, axis):
    """e^(x - max) / sum e^(x - max) along an axis.   any shape -> the same

    A row that is -inf everywhere (all keys masked) gives zeros, where the formula says 0 / 0.

    >>> softmax(np.log([1.0, 2.0, 5.0]), axis=0).round(6)
    array([0.125, 0.25 , 0.625])
    """
    largest = x.max(axis=axis, keepdims=True)
    e = np.exp(x - np.where(np.isneginf(largest), 0, largest))
    # The largest term is e^0 = 1, so only a wholly masked row has a sum below 1.
    return e / np.maximum(e.sum(axis=axis, keepdims=True), 1)
