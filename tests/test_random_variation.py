"""refsd.random.variation: the arc from one seed's noise to another's, and noise of another size."""

import math

import numpy as np
import pytest

from refsd.errors import UsageError
from refsd.random.by_name import GENERATORS
from refsd.random.variation import put_in_the_middle, slerp, varied_noise


def columns(*vectors):
    """Vectors as the columns of one channel.   n of length h -> (1, h, n)"""
    return np.array(vectors, np.float64).T[None]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_an_arc_is_walked_at_a_constant_pace(share):
    """Quarter circles: cos and sin of the share of the angle, whatever the other columns do."""
    a = columns([3, 0, 0], [0, 1, 0], [1, 0, 0])
    b = columns([0, 3, 0], [0, 0, 1], [math.cos(1), math.sin(1), 0])
    c, s = math.cos(share * math.pi / 2), math.sin(share * math.pi / 2)
    expected = columns([3 * c, 3 * s, 0], [0, c, s], [math.cos(share), math.sin(share), 0])
    # a division by sin(angle) >= 0.84 and some ten roundings of numbers up to 3
    np.testing.assert_allclose(slerp(share, a, b), expected, atol=40 * 2.0**-53)


def test_nearly_the_same_noise_is_mixed_in_a_straight_line_backwards():
    """As A1111 does: its line has `share` of the first."""
    a = columns([1.0, 0.0])
    b = columns([1.0, 0.01])
    np.testing.assert_array_equal(slerp(0.25, a, b), a * 0.25 + b * 0.75)


@pytest.mark.parametrize("name", GENERATORS)
def test_pictures_of_a_batch_have_seeds_of_their_own(name):
    make, shape = GENERATORS[name], (4, 4, 6)
    drawn = varied_noise((2, *shape), [make(5), make(5)], variation_seed=9, strength=0.3)
    for index in range(2):
        expected = slerp(0.3, make(5).randn(shape), make(9 + index).randn(shape))
        np.testing.assert_array_equal(drawn[index], expected)


def test_the_generator_goes_on_as_after_plain_noise():
    make, shape = GENERATORS["torch-cpu"], (4, 8, 8)
    for options in {}, {"strength": 0.5}, {"resize_from": (5, 11)}:
        generator, plain = make(5), make(5)
        drawn = varied_noise((1, *shape), generator, **options)
        noise = plain.randn(shape)
        assert (drawn[0] == noise).all() == (not options)
        np.testing.assert_array_equal(generator.randn(3), plain.randn(3))


def test_halves_are_mixed_in_float32_and_rounded():
    make = GENERATORS["cuda"]
    half = varied_noise((1, 4, 8, 8), make(1), variation_seed=2, strength=0.5, dtype="bfloat16")
    ends = [make(seed).randn((4, 8, 8), "bfloat16").astype(np.float32) for seed in (1, 2)]
    np.testing.assert_array_equal(half[0], slerp(0.5, *ends).astype(half.dtype))


@pytest.mark.parametrize("outer, inner, there, here, size", [
    (8, 4, 2, 0, 4), (9, 4, 2, 0, 4), (4, 8, 0, 2, 4), (4, 7, 0, 2, 3), (5, 5, 0, 0, 5)])
def test_noise_of_another_size_lies_in_the_middle(outer, inner, there, here, size):
    """Where it is larger by an odd number, A1111's margins leave one row of the other noise."""
    noise, whole = np.arange(inner * inner).reshape(1, inner, inner), -np.ones((1, outer, outer))
    mixed = put_in_the_middle(noise, whole)
    assert (mixed >= 0).sum() == size**2 and (whole == -1).all()
    for row in range(size):
        assert mixed[0, there + row, there] == noise[0, here + row, here]


def test_another_size_begins_with_that_sizes_noise():
    make = GENERATORS["torch-cpu"]
    drawn = varied_noise((1, 4, 8, 8), make(3), resize_from=(4, 4), strength=1, variation_seed=7)
    expected = slerp(1, *(make(seed).randn((4, 4, 4)) for seed in (3, 7)))
    np.testing.assert_array_equal(drawn[0, :, 2:6, 2:6], expected)
    np.testing.assert_array_equal(drawn[0, :, :2], make(3).randn((4, 8, 8))[:, :2])


@pytest.mark.parametrize("options, message", [
    ({"strength": 1.5}, "strength is 1.5; give a number from 0 to 1"),
    ({"strength": math.nan}, "strength is nan"),
    ({"shape": (2, 4, 8, 8)}, "1 generators; give .* one for each"),
    ({"resize_from": (0, 4)}, "resize_from is .*; give the height and the width"),
    ({"resize_from": (4,)}, "resize_from is"),
    ({"resize_from": 4}, "resize_from is"),
    ({"variation_seed": -2**63, "strength": 0.1, "resize_from": (4, 4)}, None),
    ({"variation_seed": 2**64, "strength": 0.1}, "seed: got"),
])
def test_bad_variations(options, message):
    options = {"shape": (1, 4, 8, 8)} | options
    if message is None:
        varied_noise(generator=GENERATORS["cuda"](0), **options)
        return
    with pytest.raises(UsageError, match=message):
        varied_noise(generator=GENERATORS["cuda"](0), **options)
