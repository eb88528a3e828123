"""The tensor-core tile, in the smallest kernel that is made of it."""

import ml_dtypes
import numpy as np
import pytest

from refsd.numba_ops.cuda import lockstep, meaning
from refsd.numba_ops.cuda.plan import Plan
from refsd.numba_ops.cuda.tile import DEPTH, Tile, core

KINDS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def product_kernel(gpu, dtype, shape, turing=False):
    """C = A B^T + bias"""
    cuda, uint32, float32 = gpu.cuda, gpu.uint32, gpu.float32
    tile = core(gpu, dtype, shape, turing)
    half, (MT, NT), (rows, columns) = tile.half, tile.sums, shape[:2]
    products, store = tile.pipeline(tile.rows_a, tile.rows_b), tile.store

    def product(a, b, bias, c, M, N, K):
        memory = cuda.shared.array(0, half, 16)
        sums = cuda.local.array((MT, NT, 4), float32)
        for m in range(MT):
            for n in range(NT):
                for e in range(4):
                    sums[m, n, e] = float32(0)
        t, zero = uint32(cuda.threadIdx.x), uint32(0)
        row0 = uint32(cuda.blockIdx.x) * uint32(rows)
        column0 = uint32(cuda.blockIdx.y) * uint32(columns)
        products(memory, sums, (a, row0, M, K, K, zero), (b, column0, N, K, K, zero), zero,
                 (K + uint32(DEPTH - 1)) // uint32(DEPTH), t)
        store(c, zero, bias, uint32(1), sums, row0, column0, M, N, t)

    array = gpu.array(dtype)
    return Plan(product, (array,) * 4 + (gpu.uint32,) * 3, tile.threads, tile.shared)


def multiply(make, M, N, K, dtype="float16", shape=(32, 32, 16, 32), turing=False):
    """The error of each element, and the most it may be."""
    random, kind, shape = np.random.default_rng(M), KINDS[dtype], Tile(*shape)
    a, b, bias = (random.standard_normal(s).astype(kind) for s in ((M, K), (N, K), N))
    c = np.full((M, N), np.nan, kind)
    grid = -(-M // shape.rows), -(-N // shape.columns)
    memory = [x.reshape(-1).view(lockstep.array(dtype)) for x in (a, b, bias, c)]
    lockstep.run(make(lockstep, dtype, shape, turing), grid, [*memory, M, N, K])
    a, b, bias, c = (x.astype(np.float64) for x in (a, b, bias, c))
    truth = a @ b.T + bias
    # K products and K sums in float32, and the result rounded once
    sums = (K + 1) * 2.0**-24 / (1 - (K + 1) * 2.0**-24) * (abs(a) @ abs(b).T + abs(bias))
    u = float(ml_dtypes.finfo(kind).eps) / 2
    return abs(c - truth), sums + u * (abs(truth) + sums)


@pytest.mark.parametrize("dtype, turing", [("float16", False), ("bfloat16", False),
                                           ("float16", True)])
@pytest.mark.parametrize("M, N, K", [(40, 24, 72), (8, 40, 8), (33, 32, 128)])
def test_a_ragged_product(M, N, K, dtype, turing, order):
    error, bound = multiply(product_kernel, M, N, K, dtype, turing=turing)
    assert (error <= bound).all()


@pytest.mark.parametrize("shape", [(16, 64, 16, 16), (32, 80, 32, 80), (64, 32, 32, 16)])
def test_rows_of_a_load_meet_all_banks(shape, monkeypatch):
    """Of both operands, however warps share the block; a piece of work for 80 columns is ragged."""
    monkeypatch.setattr(meaning, "tally", {"ldmatrix": 0, "conflicts": 0})
    error, bound = multiply(product_kernel, shape[0] - 8, shape[1], 40, shape=shape)
    assert (error <= bound).all()
    assert meaning.tally["ldmatrix"] and not meaning.tally["conflicts"]
