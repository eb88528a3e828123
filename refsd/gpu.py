"""Whether there is a GPU, which one, and whether its driver will do: asked of the driver itself.

Nothing is imported for it, so that `--backend auto` costs a machine without a GPU nothing.
"""

import ctypes
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
LEAST = 75  # the capability that kernels begin with: Turing
MAJOR, MINOR = 75, 76  # attributes: of the compute capability


class Gpu(NamedTuple):
    """The first GPU. CUDA_VISIBLE_DEVICES says which that is."""

    name: str
    capability: int  # 80 for 8.0
    memory: int  # bytes
    driver: int  # the CUDA version that it is for: 13000 for 13.0


@cache
def gpu() -> Gpu | str:
    """The GPU, or why there is none."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"no NVIDIA driver is installed ({LIBRARY} is not found)"
    if error := cuda.cuInit(0):
        return ("the NVIDIA driver sees no GPU" if error == 100 else
                f"the NVIDIA driver does not start ({_name(cuda, error)})")
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return "the NVIDIA driver sees no GPU"
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGetName(name, 256, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    cuda.cuDriverGetVersion(ctypes.byref(value))
    return Gpu(name.value.decode(errors="replace"), 10 * capability[0] + capability[1],
               memory.value, value.value)


def lockstep() -> bool:
    """Whether Python takes the place of a GPU: see refsd.numba_ops.cuda.device."""
    return os.environ.get("REFSD_CUDA") == "lockstep"


def unusable() -> str:
    """Why nothing can be computed on a GPU here, and what to do; empty if it can."""
    if lockstep():
        return "" if find_spec("greenlet") else "greenlet is not installed: pip install greenlet"
    found = gpu()
    if isinstance(found, str):
        return found
    if found.capability < LEAST:
        return (f"the GPU, {found.name}, has compute capability {found.capability / 10}, "
                f"kernels need {LEAST / 10}")
    extra = "cuda13" if found.driver >= 13000 else "cuda12"
    wanted = _bindings()
    if not wanted or find_spec("cuda.core") is None:
        return f"cuda.core is not installed: pip install 'refsd[{extra}]'"
    if found.driver // 1000 < wanted:
        return (f"the NVIDIA driver is for CUDA {in_words(found.driver)}, the installed packages "
                f"want {wanted}.0: get a newer driver, or pip install 'refsd[cuda12]'")
    return ""


def in_words(number: int) -> str:
    """A CUDA version, 13000, as it is written: 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _bindings() -> int:
    """The major version of CUDA that the installed packages are for; 0 if there are none."""
    try:
        return int(version("cuda-bindings").partition(".")[0])
    except PackageNotFoundError:
        return 0


def _name(cuda: ctypes.CDLL, error: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(error, ctypes.byref(name))
    return (name.value or b"").decode() or f"error {error}"
