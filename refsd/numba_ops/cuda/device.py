"""The device that arrays lie on and kernels run on: a GPU, or Python in lockstep.

`current()` is the one of this process. REFSD_CUDA=lockstep takes the latter, which needs neither a
GPU nor a CUDA package and is as slow as one thinks: it is for tests, and for who wants to see.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from refsd.gpu import gpu, in_words, lockstep

_instead: list["Device"] = []


class Block:
    """Memory of a device. It is given back when nobody has it any more."""

    __slots__ = ("address", "nbytes", "memory", "device", "__weakref__")

    def __init__(self, device: Any, address: int, nbytes: int, memory: Any = None):
        self.device, self.address, self.nbytes, self.memory = device, address, nbytes, memory

    def __del__(self):
        self.device.free(self)


class Graph(Protocol):
    """Launches that were captured. It holds all memory that they read or write."""

    result: Any  # what the captured function returned: each replay writes it anew

    def replay(self) -> None:
        """Launch them again, in their order, on the same memory."""


class Device(Protocol):
    """What arrays and kernels need of a device. Its work is done in the order it was asked for."""

    name: str
    capability: int  # 80 for 8.0

    def allocate(self, nbytes: int) -> Block:
        """So many bytes, of any content."""

    def available(self) -> int | None:
        """Bytes that can still be allocated; None: as many as the host has."""

    def free(self, block: Block) -> None:
        """Take memory back; work that was asked for may still use it."""

    def upload(self, host: Any, block: Block, offset: int) -> None:
        """A C-contiguous NumPy array's bytes into a block, from a byte on."""

    def download(self, block: Block, offset: int, host: Any) -> None:
        """The bytes of a block into a C-contiguous NumPy array, after all work."""

    def load(self, factory: Any, constants: tuple) -> Any:
        """Make a variant of a kernel ready; what is wrong with it is said now."""

    def launch(self, factory: Any, constants: tuple, grid: tuple, arguments: tuple) -> None:
        """A variant of a kernel on a grid of blocks. Arguments: DeviceArrays and numbers."""

    def capture(self, function: Callable[[], Any]) -> Graph:
        """What function() launches is kept and not run. Copies from or to the host are errors.

        Memory that is given back within it may be given out again within it, and never elsewhere
        while the graph lives. It may be called more than once.
        """

    def synchronize(self) -> None:
        """Wait until all work is done."""

    def trim(self) -> None:
        """Give memory that is free back to the system."""


@functools.cache
def current() -> Device:
    """The device of this process."""
    if _instead:
        return _instead[-1]
    if lockstep():
        from refsd.numba_ops.cuda.simulated import Simulated

        return Simulated()
    from refsd.numba_ops.cuda.driver import Driver

    return Driver()


@contextmanager
def on(device: Device) -> Iterator[Device]:
    """Within the block `current()` is this device: one that only counts, say."""
    _instead.append(device)
    current.cache_clear()
    try:
        yield device
    finally:
        _instead.pop()
        current.cache_clear()


def launch(factory: Any, constants: tuple, grid: tuple, *arguments: Any) -> None:
    """A variant of a kernel on a grid of blocks of the current device."""
    current().launch(factory, constants, grid, arguments)


def versions() -> dict[str, str]:
    """The compiler's, the driver's, and what computes."""
    from refsd.numba_ops.cuda import compiler

    driver = {} if lockstep() else {"driver": in_words(gpu().driver)}
    return {**compiler.versions(), **driver, "device": current().name,
            "capability": str(current().capability / 10)}
