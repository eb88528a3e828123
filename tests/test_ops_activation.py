"""Activations and softmax against mpmath with 50 digits, special values and identities."""

import math

import mpmath
import numpy as np
import pytest
from bounds import BOUNDS, EXP, OTHERS, PRECISIONS, assert_within, rms
from hypothesis import given
from hypothesis import strategies as st
from op_table import normal
from scipy.special import erf

from refsd import functional as F

DTYPES = ("float32", "float64")
mpmath.mp.dps = 50

EXACT = {
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "quick_gelu": lambda x: x / (1 + mpmath.exp(-mpmath.mpf("1.702") * x)),
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + mpmath.tanh(
        mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))),
}
POINTS = [sign * x for sign in (1, -1) for x in
          (1e-45, 1e-38, 1e-20, 1e-7, 1e-3, 0.1, 0.5, 1, 1.5, 2, math.pi, 5, 8, 10, 17.3, 50, 86,
           88, 90, 104, 1e3, 1e4)]


def exact(function, x):
    """function of every number of x, rounded to float64 once."""
    flat = [float(function(mpmath.mpf(float(v)))) for v in x.ravel()]
    return np.array(flat, "float64").reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(EXACT))
def test_activation_is_its_formula(name, dtype):
    x = np.concatenate([np.array(POINTS, "float32"), normal((300,), 1, 1), normal((100,), 2, 10)])
    x = x.astype(dtype)
    truth = exact(EXACT[name], x)
    wide = (x.astype("float64"),)
    bound = BOUNDS[name](wide, {}, truth, PRECISIONS[dtype]) + 2.0**-53 * abs(truth)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        assert_within(getattr(F, name)(x), truth, bound, name)


# x Phi(x), Phi(1) = 0.841344746068543 in every table of the normal distribution; e / (1 + e);
# e^1.702 / (1 + e^1.702); and gelu's approximation, which differs from it in the fourth digit.
@pytest.mark.parametrize("name, at_one", [
    ("gelu", 0.8413447460685429), ("silu", 0.7310585786300049),
    ("quick_gelu", 0.8457957659328212), ("gelu_tanh", 0.8411919906082768)])
def test_the_four_differ_at_one(name, at_one):
    assert abs(float(getattr(F, name)(np.array([1.0]))[0]) - at_one) < 1e-15


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(EXACT))
def test_special_values(name, dtype):
    op = getattr(F, name)
    with np.errstate(invalid="ignore"):
        y = op(np.array([0.0, -0.0, math.inf, math.nan, -math.inf, 1e4, -1e4], dtype))
    assert y[0] == 0 and not np.signbit(y[0])
    assert y[1] == 0 and np.signbit(y[1])
    assert y[2] == math.inf
    assert np.isnan(y[3])
    # -inf times 0: what torch gives, too. An infinity is an error upstream, not to be hidden.
    assert np.isnan(y[4])
    assert y[5] == 1e4
    assert y[6] == 0


@pytest.mark.parametrize("name", sorted(EXACT))
@given(seed=st.integers(0, 2**32 - 1))
def test_the_two_sides_differ_by_x(name, seed):
    """f(x) - f(-x) = x for x sigmoid(c x) and x Phi(x), for each of the four."""
    x = abs(normal((64,), seed, 3)).astype("float64")
    op, p = getattr(F, name), PRECISIONS["float64"]
    right, left = op(x), op(-x)
    bound = sum(BOUNDS[name]((v,), {}, y, p) for v, y in ((x, right), (-x, left)))
    assert_within(right - left, x, bound + p.u * (abs(right) + abs(left)))


@pytest.mark.parametrize("name", sorted(EXACT))
def test_tails_are_flat_and_the_right_side_rises(name):
    op = getattr(F, name)
    x = np.linspace(0, 50, 10001, dtype="float64")
    assert np.all(np.diff(op(x)) > 0)
    assert np.all(np.diff(op(-x[4000:])) >= 0)  # beyond -20 they climb back to 0
    with np.errstate(over="ignore"):  # x^3 and 1.702 x overflow on the way, the result does not
        assert np.all(op(np.float32([-200, -1e10, -3e38])) == 0)
        assert op(np.float32([3e38])) == np.float32(3e38)


# The library functions that the bounds take on trust (bounds.EXP, bounds.OTHERS).
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function, truth, allowed, low, high", [
    pytest.param(np.exp, mpmath.exp, EXP, -87, 88, id="exp"),
    pytest.param(np.tanh, mpmath.tanh, OTHERS, -10, 10, id="tanh"),
    pytest.param(erf, mpmath.erf, OTHERS, -6, 6, id="erf"),
    pytest.param(np.sin, mpmath.sin, OTHERS, -1000, 1000, id="sin"),
    pytest.param(np.cos, mpmath.cos, OTHERS, -1000, 1000, id="cos"),
])
def test_library_functions_keep_what_the_bounds_trust(function, truth, allowed, low, high, dtype):
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(low, high, 1500), random.uniform(-1, 1, 500) * 2.0
                        ** random.integers(-20, 0, 500)]).astype(dtype)
    expected = exact(truth, x)
    assert_within(function(x), expected, (allowed * PRECISIONS[dtype].u + 2.0**-53) * abs(expected))


@pytest.mark.parametrize("name", ["exp", "tanh", "sin", "cos"])
def test_float32_functions_over_many_numbers(name):
    """Against NumPy's own float64, over 2^20 float32 numbers."""
    limit = {"exp": 87, "tanh": 12}.get(name, 1000)
    x = np.random.default_rng(1).uniform(-limit, limit, 2**20).astype("float32")
    function, allowed = getattr(np, name), EXP if name == "exp" else OTHERS
    expected = function(x.astype("float64"))
    assert_within(function(x), expected, allowed * 2.0**-24 * abs(expected))


@pytest.mark.parametrize("name, roundings", [("silu", EXP + 5), ("quick_gelu", EXP + 7),
                                             ("gelu", OTHERS + 5), ("gelu_tanh", OTHERS + 10)])
def test_roundings_add_up_like_random_ones(name, roundings):
    """n roundings of random sign, each with a variance of at most u^2 / 3, have the root mean
    square sqrt(n / 3) u, not n u. (Right of 0: on the left the sum 1 + erf cancels.)"""
    x = abs(normal((2**18,), 1, 3))
    truth = getattr(F, name)(x.astype("float64"))
    error = (getattr(F, name)(x) - truth) / truth
    assert rms(error) <= math.sqrt(roundings / 3) * 2.0**-24


def test_geglu_gates_the_first_half_by_the_second():
    x = np.array([[2.0, 3.0, 1.0, -1.0]])
    phi = 0.8413447460685429
    assert_within(F.geglu(x), np.array([[2 * phi, 3 * -(1 - phi)]]), 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (3, 10), (2, 3, 4, 6), (0, 4), (3, 0)])
def test_geglu_is_h_times_gelu_g(shape, dtype):
    x = normal(shape, 1, 2).astype(dtype)
    half = shape[-1] // 2
    gate = exact(EXACT["gelu"], x[..., half:])
    truth = x[..., :half].astype("float64") * gate
    bound = BOUNDS["geglu"]((x.astype("float64"),), {}, truth, PRECISIONS[dtype])
    assert_within(F.geglu(x), truth, bound + 2.0**-52 * abs(truth))


def softmax(row):
    """The formula with exactly rounded sums."""
    largest = max(row)
    if largest == -math.inf:
        return [0.0] * len(row)
    e = [math.exp(v - largest) for v in row]
    total = math.fsum(e)
    return [v / total for v in e]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("scale", [1e-3, 1, 50])
def test_softmax_is_the_formula_along_its_axis(axis, scale, dtype):
    x = normal((3, 4, 17), 1, scale).astype(dtype)
    truth = np.apply_along_axis(softmax, axis, x.astype("float64"))
    p = PRECISIONS[dtype]
    bound = BOUNDS["softmax"]((x.astype("float64"),), {"axis": axis}, truth, p)
    assert_within(F.softmax(x, axis=axis), truth, bound + 4 * 2.0**-53 * truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_with_infinities_and_large_numbers(dtype):
    big, inf = 3e38, math.inf
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y = F.softmax(np.array([[0, 0, -inf], [-inf, -inf, -inf], [-inf, 5, -inf],
                                [1000, 0, 1000], [big, big, 0]], dtype), axis=-1)
    assert y.tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 1, 0], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert np.isnan(F.softmax(np.array([1, np.nan], dtype), axis=0)).all()


@given(seed=st.integers(0, 2**32 - 1), K=st.integers(1, 300))
def test_softmax_rows_sum_to_one_and_ignore_a_shift(seed, K):
    x = np.round(normal((4, K), seed, 5) * 64) / 64
    y = F.softmax(x, axis=-1)
    # K terms, each within its own rounding, summed here without error
    sums = np.array([math.fsum(row) for row in y.tolist()])
    assert_within(sums, np.ones(4), (K + 40) * 2.0**-24)
    # whole numbers are added to 64ths without rounding
    assert np.array_equal(F.softmax(x + np.float32(32), axis=-1), y)
    order = np.random.default_rng(seed).permutation(K)
    bound = 2 * BOUNDS["softmax"]((x.astype("float64"),), {"axis": -1}, y.astype("float64"),
                                  PRECISIONS["float32"])
    assert_within(F.softmax(x[:, order], axis=-1), y[:, order].astype("float64"), bound[:, order])
