"""A device that is Python: its memory is NumPy's, its kernels run in lockstep."""

import functools
from typing import Any

import numpy as np

from refsd.numba_ops.cuda import lockstep
from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.device import Block
from refsd.numba_ops.cuda.plan import TURING


class Simulated:
    """The device of REFSD_CUDA=lockstep. `capability` may be set, for what is chosen by it."""

    name = "Python in lockstep"

    def __init__(self, capability: int = TURING):
        self.capability = capability

    def allocate(self, nbytes: int) -> Block:
        """Memory full of NaN."""
        memory = lockstep.memory(nbytes, np.uint8, 256)
        return Block(self, memory.ctypes.data, nbytes, memory)

    def free(self, block: Block) -> None:
        """NumPy does it."""

    def upload(self, host: np.ndarray, block: Block, offset: int) -> None:
        """A copy."""
        block.memory[offset:offset + host.nbytes] = host.reshape(-1).view(np.uint8)

    def download(self, block: Block, offset: int, host: np.ndarray) -> None:
        """A copy."""
        host.reshape(-1).view(np.uint8)[:] = block.memory[offset:offset + host.nbytes]

    def launch(self, factory: Any, constants: tuple, grid: tuple, arguments: tuple) -> None:
        """Here and now."""
        lockstep.run(_plan(factory, constants), grid, [_seen(a) for a in arguments])

    def synchronize(self) -> None:
        """Nothing is ever left to do."""


@functools.cache
def _plan(factory: Any, constants: tuple) -> Any:
    return factory(lockstep, *constants)


def _seen(argument: Any) -> Any:
    """An array as its kernel sees it: from its first element to its last, whatever lies between."""
    if not isinstance(argument, DeviceArray):
        return argument
    first = argument.offset * argument.dtype.itemsize
    memory = argument.block.memory[first:first + argument.span * argument.dtype.itemsize]
    return memory.view(lockstep.array(str(argument.dtype)))
