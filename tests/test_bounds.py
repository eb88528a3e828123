"""The bounds themselves: the comparison notices what it should, and no bound is so wide that a
half-precision result would pass."""

import math

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within, gamma, rms
from op_table import normal

from refsd import functional as F

P = PRECISIONS["float32"]


def test_precisions_are_numpys():
    for dtype, precision in PRECISIONS.items():
        assert precision.u == np.finfo(dtype).eps / 2
        assert precision.tiny == float(np.finfo(dtype).smallest_subnormal)


def test_gamma_covers_n_roundings():
    for n in (1, 10, 1000):
        assert (1 + P.u) ** n - 1 <= gamma(n, P) <= 1.001 * n * P.u


def test_within():
    truth = np.array([1.0, 2.0, math.inf, math.nan, 0.0])
    assert assert_within(truth.copy(), truth, 0) == 0
    assert assert_within(truth + [0, 0.5, 0, 0, 0], truth, 1.0) == 0.5


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("wrong", [
    [1.0, 2.1, INF, NAN], [1.0, 2.0, 1e300, NAN], [1.0, 2.0, -INF, NAN], [1.0, NAN, INF, NAN],
    [1.0, 2.0, INF, 0.0], [1.0, INF, INF, NAN]])
def test_not_within(wrong):
    truth = np.array([1.0, 2.0, INF, NAN])
    message = "op x: at .* got .*, truth .*: error .*, allowed 0.05"
    with pytest.raises(AssertionError, match=message):
        assert_within(np.array(wrong), truth, 0.05, "op x")


def test_not_within_says_where_it_is_worst():
    truth = np.zeros((2, 3))
    got = truth.copy()
    got[0, 1], got[1, 2] = 1, 4
    with pytest.raises(AssertionError, match=r"at \(1, 2\) got .*4.0.*; 2 of 6 elements"):
        assert_within(got, truth, 0.5)


def test_shapes_and_bounds_are_checked():
    with pytest.raises(AssertionError, match=r"shape \(2,\), wanted \(2, 1\)"):
        assert_within(np.zeros(2), np.zeros((2, 1)), 1)
    with pytest.raises(AssertionError, match="the bound itself is NaN"):
        assert_within(np.zeros(2), np.zeros(2), math.nan)


def test_rms():
    assert rms([3, -4, 0, 0]) == 2.5


def a(*shape, scale=1.0, seed=0):
    return normal(shape, seed + len(shape), scale)


WEIGHTS = (a(48), a(48, seed=9))
TYPICAL = {
    "add": ((a(99), a(99, seed=1)), {}), "sub": ((a(99), 0.1), {}), "mul": ((a(99), 0.1), {}),
    "div": ((a(99), 3), {}), "exp": ((a(99, scale=3),), {}), "sqrt": ((abs(a(99)),), {}),
    "clamp": ((a(99),), {"low": -0.1, "high": 0.1}), "silu": ((a(99, scale=3),), {}),
    "quick_gelu": ((a(99, scale=3),), {}), "gelu": ((a(99, scale=3),), {}),
    "gelu_tanh": ((a(99, scale=3),), {}), "geglu": ((a(99, 2, scale=3),), {}),
    "softmax": ((a(9, 77, scale=3),), {"axis": -1}),
    "linear": ((a(9, 320), a(48, 320, seed=1), a(48)), {}),
    "matmul": ((a(9, 320), a(320, 48)), {}),
    "conv2d": ((a(1, 48, 9, 9), a(8, 48, 3, 3, seed=1)), {"padding": 1}),
    "attention": ((a(1, 64, 80), a(1, 77, 80, seed=1), a(1, 77, 80, seed=2)), {"heads": 2}),
    "group_norm": ((a(1, 48, 9, 9), *WEIGHTS), {"groups": 4, "eps": 1e-5}),
    "layer_norm": ((a(9, 48), *WEIGHTS), {"eps": 1e-5}),
    "rms_norm": ((a(9, 48), WEIGHTS[0]), {"eps": 1e-5}),
    "timestep_embedding": ((np.array([1, 999]),), {"dim": 320, "flip_sin_to_cos": True,
                                                   "freq_shift": 0, "dtype": "float32"}),
    "rope": ((a(7, 64), np.arange(7)), {"base": 10000, "interleaved": True}),
    "upsample_bilinear": ((a(1, 2, 9, 9),), {"height": 17, "width": 20, "align_corners": False}),
}  # fmt: skip
# The FFT's worst case is too wide for half precision to show; test_ops_conv.py also holds its
# errors to what random rounding makes.
ALGORITHMS = {f"conv2d {name}": ((a(1, 48, 9, 9), a(8, 48, 3, 3, seed=1)),
                                 {"padding": 1, "algorithm": name})
              for name in ("winograd2", "winograd4")}


@pytest.mark.parametrize("case", {**TYPICAL, **ALGORITHMS})
def test_a_half_precision_result_is_outside(case):
    """float32's own result is inside its bound; the same values rounded to float16 are not."""
    name = case.split()[0]
    args, options = {**TYPICAL, **ALGORITHMS}[case]
    wide = [x.astype("f8") if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
            for x in args]
    truth = getattr(F, name)(*wide, **(options | {"dtype": "float64"} if "dtype" in options
                                       else options))
    bound = BOUNDS[name](wide, options, truth, P)
    y = getattr(F, name)(*args, **options)
    used = assert_within(y, truth, bound, case)
    print(f"{case}: {used:.0%} of the bound used, "
          f"error {rms(y - truth) / rms(truth) / P.u:.2f} u of the values (root mean squares)")
    with pytest.raises(AssertionError, match="elements are outside"):
        assert_within(y.astype("float16").astype("float32"), truth, bound)


def test_every_bound_above_zero_has_a_typical_call():
    zero = {name for name, bound in BOUNDS.items() if bound.__name__ == "zero"}
    assert set(TYPICAL) | zero == set(BOUNDS)
