"""The generators of refsd.random: order of calls, state, and what they accept."""

import math

import numpy as np
import pytest

from refsd.errors import UsageError
from refsd.half import HALVES
from refsd.random import PhiloxGenerator, TorchGenerator, draw_noise
from refsd.random.arguments import to_dtype
from refsd.random.by_name import GENERATORS
from refsd.random.mt19937 import MersenneTwister


def test_second_number_of_a_pair_is_kept_across_calls():
    whole = TorchGenerator(5).randn(14)
    generator = TorchGenerator(5)
    parts = [generator.randn(size) for size in (1, 2, 0, 3, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:9])

    generator.randn(16)  # blocks neither use nor drop the kept number
    assert generator.randn(1) == whole[9]


def test_full_blocks_do_not_depend_on_the_shape():
    flat = TorchGenerator(6).randn(4 * 64 * 64)
    np.testing.assert_array_equal(TorchGenerator(6).randn(1, 4, 64, 64).ravel(), flat)
    np.testing.assert_array_equal(TorchGenerator(6).randn([1, 4, 64, 64]).ravel(), flat)
    np.testing.assert_array_equal(TorchGenerator(6).randn(2, 4, 64, 64)[0].ravel(), flat)
    assert TorchGenerator(6).randn(()).shape == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", GENERATORS.values())
def test_halves_are_rounded_float32(kind, dtype):
    single = kind(7).randn((4, 64))
    half = kind(7).randn((4, 64), dtype)
    assert half.dtype == HALVES[dtype]
    np.testing.assert_array_equal(half, to_dtype(single, dtype))


def test_negative_seeds_count_from_2_to_the_64_down():
    assert TorchGenerator(-1).seed == 2**64 - 1
    assert TorchGenerator(-(2**63)).initial_seed() == 2**63
    # Only the low 32 bits reach the engine.
    np.testing.assert_array_equal(TorchGenerator(2**32 + 7).randn(20), TorchGenerator(7).randn(20))


@pytest.mark.parametrize("first", [0, 1, 4, 623, 624, 625, 9999])
def test_the_engine_gives_the_published_number(first):
    """The 10000th number of seed 5489 is in C++, [rand.predef], however it is drawn."""
    engine = MersenneTwister(5489 + 2**32)
    engine.draw(first)
    assert engine.draw(10000 - first)[-1] == 4123659995


@pytest.mark.parametrize("kind", GENERATORS.values())
@pytest.mark.parametrize("before", [[], [3], [16], [3, 17, 2], [609], [312, 15]])
def test_state_is_restored(kind, before):
    generator = kind(8)
    for size in before:
        generator.randn(size)
    state = generator.get_state()
    kept = state.copy()
    expected = [generator.randn(size) for size in (2, 20, 3)]
    np.testing.assert_array_equal(state, kept)

    other = kind(9).set_state(state)
    assert other.seed == 8
    np.testing.assert_array_equal(other.get_state(), state)
    for size, numbers in zip((2, 20, 3), expected, strict=True):
        np.testing.assert_array_equal(other.randn(size), numbers)
    np.testing.assert_array_equal(kind(8).randn(20), other.manual_seed(8).randn(20))


@pytest.mark.parametrize("kind", [TorchGenerator, PhiloxGenerator])
@pytest.mark.parametrize(
    "seed", [1.0, "1", None, True, np.True_, [1], 2**64, -(2**63) - 1, math.nan]
)
def test_bad_seed(kind, seed):
    with pytest.raises(UsageError, match="^seed: got .*; give an int"):
        kind(seed)


@pytest.mark.parametrize("kind", [TorchGenerator, PhiloxGenerator])
def test_numpy_integers_are_seeds_and_sizes(kind):
    expected = kind(3).randn(2, 9)
    np.testing.assert_array_equal(kind(np.uint64(3)).randn(np.int64(2), np.int8(9)), expected)
    np.testing.assert_array_equal(kind(3).randn((2, 9), np.float32), expected)
    np.testing.assert_array_equal(kind(3).randn((2, 9), dtype=np.dtype("float32")), expected)


@pytest.mark.parametrize("kind", [TorchGenerator, PhiloxGenerator])
@pytest.mark.parametrize(
    "arguments, options",
    [
        ((), {}),
        ((-1,), {}),
        ((2.0,), {}),
        ((True,), {}),
        (("16",), {}),
        (((2, "3"),), {}),
        ((2**40, 2**40), {}),
        ((4,), {"dtype": "int32"}),
        ((4,), {"dtype": float}),
        ((4,), {"dtype": None}),
        ((4, "float64"), {"dtype": "float16"}),
    ],
)
def test_bad_shape_or_dtype(kind, arguments, options):
    generator = kind(0)
    state = generator.get_state()
    with pytest.raises(UsageError, match="^randn: .*give"):
        generator.randn(*arguments, **options)
    np.testing.assert_array_equal(generator.get_state(), state)


def test_bad_state():
    for kind in GENERATORS.values():
        state = kind(0).get_state()
        for bad in (state[:-1], state.astype(np.int64), b"state", np.zeros((2, 8), np.uint8)):
            with pytest.raises(UsageError, match="^set_state: got"):
                kind(1).set_state(bad)
    damaged = TorchGenerator(0).get_state()
    for position in (8, 12, 16, 28, 5052):  # left, seeded, next, a word's high half, a float normal
        copy = damaged.copy()
        copy[position] += 3
        with pytest.raises(UsageError, match="^set_state: these bytes"):
            TorchGenerator(1).set_state(copy)
    for position in (8 * 11, 8 * 12, 8 * 13 + 4):  # beyond the buffer, no flag, 32 bits
        copy = GENERATORS["numpy"](0).get_state()
        copy[position] += 5
        with pytest.raises(UsageError, match="^set_state: got"):
            GENERATORS["numpy"](1).set_state(copy)
    with pytest.raises(UsageError, match="multiple of 4"):
        PhiloxGenerator(0).set_state(np.array([0, 2], dtype="<u8").view(np.uint8))


@pytest.mark.parametrize(
    "bounds", [(1, 1), (2, 1), (0.0, 2), (0, True), (0, 2**63), (-(2**63) - 1, 0)]
)
def test_bad_randint(bounds):
    with pytest.raises(UsageError, match="^randint: got low"):
        TorchGenerator(0).randint(*bounds, 4)


@pytest.mark.parametrize("card", [(0, 1536), (1, 255), (1.5, 1536), (True, 1536)])
def test_bad_card(card):
    with pytest.raises(UsageError, match="^PhiloxGenerator: got"):
        PhiloxGenerator(0, multiprocessors=card[0], threads_per_multiprocessor=card[1])


def test_rand_stays_below_one():
    # A half type has so few digits that some of 5000 numbers would round up to 1.
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        numbers = TorchGenerator(8).rand(5000, dtype=dtype)
        assert numbers.min() >= 0 and numbers.max() < 1
    assert (TorchGenerator(8).rand(5000, dtype="bfloat16") == 0).any()


def test_a_batch_takes_from_one_generator_in_a_row():
    found = draw_noise((3, 4, 8, 8), "float32", TorchGenerator(1))
    np.testing.assert_array_equal(found, TorchGenerator(1).randn(3, 4, 8, 8))
    # A list of one counts as one generator for the whole batch, as in diffusers.
    np.testing.assert_array_equal(draw_noise((3, 4, 8, 8), "float32", [TorchGenerator(1)]), found)


def test_a_batch_takes_one_sample_from_each_of_several_generators():
    # With 3 x 3 samples of 9 numbers the pairs' kept second halves would show a wrong order.
    generators = [TorchGenerator(seed) for seed in (4, 5)]
    for _ in range(2):
        found = draw_noise((2, 1, 3, 3), "float64", generators)
    for sample, seed in zip(found, (4, 5)):
        alone = TorchGenerator(seed)
        alone.randn(1, 1, 3, 3, dtype="float64")
        np.testing.assert_array_equal(sample, alone.randn(1, 1, 3, 3, dtype="float64")[0])


@pytest.mark.parametrize("generator", [None, [], [TorchGenerator(0), TorchGenerator(1)]])
def test_bad_generators_for_a_batch(generator):
    with pytest.raises(UsageError, match="generator"):
        draw_noise((3, 4, 8, 8), "float32", generator)
