"""Activations: a thread an element."""

from typing import Any

from refsd.numba_ops.cuda.array import empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import dense
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.registry import kernel

THREADS = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")


@factory(each=[(dtype,) for dtype in DTYPES])
def silu_kernel(gpu: Any, dtype: str) -> Plan:
    """y = x / (1 + e^-x)"""
    cuda, uint32, exp, kind = gpu.cuda, gpu.uint32, gpu.exp, number(gpu, dtype)
    read, write = reader(gpu, dtype), writer(gpu, dtype)

    def silu(x, y, count):
        i = uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x)
        if i < count:
            value = read(x, i)
            write(y, i, value / (kind(1) + exp(-value)))

    return Plan(silu, (gpu.array(dtype), gpu.array(dtype), gpu.uint32), THREADS)


@kernel("cuda", reads_halves=True)
def silu(x):
    x, order = dense(x)
    y = empty(x.shape, x.dtype, order)
    if y.size:
        launch(silu_kernel, (str(x.dtype),), (-(-x.size // THREADS),), x, y, x.size)
    return y
