"""An array in another dtype, for what is between the networks: ops give the dtype they take."""

from typing import Any

import numpy as np

from refsd.numba_ops.cuda.array import DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import dense
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory

THREADS = 256
OTHERS = ("float64", "float16", "bfloat16")


@factory(each=[pair for dtype in OTHERS for pair in ((dtype, "float32"), ("float32", dtype))])
def cast_kernel(gpu: Any, source: str, target: str) -> Plan:
    """y = x, rounded to nearest"""
    cuda, uint32, kind = gpu.cuda, gpu.uint32, number(gpu, target)
    read, write = reader(gpu, source), writer(gpu, target)

    def cast(x, y, count):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            write(y, i, kind(read(x, i)))

    return Plan(cast, (gpu.array(source), gpu.array(target), gpu.uint32), THREADS)


def cast(x: DeviceArray, dtype: np.dtype) -> DeviceArray:
    """x in another dtype; between two others than float32 by way of it."""
    if "float32" not in (str(x.dtype), str(dtype)):
        x = cast(x, np.dtype("float32"))
    x, order = dense(x)
    y = empty(x.shape, dtype, order)
    if y.size:
        launch(cast_kernel, (str(x.dtype), str(dtype)), (-(-x.size // THREADS),), x, y, x.size)
    return y
