"""Convolution of float32 as an implicit product: sums in registers, never TF32.

A thread brings four elements of a window and four of a weight's row for the next stage while the
block multiplies this one. Shared memory has a stage k by k, so that a thread reads its rows and
columns by fours; outputs are stored by fours too. The products of a sum are added as k grows, one
after the other, in any tile.
"""

from typing import Any

from refsd.numba_ops.cuda.conv_windows import windows
from refsd.numba_ops.cuda.plan import Plan, factory

TILES = ((128, 128), (128, 64))
DEPTH, PER, SIDE = 8, 4, 16  # products of a stage, of a piece; threads across a block and down
THREADS = SIDE * SIDE
PAD = 4  # behind a stage's rows: else two lanes that store would meet in a bank


@factory(each=TILES)
def conv2d_float32(gpu: Any, rows: int, columns: int) -> Plan:
    """y (P, O) = windows (P, K) weight (O, K)^T + bias, or of part z of K, behind the others'."""
    cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32
    load4, store4 = gpu.load4, gpu.store4
    down, across = rows // 64, columns // 64  # fours of a thread's rows and columns
    RA, RB, pitch_a, pitch_b = 4 * down, 4 * across, rows + PAD, columns + PAD
    size_a, size_b = 2 * DEPTH * pitch_a, 2 * DEPTH * pitch_b
    first_b = THREADS - 2 * columns  # the last threads bring weights
    window = windows(gpu, rows, THREADS, DEPTH, PER)
    begin, find, go_on, loads = window.begin, window.find, window.go_on, window.loads

    def four(array, inside, at):
        if inside:
            return load4(array, at)
        return float32(0), float32(0), float32(0), float32(0)

    def put(stages, at, pitch, x):
        for e in range(PER):
            stages[at + uint32(e) * pitch] = x[e]

    def multiply(As, Bs, slot, sums, ty, tx):
        ra = cuda.local.array(RA, float32)
        rb = cuda.local.array(RB, float32)
        for d in range(DEPTH):
            k = slot * uint32(DEPTH) + uint32(d)
            for h in range(down):
                x = load4(As, uint32(k * uint32(pitch_a) + uint32(64 * h) + ty * uint32(4)))
                ra[4 * h], ra[4 * h + 1], ra[4 * h + 2], ra[4 * h + 3] = x
            for h in range(across):
                x = load4(Bs, uint32(k * uint32(pitch_b) + uint32(64 * h) + tx * uint32(4)))
                rb[4 * h], rb[4 * h + 1], rb[4 * h + 2], rb[4 * h + 3] = x
            for i in range(RA):
                for j in range(RB):
                    sums[i, j] += ra[i] * rb[j]

    four, put, multiply = gpu.device(four), gpu.device(put), gpu.device(multiply)

    def conv2d(x, weight, bias, y, has_bias, each, P, H, W, C, O, Ho, Wo, kh, kw, sh, sw, dh, dw,
               top, left, groups):
        As = cuda.shared.array(size_a, float32, 16)
        Bs = cuda.shared.array(size_b, float32, 16)
        sums = cuda.local.array((RA, RB), float32)
        places = cuda.local.array((loads, 3), uint32)
        walk = cuda.local.array(3, uint32)
        for i in range(RA):
            for j in range(RB):
                sums[i, j] = float32(0)
        t, part = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z)
        p0 = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        o0 = uint32(uint32(cuda.blockIdx.y) * uint32(columns))
        K, first = uint32(kh * kw * C), uint32(part * each)
        last = min(uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH)), uint32(first + each))
        begin(places, walk, first, p0, P, H, C, Ho, Wo, kw, sh, sw, top, left, t)

        brings_b = t >= uint32(first_b)
        k_row = (t & uint32(1)) * uint32(PER)
        row_b = uint32((t - uint32(first_b)) >> uint32(1))
        at_a, at_b = k_row * uint32(pitch_a) + (t >> uint32(1)), k_row * uint32(pitch_b) + row_b
        at_weight = uint32((o0 + row_b) * K)
        has_row = brings_b and o0 + row_b < O
        ty, tx = t // uint32(SIDE), t % uint32(SIDE)
        slot = uint32(0)
        for stage in range(first, last + uint32(1), uint32(1)):
            if stage > first:
                cuda.syncthreads()
            k = uint32(uint32(stage) * uint32(DEPTH) + k_row)
            inside, at = find(places, 0, walk, H, W, C, kh, dh, dw)
            a = four(x, inside and stage < last, at)
            b = four(weight, has_row and k < K and stage < last, uint32(at_weight + k))
            go_on(walk, C, kw)
            if stage > first:
                multiply(As, Bs, slot ^ uint32(1), sums, ty, tx)
            put(As, slot * uint32(DEPTH * pitch_a) + at_a, uint32(pitch_a), a)
            if brings_b:
                put(Bs, slot * uint32(DEPTH * pitch_b) + at_b, uint32(pitch_b), b)
            slot ^= uint32(1)

        for h in range(across):
            o = uint32(o0 + uint32(64 * h) + tx * uint32(4))
            if o < O:
                b0, b1, b2, b3 = four(bias, has_bias, o)
                for i in range(RA):
                    p = uint32(p0 + uint32(64 * (i // 4) + i % 4) + ty * uint32(4))
                    if p < P:
                        store4(y, uint32((part * P + p) * O + o), (
                            sums[i, 4 * h] + b0, sums[i, 4 * h + 1] + b1,
                            sums[i, 4 * h + 2] + b2, sums[i, 4 * h + 3] + b3))

    array = gpu.array("float32")
    return Plan(conv2d, (array,) * 4 + (gpu.uint32,) * 18, THREADS, blocks=2)
