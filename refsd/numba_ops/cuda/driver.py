"""A GPU as the device of arrays and kernels: memory, copies, launches and graphs by its driver.

Numba's own launch takes 50 us of Python, one by cuda.core 2; so Numba compiles, and nothing more.
Everything is asked of one stream, so that work is done in the order in which it was asked for;
uploads have a second one, which waits for the first and which the first waits for.
"""

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from refsd import gpu
from refsd.errors import ResourceError
from refsd.numba_ops.cuda import store
from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.device import Block
from refsd.numba_ops.cuda.kernels import Kernel
from refsd.numba_ops.cuda.pool import Arena, NoMemory, Pool, size_class
from refsd.numba_ops.cuda.refusals import call, full, memory_of, not_within, refused
from refsd.numba_ops.cuda.staging import Staging

ATTEMPTS = 3  # to capture a function: at first kernels are loaded and memory is found


class Driver:
    """The first GPU that the driver shows."""

    def __init__(self):
        if why := gpu.unusable():
            raise ResourceError(f"no GPU can be used: {why}. Or take another backend")
        from cuda.bindings import driver
        from cuda.core import Device

        self.name, self.capability, self.memory, _ = gpu.gpu()
        self._driver, self._device, self._here = driver, Device(0), threading.local()
        self._lock = threading.RLock()  # of a captured function nobody else's launch is a part
        self._enter()
        self.stream = self._device.create_stream()
        self.pool = Pool(self._more, lambda address: call(driver.cuMemFree, address))
        self._staging = Staging(self.stream, self._device.create_stream())
        self._kernels: dict[tuple, Kernel] = {}
        self._capturing: Capture | None = None

    def allocate(self, nbytes: int) -> Block:
        """From the pool; while a graph is captured, from the graph's own memory."""
        with self._lock:
            self._enter()
            size = size_class(nbytes)
            source = self._capturing.arena if self._capturing else self.pool
            try:
                return Block(self, source.take(size), nbytes, (source, size))
            except NoMemory:
                raise full(size, self.pool, *memory_of(self._driver)) from None

    def available(self) -> int:
        """What the driver has, and the pool."""
        self._enter()
        return memory_of(self._driver)[0] + self.pool.held - self.pool.used

    def free(self, block: Block) -> None:
        """Back to where it came from."""
        source, size = block.memory
        source.give(block.address, size)

    def upload(self, host: np.ndarray, block: Block, offset: int) -> None:
        """Through pinned memory. `host` may change when this returns."""
        with self._lock:
            not_within(self._capturing, "a copy from the host")
            self._enter()
            self._staging.upload(host.reshape(-1).view(np.uint8), block.address + offset)

    def download(self, block: Block, offset: int, host: np.ndarray) -> None:
        """After all work."""
        with self._lock:
            not_within(self._capturing, "a copy to the host")
            self.synchronize()
            call(self._driver.cuMemcpyDtoH, host.ctypes.data, block.address + offset, host.nbytes)

    def load(self, factory: Any, constants: tuple) -> Kernel:
        """A variant, ready to be launched; it stays loaded."""
        self._enter()
        made = Kernel(factory, constants, store.cubin(factory, constants, self.capability),
                      self._device)
        return self._kernels.setdefault((id(factory), constants), made)

    def launch(self, factory: Any, constants: tuple, grid: tuple, arguments: tuple) -> None:
        """A kernel that was used before takes some microseconds."""
        with self._lock:
            self._enter()
            kernel = self._kernels.get((id(factory), constants))
            if kernel is None:
                if self._capturing:  # a driver may not load code now
                    self._capturing.unloaded.append((factory, constants))
                    return
                kernel = self.load(factory, constants)
            kernel(self.stream, grid, arguments)
            if self._capturing:
                self._capturing.note(arguments)

    def synchronize(self) -> None:
        """Wait. A kernel that has failed is told here."""
        with self._lock:
            not_within(self._capturing, "waiting for the GPU")
            self._enter()
            call(self._driver.cuStreamSynchronize, self.stream.handle)

    def capture(self, function: Callable[[], Any]) -> "Capture":
        """It may take another attempt: see ATTEMPTS."""
        with self._lock:
            not_within(self._capturing, "a graph")
            self._enter()
            for _ in range(ATTEMPTS):
                graph = Capture(self)
                if graph.whole(function):
                    return graph
                for factory, constants in graph.unloaded:
                    self.load(factory, constants)
                missing = graph.arena.missing
                graph.close()
                blocks = [self.allocate(size) for size in missing]  # all of them at once
                blocks.clear()
            raise ResourceError(f"a step was captured {ATTEMPTS} times, and each time it wanted "
                                "other kernels or memory. Run it without a graph")

    def trim(self) -> None:
        """Give free memory back to the driver."""
        self.synchronize()
        self.pool.trim()

    def __del__(self):
        """Nobody has memory of it any more. At the end of a process the driver sees to the rest."""
        if not sys.is_finalizing() and hasattr(self, "_staging"):
            self.trim()
            self._staging.close()

    def _more(self, size: int) -> int:
        error, address = self._driver.cuMemAlloc(size)
        if error == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise NoMemory
        if error:
            raise refused(error, "cuMemAlloc")
        return int(address)

    def _enter(self) -> None:
        """The driver's context belongs to each Python thread that calls it."""
        if not getattr(self._here, "entered", False):
            self._device.set_current()
            self._here.entered = True


class Capture:
    """A graph of the driver, and what lives as long as it does."""

    def __init__(self, device: Driver):
        self._device, self._driver, self._graph = device, device._driver, None
        self.arena = Arena(device.pool)
        self.unloaded: list[tuple] = []
        self.blocks: set[Block] = set()  # that are read, and are not the graph's own
        self.launches, self.result = 0, None

    def whole(self, function: Callable[[], Any]) -> bool:
        """Whether what function() launches could be captured."""
        stream = self._device.stream.handle
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(self._driver.cuStreamBeginCapture, stream, mode)
        self._device._capturing, whole, collecting = self, False, gc.isenabled()
        gc.disable()  # garbage of others may have memory that a driver does not take back now
        try:
            self.result = function()
            whole = not self.arena.missing and not self.unloaded
        finally:
            if collecting:
                gc.enable()
            self._device._capturing = None
            graph = call(self._driver.cuStreamEndCapture, stream)
            if whole:
                self._graph = call(self._driver.cuGraphInstantiate, graph, 0)
            call(self._driver.cuGraphDestroy, graph)
        return whole

    def note(self, arguments: tuple) -> None:
        """Of a launch."""
        self.launches += 1
        for argument in arguments:
            if type(argument) is DeviceArray and argument.block.memory[0] is not self.arena:
                self.blocks.add(argument.block)

    def replay(self) -> None:
        """All of it, by one call of the driver."""
        with self._device._lock:
            not_within(self._device._capturing, "a replay")
            self._device._enter()
            call(self._driver.cuGraphLaunch, self._graph, self._device.stream.handle)

    def close(self) -> None:
        """Its memory is free for others. Nobody may replay it any more."""
        if self._graph is not None:
            self._device.synchronize()
            call(self._driver.cuGraphExecDestroy, self._graph)
        self._graph = self.result = None
        self.blocks.clear()
        self.arena.close()

    def __del__(self):
        if not sys.is_finalizing():
            self.close()
