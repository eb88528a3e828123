"""Convolution of halves on tensor cores: the tiles of tile.py, with windows of an image as rows."""

from typing import Any

from refsd.numba_ops.cuda.conv_windows import windows
from refsd.numba_ops.cuda.plan import AMPERE, Plan, factory
from refsd.numba_ops.cuda.tile import CHUNKS, DEPTH, Tile, core

# 160 columns are half of 320, which Stable Diffusion's channels are multiples of; 64 for few.
TILES = {(128, 160): (32, 80), (128, 128): (64, 32), (128, 64): (32, 64)}
TURING_TILES = ((128, 128), (128, 64))


@factory(each=[(*tile, dtype) for tile in TILES for dtype in ("float16", "bfloat16")],
         since=AMPERE)
def conv2d_halves(gpu: Any, rows: int, columns: int, dtype: str) -> Plan:
    """y (P, O) = windows (P, K) weight (O, K)^T + bias; of one part of K of several: parts."""
    return _halves(gpu, dtype, Tile(rows, columns, *TILES[rows, columns]), turing=False)


@factory(each=TURING_TILES)
def conv2d_halves_turing(gpu: Any, rows: int, columns: int) -> Plan:
    """The same of float16, by what Turing has."""
    return _halves(gpu, "float16", Tile(rows, columns, *TILES[rows, columns]), turing=True)


def _halves(gpu, dtype, shape, turing):
    cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32
    tile = core(gpu, dtype, shape, turing)
    window = windows(gpu, shape.rows, shape.threads, DEPTH, DEPTH // CHUNKS)
    begin, find, go_on, loads, step = (window.begin, window.find, window.go_on, window.loads,
                                       window.step)
    copy, place = tile.copy, tile.place_a

    def load(memory, slot, stage, source, t):
        x, places, walk, H, W, C, kh, kw, dh, dw = source
        for i in range(loads):
            inside, at = find(places, i, walk, H, W, C, kh, dh, dw)
            row = t // uint32(CHUNKS) + uint32(i * step)
            copy(memory, place(slot, row, t % uint32(CHUNKS)), x, at, inside)
        go_on(walk, C, kw)

    products = tile.pipeline(gpu.device(load), tile.rows_b)
    store, store_sums = tile.store, tile.store_sums
    half, (MT, NT), (rows, columns) = tile.half, tile.sums, shape[:2]

    def conv2d(x, weight, bias, y, parts, has_bias, each, P, H, W, C, O, Ho, Wo, kh, kw, sh, sw,
               dh, dw, top, left, groups):
        memory = cuda.shared.array(0, half, 16)
        sums = cuda.local.array((MT, NT, 4), float32)
        places = cuda.local.array((loads, 3), uint32)
        walk = cuda.local.array(3, uint32)
        for m in range(MT):
            for n in range(NT):
                for e in range(4):
                    sums[m, n, e] = float32(0)
        t, part, zero = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z), uint32(0)
        p0 = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        o0 = uint32(uint32(cuda.blockIdx.y) * uint32(columns))
        K = uint32(kh * kw * C)
        first, last = uint32(part * each), uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        last = min(last, uint32(first + each))

        begin(places, walk, first, p0, P, H, C, Ho, Wo, kw, sh, sw, top, left, t)
        products(memory, sums, (x, places, walk, H, W, C, kh, kw, dh, dw),
                 (weight, o0, O, K, K, zero), first, last, t)
        if uint32(cuda.gridDim.z) > uint32(1):
            store_sums(parts, uint32(part * P * O), sums, p0, o0, P, O, t)
        else:
            store(y, zero, bias, has_bias, sums, p0, o0, P, O, t)

    array = gpu.array(dtype)
    return Plan(conv2d, (array,) * 4 + (gpu.array("float32"),) + (gpu.uint32,) * 18, tile.threads,
                tile.shared, blocks=2 if columns <= 128 else 1)
