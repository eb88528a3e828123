"""Numbers of the host that a step needs, as arguments of a launch: a copy would have to wait."""

from typing import Any

import numpy as np

from refsd.numba_ops.cuda.array import DeviceArray, empty, to_device
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import copy
from refsd.numba_ops.cuda.plan import Plan, factory

THREADS = 32


@factory(each=[()])
def fill_kernel(gpu: Any) -> Plan:
    """y = value"""
    cuda, uint32 = gpu.cuda, gpu.uint32

    def fill(y, value, count):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            y[i] = value

    return Plan(fill, (gpu.array("float32"), gpu.float32, gpu.uint32), THREADS)


def fill(y: DeviceArray, numbers: np.ndarray) -> None:
    """y (N,) of float32 becomes numbers (N,): one for all without a copy, others by one."""
    if not y.size:
        return
    if (numbers == numbers[0]).all():
        launch(fill_kernel, (), (-(-y.size // THREADS),), y, np.float32(numbers[0]), y.size)
    else:
        copy(to_device(numbers.astype("float32")), y)


def filled(numbers: np.ndarray) -> DeviceArray:
    """The numbers (N,) as float32, on the device."""
    y = empty(numbers.shape, "float32")
    fill(y, numbers)
    return y
