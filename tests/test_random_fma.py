"""The float32 fused multiply-add, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refsd.random.fma import fma

LARGEST = Fraction(2) ** 128 - Fraction(2) ** 104
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded_once(exact):
    """The float32 nearest to a fraction, ties to even, by comparing distances."""
    if abs(exact) >= LARGEST + Fraction(2) ** 103:
        return np.float32(math.copysign(math.inf, exact))
    size = abs(exact)
    exponent = -149
    while size >= Fraction(2) ** (exponent + 24):
        exponent += 1
    unit = Fraction(2) ** exponent
    steps, rest = divmod(size, unit)
    steps += rest * 2 > unit or (rest * 2 == unit and steps % 2)
    return np.float32(math.copysign(1, exact) * float(steps * unit))


def check_fma(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    actual = fma(a, b, c)
    assert actual.dtype == np.float32
    assert actual == rounded_once(exact), (a, b, c)


@settings(deadline=None)
@given(floats, floats, floats)
def test_fma_of_any_floats(a, b, c):
    check_fma(a, b, c)


@settings(deadline=None)
@given(
    step=st.integers(0, 2**10),
    last=st.integers(0, 2**23 - 1),
    exponent=st.integers(-50, 50),
    signs=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])),
)
def test_fma_next_to_half_way(step, last, exponent, signs):
    # c has 24 bits and |a * b| is half of its last one, less a hair: (1 + s)(1 - s) = 1 - s^2. So
    # the sum is a hair from the point half-way between two float32, on either side, or on it.
    s = step * 2.0**-23
    a, b, c = signs[0] * (1 + s), (1 - s) * 2.0**-24, signs[1] * (1 + last * 2.0**-23)
    scale = 2.0**exponent
    check_fma(a * scale, b * scale, c * scale**2)


def test_fma_where_rounding_twice_is_wrong():
    a, b, c = 1 + 2.0**-23, (1 - 2.0**-23) * 2.0**-24, 1 + 2.0**-23
    assert np.float32(a * b + c) == np.float32(1 + 2.0**-22)  # what two roundings give
    assert fma(a, b, c) == np.float32(1 + 2.0**-23)
    # Half-way between two subnormals, and a hair above.
    assert fma(2.0**-75, 2.0**-75, 2.0**-149) == np.float32(2.0**-148)
    assert fma(2.0**-75, -(2.0**-75), 2.0**-148) == np.float32(2.0**-148)
    assert fma(2.0**-75, 2.0**-75, 2.0**-148) == np.float32(2.0**-148)
    assert fma(2.0**-75, 2.0**-75 * (1 + 2.0**-23), 2.0**-148) == np.float32(3 * 2.0**-149)


def test_fma_of_infinities_and_zeros():
    assert fma(math.inf, 1, 1) == math.inf and fma(-math.inf, 1, 1) == -math.inf
    assert fma(2.0**100, 2.0**100, 0) == math.inf and fma(1, 1, -math.inf) == -math.inf
    assert np.isnan(fma(math.inf, 0, 1)) and np.isnan(fma(math.inf, 1, -math.inf))
    assert not np.signbit(fma(-0.0, 1, 0.0)) and np.signbit(fma(-0.0, 1, -0.0))
    assert fma(np.ones((3, 1)), np.ones(2), 1).shape == (3, 2)
