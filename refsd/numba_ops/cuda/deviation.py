"""The standard deviation of each image: what rescaled guidance divides by."""

from typing import Any

from refsd.numba_ops.cuda.array import DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import dense, ordered
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory

THREADS = 128


@factory(each=[("float32",), ("float64",)])
def deviation_kernel(gpu: Any, dtype: str) -> Plan:
    """y[n] = sqrt(sum (x[n] - mean x[n])^2 / divisor), a block an image, sums in a fixed tree"""
    cuda, uint32, kind, root = gpu.cuda, gpu.uint32, number(gpu, dtype), gpu.sqrt
    read, write = reader(gpu, dtype), writer(gpu, dtype)

    def summed(parts, lane):
        width = uint32(THREADS // 2)
        while width > uint32(0):
            cuda.syncthreads()
            if lane < width:
                parts[lane] = parts[lane] + parts[lane + width]
            width >>= uint32(1)
        cuda.syncthreads()
        return parts[0]

    total = gpu.device(summed)

    def deviation(x, y, count, divisor):
        parts = cuda.shared.array(THREADS, kind)
        lane, first = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x) * count
        part, i = kind(0), lane
        while i < count:
            part += read(x, first + i)
            i += uint32(THREADS)
        parts[lane] = part
        mean = total(parts, lane) / kind(count)
        cuda.syncthreads()

        part, i = kind(0), lane
        while i < count:
            apart = read(x, first + i) - mean
            part += apart * apart
            i += uint32(THREADS)
        parts[lane] = part
        squares = total(parts, lane)
        if lane == uint32(0):
            write(y, uint32(cuda.blockIdx.x), root(squares / kind(divisor)))

    return Plan(deviation, (gpu.array(dtype), gpu.array(dtype), gpu.uint32, gpu.uint32), THREADS)


def deviation(x: DeviceArray, ddof: int) -> DeviceArray:
    """Of each image of x; float32 or float64.   (N, ...) -> (N, 1, ...)"""
    x, order = dense(x)
    if order[0] != 0:
        x = ordered(x)
    y = empty((x.shape[0], *[1] * (x.ndim - 1)), x.dtype)
    count = x.size // x.shape[0]
    launch(deviation_kernel, (str(x.dtype),), (x.shape[0],), x, y, count, count - ddof)
    return y
