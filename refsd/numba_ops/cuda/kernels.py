"""Loaded machine code, and how it is called."""

from typing import Any

import numpy as np

from refsd.gpu import gpu
from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.compiler import Cubin
from refsd.numba_ops.cuda.refusals import call, told

MORE = 48 << 10  # bytes of dynamic shared memory, above which a kernel has to ask for leave
# Other numbers pass as Python's integers, of which the GPU takes the low bytes.
CONVERTED = {"float32": np.float32, "float64": float, "uint32": None, "int32": None, "uint64": None,
             "int64": None, "uint16": None, "uint8": None, "int8": None}


class Kernel:
    """A variant on a GPU. Configurations of launches are kept by grid."""

    def __init__(self, factory: Any, constants: tuple, cubin: Cubin, device: Any):
        from cuda.bindings import driver
        from cuda.core import LaunchConfig, ObjectCode, launch

        self.name = f"{factory.name}{constants}"
        self._factory = factory  # its id is its key, as long as it lives
        self._launch, self._config = launch, LaunchConfig
        self._threads, self._shared, self._grids = cubin.threads, cubin.shared, {}
        self._kinds = [None if kind == "array" else CONVERTED[kind] or int
                       for kind in cubin.arguments]
        with told(f"the kernel {self.name} cannot be loaded"):
            self._code = ObjectCode.from_cubin(cubin.code)
            self._kernel = self._code.get_kernel(cubin.entry)
        if cubin.shared > MORE:
            which = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call(driver.cuKernelSetAttribute, which, cubin.shared, self._kernel.handle,
                 driver.CUdevice(device.device_id))
        if gpu().driver >= 12040:  # else at the first launch, which may be captured only later
            call(driver.cuFuncLoad, call(driver.cuKernelGetFunction, self._kernel.handle))

    def __call__(self, stream: Any, grid: tuple, arguments: tuple) -> None:
        config = self._grids.get(grid)
        if config is None:
            config = self._grids[grid] = self._config(grid=grid, block=self._threads,
                                                      shmem_size=self._shared)
        words: list[Any] = []
        for convert, argument in zip(self._kinds, arguments, strict=True):
            if convert is not None:
                words.append(convert(argument))
            else:
                words += words_of(argument)
        with told(f"the kernel {self.name} on the grid {grid} failed"):
            self._launch(stream, config, self._kernel, *words)


def words_of(array: DeviceArray) -> tuple:
    """How Numba's code is given a one-dimensional array: seven words of 8 bytes.

    Two of Numba's own bookkeeping, then elements, bytes of one, address, shape, strides.
    """
    size, itemsize = array.span, array.dtype.itemsize
    return 0, 0, size, itemsize, array.block.address + array.offset * itemsize, size, itemsize
