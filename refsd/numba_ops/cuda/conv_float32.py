"""Convolution of float32: the tiles of linear_float32.py, with windows of an image as rows."""

from typing import Any

from refsd.numba_ops.cuda.conv_windows import windows
from refsd.numba_ops.cuda.linear_float32 import (
    DEPTH,
    PAD,
    SIDE,
    THREADS,
    TILES,
    loader,
    multiplier,
    storing,
)
from refsd.numba_ops.cuda.plan import Plan, factory


@factory(each=[("float32", *tile) for tile in TILES])
def conv2d_float32(gpu: Any, dtype: str, rows: int, columns: int) -> Plan:
    """y (P, O) = windows (P, K) weight (O, K)^T + bias; of one piece of several: parts."""
    cuda, uint32, float32, load4 = gpu.cuda, gpu.uint32, gpu.float32, gpu.load4
    RA, RB, pitch_a, pitch_b = rows // SIDE, columns // SIDE, rows + PAD, columns + PAD
    size_a, size_b = 2 * DEPTH * pitch_a, 2 * DEPTH * pitch_b
    (_, put_a), (take_b, put_b) = loader(gpu, rows, pitch_a), loader(gpu, columns, pitch_b)
    multiply, store = multiplier(gpu, RA, RB, pitch_a, pitch_b), storing(gpu, RA, RB)
    window = windows(gpu, rows, THREADS, DEPTH, 4)
    begin, find, go_on, loads = window.begin, window.find, window.go_on, window.loads

    def take_a(x, places, walk, H, W, C, kh, dh, dw, t):
        inside, at = find(places, 0, walk, H, W, C, kh, dh, dw)
        if inside and t < uint32(2 * rows):
            return load4(x, at)
        return float32(0), float32(0), float32(0), float32(0)

    take_a = gpu.device(take_a)

    def conv2d(x, weight, bias, y, parts, biased, pieces, P, H, W, C, O, Ho, Wo, kh, kw, sh, sw,
               dh, dw, top, left):
        As = cuda.shared.array(size_a, float32, 16)
        Bs = cuda.shared.array(size_b, float32, 16)
        sums = cuda.local.array((RA, RB), float32)
        places = cuda.local.array((loads, 3), uint32)
        walk = cuda.local.array(3, uint32)
        for i in range(RA):
            for j in range(RB):
                sums[i, j] = float32(0)
        t, piece, zero = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z), uint32(0)
        p0 = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        o0 = uint32(uint32(cuda.blockIdx.y) * uint32(columns))
        K = uint32(kh * kw * C)
        stages = uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        share = uint32((stages + pieces - uint32(1)) // pieces)
        k = uint32(piece * share * uint32(DEPTH))
        end = min(uint32(k + share * uint32(DEPTH)), K)

        begin(places, walk, k, p0, P, H, C, Ho, Wo, kw, sh, sw, top, left, t)
        late = uint32(THREADS - 1) - t  # loads B: of a small tile, threads that do not load A
        put_a(As, zero, take_a(x, places, walk, H, W, C, kh, dh, dw, t), t)
        put_b(Bs, zero, take_b(weight, zero, o0, O, K, k, end, late), late)
        cuda.syncthreads()
        slot = uint32(0)
        while k < end:
            k = uint32(k + uint32(DEPTH))
            go_on(walk, C, kw)
            next_a = take_a(x, places, walk, H, W, C, kh, dh, dw, t)
            next_b = take_b(weight, zero, o0, O, K, k, end, late)
            multiply(As, Bs, slot, sums, t)
            slot ^= uint32(1)
            put_a(As, slot, next_a, t)
            put_b(Bs, slot, next_b, late)
            cuda.syncthreads()
        if pieces == uint32(1):
            store(y, zero, bias, biased, sums, p0, o0, P, O, t)
        else:
            store(parts, uint32(piece * P * O), bias, zero, sums, p0, o0, P, O, t)

    array = gpu.array("float32")
    return Plan(conv2d, (*[array] * 5, *[gpu.uint32] * 17), THREADS, blocks=2)
