"""Convolution: which kernel computes it on a GPU, and the plain one, a thread an output.

All read images (N, C, H, W) as memory has them channels last, and weights (O, I, kH, kW) as rows
(O, kH, kW, I); other orders are copied first. Whatever `algorithm` is asked for, they add up the
products of the formula: no Winograd, no FFT.
"""

from typing import Any, NamedTuple

import numpy as np

from refsd.numba_ops.cuda import conv_float32, conv_tiles, linear, tiling
from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty
from refsd.numba_ops.cuda.conv_windows import in_pieces
from refsd.numba_ops.cuda.device import current, launch
from refsd.numba_ops.cuda.layout import aligned, ordered
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import AMPERE, Choice, Plan, factory
from refsd.ops.conv import Choice as Algorithm
from refsd.ops.conv import pair, sides
from refsd.registry import kernel

THREADS = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")
TO_IMAGE = (0, 3, 1, 2)  # of (N, H, W, C)


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
        at = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
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
    x, (N, O, Ho, Wo) = ordered(x, CHANNELS_LAST), (len(x), window.O, window.Ho, window.Wo)
    if _is_linear(window):
        rows = x.transpose(CHANNELS_LAST).reshape(N, Ho * Wo, window.C)
        y = linear.linear(rows, ordered(weight).reshape(O, window.C), bias)
        return y.reshape(N, Ho, Wo, O).transpose(TO_IMAGE)
    y = empty((N, O, Ho, Wo), x.dtype, CHANNELS_LAST)
    choice = choose_conv2d(y.shape, weight.shape, groups, str(x.dtype), current().capability)
    bias = None if bias is None else aligned(bias)
    if choice.factory is conv2d_plain:
        plain(x, ordered(weight, CHANNELS_LAST), bias, y, window)
    else:
        tiles(choice, x, weight, bias, y, window)
    return y


def choose_conv2d(result: tuple, weight: tuple, groups: int, dtype: str, capability: int) -> Choice:
    """The kernel for results (N, O, H', W') of weights (O, I, kH, kW), and why.

    1 x 1 kernels of all pixels are a linear layer: see choose_linear.
    """
    (N, O, Ho, Wo), (_, I, kh, kw) = result, weight
    if groups != 1:
        return Choice(conv2d_plain, (dtype,), "groups: outputs of a tile see different channels")
    if dtype == "float64":
        return Choice(conv2d_plain, (dtype,), "the fast kernels have no float64")
    if O % 4:
        return Choice(conv2d_plain, (dtype,), f"{O} outputs: tiles store them by fours")
    if dtype == "bfloat16" and capability < AMPERE:
        return Choice(conv2d_plain, (dtype,), "tensor cores know bfloat16 from capability 8.0 on")
    factory, shapes = (
        (conv_float32.conv2d_float32, conv_float32.TILES) if dtype == "float32" else
        (conv_tiles.conv2d_halves, conv_tiles.TILES) if capability >= AMPERE else
        (conv_tiles.conv2d_halves_turing, conv_tiles.TURING))
    K = kh * kw * -(-I // _piece(dtype)) * _piece(dtype)
    by = (64, 64) if dtype == "float32" else conv_tiles.TILES[1][:2]
    return tiling.chosen(factory, dtype, shapes, Ho * Wo, N * Ho * Wo, O, K, capability, by)


def explain(result: tuple, kernel: tuple, stride: tuple, groups: int, dtype: str) -> Algorithm:
    """What computes results (N, H', W', O) on this device, whatever algorithm is asked for."""
    (N, Ho, Wo, O), capability = result, current().capability
    if (*kernel[2:], *stride, groups) == (1, 1, 1, 1, 1):
        choice = linear.choose_linear((N, Ho * Wo, kernel[1]), kernel[:2], dtype, capability)
    else:
        choice = choose_conv2d((N, O, Ho, Wo), kernel, groups, dtype, capability)
    return Algorithm("im2col", f"{choice.factory.name}, {choice.why}")


def _is_linear(window):
    """Whether outputs see one pixel each, their own."""
    taps = (window.kh, window.kw, window.sh, window.sw, window.top, window.left, window.groups)
    return taps == (1, 1, 1, 1, 0, 0, 1) and window[:2] == (window.Ho, window.Wo)


def _piece(dtype):
    """Elements of 16 bytes."""
    return 4 if dtype == "float32" else 8


def plain(x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray,
          window: Window) -> None:
    """Any convolution of channels-last memory: a thread an output."""
    launch(conv2d_plain, (str(x.dtype),), (-(-y.size // THREADS),), x, weight,
           y if bias is None else bias, y, bias is not None, y.size, *window)


def tiles(choice: Choice, x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None,
          y: DeviceArray, window: Window) -> None:
    """A convolution of one group as a product, each sum in pieces where there are few tiles."""
    dtype, rows, columns = choice.constants[:3]
    x, weight = in_pieces(x, _piece(dtype)), in_pieces(weight, _piece(dtype))
    window, O, pieces = window._replace(C=x.shape[1]), window.O, choice.pieces
    P, biased = y.size // O, bias is not None
    parts = empty((pieces, P, O), "float32") if pieces > 1 else DeviceArray(
        (0,), (1,), np.dtype("float32"), y.block)
    bias = y if bias is None else bias
    launch(choice.factory, choice.constants, (-(-P // rows), -(-O // columns), pieces), x, weight,
           bias, y, parts, biased, pieces, P, *window[:-1])
    if pieces > 1:
        linear.add_up(parts, bias, y, biased, 1, P, O)


def _window(x, weight, stride, padding, dilation, groups) -> Window:
    (_, C, H, W), (O, _, kh, kw) = x, weight
    (sh, sw), (dh, dw), ((top, bottom), (left, right)) = stride, dilation, padding
    return Window(H, W, C, O, (H + top + bottom - dh * (kh - 1) - 1) // sh + 1,
                  (W + left + right - dw * (kw - 1) - 1) // sw + 1, kh, kw, sh, sw, dh, dw, top,
                  left, groups)
