"""Convolution in lockstep."""

import math

import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from numba_agreement import cast, truth_of
from op_table import normal

WINDOWS = [  # x, weight, options
    ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": 1}),
    ((1, 5, 4, 3), (3, 5, 1, 1), {}),
    ((1, 4, 6, 7), (6, 2, 3, 2), {"groups": 2, "stride": (2, 1), "padding": ((0, 1), (2, 0))}),
    ((2, 6, 5, 5), (6, 1, 3, 3), {"groups": 6, "padding": 2, "dilation": (1, 2), "stride": 2}),
    ((1, 2, 2, 9), (3, 2, 2, 5), {"dilation": (1, 2)}),
    ((1, 3, 0, 2), (2, 3, 3, 3), {"padding": 2}),
]


def case(x, weight, options, bias=True):
    """Arguments and options; by no other algorithm than the formula's, whose bound holds then."""
    args = [normal(x, 1), normal(weight, 2), *[normal(weight[:1], 3)] * bias]
    return args, {"algorithm": "im2col", **options}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_window(dtype):
    for i, (x, weight, options) in enumerate(WINDOWS):
        agree("conv2d", *case(x, weight, options, bias=i != 1), dtype)


def test_algorithms_by_name():
    """Whatever is asked for, the products of the formula are added up."""
    args = [normal((1, 3, 5, 4), 1), normal((4, 3, 3, 3), 2)]
    plain = run("conv2d", args, {"padding": 1})
    for name in ("winograd2", "winograd4", "fft"):
        assert (run("conv2d", args, {"padding": 1, "algorithm": name}) == plain).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_spoilt_numbers(dtype):
    """Zeros around an image times an infinite weight are NaN, as in the reference."""
    spoils("conv2d", (1, 2, 4, 4), (3, 2, 3, 3), {"padding": 1}, dtype)


def spoils(name, x, weight, options, dtype):
    """Small integers, whose sums are exact, and what is not finite: the reference's numbers."""
    args = [np.rint(a) for a in case(x, weight, options)[0]]
    args[0][0, 1, 2, 1], args[1][1, 0, 0, 1], args[2][2] = math.nan, math.inf, -math.inf
    args = [cast(a, dtype) for a in args]
    with np.errstate(invalid="ignore"):
        truth = truth_of(name, args, options)[0]
    np.testing.assert_array_equal(run(name, args, options).astype("float64"), truth)
