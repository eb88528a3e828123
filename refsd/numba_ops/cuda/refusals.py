"""What a GPU's driver refuses, in words: one line each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from refsd.errors import ResourceError
from refsd.numba_ops.cuda.pool import Pool

# After these nothing works any more in this process: a kernel has left its memory, or the like.
FAULTS = ("ILLEGAL_ADDRESS", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC",
          "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ILLEGAL_INSTRUCTION", "HARDWARE_STACK_ERROR")


def call(function: Callable, *arguments: Any) -> Any:
    """A function of cuda.bindings.driver: what it gives. Raises ResourceError."""
    error, *values = function(*arguments)
    if error:
        raise refused(error, getattr(function, "__name__", "it"))
    return values[0] if len(values) == 1 else values or None


def refused(error: Any, what: str) -> ResourceError:
    """The error where the driver answers a function with this code."""
    return ResourceError(_refused(error.name, what))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Within the block an error of cuda.core is one line."""
    try:
        yield
    except Exception as problem:
        name = str(problem).partition(":")[0]
        if not name.startswith("CUDA_ERROR"):
            raise
        raise ResourceError(f"{what}: {_refused(name, 'it')}") from None


def _refused(name: str, what: str) -> str:
    if name.removeprefix("CUDA_ERROR_") in FAULTS:
        return (f"a kernel has failed on the GPU ({name}), and nothing more can be computed in "
                "this process. Run it again with CUDA_LAUNCH_BLOCKING=1, which names the kernel")
    return f"the GPU's driver refused {what} ({name}). Run refsd doctor, which shows the driver"


def full(size: int, pool: Pool, free: int, total: int) -> ResourceError:
    """The error where a piece of memory cannot be had."""
    def gib(nbytes):
        return f"{nbytes / 2**30:.2f} GiB"

    return ResourceError(
        f"the GPU's memory is full: {gib(size)} more were asked for, refsd uses {gib(pool.used)}, "
        f"and {gib(free)} of {gib(total)} are free. Take --dtype float16, a smaller picture (-W, "
        "-H) or fewer at once, or close what else uses the GPU")


def memory_of(driver: Any) -> tuple[int, int]:
    """(free, total) bytes of the GPU."""
    free, total = call(driver.cuMemGetInfo)
    return free, total


def not_within(graph: Any, what: str) -> None:
    """RuntimeError if a graph is being captured, in which there is no such thing."""
    if graph is not None:
        raise RuntimeError(f"{what} within a graph: make it before")
