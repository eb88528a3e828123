"""A CUDA kernel as data: a factory that makes the function of its threads, and which it can make.

    @factory(each=[("float32",), ("float16",)], since=75)
    def silu_kernel(gpu, dtype):
        def kernel(x, y, n): ...
        return Plan(kernel, (gpu.array(dtype), gpu.array(dtype), gpu.uint32), threads=256)

`gpu` is the machine it is made for: front.py, where Numba compiles it, or lockstep.py, where Python
runs it. What follows it are constants of the kernel, strings and numbers; one set of them is a
*variant*. Kernels take one-dimensional arrays and numbers, nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TURING, AMPERE, HOPPER = 75, 80, 90  # compute capabilities, 7.5 and so on


class Plan(NamedTuple):
    """The function of one thread, the types of its arguments, and the block that it runs in."""

    kernel: Callable
    signature: tuple
    threads: int
    shared: int = 0  # bytes of dynamic shared memory
    blocks: int = 1  # that one multiprocessor should hold, which limits the registers of a thread


class Factory(NamedTuple):
    """A declared factory. `each` lists the variants that ops launch; `since` what they need."""

    make: Callable[..., Plan]
    each: tuple[tuple, ...]
    since: int
    only: str  # "a" for instructions that one architecture has and the next has not, such as wgmma

    def __call__(self, gpu: Any, *constants: Any) -> Plan:
        return self.make(gpu, *constants)

    def serves(self, capability: int) -> bool:
        """Whether a GPU of this capability can run its variants."""
        return capability == self.since if self.only else capability >= self.since

    @property
    def name(self) -> str:
        """Unique: the file of the family, and the factory's name."""
        return f"{self.make.__module__.rpartition('.')[2]}.{self.make.__name__}"


class Choice(NamedTuple):
    """The kernel that an op takes for a call, by shapes, dtype and capability alone, and why.

    pieces: into how many parts the sum of an element is split, each of a block of its own.
    """

    factory: Factory
    constants: tuple
    why: str
    pieces: int = 1


FACTORIES: dict[str, Factory] = {}


def factory(*, each: Sequence[tuple], since: int = TURING,
            only: str = "") -> Callable[[Callable], Factory]:
    """Declare a factory, so that every variant is compiled and measured by the gate."""

    def declare(make: Callable) -> Factory:
        declared = Factory(make, tuple(map(tuple, each)), since, only)
        known = FACTORIES.get(declared.name)
        if known is not None and known.make.__module__ != make.__module__:
            raise ImportError(f"a second factory {declared.name}; give it another name")
        FACTORIES[declared.name] = declared
        return declared

    return declare
