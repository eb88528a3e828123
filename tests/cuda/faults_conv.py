"""Faults in convolution: where windows lie, how stages go on, what is stored where."""

from unittest import mock

import test_conv
from cuda_agreement import agree
from faults import Fault
from test_conv import WINDOWS, case

from refsd.numba_ops.cuda import conv, device, meaning, tiling


def plain():
    """Windows of all kinds, a thread an output."""
    choice = conv.Choice(conv.conv2d_plain, ("float32",), "it is tested")
    with mock.patch.object(conv, "choose_conv2d", lambda *_: choice):
        for i in (0, 1):
            agree("conv2d", *case(*WINDOWS[i]))


def halves():
    """Two images, a stage that ends within a tap, no bank conflicts."""
    device.current().capability = 80
    meaning.tally.update(ldmatrix=0, conflicts=0)
    agree("conv2d", *case((2, 24, 4, 5), (8, 24, 3, 1), {"padding": (1, 0)}), "float16")
    assert meaning.tally["conflicts"] == 0


def strides():
    """Steps of windows and of taps, channels with zeros behind them."""
    device.current().capability = 80
    options = {"stride": (1, 2), "dilation": (1, 2), "padding": 1}
    agree("conv2d", *case((1, 5, 5, 9), (8, 5, 2, 3), options), "float16")


def float32():
    """Five stages, of which the last is not full."""
    agree("conv2d", *case((2, 4, 3, 4), (8, 4, 3, 3), {"padding": 1}))


def pieces(dtype="float32"):
    """Sums in pieces, and a bias."""
    device.current().capability = 80
    with mock.patch.object(tiling, "SHORTEST", 20):
        agree("conv2d", *case((1, 16, 3, 4), (8, 16, 1, 3), {}), dtype)


def pieces_of_halves():
    pieces("float16")


def spoilt():
    """NaN behind the last tap."""
    test_conv.test_spoilt_numbers("float16", 80)


FAULTS = [
    Fault("padding shifts the other way", "conv", "* dh - top)", "* dh + top)", plain),
    Fault("the border is read", "conv", "inside = row < H and column < W", "inside = row < H",
          plain),
    Fault("the next output's weights", "conv", "k += I", "k += I + uint32(1)", plain),
    Fault("a group's channels", "conv", "o // (O // groups) * I", "o % groups * I", plain),
    Fault("axes of the output swapped", "conv", "pixel % Wo, pixel // Wo % Ho",
          "pixel % Ho, pixel // Ho % Wo", plain),
    Fault("pixels behind the last", "conv_windows", " if p < P else uint32(NOWHERE)", "", halves),
    Fault("above the image", "conv_windows", "inside = row < H and", "inside =", halves),
    Fault("the images' distance", "conv_windows", "p // (Ho * Wo) * H", "p // (Ho * Wo)", halves),
    Fault("behind the last tap", "conv_windows", " and walk[0] < kh", "", spoilt),
    Fault("a tap too many in a line", "conv_windows", "if walk[1] == kw:", "if walk[1] > kw:",
          halves),
    Fault("a stage ends within a tap", "conv_windows", "while walk[2] >= C:", "if walk[2] == C:",
          halves),
    Fault("no stride", "conv_windows", "pixel % Wo * sw - left", "pixel % Wo - left", strides),
    Fault("no dilation", "conv_windows", "walk[1] * dw", "walk[1]", strides),
    Fault("no zeros behind the channels", "conv_windows", " if c < C else kind(0)", "", strides),
    Fault("all pieces begin at 0", "conv_windows", "k = uint32(first +", "k = uint32(uint32(0) +",
          pieces_of_halves),
    Fault("rows of a load meet the same banks", "tile", "place_a = _place(gpu, 0, tile.rows, 1)",
          "place_a = _place(gpu, 0, tile.rows, 3)", halves),
    Fault("the rows of another thread", "conv_tiles", "row = t // uint32(CHUNKS) +",
          "row = t // uint32(CHUNKS) % uint32(4) +", halves),
    Fault("all pieces in one place", "conv_tiles", "uint32(piece * P * O)", "uint32(0)",
          pieces_of_halves),
    Fault("a piece goes on to the end", "conv_tiles", "min(uint32(first + share), stages)",
          "stages", pieces_of_halves),
    Fault("no barrier", "conv_float32", "            cuda.syncthreads()\n", "", float32),
    Fault("a stage twice", "conv_float32", "            go_on(walk, C, kw)\n", "", float32),
    Fault("the slot that is filled", "conv_float32", "            slot ^= uint32(1)\n", "",
          float32),
    Fault("a bias with each piece", "conv_float32", "bias, zero, sums", "bias, biased, sums",
          pieces),
    Fault("all pieces on each other", "conv_float32", "uint32(piece * P * O)", "zero", pieces),
    Fault("a piece too long", "conv_float32", "min(uint32(k + share * uint32(DEPTH)), K)", "K",
          pieces),
]
