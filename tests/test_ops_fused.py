"""Fused ops against explicit formulas, and the kernels against the ops one by one.

Where a kernel computes a fused op in the order in which it computes its ops, float32 has the very
bits of these, which are tested for all they are by themselves.
"""

import math

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within
from numba_agreement import same_bits
from op_table import normal

from refsd import functional as F
from refsd.half import to_float32, to_half
from refsd.registry import use


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-9, 10, shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_add_adds_to_each_sum(lead, bias, dtype):
    x, weight, b, addend = (integers(i, *shape) for i, shape in enumerate([
        (*lead, 5), (3, 5), (3,), (*lead, 3)]))
    y = F.linear_add(*(a.astype(dtype) for a in ((x, weight, addend, b) if bias else
                                                 (x, weight, addend))))
    for row in np.ndindex(lead):
        expected = [sum(map(math.prod, zip(x[row].tolist(), w.tolist()))) + bias * int(b[o])
                    + int(addend[row][o]) for o, w in enumerate(weight)]
        assert y[row].tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_geglu_gates_the_first_half(bias, dtype):
    x, weight, b = (normal(shape, i).astype(dtype) for i, shape in enumerate([
        (4, 5), (6, 5), (6,)]))
    args = (x, weight, b) if bias else (x, weight)
    truth = np.empty((4, 3))
    for i, o in np.ndindex(4, 3):
        h, g = (math.fsum([*(float(p) * float(q) for p, q in zip(x[i], weight[n])),
                           float(b[n]) * bias]) for n in (o, o + 3))
        truth[i, o] = h * g * (1 + math.erf(g / math.sqrt(2))) / 2
    # fsum rounds once, but its terms are rounded products: as large as the bound of float64
    wide = [a.astype("float64") for a in args]
    bound = sum(BOUNDS["linear_geglu"](wide, {}, truth, PRECISIONS[p]) for p in (dtype, "float64"))
    assert_within(F.linear_geglu(*args), truth, bound)


def test_group_norm_silu_is_the_formula():
    """Pixel by pixel in Python's floats; two images of two groups of different means."""
    x = normal((2, 6, 3, 2), 1) + np.float32([0, 5]).reshape(2, 1, 1, 1)
    x[:, 3:] *= 4
    weight, bias = normal((6,), 2), normal((6,), 3)
    truth = np.empty(x.shape)
    for n in range(2):
        for group in (range(3), range(3, 6)):
            values = [float(x[n, c, i, j]) for c in group for i in range(3) for j in range(2)]
            mean = math.fsum(values) / 18
            root = math.sqrt(math.fsum((v - mean)**2 for v in values) / 18 + 0.1)
            for c in group:
                h = (x[n, c].astype(float) - mean) / root * float(weight[c]) + float(bias[c])
                truth[n, c] = h / (1 + np.exp(-h))
    for dtype in ("float32", "float64"):
        args = [a.astype(dtype) for a in (x, weight, bias)]
        wide = [a.astype("f8") for a in args]
        bound = BOUNDS["group_norm_silu"](wide, {"groups": 2, "eps": 0.1}, truth, PRECISIONS[dtype])
        y = F.group_norm_silu(*args, groups=2, eps=0.1)
        assert_within(y, truth, bound + 2.0**-50, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_silu_has_the_bits_of_its_ops(dtype):
    """Of halves: those of float32, rounded once."""
    x, weight, bias = (a if dtype == "float32" else to_half(a, dtype) for a in (
        normal((2, 40, 9, 7), 1, 3), normal((40,), 2), normal((40,), 3)))
    options = {"groups": 4, "eps": 1e-5}
    with use("numba"):
        y = F.group_norm_silu(x, weight, bias, **options)
        one_by_one = F.silu(F.group_norm(*map(to_float32, (x, weight, bias)), **options))
    same_bits(y, one_by_one if dtype == "float32" else to_half(one_by_one, dtype))
