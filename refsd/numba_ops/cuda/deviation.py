"""The standard deviation of each image: what rescaled guidance divides by."""

from typing import Any

from refsd.numba_ops.cuda.array import DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import order_of, ordered
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.warp import block_sum

THREADS = 128


@factory(each=[("float32",), ("float64",)])
def deviation_kernel(gpu: Any, dtype: str) -> Plan:
    """y[n] = sqrt(sum (x[n] - mean x[n])^2 / divisor), a block an image, sums in a fixed order"""
    cuda, uint32, kind, root = gpu.cuda, gpu.uint32, number(gpu, dtype), gpu.sqrt
    read, write = reader(gpu, dtype), writer(gpu, dtype)
    total = block_sum(gpu, kind, THREADS)

    def deviation(x, y, count, divisor):
        t, first = uint32(cuda.threadIdx.x), uint32(uint32(cuda.blockIdx.x) * count)
        part, i = kind(0), t
        while i < count:
            part += read(x, uint32(first + i))
            i = uint32(i + uint32(THREADS))
        mean = total(part, t) / kind(count)

        part, i = kind(0), t
        while i < count:
            apart = read(x, uint32(first + i)) - mean
            part += apart * apart
            i = uint32(i + uint32(THREADS))
        squares = total(part, t)
        if t == uint32(0):
            write(y, uint32(cuda.blockIdx.x), root(squares / kind(divisor)))

    return Plan(deviation, (gpu.array(dtype), gpu.array(dtype), gpu.uint32, gpu.uint32), THREADS)


def deviation(x: DeviceArray, ddof: int) -> DeviceArray:
    """Of each image of x; float32 or float64.   (N, ...) -> (N, 1, ...)"""
    order = order_of(x)
    x = ordered(x, order if order[0] == 0 else None)  # of an image all are neighbours
    y = empty((x.shape[0], *[1] * (x.ndim - 1)), x.dtype)
    count = x.size // x.shape[0]
    launch(deviation_kernel, (str(x.dtype),), (x.shape[0],), x, y, count, count - ddof)
    return y
