"""Convolution of halves on tensor cores: the tiles of tile.py, with windows of an image as rows."""

from typing import Any

from refsd.numba_ops.cuda.conv_windows import windows
from refsd.numba_ops.cuda.plan import AMPERE, Plan, factory
from refsd.numba_ops.cuda.tile import CHUNKS, DEPTH, Tile, core

HALVES = ("bfloat16", "float16")
TILES = (  # rows, columns, and those of a warp
    (128, 160, 32, 80),  # half of 320 columns, which Stable Diffusion's are multiples of
    (128, 80, 32, 80),  # more blocks for smaller images
    (128, 128, 64, 32),  # 128, 256 and 512 columns, the VAE's
    (64, 64, 32, 32),
)
TURING = TILES[2:]


@factory(each=[(dtype, *tile) for dtype in HALVES for tile in TILES], since=AMPERE)
def conv2d_halves(gpu: Any, dtype: str, *tile: int) -> Plan:
    """y (P, O) = windows (P, K) weight (O, K)^T + bias; of one piece of several: parts."""
    return _halves(gpu, dtype, Tile(*tile), turing=False)


@factory(each=[("float16", *tile) for tile in TURING])
def conv2d_halves_turing(gpu: Any, dtype: str, *tile: int) -> Plan:
    """The same by what Turing has."""
    return _halves(gpu, dtype, Tile(*tile), turing=True)


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

    def conv2d(x, weight, bias, y, parts, biased, pieces, P, H, W, C, O, Ho, Wo, kh, kw, sh, sw,
               dh, dw, top, left):
        memory = cuda.shared.array(0, half, 16)
        sums = cuda.local.array((MT, NT, 4), float32)
        places = cuda.local.array((loads, 3), uint32)
        walk = cuda.local.array(3, uint32)
        for m in range(MT):
            for n in range(NT):
                for e in range(4):
                    sums[m, n, e] = float32(0)
        t, piece, zero = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z), uint32(0)
        p0 = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        o0 = uint32(uint32(cuda.blockIdx.y) * uint32(columns))
        K = uint32(kh * kw * C)
        stages = uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        share = uint32((stages + pieces - uint32(1)) // pieces)
        first = uint32(piece * share)
        last = min(uint32(first + share), stages)

        begin(places, walk, uint32(first * uint32(DEPTH)), p0, P, H, C, Ho, Wo, kw, sh, sw, top,
              left, t)
        products(memory, sums, (x, places, walk, H, W, C, kh, kw, dh, dw),
                 (weight, o0, O, K, K, zero), first, last, t)
        if pieces == uint32(1):
            store(y, zero, bias, biased, sums, p0, o0, P, O, t)
        else:
            store_sums(parts, uint32(piece * P * O), sums, p0, o0, P, O, t)

    array = gpu.array(dtype)
    return Plan(conv2d, (*[array] * 4, gpu.array("float32"), *[gpu.uint32] * 17), tile.threads,
                tile.shared, blocks=2 if columns <= 128 else 1)
