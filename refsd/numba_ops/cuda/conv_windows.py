"""Convolution as a product, without the matrix of its windows: how a block brings their pieces.

The matrix has a row for each output pixel and K = kH kW C columns, in the order (u, v, c) that rows
of weights have too: for each tap the channels of one pixel. It is never written. Sixteen bytes of
it are neighbouring channels of one pixel, or zeros outside the image: C is a multiple of as many.
"""

from types import SimpleNamespace
from typing import Any

from refsd.numba_ops.cuda.array import CHANNELS_LAST, DeviceArray, empty
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.layout import ordered
from refsd.numba_ops.cuda.plan import Plan, factory

THREADS = 256
NOWHERE = 1 << 31  # a row that no image has


def windows(gpu: Any, rows: int, threads: int, depth: int, per: int) -> SimpleNamespace:
    """The device functions of a block that goes along K in stages of `depth` elements.

    A thread brings a piece, `per` elements, of each of `loads` windows, rows of the matrix:
    t // chunks + i * step. begin(...) notes where they lie; find(...) says of window i whether the
    piece is inside the image, and where; go_on(...) goes to the next stage.
    """
    uint32, chunks = gpu.uint32, depth // per
    step = threads // chunks
    loads = max(1, rows // step)

    def begin(places, walk, first, first_row, P, H, C, Ho, Wo, kw, sh, sw, top, left, t):
        """places (loads, 3): first row of the image, row and column of the window. walk: u, v, c"""
        for i in range(loads):
            p = uint32(first_row + t // uint32(chunks) + uint32(i * step))
            pixel = uint32(p % (Ho * Wo))
            places[i, 0] = uint32(p // (Ho * Wo) * H)
            places[i, 1] = uint32(pixel // Wo * sh - top) if p < P else uint32(NOWHERE)
            places[i, 2] = uint32(pixel % Wo * sw - left)
        k = uint32(first + t % uint32(chunks) * uint32(per))
        walk[0], walk[1], walk[2] = uint32(k // C // kw), uint32(k // C % kw), uint32(k % C)

    def find(places, i, walk, H, W, C, kh, dh, dw):
        row = uint32(places[i, 1] + walk[0] * dh)  # above the image: far beyond H
        column = uint32(places[i, 2] + walk[1] * dw)
        inside = row < H and column < W and walk[0] < kh
        at = uint32(((places[i, 0] + row) * W + column) * C + walk[2])
        return inside, at if inside else uint32(0)

    def go_on(walk, C, kw):
        walk[2] += uint32(depth)
        while walk[2] >= C:
            walk[2] -= C
            walk[1] += uint32(1)
            if walk[1] == kw:
                walk[1] = uint32(0)
                walk[0] += uint32(1)

    return SimpleNamespace(begin=gpu.device(begin), find=gpu.device(find), go_on=gpu.device(go_on),
                           chunks=chunks, step=step, loads=loads)


@factory(each=[("float32",), ("float16",), ("bfloat16",)])
def widen_kernel(gpu: Any, dtype: str) -> Plan:
    """y[p, c] = x[p, c], 0 where x has no channel c."""
    cuda, uint32 = gpu.cuda, gpu.uint32
    kind = getattr(gpu, "uint16" if dtype == "bfloat16" else dtype)

    def widen(x, y, count, C, wide):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if i < count:
            c = uint32(i % wide)
            y[i] = x[uint32(i // wide * C + c)] if c < C else kind(0)

    return Plan(widen, (gpu.array(dtype),) * 2 + (gpu.uint32,) * 3, THREADS)


def in_pieces(x: DeviceArray, per: int) -> DeviceArray:
    """Images, or weights, with channels last, `per` or a multiple in number, where copies can read.

    A copy unless they lie so: zeros are the channels that it has more.
    """
    x = ordered(x, CHANNELS_LAST)
    N, C, H, W = x.shape
    if C % per == 0 and x.offset % per == 0:
        return x
    y = empty((N, -(-C // per) * per, H, W), x.dtype, CHANNELS_LAST)
    if y.size:
        launch(widen_kernel, (str(x.dtype),), (-(-y.size // THREADS),), x, y, y.size, C, y.shape[1])
    return y
