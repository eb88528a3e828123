"""Linear layers in lockstep: every variant that may be launched, on ragged tiles."""

import math

import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from op_table import normal

from refsd.half import HALVES
from refsd.numba_ops.cuda import linear, linear_float32, linear_tiles, lockstep, meaning, tiling
from refsd.numba_ops.cuda.device import current
from refsd.numba_ops.cuda.plan import Choice
from refsd.ops.linear import linear as definition

TILED = [(f, constants) for f in (linear_tiles.ampere, linear_tiles.turing, linear_tiles.hopper,
                                  linear_float32.registers) for constants in f.each]
SMALL = [(linear.plain, (dtype,)) for dtype in DTYPES] + [
    (f, constants) for f, constants in TILED
    if constants[1:] in ((64, 64), (16, 64, 16, 16), (64, 80))]
NAMES = [f"{f.name}-{'-'.join(map(str, c))}" for f, c in TILED]
SMALL_NAMES = [f"{f.name}-{c[0]}" for f, c in SMALL]


@pytest.fixture
def force(monkeypatch):
    """force(factory, constants, pieces): what linear launches, whatever it would choose."""
    def forced(factory, constants, pieces=1):
        monkeypatch.setattr(linear, "choose_linear", lambda *_: Choice(factory, constants, "",
                                                                       pieces))
    return forced


def layer(M, N, K):
    return [normal(M if isinstance(M, tuple) else (M, K), 1), normal((N, K), 2), normal((N,), 3)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_kernel(dtype, order):
    for x, N in [((2, 3, 19), 35), ((17,), 5), ((33, 1), 1), ((3, 0), 4), ((0, 3), 2)]:
        agree("linear", layer(x, N, x[-1]), {}, dtype)
    agree("linear", layer(5, 3, 7)[:2], {}, dtype)


@pytest.mark.parametrize("factory, constants", TILED, ids=NAMES)
def test_each_tile(factory, constants, force, monkeypatch):
    """The last rows, columns and products of a block are not there."""
    monkeypatch.setattr(lockstep, "order", 1 if constants[0] == "float16" else -1)
    monkeypatch.setattr(meaning, "tally", {"ldmatrix": 0, "conflicts": 0})
    force(factory, constants)
    dtype, rows, columns = constants[:3]
    agree("linear", layer(rows - 8, columns - 8, 40 if dtype != "float32" else 12), {}, dtype)
    assert bool(meaning.tally["ldmatrix"]) == (len(constants) == 5)
    assert not meaning.tally["conflicts"]


@pytest.mark.parametrize("factory, constants", SMALL, ids=SMALL_NAMES)
def test_several_blocks(factory, constants, force):
    """Without a bias too, and rows that lie apart."""
    force(factory, constants)
    x, weight, bias = layer((2, 9, 24), 72, 24)
    apart = normal((2, 9, 32), 1)[:, :, :24]
    agree("linear", [x, weight, bias], {}, constants[0])
    agree("linear", [apart, weight], {}, constants[0])


@pytest.mark.parametrize("factory, constants", SMALL[4:], ids=SMALL_NAMES[4:])
@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_of_the_sum(factory, constants, pieces, force, order):
    """Added in order; the third of three pieces of four stages has none."""
    force(factory, constants, pieces)
    K = 28 if constants[0] == "float32" else 248 if factory is linear_tiles.hopper else 120
    agree("linear", layer(9, 72, K), {}, constants[0])
    agree("linear", layer(9, 16, K)[:2], {}, constants[0])


@pytest.mark.parametrize("factory, constants", SMALL, ids=SMALL_NAMES)
def test_what_is_not_finite(factory, constants, force):
    """Small integers, whose sums are exact, and what is not finite: the reference's results."""
    force(factory, constants)
    x, weight, bias = (np.rint(a) for a in layer(35, 40, 24))
    x[3, 5], x[4, 2], weight[1, 7], weight[39, 23], bias[6] = (
        math.nan, math.inf, -math.inf, math.nan, math.inf)
    kind = HALVES.get(constants[0], constants[0])
    with np.errstate(all="ignore"):
        wanted = definition(x, weight, bias).astype(kind)
    y = run("linear", [a.astype(kind) for a in (x, weight, bias)], {})
    np.testing.assert_array_equal(y.astype(np.float64), wanted.astype(np.float64))


@pytest.mark.parametrize("dtype, capability, shape", [
    ("float16", 80, (9, 64, 40)), ("float16", 75, (9, 64, 40)), ("float32", 80, (40, 16, 12)),
    ("bfloat16", 80, (1, 16, 64))])
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(dtype, capability, shape, monkeypatch):
    """By another tile, or the same sum in pieces."""
    monkeypatch.setitem(tiling.MULTIPROCESSORS, capability, 1)
    monkeypatch.setattr(tiling, "SHORTEST", 32)
    current().capability = capability
    L, N, K = shape
    alone, batch = (linear.choose_linear((n, L, K), (N, K), dtype, capability) for n in (1, 3))
    assert alone.pieces == batch.pieces
    assert alone.pieces > 1 or alone.constants != batch.constants
    kind = HALVES.get(dtype, dtype)
    x, weight, bias = (a.astype(kind) for a in layer((3, L, K), N, K))
    together = run("linear", [x, weight, bias], {})
    for i in range(3):
        alone = run("linear", [x[i:i + 1], weight, bias], {})
        assert alone.tobytes() == together[i].tobytes()


def test_many_stages_of_warpgroups(force, order):
    """More than the four that shared memory holds, the last one ragged."""
    force(linear_tiles.hopper, ("float16", 64, 80))
    agree("linear", layer(20, 88, 392), {}, "float16")


def test_pieces_do_not_depend_on_the_batch():
    for N, K in [(320, 320), (1280, 1280), (1280, 5120), (640, 768)]:
        for L in (1, 64, 77, 256, 4096):
            for capability in (75, 80, 86, 89, 90):
                of_batches = {linear.choose_linear((B, L, K), (N, K), "float16", capability).pieces
                              for B in (1, 2, 3, 8, 64)}
                assert len(of_batches) == 1


def test_what_is_chosen():
    """By shapes, dtype and capability."""
    def chosen(x, N, dtype, capability):
        c = linear.choose_linear(x, (N, x[-1]), dtype, capability)
        return c.factory, c.constants[1:3], c.pieces

    assert chosen((2, 4096, 320), 320, "float16", 80) == (linear_tiles.ampere, (128, 80), 1)
    assert chosen((2, 4096, 320), 320, "float16", 100) == (linear_tiles.ampere, (128, 160), 1)
    assert chosen((2, 4096, 320), 2560, "float16", 80) == (linear_tiles.ampere, (128, 128), 1)
    assert chosen((2, 4096, 320), 320, "float16", 75)[0] is linear_tiles.turing
    assert chosen((2, 4096, 320), 320, "bfloat16", 75)[0] is linear.plain
    assert chosen((2, 4096, 320), 320, "float64", 80)[0] is linear.plain
    assert chosen((2, 4096, 324), 320, "float16", 80)[0] is linear.plain
    assert chosen((2, 4096, 324), 324, "float32", 80)[0] is linear_float32.registers
    assert chosen((2, 4096, 320), 320, "float16", 90) == (linear_tiles.hopper, (128, 160), 1)
    assert chosen((2, 63, 768), 320, "float16", 90)[0] is linear_tiles.ampere
    assert chosen((2, 1280), 1280, "bfloat16", 80) == (linear_tiles.ampere, (16, 64), 5)
