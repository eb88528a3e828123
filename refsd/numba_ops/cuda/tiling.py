"""Which tile computes a product (M, K) x (N, K), and into how many pieces its sums are split.

How a sum is split decides its bits, so it depends on the rows of one image and not on how many
images there are. Tiles do not change bits (tile.py), so they are taken by the cycles that they are
expected to take.
"""

from collections.abc import Callable, Sequence
from typing import Any

from refsd.numba_ops.cuda.plan import Choice
from refsd.numba_ops.cuda.tile import Tile

MULTIPROCESSORS = {75: 72, 80: 108, 86: 84, 89: 128, 90: 132}  # of the largest card of each
MOST = 132
L2 = 40  # bytes a cycle that a multiprocessor has of the cache when all read
IMAGES = 2  # a guided step has two at once
SHORTEST = 256  # products that are worth a block of their own


def pieces(rows: int, N: int, K: int, by: tuple[int, int] = (64, 80)) -> int:
    """As many as fill a GPU, if tiles (rows, columns) of two images do not; rows: of one image."""
    blocks = -(-IMAGES * rows // by[0]) * -(-N // by[1])
    return max(1, min(MOST // blocks, K // SHORTEST))


def cycles(tile: tuple) -> int:
    """Of a multiprocessor for 16 products of each result, by what takes longest.

    rows, columns, and those of a warp on tensor cores: their products (256 a cycle and quarter),
    operands from shared memory, 128 bytes a cycle, and from the L2 cache. rows, columns of float32:
    128 products a cycle, and for each a thread's share of operands.
    """
    rows, columns = tile[:2]
    if len(tile) == 2:
        return max(rows * columns * 16 // 128, (rows + columns) * 8)
    tile = Tile(*tile)
    warps = tile.threads // 32
    products = -(-warps // 4) * (tile.warp_rows * tile.warp_columns * 16 // 256)
    shared = warps * (tile.warp_rows + tile.warp_columns) * 32 // 128
    return max(products, shared, (rows + columns) * 32 // L2)


def of_warpgroups(tile: tuple[int, int]) -> int:
    """The same of rows, columns of wgmma: 1024 products a cycle and warpgroup, no fragments."""
    rows, columns = tile
    groups = rows // 64
    return max(columns * 64 * 16 // 1024, groups * (64 + columns) * 32 // 128,
               (rows + columns) * 32 // L2)


def chosen(factory: Any, dtype: str, tiles: Sequence[tuple], rows: int, M: int, N: int, K: int,
           capability: int, by: tuple[int, int] = (64, 80),
           cycles: Callable[[tuple], int] = cycles) -> Choice:
    """A variant (dtype, *tile), that whose blocks take the fewest cycles; the first of equals.

    by: the tile that pieces are counted with.
    """
    processors, split = MULTIPROCESSORS.get(capability, MOST), pieces(rows, N, K, by)

    def blocks(tile):
        return -(-M // tile[0]) * -(-N // tile[1]) * split

    best = min(tiles, key=lambda tile: -(-blocks(tile) // processors) * cycles(tile))
    return Choice(factory, (dtype, *best), (
        f"tiles of {best[0]} x {best[1]}: {blocks(best)} blocks on {processors} multiprocessors"
        + (f", each sum in {split} pieces" if split > 1 else "")), split)
