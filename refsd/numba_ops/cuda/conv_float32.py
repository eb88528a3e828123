"""Convolution of float32 as an implicit product: tiles of sums in registers, 8 x 8 a thread.

A block brings stages of DEPTH products of its windows and weights into shared memory while it
multiplies an earlier one. Pieces of a row are turned about so that neighbouring rows meet all
banks. The products of a sum are added as k grows, one after the other, whatever the tile is.
"""

from typing import Any

from refsd.numba_ops.cuda.array import DeviceArray
from refsd.numba_ops.cuda.conv_windows import windows
from refsd.numba_ops.cuda.device import launch
from refsd.numba_ops.cuda.plan import Plan, factory

DEPTH, PER, EACH = 16, 4, 8  # products of a stage, of a piece; rows and columns of a thread
CHUNKS = DEPTH // PER
TILES = ((128, 128), (128, 64))


@factory(each=[(*tile, turing) for tile in TILES for turing in (False, True)])
def conv2d_float32(gpu: Any, rows: int, columns: int, turing: bool) -> Plan:
    """y (P, O) = windows (P, K) weight (O, K)^T + bias"""
    cuda, uint32, float32, load4 = gpu.cuda, gpu.uint32, gpu.float32, gpu.load4
    copy, end, wait = (gpu.copy16_turing, gpu.nothing, gpu.nothing) if turing else (
        gpu.copy16, gpu.commit, gpu.wait1)
    stages = 2 if turing else 3
    ahead, down, across = stages - 1, rows // EACH, columns // EACH
    threads = down * across
    size_a, size_b, step = stages * rows * DEPTH, stages * columns * DEPTH, threads // CHUNKS
    loads_b = columns // step

    def place(row, piece):
        turned = piece ^ (row >> uint32(1) & uint32(3))
        return uint32((row * uint32(CHUNKS) + turned) * uint32(PER))

    def place_a(slot, row, piece):
        return place(uint32(slot * uint32(rows) + row), piece)

    place = gpu.device(place)
    place_a = gpu.device(place_a)
    window = windows(gpu, copy, place_a, rows, threads, DEPTH, PER)
    begin, load_a, loads = window.begin, window.load, window.loads

    def load_b(memory, slot, stage, weight, o0, O, K, t):
        piece = t % uint32(CHUNKS)
        k = stage * uint32(DEPTH) + piece * uint32(PER)
        for i in range(loads_b):
            row = t // uint32(CHUNKS) + uint32(i * step)
            inside = o0 + row < O and k < K
            copy(memory, place(slot * uint32(columns) + row, piece), weight,
                 uint32((o0 + row) * K + k) if inside else uint32(0), inside)

    def multiply(As, Bs, slot, sums, t):
        a = cuda.local.array((EACH, PER), float32)
        row, column = t // uint32(across), t % uint32(across)
        for piece in range(CHUNKS):
            at_a = place(uint32(slot * uint32(rows) + row), uint32(piece))
            at_b = place(uint32(slot * uint32(columns) + column), uint32(piece))
            for i in range(EACH):
                four = load4(As, uint32(at_a + uint32(i * down * DEPTH)))
                a[i, 0], a[i, 1], a[i, 2], a[i, 3] = four[0], four[1], four[2], four[3]
            for j in range(EACH):
                b = load4(Bs, uint32(at_b + uint32(j * across * DEPTH)))
                for i in range(EACH):
                    sums[i, j] = (((sums[i, j] + a[i, 0] * b[0]) + a[i, 1] * b[1])
                                  + a[i, 2] * b[2]) + a[i, 3] * b[3]

    load_b, multiply = gpu.device(load_b), gpu.device(multiply)

    def conv2d(x, weight, bias, y, has_bias, P, H, W, C, O, Ho, Wo, kh, kw, sh, sw, dh, dw, top,
               left, groups):
        As = cuda.shared.array(size_a, float32, 16)
        Bs = cuda.shared.array(size_b, float32, 16)
        sums = cuda.local.array((EACH, EACH), float32)
        places = cuda.local.array((loads, 3), uint32)
        walk = cuda.local.array(3, uint32)
        t = uint32(cuda.threadIdx.x)
        p0 = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        o0 = uint32(uint32(cuda.blockIdx.y) * uint32(columns))
        K = uint32(kh * kw * C)
        last = uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        for i in range(EACH):
            for j in range(EACH):
                sums[i, j] = float32(0)

        begin(places, walk, uint32(0), p0, P, H, C, Ho, Wo, kw, sh, sw, top, left, t)
        source = x, places, walk, H, W, C, kh, kw, dh, dw
        slot, fill = uint32(0), uint32(0)
        for stage in range(uint32(0), last + uint32(ahead), uint32(1)):
            if stage >= uint32(ahead):
                wait()
                cuda.syncthreads()
            if stage < last:
                load_a(As, fill, uint32(stage), source, t)
                load_b(Bs, fill, uint32(stage), weight, o0, O, K, t)
            end()
            fill = uint32(0) if fill == uint32(ahead) else uint32(fill + uint32(1))
            if stage >= uint32(ahead):
                multiply(As, Bs, slot, sums, t)
                slot = uint32(0) if slot == uint32(ahead) else uint32(slot + uint32(1))

        row, column = p0 + t // uint32(across), o0 + t % uint32(across)
        for j in range(EACH):
            o = uint32(column + uint32(j * across))
            if o < O:
                b = bias[o] if has_bias else float32(0)
                for i in range(EACH):
                    p = uint32(row + uint32(i * down))
                    if p < P:
                        y[uint32(p * O + o)] = sums[i, j] + b

    array = gpu.array("float32")
    return Plan(conv2d, (array,) * 4 + (gpu.uint32,) * 17, threads)


def float32(x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray,
            window: tuple, constants: tuple) -> None:
    """A convolution of float32 with one group, its channels a multiple of 4."""
    rows, columns, _ = constants
    P, O = y.size // y.shape[1], y.shape[1]
    launch(conv2d_float32, constants, (-(-P // rows), -(-O // columns)), x, weight,
           y if bias is None else bias, y, bias is not None, P, *window)
