"""Element-wise arithmetic with NumPy's broadcasting; the second operand may be a Python number."""

import numpy as np

from refsd.options import Number
from refsd.registry import op

PAIR = "a (...), b|number (...) -> (...)"


@op(PAIR, flops="size")
def add(a, b):
    """a + b, broadcast"""
    return a + b


@op(PAIR, flops="size")
def sub(a, b):
    """a - b, broadcast"""
    return a - b


@op(PAIR, flops="size")
def mul(a, b):
    """a b, broadcast"""
    return a * b


@op(PAIR, flops="size")
def div(a, b):
    """a / b, broadcast"""
    return a / b


@op("x (...) -> (...)", flops="size")
def exp(x):
    """e^x.   any shape -> the same"""
    return np.exp(x)


@op("x (...) -> (...)", flops="size")
def sqrt(x):
    """The square root, NaN below zero.   any shape -> the same"""
    return np.sqrt(x)


@op("x (...) -> (...)", flops="size", low=Number(finite=False), high=Number(finite=False),
    rules={"low <= high": "low {low} is above high {high}"})
def clamp(x, *, low, high):
    """min(max(x, low), high); NaN stays NaN.   any shape -> the same"""
    return np.clip(x, low, high)
