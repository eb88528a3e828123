"""Activations in lockstep."""

import pytest
from cuda_agreement import DTYPES, agree
from op_table import normal


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(dtype, order):
    for shape in [(2, 3, 5, 7), (257,), (0, 3), ()]:
        agree("silu", [normal(shape, 1, 3.0)], {}, dtype)
