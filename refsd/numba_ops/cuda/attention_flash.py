"""Attention of halves on tensor cores: neither scores nor weights leave the registers.

A warp has `tiles` times 16 queries. Block by block of keys, their scores are one product of tensor
cores, and what becomes of them, the weights, is at once the left operand of another: an instruction
leaves a 16 x 8 result just as the next one wants half of its 16 x 16 operand. So weights are
rounded to halves, and their sum is that of the rounded ones: a product with ones, whose rounding is
the same. The bound of that is agreement_bounds.of_dtype's, products="matrix".

In shared memory are the block's keys and values (the queries before them, once): while the scores
are made, the values are on their way, and during the second product the next keys. Rows are an odd
number of 16-byte pieces apart, so that the 8 rows of a load meet all banks.

Thread t of a warp has rows t / 4 and t / 4 + 8 of a tile, and of every 8 columns 2 (t % 4) and the
next: element e of four is in row 8 (e / 2), column e % 2 of these.
"""

import math
from types import SimpleNamespace
from typing import Any

from refsd.numba_ops.cuda.attention_call import WARP, signature
from refsd.numba_ops.cuda.attention_products import fetcher, scores_of, values_of
from refsd.numba_ops.cuda.numbers import reader
from refsd.numba_ops.cuda.plan import AMPERE, TURING, Plan, factory
from refsd.numba_ops.cuda.warp import FULL

LOG2_E = 1 / math.log(2)
# Widest head, whether there is a mask; warps, tiles of 16 queries in each, keys in a block.
PLAIN = [(40, False, 4, 2, 64), (64, False, 4, 2, 64), (80, False, 4, 1, 64),
         (128, False, 4, 1, 64), (160, False, 4, 1, 32), (256, False, 4, 1, 16)]
MASKED = [(64, True, 4, 1, 64), (128, True, 4, 1, 32), (256, True, 4, 1, 16)]


@factory(each=[(dtype, *shape) for dtype in ("float16", "bfloat16") for shape in PLAIN + MASKED],
         since=AMPERE)
def attention_flash(gpu: Any, dtype: str, *shape: Any) -> Plan:
    """Heads of up to so many columns, any multiple of 8."""
    return _plan(gpu, dtype, *shape, turing=False)


@factory(each=[("float16", *shape) for shape in PLAIN if shape[0] in (40, 64, 80, 160)],
         since=TURING)
def attention_flash_turing(gpu: Any, dtype: str, *shape: Any) -> Plan:
    """The same where copies pass through registers and products are half as deep."""
    return _plan(gpu, dtype, *shape, turing=True)


def _plan(gpu, dtype, width, masked, warps, tiles, keys, turing):
    padded = -(-width // 16) * 16
    shape = SimpleNamespace(
        width=width, masked=masked, turing=turing, dtype=dtype, tiles=tiles, keys=keys,
        threads=WARP * warps, rows=16 * tiles * warps, pitch=padded + 8, pieces=padded // 8,
        steps=padded // 16, scores=keys // 8, columns=width // 8,
        half=gpu.float16 if dtype == "float16" else gpu.uint16)
    return Plan(_kernel(gpu, shape), signature(gpu, dtype), shape.threads)


def _kernel(gpu, of):
    cuda, uint32, float32, half = gpu.cuda, gpu.uint32, gpu.float32, of.half
    lowest, log2_e, masked = float32(-math.inf), float32(LOG2_E), of.masked
    TILES, STEPS, SCORES, COLUMNS, KEYS, ROWS = (
        of.tiles, of.steps, of.scores, of.columns, of.keys, of.rows)
    VALUES, SIZE = KEYS * of.pitch, max(2 * KEYS, ROWS) * of.pitch
    wait = gpu.nothing if of.turing else gpu.wait0
    fetch_queries, fetch = fetcher(gpu, of, ROWS), fetcher(gpu, of, KEYS)
    (load_queries, multiply), add_values = scores_of(gpu, of), values_of(gpu, of)
    hide, weigh, store = _hide(gpu, of), _weigh(gpu, of), _store(gpu, of)

    def attention(q, k, v, mask, y, scale, _, causal, heads, L, S, d, e, q_image, q_row, k_image,
                  k_row, v_image, v_row, mask_image, mask_head, mask_query, mask_key):
        memory = cuda.shared.array(SIZE, half, 16)
        queries = cuda.local.array((TILES, STEPS, 4), uint32)
        scores = cuda.local.array((TILES, SCORES, 4), float32)
        out = cuda.local.array((TILES, COLUMNS, 4), float32)
        row_sum = cuda.local.array((TILES, 4), float32)
        row_max = cuda.local.array((TILES, 2), float32)
        t = uint32(cuda.threadIdx.x)
        lane, warp = uint32(t & uint32(31)), uint32(t >> uint32(5))
        of = uint32(cuda.blockIdx.y)
        n, head, zero = uint32(of // heads), uint32(of % heads), uint32(0)
        row0 = uint32(uint32(cuda.blockIdx.x) * uint32(ROWS))
        row = uint32(row0 + warp * uint32(16 * TILES) + (lane >> uint32(2)))
        first_query, first_key = uint32(n * q_image + head * d), uint32(n * k_image + head * d)
        first_value = uint32(n * v_image + head * e)
        masks = uint32(n * mask_image + head * mask_head)
        powers = log2_e if masked else scale * log2_e

        fetch_queries(memory, zero, q, first_query, row0, L, q_row, d, t)
        wait()
        cuda.syncthreads()
        load_queries(memory, queries, warp, lane)
        cuda.syncthreads()
        for m in range(TILES):
            for i in range(4):
                row_sum[m, i], row_max[m, i // 2] = float32(0), lowest
                for j in range(COLUMNS):
                    out[m, j, i] = float32(0)
        fetch(memory, zero, k, first_key, zero, S, k_row, d, t)

        for start in range(zero, S, uint32(KEYS)):
            key, later = uint32(start), uint32(start + uint32(KEYS))
            wait()
            cuda.syncthreads()
            fetch(memory, uint32(VALUES), v, first_value, key, S, v_row, e, t)
            multiply(memory, queries, scores, lane)
            if masked or causal or later > S:
                hide(scores, scale, mask, masks, mask_query, mask_key, causal, row, key, L, S, lane)
            weigh(scores, powers, row_max, row_sum, out)
            wait()
            cuda.syncthreads()
            if later < S:
                fetch(memory, zero, k, first_key, later, S, k_row, d, t)
            add_values(memory, scores, out, row_sum, lane)
        store(y, uint32((n * L * heads + head) * e), heads * e, row, L, e, out, row_sum, lane)

    return attention


def _hide(gpu, of):
    """The mask added to scaled scores, and -inf for keys that are not there or come after."""
    uint32, lowest, read = gpu.uint32, gpu.float32(-math.inf), reader(gpu, of.dtype)
    TILES, SCORES, masked = of.tiles, of.scores, of.masked

    def hide(scores, scale, mask, first, query_step, key_step, causal, row0, key0, L, S, lane):
        key = uint32(key0 + (lane & uint32(3)) * uint32(2))
        for m in range(TILES):
            for h in range(2):
                row = uint32(row0 + uint32(16 * m + 8 * h))
                end = min(S, uint32(row + uint32(1))) if causal else S
                left = uint32(end - key) if key < end else uint32(0)
                at = uint32(first + row * query_step + key * key_step)
                for j in range(SCORES):
                    for e in range(2):
                        score, ahead = scores[m, j, 2 * h + e], uint32(8 * j + e)
                        if masked:
                            score *= scale
                            if ahead < left and row < L:
                                score += read(mask, uint32(at + ahead * key_step))
                        scores[m, j, 2 * h + e] = score if ahead < left else lowest

    return gpu.device(hide)


def _weigh(gpu, of):
    """weights = 2^(powers (scores - m')), over the scores; all sums so far go from m to m'."""
    cuda, float32, exp2, fma, larger = gpu.cuda, gpu.float32, gpu.exp2, gpu.fma, gpu.larger
    TILES, SCORES, COLUMNS, lowest = of.tiles, of.scores, of.columns, float32(-math.inf)

    def power(score, shift, powers):
        return exp2(fma(score, powers, -shift))

    def power_of_masked(score, row_max, powers):  # the lowest number times log2 e is infinite
        return exp2((score - row_max) * powers)

    masked, power = of.masked, gpu.device(power_of_masked if of.masked else power)

    def weigh(scores, powers, row_max, row_sum, out):
        for m in range(TILES):
            for h in range(2):
                best = row_max[m, h]
                for j in range(SCORES):
                    best = larger(best, larger(scores[m, j, 2 * h], scores[m, j, 2 * h + 1]))
                for lanes in (1, 2):
                    best = larger(best, cuda.shfl_xor_sync(FULL, best, lanes))
                shift = float32(0) if best == lowest else best  # no key has been seen yet
                if not masked:
                    shift *= powers
                rescale = power(row_max[m, h], shift, powers)
                row_max[m, h] = best
                for j in range(SCORES):
                    for e in range(2):
                        scores[m, j, 2 * h + e] = power(scores[m, j, 2 * h + e], shift, powers)
                row_sum[m, 2 * h] *= rescale
                for j in range(COLUMNS):
                    for e in range(2):
                        out[m, j, 2 * h + e] *= rescale

    return gpu.device(weigh)


def _store(gpu, of):
    uint32, float32, store_pair = gpu.uint32, gpu.float32, gpu.store_pair
    pack = gpu.pack_bf16 if of.dtype == "bfloat16" else gpu.pack_f16
    TILES, COLUMNS = of.tiles, of.columns

    def store(y, first, step, row0, L, width, out, row_sum, lane):
        """A query that sees no key has the sum 0, and gives 0."""
        column = uint32((lane & uint32(3)) * uint32(2))
        for m in range(TILES):
            for h in range(2):
                whole, row = row_sum[m, 2 * h], uint32(row0 + uint32(16 * m + 8 * h))
                share = float32(1) / (whole if whole > float32(0) else float32(1))
                at = uint32(first + row * step + column)
                if row < L:
                    for j in range(COLUMNS):
                        if uint32(column + uint32(8 * j)) < width:
                            store_pair(y, uint32(at + uint32(8 * j)),
                                       pack(out[m, j, 2 * h] * share, out[m, j, 2 * h + 1] * share))

    return gpu.device(store)
