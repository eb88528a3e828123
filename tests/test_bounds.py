"""The bounds themselves: the comparison notices what it should, and no bound is so wide that a
half-precision result would pass."""

import math

import numpy as np
import pytest
from bounds import BOUNDS, PRECISIONS, assert_within, gamma, rms

from refsd.examples import calls, with_values
from refsd.kinds import Movement
from refsd.registry import ops

OPS = ops()
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


# The FFT's worst case is too wide for half precision to show; test_ops_conv.py also holds its
# errors to what random rounding makes.
CASES = [(name, {}) for name, op in OPS.items() if not isinstance(op.kind, Movement)] + [
    ("conv2d", {"algorithm": "winograd2"}), ("conv2d", {"algorithm": "winograd4"})]


@pytest.mark.parametrize("name, more", CASES)
def test_a_half_precision_result_is_outside(name, more):
    """float32's own result is inside its bound; the same values rounded to float16 are not."""
    op = OPS[name]
    call = with_values(op, calls(op)[0], 1)
    args, options = tuple(call.inputs.values()), call.options | more
    wide = [x.astype("f8") if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
            for x in args]
    truth = op.definition(*wide, **(options | {"dtype": "float64"} if "dtype" in options
                                    else options))
    bound = BOUNDS[name](wide, options, truth, P)
    y = op.definition(*args, **options)
    used = assert_within(y, truth, bound, name)
    print(f"{name}: {used:.0%} of the bound used, "
          f"error {rms(y - truth) / rms(truth) / P.u:.2f} u of the values (root mean squares)")
    with pytest.raises(AssertionError, match="elements are outside"):
        assert_within(y.astype("float16").astype("float32"), truth, bound)
