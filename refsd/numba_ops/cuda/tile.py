"""Tensor-core tiles of halves: C = A B^T of a block, summed in float32.   A (M, K), B (N, K)

A block has `rows` x `columns` of C; each of its warps has `warp_rows` x `warp_columns` of them. It
goes along K in stages of DEPTH: while one is multiplied, the next are on their way into shared
memory. A kernel is made of it like this (linear_tiles.py; a convolution has another loader of A):

    tile = core(gpu, dtype, Tile(128, 128, 64, 64))
    products, store = tile.pipeline(tile.rows_a, tile.rows_b), tile.store

    def kernel(...):
        memory = cuda.shared.array(0, half, 16)               # Plan(..., shared=tile.shared)
        sums = cuda.local.array((MT, NT, 4), float32)         # MT, NT = tile.sums; zero them
        products(memory, sums, a, b, first, last, t)          # += stages first to last - 1
        store(c, at, bias, biased, sums, row0, column0, M, N, t)  # c[at:] (M, N) = sums + bias

A loader is a device function load(memory, slot, stage, source, t) that copies one operand's stage
`stage` (its k from stage * DEPTH) to `place_a(slot, row, piece)` or `place_b`, by `tile.copy` (or
plain stores), `source` being the tuple that the kernel gave as a or b. Of its rows a thread takes
`t // CHUNKS + i * (threads // CHUNKS)`, of each the 16 bytes `piece = t % CHUNKS`. It is called
once a stage, in order, so a source may hold a local array that counts. rows_a and rows_b are those
of a matrix.

The products of an element are added as k grows, 16 at a time, whatever the shapes of tiles are: so
they may depend on M, and its bits do not. K, N and the lengths of rows are multiples of 8.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

from refsd.numba_ops.cuda.numbers import reader

DEPTH = 32  # products a stage: two instructions of 16
CHUNKS = DEPTH // 8  # pieces of 16 bytes in a row of a stage


class Tile(NamedTuple):
    """A block's share of the result and a warp's, multiples of 16."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.rows // self.warp_rows) * (self.columns // self.warp_columns)


def core(gpu: Any, dtype: str, tile: Tile, turing: bool = False) -> SimpleNamespace:
    """The device functions of a tile, and its constants: half, sums (shape), shared, threads."""
    half = gpu.float16 if dtype == "float16" else gpu.uint16
    stages = 2 if turing else 3
    place_a = _place(gpu, 0, tile.rows, 1)
    place_b = _place(gpu, stages * tile.rows, tile.columns, 2)
    parts = SimpleNamespace(
        half=half, stages=stages, threads=tile.threads, place_a=place_a, place_b=place_b,
        sums=(tile.warp_rows // 16, tile.warp_columns // 8),
        shared=2 * stages * DEPTH * (tile.rows + tile.columns),
        copy=gpu.copy16_turing if turing else gpu.copy16, depth=DEPTH)
    parts.rows_a = rows_of(gpu, parts, place_a, tile.rows)
    parts.rows_b = rows_of(gpu, parts, place_b, tile.columns)
    multiply = _multiply(gpu, dtype, tile, parts, turing)
    parts.pipeline = lambda load_a, load_b: _pipeline(gpu, parts, load_a, load_b, multiply, turing)
    parts.store, parts.store_sums = epilogues(gpu, dtype, tile)
    return parts


def _place(gpu, first, rows, shift):
    """Where a piece of a row lies: turned about, so that the 8 rows of a load meet all banks.

    Two rows fill the 32 banks. A's loads take rows 0 to 7, so the second bit on tells the pairs
    apart; B's take 0, 1, 4, 5, 8, 9, 12, 13, or those + 2: the third (`_multiply` says why).
    """
    uint32 = gpu.uint32

    def place(slot, row, piece):
        turned = piece ^ ((row >> uint32(shift)) & uint32(CHUNKS - 1))
        row = uint32(first) + slot * uint32(rows) + row
        return uint32((row * uint32(CHUNKS) + turned) * uint32(8))

    return gpu.device(place)


def rows_of(gpu: Any, parts: SimpleNamespace, place: Any, rows: int) -> Any:
    """A loader.   source (matrix, row0, rows, K, length of a row, first element)"""
    uint32, copy, depth, chunks = gpu.uint32, parts.copy, parts.depth, parts.depth // 8
    step = parts.threads // chunks
    loads, exact = -(-rows // step), rows % step == 0

    def load(memory, slot, stage, source, t):
        matrix, row0, count, K, length, first = source
        piece = uint32(t % uint32(chunks))
        k = uint32(stage * uint32(depth) + piece * uint32(8))
        for i in range(loads):
            row = uint32(t // uint32(chunks) + uint32(i * step))
            if exact or row < uint32(rows):
                wanted = uint32(row0 + row) < count and k < K
                at = uint32(first + uint32(row0 + row) * length + k)
                copy(memory, place(slot, row, piece), matrix, at if wanted else uint32(0), wanted)

    return gpu.device(load)


def _pipeline(gpu, parts, load_a, load_b, multiply, turing):
    cuda, uint32 = gpu.cuda, gpu.uint32
    end, wait = (gpu.nothing, gpu.nothing) if turing else (gpu.commit, gpu.wait1)
    ahead = parts.stages - 1

    def products(memory, sums, a, b, first, last, t):
        """sums (MT, NT, 4) += the products of stages first to last - 1."""
        for s in range(ahead):
            if first + uint32(s) < last:
                load_a(memory, uint32(s), first + uint32(s), a, t)
                load_b(memory, uint32(s), first + uint32(s), b, t)
            end()
        slot, fill = uint32(0), uint32(ahead)
        stage = uint32(first)
        while stage < last:
            wait()
            cuda.syncthreads()
            later = uint32(stage + uint32(ahead))
            if later < last:
                load_a(memory, fill, later, a, t)
                load_b(memory, fill, later, b, t)
            end()
            multiply(memory, slot, sums, t)
            slot = uint32(0) if slot == uint32(ahead) else uint32(slot + uint32(1))
            fill = uint32(0) if fill == uint32(ahead) else uint32(fill + uint32(1))
            stage = uint32(stage + uint32(1))

    return gpu.device(products)


def _multiply(gpu, dtype, tile, parts, turing):
    """A stage's products.

    Of an instruction's 16 x 8 results a thread has columns 2 q and 2 q + 1, q = t % 4. Two
    instructions share 16 columns such that it has 4 q to 4 q + 3: the first is given the rows of B
    0, 1, 4, 5, 8, 9, 12, 13, the second those + 2. So results are stored four by four.
    """
    cuda, uint32, ldmatrix = gpu.cuda, gpu.uint32, gpu.ldmatrix
    mma = gpu.mma_bf16 if dtype == "bfloat16" else gpu.mma_f16_turing if turing else gpu.mma_f16
    place_a, place_b, (MT, NT) = parts.place_a, parts.place_b, parts.sums
    across, warp_rows, warp_columns = (
        tile.columns // tile.warp_columns, tile.warp_rows, tile.warp_columns)

    def step16(memory, slot, piece, row_a, row_b, sums):
        fa = cuda.local.array((MT, 4), uint32)
        fb = cuda.local.array((NT, 2), uint32)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        for m in range(MT):
            x = ldmatrix(memory, place_a(slot, uint32(row_a + uint32(16 * m)),
                                         piece + (lane >> uint32(4))))
            fa[m, 0], fa[m, 1], fa[m, 2], fa[m, 3] = x[0], x[1], x[2], x[3]
        for n in range(0, NT, 2):
            x = ldmatrix(memory, place_b(slot, uint32(row_b + uint32(8 * n)),
                                         piece + ((lane >> uint32(3)) & uint32(1))))
            fb[n, 0], fb[n, 1], fb[n + 1, 0], fb[n + 1, 1] = x[0], x[1], x[2], x[3]
        for m in range(MT):
            for n in range(NT):
                d = mma((fa[m, 0], fa[m, 1], fa[m, 2], fa[m, 3]), (fb[n, 0], fb[n, 1]),
                        (sums[m, n, 0], sums[m, n, 1], sums[m, n, 2], sums[m, n, 3]))
                for e in range(4):
                    sums[m, n, e] = d[e]

    step16 = gpu.device(step16)

    def multiply(memory, slot, sums, t):
        warp, lane, i = t >> uint32(5), t & uint32(31), t & uint32(7)
        row_a = (warp // uint32(across)) * uint32(warp_rows) + (lane & uint32(15))
        row_b = ((warp % uint32(across)) * uint32(warp_columns) + (i >> uint32(1)) * uint32(4)
                 + (i & uint32(1)) + (lane >> uint32(4)) * uint32(2))
        if turing:  # a loop to the compiler: two instructions each need more registers
            for piece in range(0, CHUNKS, 2):
                step16(memory, slot, uint32(piece), uint32(row_a), uint32(row_b), sums)
        else:
            step16(memory, slot, uint32(0), uint32(row_a), uint32(row_b), sums)
            step16(memory, slot, uint32(2), uint32(row_a), uint32(row_b), sums)

    return gpu.device(multiply)


def epilogues(gpu: Any, dtype: str, tile: Tile) -> tuple[Any, Any]:
    """store: to halves, with a bias; store_sums: as they are, for another kernel to add."""
    uint32, store4, store_pairs = gpu.uint32, gpu.store4, gpu.store_pairs
    pack = gpu.pack_f16 if dtype == "float16" else gpu.pack_bf16
    read, float32 = reader(gpu, dtype), gpu.float32
    MT, NT = tile.warp_rows // 16, tile.warp_columns // 8
    across = tile.columns // tile.warp_columns
    warp_rows, warp_columns = tile.warp_rows, tile.warp_columns

    def corner(row0, column0, t):
        """The first row and column that a thread has."""
        warp, lane = t >> uint32(5), t & uint32(31)
        return (row0 + (warp // uint32(across)) * uint32(warp_rows) + (lane >> uint32(2)),
                column0 + (warp % uint32(across)) * uint32(warp_columns)
                + (lane & uint32(3)) * uint32(4))

    corner = gpu.device(corner)

    def store(c, first, bias, biased, sums, row0, column0, M, N, t):
        row, column = corner(row0, column0, t)
        for n in range(0, NT, 2):
            q = column + uint32(8 * n)
            if q < N:
                b0, b1, b2, b3 = float32(0), float32(0), float32(0), float32(0)
                if biased:
                    b0, b1 = read(bias, q), read(bias, q + uint32(1))
                    b2, b3 = read(bias, q + uint32(2)), read(bias, q + uint32(3))
                for m in range(MT):
                    for h in range(2):
                        r = row + uint32(16 * m + 8 * h)
                        if r < M:
                            store_pairs(
                                c, first + r * N + q,
                                pack(sums[m, n, 2 * h] + b0, sums[m, n, 2 * h + 1] + b1),
                                pack(sums[m, n + 1, 2 * h] + b2, sums[m, n + 1, 2 * h + 1] + b3))

    def store_sums(parts, first, sums, row0, column0, M, N, t):
        row, column = corner(row0, column0, t)
        for n in range(0, NT, 2):
            q = column + uint32(8 * n)
            if q < N:
                for m in range(MT):
                    for h in range(2):
                        r = row + uint32(16 * m + 8 * h)
                        if r < M:
                            store4(parts, first + r * N + q, (
                                sums[m, n, 2 * h], sums[m, n, 2 * h + 1],
                                sums[m, n + 1, 2 * h], sums[m, n + 1, 2 * h + 1]))

    return gpu.device(store), gpu.device(store_sums)
