"""C = A B^T + bias of halves on tensor cores."""

from typing import Any

from refsd.numba_ops.cuda import tile_hopper
from refsd.numba_ops.cuda.plan import AMPERE, HOPPER, Plan, factory
from refsd.numba_ops.cuda.tile import Tile, core

HALVES = ("bfloat16", "float16")
TILES = (  # rows, columns, and those of a warp
    (128, 128, 64, 64),  # the most products a byte of shared memory
    (128, 160, 32, 80),  # half of 320 columns
    (128, 80, 32, 80),  # a quarter, and so on for 640 and 1280
    (64, 80, 16, 80),
    (64, 64, 32, 32),  # other widths
    (16, 64, 16, 16),  # few rows: what is read of B is all that counts
)
HOPPER_TILES = ((128, 256), (128, 128), (128, 160), (128, 80), (64, 80))
WARPGROUP = 64  # rows that an instruction of Hopper's has
TURING = ((128, 128, 64, 32), (64, 64, 32, 32), (16, 64, 16, 16))


@factory(each=[(dtype, *tile) for dtype in HALVES for tile in TILES], since=AMPERE)
def ampere(gpu: Any, dtype: str, *tile: int) -> Plan:
    """mma.sync m16n8k16, three stages of cp.async."""
    return _product(gpu, dtype, tile[:2], core(gpu, dtype, Tile(*tile)))


@factory(each=[("float16", *tile) for tile in TURING])
def turing(gpu: Any, dtype: str, *tile: int) -> Plan:
    """mma.sync m16n8k8, two stages through registers."""
    return _product(gpu, dtype, tile[:2], core(gpu, dtype, Tile(*tile), turing=True))


@factory(each=[(dtype, *tile) for dtype in HALVES for tile in HOPPER_TILES], since=HOPPER, only="a")
def hopper(gpu: Any, dtype: str, rows: int, columns: int) -> Plan:
    """wgmma of warpgroups, four stages of cp.async."""
    return _product(gpu, dtype, (rows, columns), tile_hopper.core(gpu, dtype, rows, columns), 1024)


def _product(gpu, dtype, shape, tile, alignment=16):
    """Of block (x, y, z): rows x, columns y, piece z % pieces of K of product z // pieces.

    c (..., M, N), or, of more than one piece, parts (..., pieces, M, N) in float32.
    """
    cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32
    half, (MT, NT), (rows, columns), depth = tile.half, tile.sums, shape, tile.depth
    products = tile.pipeline(tile.rows_a, tile.rows_b)
    store, store_sums = tile.store, tile.store_sums

    def product(a, b, bias, c, parts, M, N, K, a_row, b_row, a_batch, b_batch, biased, pieces):
        memory = cuda.shared.array(0, half, alignment)
        sums = cuda.local.array((MT, NT, 4), float32)
        for m in range(MT):
            for n in range(NT):
                for e in range(4):
                    sums[m, n, e] = float32(0)
        t = uint32(cuda.threadIdx.x)
        row0 = uint32(cuda.blockIdx.x) * uint32(rows)
        column0 = uint32(cuda.blockIdx.y) * uint32(columns)
        z = uint32(cuda.blockIdx.z)
        batch, piece = z // pieces, z % pieces
        stages = (K + uint32(depth - 1)) // uint32(depth)
        share = (stages + pieces - uint32(1)) // pieces
        first = piece * share
        last = min(first + share, stages)
        products(memory, sums, (a, row0, M, K, a_row, batch * a_batch),
                 (b, column0, N, K, b_row, batch * b_batch), first, last, t)
        if pieces == uint32(1):
            store(c, batch * M * N, bias, biased, sums, row0, column0, M, N, t)
        else:
            store_sums(parts, z * M * N, sums, row0, column0, M, N, t)

    array, number = gpu.array(dtype), gpu.uint32
    return Plan(product, (array, array, array, array, gpu.array("float32"), *[number] * 9),
                tile.threads, tile.shared)
