"""Convolution in lockstep: the plain kernel, the tiles, and which of them is taken."""

import itertools
import math

import numpy as np
import pytest
from cuda_agreement import DTYPES, agree, run
from numba_agreement import cast, truth_of
from op_table import normal

from refsd import functional as F
from refsd import registry
from refsd.algorithms import explain_conv2d
from refsd.numba_ops.cuda import conv, conv_float32, conv_tiles, device, meaning, tiling
from refsd.numba_ops.cuda.array import to_device
from refsd.numba_ops.cuda.plan import Choice

WINDOWS = [  # x, weight, options
    ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": 1}),
    ((1, 4, 6, 7), (6, 2, 3, 2), {"groups": 2, "stride": (2, 1), "padding": ((0, 1), (2, 0))}),
    ((2, 6, 5, 5), (6, 1, 3, 3), {"groups": 6, "padding": 2, "dilation": (1, 2), "stride": 2}),
    ((1, 2, 2, 9), (3, 2, 2, 5), {"dilation": (1, 2)}),
    ((1, 3, 0, 2), (2, 3, 3, 3), {"padding": 2}),
]
OF_TILES = [  # channels that end within a stage, or need zeros behind them
    ((2, 24, 4, 5), (8, 24, 3, 1), {"padding": (1, 0)}),
    ((1, 4, 7, 6), (4, 4, 3, 3), {"padding": ((0, 1), (2, 0)), "stride": (2, 1)}),
    ((1, 5, 9, 9), (12, 5, 2, 2), {"dilation": (1, 2), "stride": 2}),
    ((1, 72, 2, 3), (8, 72, 1, 2), {}),
    ((1, 3, 0, 2), (4, 3, 3, 3), {"padding": 2}),
]
KINDS = [("float32", 80), ("float16", 75), ("float16", 80), ("bfloat16", 80)]


def case(x, weight, options, bias=True):
    """Arguments and options; by no other algorithm than the formula's, whose bound holds then."""
    args = [normal(x, 1), normal(weight, 2), *[normal(weight[:1], 3)] * bias]
    return args, {"algorithm": "im2col", **options}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_kernel(dtype, monkeypatch):
    choice = Choice(conv.conv2d_plain, (dtype,), "it is tested")
    monkeypatch.setattr(conv, "choose_conv2d", lambda *_: choice)
    for i, (x, weight, options) in enumerate(WINDOWS):
        agree("conv2d", *case(x, weight, options, bias=i != 3), dtype)


@pytest.mark.parametrize("dtype, capability", KINDS[:3])
def test_windows_of_tiles(dtype, capability, order):
    device.current().capability = capability
    for i, (x, weight, options) in enumerate(OF_TILES):
        if dtype == "float32":  # whose stages and pieces are of half as many
            x, weight = ((s[0], -(-s[1] // 2), *s[2:]) for s in (x, weight))
        assert chosen((1, weight[0], 8, 8), weight, dtype).factory is not conv.conv2d_plain
        agree("conv2d", *case(x, weight, options, bias=i != 3), dtype)


def chosen(result, weight, dtype, groups=1):
    return conv.choose_conv2d(result, weight, groups, dtype, device.current().capability)


FACTORIES = {conv_float32.conv2d_float32: 80, conv_tiles.conv2d_halves: 80,
             conv_tiles.conv2d_halves_turing: 75}


@pytest.mark.parametrize("factory, constants", [(f, c) for f in FACTORIES for c in f.each])
def test_every_tile(factory, constants, monkeypatch):
    """More pixels than a tile has, ragged; rows of its loads meet all banks."""
    monkeypatch.setattr(meaning, "tally", {"ldmatrix": 0, "conflicts": 0})
    choice = Choice(factory, constants, "it is tested")
    monkeypatch.setattr(conv, "choose_conv2d", lambda *_: choice)
    dtype, rows, columns = constants[:3]
    x, weight = (1, 8, rows // 11 + 1, 11), (columns - 12, 8, 1, 3)
    agree("conv2d", *case(x, weight, {"padding": (0, 1)}), dtype)
    assert bool(meaning.tally["ldmatrix"]) == (dtype != "float32")
    assert meaning.tally["conflicts"] == 0


def test_tiles_of_stable_diffusion():
    """Two images of 512 x 512: one wave of blocks on an H100, however small the images are."""
    device.current().capability = 90
    for size, channels, tile, pieces in [
            (64, 320, (128, 160), 1), (32, 640, (128, 80), 1), (16, 1280, (128, 80), 2),
            (8, 1280, (128, 80), 8)]:
        choice = chosen((2, channels, size, size), (channels, channels, 3, 3), "float16")
        assert (choice.constants[1:3], choice.pieces) == (tile, pieces)
        blocks = -(-2 * size**2 // tile[0]) * (channels // tile[1]) * pieces
        assert f"{blocks} blocks" in choice.why and 128 <= blocks <= 132


def test_no_other_tiles_are_compiled():
    """Those that are chosen are those that the gate knows, and each is."""
    taken = {}
    for (dtype, capability), size, O in itertools.product(
            [*KINDS, ("bfloat16", 90), ("bfloat16", 75), ("float64", 80)], (8, 16, 32, 64, 128),
            (4, 80, 128, 256, 320, 640, 1280)):
        choice = conv.choose_conv2d((2, O, size, size), (O, 320, 3, 3), 1, dtype, capability)
        taken.setdefault(choice.factory, set()).add(choice.constants)
    for factory in FACTORIES:
        assert taken[factory] == set(factory.each), factory.name


@pytest.mark.parametrize("dtype, capability", KINDS)
def test_pieces_of_a_sum(dtype, capability, monkeypatch):
    """The last piece is shorter or empty, and pieces begin within a tap; with a bias and without.
    """
    C, shortest = (8, 10) if dtype == "float32" else (24, 40)
    monkeypatch.setattr(tiling, "SHORTEST", shortest)
    device.current().capability = capability
    assert chosen((1, 12, 4, 5), (12, C, 2, 2), dtype).pieces > 1
    for bias in (True, False):
        agree("conv2d", *case((1, C, 3, 4), (12, C, 2, 2), {"padding": 1}, bias), dtype)


@pytest.mark.parametrize("dtype, capability", KINDS[:3])
def test_an_image_alone_and_in_a_batch(dtype, capability, monkeypatch):
    """Same bits, whether sums are made in pieces or not."""
    device.current().capability = capability
    for shortest in (20, tiling.SHORTEST):
        monkeypatch.setattr(tiling, "SHORTEST", shortest)
        args, options = case((2, 16, 3, 5), (8, 16, 3, 1), {})
        args = [cast(a, dtype) for a in args]
        together = run("conv2d", args, options)
        alone = run("conv2d", [args[0][1:2], *args[1:]], options)
        assert (together[1:2] == alone).all()


def test_one_pixel_each_is_a_linear_layer():
    """1 x 1 kernels of all pixels; a stride or padding makes windows of them."""
    why = explain_conv2d(*case((2, 4, 3, 5), (8, 4, 1, 1), {})[0][:2], backend="cuda").why
    assert why.startswith("linear_float32.registers, tiles of 64 x 64")
    for options in ({}, {"stride": 2}, {"padding": ((0, 0), (1, 0))}):
        agree("conv2d", *case((2, 4, 3, 5), (8, 4, 1, 1), options))
    agree("conv2d", *case((1, 4, 1, 1), (8, 4, 1, 1), {"padding": 1, "stride": 3}))


def test_any_order_in_memory():
    args, options = case(*WINDOWS[0])
    assert (run("conv2d", args, options, images=None) == run("conv2d", args, options)).all()


def test_arrays_that_begin_anywhere():
    """Sixteen bytes are read at once where they lie on sixteen: of others copies are."""
    bias = normal((12,), 3)
    args = [to_device(a) for a in (normal((17, 8), 1), normal((8, 8), 2), bias)]
    with registry.use("cuda"):
        x, weight = args[0].reshape(136), args[1].reshape(8, 8, 1, 1)
        x = x[2:130].reshape(16, 8)
        got = F.linear(x[:4], args[1], args[2][3:11]).numpy()
        wanted = F.linear(to_device(x.numpy()[:4]), args[1], to_device(bias[3:11])).numpy()
        np.testing.assert_array_equal(got, wanted)
        x = x.reshape(2, 2, 4, 8).transpose((0, 3, 1, 2))
        got = F.conv2d(x, weight, args[2][3:11], padding=1).numpy()
        wanted = F.conv2d(to_device(x.numpy()), weight, to_device(bias[3:11]), padding=1).numpy()
        np.testing.assert_array_equal(got, wanted)


def test_algorithms_by_name():
    """Whatever is asked for, the products of the formula are added up."""
    args = [normal((1, 3, 5, 4), 1), normal((3, 3, 3, 3), 2)]
    first = run("conv2d", args, {"padding": 1})
    for name in ("winograd2", "winograd4", "fft"):
        why = explain_conv2d(*args, backend="cuda", padding=1, algorithm=name)
        assert (why.algorithm, why.why.split(",")[0]) == ("im2col", "conv.conv2d_plain")
        assert (run("conv2d", args, {"padding": 1, "algorithm": name}) == first).all()


@pytest.mark.parametrize("dtype, capability", [*KINDS, ("bfloat16", 75), ("float64", 80)])
def test_spoilt_numbers(dtype, capability):
    """Zeros around an image times an infinite weight are NaN, as in the reference.

    The rest is small integers, whose sums are exact.
    """
    device.current().capability = capability
    args, options = case((1, 2, 4, 4), (4, 2, 3, 3), {"padding": 1})
    args = [np.rint(a) for a in args]
    args[0][0, 1, 2, 1], args[1][1, 0, 0, 1], args[2][2] = math.nan, math.inf, -math.inf
    args = [cast(a, dtype) for a in args]
    with np.errstate(invalid="ignore"):
        truth = truth_of("conv2d", args, options)[0]
    np.testing.assert_array_equal(run("conv2d", args, options).astype("float64"), truth)
