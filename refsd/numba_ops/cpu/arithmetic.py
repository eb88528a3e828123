"""Element-wise arithmetic: the same formulas, on vectors."""

from numba.extending import register_jitable

from refsd.numba_ops import simd
from refsd.numba_ops.pointwise import each, pairwise
from refsd.numba_ops.vecmath import exp as vector_exp
from refsd.numba_ops.vecmath import tanh as vector_tanh
from refsd.registry import kernel


@register_jitable
def _sum(a, b):
    return a + b


@register_jitable
def _difference(a, b):
    return a - b


@register_jitable
def _product(a, b):
    return a * b


@register_jitable
def _quotient(a, b):
    return a / b


@register_jitable
def _exp(x):
    return vector_exp(x)


@register_jitable
def _sqrt(x):
    return simd.sqrt(x)


@register_jitable
def _tanh(x):
    return vector_tanh(x)


@register_jitable
def _clamp(x, low, high):
    low, high = simd.splat_like(x, low), simd.splat_like(x, high)
    return simd.minimum(simd.maximum(x, low), high)


_add, _sub, _mul, _div = (pairwise(f) for f in (_sum, _difference, _product, _quotient))
_each_exp, _each_sqrt, _each_tanh = each(_exp), each(_sqrt), each(_tanh)
_each_clamp = each(_clamp)


@kernel("numba", reads_halves=True)
def add(a, b):
    return _add(a, b)


@kernel("numba", reads_halves=True)
def sub(a, b):
    return _sub(a, b)


@kernel("numba", reads_halves=True)
def mul(a, b):
    return _mul(a, b)


@kernel("numba", reads_halves=True)
def div(a, b):
    return _div(a, b)


@kernel("numba", reads_halves=True)
def exp(x):
    return _each_exp(x)


@kernel("numba", reads_halves=True)
def sqrt(x):
    return _each_sqrt(x)


@kernel("numba", reads_halves=True)
def tanh(x):
    return _each_tanh(x)


@kernel("numba", reads_halves=True)
def clamp(x, *, low, high):
    return _each_clamp(x, float(low), float(high))
