"""A variant of a kernel as machine code: Numba makes PTX of it, nvJitLink a cubin. It needs no GPU.

What is handed to a driver is always a cubin: an older driver of the same major version runs it,
while it refuses PTX that is newer than itself.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from refsd.errors import ResourceError

NEEDED = ("numba-cuda", "cuda-core")
LIBRARIES = ("nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12")
INSTALL = ("pip install 'refsd[cuda13]', or 'refsd[cuda12]' for a driver older than 13.0")


class Cubin(NamedTuple):
    """Machine code of one kernel, how it is called, and what the assembler said of it."""

    entry: str
    arguments: tuple[str, ...]  # "array", or the type of a number
    threads: int
    shared: int  # bytes of dynamic shared memory
    static: int  # bytes of shared memory that the code declares itself
    registers: int
    spills: int  # bytes that are stored and loaded for want of registers
    target: str
    code: bytes


def target_of(factory: Any, capability: int) -> str:
    """The architecture that a factory is compiled for, "80" or "90a", for a GPU's capability."""
    if not factory.serves(capability):
        raise ValueError(f"{factory.name} is for compute capability {factory.since / 10}, not "
                         f"{capability / 10}; choose a kernel by the device's")
    return f"{capability}{factory.only}"


def compiled(factory: Any, constants: tuple, capability: int) -> Cubin:
    """A variant as machine code for a GPU of this capability, 80 for 8.0."""
    target = target_of(factory, capability)
    plan = factory(_front(), *constants)
    ptx = ptx_of(plan, target)
    code, said = assembled(ptx, target)
    entry = re.search(r"\.visible \.entry (\w+)\(", ptx)[1]
    kinds = tuple("array" if hasattr(kind, "layout") else str(kind) for kind in plan.signature)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return Cubin(entry, kinds, plan.threads, plan.shared, static_memory(ptx),
                 int(re.search(r"Used (\d+) registers", said)[1]), spills, target, code)


def ptx_of(plan: Any, target: str) -> str:
    """The PTX of a plan that was made for front.py."""
    number, letter = re.fullmatch(r"(\d+)(\D?)", target).groups()
    capability = (*divmod(int(number), 10), *letter)
    with _libraries():
        return _front().compile_ptx(plan.kernel, plan.signature, capability,
                                    (plan.threads, plan.blocks))


def static_memory(ptx: str) -> int:
    """Bytes of shared memory that PTX declares; the assembler does not say the sum."""
    total = 0
    for align, bits, count in re.findall(r"\.shared \.align (\d+) \.b(\d+) \w+\[(\d+)\]", ptx):
        total = -(-total // int(align)) * int(align) + int(bits) // 8 * int(count)
    return total


def assembled(ptx: str, target: str) -> tuple[bytes, str]:
    """The cubin of PTX, and the assembler's words on registers, spills and memory."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    with _libraries():
        linker = Linker(ObjectCode.from_ptx(ptx.encode()),
                        options=LinkerOptions(arch=f"sm_{target}", ptxas_options=["-v"]))
        return bytes(linker.link("cubin").code), linker.get_info_log()


@cache
def versions() -> dict[str, str]:
    """Of what decides the machine code; empty where there is no compiler. Nothing is imported."""
    found = {name: number for name in (*NEEDED, *LIBRARIES) if (number := _version(name))}
    return found if set(NEEDED) <= set(found) else {}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _front() -> Any:
    """front.py, if what it needs is installed."""
    for name in NEEDED:
        if not _version(name):
            raise ResourceError(f"a kernel for the GPU has to be compiled, and {name} is not "
                                f"installed: {INSTALL}")
    from refsd.numba_ops.cuda import front

    return front


@contextmanager
def _libraries() -> Iterator[None]:
    """Within the block a library that cannot be found is an error of one line."""
    from cuda.pathfinder import DynamicLibNotFoundError

    try:
        yield
    except DynamicLibNotFoundError as problem:
        name = re.search("(nvvm|nvJitLink|nvrtc)", str(problem))
        raise ResourceError(f"a kernel for the GPU has to be compiled, and the library "
                            f"{name[1] if name else 'of its compiler'} is not found: {INSTALL}"
                            ) from None
