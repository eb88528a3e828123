"""Attention by tiles in float32: for float32, and for halves whose heads tensor cores do not take.

A block has 16 queries a warp; eight threads share four of them, so that the largest score and the
sum of a query meet by shuffles within a warp. Scores are a product in pieces of DEPTH features that
all warps load together, transposed; the weights go to shared memory, where only the warp that made
them reads them; then come the values, DEPTH keys at a time. A thread has 4 queries x 4 columns of
every 32: three loads of 16 bytes for 32 products of scores, one for 16 of values.

Values that are wider than `width` are computed part by part, each with the scores anew.
"""

import math
from typing import Any

from refsd.numba_ops.cuda.attention_call import WARP, signature
from refsd.numba_ops.cuda.numbers import reader, widener, writer
from refsd.numba_ops.cuda.plan import Plan, factory
from refsd.numba_ops.cuda.warp import FULL

DEPTH = 16
# Columns of the values a block, multiples of 32; warps, keys in a block of them.
SHAPES = [(64, 4, 64), (96, 4, 64), (128, 4, 32)]
WIDEST = SHAPES[-1]


@factory(each=[*[("float32", *shape) for shape in SHAPES],
               ("float16", *WIDEST), ("bfloat16", *WIDEST)])
def attention_tiles(gpu: Any, dtype: str, width: int, warps: int, keys: int) -> Plan:
    """Widths are multiples of the elements in 16 bytes."""
    cuda, uint32, float32, lowest = gpu.cuda, gpu.uint32, gpu.float32, gpu.float32(-math.inf)
    THREADS, ROWS, KEYS, WIDTH = WARP * warps, 16 * warps, keys, width
    PIECES, WEIGHTS = DEPTH * max(ROWS + keys, width), ROWS * keys
    SCORES, COLUMNS = keys // 8, width // 8  # of a thread
    fetch_queries, fetch_keys, fetch_values = _fetch(gpu, dtype, THREADS, ROWS, keys, width)
    multiply, add_values = _scores(gpu, ROWS, keys), _values(gpu, keys, width)
    hide, weigh = _hide(gpu, dtype, keys), _weigh(gpu, keys, width)
    store = _store(gpu, dtype, width)

    def attention(q, k, v, mask, y, scale, masked, causal, heads, L, S, d, e, q_image, q_row,
                  k_image, k_row, v_image, v_row, mask_image, mask_head, mask_query, mask_key):
        pieces = cuda.shared.array(PIECES, float32, 16)
        weights = cuda.shared.array(WEIGHTS, float32, 16)
        scores = cuda.local.array((4, SCORES), float32)
        acc = cuda.local.array((4, COLUMNS), float32)
        row_max = cuda.local.array(4, float32)
        row_sum = cuda.local.array(4, float32)
        t, image = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.y)
        n, head = uint32(image // heads), uint32(image % heads)
        row0 = uint32(uint32(cuda.blockIdx.x) * uint32(ROWS))
        column0 = uint32(uint32(cuda.blockIdx.z) * uint32(WIDTH))
        mine, four = uint32(t // uint32(8) * uint32(4)), uint32(t % uint32(8) * uint32(4))
        row = uint32(row0 + mine)
        first_query, first_key = uint32(n * q_image + head * d), uint32(n * k_image + head * d)
        first_value = uint32(n * v_image + head * e + column0)
        masks = uint32(n * mask_image + head * mask_head)
        for r in range(4):
            row_max[r], row_sum[r] = lowest, float32(0)
            for c in range(COLUMNS):
                acc[r, c] = float32(0)

        for start in range(uint32(0), S, uint32(KEYS)):
            key = uint32(start)
            for r in range(4):
                for c in range(SCORES):
                    scores[r, c] = float32(0)
            for feature in range(uint32(0), d, uint32(DEPTH)):
                cuda.syncthreads()
                fetch_queries(pieces, q, first_query, q_row, row0, L, uint32(feature), d, t)
                fetch_keys(pieces, k, first_key, k_row, key, S, uint32(feature), d, t)
                cuda.syncthreads()
                multiply(pieces, scores, mine, four)
            hide(scores, scale, masked, mask, masks, mask_query, mask_key, causal, row,
                 uint32(key + four), L, S)
            weigh(scores, row_max, row_sum, acc, weights, uint32(mine * uint32(KEYS) + four))
            for first in range(0, KEYS, DEPTH):
                cuda.syncthreads()
                fetch_values(pieces, v, first_value, v_row, uint32(key + uint32(first)), S,
                             uint32(e - column0), t)
                cuda.syncthreads()
                add_values(pieces, weights, acc, mine, four, uint32(first))
        store(y, uint32((n * L * heads + head) * e), uint32(heads * e), row, L,
              uint32(column0 + four), e, acc, row_sum)

    return Plan(attention, signature(gpu, dtype), THREADS)


def _fetch(gpu, dtype, threads, rows, keys, width):
    """Loaders of pieces, as float32: features x queries, features x keys, keys x columns."""
    uint32, float32, load4, store4 = gpu.uint32, gpu.float32, gpu.load4, gpu.store4
    widen, PER = widener(gpu, dtype), 4 if dtype == "float32" else 8

    def transposed(count, place):
        loads = -(-count * (DEPTH // PER) // threads)
        whole = count * (DEPTH // PER)

        def fetch(pieces, source, first, step, row0, last, feature, width, t):
            for i in range(loads):
                at = uint32(t + uint32(i * threads))
                if whole % threads == 0 or at < uint32(whole):
                    row = uint32(at % uint32(count))
                    column = uint32(at // uint32(count) * uint32(PER))
                    to = uint32(uint32(place) + column * uint32(count) + row)
                    if row0 + row < last and feature + column < width:
                        x = load4(source, uint32(first + (row0 + row) * step + feature + column))
                        for c in range(PER):
                            pieces[uint32(to + uint32(c * count))] = widen(x[c])
                    else:
                        for c in range(PER):
                            pieces[uint32(to + uint32(c * count))] = float32(0)

        return gpu.device(fetch)

    across = width // PER
    all_values = DEPTH * across

    def fetch_values(pieces, source, first, step, key0, last, columns, t):
        for i in range(-(-all_values // threads)):
            at = uint32(t + uint32(i * threads))
            if all_values % threads == 0 or at < uint32(all_values):
                key = uint32(at // uint32(across))
                column = uint32(at % uint32(across) * uint32(PER))
                to = uint32(key * uint32(width) + column)
                if key0 + key < last and column < columns:
                    x = load4(source, uint32(first + (key0 + key) * step + column))
                    for c in range(0, PER, 4):
                        store4(pieces, uint32(to + uint32(c)), (
                            widen(x[c]), widen(x[c + 1]), widen(x[c + 2]), widen(x[c + 3])))
                else:
                    for c in range(0, PER, 4):
                        store4(pieces, uint32(to + uint32(c)),
                               (float32(0), float32(0), float32(0), float32(0)))

    return transposed(rows, 0), transposed(keys, DEPTH * rows), gpu.device(fetch_values)


def _scores(gpu, rows, keys):
    """scores += queries keys^T, of DEPTH features."""
    uint32, load4 = gpu.uint32, gpu.load4

    def multiply(pieces, scores, mine, four):
        for i in range(DEPTH):
            a = load4(pieces, uint32(mine + uint32(i * rows)))
            for j in range(0, keys, 32):
                b = load4(pieces, uint32(four + uint32(DEPTH * rows + i * keys + j)))
                for r in range(4):
                    for c in range(4):
                        scores[r, j // 8 + c] += a[r] * b[c]

    return gpu.device(multiply)


def _values(gpu, keys, width):
    """acc += weights values, of DEPTH keys."""
    uint32, load4, COLUMNS = gpu.uint32, gpu.load4, width // 32

    def add_values(pieces, weights, acc, mine, four, first):
        for i in range(0, DEPTH, 4):
            at = uint32(mine * uint32(keys) + first + uint32(i))
            w0, w1 = load4(weights, at), load4(weights, uint32(at + uint32(keys)))
            w2, w3 = (load4(weights, uint32(at + uint32(2 * keys))),
                      load4(weights, uint32(at + uint32(3 * keys))))
            for h in range(4):
                for j in range(COLUMNS):
                    b = load4(pieces, uint32(four + uint32((i + h) * width + 32 * j)))
                    for c in range(4):
                        acc[0, 4 * j + c] += w0[h] * b[c]
                        acc[1, 4 * j + c] += w1[h] * b[c]
                        acc[2, 4 * j + c] += w2[h] * b[c]
                        acc[3, 4 * j + c] += w3[h] * b[c]

    return gpu.device(add_values)


def _hide(gpu, dtype, keys):
    """Scores are scaled, the mask added, and -inf for keys that are not there or come after."""
    uint32, lowest, read = gpu.uint32, gpu.float32(-math.inf), reader(gpu, dtype)
    SCORES = keys // 32

    def hide(scores, scale, masked, mask, first, query_step, key_step, causal, row0, key0, L, S):
        for r in range(4):
            row = uint32(row0 + uint32(r))
            end = min(S, uint32(row + uint32(1))) if causal else S
            left = uint32(end - key0) if key0 < end else uint32(0)
            at = uint32(first + row * query_step + key0 * key_step)
            for j in range(SCORES):
                for c in range(4):
                    score, ahead = scores[r, 4 * j + c] * scale, uint32(32 * j + c)
                    if masked and ahead < left and row < L:
                        score += read(mask, uint32(at + ahead * key_step))
                    scores[r, 4 * j + c] = score if ahead < left else lowest

    return gpu.device(hide)


def _weigh(gpu, keys, width):
    """weights = e^(scores - m'); row_max, row_sum and acc go from m to m'."""
    cuda, uint32, float32, exp, larger = gpu.cuda, gpu.uint32, gpu.float32, gpu.exp, gpu.larger
    store4, lowest, SCORES, COLUMNS = gpu.store4, float32(-math.inf), keys // 32, width // 8

    def weigh(scores, row_max, row_sum, acc, weights, place):
        for r in range(4):
            best = row_max[r]
            for c in range(4 * SCORES):
                best = larger(best, scores[r, c])
            for lanes in (1, 2, 4):
                best = larger(best, cuda.shfl_xor_sync(FULL, best, lanes))
            shift = float32(0) if best == lowest else best  # no key has been seen yet
            rescale, row_max[r] = exp(row_max[r] - shift), best
            part = float32(0)
            for j in range(SCORES):
                for c in range(4):
                    scores[r, 4 * j + c] = exp(scores[r, 4 * j + c] - shift)
                    part += scores[r, 4 * j + c]
                store4(weights, uint32(place + uint32(r * keys + 32 * j)), (
                    scores[r, 4 * j], scores[r, 4 * j + 1], scores[r, 4 * j + 2],
                    scores[r, 4 * j + 3]))
            row_sum[r] = row_sum[r] * rescale + part
            for c in range(COLUMNS):
                acc[r, c] *= rescale

    return gpu.device(weigh)


def _store(gpu, dtype, width):
    cuda, uint32, float32, store4 = gpu.cuda, gpu.uint32, gpu.float32, gpu.store4
    write, COLUMNS, whole_vectors = writer(gpu, dtype), width // 32, dtype == "float32"

    def store(y, first, step, row0, L, column, e, acc, row_sum):
        """A query that sees no key has the sum 0, and gives 0."""
        for r in range(4):
            whole, row = row_sum[r], uint32(row0 + uint32(r))
            for lanes in (1, 2, 4):
                whole += cuda.shfl_xor_sync(FULL, whole, lanes)
            share = float32(1) / (whole if whole > float32(0) else float32(1))
            at = uint32(first + row * step + column)
            for j in range(COLUMNS):
                if row < L and column + uint32(32 * j) < e:
                    if whole_vectors:
                        store4(y, uint32(at + uint32(32 * j)), (
                            acc[r, 4 * j] * share, acc[r, 4 * j + 1] * share,
                            acc[r, 4 * j + 2] * share, acc[r, 4 * j + 3] * share))
                    else:
                        for c in range(4):
                            write(y, uint32(at + uint32(32 * j + c)), acc[r, 4 * j + c] * share)

    return gpu.device(store)
