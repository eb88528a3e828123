"""Arithmetic in lockstep: broadcasting, numbers, and what is no number."""

import cuda_checks
import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from op_table import normal

from refsd.numba_ops.cuda.array import CHANNELS_LAST, to_device
from refsd.registry import use

PAIRS = ("add", "sub", "mul", "div")
MAPS = ("exp", "sqrt", "clamp")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name, dtype):
    cuda_checks.pairs(name, dtype)
    cuda_checks.parts(name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAPS)
def test_maps(name, dtype):
    cuda_checks.cases(name, dtype)
    cuda_checks.parts(name, dtype)


@pytest.mark.parametrize("name", PAIRS + MAPS)
def test_any_numbers(name):
    cuda_checks.any_numbers(name)


def test_arithmetic_of_float32_is_exact():
    """One rounding has one result."""
    x, y = normal((2, 8, 3, 4), 1), normal((2, 8, 1, 1), 2, mean=9.0)
    for name, expected in [("add", x + y), ("sub", x - y), ("mul", x * y), ("div", x / y)]:
        assert run(name, [x, y], {}).tobytes() == expected.tobytes(), name
    for name, expected in [("add", x + 0.1), ("sub", x - 0.1), ("mul", x * 0.1), ("div", x / 0.1)]:
        assert run(name, [x, 0.1], {}).tobytes() == expected.tobytes(), name
    assert run("sqrt", [abs(x)], {}).tobytes() == np.sqrt(abs(x)).tobytes()


def test_limits_of_clamp_may_be_infinite():
    for low, high in [(-np.inf, 0.5), (-0.5, np.inf), (-np.inf, np.inf)]:
        agree("clamp", [normal((33,), 1)], {"low": low, "high": high})


def test_results_lie_as_the_next_op_wants_them():
    """Channels last if one of the images has them so; else as the first of that shape."""
    image, other = normal((2, 8, 3, 4), 1), normal((8, 1, 1), 2)
    with use("cuda"):
        for a, b in [(CHANNELS_LAST, None), (None, CHANNELS_LAST), (CHANNELS_LAST,) * 2]:
            y = to_device(image, a) + to_device(image, b)
            assert y.is_contiguous(CHANNELS_LAST)
        assert (to_device(image) + to_device(other)).is_contiguous()
        assert (to_device(image[:1, :, :1]) + to_device(image[:, :1, :, :1])).is_contiguous(
            CHANNELS_LAST)
