"""The GPU as Numba compiles for it: the one module that imports numba.cuda.

Another front end would stand here. The rest of the package needs of it: `compile_ptx`, `device`,
`array`, the names of types, `cuda` (indices, barriers, shuffles, shared and local memory), and the
intrinsics. lockstep.py has the same names (but compile_ptx), by their meaning.
"""

from types import SimpleNamespace
from typing import Any

import refsd.numba_ops.settings  # noqa: F401  before Numba

import numpy as np

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 has it no more
    np.row_stack = np.vstack

import numba.cuda.dispatcher
from numba import cuda, types
from numba.types import (  # noqa: F401
    float16,
    float32,
    float64,
    int8,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
)

from refsd.numba_ops.cuda.ptx import *  # noqa: F403  the intrinsics
from refsd.numba_ops.cuda.ptx_hopper import *  # noqa: F403
from refsd.numba_ops.cuda.ptx_matrices import *  # noqa: F403

_ELEMENTS = {"bfloat16": types.uint16}


def array(dtype: str) -> Any:
    """The type of a kernel's argument: a one-dimensional array. bfloat16 is its bits, uint16."""
    return (_ELEMENTS.get(dtype) or getattr(types, dtype))[::1]


def device(function: Any) -> Any:
    """A function that kernels call; it becomes a part of them."""
    return cuda.jit(device=True)(function)


def compile_ptx(kernel: Any, signature: tuple, capability: tuple, bounds: tuple[int, int]) -> str:
    """The kernel in PTX. capability (8, 0), or (9, 0, "a"); bounds: threads, blocks at once."""
    # Numba asks the current device what to compile device functions for; there need not be one.
    numba.cuda.dispatcher.get_current_device = lambda: SimpleNamespace(
        compute_capability=capability)
    ptx, _ = cuda.compile_ptx(kernel, signature, cc=capability, launch_bounds=bounds)
    return ptx
