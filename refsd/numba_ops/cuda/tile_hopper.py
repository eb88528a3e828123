"""Tiles for Hopper's tensor cores: tile.py's parts, but warpgroups multiply out of shared memory.

The block is 64 rows a warpgroup. A stage is 64 products, its rows 128 bytes; its 16-byte pieces are
turned as wgmma reads them. cp.async brings them, so a convolution's windows too. Rows of B lie such
that a thread has the same four neighbours of the result as in tile.py, whose epilogues serve both.

While a stage is multiplied, the next is waited for: the products of a stage end before the next
but one is fetched, into the memory that they read.
"""

from types import SimpleNamespace
from typing import Any

from refsd.numba_ops.cuda.tile import Tile, epilogues, rows_of

DEPTH, STAGES, AHEAD = 64, 4, 2
CHUNKS = DEPTH // 8


def core(gpu: Any, dtype: str, rows: int, columns: int) -> SimpleNamespace:
    """As tile.core; sums (1, columns / 8, 4)."""
    tile = Tile(rows, columns, 16, columns)
    parts = SimpleNamespace(
        half=gpu.float16 if dtype == "float16" else gpu.uint16, stages=STAGES, depth=DEPTH,
        threads=tile.threads, sums=(1, columns // 8), shared=2 * STAGES * DEPTH * (rows + columns),
        copy=gpu.copy16, place_a=_place(gpu, 0, rows, False),
        place_b=_place(gpu, STAGES * rows, columns, True))
    parts.rows_a = rows_of(gpu, parts, parts.place_a, rows)
    parts.rows_b = rows_of(gpu, parts, parts.place_b, columns)
    multiply = _multiply(gpu, dtype, rows, columns)
    parts.pipeline = lambda load_a, load_b: _pipeline(gpu, load_a, load_b, multiply)
    parts.store, parts.store_sums = epilogues(gpu, dtype, tile)
    return parts


def _place(gpu, first, rows, dealt):
    """Where a piece of a row lies. dealt: of 16 rows 4 q to 4 q + 3 as 2 q, 2 q + 1, and + 8."""
    uint32 = gpu.uint32

    def place(slot, row, piece):
        if dealt:
            row = ((row & uint32(0xFFFFFFF0)) | ((row & uint32(2)) << uint32(2))
                   | ((row & uint32(12)) >> uint32(1)) | (row & uint32(1)))
        turned = piece ^ (row & uint32(7))
        row = uint32(first) + slot * uint32(rows) + row
        return uint32((row * uint32(CHUNKS) + turned) * uint32(8))

    return gpu.device(place)


def _multiply(gpu, dtype, rows, columns):
    uint32 = gpu.uint32
    wgmma = gpu.wgmma(columns, "f16" if dtype == "float16" else "bf16")

    def multiply(memory, slot, sums, t):
        """Begin a stage's products: 16 halves are 32 bytes of a row."""
        a = uint32((slot * uint32(rows) + (t >> uint32(7)) * uint32(64)) * uint32(DEPTH))
        b = uint32((uint32(STAGES * rows) + slot * uint32(columns)) * uint32(DEPTH))
        for step in range(4):
            wgmma(sums, memory, uint32(a + uint32(16 * step)), memory,
                  uint32(b + uint32(16 * step)))

    return gpu.device(multiply)


def _pipeline(gpu, load_a, load_b, multiply):
    cuda, uint32, commit, wait = gpu.cuda, gpu.uint32, gpu.commit, gpu.wait1
    fence, commit_products, fence_async = gpu.wgmma_fence, gpu.wgmma_commit, gpu.fence_async
    wait_products, wait_all_products = gpu.wgmma_wait1, gpu.wgmma_wait0

    def products(memory, sums, a, b, first, last, t):
        """sums (1, columns / 8, 4) += the products of stages first to last - 1."""
        for s in range(AHEAD):
            if first + uint32(s) < last:
                load_a(memory, uint32(s), uint32(first + uint32(s)), a, t)
                load_b(memory, uint32(s), uint32(first + uint32(s)), b, t)
            commit()
        stage = uint32(first)
        while stage < last:
            wait()
            fence_async()
            cuda.syncthreads()
            later = uint32(stage + uint32(AHEAD))
            if later < last:
                slot = uint32((later - first) & uint32(STAGES - 1))
                load_a(memory, slot, later, a, t)
                load_b(memory, slot, later, b, t)
            commit()
            fence()
            multiply(memory, uint32((stage - first) & uint32(STAGES - 1)), sums, t)
            commit_products()
            wait_products()
            stage = uint32(stage + uint32(1))
        wait_all_products()

    return gpu.device(products)
