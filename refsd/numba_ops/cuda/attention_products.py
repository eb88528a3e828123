"""The two products of flash attention on tensor cores, and how their operands come.

`of` are the constants of a variant: attention_flash.py.
"""

from typing import Any


def fetcher(gpu: Any, of: Any, rows: int) -> Any:
    """Some rows of a head into shared memory; zeros from the last one and from its width on.

    Eight threads a row, so that of all the places of its pieces a thread computes one.
    """
    uint32, copy = gpu.uint32, gpu.copy16_turing if of.turing else gpu.copy16
    commit = gpu.nothing if of.turing else gpu.commit
    PIECES, PITCH, STEP = of.pieces, of.pitch, of.threads // 8
    down, across = -(-rows // STEP), -(-PIECES // 8)

    def fetch(memory, place, source, first, row0, last, step, width, t):
        row, column = uint32(t >> uint32(3)), uint32((t & uint32(7)) * uint32(8))
        to = uint32(place + row * uint32(PITCH) + column)
        left = uint32(last - row0)
        at = uint32(first + (row0 + row) * step + column)
        for i in range(down):
            for j in range(across):
                if ((i + 1) * STEP <= rows or row < uint32(rows - i * STEP)) and (
                        8 * j + 8 <= PIECES or column < uint32(8 * PIECES - 64 * j)):
                    wanted = (uint32(row + uint32(i * STEP)) < left
                              and uint32(column + uint32(64 * j)) < width)
                    here = uint32(at + uint32(i * STEP) * step + uint32(64 * j))
                    copy(memory, uint32(to + uint32(i * STEP * PITCH + 64 * j)), source,
                         here if wanted else uint32(0), wanted)
        commit()

    return gpu.device(fetch)


def scores_of(gpu: Any, of: Any) -> tuple:
    """The queries of a warp into registers; their products with the keys of a block."""
    uint32, float32, ldmatrix, (mma, _, _) = gpu.uint32, gpu.float32, gpu.ldmatrix, _halves(gpu, of)
    TILES, STEPS, SCORES, PITCH = of.tiles, of.steps, of.scores, of.pitch

    def load_queries(memory, queries, warp, lane):
        row = uint32(warp * uint32(16 * TILES) + (lane & uint32(15)))
        at = uint32(row * uint32(PITCH) + (lane >> uint32(4)) * uint32(8))
        for m in range(TILES):
            for i in range(STEPS):
                x = ldmatrix(memory, uint32(at + uint32(16 * m * PITCH + 16 * i)))
                for e in range(4):
                    queries[m, i, e] = x[e]

    def multiply(memory, queries, scores, lane):
        """scores = queries keys^T"""
        for m in range(TILES):
            for i in range(4 * SCORES):
                scores[m, i // 4, i % 4] = float32(0)
        key = uint32((lane >> uint32(4)) * uint32(8) + (lane & uint32(7)))
        at = uint32(key * uint32(PITCH) + (lane >> uint32(3) & uint32(1)) * uint32(8))
        for i in range(STEPS):
            for j in range(0, SCORES, 2):
                x = ldmatrix(memory, uint32(at + uint32(8 * j * PITCH + 16 * i)))
                for m in range(TILES):
                    a = queries[m, i, 0], queries[m, i, 1], queries[m, i, 2], queries[m, i, 3]
                    for h in range(2):
                        d = mma(a, (x[2 * h], x[2 * h + 1]),
                                (scores[m, j + h, 0], scores[m, j + h, 1], scores[m, j + h, 2],
                                 scores[m, j + h, 3]))
                        for e in range(4):
                            scores[m, j + h, e] = d[e]

    return gpu.device(load_queries), gpu.device(multiply)


def values_of(gpu: Any, of: Any) -> Any:
    """The products of weights and values, rows of values taken as columns."""
    cuda, uint32, ldmatrix_t, (mma, pack, ones) = (
        gpu.cuda, gpu.uint32, gpu.ldmatrix_t, _halves(gpu, of))
    TILES, SCORES, COLUMNS, PITCH = of.tiles, of.scores, of.columns, of.pitch
    VALUES, PAIRS = of.keys * of.pitch, of.columns // 2 * 2

    def add(a, m, b, out, j):
        d = mma((a[m, 0], a[m, 1], a[m, 2], a[m, 3]), b,
                (out[m, j, 0], out[m, j, 1], out[m, j, 2], out[m, j, 3]))
        for e in range(4):
            out[m, j, e] = d[e]

    add = gpu.device(add)

    def add_values(memory, weights, out, row_sum, lane):
        """out += weights values, row_sum += weights 1, the weights rounded to halves"""
        a = cuda.local.array((TILES, 4), uint32)
        at = uint32(uint32(VALUES) + (lane & uint32(15)) * uint32(PITCH)
                    + (lane >> uint32(4)) * uint32(8))
        for i in range(0, SCORES, 2):
            for m in range(TILES):
                for e in range(4):
                    a[m, e] = pack(weights[m, i + e // 2, e % 2 * 2],
                                   weights[m, i + e // 2, e % 2 * 2 + 1])
                d = mma((a[m, 0], a[m, 1], a[m, 2], a[m, 3]), (uint32(ones), uint32(ones)),
                        (row_sum[m, 0], row_sum[m, 1], row_sum[m, 2], row_sum[m, 3]))
                for e in range(4):
                    row_sum[m, e] = d[e]
            for j in range(0, PAIRS, 2):
                x = ldmatrix_t(memory, uint32(at + uint32(8 * i * PITCH + 8 * j)))
                for m in range(TILES):
                    add(a, m, (x[0], x[1]), out, j)
                    add(a, m, (x[2], x[3]), out, j + 1)
            if PAIRS < COLUMNS:
                x = ldmatrix_t(memory, uint32(at + uint32(8 * i * PITCH + 8 * PAIRS)))
                for m in range(TILES):
                    add(a, m, (x[0], x[1]), out, PAIRS)

    return gpu.device(add_values)


def _halves(gpu, of):
    """The instruction, how two halves are packed, and two ones."""
    if of.dtype == "bfloat16":
        return gpu.mma_bf16, gpu.pack_bf16, 0x3F803F80
    if of.turing:
        return gpu.mma_f16_turing, gpu.pack_f16, 0x3C003C00
    return gpu.mma_f16, gpu.pack_f16_ampere, 0x3C003C00
