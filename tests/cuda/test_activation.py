"""Activations in lockstep."""

import math

import cuda_checks
import pytest
from cuda_agreement import DTYPES, VIEWS, agree, run
from op_table import normal

NAMES = ("silu", "quick_gelu", "gelu", "gelu_tanh")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_cases(name, dtype):
    cuda_checks.cases(name, dtype)
    cuda_checks.parts(name, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_any_numbers(name):
    cuda_checks.any_numbers(name)


def test_an_infinity_among_small_numbers_is_seen(monkeypatch):
    """Of the sign of what it should be."""
    def spoilt(*call):
        y = run(*call)
        y[(y > 0.1) & (y < 1)] = math.inf
        return y

    monkeypatch.setattr(cuda_checks, "run", spoilt)
    with pytest.raises(AssertionError, match="silu float32: at .* got .*inf"):
        cuda_checks.any_numbers("silu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_geglu(dtype):
    for shape in [(3, 5, 16), (2, 7, 6), (2, 3, 4, 32), (0, 8), (10,)]:
        for images in (None, *VIEWS):
            agree("geglu", [normal(shape, 1, 2.0)], {}, dtype, images)
