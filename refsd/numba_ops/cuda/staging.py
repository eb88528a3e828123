"""Uploads through pinned memory, of which a GPU's copy engine reads at full speed."""

import ctypes
from typing import Any

import numpy as np

from refsd.numba_ops.cuda.refusals import call

ROOM = 16 << 20  # bytes of each buffer
UNTIMED = 2  # flag of an event


class Staging:
    """Two pinned buffers: one is filled while the other is copied. Copies have their own stream."""

    def __init__(self, stream: Any, copies: Any):
        from cuda.bindings import driver

        self._driver, self._stream, self._copies = driver, stream, copies
        self._buffers = [_Buffer(driver) for _ in range(2)]
        self._before, self._after = (call(driver.cuEventCreate, UNTIMED) for _ in range(2))
        self._turn = 0

    def upload(self, host: np.ndarray, address: int) -> None:
        """Bytes to an address. Work asked for before may use what is there, work after has it."""
        driver, copies = self._driver, self._copies.handle
        call(driver.cuEventRecord, self._before, self._stream.handle)
        call(driver.cuStreamWaitEvent, copies, self._before, 0)
        for begin in range(0, host.nbytes, ROOM):
            part = host[begin:begin + ROOM]
            buffer = self._buffers[self._turn]
            self._turn ^= 1
            call(driver.cuEventSynchronize, buffer.copied)
            buffer.bytes[:part.nbytes] = part
            call(driver.cuMemcpyHtoDAsync, address + begin, buffer.bytes.ctypes.data, part.nbytes,
                 copies)
            call(driver.cuEventRecord, buffer.copied, copies)
        call(driver.cuEventRecord, self._after, copies)
        call(driver.cuStreamWaitEvent, self._stream.handle, self._after, 0)

    def close(self) -> None:
        """Give the pinned memory back."""
        call(self._driver.cuStreamSynchronize, self._copies.handle)
        for buffer in self._buffers:
            call(self._driver.cuMemFreeHost, buffer.bytes.ctypes.data)
        self._buffers.clear()


class _Buffer:
    """Memory that stays where it is, and whether it has been copied."""

    def __init__(self, driver: Any):
        memory = call(driver.cuMemHostAlloc, ROOM, 0)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * ROOM).from_address(int(memory)))
        self.copied = call(driver.cuEventCreate, UNTIMED)
