"""refsd.random.TorchGenerator against torch 2.13.0's CPU generator: 0 ulp, everywhere."""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
import torchsde

from refsd.half import HALVES, to_float32
from refsd.random import TorchGenerator
from refsd.random.box_muller import box_muller_float32
from refsd.random.brownian import BrownianPath
from refsd.random.torch_cpu import _STATE
from refsd.random.variation import varied_noise

SEEDS = [0, 1, 42, -1, 2**32, 2**63, 2**64 - 1, 123456789, -(2**63)]
SIZES = [*range(18), 31, 32, 33, 100, 623, 624, 625, 16384, 65537]
SHAPES = [(), (1, 4, 64, 64), (2, 4, 24, 40), (3, 5), (2, 3, 5), (7, 0, 2)]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
STREAMS = json.loads((Path(__file__).parents[1] / "random_streams.json").read_text())


@pytest.mark.filterwarnings("ignore:Should have t")
@pytest.mark.parametrize("dtype", DTYPES)
def test_brownian_paths_are_torchsdes(dtype):
    """At the sigmas of SD 1, which are float32 and asked for in the order of a run."""
    low, high = (float(np.float32(sigma)) for sigma in (0.0291675, 14.614647))
    sigmas = np.float32(np.geomspace(high, low, 7))
    for seed in (0, 7, 2**40 + 3, 2**63 - 1):
        theirs = torchsde.BrownianInterval(
            t0=low, t1=high, size=(2, 4, 3, 5), dtype=getattr(torch, dtype), entropy=seed,
            tol=1e-6, pool_size=24, halfway_tree=True)
        ours = BrownianPath(low, high, (2, 4, 3, 5), dtype, seed)
        for a, b in [*zip(sigmas[1:], sigmas), (low, high), (0.5, 1e3)]:
            expected, found = theirs(float(a), float(b)), ours.increment(a, b)
            assert np.isfinite(np.float64(found)).all() and str(found.dtype) == dtype
            assert np.array_equal(expected.double().numpy(), np.float64(found)), (seed, a, b)


def test_this_machine_takes_the_path_that_the_contract_names():
    # Elsewhere torch itself gives other numbers, and the comparisons below would say so less well.
    assert platform.machine() in ("x86_64", "AMD64")
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert torch.__version__.split("+")[0] == "2.13.0"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["randn", "rand", "exponential"])
def test_every_size_from_a_fresh_generator(method, dtype):
    for seed in SEEDS:
        for size in [*SIZES, *SHAPES]:
            theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
            assert_same(method, size, dtype, theirs, ours)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_calls(seed):
    random = np.random.default_rng(seed % 2**64)
    theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
    for _ in range(200):
        method = random.choice(["randn", "randn", "randn", "rand", "exponential"])
        size = int(random.choice([1, 2, 3, 5, 15, 16, 17, 40, 400, 1024]))
        assert_same(method, size, random.choice(DTYPES), theirs, ours)


def test_a_hundred_thousand_small_tensors():
    # Pairs go through the C library's log1p, sin and cos.
    theirs, ours = torch.Generator().manual_seed(11), TorchGenerator(11)
    for _ in range(7000):
        expected = torch.randn(15, generator=theirs, dtype=torch.float64).numpy()
        actual = ours.randn(15, dtype="float64")
        assert expected.tobytes() == actual.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_numbers(dtype):
    for seed in (1000, 1001):
        theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
        assert_same("randn", 2**20, dtype, theirs, ours)


def test_randint():
    for seed in SEEDS:
        theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
        for low, high in [(0, 1000), (-7, 9), (0, 2**28 - 1), (0, 2**28), (-(2**63), 2**63 - 1)]:
            expected = torch.randint(low, high, (3, 50), generator=theirs).numpy()
            np.testing.assert_array_equal(ours.randint(low, high, (3, 50)), expected)
            assert_same_state(theirs, ours)


def test_states_go_both_ways():
    for sizes in ([], [3], [16], [311, 2], [624], [312, 3]):
        theirs, ours = torch.Generator().manual_seed(5), TorchGenerator(5)
        for size in sizes:
            ours.randn(size)
        theirs.set_state(torch.from_numpy(ours.get_state()))
        assert_same("randn", 3, "float32", theirs, ours)
        assert_same("randn", 33, "float32", theirs, ours)

        other = TorchGenerator(6).set_state(theirs.get_state())
        assert other.seed == theirs.initial_seed() == 5
        assert_same("randn", 7, "float64", theirs, other)


def test_seeds_are_taken_and_refused_as_in_torch():
    for seed in SEEDS:
        assert TorchGenerator(seed).seed == torch.Generator().manual_seed(seed).initial_seed()
    for seed in (2**64, -(2**63) - 1, 1.0, "1", True):
        with pytest.raises((RuntimeError, ValueError)):
            torch.Generator().manual_seed(seed)
        with pytest.raises(ValueError):
            TorchGenerator(seed)


def test_torch_writes_the_frozen_streams():
    for stream in STREAMS["sha256"]:
        generator = torch.Generator().manual_seed(stream["seed"])
        total = hashlib.sha256()
        for call in stream["calls"]:
            total.update(as_numpy(torch_call(call, stream["dtype"], generator)).tobytes())
        assert total.hexdigest() == stream["sha256"], stream
    for stream in STREAMS["float64"]:
        generator = torch.Generator().manual_seed(stream["seed"])
        numbers = [torch_call(call, "float64", generator) for call in stream["calls"]]
        # The frozen values are one C library's; test_random.py derives this tolerance.
        expected = torch.cat(numbers).numpy()
        np.testing.assert_allclose(stream["values"], expected, rtol=5 * 2**-52, atol=0)


def test_all_radii_and_all_angles_of_float32():
    """A proof by exhaustion for blocks of float32: 2^24 values of u1, and as many of u2.

    A generator's state can be written so that it yields any wanted draws. With u2 = 0 the first
    half of a block is the radius itself; with a u1 whose radius is exactly 1, the block is cosine
    and sine. Every other number is the rounded product of a radius and one of those.
    """
    draws = np.arange(2**24, dtype=np.uint32).reshape(-1, 8)
    radii = assert_same_blocks(np.hstack([draws, np.zeros_like(draws)]))[:, :8].ravel()
    one = np.flatnonzero(radii == 1)[0]
    assert_same_blocks(np.hstack([np.full_like(draws, one), draws]))


def assert_same_blocks(draws):
    ours = box_muller_float32(draws.astype(np.float32) * np.float32(2**-24))
    theirs = np.empty_like(ours)
    generator, tensor = torch.Generator(), torch.empty(38 * 16)
    state = np.zeros((), dtype=_STATE)
    state["seeded"], state["next"], state["left"] = 1, 1, 624  # word 0 is spent, 623 are not
    words = untempered(draws)
    for start in range(0, len(draws), 38):
        block = words[start : start + 38].ravel()
        state["words"][1 : 1 + len(block)] = block
        generator.set_state(torch.frombuffer(bytearray(state.tobytes()), dtype=torch.uint8))
        normals = tensor[: len(block)].normal_(generator=generator)
        theirs[start : start + 38] = normals.numpy().reshape(-1, 16)
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()
    return ours


def untempered(y):
    """The state words that the Mersenne Twister turns into these draws."""
    y = y ^ (y >> np.uint32(18))
    y = y ^ ((y << np.uint32(15)) & np.uint32(0xEFC60000))
    x = y
    for _ in range(4):  # 7 more correct bits each time
        x = y ^ ((x << np.uint32(7)) & np.uint32(0x9D2C5680))
    z = x
    for _ in range(2):  # 11 more
        z = x ^ (z >> np.uint32(11))
    return z


def assert_same(method, size, dtype, theirs, ours):
    expected = as_numpy(torch_call([method, size], dtype, theirs))
    actual = getattr(ours, method)(size, dtype=dtype)
    if dtype == "bfloat16":
        assert actual.dtype == HALVES[dtype]
        actual = to_float32(actual)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes(), (method, size, dtype, ours.seed)
    assert_same_state(theirs, ours)


def assert_same_state(theirs, ours):
    np.testing.assert_array_equal(ours.get_state(), theirs.get_state().numpy())


def torch_call(call, dtype, generator):
    method, *arguments = call
    if method == "randint":
        return torch.randint(*arguments, generator=generator)
    options = {"generator": generator, "dtype": getattr(torch, dtype)}
    if method == "exponential":
        return torch.empty(arguments[0], dtype=options.pop("dtype")).exponential_(**options)
    return getattr(torch, method)(arguments[0], **options)


def as_numpy(tensor):
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_variations_are_a1111s(share):
    """The formula of its modules/rng.py in torch, which takes the angles in float32.

    A cosine of 64 products is off by (64 + 6) 2^-24 at most, relative to the norms, where it is
    below 0.8 the angle by 1/0.6 of that, and a weight by twice the angle's; noise is below 6.
    """
    low, high = (torch.randn((4, 64, 48), generator=torch.Generator().manual_seed(seed))
                 for seed in (3, 4))
    cosine = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1)
    assert cosine.abs().max() < 0.8
    angle = cosine.acos()
    weights = [torch.sin(part * angle) / angle.sin() for part in (1 - share, share)]
    theirs = weights[0].unsqueeze(1) * low + weights[1].unsqueeze(1) * high
    ours = varied_noise((1, 4, 64, 48), TorchGenerator(3), variation_seed=4, strength=share)
    bound = 2 * 6 * (2 * 70 * 2.0**-24 / 0.6 + 4 * 2.0**-24)
    np.testing.assert_allclose(ours[0], theirs.numpy(), rtol=0, atol=bound)
