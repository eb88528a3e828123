"""Tiles: their products as Intel's manual defines them, from AMX itself and emulated."""

import numba
import numpy as np
import pytest
from numba.core.codegen import get_host_cpu_features

from refsd.errors import UsageError
from refsd.numba_ops import amx

KINDS = ["emulated", "amx"]


@pytest.fixture(scope="module", params=KINDS)
def tiles(request):
    """What multiplies here, compiled anew: no cache is asked."""
    before = amx.EMULATED
    amx.EMULATED = request.param == "emulated"
    try:
        if not amx.EMULATED:
            features = get_host_cpu_features().split(",")
            if "+amx-bf16" not in features or "+amx-int8" not in features:
                pytest.skip("no AMX-BF16 and AMX-INT8 here: only emulated tiles are tested")
            if amx.refused():
                pytest.skip(f"no tiles: {amx.refused()}")
        yield {name: _compiled(add) for name, add in (("pairs", amx.add_pairs),
                                                      ("quads", amx.add_quads))}
    finally:
        amx.EMULATED = before


def _compiled(add):
    """Two products that share a right tile, and a sum of its own for each; the others are used."""
    @numba.njit
    def both(a, b, c, c_at, c_step):
        t = amx.begin()
        amx.load(t, 0, c, c_at, c_step)
        amx.zero(t, 3)
        amx.load(t, 4, a, 0, 128)
        amx.load(t, 5, a, 64, 128)
        amx.load(t, 7, b, 0, 64)
        add(t, 0, 4, 7)
        add(t, 3, 5, 7)
        amx.store(t, 0, c, c_at, c_step)
        amx.store(t, 3, c, c_at + 64, c_step)
        amx.end(t)

    return both


def multiplied(both, a, b, c):
    """c + a0 b and a1 b, of tiles side by side in a and c; what lies around c stays as it is."""
    memory = np.full((18, 48), 7, c.dtype)
    memory[1:17, 8:24] = c
    both(a.reshape(-1), b.reshape(-1), memory.reshape(-1), 4 * (48 + 8), 4 * 48)
    rest = memory.copy()
    rest[1:17, 8:40] = 7
    assert (rest == 7).all()
    return memory[1:17, 8:24], memory[1:17, 24:40]


def flushed(x):
    """x, but 0 of its sign where it is subnormal."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def widened(bits):
    return flushed((bits.astype(np.uint32) << 16).view(np.float32))


def manual(a, b, c):
    """TDPBF16PS as Intel's manual has it.   (16, 32), (32, 16) as bits, (16, 16)"""
    a, b = widened(a), widened(b)
    sums = np.zeros((2, 16, 16), np.float32)
    a, b = a.astype(np.float64), b.astype(np.float64)  # in which a product and a sum are exact
    for k in range(32):
        sums[k % 2] = flushed((sums[k % 2] + a[:, k, None] * b[k]).astype(np.float32))
    return flushed(flushed(c) + flushed(sums[0] + sums[1]))


def interleaved(b, rows):
    """The right tile of a matrix (16 rows, 16): so many adjacent rows in one."""
    return np.ascontiguousarray(b.reshape(16, rows, 16).swapaxes(1, 2))


def bfloat16(rng, shape, low=-3, high=3):
    """Bits of numbers of so many decades, of both signs."""
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(low, high, shape)
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


SPECIAL = np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 1, 0x8001, 0x007F, 0x0080, 0x8080, 0x7F7F,
                    0x3F80], np.uint16)  # both zeros, infinities, NaN, subnormals, extremes, 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", ["usual", "wide", "small", "special"])
def test_pairs_of_bfloat16(tiles, case):
    rng = np.random.default_rng(7)
    low, high = {"wide": (-30, 30), "small": (-22, -17)}.get(case, (-3, 3))
    for _ in range(20):
        a, b = bfloat16(rng, (16, 64), low, high), bfloat16(rng, (32, 16), low, high)
        c = rng.standard_normal((16, 16)).astype(np.float32)
        if case == "small":
            c *= np.float32(1e-38)
        if case == "special":
            for x in (a, b):
                at = rng.random(x.shape) < 0.02
                x[at] = rng.choice(SPECIAL, at.sum())
        found = multiplied(tiles["pairs"], a, interleaved(b, 2), c)
        nothing = np.zeros_like(c)
        for got, wanted in zip(found, (manual(a[:, :32], b, c), manual(a[:, 32:], b, nothing))):
            np.testing.assert_array_equal(got, wanted)
            assert (np.signbit(got) == np.signbit(wanted))[~np.isnan(wanted)].all()


def test_even_and_odd_are_summed_apart():
    """Else the definition of the tests above could not tell."""
    rng = np.random.default_rng(1)
    a, b = bfloat16(rng, (16, 32)), bfloat16(rng, (32, 16))
    c = np.zeros((16, 16), np.float32)
    in_order = c.copy()
    for k in range(32):
        in_order += widened(a)[:, k, None] * widened(b)[k]
    assert (in_order != manual(a, b, c)).any()


def test_quads_of_bytes(tiles):
    """Signed by unsigned, exact, and sums that wrap around."""
    rng = np.random.default_rng(2)
    a = rng.integers(-128, 128, (16, 128)).astype(np.int8)
    b = rng.integers(0, 256, (64, 16)).astype(np.uint8)
    a[0], b[:, 0] = -128, 255
    for c in (rng.integers(-1000, 1000, (16, 16)), np.full((16, 16), -2**31), np.full((16, 16),
                                                                                     2**31 - 1)):
        c = c.astype(np.int32)
        found = multiplied(tiles["quads"], a, interleaved(b, 4), c)
        products = [x.astype(np.int64) @ b.astype(np.int64) for x in (a[:, :64], a[:, 64:])]
        np.testing.assert_array_equal(found[0], (c + products[0]).astype(np.int32))
        np.testing.assert_array_equal(found[1], products[1])


def test_a_number_of_a_tile_is_written_in_the_code():
    @numba.njit
    def indirect(n):
        t = amx.begin()
        amx.zero(t, n)
        amx.end(t)

    with pytest.raises(numba.TypingError):
        indirect(np.int64(1))


@pytest.mark.parametrize("value, emulated", [(None, False), ("", False), ("emulated", True),
                                             ("1", None), ("amx", None)])
def test_what_multiplies_is_chosen(monkeypatch, value, emulated):
    monkeypatch.delenv("REFSD_TILES", raising=False)
    if value is not None:
        monkeypatch.setenv("REFSD_TILES", value)
    if emulated is None:
        with pytest.raises(UsageError, match=f"REFSD_TILES is '{value}'; give emulated, or unset"):
            amx._emulated()
    else:
        assert amx._emulated() is emulated


@pytest.mark.parametrize("emulated, system, machine, answer, said", [
    (True, "win32", "AMD64", 1, ""),
    (False, "darwin", "x86_64", 0, "only Linux is asked for tiles so far"),
    (False, "linux", "aarch64", 0, "only Linux is asked for tiles so far"),
    (False, "linux", "x86_64", -1, "Linux does not let this process have them"),
    (False, "linux", "x86_64", 0, ""),
])
def test_permission(monkeypatch, emulated, system, machine, answer, said):
    calls = []

    class Library:
        def syscall(self, *numbers):
            calls.append(numbers)
            return answer

    monkeypatch.setattr(amx, "EMULATED", emulated)
    monkeypatch.setattr(amx.sys, "platform", system)
    monkeypatch.setattr(amx.platform, "machine", lambda: machine)
    monkeypatch.setattr(amx.ctypes, "CDLL", lambda name: Library())
    assert amx.refused.__wrapped__() == said
    asked = not emulated and (system, machine) == ("linux", "x86_64")
    assert calls == [(158, 0x1023, 18)] * asked


def test_the_configuration_is_eight_whole_tiles():
    found = bytes(amx._configuration())
    assert len(found) == 64 and found[:16] == bytes([1]) + bytes(15)
    assert np.frombuffer(found[16:32], np.uint16).tolist() == [64] * 8
    assert found[32:48] == bytes(16) and found[48:56] == bytes([16]) * 8 and found[56:] == bytes(8)
