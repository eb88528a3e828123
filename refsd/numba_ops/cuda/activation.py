"""Activations: formulas.py has them, pointwise.py the kernel."""

from refsd.numba_ops.cuda.pointwise import mapped, paired
from refsd.registry import kernel


@kernel("cuda", reads_halves=True)
def silu(x):
    return mapped("silu", x)


@kernel("cuda", reads_halves=True)
def quick_gelu(x):
    return mapped("quick_gelu", x)


@kernel("cuda", reads_halves=True)
def gelu(x):
    return mapped("gelu", x)


@kernel("cuda", reads_halves=True)
def gelu_tanh(x):
    return mapped("gelu_tanh", x)


@kernel("cuda", reads_halves=True)
def geglu(x):
    axis, half = x.ndim - 1, x.shape[-1] // 2
    return paired("gated", x.part(axis, 0, half), x.part(axis, half, 2 * half))
