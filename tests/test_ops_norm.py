"""The norms against exact fractions, hand-computed rows, and what must not change them."""

import itertools
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


def root(fraction):
    """The square root of a fraction to 60 binary digits."""
    return Fraction(math.isqrt((fraction.numerator << 240) // fraction.denominator), 1 << 120)


def standardized(values, eps):
    """(x - mean) / sqrt(var + eps) of a list of floats, exactly but for the root."""
    x = [Fraction(float(v)) for v in values]
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    s = root(variance + Fraction(eps))
    return [(v - mean) / s for v in x]


def check(name, args, options, truth):
    """Both dtypes within their bound; the truth was rounded to float64, half an ulp of it."""
    for dtype in DTYPES:
        y = getattr(F, name)(*(a.astype(dtype) for a in args), **options)
        wide = [a.astype("float64") for a in args]
        bound = BOUNDS[name](wide, options, truth, PRECISIONS[dtype]) + 2.0**-53 * abs(truth)
        assert_within(y, truth, bound, f"{name} {dtype}")


def rows(scale, mean, shape=(3, 13)):
    return normal(shape, 0, scale, mean), normal(shape[-1:], 1), normal(shape[-1:], 2)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("scale, mean", [(1, 0), (1e-3, 0), (30, 5), (1, 1e4), (1e-2, -100)])
def test_layer_norm_is_the_formula(scale, mean, eps):
    x, weight, bias = rows(scale, mean)
    truth = np.array([[float(n * Fraction(float(w)) + Fraction(float(b)))
                       for n, w, b in zip(standardized(row, eps), weight, bias)] for row in x])
    check("layer_norm", (x, weight, bias), {"eps": eps}, truth)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("scale", [1, 1e-3, 1e4])
def test_rms_norm_is_the_formula(scale, eps):
    x, weight, _ = rows(scale, 0)
    truth = []
    for row in x:
        row = [Fraction(float(v)) for v in row]
        s = root(sum(v * v for v in row) / len(row) + Fraction(eps))
        truth.append([float(v / s * Fraction(float(w))) for v, w in zip(row, weight)])
    check("rms_norm", (x, weight), {"eps": eps}, np.array(truth))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("positions", [(1,), (5,), (2, 3), (2, 1, 2)])
def test_group_norm_is_the_formula(groups, positions):
    x = normal((2, 6, *positions), 0, 2, 3)
    weight, bias = normal((6,), 1), normal((6,), 2)
    truth = np.empty(x.shape)
    for n, g in itertools.product(range(2), range(groups)):
        channels = range(g * 6 // groups, (g + 1) * 6 // groups)
        values = iter(standardized([v for c in channels for v in x[n, c].ravel()], 1e-5))
        for c in channels:
            for position in np.ndindex(positions):
                w, b = Fraction(float(weight[c])), Fraction(float(bias[c]))
                truth[(n, c, *position)] = float(next(values) * w + b)
    check("group_norm", (x, weight, bias), {"groups": groups, "eps": 1e-5}, truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hand_computed_rows(dtype):
    """1, 3, 5, 7: mean 4, mean squared deviation 5; with eps 4 the root is 3."""
    x, one, none = np.array([[1, 3, 5, 7]], dtype), np.ones(4, dtype), np.zeros(4, dtype)
    thirds = np.array([[-1, -1 / 3, 1 / 3, 1]]).astype(dtype)
    assert np.array_equal(F.layer_norm(x, one, none, eps=4.0), thirds)
    assert np.array_equal(F.layer_norm(x, eps=4.0), thirds)
    assert np.array_equal(F.layer_norm(x, 3 * one, eps=4.0), 3 * thirds)
    groups = F.group_norm(x.reshape(1, 2, 2), one[:2], none[:2], groups=1, eps=4.0)
    assert np.array_equal(groups.reshape(1, 4), thirds)
    # 1, 7, 5, 5: mean square 25, and 11 more is 36
    x = np.array([[1, 7, 5, 5]], dtype)
    assert np.array_equal(F.rms_norm(x, one, eps=11.0), x / 6)
    # two groups, each 1, 3 or 5, 7: mean 2 or 6, mean squared deviation 1, and 3 more is 4
    x = np.array([[[1, 3], [5, 7]]], dtype)
    halves = F.group_norm(x, np.array([1, 2], dtype), np.array([0, 10], dtype), groups=2, eps=3.0)
    assert halves.tolist() == [[[-0.5, 0.5], [9, 11]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.1, 3333.3, -1e-3, 7.7, 1e4 / 3])
@pytest.mark.parametrize("K", [1, 2, 3, 7, 100, 320, 1280, 10240])
def test_constant_rows_give_exactly_the_bias(K, value, dtype):
    weight, bias = normal((8,), 1).astype(dtype), normal((8,), 2).astype(dtype)
    x = np.full((2, 8, K), value, dtype)
    y = F.group_norm(x, weight, bias, groups=2, eps=1e-6)
    assert np.array_equal(y, np.broadcast_to(bias[:, None], y.shape))
    wide = np.resize(bias, K)
    assert np.array_equal(F.layer_norm(x[0], np.resize(weight, K), wide, eps=1e-6),
                          np.broadcast_to(wide, (8, K)))


@pytest.mark.parametrize("mean", [0, 100, 1e4])
@pytest.mark.parametrize("K", [320, 40960])
def test_a_large_mean_costs_nothing(K, mean):
    """The worst case of the bound grows with the mean; the error itself must not."""
    x = normal((32, K), 0, 1, mean)
    weight, bias = np.ones(K, "float32"), np.zeros(K, "float32")
    truth = F.layer_norm(x.astype("float64"), weight.astype("float64"), bias.astype("float64"),
                         eps=1e-5)
    error = F.layer_norm(x, weight, bias, eps=1e-5) - truth
    # Roundings of random sign: two of the deviation, one of the quotient, none of the weight 1
    # and the bias 0, each with a variance of at most u^2 / 3 of the value squared.
    assert rms(error) <= 2.0**-24 * math.sqrt(3 / 3)
    # They average out over a row; what a row shares, its mean and its root, are single roundings.
    assert np.all(abs(error.mean(axis=1)) <= 2.0**-24 * abs(truth).mean(axis=1))


@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-6, 6), shift=st.integers(-64, 64))
def test_scale_and_shift_of_the_input_do_not_matter(seed, power, shift):
    """Exactly, where scaling and shifting are exact: eighths, powers of two, whole numbers."""
    x = np.round(normal((2, 4, 6), seed, 4) * 8) / 8
    weight, bias = normal((4,), seed + 1), normal((4,), seed + 2)
    moved = ((x + shift) * np.float32(2.0**power)).astype("float32")
    wide = [a.astype("float64") for a in (moved, weight, bias)]
    for groups in (1, 2, 4):
        # eps scales with the variance
        options = {"groups": groups, "eps": 2.0 ** (2 * power - 20)}
        there = F.group_norm(moved, weight, bias, **options).astype("float64")
        here = F.group_norm(x, weight, bias, groups=groups, eps=2.0**-20)
        bound = BOUNDS["group_norm"](wide, options, there, PRECISIONS["float32"])
        assert_within(here, there, 2 * bound)


def test_group_norm_with_one_group_is_layer_norm_over_everything():
    x = normal((2, 4, 5), 0).astype("float64")
    one, none = np.ones(4), np.zeros(4)
    flat = F.layer_norm(x.reshape(2, 20), np.ones(20), np.zeros(20), eps=1e-5).reshape(x.shape)
    assert np.array_equal(F.group_norm(x, one, none, groups=1, eps=1e-5), flat)
    each = F.layer_norm(x, np.ones(5), np.zeros(5), eps=1e-5)
    assert np.array_equal(F.group_norm(x, one, none, groups=4, eps=1e-5), each)


def test_an_image_is_normalised_alone():
    x, weight, bias = normal((3, 4, 5, 5), 0), normal((4,), 1), normal((4,), 2)
    batch = F.group_norm(x, weight, bias, groups=2, eps=1e-5)
    alone = F.group_norm(x[1:2], weight, bias, groups=2, eps=1e-5)
    assert np.array_equal(batch[1:2], alone)


def test_nan_spoils_its_own_group_only():
    x, weight, bias = normal((2, 4, 5), 0), normal((4,), 1), normal((4,), 2)
    x[1, 3, 2] = np.nan
    y = F.group_norm(x, weight, bias, groups=2, eps=1e-5)
    assert np.isnan(y[1, 2:]).all() and np.isfinite(y[0]).all() and np.isfinite(y[1, :2]).all()
