"""Arithmetic: correctly rounded, so it is compared with exact fractions without any tolerance."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within
from op_table import normal

from refsd import functional as F

DTYPES = ("float32", "float64")
EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def rounded(fraction, dtype):
    """The nearest number of the dtype, ties to even, from 80 more binary digits than it holds."""
    digits = 24 if dtype == "float32" else 53
    if fraction == 0:
        return 0.0
    exponent = digits - 1 - _exponent(abs(fraction))
    return float(round(fraction * Fraction(2) ** exponent) / Fraction(2) ** exponent)


def _exponent(fraction):
    """The e with 2^e <= fraction < 2^(e + 1)."""
    e = fraction.numerator.bit_length() - fraction.denominator.bit_length()
    return e if Fraction(2) ** e <= fraction else e - 1


def test_rounding_helper():
    third, tie = Fraction(1, 3), 1 + Fraction(1, 2**24)
    assert rounded(third, "float64") == 1 / 3
    assert rounded(third, "float32") == float(np.float32(1 / 3))
    assert rounded(tie, "float32") == 1 and rounded(-3 * tie / 3, "float32") == -1
    assert rounded(1 + 3 * Fraction(1, 2**24), "float32") == 1 + 2.0**-22


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(EXACT))
def test_correctly_rounded(name, dtype):
    a, b = normal((300,), 1, 3).astype(dtype), normal((300,), 2, 1e-2).astype(dtype)
    expected = [rounded(EXACT[name](Fraction(float(p)), Fraction(float(q))), dtype)
              for p, q in zip(a, b)]
    assert getattr(F, name)(a, b).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_sqrt_is_correctly_rounded(dtype):
    x = abs(normal((300,), 1, 3)).astype(dtype)
    roots = [Fraction(math.isqrt(int(Fraction(float(v)) * 2**240)), 2**120) for v in x]
    assert F.sqrt(x).tolist() == [rounded(r, dtype) for r in roots]
    with np.errstate(invalid="ignore"):
        assert np.isnan(F.sqrt(np.array([-1], dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_against_50_digits(dtype):
    x = np.concatenate([np.linspace(-86, 88, 301), [0, -0.0, -1e3, -1e4]]).astype(dtype)
    with mpmath.workdps(50):
        truth = np.array([float(mpmath.exp(float(v))) for v in x])
    bound = BOUNDS["exp"]((x,), {}, truth, PRECISIONS[dtype]) + 2.0**-53 * truth
    assert_within(F.exp(x), truth, bound)
    assert F.exp(np.array([0, -math.inf, math.inf], dtype)).tolist() == [1, 0, math.inf]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_against_50_digits(dtype):
    x = np.concatenate([np.linspace(-20, 20, 301), [1e-30, -1e-5, 0.6, 1e4, 0, -0.0]]).astype(dtype)
    with mpmath.workdps(50):
        truth = np.array([float(mpmath.tanh(float(v))) for v in x])
    bound = BOUNDS["tanh"]((x,), {}, truth, PRECISIONS[dtype]) + 2.0**-53 * abs(truth)
    assert_within(F.tanh(x), truth, bound)
    assert F.tanh(np.array([0, -math.inf, math.inf], dtype)).tolist() == [0, -1, 1]


@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("number", [2, -3, 0.5, 0.1])
def test_a_python_number_takes_the_dtype_of_the_array(name, number):
    x = normal((5,), 1)
    alike = np.full(5, number, "float32")
    assert np.array_equal(getattr(F, name)(x, number), getattr(F, name)(x, alike))


@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((2, 3), (2, 1)), ((1, 3), (2, 1)), ((), (4,)),
                                    ((2, 1, 3), (5, 1)), ((0, 3), (1, 3))])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_shapes_broadcast(name, shapes):
    a, b = (np.asarray(normal(s, i) + 5, "float64") for i, s in enumerate(shapes))
    y = getattr(F, name)(a, b)
    shape = np.broadcast_shapes(*shapes)
    assert y.shape == shape
    for i in np.ndindex(shape):
        p, q = (float(t[tuple(k if n > 1 else 0 for k, n in zip(i[len(shape) - t.ndim:], t.shape))])
                for t in (a, b))
        assert y[i] == EXACT[name](p, q)


def test_division_by_zero_is_ieee():
    with np.errstate(divide="ignore", invalid="ignore"):
        y = F.div(np.array([1.0, -1.0, 0.0]), 0)
    assert y[:2].tolist() == [math.inf, -math.inf] and np.isnan(y[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamp(dtype):
    x = np.array([-math.inf, -31, -30, -0.5, 0, 19, 20, 20.5, math.inf], dtype)
    assert F.clamp(x, low=-30, high=20).tolist() == [-30, -30, -30, -0.5, 0, 19, 20, 20, 20]
    assert F.clamp(x, low=1, high=1).tolist() == [1] * 9
    assert np.isnan(F.clamp(np.array([math.nan], dtype), low=0, high=1))
