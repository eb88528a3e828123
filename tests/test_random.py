"""refsd.random against published numbers, frozen torch streams and independent formulations."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

import refsd.random.box_muller as box_muller
import refsd.random.philox as philox_module
import refsd.random.torch_cpu as torch_cpu
from refsd.half import HALVES, to_float32
from refsd.random import PhiloxGenerator, TorchGenerator
from refsd.random.arguments import to_dtype

# Written by torch 2.13.0; tests/parity/test_random.py makes torch produce the same file contents.
STREAMS = json.loads((Path(__file__).parent / "random_streams.json").read_text())

# seed 0, torch.randn(16), torch.randn(15), torch.randn(16, dtype=torch.float64), as printed in
# pytorch issue 79703.
PUBLISHED = {
    ("float32", 16): """
        -1.1258 -1.1524 -0.2506 -0.4339  0.8487  0.6920 -0.3160 -2.1152
         0.3223 -1.2633  0.3500  0.3081  0.1198  1.2377  1.1168 -0.2473""",
    ("float32", 15): """
         1.5410 -0.2934 -2.1788  0.5684 -1.0845 -1.3986  0.4033  0.8380
        -0.7193 -0.4033 -0.5966  0.1820 -0.8567  1.1006 -1.0712""",
    ("float64", 16): """
        -2.3104 -0.3733 -1.0608  0.9995 -0.8840 -1.2755 -0.6232 -0.8664
        -1.2956  1.5236  0.3237  2.0177  1.1357 -1.2269  0.0714  0.3380""",
}

# Seed 0, torch.randn(12, device="cuda"), as published with AUTOMATIC1111's rng_philox.py.
PUBLISHED_CUDA = [
    *(-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564),
    *(-0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497),
]

# The known answers for philox4x32-10 of Random123 1.14 (kat_vectors): counter, key, output.
PHILOX_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def published_vectors():
    for (dtype, count), text in PUBLISHED.items():
        expected = np.array(text.split(), dtype=np.float64)
        actual = TorchGenerator(0).randn(count, dtype=dtype)
        assert actual.dtype == dtype and actual.shape == (count,)
        # Printed to 4 decimals: half a unit of the last.
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=0.5001e-4, err_msg=f"{dtype} {count}"
        )


def frozen_streams():
    # float32 of small tensors is rounded from float64 by way of the C library: with another library
    # one number in 2^26 could differ, and there are some 200 of them.
    for stream in STREAMS["sha256"]:
        assert stream_sha256(stream) == stream["sha256"], stream


def stream_sha256(stream):
    generator = TorchGenerator(stream["seed"])
    total = hashlib.sha256()
    for name, *arguments in stream["calls"]:
        options = {} if name == "randint" else {"dtype": stream["dtype"]}
        numbers = getattr(generator, name)(*arguments, **options)
        wide = to_float32(numbers) if stream["dtype"] == "bfloat16" else numbers
        total.update(wide.tobytes())
    return total.hexdigest()


def frozen_float64():
    # No hash here: log, sin and cos are the C library's, and no two libraries agree in every last
    # bit. If each is within 1 ulp, two of them differ by 2 ulp in log, so by 1 in the radius, and
    # by 2 in the cosine; the roundings of the root and of the product add 1 each: 5 * 2^-52.
    for stream in STREAMS["float64"]:
        generator = TorchGenerator(stream["seed"])
        values = [generator.randn(shape, dtype="float64") for _, shape in stream["calls"]]
        np.testing.assert_allclose(
            np.concatenate(values), stream["values"], rtol=5 * 2**-52, atol=0
        )


def philox_known_answers():
    for counter, key, expected in PHILOX_ANSWERS:
        c = [int(word, 16) for word in counter.split()]
        k = [int(word, 16) for word in key.split()]
        subsequence = np.array([c[2] | c[3] << 32], dtype=np.uint64)
        bits = philox_module.philox(k[0] | k[1] << 32, c[0] | c[1] << 32, subsequence)
        assert " ".join(f"{word:08x}" for word in bits[:, 0]) == expected


def philox_published_vector():
    # The card's sine is off by 2^-21.41 at most (CUDA programming guide, table of intrinsics), and
    # its angle, taken in turns in float32, by half an ulp: 2 pi * 2^-25. The radius is at most
    # sqrt(2 * 33 * log 2) = 6.77 and carries three roundings of 2^-24 or less.
    radius = math.sqrt(2 * 33 * math.log(2))
    bound = radius * (2**-21.41 + 2 * math.pi * 2**-25 + 3 * 2**-24)
    actual = PhiloxGenerator(0).randn(12)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, PUBLISHED_CUDA, rtol=0, atol=bound)


def philox_threads_of_a_small_card():
    # The loop of torch's kernel, thread by thread, on a card of 2 x 256 threads.
    for dtype, lanes in (("float32", 4), ("float64", 2)):
        for count in (1, 255, 256, 257, 511, 513, 2048, 2049, 5000):
            generator = PhiloxGenerator(7, multiprocessors=2, threads_per_multiprocessor=511)
            first = generator.randn(count, dtype=dtype)
            second = generator.randn(count, dtype=dtype)
            expected, bound, position = threads_one_by_one(count, 0, lanes)
            assert (np.abs(first - expected) <= bound).all(), (dtype, count)
            expected, bound, _ = threads_one_by_one(count, position, lanes)
            assert (np.abs(second - expected) <= bound).all(), (dtype, count)


def threads_one_by_one(count, position, lanes):
    threads = 256 * min(2, math.ceil(count / 256))
    expected, bound = np.full(count, np.nan), np.full(count, np.nan)
    turns = 0
    for start in range(0, count, threads * lanes):
        columns = philox_module.philox(7, position + turns, np.arange(threads)).T.tolist()
        for thread, bits in enumerate(columns):
            normals = double_lanes(*bits) if lanes == 2 else single_lanes(*bits)
            for lane, (normal, error) in enumerate(normals):
                i = start + thread + lane * threads
                if i < count:
                    expected[i], bound[i] = normal, error
        turns += 1
    return expected, bound, position + turns


def single_lanes(a, b, c, d):
    return *pair_of_lanes(a, b, 32, 32, 2**-24), *pair_of_lanes(c, d, 32, 32, 2**-24)


def double_lanes(a, b, c, d):
    # Twice the bound, for these very lines are computed in float64 too.
    return pair_of_lanes(a ^ b << 21, c ^ d << 21, 53, 53, 2 * 2**-53)


def pair_of_lanes(x, y, x_bits, y_bits, half_ulp):
    radius = math.sqrt(-2 * math.log((x + 0.5) * 2**-x_bits))
    angle = 2 * math.pi * (y + 0.5) * 2**-y_bits
    # Two roundings of u, which log turns into an absolute error; one of the log, one of the root.
    # Four roundings of the angle (y, the constant twice, the sum), one of the sine, one of the
    # product.
    radius_error = 2 * half_ulp / radius + 2 * half_ulp * radius
    error = radius_error + radius * (2 * math.pi * 4 + 2) * half_ulp
    return (radius * math.sin(angle), error), (radius * math.cos(angle), error)


def halves_are_rounded_to_nearest_even():
    # Bit patterns of a float32 with both kinds of tie, and one step beside each.
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF818000, 0x7F7F7FFF])
    rounded = to_dtype(bits.astype(np.uint32).view(np.float32), "bfloat16").view(np.uint16)
    expected = [0x3F80, 0x3F82, 0x3F80, 0x3F81, 0xBF82, 0x7F7F]
    assert [hex(word) for word in rounded] == [hex(word) for word in expected]
    # A float64 just above a tie of float16: through float32 it becomes the tie, and goes to even.
    assert to_dtype(np.array([1 + 2**-11 + 2**-40]), "float16") == 1


TRUTHS = [
    published_vectors,
    frozen_streams,
    frozen_float64,
    philox_known_answers,
    philox_published_vector,
    philox_threads_of_a_small_card,
    halves_are_rounded_to_nearest_even,
]


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.__name__)
def test_truth(truth):
    truth()


# Mistakes: each replaces one name, and the truths must notice.


def uniform_of_53_bits(self, count, dtype):
    draws = self._draw64(count) & np.uint64(2**53 - 1)
    return (draws * 2.0**-53).astype("float64" if dtype == "float64" else "float32")


def uniform_of_high_bits(self, count, dtype):
    if dtype == "float64":
        return (self._draw64(count) >> np.uint64(11)) * 2.0**-53
    return (self._engine.draw(count) >> np.uint32(8)).astype(np.float32) * 2.0**-24


def blocks_without_tail_rule(self, count, dtype):
    transform = torch_cpu.box_muller_float64 if dtype == "float64" else torch_cpu.box_muller_float32
    padded = -(-count // 16) * 16
    return transform(self._uniform(padded, dtype).reshape(-1, 16)).ravel()[:count]


def blocks_that_draw_all(self, count, dtype):
    return BLOCKS(self, count, dtype if dtype == "float64" else "float32")


def pairs_that_forget(self, count):
    flat = PAIRS(self, count)
    self._cached = None
    return flat


def seed_without_sign(seed):
    return abs(seed)


def swapped_blocks(blocks):
    return BLOCK_TRANSFORM(np.roll(blocks, 8, axis=1))


def swapped_pairs(u1, u2):
    return PAIR_TRANSFORM(u2, u1)


def unfused(a, b, c):
    a, b, c = (np.asarray(operand, dtype=np.float32) for operand in (a, b, c))
    return a * b + c


def truncated(x, dtype):
    if dtype != "bfloat16":
        return to_dtype(x, dtype)
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(HALVES[dtype])


def cosine_first(bits):
    sin, cos = NORMAL_FLOAT32(bits).reshape(2, 2, -1).transpose(1, 0, 2)
    return np.stack([cos, sin], axis=1).reshape(bits.shape)


def philox_of_lanes_in_a_row(seed, position, subsequences):
    bits = PHILOX(seed, position, subsequences)
    return np.ascontiguousarray(bits.T).reshape(bits.shape)


def philox_at_the_start(seed, position, subsequences):
    return PHILOX(seed, 0, subsequences)


def randn_at_one_offset(self, *shape, dtype="float32"):
    out = PHILOX_RANDN(self, *shape, dtype=dtype)
    self._offset = 0
    return out


BLOCKS, PAIRS = TorchGenerator._blocks, TorchGenerator._pairs
BLOCK_TRANSFORM, PAIR_TRANSFORM = box_muller.box_muller_float32, box_muller.normal_pairs
NORMAL_FLOAT32, PHILOX = philox_module._normal_float32, philox_module.philox
PHILOX_RANDN = PhiloxGenerator.randn

MISTAKES = [
    (TorchGenerator, "_uniform", uniform_of_53_bits),
    (TorchGenerator, "_uniform", uniform_of_high_bits),
    (TorchGenerator, "_blocks", blocks_without_tail_rule),
    (TorchGenerator, "_blocks", blocks_that_draw_all),
    (TorchGenerator, "_pairs", pairs_that_forget),
    (torch_cpu, "check_seed", seed_without_sign),
    (torch_cpu, "box_muller_float32", swapped_blocks),
    (torch_cpu, "normal_pairs", swapped_pairs),
    (torch_cpu, "to_dtype", truncated),
    (box_muller, "fma", unfused),
    (philox_module, "_normal_float32", cosine_first),
    (philox_module, "philox", philox_of_lanes_in_a_row),
    (philox_module, "philox", philox_at_the_start),
    (PhiloxGenerator, "randn", randn_at_one_offset),
    (philox_module, "_KEY_STEPS", (0x9E3779B9, 0x9E3779B9)),
]


@pytest.mark.parametrize(
    "owner, name, mistake", MISTAKES, ids=[getattr(m, "__name__", n) for _, n, m in MISTAKES]
)
def test_mistake_is_noticed(monkeypatch, owner, name, mistake):
    monkeypatch.setattr(owner, name, mistake)
    with pytest.raises(AssertionError):
        for truth in TRUTHS:
            truth()
