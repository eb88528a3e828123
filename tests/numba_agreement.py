"""The CPU backend against the reference: the checks that every op has to pass.

All calls go through F and the registry, so a wrong kernel can be put in place of the real one:
tests/wrong_kernels.py does, to show that the checks notice.
"""

import os
from contextlib import contextmanager
from unittest import mock

import agreement_bounds
import numba
import numpy as np
from agreement_bounds import CONVOLUTIONS
from bounds import PRECISIONS, assert_within
from op_table import arrays_in, is_float, memory_of

from refsd import functional as F
from refsd import registry
from refsd.half import HALVES

OPS = registry.ops()
with registry.use("numba"):
    KERNELS = {name: kernel for (backend, name), kernel in registry._kernels.items()
               if backend == "numba"}

from refsd.numba_ops import memory  # noqa: E402  kernels need the ops to be declared first
from refsd.numba_ops.cpu import layout  # noqa: E402
from refsd.numba_ops.simd import WIDTH  # noqa: E402

layout.ALONE = 0  # or NumPy would copy the small arrays of all cases: test_numba_layout.py

# Narrower vectors are tested by running the tests again, in another process and float32 only.
NARROW = "REFSD_SIMD_BYTES" in os.environ or "NUMBA_BOUNDSCHECK" in os.environ
DTYPES = ("float32",) if NARROW else ("float32", "float64")
# Of kernels that read halves. With 8 lanes their products are those of any processor: "widen".
HALF = ("bfloat16", "float16") if not NARROW else ("bfloat16",) * (WIDTH == 32)
PRODUCTS = ("linear", "linear_add", "linear_geglu", "matmul", *CONVOLUTIONS, "attention")
BAND = 64


def run(name, args, options):
    """The op on the CPU backend."""
    with registry.use("numba"):
        return getattr(F, name)(*args, **options)


@contextmanager
def planted(name, kernel):
    """Inside, `kernel` is the CPU backend's of the op, given halves and leaves if that was."""
    halves = registry._reads_halves | ({kernel} if halves_of(name) else set())
    leaves = registry._reads_leaves
    leaves = leaves | ({kernel} if KERNELS[name] in leaves else set())
    with mock.patch.dict(registry._kernels, {("numba", name): kernel}), \
            mock.patch.object(registry, "_reads_halves", halves), \
            mock.patch.object(registry, "_reads_leaves", leaves):
        yield


def halves_of(name):
    """The dtypes of halves that the op's kernel reads itself, as far as they are tested here.

    Products of halves have code of their own. All others load and store them (test_simd.py: every
    bit pattern of both), and compiling takes long: one dtype, one width.
    """
    if KERNELS[name] not in registry._reads_halves:
        return ()
    return HALF if name in PRODUCTS else HALF[:1] * (not NARROW)


def agree(name, args, options, dtype="float32"):
    """Run the op as `dtype`; it must infer, touch and compute what the reference does."""
    args = [cast(a, dtype) for a in args]
    options = {k: cast(v, dtype) for k, v in options.items()}
    buffers = [memory_of(a) for a in arrays_in((args, options))]
    before = [b.tobytes() for b in buffers]
    with poisoned():
        y = run(name, args, options)
    assert [b.tobytes() for b in buffers] == before, f"{name} changed an input"
    require_near(y, name, args, options, dtype)
    return y


def require_near(y, name, args, options, dtype, products=None):
    """A result has the contract's shape and dtype, and is within the bound of the reference's.

    products: how halves are multiplied, as in agreement_bounds.of_dtype.
    """
    inferred = OPS[name].contract(*args, **options)
    assert (y.shape, str(y.dtype)) == (inferred.shape, inferred.dtype), (
        f"{name}: got {y.shape} {y.dtype}, wanted {inferred.shape} {inferred.dtype}")
    truth, wide = truth_of(name, args, options)
    bound = agreement_bounds.of_dtype(name, *wide, truth, dtype, products)
    if dtype == "float64":  # then the truth errs too
        bound = bound + agreement_bounds.of_dtype(name, wide[0], _plain(name, wide[1]), truth,
                                                  dtype)
    assert_within(y, truth, bound, f"{name} {dtype} {_described(args)} {_described(options)}")


def agree_on(name, call):
    """The same for a call of op_table, in every dtype."""
    for dtype in (*DTYPES, *halves_of(name)):
        agree(name, *call.build(dtype), dtype)


def truth_of(name, args, options):
    """The reference's result in float64, and the arguments in float64."""
    wide = [cast(a, "float64") for a in args], {k: cast(v, "float64") for k, v in options.items()}
    with np.errstate(all="ignore"):
        return OPS[name].definition(*wide[0], **_plain(name, wide[1])), wide


def _plain(name, options):
    """The algorithm that is the formula."""
    return options | {"algorithm": "im2col"} if name in CONVOLUTIONS else options


def cast(value, dtype):
    """Floats as dtype; arrays that have it already stay where they lie in memory."""
    if isinstance(value, list):
        return [cast(v, dtype) for v in value]
    if isinstance(value, np.ndarray) and is_float(value.dtype):
        return value.astype(HALVES.get(dtype, dtype), copy=False)
    return dtype if isinstance(value, str) and value in (*PRECISIONS, *HALVES) else value


def _described(value):
    """A call's arguments as they are written in a message: arrays by their shapes."""
    if isinstance(value, np.ndarray):
        return f"{value.shape}"
    if isinstance(value, dict):
        return {k: _described(v) for k, v in value.items()}
    return [_described(v) for v in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def poisoned():
    """Results begin as NaN in every element; what lies around them must not be touched."""
    buffers = []

    def poison(size):
        whole = memory.allocate_from_pool(size + 2 * BAND)
        whole[:] = 255
        buffers.append(whole)
        return whole[BAND:BAND + size]

    with memory.allocating_with(poison):
        yield
    for whole in buffers:
        assert (whole[:BAND] == 255).all() and (whole[-BAND:] == 255).all(), "wrote outside"


def same_bits(got, expected, what=""):
    """Equal to the last bit: -0 is not 0, and one NaN is not another."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, what
    bits = f"u{got.itemsize}"
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(bits),
                                  np.ascontiguousarray(expected).view(bits), err_msg=what)


@contextmanager
def masked(threads):
    """Inside, kernels use so many threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
