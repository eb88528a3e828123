"""Brownian paths: sums, variances, and numbers that torchsde gave."""

import numpy as np
import pytest

from refsd.random.brownian import BrownianPath, noise_of


def test_increments_add_up_in_any_order():
    """To float32's rounding of sums of values of up to 4 standard deviations, 15."""
    path = BrownianPath(0.0, 14.5, (3, 5), "float32", 7)
    times = [0.0, 0.3, 2.71, 2.710001, 9.5, 14.5]
    whole = path.increment(0, 14.5)
    parts = [path.increment(a, b) for a, b in reversed([*zip(times, times[1:])])]
    assert whole.dtype == np.float32 and whole.shape == (3, 5)
    assert np.abs(sum(parts) - whole).max() < 24 * 5 * 2.0**-24 * 15
    again = BrownianPath(0.0, 14.5, (3, 5), "float32", 7)
    assert np.array_equal(again.increment(2.71, 2.710001), parts[2])
    assert not np.array_equal(BrownianPath(0.0, 14.5, (3, 5), "float32", 8).increment(0, 14.5),
                              whole)


def test_increments_are_normal_with_the_variance_of_their_length_and_independent():
    path = BrownianPath(0.0, 10.0, (40000,), "float32", 3)
    first, second = path.increment(1.0, 3.5), path.increment(3.5, 3.75)
    # Of 40000 values: a variance's deviation is sqrt(2 / n) of it, a correlation's 1 / sqrt(n).
    for values, length in ((first, 2.5), (second, 0.25)):
        assert abs(values.var() / length - 1) < 5 * np.sqrt(2 / 40000)
        assert abs(values.mean()) < 5 * np.sqrt(length / 40000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 200


def test_what_is_outside_of_the_interval_does_not_count():
    path = BrownianPath(1.0, 2.0, (2,), "float64", 0)
    assert np.array_equal(path.increment(0.5, 9.0), path.increment(1.0, 2.0))
    assert (path.increment(2.5, 9.0) == 0).all() and path.increment(1.5, 1.5).dtype == np.float64


@pytest.mark.parametrize("seed, a, b, wanted", [
    (0, 2.5, 7.25, [0.24858937, -1.0766243, -3.2526586, -0.17397371]),
    (1099511627779, 0.0291675, 0.1, [-0.09956513, 0.407819, -0.10409486, -0.16083652]),
    (12345, 1.0, 14.614647, [1.21215, 6.146693, 1.7310979, 6.9953446]),
])
def test_numbers_of_torchsde(seed, a, b, wanted):
    """Printed by torchsde 0.2.6 on torch 2.13.0; all of them are in tests/parity/test_random.py."""
    path = BrownianPath(0.0291675, 14.614647, (2, 2), "float32", seed)
    assert path.increment(a, b).ravel().tolist() == np.float32(wanted).tolist()


def test_a_half_is_halved_at_an_interval_that_its_reciprocal_does_not_fit_into():
    """2e-6 long: 1 / length is beyond float16. As torchsde printed it."""
    path = BrownianPath(0.0291675, 14.614647, (2, 2), "float16", 3)
    found = path.increment(0.7, 0.700001)
    assert found.dtype == np.float16 and np.isfinite(found).all()
    assert found.ravel().tolist() == [
        -3.713369369506836e-05, -0.00012624263763427734, 0.0006127357482910156,
        0.0002276897430419922]


def test_what_is_drawn_once_is_kept_and_cannot_be_changed():
    noise = noise_of(1, (2, 3), (4,), "float32")
    assert noise_of(1, (2, 3), (4,), "float32") is noise and not noise.flags.writeable
    assert noise_of(2, (2, 3), (4,), "float32") is not noise
