"""What is done between the networks on the device: dtypes, deviations, and what is refused."""

import itertools
import statistics

import numpy as np
import pytest
from bounds import PRECISIONS, assert_within, gamma
from cuda_agreement import DTYPES
from numba_agreement import cast as as_dtype
from op_table import normal

from refsd.half import HALVES, to_half
from refsd.numba_ops.cuda.array import CHANNELS_LAST, copies, to_device
from refsd.places import beside, on_host


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
    """Wherever the images lie."""
    deviate(shape, dtype)


def deviate(shape, dtype):
    """The deviations of images of a shape, within what roundings make of them.

    Sums of K numbers have n = K / 128 + 7 roundings on a path: K / 128 - 1 in a thread, 5 in a
    warp, 3 across warps. So the mean, a quotient, is off by d <= gamma(n + 1) mean |x|,
    which adds K d^2 to the sum of squares. Each of its terms has three roundings before the sum's
    n, and one after, by the divisor. The root halves what is relative, and rounds; the truth, of
    fractions, is rounded once.
    """
    x = normal(shape, 1, 3.0).astype(dtype) + np.asarray(1, dtype)
    images, K, p = x.reshape(len(x), -1).tolist(), x[0].size, PRECISIONS[dtype]
    truth = np.array([statistics.stdev(image) for image in images])
    n = -(-K // 128) + 7
    mean_off = gamma(n + 1, p) * np.array([statistics.fmean(map(abs, image)) for image in images])
    bound = truth * (gamma(n + 4, p) / 2 + gamma(2, p)) + mean_off**2 * K / (K - 1) / (2 * truth)
    for lies in (None, CHANNELS_LAST, (2, 0, 3, 1)):
        found = to_device(x, lies).std(axis=(1, 2, 3), keepdims=True, ddof=1).numpy()
        assert found.dtype == x.dtype and found.shape == (len(x), 1, 1, 1)
        assert_within(found.ravel(), truth, bound, f"deviations {dtype} {shape} {lies}")


def test_what_only_a_host_can_is_refused():
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
