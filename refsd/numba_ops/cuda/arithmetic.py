"""Element-wise arithmetic. The second operand may be a Python number: then it is a parameter."""

from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.pointwise import mapped, paired
from refsd.registry import kernel


@kernel("cuda", reads_halves=True)
def add(a, b):
    return paired("add", a, b) if isinstance(b, DeviceArray) else mapped("plus", a, b)


@kernel("cuda", reads_halves=True)
def sub(a, b):
    return paired("sub", a, b) if isinstance(b, DeviceArray) else mapped("plus", a, -b)


@kernel("cuda", reads_halves=True)
def mul(a, b):
    return paired("mul", a, b) if isinstance(b, DeviceArray) else mapped("times", a, b)


@kernel("cuda", reads_halves=True)
def div(a, b):
    return paired("div", a, b) if isinstance(b, DeviceArray) else mapped("over", a, b)


@kernel("cuda", reads_halves=True)
def exp(x):
    return mapped("exp", x)


@kernel("cuda", reads_halves=True)
def sqrt(x):
    return mapped("sqrt", x)


@kernel("cuda", reads_halves=True)
def tanh(x):
    return mapped("tanh", x)


@kernel("cuda", reads_halves=True)
def clamp(x, *, low, high):
    return mapped("clamp", x, low, high)
