"""Element-wise arithmetic with NumPy's broadcasting; the second operand may be a Python number."""

import numpy as np

from refsd.kinds import OTHERS, Map, Pair, call
from refsd.options import Number
from refsd.registry import op

ALIKE = "x (...) -> (...)"
PAIR = "a (...), b|number (...) -> (...)"


@op(PAIR, Pair(), flops="size")
def add(a, b):
    """a + b, broadcast

    >>> add(np.array([[1.0], [2.0]]), np.array([10.0, 20.0]))
    array([[11., 21.],
           [12., 22.]])
    """
    return a + b


@op(PAIR, Pair(), flops="size")
def sub(a, b):
    """a - b, broadcast"""
    return a - b


@op(PAIR, Pair(), flops="size")
def mul(a, b):
    """a b, broadcast"""
    return a * b


@op(PAIR, Pair(divides=True), flops="size")
def div(a, b):
    """a / b, broadcast

    >>> div(np.array([1.0, 3.0]), 2)
    array([0.5, 1.5])
    """
    return a / b


@op(ALIKE, Map(low=-103, high=88, scale=8), flops="size")
def exp(x):
    """e^x.   any shape -> the same"""
    return np.exp(x)


@op(ALIKE, Map(low=0), flops="size")
def sqrt(x):
    """The square root, NaN below zero.   any shape -> the same"""
    return np.sqrt(x)


@op(ALIKE, Map(roundings=OTHERS, scale=2), flops="size")
def tanh(x):
    """(e^x - e^-x) / (e^x + e^-x), between -1 and 1.   any shape -> the same

    >>> tanh(np.array([0.0, 100.0]))
    array([0., 1.])
    """
    return np.tanh(x)


@op(ALIKE, Map(), flops="size", low=Number(finite=False), high=Number(finite=False),
    rules={"low <= high": "low {low} is above high {high}"},
    examples=[call((2, 3, 4), low=-1.5, high=0.3)])
def clamp(x, *, low, high):
    """min(max(x, low), high); NaN stays NaN.   any shape -> the same

    >>> clamp(np.array([-2.0, 0.5, 2.0]), low=-1, high=1)
    array([-1. ,  0.5,  1. ])
    """
    return np.clip(x, low, high)
