"""Convolution as a product, without the matrix of its windows: how a block brings their pieces.

The matrix has a row for each output pixel and K = kH kW C columns, in the order (u, v, c) that rows
of weights have too: for each tap the channels of one pixel. It is never written. Sixteen bytes of
it are neighbouring channels of one pixel, or zeros outside the image: C is a multiple of as many.
"""

from types import SimpleNamespace
from typing import Any

PIECE = 16  # bytes that a copy brings
NOWHERE = 1 << 31  # a row that no image has


def windows(gpu: Any, copy: Any, place: Any, rows: int, threads: int, depth: int,
            per: int) -> SimpleNamespace:
    """The device functions of a block that goes along K in stages of `depth` elements.

    begin(places, walk, ...) notes where the thread's windows lie, and its place in K; load(memory,
    slot, stage, source, t) brings a stage, and goes on. place(slot, row, piece): where in memory;
    per: elements of a piece. `loads`: the windows of a thread, local arrays of it are `places`.
    """
    uint32, chunks = gpu.uint32, depth // per
    step = threads // chunks
    loads = rows // step

    def begin(places, walk, first, first_row, P, H, C, Ho, Wo, kw, sh, sw, top, left, t):
        """places (loads, 3): first row of the image, row and column of the window. walk: u, v, c"""
        for i in range(loads):
            p = uint32(first_row + t // uint32(chunks) + uint32(i * step))
            pixel = uint32(p % (Ho * Wo))
            places[i, 0] = uint32(p // (Ho * Wo) * H)
            places[i, 1] = uint32(pixel // Wo * sh - top) if p < P else uint32(NOWHERE)
            places[i, 2] = uint32(pixel % Wo * sw - left)
        k = uint32(first * uint32(depth) + t % uint32(chunks) * uint32(per))
        walk[0], walk[1], walk[2] = uint32(k // C // kw), uint32(k // C % kw), uint32(k % C)

    def load(memory, slot, stage, source, t):
        x, places, walk, H, W, C, kh, kw, dh, dw = source
        piece = t % uint32(chunks)
        for i in range(loads):
            row = uint32(places[i, 1] + walk[0] * dh)  # above the image: far beyond H
            column = uint32(places[i, 2] + walk[1] * dw)
            inside = row < H and column < W and walk[0] < kh
            at = uint32(((places[i, 0] + row) * W + column) * C + walk[2])
            copy(memory, place(slot, t // uint32(chunks) + uint32(i * step), piece), x,
                 at if inside else uint32(0), inside)
        walk[2] += uint32(depth)
        while walk[2] >= C:
            walk[2] -= C
            walk[1] += uint32(1)
            if walk[1] == kw:
                walk[1] = uint32(0)
                walk[0] += uint32(1)

    return SimpleNamespace(begin=gpu.device(begin), load=gpu.device(load), loads=loads)
