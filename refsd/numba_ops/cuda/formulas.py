"""What kernels apply to numbers: f(a, b, p, q) of an element of two arrays and two parameters.

A map reads a alone. They are the definitions' formulas, in the type that a kernel computes in.
"""

import math
from typing import Any

from refsd.numba_ops.cuda.numbers import number

# plus, times and over: of a and the parameter p
MAPS = ("silu", "quick_gelu", "gelu", "gelu_tanh", "exp", "sqrt", "tanh", "clamp", "plus",
        "times", "over")
PAIRS = ("add", "sub", "mul", "div", "gated")


def formulas(gpu: Any, dtype: str) -> dict[str, Any]:
    """All of them by name, for kernels of a dtype."""
    known = {**_activations(gpu, dtype), **_arithmetic(gpu)}
    return {name: gpu.device(known[name]) for name in (*MAPS, *PAIRS)}


def _activations(gpu, dtype):
    kind, exp, erf, tanh = number(gpu, dtype), gpu.exp, gpu.erf, gpu.tanh

    def sigmoid(x):
        z = exp(-abs(x))  # at most 1: nothing overflows
        return (kind(1) if x >= kind(0) else z) / (kind(1) + z)

    def phi(x):
        return kind(1) + erf(x * kind(math.sqrt(0.5)))

    sigmoid, phi = gpu.device(sigmoid), gpu.device(phi)

    def silu(a, b, p, q):
        return a * sigmoid(a)

    def quick_gelu(a, b, p, q):
        return a * sigmoid(kind(1.702) * a)

    def gelu(a, b, p, q):
        return kind(0.5) * a * phi(a)

    def gelu_tanh(a, b, p, q):
        inner = a + kind(0.044715) * a * a * a
        return kind(0.5) * a * (kind(1) + tanh(kind(math.sqrt(2 / math.pi)) * inner))

    def gated(a, b, p, q):
        return a * (kind(0.5) * b * phi(b))

    return {f.__name__: f for f in (silu, quick_gelu, gelu, gelu_tanh, gated)}


def _arithmetic(gpu):
    root, power, tanh = gpu.sqrt, gpu.exp, gpu.tanh

    def clamp(a, b, p, q):
        return p if a < p else q if a > q else a  # NaN is neither

    return {"exp": lambda a, b, p, q: power(a), "sqrt": lambda a, b, p, q: root(a),
            "tanh": lambda a, b, p, q: tanh(a), "clamp": clamp,
            "plus": lambda a, b, p, q: a + p, "times": lambda a, b, p, q: a * p,
            "over": lambda a, b, p, q: a / p, "add": lambda a, b, p, q: a + b,
            "sub": lambda a, b, p, q: a - b, "mul": lambda a, b, p, q: a * b,
            "div": lambda a, b, p, q: a / b}
