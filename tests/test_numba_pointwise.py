"""Element-wise ops, norms and softmax on the CPU: where results lie, and the functions inside."""

import math

import numpy as np
import pytest
from numba_agreement import KERNELS, agree
from op_table import normal, with_layout
from scipy.special import erf

from refsd.numba_ops import vecmath
from refsd.numba_ops.jit import jit
from refsd.numba_ops.simd import lanes, load, store


@pytest.mark.parametrize("layout", ["C", "channels_last", "fortran", "reversed", "window"])
@pytest.mark.parametrize("other", [
    (2, 5, 1, 1), (5, 1, 1), (1, 5, 1, 1), (1, 5, 4, 3), (3,), (2, 1, 1, 1), (1, 1, 4, 1),
    (2, 5, 4, 3), (1,), ()])
def test_broadcasting(layout, other):
    a = with_layout(normal((2, 5, 4, 3), 1), layout)
    b = normal(other, 2)
    y = agree("sub", (a, b), {})
    agree("sub", (b, a), {})
    # Wherever a's axes lie in memory, y's lie in the same order.
    assert np.argsort(np.abs(y.strides)).tolist() == np.argsort(np.abs(a.strides)).tolist()


def test_rows_with_gaps():
    x = normal((5, 7, 64), 1)[:, :, 3:43]
    agree("layer_norm", (x, *normal((2, 40), 1)), {"eps": 1e-5})
    agree("geglu", (x,), {})
    agree("softmax", (x,), {"axis": 1})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_spoils_its_row_and_no_other(bad):
    x = normal((1, 8, 4, 5), 1)
    x[0, 2, 1, 1] = bad
    y = KERNELS["group_norm"](x, *normal((2, 8), 2), groups=4, eps=1e-5)
    assert np.isnan(y[:, 2:4]).all() and np.isfinite(np.delete(y, [2, 3], axis=1)).all()

    x = normal((6, 40), 1)
    x[3, 17] = bad
    y = KERNELS["layer_norm"](x, *normal((2, 40), 2), eps=1e-5)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, axis=0)).all()
    y = KERNELS["softmax"](x, axis=-1)
    assert np.isfinite(np.delete(y, 3, axis=0)).all()
    assert (y[3, 17] == 0 if bad == -np.inf else np.isnan(y[3]).all())


def test_softmax_of_a_hidden_row_is_zero():
    x = normal((3, 20), 1)
    x[1] = -np.inf
    y = agree("softmax", (x,), {"axis": -1})
    assert not y[1].any() and (y[[0, 2]].sum(axis=-1) > 0.99).all()


@jit
def apply_phi(a, out):
    for i in range(0, a.size, lanes(a)):
        store(out, i, vecmath.phi(load(a, i)))


@jit
def apply_exp2(a, out):
    for i in range(0, a.size, lanes(a)):
        store(out, i, vecmath.exp2_below(load(a, i)))


def test_phi():
    """Its distance from 1/2 has a relative error below 6 u; 1/2 + it is rounded once more."""
    x = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    x = x[:x.size // 16 * 16].view("float32")
    out = np.empty_like(x)
    apply_phi(x, out)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among all bit patterns
        rest = erf(x.astype("float64") * math.sqrt(0.5)) / 2
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
    error = abs(out - (0.5 + rest))[~np.isnan(x)]
    assert (error <= 2.0**-24 * (6 * abs(rest) + 1)[~np.isnan(x)]).all()
    assert (out[x < -5.6] == 0).all() and (out[x > 5.6] == 1).all()


def test_exp2_below():
    """At most 2 ulp down to 2^-126, and 0 from there on."""
    x = -np.arange(0, 2**31, 2053, dtype=np.uint32).view("float32")
    x = x[:x.size // 16 * 16]
    out = np.empty_like(x)
    apply_exp2(x, out)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
    with np.errstate(invalid="ignore"):
        wanted, normal = np.exp2(x.astype("float64")), x >= -126
    ulp = np.spacing(wanted[normal].astype("float32"))
    assert (abs(out[normal] - wanted[normal]) <= 2 * ulp).all()
    assert not out[x < -126].any()
