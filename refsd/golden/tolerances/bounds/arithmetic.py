"""Bounds of sums, products, exp, sqrt and clamp."""

import math

import numpy as np

from refsd.golden.tolerances.bounds.model import ErrorModel
from refsd.golden.tolerances.precision import EXP, gamma


def add(args, options, y, p):
    """One rounding, and one for a Python number that the precision does not hold."""
    return gamma(1, p) * abs(y) + gamma(2, p) * _inexact(args[1], p)


def of_add(args, options, y, perturbations, factor):
    return perturbations[0] + perturbations[1] + np.zeros_like(y)


def mul(args, options, y, p):
    """As add; the number's rounding is relative to the result."""
    return gamma(2 if _inexact(args[1], p) else 1, p) * abs(y) + p.tiny


def of_mul(args, options, y, perturbations, factor):
    """(|a| + da) (|b| + db) - |a b|"""
    (a, b), (da, db) = args, perturbations
    return abs(a) * db + abs(b) * da + da * db


def of_div(args, options, y, perturbations, factor):
    """(da + |y| db) / (|b| - db)"""
    smallest = np.maximum(abs(args[1]) - perturbations[1], np.finfo("float64").tiny)
    return (perturbations[0] + abs(y) * perturbations[1]) / smallest


def _inexact(b, p):
    """|b| if b is a Python number that has to be rounded, else 0"""
    if isinstance(b, np.ndarray):
        return 0.0
    return 0.0 if (math.frexp(b)[0] / p.u).is_integer() else abs(b)


def exp(args, options, y, p):
    """The library's."""
    return gamma(EXP, p) * y + 2 * p.tiny


def of_exp(args, options, y, perturbations, factor):
    """y (e^dx - 1)"""
    return y * np.expm1(np.minimum(perturbations[0], 700))


def sqrt(args, options, y, p):
    """IEEE 754 rounds square roots correctly, and they are never below the normal numbers."""
    return gamma(1, p) * y


def sqrt_of_ports(args, options, y, p):
    """The next number instead of the nearest: not all libraries round their vectors' roots."""
    return gamma(2, p) * y


def clamp(args, options, y, p):
    """Limits that the precision does not hold are rounded."""
    return p.u * max(_inexact(options["low"], p), _inexact(options["high"], p))


def of_clamp(args, options, y, perturbations, factor):
    """Clipping brings nothing further apart."""
    return perturbations[0]


MODELS = {
    "add": ErrorModel(add, of_add), "sub": ErrorModel(add, of_add),
    "mul": ErrorModel(mul, of_mul), "div": ErrorModel(mul, of_div),
    "exp": ErrorModel(exp, of_exp), "sqrt": ErrorModel(sqrt, ports=sqrt_of_ports),
    "clamp": ErrorModel(clamp, of_clamp),
}  # fmt: skip
