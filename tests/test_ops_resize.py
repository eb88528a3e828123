"""Upsampling against exact fractions: which pixel, and with what weight."""

import math
from fractions import Fraction

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within
from op_table import normal

from refsd import functional as F

DTYPES = ("float32", "float64")
SIZES = [(1, 1), (1, 4), (2, 4), (3, 6), (4, 3), (5, 9), (7, 7), (8, 16), (9, 17), (33, 66)]


@pytest.mark.parametrize("size, new_size", SIZES)
def test_nearest_takes_the_pixel_below(size, new_size):
    x = normal((2, 3, size, size + 1), 1)
    y = F.upsample_nearest(x, height=new_size, width=2 * new_size)
    assert y.shape == (2, 3, new_size, 2 * new_size)
    for i in range(new_size):
        for j in range(2 * new_size):
            row, column = i * size // new_size, j * (size + 1) // (2 * new_size)
            assert np.array_equal(y[:, :, i, j], x[:, :, row, column])


def test_doubling_repeats_each_pixel():
    x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    y = F.upsample_nearest(x, height=4, width=4)
    assert y.tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]]


def test_the_ratio_is_rounded_to_float32_as_in_torch():
    """From 2 to 82 pixels: pixel 41 is where the second begins, but float32(2 / 82) is a little
    too small and leaves it to the first. 569 of the pairs of sizes below 260 have such a pixel."""
    x = np.array([[[[0.0, 1.0]]]])
    y = F.upsample_nearest(x, height=1, width=82)[0, 0, 0]
    assert y[41] == 0 and y[42] == 1
    assert Fraction(float(np.float32(2) / np.float32(82))) < Fraction(2, 82)
    for size, new_size in ((3, 100), (7, 86), (100, 123), (129, 130)):
        ratio = Fraction(float(np.float32(size) / np.float32(new_size)))
        x = np.arange(size, dtype="float64").reshape(1, 1, size, 1)
        y = F.upsample_nearest(x, height=new_size, width=1)[0, 0, :, 0]
        products = [np.float32(float(ratio * j)) for j in range(new_size)]  # exact in float64
        assert y.tolist() == [min(math.floor(p), size - 1) for p in products]


def linear(x, new_size, align_corners):
    """One row in exact fractions."""
    size, y = len(x), []
    for i in range(new_size):
        if align_corners:
            source = Fraction(i * (size - 1), max(new_size - 1, 1))
        else:
            source = max(Fraction(2 * i + 1, 2) * Fraction(size, new_size) - Fraction(1, 2), 0)
        first = min(math.floor(source), size - 1)
        second = min(first + 1, size - 1)
        y.append(x[first] * (1 - (source - first)) + x[second] * (source - first))
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size, new_size", SIZES)
def test_bilinear_is_the_formula_along_both_axes(size, new_size, align_corners, dtype):
    x = normal((1, 2, size, 3), 1).astype(dtype)
    exact = [[[Fraction(float(v)) for v in row] for row in plane] for plane in x[0]]
    truth = []
    for plane in exact:
        across = [linear(row, 5, align_corners) for row in plane]
        down = [linear(column, new_size, align_corners) for column in zip(*across)]
        truth.append([[float(v) for v in row] for row in zip(*down)])
    truth = np.array([truth])
    y = F.upsample_bilinear(x, height=new_size, width=5, align_corners=align_corners)
    p = PRECISIONS[dtype]
    # The source positions are float64 in both dtypes: size * 2^-52 off at most, times a difference.
    positions = 2 * size * 2.0**-52 * abs(x).max() * 2
    bound = BOUNDS["upsample_bilinear"]((x.astype("float64"),), {}, truth, p) + positions
    assert_within(y, truth, bound)


def test_the_two_conventions_by_hand():
    x = np.array([[[[0.0, 1.0]]]])
    half = F.upsample_bilinear(x, height=1, width=4, align_corners=False)
    assert half.tolist() == [[[[0, 0.25, 0.75, 1]]]]
    corners = F.upsample_bilinear(x, height=1, width=5, align_corners=True)
    assert corners.tolist() == [[[[0, 0.25, 0.5, 0.75, 1]]]]


def test_a_ramp_stays_a_ramp_and_the_same_size_is_the_identity():
    x = np.arange(7.0).reshape(1, 1, 7, 1) + np.arange(5.0)
    y = F.upsample_bilinear(x, height=13, width=9, align_corners=True)
    assert np.array_equal(y[0, 0], np.arange(13.0)[:, None] / 2 + np.arange(9.0) / 2)
    for align_corners in (True, False):
        same = F.upsample_bilinear(x, height=7, width=5, align_corners=align_corners)
        assert np.array_equal(same, x)
