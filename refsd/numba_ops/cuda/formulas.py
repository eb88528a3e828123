"""What kernels apply to numbers: f(a, b, p, q) of an element of two arrays and two parameters.

A map reads a alone. They are the definitions' formulas, in the type that a kernel computes in.
"""

import math
from typing import Any

from refsd.numba_ops.cuda.numbers import number

ACTIVATIONS = ("silu", "quick_gelu", "gelu", "gelu_tanh")
MAPS = (*ACTIVATIONS, "exp", "sqrt", "clamp", "plus", "times", "over")  # the last three: a o p
PAIRS = ("add", "sub", "mul", "div", "gated")


def formulas(gpu: Any, dtype: str) -> dict[str, Any]:
    """All of them by name, for kernels of a dtype."""
    kind = number(gpu, dtype)
    apply_exp, apply_sqrt, apply_erf, apply_tanh = gpu.exp, gpu.sqrt, gpu.erf, gpu.tanh

    def sigmoid(x):
        z = apply_exp(-abs(x))  # at most 1: nothing overflows
        return (kind(1) if x >= kind(0) else z) / (kind(1) + z)

    def phi(x):
        return kind(1) + apply_erf(x * kind(math.sqrt(0.5)))

    sigmoid, phi = gpu.device(sigmoid), gpu.device(phi)

    def silu(a, b, p, q):
        return a * sigmoid(a)

    def quick_gelu(a, b, p, q):
        return a * sigmoid(kind(1.702) * a)

    def gelu(a, b, p, q):
        return kind(0.5) * a * phi(a)

    def gelu_tanh(a, b, p, q):
        inner = a + kind(0.044715) * a * a * a
        return kind(0.5) * a * (kind(1) + apply_tanh(kind(math.sqrt(2 / math.pi)) * inner))

    def exp(a, b, p, q):
        return apply_exp(a)

    def sqrt(a, b, p, q):
        return apply_sqrt(a)

    def clamp(a, b, p, q):
        return p if a < p else q if a > q else a  # NaN is neither

    def plus(a, b, p, q):
        return a + p

    def times(a, b, p, q):
        return a * p

    def over(a, b, p, q):
        return a / p

    def add(a, b, p, q):
        return a + b

    def sub(a, b, p, q):
        return a - b

    def mul(a, b, p, q):
        return a * b

    def div(a, b, p, q):
        return a / b

    def gated(a, b, p, q):
        return a * (kind(0.5) * b * phi(b))

    return {f.__name__: gpu.device(f) for f in (
        silu, quick_gelu, gelu, gelu_tanh, exp, sqrt, clamp, plus, times, over,
        add, sub, mul, div, gated)}
