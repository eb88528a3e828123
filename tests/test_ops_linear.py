"""linear and matmul against exact rational arithmetic, identities, and the statistics of rounding.

Integers up to 2^24 are exact in float32, and so is every sum of their products below 2^24:
with small integers the tolerance is 0.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within, rms
from hypothesis import given
from hypothesis import strategies as st
from op_table import normal

from refsd import functional as F

DTYPES = ("float32", "float64")


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-9, 10, shape)


def product(a, b):
    """Two nested lists as matrices, by the definition."""
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M, K, N", [(1, 1, 1), (2, 3, 4), (7, 16, 5), (1, 33, 2), (17, 1, 3)])
def test_matmul_is_the_sum_of_products(M, K, N, dtype):
    a, b = integers(0, M, K), integers(1, K, N)
    y = F.matmul(a.astype(dtype), b.astype(dtype))
    assert y.tolist() == product(a.tolist(), b.tolist())


def test_matmul_stacks_and_broadcasts():
    a, b = integers(0, 3, 1, 2, 4), integers(1, 5, 4, 3)
    y = F.matmul(a.astype("float64"), b.astype("float64"))
    assert y.shape == (3, 5, 2, 3)
    for i in range(3):
        for j in range(5):
            assert y[i, j].tolist() == product(a[i, 0].tolist(), b[j].tolist())


def test_matmul_of_nothing_is_zero():
    y = F.matmul(np.ones((2, 0), "float32"), np.ones((0, 3), "float32"))
    assert y.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_x_times_the_transposed_weight(lead, bias, dtype):
    x, weight, b = integers(0, *lead, 5), integers(1, 3, 5), integers(2, 3)
    args = [a.astype(dtype) for a in ((x, weight, b) if bias else (x, weight))]
    y = F.linear(*args)
    for row in np.ndindex(lead):
        expected = [sum(map(math.prod, zip(x[row].tolist(), w.tolist()))) + bias * int(b[o])
                  for o, w in enumerate(weight)]
        assert y[row].tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_products_lie_within_the_bound_of_the_exact_rational_value(dtype):
    x, weight = normal((4, 63), 1).astype(dtype), normal((5, 63), 2).astype(dtype)
    exact = [[sum(Fraction(float(p)) * Fraction(float(q)) for p, q in zip(row, w))
              for w in weight] for row in x]
    truth = np.array([[float(f) for f in row] for row in exact])
    p = PRECISIONS[dtype]
    # rounding the exact value to float64 for the comparison costs one more u
    bound = BOUNDS["linear"]((x.astype("float64"), weight.astype("float64")), {}, truth, p)
    assert_within(F.linear(x, weight), truth, bound + 2.0**-53 * abs(truth))
    bound = BOUNDS["matmul"]((x.astype("float64"), weight.T.astype("float64")), {}, truth, p)
    assert_within(F.matmul(x, weight.T), truth, bound + 2.0**-53 * abs(truth))


@given(seed=st.integers(0, 2**32 - 1), K=st.integers(1, 40), power=st.integers(-10, 10))
def test_powers_of_two_and_the_identity_change_no_bit(seed, K, power):
    x, weight = normal((3, K), seed), normal((4, K), seed + 1)
    assert np.array_equal(F.linear(x, np.eye(K, dtype="float32")), x)
    scaled = F.linear(x * np.float32(2.0**power), weight)
    assert np.array_equal(scaled, F.linear(x, weight) * np.float32(2.0**power))


@given(seed=st.integers(0, 2**32 - 1), K=st.integers(1, 40))
def test_linear_is_linear(seed, K):
    x, y, weight = normal((3, K), seed), normal((3, K), seed + 1), normal((4, K), seed + 2)
    both, apart = F.linear(x + y, weight), F.linear(x, weight) + F.linear(y, weight)
    wide = [a.astype("float64") for a in (abs(x) + abs(y), abs(weight))]
    # the three products, x + y (one rounding of each term), and the sum of the results
    bound = BOUNDS["linear"](wide, {}, 0, PRECISIONS["float32"]) * 3
    assert_within(both, apart.astype("float64"), bound)


def test_rounding_errors_are_unbiased_and_grow_like_the_root_of_K():
    x, weight = normal((256, 2048), 1), normal((128, 2048), 2)
    truth = x.astype("float64") @ weight.astype("float64").T
    error = F.linear(x, weight) - truth
    size = np.abs(x).astype("float64") @ np.abs(weight).astype("float64").T
    # Random signs: |error| <= lambda sqrt(K) u |x| |w|, lambda^2 = 2 ln(2 K n) for all of n results
    # (Higham and Mary 2019, theorem 2.4). For this K the worst case would allow 7 times as much.
    chance = math.sqrt(2 * math.log(2 * 2048 * truth.size))
    assert np.all(abs(error) <= chance * math.sqrt(2048) * 2.0**-24 * size)
    # The mean of n errors of either sign is normal with deviation rms / sqrt(n): 5 of them is
    # one chance in two million.
    assert abs(error.mean()) <= 5 * rms(error) / math.sqrt(error.size)
