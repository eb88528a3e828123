"""All kernels that a generation needs, compiled before it begins.

Numba compiles for types, never for sizes: the small calls below have the types that the calls of a
model have. They are only planned, so that the number of kernels to compile is known at once.
"""

import contextvars
import threading
from collections.abc import Iterator

import numpy as np

from refsd.half import HALVES
from refsd.numba_ops.cache import exclusive
from refsd.numba_ops.jit import Kernel, compilations, logger, missing, planned
from refsd.numba_ops.pointwise import ALONE
from refsd.numba_ops.weights import pack_all
from refsd.quantized import W8A8
from refsd.registry import dispatch, use

_lock = threading.Lock()
_ready: set[str] = set()


def make_ready(dtype: str) -> None:
    """Load or compile what a generation in `dtype` needs; once a process.

    Of several processes one compiles and the others wait for it.
    """
    with _lock:
        if dtype in _ready:
            return
        wanted = plan(dtype)
        if missing(wanted):
            with exclusive("compiling", on_wait=_say_waiting):
                _compile(missing(wanted))
        _ready.add(dtype)


def _say_waiting():
    logger.info("waiting for another process, which compiles the kernels")


def _compile(kernels):
    compilations.expected = compilations.count + len(kernels)
    try:
        for kernel, kinds in kernels:
            kernel.entry.compile(kinds)
    finally:
        compilations.expected = 0


def plan(dtype: str) -> list[tuple[Kernel, tuple]]:
    """The kernels of a generation, and the types they are called with.

    Planned in a context of its own: no listener of the caller is called, no exact mode shortens it.
    """
    return contextvars.Context().run(_plan, dtype)


def _plan(dtype):
    with planned() as found:
        for exact in (False, True):
            with use("numba", exact=exact):
                for name, inputs, options in calls(dtype):
                    dispatch(name, inputs, options)
        if dtype == "int8":  # loading packs these, where float32's are packed in a call above
            pack_all({"weight": W8A8(np.zeros((16, 16), "int8"), np.ones(16, "float32"))})
    return list(found)


def calls(dtype: str) -> Iterator[tuple[str, tuple, dict]]:
    """(op, inputs, options) that lead to every kernel of a generation."""
    if dtype == "int8":
        yield from calls("float32")
        tokens, matrix = np.zeros((1, 64, 16), "float32"), np.zeros((16, 16), "int8")
        yield "linear", (tokens, W8A8(matrix, np.ones(16, "float32"))), {}
        return
    dtype = HALVES.get(dtype, dtype)
    # Winograd's in any dtype, of more tiles than one block
    image, channels = np.zeros((1, 16, 20, 20), dtype), np.zeros(16, dtype)
    tokens, matrix = np.zeros((1, 64, 16), dtype), np.zeros((16, 16), dtype)
    kernel = np.zeros((16, 16, 3, 3), dtype)
    norm = {"eps": 1e-5}

    yield "embedding", (np.zeros((1, 64), np.int64), matrix), {}
    yield "add", (tokens, matrix[:1].repeat(64, axis=0)), {}
    yield "layer_norm", (tokens, channels, channels), norm
    yield "linear", (tokens, matrix, channels), {}
    yield "linear", (tokens[:, 0], matrix, channels), {}
    yield "attention", (tokens, tokens, tokens), {"heads": 2, "causal": True}
    yield "quick_gelu", (tokens,), {}
    yield "timestep_embedding", (np.zeros(1, np.int64),), {
        "dim": 16, "flip_sin_to_cos": True, "freq_shift": 0, "dtype": str(dtype)}
    yield "silu", (image,), {}
    yield "conv2d", (image, kernel, channels), {"padding": 1}
    yield "conv2d", (image, kernel, channels), {"padding": 1, "stride": 2}
    yield "conv2d", (image, kernel[:4], channels[:4]), {"padding": 1}
    yield "group_norm", (image, channels, channels), {"groups": 4, **norm}
    yield "geglu", (tokens,), {}
    yield "linear_geglu", (tokens, matrix, channels), {}  # of graphs
    yield "upsample_nearest", (image,), {"height": 40, "width": 40}
    large = np.zeros((1, 16, ALONE // 16), dtype)  # smaller ones no kernel copies
    yield "concat", ([large, large],), {"axis": 1}
