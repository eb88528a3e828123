"""The CPU kernels of element-wise ops, norms, softmax and embeddings against the reference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba_agreement import (
    DTYPES,
    KERNELS,
    NARROW,
    OPS,
    agree,
    agree_on,
    run_again_with,
    same_for_all_threads,
)
from op_table import OPS as CALLS
from op_table import lay_out, normal
from scipy.special import erf

from refsd.numba_ops import vecmath
from refsd.numba_ops.jit import jit
from refsd.numba_ops.pointwise import BLOCK
from refsd.numba_ops.simd import lanes, load, store

ELEMENTWISE = ("silu", "quick_gelu", "gelu", "gelu_tanh", "exp", "sqrt")
BINARY = ("add", "sub", "mul", "div")
ROWS = ("geglu", "softmax", "layer_norm", "rms_norm", "group_norm")
OTHERS = ("clamp", "embedding", "gather", "timestep_embedding", "rope")


@pytest.mark.parametrize("name", [*ELEMENTWISE, *BINARY, *ROWS, *OTHERS])
@given(data=st.data())
@settings(max_examples=25)
def test_any_call(name, data):
    agree_on(name, data.draw(CALLS[name]))


LENGTHS = [*range(0, 37), 63, 64, 65, 127, 131, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 19]


@pytest.mark.parametrize("name", ["silu", "sqrt"])
def test_every_length(name):
    for length in LENGTHS:
        agree(name, (abs(normal((length,), length)),), {})


def test_every_length_of_two():
    for length in LENGTHS:
        a, b = normal((2, length), length)
        agree("sub", (a, b), {})
        agree("sub", (a, 0.1), {})


@pytest.mark.parametrize("layout", ["C", "channels_last", "fortran", "reversed", "window"])
@pytest.mark.parametrize("other", [
    (2, 5, 1, 1), (5, 1, 1), (1, 5, 1, 1), (1, 5, 4, 3), (3,), (2, 1, 1, 1), (1, 1, 4, 1),
    (2, 5, 4, 3), (1,), ()])
def test_broadcasting(layout, other):
    a = lay_out(normal((2, 5, 4, 3), 1), layout)
    b = normal(other, 2)
    y = agree("sub", (a, b), {})
    agree("sub", (b, a), {})
    # Wherever a's axes lie in memory, y's lie in the same order.
    assert np.argsort(np.abs(y.strides)).tolist() == np.argsort(np.abs(a.strides)).tolist()


def test_a_bias_for_each_channel_of_many_rows():
    a = np.moveaxis(normal((2, 70, 41, 20), 1), -1, 1)
    agree("add", (a, normal((2, 20, 1, 1), 2)), {})
    agree("mul", (np.moveaxis(a, 1, -1), normal((20,), 2)), {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", [
    ((2, 320, 8, 16), 32), ((1, 40, 30, 29), 4), ((1, 128, 20, 20), 32), ((3, 6, 1, 1), 3),
    ((1, 1280, 3, 3), 32), ((2, 36, 5, 7), 2), ((1, 17, 50, 41), 1), ((2, 5, 3), 5)])
def test_group_norm(shape, groups, dtype):
    x = np.moveaxis(normal((shape[0], *shape[2:], shape[1]), 1, mean=3.0), -1, 1)
    weight, bias = normal((2, shape[1]), 2)
    y = agree("group_norm", (x, weight, bias), {"groups": groups, "eps": 1e-6}, dtype)
    assert np.moveaxis(y, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("name", ["group_norm", "layer_norm"])
@pytest.mark.parametrize("value", [0.0, 1.0, 3333.3, -1e6])
def test_norms_of_what_is_constant(name, value):
    """Nothing but the bias is left, however large the value is."""
    shape, options = ((2, 32, 64, 33), {"groups": 4}) if name == "group_norm" else ((9, 320), {})
    K = 32 if name == "group_norm" else 320
    x = np.full(shape, value, "float32")
    agree(name, (x, normal((K,), 1), normal((K,), 2)), options | {"eps": 1e-6})


def test_group_norm_of_blocks_that_differ():
    """One half of the picture lies far from the other: the variance is between the blocks."""
    x = normal((1, 64, 64, 64), 1, 1e-3)
    x[:, :, 32:] += 100
    x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    agree("group_norm", (x, *normal((2, 64), 2)), {"groups": 32, "eps": 1e-6})


@pytest.mark.parametrize("K", [1, 15, 16, 17, 320, 1283])
def test_rows(K):
    x = normal((11, K), K, mean=2.0)
    agree("layer_norm", (x, *normal((2, K), 1)), {"eps": 1e-5})
    agree("rms_norm", (x, normal((K,), 1)), {"eps": 1e-5})
    agree("softmax", (4 * x,), {"axis": -1})
    agree("geglu", (normal((11, 2 * K), K),), {})


def test_rows_with_gaps():
    x = normal((5, 7, 64), 1)[:, :, 3:43]
    agree("layer_norm", (x, *normal((2, 40), 1)), {"eps": 1e-5})
    agree("geglu", (x,), {})
    agree("softmax", (x,), {"axis": 1})


SPECIALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 88.8,
                     -103.9, -87.5, 1e4, -1e4, 0.5, 5.6, -5.7], "float32")


@pytest.mark.parametrize("name", [*ELEMENTWISE, *BINARY, "clamp"])
def test_what_is_not_a_number_stays_so(name):
    args = (SPECIALS,) if name in (*ELEMENTWISE, "clamp") else (SPECIALS, SPECIALS[::-1].copy())
    options = {"low": -1, "high": 2} if name == "clamp" else {}
    with np.errstate(all="ignore"):
        wanted = OPS[name].definition(*args, **options)
    got = KERNELS[name](*args, **options)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))
    np.testing.assert_array_equal(got[np.isinf(got)], wanted[np.isinf(got)])


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


@pytest.mark.parametrize("name, ids", [("embedding", [0, 3, -1]), ("embedding", [4]),
                                       ("gather", [0, 5]), ("gather", [-1, 0])])
def test_rows_that_do_not_exist(name, ids):
    ids, table = np.array(ids), normal((4, 3), 1)
    args = (ids, table) if name == "embedding" else (normal((2, 5, 3), 1), ids)
    with pytest.raises(IndexError) as of_reference:
        OPS[name].definition(*args)
    with pytest.raises(IndexError) as of_kernel:
        KERNELS[name](*args)
    assert str(of_kernel.value) == str(of_reference.value)


def pictures(seed):
    return np.moveaxis(normal((3, 65, 31, 48), seed), -1, 1)


CASES = {
    "silu": lambda: ((pictures(1),), {}),
    "add": lambda: ((pictures(1), pictures(2)), {}),
    "group_norm": lambda: ((pictures(1), *normal((2, 48), 2)), {"groups": 4, "eps": 1e-5}),
    "layer_norm": lambda: ((normal((3, 1000, 40), 1), *normal((2, 40), 2)), {"eps": 1e-5}),
    "rms_norm": lambda: ((normal((3, 1000, 40), 1), normal((40,), 2)), {"eps": 1e-5}),
    "geglu": lambda: ((normal((3, 1000, 80), 1),), {}),
    "softmax": lambda: ((normal((3, 1000, 40), 1),), {"axis": -1}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_for_any_threads_and_any_place_in_the_batch(name):
    args, options = CASES[name]()
    batch = same_for_all_threads(name, *args, **options)
    for n in range(3):
        alone = KERNELS[name](*(a[n:n + 1] if len(a) == 3 else a for a in args), **options)
        np.testing.assert_array_equal(alone[0].view("i4"), batch[n].view("i4"))


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


@pytest.mark.parametrize("width, tests", [("16", "test_rows or phi"),
                                          ("32", "test_group_norm or of_two")])
def test_narrower_machines(width, tests):
    if not NARROW:  # else this is that other run
        run_again_with(width, __file__, tests)
