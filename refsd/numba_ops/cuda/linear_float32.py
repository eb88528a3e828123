"""C = A B^T + bias in float32: 128 x 128 of C a block, 8 x 8 a thread, products by fused
multiply-adds of float32. Never TF32."""

from typing import Any

from refsd.numba_ops.cuda.plan import Plan, factory

TILES = ((128, 128), (64, 64))  # the latter where a GPU has more multiprocessors than blocks
DEPTH, SIDE = 8, 16  # products a stage; threads across a block and down
THREADS = SIDE * SIDE
PAD = 4  # floats after a row of a tile: else two lanes of a store would meet in a bank


@factory(each=[("float32", *tile) for tile in TILES])
def registers(gpu: Any, dtype: str, rows: int, columns: int) -> Plan:
    """Of block (x, y, z): rows x, columns y, piece z % pieces of K of product z // pieces.

    c (..., M, N), or, of more than one piece, parts (..., pieces, M, N). K, N and the lengths of
    rows are multiples of 4. Stages lie k by k in shared memory, in two buffers, so that a thread
    reads its rows and columns by fours and one barrier a stage does.
    """
    cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32
    RA, RB, pitch_a, pitch_b = rows // SIDE, columns // SIDE, rows + PAD, columns + PAD
    size_a, size_b = 2 * DEPTH * pitch_a, 2 * DEPTH * pitch_b
    (take_a, put_a), (take_b, put_b) = loader(gpu, rows, pitch_a), loader(gpu, columns, pitch_b)
    multiply, store = multiplier(gpu, RA, RB, pitch_a, pitch_b), storing(gpu, RA, RB)

    def product(a, b, bias, c, parts, M, N, K, a_row, b_row, a_batch, b_batch, biased, pieces):
        As = cuda.shared.array(size_a, float32, 16)
        Bs = cuda.shared.array(size_b, float32, 16)
        sums = cuda.local.array((RA, RB), float32)
        for i in range(RA):
            for j in range(RB):
                sums[i, j] = float32(0)
        t, z = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.z)
        row0 = uint32(cuda.blockIdx.x) * uint32(rows)
        column0 = uint32(cuda.blockIdx.y) * uint32(columns)
        batch, piece = z // pieces, z % pieces
        stages = (K + uint32(DEPTH - 1)) // uint32(DEPTH)
        share = (stages + pieces - uint32(1)) // pieces
        k = piece * share * uint32(DEPTH)
        end = min(k + share * uint32(DEPTH), K)
        of_a, of_b = batch * a_batch, batch * b_batch
        late = uint32(THREADS - 1) - t  # loads B: of a small tile, threads that do not load A
        put_a(As, uint32(0), take_a(a, of_a, row0, M, a_row, k, end, t), t)
        put_b(Bs, uint32(0), take_b(b, of_b, column0, N, b_row, k, end, late), late)
        cuda.syncthreads()
        slot = uint32(0)
        while k < end:
            k += uint32(DEPTH)
            next_a = take_a(a, of_a, row0, M, a_row, k, end, t)
            next_b = take_b(b, of_b, column0, N, b_row, k, end, late)
            multiply(As, Bs, slot, sums, t)
            slot ^= uint32(1)
            put_a(As, slot, next_a, t)
            put_b(Bs, slot, next_b, late)
            cuda.syncthreads()
        if pieces == uint32(1):
            store(c, batch * M * N, bias, biased, sums, row0, column0, M, N, t)
        else:
            store(parts, z * M * N, bias, uint32(0), sums, row0, column0, M, N, t)

    array = gpu.array("float32")
    return Plan(product, (*[array] * 5, *[gpu.uint32] * 9), THREADS)


def loader(gpu, rows, pitch):
    """take: four of a row of a matrix into registers, zeros outside; put: from there to a stage."""
    uint32, float32, load4 = gpu.uint32, gpu.float32, gpu.load4

    def take(matrix, first, row0, count, length, k0, end, t):
        row, k = row0 + t // uint32(2), k0 + t % uint32(2) * uint32(4)
        if t < uint32(2 * rows) and row < count and k < end:
            return load4(matrix, first + row * length + k)
        return float32(0), float32(0), float32(0), float32(0)

    def put(tile, slot, x, t):
        if t < uint32(2 * rows):
            at = (slot * uint32(DEPTH) + t % uint32(2) * uint32(4)) * uint32(pitch) + t // uint32(2)
            for e in range(4):
                tile[at + uint32(e * pitch)] = x[e]

    return gpu.device(take), gpu.device(put)


def multiplier(gpu, RA, RB, pitch_a, pitch_b):
    """A stage's products: a thread's rows and columns are fours, 64 apart."""
    cuda, uint32, float32, load4 = gpu.cuda, gpu.uint32, gpu.float32, gpu.load4

    def multiply(As, Bs, slot, sums, t):
        ra = cuda.local.array(RA, float32)
        rb = cuda.local.array(RB, float32)
        down, across = t // uint32(SIDE) * uint32(4), t % uint32(SIDE) * uint32(4)
        for d in range(DEPTH):
            k = slot * uint32(DEPTH) + uint32(d)
            for i in range(0, RA, 4):
                x = load4(As, k * uint32(pitch_a) + uint32(16 * i) + down)
                ra[i], ra[i + 1], ra[i + 2], ra[i + 3] = x[0], x[1], x[2], x[3]
            for j in range(0, RB, 4):
                x = load4(Bs, k * uint32(pitch_b) + uint32(16 * j) + across)
                rb[j], rb[j + 1], rb[j + 2], rb[j + 3] = x[0], x[1], x[2], x[3]
            for i in range(RA):
                for j in range(RB):
                    sums[i, j] += ra[i] * rb[j]

    return gpu.device(multiply)


def storing(gpu, RA, RB):
    """c[first:] (M, N) = sums, + bias if there is one."""
    uint32, float32, load4, store4 = gpu.uint32, gpu.float32, gpu.load4, gpu.store4

    def store(c, first, bias, biased, sums, row0, column0, M, N, t):
        down, across = t // uint32(SIDE) * uint32(4), t % uint32(SIDE) * uint32(4)
        for j in range(0, RB, 4):
            q = column0 + uint32(16 * j) + across
            if q < N:
                x = float32(0), float32(0), float32(0), float32(0)
                if biased:
                    x = load4(bias, q)
                for i in range(RA):
                    r = row0 + uint32(64 * (i // 4) + i % 4) + down
                    if r < M:
                        store4(c, first + r * N + q, (sums[i, j] + x[0], sums[i, j + 1] + x[1],
                                                      sums[i, j + 2] + x[2], sums[i, j + 3] + x[3]))

    return gpu.device(store)
