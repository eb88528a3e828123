"""SIMD vectors and their mathematics against NumPy and libm, on every width."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import erf, expit

from refsd.half import HALVES, to_float32, to_half
from refsd.numba_ops import simd, vecmath
from refsd.numba_ops.jit import jit
from refsd.numba_ops.levels import BFLOAT16
from refsd.numba_ops.memory import flat
from refsd.numba_ops.pairs import add_pairs, pair_up
from refsd.numba_ops.simd import lanes


@jit
def everything(a, b, out, n):
    x, y = simd.masked_load(a, 0, n), simd.masked_load(b, 0, n)
    chosen = simd.select(x < y, simd.fma(x, y, 2.5 * x), -x / (y + 1.0))
    z = simd.maximum(chosen, simd.minimum(x, y)) + simd.rint(x) - simd.sqrt(simd.absolute(y))
    simd.masked_store(out, 0, simd.copysign(z, x), n)
    return simd.reduce_add(x), simd.reduce_max(y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vectors_compute_what_numpy_computes_and_touch_nothing_else(dtype):
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 40)).astype(dtype)
    for n in range(lanes(a) + 1):
        out = np.full(40, np.nan, dtype)
        reduce_add, reduce_max = everything(a, b, out, n)
        x, y = a[:n], b[:n]
        z = np.where(x < y, x * y + dtype_of(2.5, x) * x, -x / (y + 1))
        z = np.maximum(z, np.minimum(x, y)) + np.rint(x) - np.sqrt(np.abs(y))
        # One multiply-add is fused in the kernel: half an ulp of its largest term.
        np.testing.assert_allclose(out[:n], np.copysign(z, x), rtol=0, atol=8 * np.finfo(dtype).eps)
        assert np.isnan(out[n:]).all()
        # Terms of the sum: at most lanes of them, each rounding once.
        assert abs(reduce_add - x.astype("f8").sum()) <= 16 * np.finfo(dtype).eps * np.abs(x).sum()
        assert reduce_max == max([*y, 0] if n < lanes(a) else y)


@jit
def copy_all(a, out):
    n = lanes(a)
    for i in range(0, a.size - n + 1, n):
        simd.store(out, i, simd.load(a, i))
    i = a.size // n * n
    simd.masked_store(out, i, simd.masked_load(a, i, a.size - i), a.size - i)


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_widened_and_rounded_as_arrays_are(dtype):
    """Every half, what lies between two of them, and what is just beside that."""
    every = np.arange(2**16, dtype="u2").view(HALVES[dtype])[:-1]
    wide = np.empty(every.size, "f4")
    copy_all(flat(every), wide)
    np.testing.assert_array_equal(wide, to_float32(every))

    finite = np.sort(wide[np.isfinite(wide)])
    ties = finite[1:] / 2 + finite[:-1] / 2
    x = np.concatenate([wide, ties, np.nextafter(ties, np.float32(np.inf)),
                        np.nextafter(ties, np.float32(-np.inf)),
                        np.float32([3.39e38, 3.4e38, -3.4e38, 65519, 65520, 1e-45, np.nan])])
    result = np.empty(x.size + 1, every.dtype)
    result[-1] = 7
    copy_all(x, flat(result)[:-1])
    expected, sure = to_half(x, dtype), ~np.isnan(x)
    np.testing.assert_array_equal(result[:-1][sure].view("u2"), expected[sure].view("u2"))
    assert np.isnan(result[:-1][~sure]).all() and result[-1] == 7


@jit
def pair_all(a, b, pairs, sums):
    n = 2 * lanes(a)
    for i in range(0, a.size, n):
        both = pair_up(simd.load_pair(a, i), simd.load_pair(b, i))
        simd.store(pairs, i, both)
        simd.store(sums, i, add_pairs(simd.load_pair(sums, i), both))


@pytest.mark.skipif(BFLOAT16 != "dot", reason="pairs are for the level dot")
def test_pairs_are_rounded_as_arrays_are_but_for_what_is_below_the_normal_numbers():
    every = to_float32(np.arange(2**16, dtype="u2").view(HALVES["bfloat16"]))
    finite = every[np.isfinite(every) & (abs(every) >= 2.0**-126)]
    low = np.concatenate([finite, finite * np.float32(1 + 2.0**-9), finite * np.float32(1.002)])
    low = np.resize(low[abs(low) < 2.0**100], 2**17)
    high = np.resize([1, -2.0**-140, 3 + 2.0**-8, 3 + 3 * 2.0**-7], low.size).astype("float32")
    pairs, sums = np.empty(low.size, "i4"), np.full(low.size, 7, "float32")
    pair_all(low, high, pairs, sums)

    rounded = to_half(np.stack([low, high], axis=-1), "bfloat16")
    rounded[1::4, 1] = -0.0  # a subnormal number
    np.testing.assert_array_equal(pairs.view("u2").reshape(-1, 2), rounded.view("u2"))
    first, second = np.float64(rounded).T
    two_roundings = 2 * 2.0**-24 * (7 + abs(first) + abs(second))
    assert (abs(sums - (7 + first + second)) <= two_roundings).all()


def dtype_of(value, like):
    return like.dtype.type(value)


def test_nan_and_infinity_survive_minimum_and_maximum():
    @jit
    def pair(a, b, out):
        simd.store(out, 0, simd.maximum(simd.load(a, 0), simd.load(b, 0)))

    a, b, out = np.zeros((3, 16), "f4")
    a[:4], b[:4] = [np.nan, 1, np.inf, -np.inf], [1, np.nan, 1, -1]
    pair(a, b, out)
    np.testing.assert_array_equal(out[:4], np.maximum(a, b)[:4])


@jit
def apply_exp(a, out):
    for i in range(0, a.size, lanes(a)):
        simd.store(out, i, vecmath.exp(simd.load(a, i)))


@jit
def apply_tanh(a, out):
    for i in range(0, a.size, lanes(a)):
        simd.store(out, i, vecmath.tanh(simd.load(a, i)))


@jit
def apply_erf(a, out):
    for i in range(0, a.size, lanes(a)):
        simd.store(out, i, vecmath.erf(simd.load(a, i)))


@jit
def apply_sigmoid(a, out):
    for i in range(0, a.size, lanes(a)):
        simd.store(out, i, vecmath.sigmoid(simd.load(a, i)))


# The measured worst cases over all 2^32 floats are in docs/kernels.md; these are the promises.
FUNCTIONS = {"exp": (apply_exp, np.exp, 2), "tanh": (apply_tanh, np.tanh, 4),
             "erf": (apply_erf, erf, 4), "sigmoid": (apply_sigmoid, expit, 4)}


def sample(step):
    """Every `step`-th of all float32 bit patterns: all exponents, both signs, NaNs, infinities."""
    bits = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32)
    return bits[:bits.size // 16 * 16].view("f4")


def worst_ulp(kernel, truth, a):
    """The largest error in units of the last place of the rounded truth; NaN and inf must match."""
    out = np.empty_like(a)
    kernel(a, out)
    with np.errstate(all="ignore"):
        wanted = truth(a.astype("f8"))
        rounded = wanted.astype("f4")
        np.testing.assert_array_equal(np.isnan(out), np.isnan(wanted))
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(out[np.isinf(rounded)], rounded[np.isinf(rounded)])
        error = np.abs(out - wanted) / np.spacing(np.abs(rounded))
    return error[finite].max()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mathematics_of_float32_vectors(name):
    kernel, truth, promised = FUNCTIONS[name]
    assert worst_ulp(kernel, truth, sample(4099)) <= promised


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mathematics_of_float64_vectors(name):
    kernel, truth, _ = FUNCTIONS[name]
    a = np.random.default_rng(0).normal(0, 5, 1600)
    out = np.empty_like(a)
    kernel(a, out)
    np.testing.assert_allclose(out, truth(a), rtol=4 * np.finfo("f8").eps)


@pytest.mark.parametrize("width", ["16", "32"])
def test_narrower_machines(width):
    """This file again, with vectors of another width."""
    if os.environ.get("REFSD_SIMD_BYTES"):
        return  # this is that other run
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"REFSD_SIMD_BYTES": width}, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout[-2000:]
