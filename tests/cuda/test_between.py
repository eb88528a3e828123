"""What is done between the networks on the device: dtypes, deviations, and what is refused."""

import itertools

import numpy as np
import pytest
import standing_in
from numba_agreement import cast as as_dtype
from op_table import normal

from refsd.half import HALVES, to_half
from refsd.numba_ops.cuda.array import CHANNELS_LAST, copies, to_device
from refsd.places import beside, on_host

DTYPES = ("float32", "float64", "float16", "bfloat16")


@pytest.mark.parametrize("source, target", list(itertools.permutations(DTYPES, 2)))
def test_a_dtype_becomes_another_as_on_the_host(source, target):
    """Ties to even, overflow, denormals and NaN are all in there."""
    hard = [0.0, -0.0, np.inf, np.nan, 1 + 2**-9, 1 + 3 * 2**-9, 65519.9, 65520, 2**-25, 3e38]
    with np.errstate(all="ignore"):
        x = as_dtype(np.append(normal((300,), 1, 9.0), hard).astype("f4"), source)
        expected = to_half(x, target) if target in HALVES else x.astype(target)
        found = to_device(x).astype(HALVES.get(target, target)).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.astype("f8"), expected.astype("f8"))


def test_the_same_dtype_is_the_same_array():
    x = to_device(normal((2, 3), 1))
    assert x.astype("float32") is x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 4, 1, 1), (3, 2, 2, 2)])
def test_deviations_of_images(shape, dtype, order):
    """Against float64 of NumPy, wherever the images lie."""
    x = normal(shape, 1, 3.0).astype(dtype) + np.asarray(1, dtype)
    wide, axes = x.astype("f8"), {"axis": (1, 2, 3), "keepdims": True, "ddof": 1}
    truth = wide.std(**axes)
    for lies in (None, CHANNELS_LAST, (2, 0, 3, 1)):
        found = to_device(x, lies).std(**axes).numpy()
        assert found.dtype == x.dtype and found.shape == truth.shape
        # A sum of K numbers in a tree errs by (K / 128 + 7) eps of the sum of magnitudes: so does
        # the mean, whose error d adds K d^2 to the sum of squares, and the sum of squares, each
        # term of which has three roundings more. The root halves what is relative.
        roundings = (wide[0].size / 128 + 10) * np.finfo(dtype).eps
        mean_off = roundings * np.abs(wide).mean(axis=(1, 2, 3), keepdims=True)
        bound = truth * roundings + mean_off**2 / np.maximum(truth, 1e-300)
        assert (np.abs(found - truth) <= 2 * bound).all()


def test_what_only_a_host_can_is_refused(monkeypatch):
    standing_in.stand_in(monkeypatch)
    x = to_device(normal((2, 3), 1))
    for call in (lambda: np.asarray(x), lambda: bool(x), lambda: x + np.zeros((2, 3), "f4"),
                 lambda: np.zeros((2, 3), "f4") - x, lambda: 1 / x, lambda: x[0],
                 lambda: x.std(axis=0, keepdims=True, ddof=1), lambda: x.repeat(2, axis=1)):
        with pytest.raises(TypeError):
            call()
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        x.flags.writeable = True


def test_places_are_told_apart_and_copies_counted():
    host = normal((2, 3), 1)
    x = beside(to_device(host), host)
    before = dict(copies)
    np.testing.assert_array_equal(on_host(x), host)
    assert on_host(host) is host and beside(host, x) is x
    assert copies == {**before, "to_host": before["to_host"] + 1}
