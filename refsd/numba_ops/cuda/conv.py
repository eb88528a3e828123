"""Convolution: which kernel computes it on a GPU, and the plain one, a thread an output.

All read images (N, C, H, W) as memory has them channels last, and weights (O, I, kH, kW) as rows
(O, kH, kW, I); other orders are copied first. Whatever `algorithm` is asked for, they add up the
products of the formula: no Winograd, no FFT.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from refsd.numba_ops.cuda import conv_float32, conv_tiles, splits, tile
from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty
from refsd.numba_ops.cuda.conv_windows import in_pieces
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.layout import ordered
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import AMPERE, Choice, Plan, factory
from refsd.ops.conv import pair, sides
from refsd.registry import kernel

THREADS = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")


class Window(NamedTuple):
    """The numbers of a convolution, as kernels are given them."""

    H: int
    W: int
    C: int
    O: int
    Ho: int
    Wo: int
    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    top: int
    left: int
    groups: int


@factory(each=[(dtype,) for dtype in DTYPES])
def conv2d_plain(gpu: Any, dtype: str) -> Plan:
    """y[n,i,j,o] = b[o] + sum_{u,v,c} w[o,u,v,c] x[n, i s + u d - top, j s + v d - left, c]"""
    cuda, uint32, kind = gpu.cuda, gpu.uint32, number(gpu, dtype)
    read, write, array = reader(gpu, dtype), writer(gpu, dtype), gpu.array(dtype)

    def conv2d(x, weight, bias, y, has_bias, count, H, W, C, O, Ho, Wo, kh, kw, sh, sw, dh, dw,
               top, left, groups):
        at = uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x)
        if at < count:
            o, pixel = at % O, at // O
            j, i, n = pixel % Wo, pixel // Wo % Ho, pixel // Wo // Ho
            I = C // groups
            first, k = o // (O // groups) * I, o * kh * kw * I
            total = kind(0)
            for u in range(kh):
                row = uint32(i * sh + uint32(u) * dh - top)  # above the image: far beyond H
                for v in range(kw):
                    column = uint32(j * sw + uint32(v) * dw - left)
                    inside = row < H and column < W
                    place = uint32(((n * H + row) * W + column) * C + first)
                    for c in range(I):
                        value = read(x, uint32(place + c)) if inside else kind(0)
                        total += value * read(weight, uint32(k + c))
                    k += I
            write(y, at, total + read(bias, o) if has_bias else total)

    return Plan(conv2d, (array,) * 4 + (gpu.uint32,) * (2 + len(Window._fields)), THREADS)


@kernel("cuda", reads_halves=True)
def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, algorithm="auto"):
    window = _window(x.shape, weight.shape, pair(stride), sides(padding), pair(dilation), groups)
    y = empty((len(x), window.O, window.Ho, window.Wo), x.dtype, CHANNELS_LAST)
    choice = choose_conv2d(weight.shape, groups, str(x.dtype), current().capability)
    if choice.factory is conv2d_plain:
        plain(ordered(x, CHANNELS_LAST), ordered(weight, CHANNELS_LAST), bias, y, window)
    else:
        tiles(choice, x, weight, bias, y, window)
    return y


def choose_conv2d(weight: tuple, groups: int, dtype: str, capability: int) -> Choice:
    """The kernel for weights (O, I, kH, kW), and why. An image has the same bits in any batch."""
    O = weight[0]
    plain = functools.partial(Choice, conv2d_plain, (dtype,))
    if groups != 1:
        return plain("groups: a tile of outputs would see different channels")
    if dtype == "float64":
        return plain("float64 has no tiles: it is the oracle, not for speed")
    if O % 4:
        return plain(f"{O} outputs: tiles store them by fours")
    if dtype == "float32":
        shape = _narrowest(O, conv_float32.TILES)
        return Choice(conv_float32.conv2d_float32, shape,
                      f"float32, {shape[0]} pixels x {shape[1]} outputs a block")
    if capability >= AMPERE:
        shape = _narrowest(O, conv_tiles.TILES)
        return Choice(conv_tiles.conv2d_halves, (*shape, dtype),
                      f"tensor cores, {shape[0]} pixels x {shape[1]} outputs a block")
    if dtype == "bfloat16":
        return plain("bfloat16 has no tensor cores before 8.0")
    shape = _narrowest(O, conv_tiles.TURING_TILES)
    return Choice(conv_tiles.conv2d_halves_turing, shape,
                  f"tensor cores as 7.5 has them, {shape[0]} pixels x {shape[1]} outputs a block")


def _narrowest(outputs, tiles):
    """Those that compute the fewest columns in vain; of such the widest."""
    return min(tiles, key=lambda tile: (-(-outputs // tile[1]) * tile[1], -tile[1]))


def plain(x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray,
          window: Window) -> None:
    """Any convolution of channels-last memory: a thread an output."""
    launch(conv2d_plain, (str(x.dtype),), (-(-y.size // THREADS),), x, weight,
           y if bias is None else bias, y, bias is not None, y.size, *window)


def tiles(choice: Choice, x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None,
          y: DeviceArray, window: Window) -> None:
    """A convolution of one group as a product, of parts of K where there are few tiles."""
    (rows, columns), wide = choice.constants[:2], y.dtype == "float32"
    per, depth = (conv_float32.PER, conv_float32.DEPTH) if wide else (8, tile.DEPTH)
    x, weight = in_pieces(x, per), in_pieces(weight, per)
    window = window._replace(C=x.shape[1])
    O, P = window.O, y.size // window.O
    stages, across = -(-math.prod(weight.shape[1:]) // depth), -(-O // columns)
    parts = splits.count(-(-2 * window.Ho * window.Wo // rows) * across, stages)
    each = -(-stages // parts)
    parts = -(-stages // each)
    sums = empty((parts, P, O), "float32") if parts > 1 else DeviceArray(
        (0,), (1,), np.dtype("float32"), y.block)
    out = [sums if parts > 1 else y] if wide else [y, sums]
    given = bias is not None and parts == 1
    launch(choice.factory, choice.constants, (-(-P // rows), across, parts), x, weight,
           y if bias is None else bias, *out, given, each, P, *window)
    if parts > 1:
        splits.add_up(sums, bias, y, O)


def _window(x, weight, stride, padding, dilation, groups) -> Window:
    (_, C, H, W), (O, _, kh, kw) = x, weight
    (sh, sw), (dh, dw), ((top, bottom), (left, right)) = stride, dilation, padding
    return Window(H, W, C, O, (H + top + bottom - dh * (kh - 1) - 1) // sh + 1,
                  (W + left + right - dw * (kw - 1) - 1) // sw + 1, kh, kw, sh, sw, dh, dw, top,
                  left, groups)
