"""Memory of a GPU that is given out again: asking its driver takes as long as a small kernel.

Pieces come in size classes, eighths of a power of two, so that what is freed fits what is asked for
next. Work is done in the order it is asked for, so a piece may be given out as soon as it is free:
what still uses it comes before what will.
"""

from collections import defaultdict
from collections.abc import Callable

LEAST = 512


class NoMemory(Exception):
    """The driver has no such piece."""


def size_class(nbytes: int) -> int:
    """The bytes of the piece that is given for so many: at most an eighth more, or LEAST."""
    if nbytes <= LEAST:
        return LEAST
    step = 1 << (nbytes - 1).bit_length() - 4
    return -(-nbytes // step) * step


class Pool:
    """What the driver gave, in use or free. `allocate` and `release` are the driver's."""

    def __init__(self, allocate: Callable[[int], int], release: Callable[[int], None]):
        self._allocate, self._release = allocate, release
        self.free: dict[int, list[int]] = defaultdict(list)  # size class -> addresses
        self.held = 0  # bytes from the driver
        self.used = 0  # bytes of them that somebody has

    def take(self, size: int) -> int:
        """The address of a piece of a size class. Raises NoMemory."""
        address = self.free[size].pop() if self.free.get(size) else self._more(size)
        self.used += size
        return address

    def give(self, address: int, size: int) -> None:
        """Take a piece back."""
        self.used -= size
        self.free[size].append(address)

    def trim(self) -> None:
        """Give what is free back to the driver."""
        for size, addresses in list(self.free.items()):
            while addresses:
                self._release(addresses.pop())
                self.held -= size

    def _more(self, size: int) -> int:
        try:
            address = self._allocate(size)
        except NoMemory:
            self.trim()
            address = self._allocate(size)
        self.held += size
        return address


class Arena:
    """The memory of one captured graph. Its pieces are free for others when it is closed.

    What it needs and the pool has not free is noted as `missing`, and its address is 0: nothing
    runs while a graph is captured, and the driver gives nothing then.
    """

    def __init__(self, pool: Pool):
        self._pool, self._free, self._closed = pool, defaultdict(list), False
        self.missing: list[int] = []
        self.held = 0

    def take(self, size: int) -> int:
        """The address of a piece: one that the graph has used before, or of the pool."""
        if self._free.get(size):
            return self._free[size].pop()
        if not self._pool.free.get(size):
            self.missing.append(size)
            return 0
        self.held += size
        return self._pool.take(size)

    def give(self, address: int, size: int) -> None:
        """Take a piece back; to the pool, if the graph is no more."""
        if address and self._closed:
            self._pool.give(address, size)
        elif address:
            self._free[size].append(address)

    def close(self) -> None:
        """The graph is no more. Pieces that somebody still has come back when they are freed."""
        self._closed = True
        for size, addresses in self._free.items():
            while addresses:
                self._pool.give(addresses.pop(), size)
