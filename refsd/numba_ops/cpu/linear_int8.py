"""Products of int8 tokens and int8 weights, exact in int32: W8A8 (refsd.quantized).

    y[i, o] = sum_k x[i, k] w[o, k] (scale of token i) (scale of output o) + bias[o]

Two levels, of the same bits, for sums of integers are exact and what follows is the same:

    vnni     four products an instruction and lane (levels.Quads)
    float32  the kernels of float32, which are exact for integers while sums stay below 2^24
"""

import numba
import numpy as np
from numba import prange

from refsd.numba_ops.cpu.activation import geglu
from refsd.numba_ops.cpu.blocked import column_of, multiply, share_of, shares
from refsd.numba_ops.cpu.endings import end_row, no_addend
from refsd.numba_ops.jit import jit
from refsd.numba_ops.levels import INT8
from refsd.numba_ops.memory import aligned_empty, as_rows, fill_up, flat, panel_width
from refsd.numba_ops.panels import right_matrix
from refsd.numba_ops.quads import store_quads
from refsd.numba_ops.simd import (
    absolute,
    bitcast,
    lanes,
    load,
    masked_load,
    maximum,
    reduce_max,
    scratch,
    splat,
    store,
    to_real,
)
from refsd.numba_ops.tile import ROWS, VECTORS, tile_once
from refsd.quantized import LEAST_SCALE, MOST

EXACT = 1024  # at most so many products of 127 x 127 are below 2^24


def multiply_tokens(x, weight, bias, y, addend=None, gated=False):
    """y = x W^T + bias of int8, then + addend, or h gelu(g) where that is [h | g].

    x (..., K) float32, weight a W8A8 (N, K, ...), or (2 N, K) if gated, y and addend (M, N)
    """
    (M, N), K, outputs = y.shape, x.shape[-1], len(weight)
    if y.size == 0:
        return
    rows, _, step = as_rows(x)
    deep = -(-K // 4) * 4
    tokens = aligned_empty(max(M, ROWS) * deep, np.int8)  # a tile reads ROWS of them
    scales, sums = aligned_empty(M, np.float32), aligned_empty(M, np.int32)
    _round(rows, step, M, K, tokens, deep, scales, sums)
    values = right_matrix(weight)[0].view(np.int8)  # (K, outputs)
    biases, scale = fill_up(bias, outputs, np.float32), fill_up(weight.scale, outputs, np.float32)
    if INT8 == "vnni":
        tiles, panels = -(-M // ROWS), -(-N // panel_width(np.float32))
        row_blocks, column_parts = shares(tiles, panels, numba.get_num_threads())
        more, more_step = (no_addend(y.dtype), 0) if addend is None else as_rows(addend)[::2]
        _multiply(tokens.view(np.uint32), M, deep // 4, scales, sums, values, K, outputs, scale,
                  biases, more, more_step, N if gated else 0, flat(y), N, row_blocks, column_parts)
        return
    products = _products(tokens.reshape(-1, deep)[:M, :K], values.reshape(K, outputs))
    products *= scales[:, np.newaxis] * scale[:outputs]
    products += biases[:outputs]
    if gated:
        products = geglu(products)
    y[...] = products if addend is None else products + addend


def _products(tokens, values):
    """tokens values, whole numbers rounded once.   (M, K), (K, N) int8 -> (M, N) float32"""
    total = np.zeros((len(tokens), values.shape[1]), np.int32)
    products = np.empty(total.shape, np.float32)
    for k in range(0, len(values), EXACT):
        left, right = tokens[:, k:k + EXACT], values[k:k + EXACT]
        multiply(left.astype(np.float32), right.astype(np.float32), products)
        total += products.astype(np.int32)
    return total.astype(np.float32)


@jit(parallel=True)
def _round(x, step, rows, K, tokens, deep, scales, sums):
    """Each token's scale, its values, 0s behind them, and 128 times their sum."""
    size = lanes(x)
    for task in prange(rows):
        i = np.int64(task)
        most = splat(np.float32(0))
        for k in range(0, K, size):
            most = maximum(most, absolute(masked_load(x, i * step + k, min(size, K - k))))
        largest = reduce_max(most)
        bits = bitcast(splat(max(largest / np.float32(MOST), np.float32(LEAST_SCALE)))) + 0xFF
        scale = reduce_max(bitcast(bits & ~0xFF))
        good = largest < np.float32(2.0**127)
        scales[i] = scale if good else np.float32(np.nan)
        total = np.int32(0)
        for k in range(K if good else 0):
            value = np.int32(np.rint(x[i * step + k] / scale))
            tokens[i * deep + k] = value
            total += value
        tokens[i * deep + (K if good else 0):(i + 1) * deep] = 0
        sums[i] = 128 * total


@jit(parallel=True)
def _multiply(tokens, rows, depth, scales, sums, values, K, outputs, scale, bias, addend,
              addend_step, gate, out, columns, row_blocks, column_parts):
    """out (rows, columns). A task is a block of tiles by a part of the panels, as in blocked.py."""
    width = VECTORS * lanes(out)
    count = (columns + width - 1) // width
    tiles = (rows + ROWS - 1) // ROWS
    of_each = 2 if gate else 1
    for task in prange(row_blocks * column_parts):
        low, high, first, end = share_of(task, tiles, count, row_blocks, column_parts)
        panel, products = scratch(depth * width, tokens), scratch(ROWS * width, sums)
        kept = scratch(((high - low) * (of_each - 1) + 1) * ROWS * width, out)
        for p in range(first * of_each, end * of_each):
            column = column_of(p, gate, width)
            _pack(values, K, outputs, column, panel)
            gates = gate > 0 and column >= gate
            to = column - gate if gates else column
            for t in range(low, high):
                # The last tile starts early, over rows of the one before.
                start = max(0, min(t * ROWS, rows - ROWS))
                tile_once(tokens, start * depth, depth, depth, panel, products)
                hidden_at = (t - low) * (of_each - 1) * ROWS * width
                sums_at = (high - low) * ROWS * width if gates else hidden_at
                for i in range(min(ROWS, rows - start)):
                    at = sums_at + i * width
                    _scale_row(products, i * width, sums[start + i], scales[start + i], scale,
                               bias, column, kept, at)
                    if gates or gate == 0:
                        end_row(kept, at, hidden_at + i * width, gates, addend,
                                (start + i) * addend_step + to, out, (start + i) * columns + to,
                                min(width, columns - to))


@jit
def _pack(values, K, columns, column, panel):
    """The panel of the values + 128 from a column on, four rows in a lane.

    Behind the last row it may hold anything: there tokens are 0. So it may behind the last column:
    what is summed there is not stored.
    """
    width = VECTORS * lanes(panel)
    for k in range(0, K, 4):
        if k + 4 <= K and column + width <= columns:
            store_quads(panel, k // 4, values, k * columns + column, columns)
        else:
            for o in range(min(width, columns - column)):
                quad = 0
                for n in range(min(4, K - k)):
                    quad |= (values[(k + n) * columns + column + o] + 128) << 8 * n
                panel[k // 4 * width + o] = quad


@jit
def _scale_row(products, at, sum128, token_scale, scale, bias, column, out, out_at):
    """out[out_at :], a panel's width = (products - sum128) scales + bias"""
    size = lanes(out)
    for j in range(0, VECTORS * size, size):
        total = to_real(load(products, at + j) - sum128)
        value = total * (load(scale, column + j) * token_scale) + load(bias, column + j)
        store(out, out_at + j, value)
