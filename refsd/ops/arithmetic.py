"""Element-wise arithmetic with NumPy's broadcasting; the second operand may be a Python number."""

import math

import numpy as np

from refsd.contracts import Spec, broadcast, floats, is_number, need, output
from refsd.registry import op


def _binary(name, a, b):
    dtype = floats(name, a=a)
    if is_number(b):
        b = Spec((), dtype)
    floats(name, a=a, b=b)
    shape = broadcast(name, a, b)
    return output(shape, dtype, flops=math.prod(shape), reads=(a, b))


def _unary(name, x):
    dtype = floats(name, x=x)
    return output(x.shape, dtype, flops=math.prod(x.shape), reads=(x,))


def add_contract(a, b):
    return _binary("add", a, b)


@op(add_contract)
def add(a, b):
    """a + b, broadcast"""
    return a + b


def sub_contract(a, b):
    return _binary("sub", a, b)


@op(sub_contract)
def sub(a, b):
    """a - b, broadcast"""
    return a - b


def mul_contract(a, b):
    return _binary("mul", a, b)


@op(mul_contract)
def mul(a, b):
    """a b, broadcast"""
    return a * b


def div_contract(a, b):
    return _binary("div", a, b)


@op(div_contract)
def div(a, b):
    """a / b, broadcast"""
    return a / b


def exp_contract(x):
    return _unary("exp", x)


@op(exp_contract)
def exp(x):
    """e^x.   any shape -> the same"""
    return np.exp(x)


def sqrt_contract(x):
    return _unary("sqrt", x)


@op(sqrt_contract)
def sqrt(x):
    """The square root, NaN below zero.   any shape -> the same"""
    return np.sqrt(x)


def clamp_contract(x, *, low, high):
    need(is_number(low) and is_number(high) and low <= high, "clamp",
         f"low {low!r} and high {high!r} must be Python numbers, low <= high")
    return _unary("clamp", x)


@op(clamp_contract)
def clamp(x, *, low, high):
    """min(max(x, low), high); NaN stays NaN.   any shape -> the same"""
    return np.clip(x, low, high)
