"""A device that is Python: its memory is NumPy's, its kernels run in lockstep."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from refsd.numba_ops.cuda import lockstep
from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.device import Block
from refsd.numba_ops.cuda.plan import TURING
from refsd.numba_ops.cuda.refusals import not_within


class Simulated:
    """The device of REFSD_CUDA=lockstep. `capability` may be set, for what is chosen by it."""

    name = "Python in lockstep"

    def __init__(self, capability: int = TURING):
        self.capability, self._capturing = capability, None

    def allocate(self, nbytes: int) -> Block:
        """Memory full of NaN."""
        memory = lockstep.memory(nbytes, np.uint8, 256)
        if self._capturing is not None:
            self._capturing.memory.append(memory)
        return Block(self, memory.ctypes.data, nbytes, memory)

    def available(self) -> None:
        """It is the host's."""

    def free(self, block: Block) -> None:
        """NumPy does it."""

    def upload(self, host: np.ndarray, block: Block, offset: int) -> None:
        """A copy."""
        not_within(self._capturing, "a copy from the host")
        block.memory[offset:offset + host.nbytes] = host.reshape(-1).view(np.uint8)

    def download(self, block: Block, offset: int, host: np.ndarray) -> None:
        """A copy."""
        not_within(self._capturing, "a copy to the host")
        host.reshape(-1).view(np.uint8)[:] = block.memory[offset:offset + host.nbytes]

    def load(self, factory: Any, constants: tuple) -> Any:
        """Its plan."""
        return _plan(factory, constants)

    def launch(self, factory: Any, constants: tuple, grid: tuple, arguments: tuple) -> None:
        """Here and now, or when the graph is replayed."""
        work = functools.partial(self.run, factory, constants, grid, arguments)
        if self._capturing is None:
            work()
        else:
            self._capturing.launches.append(work)

    def run(self, factory: Any, constants: tuple, grid: tuple, arguments: tuple) -> None:
        """In lockstep."""
        lockstep.run(_plan(factory, constants), grid, [_seen(a) for a in arguments])

    def capture(self, function: Callable[[], Any]) -> "Launches":
        """Launches as calls that were not made."""
        not_within(self._capturing, "a graph")
        self._capturing = graph = Launches()
        try:
            graph.result = function()
        finally:
            self._capturing = None
        return graph

    def synchronize(self) -> None:
        """Nothing is ever left to do."""
        not_within(self._capturing, "waiting for the GPU")

    def trim(self) -> None:
        """NumPy does it."""


class Launches:
    """A graph. What its launches leave in memory of its own is NaN again before a replay."""

    def __init__(self) -> None:
        self.result: Any = None
        self.launches: list[Callable[[], None]] = []
        self.memory: list[np.ndarray] = []

    def replay(self) -> None:
        """One after the other."""
        for memory in self.memory:
            memory.fill(0xFF)
        for work in self.launches:
            work()


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
