"""A CPU kernel against the reference: within its bound, in poisoned memory between guard bands."""

import os
import subprocess
import sys
from contextlib import contextmanager
from unittest import mock

import numba
import numpy as np
from bounds import BOUNDS, PRECISIONS, assert_within

from refsd import registry

OPS = registry.ops()

from refsd.numba_ops import memory  # noqa: E402  kernels need the ops to be declared first
from refsd.numba_ops.cpu import (  # noqa: E402
    activation,
    arithmetic,
    attention,
    embedding,
    layout,
    norm,
    resize,
)

MODULES = (activation, arithmetic, attention, embedding, layout, norm, resize)
KERNELS = {name: getattr(module, name) for module in MODULES for name in OPS
           if getattr(getattr(module, name, None), "__module__", None) == module.__name__}

# Narrower vectors are tested by running the tests again, in another process and float32 only.
NARROW = "REFSD_SIMD_BYTES" in os.environ
DTYPES = ("float32",) if NARROW else ("float32", "float64")
BAND = 64


def agree(name, args, options, dtype="float32"):
    """Run the kernel as `dtype`; it must foretell, touch and compute what the reference does."""
    cast = [_cast(a, dtype) for a in args], {k: _cast(v, dtype) for k, v in options.items()}
    before = [a.tobytes() for a in _arrays(cast)]
    foretold = OPS[name].contract(*cast[0], **cast[1])
    with poisoned():
        y = KERNELS[name](*cast[0], **cast[1])
    assert (y.shape, str(y.dtype)) == (foretold.shape, foretold.dtype), name
    assert [a.tobytes() for a in _arrays(cast)] == before, f"{name} changed an input"

    wide = [_cast(a, "float64") for a in args], {k: _cast(v, "float64") for k, v in options.items()}
    truth = OPS[name].definition(*wide[0], **wide[1])
    bound = BOUNDS[name](*wide, truth, PRECISIONS[dtype])
    # In float64 the reference errs as much as the kernel.
    assert_within(y, truth, bound if dtype == "float32" else 2 * bound, f"{name} {dtype}")
    return y


def agree_on(name, call):
    """The same for a call drawn from op_table, in every dtype."""
    for dtype in DTYPES:
        args, options = call.build(dtype)
        agree(name, args, options, dtype)


def _cast(value, dtype):
    """Floats as dtype; arrays that have it already stay where they lie in memory."""
    if isinstance(value, list):
        return [_cast(v, dtype) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype, copy=False)
    return dtype if isinstance(value, str) and value in PRECISIONS else value


def _arrays(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))


@contextmanager
def poisoned():
    """Results begin as NaN in every element; what lies around them must not be touched."""
    buffers, aligned_empty = [], memory.aligned_empty

    def poison(size, dtype):
        band = BAND // np.dtype(dtype).itemsize
        whole = aligned_empty(size + 2 * band, dtype)
        whole.view(np.uint8)[:] = 255
        buffers.append(whole)
        return whole[band:band + size]

    with mock.patch.object(memory, "aligned_empty", poison):
        yield
    for whole in buffers:
        guards = whole.view(np.uint8)
        assert (guards[:BAND] == 255).all() and (guards[-BAND:] == 255).all(), "wrote outside"


def same_for_all_threads(name, *args, **options):
    """The result, which must have the same bits for 1 thread and for as many as there are."""
    results = []
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(threads)
        results.append(KERNELS[name](*args, **options))
    for y in results:
        np.testing.assert_array_equal(y.view(f"i{y.itemsize}"),
                                      results[0].view(f"i{y.itemsize}"))
    return results[0]


def run_again_with(width, file, tests):
    """Run some tests of a file with vectors of another width."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", tests],
        env=os.environ | {"REFSD_SIMD_BYTES": width}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout[-3000:]
