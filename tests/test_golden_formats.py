"""Rounding to number formats: cases by hand, and properties. Parity compares every bit."""

import math
from fractions import Fraction

import numpy as np
import pytest

from refsd.errors import UsageError
from refsd.golden.tolerances.formats import FORMATS, format_named, round_to, uncertainty

FLOATS = [name for name, f in FORMATS.items() if not f.block]
SMALL = [name for name in FLOATS if FORMATS[name].bits <= 11]
INF, NAN = math.inf, math.nan

# (format, number, its nearest), from the definitions: ties go to the even neighbour.
CASES = [
    ("float16", 1 + 2**-11, 1.0), ("float16", 1 + 3 * 2**-11, 1 + 2**-9),
    ("float16", 65504.0, 65504.0), ("float16", 65519.9, 65504.0), ("float16", 65520.0, INF),
    ("float16", 2.0**-24, 2.0**-24), ("float16", 2.0**-25, 0.0),
    ("float16", 3 * 2.0**-25, 2 * 2.0**-24), ("float16", -(2.0**-25), -0.0),
    ("bfloat16", 257.0, 256.0), ("bfloat16", 259.0, 260.0), ("bfloat16", 65520.0, 65536.0),
    ("bfloat16", 3.4e38, INF), ("bfloat16", 1e-40, 2.0**-133),
    ("tf32", 1 + 2**-11, 1.0), ("tf32", 1 + 2**-10, 1 + 2**-10),
    ("float32", 1 + 2**-24, 1.0), ("float32", 1e39, INF), ("float32", 2.0**-150, 0.0),
    ("fp8_e4m3", 448.0, 448.0), ("fp8_e4m3", 464.0, 448.0), ("fp8_e4m3", 464.1, NAN),
    ("fp8_e4m3", 17.0, 16.0), ("fp8_e4m3", 19.0, 20.0), ("fp8_e4m3", 2.0**-9, 2.0**-9),
    ("fp8_e4m3", 2.0**-10, 0.0), ("fp8_e4m3", INF, NAN),
    ("fp8_e5m2", 57344.0, 57344.0), ("fp8_e5m2", 61439.0, 57344.0), ("fp8_e5m2", 61440.0, INF),
    ("fp8_e5m2", 9.0, 8.0), ("fp8_e5m2", 11.0, 12.0), ("fp8_e5m2", 2.0**-16, 2.0**-16),
]


@pytest.mark.parametrize("name, x, wanted", CASES)
def test_by_hand(name, x, wanted):
    for sign in (1, -1):
        got = round_to(np.array([sign * x]), name)[0]
        assert np.array_equal(got, sign * wanted, equal_nan=True)
        assert math.isnan(wanted) or math.copysign(1, got) == math.copysign(1, sign * wanted)


def neighbours(x, f):
    """The two numbers of a format around x > 0, by exact arithmetic."""
    x = Fraction(x)
    e = math.floor(math.log2(x))
    e += (Fraction(2) ** (e + 1) <= x) - (Fraction(2) ** e > x)
    step = Fraction(2) ** (max(e, f.least) - f.bits + 1)
    return x // step * step, x // step * step + step


@pytest.mark.parametrize("name", SMALL)
def test_nearest_of_exact_neighbours(name):
    f = FORMATS[name]
    generator = np.random.default_rng(3)
    x = 2.0 ** generator.uniform(math.log2(f.tiny), math.log2(min(f.largest, 1e30)), 400)
    for number, got in zip(x, round_to(x, name)):
        low, high = neighbours(number, f)
        wanted = min((low, high), key=lambda n: (abs(n - Fraction(number)), n / (high - low) % 2))
        assert got == float(wanted)
        assert abs(got - number) <= uncertainty(np.array([number]), name)[0]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_rounded_stays(name, dtype):
    x = np.asarray(np.random.default_rng(5).standard_normal((16, 32)) * 9, dtype)
    once = round_to(x, name)
    assert once.dtype == x.dtype and once.shape == x.shape
    # A scale that was computed, as int8's is, is rounded itself: to one unit of the dtype.
    np.testing.assert_allclose(round_to(once, name), once, atol=0,
                               rtol=4 * np.finfo(dtype).eps if name == "int8" else 0)
    assert (uncertainty(once, name) == 0).all() or name == "int8"


@pytest.mark.parametrize("name", FORMATS)
def test_specials_and_empty_arrays(name):
    x = np.array([NAN, 0.0, -0.0, 1.0])
    got = round_to(x, name)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
    assert math.copysign(1, got[2]) == -1 and got[1] == 0
    assert round_to(np.zeros((0, 3)), name).shape == (0, 3)
    assert round_to(np.float64(1.0), name) == 1.0
    infinite = round_to(np.array([[INF, -INF, 1.0]]), name)
    if FORMATS[name].overflow == "nan":
        assert np.isnan(infinite[0, :2]).all()
    else:
        assert infinite.tolist() == [[INF, -INF, 1.0]]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "fp8_e4m3", "bfloat8_b"])
def test_stochastic_rounding_has_the_number_as_its_mean(name):
    """Of n draws between neighbours d apart the mean is off by d / 2 / sqrt(n) x 5 at most:

    one in a million fair draws is further off.
    """
    n = 20000
    x = np.full((n, 16), 1.0)
    x[:, 1:] = np.random.default_rng(1).uniform(0.5, 1, 15)
    got = round_to(x, name, generator=np.random.default_rng(2))
    nearest = uncertainty(x[0], name)
    assert (abs(got.mean(axis=0) - x[0]) <= 5 * nearest / math.sqrt(n)).all()
    assert (abs(got - x) <= 2 * nearest).all()
    assert (got[:, 0] == 1).all(), "a number of the format is not moved"
    assert all(len(set(column)) == 2 for column in got[:, 1:].T)


def test_blocks_share_the_exponent_of_their_largest():
    x = np.zeros((1, 33))
    x[0, :4] = 1.5, 1 / 64, 1 / 128, 3 / 128  # steps of 1 / 64
    x[0, 16:18] = 1 / 64, 5.25 / 64 / 64  # another block: steps of 2^-12
    x[0, 32] = -1000.3  # the rest of the row, a block of its own
    got = round_to(x, "bfloat8_b")
    assert got[0, :4].tolist() == [1.5, 1 / 64, 0.0, 2 / 64]  # ties to even
    assert got[0, 16:18].tolist() == [1 / 64, 5 / 64 / 64]
    assert got[0, 32] == -1000.0
    moved = round_to(np.moveaxis(x, 1, 0), "bfloat8_b", axis=0)
    np.testing.assert_array_equal(np.moveaxis(moved, 0, 1), got)
    channels = round_to(np.moveaxis(x.reshape(1, 1, 1, 33), 3, 1), "bfloat8_b")
    np.testing.assert_array_equal(channels.ravel(), got.ravel())


def test_a_block_is_cut_off_at_127_steps():
    x = np.array([127.9, 1.0] + [0.0] * 14)  # steps of 1, as 127.9 < 128
    assert round_to(x, "bfloat8_b")[0] == 127.0
    assert uncertainty(x, "bfloat8_b")[0] == 1.0
    assert uncertainty(x, "bfloat8_b")[1] == 0.0


def test_int8_has_a_scale_an_output_channel():
    w = np.array([[127.0, -63.5, 0.51, 0.5], [254.0, 0.0, 99.1, -254.0]])
    assert round_to(w, "int8").tolist() == [[127, -64, 1, 0], [254, 0, 100, -254]]
    assert uncertainty(w, "int8").tolist() == [[0, 0.5, 0.5, 0.5], [0, 0, 1, 0]]
    assert not round_to(np.zeros((2, 3)), "int8").any()


def test_names():
    assert format_named("bf16") is FORMATS["bfloat16"] and format_named("fp16").bits == 11
    with pytest.raises(UsageError, match="format is 'bf15'; give one of float64, float32"):
        round_to(np.zeros(1), "bf15")
