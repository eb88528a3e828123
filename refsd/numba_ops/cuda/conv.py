"""Convolution: which kernel computes it on a GPU, and the plain one, a thread an output.

All read images (N, C, H, W) as memory has them channels last, and weights (O, I, kH, kW) as rows
(O, kH, kW, I); other orders are copied first. Whatever `algorithm` is asked for, they add up the
products of the formula: no Winograd, no FFT.
"""

from typing import Any, NamedTuple

from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import ordered
from refsd.numba_ops.cuda.numbers import number, reader, writer
from refsd.numba_ops.cuda.plan import Plan, factory
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
    x, weight = ordered(x, CHANNELS_LAST), ordered(weight, CHANNELS_LAST)
    y = empty((len(x), window.O, window.Ho, window.Wo), x.dtype, CHANNELS_LAST)
    plain(x, weight, bias, y, window)
    return y


def plain(x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray,
          window: Window) -> None:
    """Any convolution: a thread an output."""
    launch(conv2d_plain, (str(x.dtype),), (-(-y.size // THREADS),), x, weight,
           y if bias is None else bias, y, bias is not None, y.size, *window)


def _window(x, weight, stride, padding, dilation, groups) -> Window:
    (_, C, H, W), (O, _, kh, kw) = x, weight
    (sh, sw), (dh, dw), ((top, bottom), (left, right)) = stride, dilation, padding
    return Window(H, W, C, O, (H + top + bottom - dh * (kh - 1) - 1) // sh + 1,
                  (W + left + right - dw * (kw - 1) - 1) // sw + 1, kh, kw, sh, sw, dh, dw, top,
                  left, groups)
